"""One run of a task, in a process of its own that outlives the agent.

    python -I -m tariq.agent.runner DIRECTORY LABEL

reads ``LABEL.json`` (``shelf.Run``), starts the command as its user, keeps the start of its
output in ``LABEL.out`` and says in ``LABEL.end`` how it ended. While it lives it holds a lock
on ``LABEL.json``; a run without a lock and without an end was lost (flock(2): the kernel lets
go of it however the process dies).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import grp
import hashlib
import json
import os
import pwd
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CHUNK = 65_536
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


class Output:
    """What a task writes: the start is kept, all of it is read, so that it never blocks."""

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self._file, self._limit = file, limit
        self._hash = hashlib.sha256()
        self.kept = self.seen = 0

    def take(self, data: bytes) -> None:
        """Keep what fits; a disk that is full is no reason to stop the task."""
        self.seen += len(data)
        data = data[: self._limit - self.kept]
        if not data:
            return
        try:
            self._file.write(data)
            self._file.flush()
        except OSError:
            self._limit = self.kept
            return
        self.kept += len(data)
        self._hash.update(data)

    def told(self) -> dict[str, Any]:
        """Return what the end of a run says of its output."""
        return {"size": self.kept, "seen": self.seen, "sha256": self._hash.hexdigest()}


def run(directory: Path, label: str) -> None:
    """Run it, once: who finds the output file there already does nothing."""
    with (directory / f"{label}.json").open("rb") as spec:
        fcntl.flock(spec, fcntl.LOCK_EX)
        if (directory / f"{label}.end").exists():  # given up meanwhile
            return
        task = json.load(spec)
        with _once(directory / f"{label}.out") as file:
            output = Output(file, task["output"])
            end = _supervise(task, output)
            with contextlib.suppress(OSError):
                os.fsync(file.fileno())
        write_end(directory, label, {**end, **output.told()})


def write_end(directory: Path, label: str, end: dict[str, Any]) -> None:
    """Say how a run ended; the file is whole or not there."""
    draft = directory / f"{label}.end.new"
    with draft.open("w") as file:
        json.dump({"t": int(time.time()), **end}, file)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(directory / f"{label}.end")


def _once(path: Path) -> IO[bytes]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o600), "wb", buffering=0)


def _supervise(task: dict[str, Any], output: Output) -> dict[str, Any]:
    """Start the command, read its output until it ends or its time does, and end what it left."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what it leaves behind comes to us
    try:
        process = _start(task)
    except (OSError, subprocess.SubprocessError, KeyError) as why:
        return {"exit": None, "why": f"can't be started: {_reason(why)}"}
    in_time = _read_until_end(process, output, time.monotonic() + task["seconds"])
    if not in_time:
        process.kill()
    _end_children(process)
    _drain(process, output)
    told = "" if in_time else f"killed after {task['seconds']} s"
    return {"exit": process.wait(), "why": told, "killed": not in_time}


def _reason(why: Exception) -> str:
    if isinstance(why, KeyError):
        return "no such user or group"
    if isinstance(why, OSError):
        return (why.strerror or "").lower() + (f": {why.filename}" if why.filename else "")
    return "its user can't be taken on"


def _start(task: dict[str, Any]) -> subprocess.Popen[bytes]:
    user = pwd.getpwnam(task["user"])
    group = grp.getgrnam(task["group"]).gr_gid if task["group"] else user.pw_gid
    return subprocess.Popen(
        task["argv"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        user=user.pw_uid,
        group=group,
        extra_groups=os.getgrouplist(user.pw_name, group),
        cwd=task["cwd"],
        umask=0o022,
        start_new_session=True,
        env={
            "PATH": PATH,
            "LANG": "C.UTF-8",
            "HOME": user.pw_dir,
            "USER": user.pw_name,
            "LOGNAME": user.pw_name,
            "TARIQ_TASK": task["name"],
            "TARIQ_RUN": task["label"],
            "TARIQ_OPERATOR": task["operator"],
            "TARIQ_SOURCE": task["source"],
        },
    )


def _read_until_end(process: subprocess.Popen[bytes], output: Output, until: float) -> bool:
    """Read until the process itself ends, whoever else holds its output; False: out of time."""
    assert process.stdout is not None
    ended = os.pidfd_open(process.pid)
    os.set_blocking(process.stdout.fileno(), False)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(ended, selectors.EVENT_READ)
            selector.register(process.stdout, selectors.EVENT_READ)
            while (left := until - time.monotonic()) > 0:
                ready = {key.fd for key, _ in selector.select(left)}
                at_end = process.stdout.fileno() in ready and not _read(process, output)
                if ended in ready:
                    return True
                if at_end:
                    selector.unregister(process.stdout)
        return False
    finally:
        os.close(ended)


def _read(process: subprocess.Popen[bytes], output: Output) -> bytes:
    """Take one piece of output; nothing means that there is no more."""
    assert process.stdout is not None
    try:
        data = os.read(process.stdout.fileno(), _CHUNK)
    except BlockingIOError:
        return b""
    output.take(data)
    return data


def _drain(process: subprocess.Popen[bytes], output: Output) -> None:
    while _read(process, output):
        pass


def _end_children(process: subprocess.Popen[bytes]) -> None:
    """Kill what the task left running, and what that leaves, as a unit's control group would."""
    process.wait()
    until = time.monotonic() + 5
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while time.monotonic() < until:
        for pid in children.read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2])
