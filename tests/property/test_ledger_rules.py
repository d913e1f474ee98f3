"""Whatever clock and requests do, no id is used twice, and nobody is locked out for long."""

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tariq.agent.ledger import Ledger
from tariq.agent.warden import MEMORY
from tariq.message import Code, Receipt

START = 1_800_000_000
WINDOW = 60


class Clockwork(RuleBasedStateMachine):
    """A ledger as the warden uses it, under a clock that jumps forwards and backwards.

    An attacker keeps every request that was made, and sends any of them at any time.
    """

    @initialize()
    def begin(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name) / "ledger.db"
        self.ledger = Ledger(self.path)
        self.now = START
        self.made: list[tuple[bytes, int]] = []
        self.used: list[bytes] = []
        self.latest = -1
        """The latest time of a request that was acted on."""

    @rule(seconds=st.sampled_from([1, 59, 61, 600, 1799, 1801, 4000, 90_000]))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule(seconds=st.sampled_from([1, 61, 600, 1801, 90_000]))
    def the_clock_jumps_back(self, seconds: int) -> None:
        self.now -= seconds

    @rule(off=st.sampled_from([0, -60, 60, -61, 61, -1800, 1800, 1801, 90_000]))
    def an_operator_asks(self, off: int) -> None:
        self.made.append((len(self.made).to_bytes(16, "big"), self.now + off))
        self.arrives(len(self.made) - 1)

    @rule(which=st.integers(0, 50))
    def an_attacker_sends_again(self, which: int) -> None:
        if self.made:
            self.arrives(which % len(self.made))

    @rule()
    def the_agent_starts_again(self) -> None:
        self.ledger.close()
        self.ledger = Ledger(self.path)

    def arrives(self, which: int) -> None:
        """Do as ``Warden._accept`` and ``Warden._out_of_time`` do."""
        id_, t = self.made[which]
        memory = max(MEMORY, 2 * WINDOW)
        if t > self.now + memory:
            return
        self.ledger.forget_before(self.now - memory)
        if not self.ledger.claim(id_, t, "bob", "192.0.2.1", b"{}"):
            return
        self.used.append(id_)
        fresh = abs(t - self.now) <= WINDOW
        self.latest = max(self.latest, t) if fresh else self.latest
        code = Code.OPENED if fresh else Code.SKEW
        receipt = Receipt(re=id_, t=self.now, ok=fresh, code=code, seen="192.0.2.1", policy=1)
        self.ledger.settle(id_, receipt.encode())

    @invariant()
    def no_id_was_used_twice(self) -> None:
        if hasattr(self, "used"):
            assert len(self.used) == len(set(self.used))

    @invariant()
    def nothing_later_than_what_was_acted_on_counts_as_used(self) -> None:
        if hasattr(self, "ledger"):
            [floor] = self.ledger._db.execute("SELECT t FROM floor").fetchone()
            assert floor <= self.latest

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.close()
            self.directory.cleanup()


TestClockwork = Clockwork.TestCase
TestClockwork.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
