"""Which hosts of a fleet are current: they trust the inventory's keys and no others.

A host's receipt carries its policy's serial and a digest of the keys that its agent
trusts at that moment, signed by the host. The inventory says what both should be. What
isn't proved to be current isn't: a host that is silent may still trust a revoked key.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from tariq.client.inventory import Selected
from tariq.client.knock import Outcome
from tariq.openpgp import keys_digest

CURRENT, STALE, REVOKED = "current", "stale", "revoked"
"""States; for a host that gave no status, the knock's ending stands there instead."""
_ALL_SETS = 14
"""Keys of which every set is tried to find out which one a host trusts: 16,384."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known of one host: its state, its policy's serial (0: unknown), and why."""

    host: str
    state: str
    serial: int
    detail: str


def judge(wanted: Selected, outcome: Outcome) -> Finding:
    """Compare what a host said with what the inventory says."""
    receipt = outcome.receipt
    if receipt is None or not receipt.ok:
        return Finding(wanted.name, outcome.ending.value, 0, outcome.reason)
    if receipt.keys is None:
        reason = "its agent is too old to say which keys it trusts"
        return Finding(wanted.name, STALE, receipt.policy, reason)
    trusted = _keys_of(wanted, receipt.keys)
    if trusted is None:
        reason = "trusts other keys than the inventory says, and none that it knows"
        return Finding(wanted.name, STALE, receipt.policy, reason)
    if bad := trusted & wanted.revoked:
        reason = f"still trusts {', '.join(sorted(bad))}"
        return Finding(wanted.name, REVOKED, receipt.policy, reason)
    reasons = list(_differences(wanted, trusted, receipt.policy))
    state = STALE if reasons else CURRENT
    return Finding(wanted.name, state, receipt.policy, "; ".join(reasons))


def _keys_of(wanted: Selected, digest: bytes) -> frozenset[str] | None:
    """Return the set of known keys that has this digest, likely ones first, or None."""
    for keys in _likely(wanted.keys, wanted.revoked):
        if keys_digest(keys) == digest:
            return keys
    return None


def _likely(keys: frozenset[str], revoked: frozenset[str]) -> Iterator[frozenset[str]]:
    yield keys
    extra = sorted(revoked)[:_ALL_SETS]
    for count in range(1, len(extra) + 1):
        yield from (keys | set(some) for some in combinations(extra, count))
    every = sorted(keys | revoked)
    if len(every) <= _ALL_SETS:
        for count in range(len(every), 0, -1):
            yield from (frozenset(some) for some in combinations(every, count))


def _differences(wanted: Selected, trusted: frozenset[str], serial: int) -> Iterator[str]:
    if missing := wanted.keys - trusted:
        yield f"doesn't trust {', '.join(sorted(missing))} yet"
    if serial != wanted.serial:
        yield f"its policy is {serial}, the inventory's {wanted.serial}"


def table(findings: Sequence[Finding]) -> str:
    """Return one line per host."""
    rows = [("HOST", "STATE", "POLICY", "DETAIL")]
    rows += [(f.host, f.state, str(f.serial or "-"), f.detail) for f in findings]
    widths = [max(len(row[at]) for row in rows) for at in range(3)]
    return "\n".join("  ".join([*map(str.ljust, row[:3], widths), row[3]]).rstrip() for row in rows)


def as_json(findings: Sequence[Finding]) -> str:
    """Return a JSON list."""
    return json.dumps(
        [
            {"host": f.host, "state": f.state, "policy": f.serial or None, "detail": f.detail}
            for f in findings
        ],
        indent=2,
    )


def summary(findings: Sequence[Finding]) -> str:
    """Return ``2 of 3 hosts are current; silent: web3``."""
    states: dict[str, list[str]] = {}
    for each in findings:
        states.setdefault(each.state, []).append(each.host)
    good = len(states.pop(CURRENT, []))
    text = f"{good} of {len(findings)} hosts are current"
    return "; ".join([text, *(f"{state}: {', '.join(names)}" for state, names in states.items())])
