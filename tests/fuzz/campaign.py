"""Run the fuzzers for so many seconds each, and say how many executions that were.

    .venv/bin/python tests/fuzz/campaign.py SECONDS [TARGET…]

Targets are the other files of this folder. What they learn is kept in ``.fuzz/`` and used
again; an input that breaks something is left there as well, and the exit status is 1.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

HERE = Path(__file__).parent
TARGETS = ("sentry", "warden", "openpgp")
LONGEST = {"openpgp": 25}
"""Seconds after which one input is a finding (libFuzzer, -timeout); GnuPG itself may take ten."""


def fuzz(test: Callable[[bytes], None], seeds: Iterable[bytes]) -> None:
    """Fuzz in this process: libFuzzer's arguments, then the folder to learn in."""
    import atheris

    learnt = Path(sys.argv[-1])
    learnt.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (learnt / f"seed-{number}").write_bytes(seed)
    atheris.Setup(sys.argv, test)
    atheris.Fuzz()


def run(target: str, seconds: int, learnt: Path) -> tuple[int, str]:
    """Fuzz one target; return the number of executions and what was found, if anything."""
    options = [
        f"-max_total_time={seconds}",
        f"-timeout={LONGEST.get(target, 5)}",
        "-rss_limit_mb=2048",
    ]
    options += [f"-artifact_prefix={learnt.parent}/{target}-", "-max_len=2048", "-verbosity=1"]
    command = [sys.executable, str(HERE / f"{target}.py"), *options, str(learnt)]
    learnt.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=seconds + 120,
    )
    told = done.stdout + done.stderr
    counted = re.search(r"Done (\d+) runs", told)
    return int(counted[1]) if counted else 0, "" if done.returncode == 0 and counted else told


def main(seconds: int, targets: list[str]) -> int:
    status = 0
    for target in targets:
        runs, found = run(target, seconds, Path(".fuzz") / target)
        print(f"{target}: {runs} executions in {seconds} s" + (", and a finding:" if found else ""))
        if found:
            print(found[-4000:])
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:] or list(TARGETS)))
