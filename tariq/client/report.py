"""Outcomes as a table for people and as JSON for programs."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from tariq.client.knock import Ending, Outcome
from tariq.message import Code, Receipt, State, to_b64


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
    parts = leases or (["nothing open"] if receipt.code is Code.STATUS else [])
    parts += [f"{run.name} {run.label}: {_state(run.state, run.exit)}" for run in receipt.tasks]
    if receipt.state is not None and receipt.ok:
        told = f", {receipt.size} bytes of output" if receipt.size else ""
        parts.append(f"{receipt.task}: {_state(receipt.state, receipt.exit)}{told}")
    return ", ".join(parts + ([receipt.detail] if receipt.detail else []))


def _state(state: State, status: int | None) -> str:
    return state.value if status is None else f"exit {status}"


def outputs(outcomes: Sequence[Outcome]) -> str:
    """Return what tasks wrote, as far as receipts tell, each under a line with the host's name."""
    shown = []
    for outcome in outcomes:
        receipt = outcome.receipt
        if receipt is None or not receipt.out:
            continue
        known, size = len(receipt.out.encode()), receipt.size
        part = "" if size is None or known >= size else f", the first {known} of {size} bytes"
        shown.append(f"--- {outcome.host}{part}\n{_printable(receipt.out)}".rstrip("\n"))
    return "\n".join(shown)


def _printable(text: str) -> str:
    """Escape what a terminal might obey: a task, or a host that lies, may write anything."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode()
        for char in text
    )


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
        told: dict[str, object] = {
            "re": to_b64(receipt.re),
            "t": receipt.t,
            "ok": receipt.ok,
            "code": receipt.code.value,
            "seen": receipt.seen,
            "leases": dict(receipt.leases),
            "policy": receipt.policy,
            "keys": None if receipt.keys is None else to_b64(receipt.keys),
            "detail": receipt.detail,
        }
        known["receipt"] = told | _of_tasks(receipt)
    return known


def _of_tasks(receipt: Receipt) -> dict[str, object]:
    """Return what a receipt says of tasks; nothing, where it says nothing."""
    known = {
        "task": receipt.task,
        "state": receipt.state and receipt.state.value,
        "exit": receipt.exit,
        "out": receipt.out,
        "size": receipt.size,
        "sha256_begins": None if receipt.sum is None else receipt.sum.hex(),
        "tasks": [run._asdict() for run in receipt.tasks] or None,
    }
    return {name: value for name, value in known.items() if value is not None}


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return ``2 of 3 hosts said yes; silent: web3``, for standard error."""
    good = sum(outcome.ok for outcome in outcomes)
    text = f"{good} of {len(outcomes)} hosts said yes"
    for ending in Ending:
        names = [o.host for o in outcomes if o.ending is ending and not o.ok]
        text += f"; {ending.value}: {', '.join(names)}" if names else ""
    return text
