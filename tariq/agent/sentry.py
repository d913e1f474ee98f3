"""The sentry: the only process that touches what strangers send.

It runs as an unprivileged user with no capability, holds no OpenPGP key and can't
reach the firewall; ``sentry_start`` opened its sockets and gave up what that took, and
the warden tells it the knock key. Per packet,
from the cheapest check to the dearest: the kernel's filter, the proof (one HMAC on
the raw bytes), the memory of pictures seen, the token bucket; only then Pillow,
stegano and the warden.

It ends when the warden's end of the link closes.
"""

from __future__ import annotations

import ctypes
import encodings.idna  # noqa: F401 - sendto() may load it, when no file can be opened any more
import os
import resource
import selectors
import socket
import sys
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tariq import picture
from tariq.agent.link import MAX_FRAME, REPORT, Knock, Reply, Setup
from tariq.errors import BudgetError, MessageError
from tariq.picture import Direction, proof
from tariq.transport import answer, bpf, sockets, wire
from tariq.transport.sniffer import RawSender, Sniffer
from tariq.transport.wire import Segment

RETRY_SECONDS = 5.0
"""For so long the same picture from the same address gets the same answer again."""
MAX_RETRIES = 3
"""Sockets of one client that an answer goes to."""
RATE, BURST = 5.0, 40.0
"""Pictures a second that may cost a decoding and four calls of GnuPG, and how many at once."""
MEMORY_SECONDS = 3 * proof.WINDOW
"""A tag is remembered for as long as any clock of ours would take it: three windows."""
MEMORY = int(MEMORY_SECONDS * RATE + BURST) + 1
"""Tags that the bucket lets in meanwhile, so that none is forgotten too soon."""
FLOOD = 16
"""Copies of one knock that are looked at before the kernel drops the others."""
DRAIN = 64
"""Packets that are read from one socket before the others have their turn."""
REPORT_SECONDS = 60.0
TICK_SECONDS = 2.0
"""How often the clock is looked at: windows overlap by ten minutes."""
BREAK_SECONDS = 0.2
"""At least between two renewals of the filters, whoever makes them due."""
ROOM = 128 << 20
"""Bytes that it may map beyond what it has mapped when it is ready."""
_PR_SET_NO_NEW_PRIVS, _PR_SET_DUMPABLE = 38, 4  # linux/prctl.h


