"""Helper processes that hold ansible-core.

It takes half a second to import and is GPL-3.0-or-later, so Tariq's own process never
does; ``ansible_inventory`` and ``ansible_vault`` are started when they are needed, and
print JSON.
"""

from __future__ import annotations

import subprocess
import sys

SECONDS = 120
"""How long one may take: a dynamic inventory asks a cloud, a vault's password is typed."""
NO_ANSIBLE, UNREADABLE, UNKNOWN = 3, 4, 5
"""Exit statuses; the last line on standard error is the reason."""


def run(module: str, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run ``tariq.client.MODULE`` and wait; raise subprocess.TimeoutExpired."""
    # -P: else a folder that somebody works in could bring a module of the same name
    command = [sys.executable, "-P", "-m", f"tariq.client.{module}", *words]
    return subprocess.run(
        command, input=given, capture_output=True, text=True, check=False, timeout=SECONDS
    )


def reason(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a helper that failed said last."""
    return (done.stderr.strip().splitlines() or ["no reason given"])[-1]
