"""The sentry: the only process that touches what strangers send.

It runs as an unprivileged user with no capability, holds no OpenPGP key and can't
reach the firewall; the warden hands it open sockets and the knock key. Per packet,
from the cheapest check to the dearest: the kernel's filter, the proof (one HMAC on
the raw bytes), the memory of pictures seen, the token bucket; only then Pillow,
stegano and the warden.

    python -m tariq.agent.sentry LINK SNIFFER4 SENDER4 [SNIFFER6 SENDER6]

The arguments are file descriptors. It ends when the warden's end of the link closes.
"""

from __future__ import annotations

import ctypes
import os
import resource
import selectors
import socket
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from tariq import picture
from tariq.agent.link import MAX_FRAME, Knock, Reply, Setup
from tariq.errors import BudgetError, MessageError
from tariq.picture import Direction, proof
from tariq.transport import answer, wire
from tariq.transport.sniffer import RawSender, Sniffer
from tariq.transport.wire import Segment

RETRY_SECONDS = 5.0
"""For so long the same picture from the same address gets the same answer again."""
MAX_RETRIES = 3
"""Sockets of one client that an answer goes to."""
MEMORY = 4096
"""Accepted pictures that are remembered; the bucket fills it in no less than three windows."""
RATE, BURST = 20.0, 40.0
"""Pictures a second that may cost a decoding and four calls of GnuPG, and how many at once."""
_PR_SET_NO_NEW_PRIVS, _PR_SET_DUMPABLE = 38, 4  # linux/prctl.h


@dataclass(slots=True)
class Pending:
    """One accepted picture: where it came from and what was answered."""

    number: int
    source: str
    until: float
    asked_by: list[Segment] = field(default_factory=list)
    payload: bytes | None = None


class Bucket:
    """A token bucket; ``clock`` in seconds."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._level, self._at = burst, clock()

    def take(self) -> bool:
        """Take one token if there is one."""
        now = self._clock()
        self._level = min(self._burst, self._level + (now - self._at) * self._rate)
        self._at = now
        if self._level < 1:
            return False
        self._level -= 1
        return True


class Sentry:
    """Turns packets into knocks for the warden, and its replies into packets."""

    def __init__(self, setup: Setup, link: socket.socket, sender: RawSender) -> None:
        self._key = bytes.fromhex(setup.knock_key)
        self._port = setup.port
        self._link, self._sender = link, sender
        self._bucket = Bucket(RATE, BURST, time.monotonic)
        self._seen: OrderedDict[str, Pending] = OrderedDict()
        self._waiting: dict[int, Pending] = {}
        self._count = 0

    def on_packet(self, packet: bytes) -> None:
        """Look at one packet; whatever is wrong with it, the answer is silence."""
        try:
            syn = wire.parse(packet)
            if syn.dport != self._port or syn.flags != wire.SYN:
                return
            proof.check(syn.payload, self._key, Direction.TO_HOST, time.time())
            self._on_proven(syn)
        except MessageError:
            return

    def _on_proven(self, syn: Segment) -> None:
        """Handle a picture whose maker knew the knock key, or whose copier saw it pass."""
        tag = proof.tag_of(syn.payload)
        known = self._seen.get(tag)
        if known is not None:
            self._again(known, syn)
            return
        if not self._bucket.take():
            return
        self._count = self._count + 1 & 0xFFFFFFFF
        until = time.monotonic() + RETRY_SECONDS
        pending = Pending(self._count, syn.src, until, [syn])
        self._remember(tag, pending)
        message = picture.unwrap(syn.payload, self._key, Direction.TO_HOST, time.time())
        frame = Knock(pending.number, syn.src, message).encode()
        try:
            self._link.send(frame, socket.MSG_DONTWAIT)
        except BlockingIOError:  # the warden is far behind; the client will try again
            return
        self._waiting[pending.number] = pending

    def _again(self, known: Pending, syn: Segment) -> None:
        """Answer a client's retry; a copy from elsewhere, or later, is a replay."""
        if syn.src != known.source or time.monotonic() > known.until:
            return
        if len(known.asked_by) >= MAX_RETRIES:
            return
        known.asked_by.append(syn)
        if known.payload:
            answer.send(self._sender, syn, known.payload)

    def _remember(self, tag: str, pending: Pending) -> None:
        self._seen[tag] = pending
        while len(self._seen) > MEMORY:
            self._seen.popitem(last=False)

    def on_reply(self, reply: Reply) -> None:
        """Send the receipt to every socket that the client has asked from."""
        pending = self._waiting.pop(reply.number, None)
        if pending is None or not reply.message:
            return
        try:
            pending.payload = picture.wrap(
                reply.message, self._key, Direction.TO_CLIENT, time.time()
            )
        except BudgetError:  # the warden keeps receipts small; a client sees silence
            return
        for syn in pending.asked_by:
            answer.send(self._sender, syn, pending.payload)


def confine() -> None:
    """Give up what is left to give up: new privileges, core dumps, files, processes."""
    if os.geteuid() == 0:
        sys.exit("tariq sentry: refuses to run as root; set sentry_user in the policy")
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_PR_SET_NO_NEW_PRIVS, 1), (_PR_SET_DUMPABLE, 0)):
        if libc.prctl(option, value, 0, 0, 0) != 0:
            sys.exit(f"tariq sentry: prctl {option} failed; needs Linux 3.5")
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def serve(link: socket.socket, sniffers: list[Sniffer], sender: RawSender) -> None:
    """Run until the warden closes its end."""
    sentry = Sentry(Setup.decode(link.recv(MAX_FRAME)), link, sender)
    link.send(b"ready")
    with selectors.DefaultSelector() as selector:
        selector.register(link, selectors.EVENT_READ)
        for sniffer in sniffers:
            selector.register(sniffer.ins, selectors.EVENT_READ, sniffer)
        while True:
            for key, _ in selector.select():
                if key.data is None:
                    frame = link.recv(MAX_FRAME)
                    if not frame:
                        return
                    sentry.on_reply(Reply.decode(frame))
                    continue
                packet = key.data.recv_bytes()
                if packet is not None:
                    sentry.on_packet(packet)


def main(descriptors: list[int]) -> None:
    """Wrap the inherited descriptors and serve."""
    link, sniffer4, sender4, *ipv6 = (socket.socket(fileno=fd) for fd in descriptors)
    sniffers = [Sniffer(sniffer4), *(Sniffer(sock) for sock in ipv6[:1])]
    confine()
    serve(link, sniffers, RawSender(sender4, ipv6[1] if ipv6 else None))


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]])
