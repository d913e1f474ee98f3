"""Two ways to start a run's process so that it outlives the agent. See ``runner``.

Under systemd it gets a unit of its own (systemd-run(1)): the agent's restart doesn't end
it, and the agent's confinement isn't its own. Elsewhere it is a child in a session of its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Protocol

_GRACE = 30
"""Seconds after a task's own limit after which its unit is ended whatever its runner does."""


class Launcher(Protocol):
    """Starts ``runner`` for one run; returns at once. Raises OSError."""

    def start(self, directory: Path, label: str, seconds: int) -> subprocess.Popen[bytes]:
        """Return a process that ends without error once the run was started, or is over."""


def _command(directory: Path, label: str) -> list[str]:
    return [sys.executable, "-I", "-m", "tariq.agent.runner", str(directory), label]


class Unit:
    """A transient unit of systemd."""

    def start(self, directory: Path, label: str, seconds: int) -> subprocess.Popen[bytes]:
        """See ``Launcher``; the program asks systemd and ends."""
        properties = [
            f"--unit=tariq-task-{label}",
            f"--description=Tariq task, run {label}",
            f"--property=RuntimeMaxSec={seconds + _GRACE}",
            "--property=UMask=0077",
            "--property=KillMode=control-group",
        ]
        return subprocess.Popen(
            ["systemd-run", "--quiet", "--collect", *properties, "--", *_command(directory, label)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd="/",
        )


class Child:
    """A process in a session of its own, which the agent's end doesn't reach."""

    def start(self, directory: Path, label: str, seconds: int) -> subprocess.Popen[bytes]:
        """See ``Launcher``; the runner itself keeps the time."""
        return subprocess.Popen(
            _command(directory, label),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            close_fds=True,
            umask=0o077,
            cwd="/",
        )


def choose() -> Launcher:
    """Return what suits this machine: sd_booted(3) looks at the same directory."""
    return Unit() if Path("/run/systemd/system").is_dir() else Child()
