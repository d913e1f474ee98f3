"""The corpus: one text file per attack, in the manner of age's test kit.

    attack: what it tries
    to: agent | client
    form: payload | packet         what the bytes are: TCP's payload, or all from the IP header on
    proof: good | none             good: its maker holds the host's card, as any operator does
    clock: 1577880000              Unix seconds; what the clock of who reads it says
    after: NAME                    another file that is delivered first, and accepted
    expect: LAYER reason           who refuses it, and why; ``yes`` for the controls

    base64

``generate.py`` writes the files; ``docs/hostile.md`` says how to read and run them.
"""

from __future__ import annotations

import base64
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tariq.message import Action, Batch, Bundle, Request
from tariq.picture import Direction, png, proof

HERE = Path(__file__).parent
KEYS = HERE / "keys"
CLOCK = 1_577_880_000
"""Noon of 2020-01-01: later than the keys, earlier than any clock that reads this."""
KNOCK_KEY = bytes(range(100, 132))
PORT = 62_201
LAYERS = (
    *("packet", "proof", "picture", "text", "frame"),
    *("openpgp", "bundle", "signature", "json", "host", "ledger"),
    *("time", "address", "receipt", "yes"),
)
SENTRYS = ("packet", "proof", "picture", "text")
"""Layers that a process without keys peels; what they refuse never reaches the warden."""
GNUPG_DECIDES = ("openpgp", "signature")
"""Layers whose reasons are GnuPG's words, and differ between its versions."""
REQUEST_ID = b"sixteen bytes id"


@dataclass(frozen=True, slots=True)
class Attack:
    """One file."""

    name: str
    attack: str
    to: str
    body: bytes
    layer: str
    reason: str = ""
    form: str = "payload"
    proof: str = "good"
    clock: int = CLOCK
    after: str = ""

    @property
    def direction(self) -> Direction:
        return Direction.TO_HOST if self.to == "agent" else Direction.TO_CLIENT

    def stamped(self, now: float) -> bytes:
        """Return the payload as its maker would send it now: with a fresh proof, if it had one."""
        if self.proof != "good":
            return self.body
        digits = self.body[png.UNIQUE_ID_AT : png.UNIQUE_ID_AT + 2 * proof.NONCE_BYTES]
        nonce = bytes.fromhex(digits.decode())
        return proof.stamp(self.body, KNOCK_KEY, self.direction, nonce, now)

    def save(self) -> None:
        names = ("attack", "to", "form", "proof", "clock", "after")
        lines = [f"{name}: {getattr(self, name)}" for name in names if getattr(self, name) != ""]
        lines += [f"expect: {self.layer} {self.reason}".rstrip(), ""]
        lines += textwrap.wrap(base64.b64encode(self.body).decode(), 76)
        path = HERE / self.to / f"{self.name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n")


def load(path: Path) -> Attack:
    """Read one file."""
    head, _, body = path.read_text().partition("\n\n")
    fields = dict(line.split(": ", 1) for line in head.splitlines())
    layer, _, reason = fields.pop("expect").partition(" ")
    assert layer in LAYERS, path
    clock = int(fields.pop("clock"))
    raw = base64.b64decode(body)
    return Attack(path.stem, body=raw, layer=layer, reason=reason, clock=clock, **fields)


@cache
def every(to: str) -> dict[str, Attack]:
    """Return all that is meant for ``agent`` or ``client``, by name."""
    return {path.stem: load(path) for path in sorted((HERE / to).glob("*.txt"))}


def fingerprint(name: str) -> str:
    """Return the fingerprint of a stored key."""
    known = dict(line.split() for line in (KEYS / "fingerprints").read_text().splitlines())
    return known[name]


def asked() -> Bundle:
    """Return the request that the receipts of the corpus answer, as a client holds it."""
    request = Request(to=bytes(16), do=Action.OPEN, t=CLOCK, what=("ssh",), id=REQUEST_ID)
    return Batch.of([request.encode()]).bundle(0, b"signature")
