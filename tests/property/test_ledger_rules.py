"""Whatever clock and requests do, no id is used twice."""

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tariq.agent.ledger import Ledger
from tariq.agent.warden import MEMORY

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

    @rule(seconds=st.sampled_from([1, 59, 61, 600, 1799, 1801, 4000, 90_000]))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule(seconds=st.sampled_from([1, 61, 600, 1801, 90_000]))
    def the_clock_jumps_back(self, seconds: int) -> None:
        self.now -= seconds

    @rule(off=st.sampled_from([0, -60, 60, -61, 61, -1800, 1800]))
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
        """Do as ``Warden._accept`` does."""
        id_, t = self.made[which]
        self.ledger.forget_before(self.now - max(MEMORY, 2 * WINDOW))
        if self.ledger.claim(id_, t, "bob", "192.0.2.1", b"{}"):
            self.used.append(id_)

    @invariant()
    def no_id_was_used_twice(self) -> None:
        if hasattr(self, "used"):
            assert len(self.used) == len(set(self.used))

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.close()
            self.directory.cleanup()


TestClockwork = Clockwork.TestCase
TestClockwork.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
