"""The warden's side of the sentry: its process, where that is the warden's own, and the link to it.

Under systemd the sentry is a unit of its own and comes to the warden's socket; without, the
warden starts it. Either way it opens its own sockets, and is told what it needs over the link.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from tariq.agent import link
from tariq.agent.policy import Policy
from tariq.errors import AgentError

_READY_SECONDS = 20.0
_PEER = struct.Struct("=iII")
"""struct ucred, unix(7): pid, uid, gid."""


class Sentinel:
    """Gets one sentry after the other: from ``listen_at`` if that is named, else as a child."""

    def __init__(
        self, rules: Policy, knock_keys: Sequence[bytes], listen_at: Path | None = None
    ) -> None:
        self._knock_keys = [key.hex() for key in knock_keys]
        self._setup = self._setup_of(rules)
        self._user = pwd.getpwnam(rules.sentry_user)
        self._listener = None if listen_at is None else _listen(listen_at, self._user.pw_gid)
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None

    def _setup_of(self, rules: Policy) -> bytes:
        first, *others = self._knock_keys
        return link.Setup(rules.port, first, rules.interfaces, *others).encode()

    def adopt(self, rules: Policy) -> bool:
        """Go by another policy; end a sentry that was told otherwise, and say whether one was.

        The user stays: a socket that sentries come to was given to it.
        """
        before, self._setup = self._setup, self._setup_of(rules)
        if before == self._setup:
            return False
        if self._link is not None:  # frames() ends, and the next sentry is told anew
            self._link.shutdown(socket.SHUT_RDWR)
        return True

    async def start(self) -> None:
        """Get a sentry and wait for its ready sign; raise AgentError if none comes."""
        ready = b""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_READY_SECONDS):
                self._link = await self._accept() if self._listener else self._spawn()
                self._link.send(self._setup)
                ready = await asyncio.get_running_loop().sock_recv(self._link, link.MAX_FRAME)
        if ready != b"ready":
            self.stop()
            hint = "see the lines above; 'python3 -m tariq.agent.sentry_start' must be importable"
            if self._listener:
                hint = "see 'journalctl -u tariq-sentry'"
            raise AgentError("sentry", f"did not start as user {self._user.pw_name}", hint)

    async def _accept(self) -> socket.socket:
        """Return the link that the sentry's user opens; nobody else's is looked at."""
        assert self._listener is not None
        while True:
            ours, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            peer = ours.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
            if _PEER.unpack(peer)[1] == self._user.pw_uid:
                return ours
            ours.close()

    def _spawn(self) -> socket.socket:
        ours, theirs = link.pair()
        ours.setblocking(False)
        with theirs:
            end, user = str(theirs.fileno()), self._user.pw_name
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-m", "tariq.agent.sentry_start", end, user],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd="/",
                env={"LC_ALL": "C.UTF-8", "HOME": "/nonexistent"},
            )
        return ours

    def stop(self) -> None:
        """End the sentry: it goes when the link does, at the latest when it is killed."""
        if self._link is not None:
            self._link.close()
            self._link = None
        if self._process is None:
            return
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    async def frames(self) -> AsyncIterator[bytes]:
        """Yield what the sentry passes on, until it is gone."""
        loop = asyncio.get_running_loop()
        while self._link is not None:
            try:
                frame = await loop.sock_recv(self._link, link.MAX_FRAME)
            except OSError:
                return
            if not frame:
                return
            yield frame

    def send(self, reply: link.Reply) -> None:
        """Send a reply; one that a dead or stuck sentry can't take is lost, and silence."""
        if self._link is not None:
            with contextlib.suppress(OSError):
                self._link.send(reply.encode())


def _listen(path: Path, group: int) -> socket.socket:
    """Return a listening socket that only root and one group may connect to."""
    path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    os.chown(path, -1, group)
    path.chmod(0o660)
    listener.listen()
    listener.setblocking(False)
    return listener