@dataclass(slots=True)
class Pending:
    """One accepted picture: where it came from, under which key, and what was answered."""

    number: int
    source: str
    until: float
    key: bytes
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

    def __init__(
        self,
        setup: Setup,
        link: socket.socket,
        sender: RawSender,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = setup.keys()
        self._port, self._clock = setup.port, clock
        self._interfaces = frozenset(setup.interfaces)
        self._link, self._sender = link, sender
        self._bucket = Bucket(RATE, BURST, time.monotonic)
        self._used: OrderedDict[str, float] = OrderedDict()
        self._recent: OrderedDict[str, Pending] = OrderedDict()
        self._waiting: dict[int, Pending] = {}
        self._number = 0
        self._window: int | None = None
        self._copies: Counter[bytes] = Counter()
        self._blocked: OrderedDict[bytes, float] = OrderedDict()
        self.counts: Counter[str] = Counter()
        self.tick_due = True
        self._report_at = time.monotonic() + REPORT_SECONDS

    def on_packet(self, packet: bytes, interface: str = "") -> None:
        """Look at one packet; whatever is wrong with it, the answer is silence."""
        self.counts["looked at"] += 1
        if self._interfaces and interface not in self._interfaces:
            self.counts["on another interface"] += 1
            return
        try:
            syn = wire.parse(packet)
            if syn.dport != self._port or syn.flags != wire.SYN:
                return
            self._look_at(syn)
        except MessageError as why:
            self.counts[f"refused at the {why.thing}"] += 1

    def _look_at(self, syn: Segment) -> None:
        try:
            key = self._check(syn.payload)
        except proof.AlteredError:
            self._on_copy(syn.payload)
            raise
        self._on_proven(syn, key)

    def _check(self, payload: bytes) -> bytes:
        """Return the knock key that a picture was made with; raise MessageError if none was."""
        *others, last = self._keys
        for key in others:
            try:
                proof.check(payload, key, Direction.TO_HOST, self._clock())
            except proof.AlteredError:
                raise
            except MessageError:
                continue
            return key
        proof.check(payload, last, Direction.TO_HOST, self._clock())
        return last

    def _on_proven(self, syn: Segment, key: bytes) -> None:
        """Handle a picture whose maker knew the knock key, or whose copier saw it pass."""
        tag = proof.tag_of(syn.payload)
        if tag in self._used:
            self._again(self._recent.get(tag), syn)
            return
        if not self._bucket.take():
            self.counts["over the limit"] += 1
            return
        self._number = self._number % 0xFFFFFFFF + 1  # never link.REPORT
        pending = Pending(self._number, syn.src, time.monotonic() + RETRY_SECONDS, key, [syn])
        self._remember(tag, pending)
        message = picture.unwrap(syn.payload, key, Direction.TO_HOST, self._clock())
        if self._tell(Knock(pending.number, syn.src, message)):
            self._waiting[pending.number] = pending
            self.counts["passed on"] += 1
        else:
            del self._used[tag], self._recent[tag]

    def _tell(self, frame: Knock) -> bool:
        """Send to the warden; where it is far behind, the client will try again."""
        try:
            self._link.send(frame.encode(), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        return True

    def _again(self, known: Pending | None, syn: Segment) -> None:
        """Answer a client's retry; a copy from elsewhere, or later, is a replay."""
        retry = known is not None and syn.src == known.source and time.monotonic() <= known.until
        if known is None or not retry or len(known.asked_by) >= MAX_RETRIES:
            self._on_replay(syn)
            return
        known.asked_by.append(syn)
        if known.payload:
            self._answer(syn, known.payload)

    def _on_replay(self, syn: Segment) -> None:
        self.counts["replayed"] += 1
        self._on_copy(syn.payload)

    def _on_copy(self, payload: bytes) -> None:
        """Let the kernel drop what is copied over and over, altered or not."""
        nonce = proof.nonce_of(payload)
        self._copies[nonce] += 1
        if self._copies[nonce] >= FLOOD and nonce not in self._blocked:
            self._blocked[nonce] = time.monotonic()
            self._window = None  # new filters at the next look at the clock, which is now due
            self.tick_due = True
        if len(self._blocked) > bpf.MAX_BLOCKED:
            self._blocked.popitem(last=False)
        if len(self._copies) > MEMORY:  # somebody with a card makes up nonces
            self._copies.clear()

    def _remember(self, tag: str, pending: Pending) -> None:
        """Keep the tag for three windows, and the answer for as long as a client retries."""
        now = time.monotonic()
        self._used[tag], self._recent[tag] = now, pending
        while len(self._used) > MEMORY or next(iter(self._used.values())) < now - MEMORY_SECONDS:
            self._used.popitem(last=False)
        while next(iter(self._recent.values())).until < now:
            self._recent.popitem(last=False)

    def on_reply(self, reply: Reply) -> None:
        """Send the receipt to every socket that the client has asked from."""
        pending = self._waiting.pop(reply.number, None)
        if pending is None or not reply.message:
            return
        try:
            pending.payload = picture.wrap(
                reply.message, pending.key, Direction.TO_CLIENT, self._clock()
            )
        except BudgetError:  # the warden keeps receipts small; a client sees silence
            return
        for syn in pending.asked_by:
            self._answer(syn, pending.payload)

    def _answer(self, syn: Segment, payload: bytes) -> None:
        try:
            answer.send(self._sender, syn, payload)
        except OSError:  # a rule of the host's drops it, or its route has gone
            self.counts["answers that could not be sent"] += 1

    def on_tick(self, sniffers: Sequence[Sniffer]) -> None:
        """Let the kernel's filters follow the clock, and report at most once a minute."""
        self.tick_due = False
        window = proof.window_of(self._clock())
        if window != self._window:
            self._renew_filters(sniffers)
            self._window = window
        if self.counts and time.monotonic() >= self._report_at:
            self._report_at = time.monotonic() + REPORT_SECONDS
            self.counts["dropped by a full buffer"] = sum(each.dropped() for each in sniffers)
            line = ", ".join(f"{count} {name}" for name, count in self.counts.items() if count)
            self._tell(Knock(REPORT, "::", f"packets: {line}".encode()))
            self.counts.clear()

    def _renew_filters(self, sniffers: Sequence[Sniffer]) -> None:
        """Give the kernel the marks of three windows, and the nonces that it is to drop."""
        marks = [
            mark
            for key in self._keys
            for mark in proof.mark_keys(key, Direction.TO_HOST, self._clock())
        ]
        oldest = time.monotonic() - MEMORY_SECONDS
        while self._blocked and next(iter(self._blocked.values())) < oldest:
            self._blocked.popitem(last=False)
        blocked = list(self._blocked)
        for sniffer in sniffers:
            keyed = bpf.knocks(sniffer.family, self._port, marks, blocked)
            if not sockets.replace(sniffer.ins, keyed, bpf.unkeyed(sniffer.family, self._port)):
                sockets.attach(sniffer.ins, bpf.unkeyed(sniffer.family, self._port, blocked))
                self.counts["filters without room for the mark (net.core.optmem_max)"] += 1


def warm_up(setup: Setup) -> None:
    """Load all that is loaded late, because nothing can be once ``confine`` has run."""
    key = bytes.fromhex(setup.knock_key)
    made = picture.wrap(b"warm", key, Direction.TO_HOST, time.time())
    picture.unwrap(made, key, Direction.TO_HOST, time.time())
    for here in ("192.0.2.1", "2001:db8::1"):
        syn = Segment(here, here, 1, 1, 0, 0, wire.SYN, b"")
        for packet in answer.packets(syn, made):
            bytes(packet)


def confine() -> None:
    """Give up what is left to give up: new privileges, files, sockets, processes, core dumps.

    Descriptors that are open stay usable; no other can be opened, whatever kind it is of.
    """
    if os.geteuid() == 0:
        sys.exit("tariq sentry: refuses to run as root; set sentry_user in the policy")
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_PR_SET_NO_NEW_PRIVS, 1), (_PR_SET_DUMPABLE, 0)):
        if libc.prctl(option, value, 0, 0, 0) != 0:
            sys.exit(f"tariq sentry: prctl {option} failed; needs Linux 3.5")
    pages = int(Path("/proc/self/statm").read_text().split()[0])  # proc(5): total size
    space = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    for what in ("NOFILE", "NPROC", "FSIZE", "CORE"):
        resource.setrlimit(getattr(resource, f"RLIMIT_{what}"), (0, 0))


