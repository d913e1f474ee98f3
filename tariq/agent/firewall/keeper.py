"""The guard over time: it is put back when others take it away, and so are its leases."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from tariq.agent.firewall.base import ENDLESS, Firewall, Guard, Lease
from tariq.agent.policy import Service
from tariq.errors import FirewallError

_SLACK = 2.0
"""Seconds by which the kernel may end a lease before we think that somebody else did."""
_DOWN = "down: root ran 'tariq agent unguard'"
log = logging.getLogger("tariq.firewall")

Key = tuple[str, Service]


def boottime() -> float:
    """Return seconds that no clock change touches and that go on while the host sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Keeper:
    """A backend, and the memory of what it should hold.

    ``others`` are backends that may still hold the guard of an earlier policy. While the
    file ``unguarded`` exists, the guard is down because root wants it so.
    """

    def __init__(
        self,
        firewall: Firewall,
        wanted: Guard,
        *,
        others: Sequence[Firewall] = (),
        unguarded: Path | None = None,
        clock: Callable[[], float] = boottime,
    ) -> None:
        self._firewall, self._wanted, self._others = firewall, wanted, others
        self._unguarded, self._clock = unguarded, clock
        self._deadlines: dict[Key, float] = {}
        self._next_look = 0.0
        self._endless = 0
        self._word: IO[str] | None = None
        self._trouble = ""
        self.news = ""
        """What ``status`` tells: the last thing that happened to the guard, with its time."""

    def start(self) -> None:
        """Put the guard up; leases of an earlier agent, or in another backend, live on."""
        if self._unguarded is not None:
            self._unguarded.unlink(missing_ok=True)
        with self._giving_way():
            self._take_over()
        self._leave_word()

    def _take_over(self) -> None:
        now = self._clock()
        held = self.leases()
        moved = [lease for other in self._others for lease in _what_is_left(other)]
        self._firewall.guard(self._wanted)
        if moved:
            self._firewall.open(moved)
        for other in self._others:
            clear(other)
        self._remember([*held, *moved], now)

    def replace(
        self, wanted: Guard, firewall: Firewall | None = None, others: Sequence[Firewall] = ()
    ) -> None:
        """Guard by another policy from now on; raise FirewallError, and the old one stays.

        ``firewall`` and ``others`` as for a new keeper, where the policy names another backend.
        """
        before = self._wanted, self._firewall, self._others
        moves = firewall is not None and firewall.name != self._firewall.name
        self._wanted = wanted
        if firewall is not None and moves:
            self._firewall, self._others = firewall, others
        try:
            if not self._is_down():
                with self._giving_way():
                    if moves:
                        self._take_over()
                    else:
                        self._firewall.guard(wanted)
        except FirewallError:
            if moves:
                clear(self._firewall)
            self._wanted, self._firewall, self._others = before
            raise
        self._leave_word()

    def open(self, leases: Iterable[Lease]) -> None:
        """Grant or prolong leases, all or none; raise FirewallError."""
        leases, now = list(leases), self._clock()
        if self._is_down():
            raise FirewallError("guard", _DOWN, "wait for 'tariq agent guard' there")
        try:
            self._firewall.open(leases)
        except FirewallError:
            if not self._put_back():
                raise
            self._firewall.open(leases)
        self._remember(leases, now)

    def close(self, leases: Iterable[Lease], *, cut: bool = False) -> None:
        """End leases now, and with ``cut`` the connections on them; raise FirewallError."""
        leases = list(leases)
        for lease in leases:  # before the kernel is asked: what was to end is never put back
            self._deadlines.pop((lease.address, lease.service), None)
        self._firewall.close(leases, cut=cut)

    def leases(self) -> list[Lease]:
        """Return the leases that the kernel holds, and ends; raise FirewallError."""
        held = self._firewall.leases()
        endless = [lease for lease in held if lease.seconds == ENDLESS]
        if len(endless) > self._endless:
            self._trouble = ""
            self.tell(f"leases without an end, by another program: {len(endless)}")
        self._endless = len(endless)
        return [lease for lease in held if lease.seconds != ENDLESS]

    def check(self) -> None:
        """Look whether all stands, as often as the backend can bear, and mend what doesn't.

        To be called about once a second. Never raises: what can't be mended is logged, told by
        ``news`` and tried again.
        """
        now = self._clock()
        if now < self._next_look:
            return
        if self._word is None:
            self._leave_word()
        self._next_look = now + self._firewall.every
        try:
            if self._is_down():
                self.tell(f"the guard is {_DOWN}")
            elif not self._put_back():
                self._compare(now)
                self._trouble = ""
        except FirewallError as why:
            self.tell(f"the guard can't be put back: {why}")

    def _is_down(self) -> bool:
        return self._unguarded is not None and self._unguarded.exists()

    def _put_back(self) -> bool:
        """Put guard and leases back if the guard is gone; tell whether it was."""
        if self._firewall.intact():
            return False
        with self._giving_way():
            self._firewall.guard(self._wanted)
            there = {(lease.address, lease.service) for lease in self.leases()}
            lost = [each for each in self._running() if (each.address, each.service) not in there]
            if lost:
                self._firewall.open(lost)
        if not self._is_down():
            self._trouble = ""
            self.tell(f"the guard was gone, put back; leases restored: {len(lost)}")
        return True

    @contextlib.contextmanager
    def _giving_way(self) -> Iterator[None]:
        """Undo what is put up here if root takes the guard down meanwhile.

        ``unguard`` writes its file before it touches the firewall: if the file isn't there at the
        end of this, what it does to the firewall is still to come.
        """
        try:
            yield
        finally:
            if self._is_down():
                self._firewall.unguard()

    def _leave_word(self) -> None:
        """Say which backend this process guards with, for as long as it lives: ``in_charge``."""
        if self._unguarded is None:
            return
        with contextlib.suppress(OSError):  # no directory; or 'tariq agent guard' is just at it
            if self._word is None:
                with contextlib.ExitStack() as opened:
                    file = opened.enter_context(self._unguarded.with_name("backend").open("a"))
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    opened.pop_all()
                self._word = file
            self._word.truncate(0)
            self._word.write(self._firewall.name)
            self._word.flush()

    def _compare(self, now: float) -> None:
        """Hold the kernel's leases against ours.

        The kernel's timers stand still while a host sleeps: a lease that should have ended
        is ended. One that somebody deleted beside us is gone for good, and told of.
        """
        if not self._deadlines:
            return
        held = {(lease.address, lease.service): lease for lease in self.leases()}
        over = [lease for key, lease in held.items() if self._deadlines.get(key, now) < now - 1]
        if over:
            self._firewall.close(over)
        lost = [key for key, end in self._deadlines.items() if key not in held]
        taken = [key for key in lost if self._deadlines[key] > now + _SLACK]
        for key in lost:
            del self._deadlines[key]
        if taken:
            self._trouble = ""
            self.tell(f"{len(taken)} leases were taken away by another program")

    def _running(self) -> list[Lease]:
        now = self._clock()
        return [
            Lease(address, service, int(end - now))
            for (address, service), end in self._deadlines.items()
            if end - now >= 1
        ]

    def _remember(self, leases: Iterable[Lease], now: float) -> None:
        """``now`` is from before the kernel was asked: never later than its own end."""
        for lease in leases:
            self._deadlines[lease.address, lease.service] = now + lease.seconds

    def tell(self, what: str) -> None:
        """Log a change once, and keep it for ``status``."""
        if what != self._trouble:
            log.error("%s", what)
            self._trouble = what
            self.news = f"{time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime())}: {what}"


def in_charge(unguarded: Path) -> str:
    """Return the name of the backend that an agent guards with; nothing where none runs."""
    try:
        with unguarded.with_name("backend").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read()
    except OSError:
        pass
    return ""


def _what_is_left(other: Firewall) -> list[Lease]:
    try:
        return [lease for lease in other.leases() if lease.seconds > 0]  # 0 would be for ever
    except FirewallError:
        return []


def clear(other: Firewall) -> None:
    """Take down what an earlier policy left in another backend, if that works here at all."""
    try:
        other.unguard()
    except FirewallError as why:
        log.info("%s: nothing taken down: %s", other.name, why)
