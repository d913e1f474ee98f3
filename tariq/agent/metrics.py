"""Counters as a Prometheus textfile, ``metrics.prom`` in the runtime directory.

For node_exporter's textfile collector; no port. Written at most every 15 seconds, whole or not.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tariq.agent.ledger import Entry

EVERY = 15.0
_HELP = {
    "tariq_requests_total": "Requests that were proved to be an operator's, by action and answer.",
    "tariq_runs_total": "Runs of tasks that ended, by task and whether with 0.",
    "tariq_silences_total": "Knocks that passed the sentry and got no answer.",
    "tariq_sentry_total": "What the sentry did with packets, as it reports each minute.",
}


class Metrics:
    """Counts since the agent started."""

    def __init__(self, path: Path) -> None:
        self._path, self._due = path, 0.0
        self._counts: dict[str, Counter[str]] = {name: Counter() for name in _HELP}
        self._counts["tariq_silences_total"][""] = 0

    def on_entry(self, entry: Entry) -> None:
        """Count a row of the audit trail."""
        known = entry.content
        if known["event"] == "answered":
            labels = f'{{action="{known.get("do")}",code="{known.get("code")}"}}'
            self._counts["tariq_requests_total"][labels] += 1
        elif known["event"] == "ended":
            good = "true" if known.get("exit") == 0 else "false"
            labels = f'{{task="{known.get("task")}",ok="{good}"}}'
            self._counts["tariq_runs_total"][labels] += 1

    def silences(self, count: int) -> None:
        """Take over how many knocks got no answer."""
        self._counts["tariq_silences_total"][""] = count

    def on_report(self, counts: Mapping[str, int]) -> None:
        """Count what the sentry reports."""
        for what, count in counts.items():
            self._counts["tariq_sentry_total"][f'{{what="{what}"}}'] += count

    def write(self, gauges: dict[str, int]) -> None:
        """Write everything, if it is time to; a disk that is full costs nothing but the figures."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + EVERY
        draft = self._path.with_suffix(".new")
        with contextlib.suppress(OSError):
            draft.write_text(self._text(gauges))
            draft.chmod(0o644)
            draft.rename(self._path)

    def _text(self, gauges: dict[str, int]) -> str:
        lines = []
        for name, counts in self._counts.items():
            lines += [f"# HELP {name} {_HELP[name]}", f"# TYPE {name} counter"]
            lines += [f"{name}{labels} {count}" for labels, count in sorted(counts.items())]
        for name, value in gauges.items():
            lines += [f"# TYPE {name} gauge", f"{name} {value}"]
        return "\n".join(lines) + "\n"
