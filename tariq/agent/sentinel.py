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
_PAUSE = 0.005
"""Seconds between two frames: a sentry that was taken over may send 200 a second, no more."""
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
        self.link: socket.socket | None = None
        self.hint = (
            "see 'journalctl -u tariq-sentry'"
            if listen_at
            else "see the lines above; 'python3 -m tariq.agent.sentry_start' must be importable"
        )

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
        if self.link is None:
            return False
        with contextlib.suppress(OSError):  # it may be dead already
            self.link.shutdown(socket.SHUT_RDWR)  # frames() ends, and the next is told anew
        return True

    async def start(self) -> bool:
        """Get a sentry and wait for its ready sign; tell whether it lived to give it.

        Raises AgentError if there is none in time.
        """
        try:
            async with asyncio.timeout(_READY_SECONDS):
                self.link = await self._accept() if self._listener else self._spawn()
                self.link.send(self._setup)
                ready = await asyncio.get_running_loop().sock_recv(self.link, link.MAX_FRAME)
        except TimeoutError as why:
            reason = f"did not start as user {self._user.pw_name}"
            raise AgentError("sentry", reason, self.hint) from why
        except OSError:
            return False
        return ready == b"ready"

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
        if self.link is not None:
            self.link.close()
            self.link = None
        if self._process is None:
            return
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    async def frames(self) -> AsyncIterator[bytes]:
        """Yield what the sentry passes on, until it is gone.

        One that always has more must not keep everything else from its turn: sock_recv alone
        doesn't wait where there is something.
        """
        loop = asyncio.get_running_loop()
        while self.link is not None:
            try:
                frame = await loop.sock_recv(self.link, link.MAX_FRAME)
            except OSError:
                return
            if not frame:
                return
            yield frame
            await asyncio.sleep(_PAUSE)

    def send(self, reply: link.Reply, to: socket.socket | None) -> None:
        """Send a reply to the sentry whose knock it answers: another counts anew.

        One that a dead or stuck sentry can't take is lost, and silence.
        """
        if to is not None:
            with contextlib.suppress(OSError):
                to.send(reply.encode())


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
