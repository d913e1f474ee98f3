"""The runs of tasks on this host: a directory with three files for each.

``LABEL.json`` says what was asked, and is on disk before anything is started; ``LABEL.out``
has the output, ``LABEL.end`` says how it ended. A run is started once, by whoever made its
``.json``: nothing here starts one that it finds.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tariq.agent import launch
from tariq.agent.launch import Launcher
from tariq.agent.runner import write_end
from tariq.errors import AgentError
from tariq.message import State, TaskRun

KEEP = 100
"""Runs whose files are kept."""
MOST = 32
"""Runs at a time, of all tasks together."""
START_SECONDS = 20.0
"""A run that nobody has the lock of for so long after it was asked for was lost."""
log = logging.getLogger("tariq.shelf")


@dataclass(frozen=True, slots=True)
class End:
    """How a run ended: ``exit`` is negative for a signal, None if it never began or was lost.

    ``killed``: its time was over. ``size`` bytes of output are kept, of ``seen``; ``t`` is in
    Unix seconds.
    """

    t: int
    exit: int | None = None
    why: str = ""
    killed: bool = False
    size: int = 0
    seen: int = 0
    sha256: str = ""


@dataclass(slots=True)
class Run:
    """What is to be run, and how it ended, if it did."""

    label: str
    name: str
    argv: list[str]
    user: str
    group: str | None
    cwd: str
    seconds: int
    output: int
    operator: str
    source: str
    t: float
    end: End | None = None
    launched: subprocess.Popen[bytes] | None = field(default=None, repr=False)


class Shelf:
    """All runs that are kept; raises AgentError where the directory can't be used."""

    def __init__(self, directory: Path, launcher: Launcher | None = None) -> None:
        self.directory = directory
        self._launcher = launcher or launch.choose()
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as why:
            raise AgentError(str(directory), _reason(why), "check the state directory") from why
        found = sorted(read(directory), key=lambda run: run.end.t if run.end else 0)
        self._runs = {run.label: run for run in found}

    def start(self, run: Run) -> None:
        """Record a run and start it; raise AgentError if it can't be."""
        try:
            self._record(run)
        except OSError as why:
            hint = "free the disk; nothing was started"
            raise AgentError(str(self.directory), _reason(why), hint) from why
        self._runs[run.label] = run
        try:
            run.launched = self._launcher.start(self.directory, run.label, run.seconds)
        except OSError as why:
            self._give_up(run, f"can't be started: {_reason(why)}")
            run.end = None  # for step() to find, which tells of every end

    def _record(self, run: Run) -> None:
        known = {each.name: getattr(run, each.name) for each in fields(run)}
        del known["end"], known["launched"]
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        path = self.directory / f"{run.label}.json"
        with os.fdopen(os.open(path, flags, 0o600), "w") as file:
            json.dump(known, file)
            file.flush()
            os.fsync(file.fileno())
        where = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(where)
        os.close(where)

    def running(self, name: str | None = None) -> int:
        """Return how many runs, of one task or of all, haven't ended."""
        return sum(run.end is None and name in (None, run.name) for run in self._runs.values())

    def state(self, label: str) -> State:
        """Return how a run stands."""
        return state_of(self._runs[label])

    def line(self, run: Run) -> TaskRun:
        """Return what a receipt says of one of several runs."""
        status = None if run.end is None else run.end.exit
        return TaskRun(run.label, run.name, state_of(run), status)

    def get(self, label: str) -> Run:
        """Return a run that was started."""
        return self._runs[label]

    def recent(self, operator: str) -> list[Run]:
        """Return an operator's runs, the newest first."""
        runs = [run for run in self._runs.values() if run.operator == operator]
        return sorted(runs, key=lambda run: run.t, reverse=True)

    def ended(self) -> list[Run]:
        """Return the runs that have ended, in the order in which they did."""
        return [run for run in self._runs.values() if run.end]

    def step(self) -> list[Run]:
        """Look what has ended; return it, once."""
        ended = []
        for run in list(self._runs.values()):
            if run.end is None and self._look(run):
                self._runs[run.label] = self._runs.pop(run.label)  # the last to end, by no clock
                ended.append(run)
        return ended

    def _look(self, run: Run) -> bool:
        failed = run.launched.poll() if run.launched is not None else None
        run.end = read_end(self.directory, run.label)
        if run.end is None and failed:
            self._give_up(run, "can't be started: see the log")
        elif run.end is None and time.time() - run.t > START_SECONDS:
            self._give_up(run, "outcome unknown: its process is gone")
        return run.end is not None

    def _give_up(self, run: Run, why: str) -> None:
        """Say that a run is lost, unless somebody is at it: that one holds the lock.

        What can't be said on a full disk is said by a later ``step``.
        """
        try:
            self._say_lost(run, why)
        except OSError as failure:
            log.warning("run %s of %s: %s; not written: %s", run.label, run.name, why, failure)

    def _say_lost(self, run: Run, why: str) -> None:
        with (self.directory / f"{run.label}.json").open("rb") as spec:
            try:
                fcntl.flock(spec, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            if read_end(self.directory, run.label) is None:
                write_end(self.directory, run.label, {"exit": None, "why": why})
            run.end = read_end(self.directory, run.label)

    def prune(self) -> None:
        """Remove the files of all runs but those that ended last."""
        for run in self.ended()[:-KEEP]:
            for suffix in ("out", "json", "end"):
                (self.directory / f"{run.label}.{suffix}").unlink(missing_ok=True)
            del self._runs[run.label]

    def head(self, label: str, size: int) -> bytes:
        """Return the start of a run's output."""
        return head(self.directory, label, size)


def state_of(run: Run) -> State:
    """Return how a run stands."""
    if run.end is None:
        return State.RUNNING
    if run.end.exit is None:
        return State.LOST
    return State.KILLED if run.end.killed else State.ENDED


def head(directory: Path, label: str, size: int = -1) -> bytes:
    """Return the start of a run's output, or all of it."""
    try:
        with (directory / f"{label}.out").open("rb") as file:
            return file.read(size)
    except FileNotFoundError:
        return b""


def read(directory: Path) -> Iterator[Run]:
    """Yield the runs of a directory, the oldest first."""
    found = []
    for path in directory.glob("*.json"):
        try:
            spec = json.loads(path.read_bytes())
            run = Run(**spec)
        except (ValueError, TypeError):  # cut short by a crash before it was ever started
            continue
        run.end = read_end(directory, run.label)
        found.append(run)
    yield from sorted(found, key=lambda run: run.t)


def read_end(directory: Path, label: str) -> End | None:
    """Return how a run ended, if it did."""
    try:
        raw: Mapping[str, Any] = json.loads((directory / f"{label}.end").read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return End(**raw)


def _reason(why: OSError) -> str:
    return (why.strerror or str(why)).lower()
