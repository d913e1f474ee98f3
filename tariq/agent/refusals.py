"""Rows of the audit trail for knocks that got silence, and not more of them than a disk can bear.

Whoever has a host's card can send knocks that are refused, at the token bucket's rate, for
years. So the first few of a minute get a row each, and the others share one that counts them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

SINGLE = 6
"""Refused knocks a minute that get a row of their own."""
_MINUTE = 60.0


class Refusals:
    """``note`` records a row of the event ``refused``; ``clock`` in seconds, monotonic."""

    def __init__(
        self, note: Callable[..., None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._note, self._clock = note, clock
        self._ends, self._single = 0.0, 0
        self._others: Counter[str] = Counter()

    def add(self, source: str, layer: str, reason: str) -> None:
        """Record a knock from an address, refused at a layer, or count it until the minute is over.

        Raises AgentError if it can't be recorded.
        """
        self.step()
        if self._clock() >= self._ends:
            self._ends, self._single = self._clock() + _MINUTE, 0
        if self._single == SINGLE:
            self._others[layer] += 1
            return
        self._single += 1
        self._note("refused", source=source, layer=layer, detail=reason)

    def step(self, *, now: bool = False) -> None:
        """Record what was counted, when its minute is over or at once. Raises AgentError."""
        if self._others and (now or self._clock() >= self._ends):
            counted, self._others = dict(self._others), Counter()
            detail = f"{sum(counted.values())} more within a minute"
            self._note("refused", layers=counted, detail=detail)
