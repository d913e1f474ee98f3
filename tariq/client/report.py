"""Outcomes as a table for people and as JSON for programs."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from tariq.client.knock import Ending, Outcome
from tariq.message import Code, Receipt, to_b64


def table(outcomes: Sequence[Outcome], now: float) -> str:
    """Return one line per host; ``now`` in Unix seconds."""
    rows = [("HOST", "ANSWER", "SEEN AS", "POLICY", "DETAIL")]
    rows += [_row(outcome, now) for outcome in outcomes]
    widths = [max(len(row[at]) for row in rows) for at in range(4)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]])
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def _row(outcome: Outcome, now: float) -> tuple[str, str, str, str, str]:
    receipt = outcome.receipt
    if receipt is None:
        return outcome.host, outcome.ending.value, "-", "-", outcome.reason
    return (
        outcome.host,
        receipt.code.value,
        receipt.seen,
        str(receipt.policy),
        _detail(receipt, now),
    )


def _detail(receipt: Receipt, now: float) -> str:
    # by the host's own clock: the lease ends there
    ahead = receipt.t - now
    leases = [
        f"{name} until {time.strftime('%H:%M:%S', time.localtime(until - ahead))}"
        f" ({max(0, until - receipt.t)} s)"
        for name, until in receipt.leases.items()
    ]
    if receipt.code is Code.STATUS and not leases:
        return "nothing open"
    return ", ".join(leases) or receipt.detail


def as_json(outcomes: Sequence[Outcome]) -> str:
    """Return a JSON list with everything that is known."""
    return json.dumps([_object(outcome) for outcome in outcomes], indent=2)


def _object(outcome: Outcome) -> dict[str, object]:
    known: dict[str, object] = {
        "host": outcome.host,
        "ok": outcome.ok,
        "ending": outcome.ending.value,
        "address": outcome.address,
        "reason": outcome.reason,
    }
    receipt = outcome.receipt
    if receipt is not None:
        known["milliseconds"] = outcome.milliseconds
        known["receipt"] = {
            "re": to_b64(receipt.re),
            "t": receipt.t,
            "ok": receipt.ok,
            "code": receipt.code.value,
            "seen": receipt.seen,
            "leases": dict(receipt.leases),
            "policy": receipt.policy,
            "detail": receipt.detail,
        }
    return known


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return ``2 of 3 hosts said yes; silent: web3``, for standard error."""
    good = sum(outcome.ok for outcome in outcomes)
    text = f"{good} of {len(outcomes)} hosts said yes"
    for ending in Ending:
        names = [o.host for o in outcomes if o.ending is ending and not o.ok]
        text += f"; {ending.value}: {', '.join(names)}" if names else ""
    return text
