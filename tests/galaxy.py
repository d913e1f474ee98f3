"""The collection, built from this checkout and installed where a test wants it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]


def run(program: str, *words, check: bool = True, **more) -> subprocess.CompletedProcess[str]:
    """Run one of Ansible's programs, such as ``galaxy``, with this interpreter's ansible-core."""
    more["env"] = {
        **os.environ,
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_LOCALHOST_WARNING": "0",
        "ANSIBLE_INVENTORY_UNPARSED_WARNING": "0",
        **more.get("env", {}),
    }
    more.setdefault(
        "timeout", 900
    )  # a first deployment builds a wheel, from an index that may be slow
    command = [sys.executable, "-m", "ansible", program, *map(str, words)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd="/", **more)
    assert not check or done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
    return done


def copy_checkout(into: Path) -> Path:
    """Copy what version control knows, as far as it is there."""
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={REPO}", "ls-files", "-z", "-c", "-o", "--exclude-standard"],
        cwd=REPO,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in listed.split("\0"):
        if name and (REPO / name).is_file():
            target = into / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPO / name, target)
    return into


def build(checkout: Path, into: Path) -> Path:
    run("galaxy", "collection", "build", "--output-path", into, checkout)
    [tarball] = into.glob("tariq-tariq-*.tar.gz")
    return tarball


def install(what: Path, into: Path) -> Path:
    """Install a tarball or a checkout, without asking any server; return where it is.

    By force: else nothing is done where the user who runs the tests has the same version already.
    """
    run("galaxy", "collection", "install", "--offline", "--no-deps", "--force", "-p", into, what)
    return into / "ansible_collections" / "tariq" / "tariq"