def serve(link: socket.socket, sniffers: list[Sniffer], sender: RawSender) -> None:
    """Run until the warden closes its end."""
    setup = Setup.decode(link.recv(MAX_FRAME))
    warm_up(setup)
    sentry = Sentry(setup, link, sender)
    with selectors.DefaultSelector() as selector:
        selector.register(link, selectors.EVENT_READ)
        for sniffer in sniffers:
            selector.register(sniffer.ins, selectors.EVENT_READ, sniffer)
        confine()
        sentry.on_tick(sniffers)
        link.send(b"ready")
        tick_at = time.monotonic() + TICK_SECONDS
        while True:
            for key, _ in selector.select(max(0.0, tick_at - time.monotonic())):
                if key.data is not None:
                    _drain(key.data, sentry)
                    continue
                frame = link.recv(MAX_FRAME)
                if not frame:
                    return
                sentry.on_reply(Reply.decode(frame))
            due = tick_at - (TICK_SECONDS - BREAK_SECONDS if sentry.tick_due else 0)
            if time.monotonic() >= due:
                sentry.on_tick(sniffers)
                tick_at = time.monotonic() + TICK_SECONDS


def _drain(sniffer: Sniffer, sentry: Sentry) -> None:
    """Read what has come in, up to a limit, so that replies aren't kept waiting."""
    for _ in range(DRAIN):
        received = sniffer.receive()
        if received is None:
            return
        sentry.on_packet(*received)


def main(link: socket.socket, opened: Sequence[tuple[int, socket.socket, socket.socket]]) -> None:
    """Serve with sockets that are open: family, sniffer and sender each."""
    sniffers = [Sniffer(sniffer, family) for family, sniffer, _ in opened]
    serve(link, sniffers, RawSender({family: sender for family, _, sender in opened}))
