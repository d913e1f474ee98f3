"""Fuzz the warden behind GnuPG: whatever a key signed, there is one answer and no error.

GnuPG is left out: what it decrypts and whom it names are given. The first byte says how
deep the rest is put: a frame; a bundle; signed JSON; fields of signed JSON; a receipt as
a client reads it; GnuPG's status lines.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))

with atheris.instrument_imports(include=["tariq"]):
    import yaml
    from hostile import corpus, readers

    from tariq import openpgp
    from tariq.agent import policy_file
    from tariq.agent.ledger import Ledger
    from tariq.agent.link import Knock
    from tariq.agent.warden import Warden
    from tariq.errors import MessageError
    from tariq.message import Batch, Bundle, Code, Receipt, Request, to_b64

logging.disable()
HOST = corpus.fingerprint("host")
FIELDS = ("v", "id", "t", "to", "do", "what", "args", "for", "src", "cut", "x")
VALUES = (
    *(1, 0, -1, True, None, 2**62, 1.5, corpus.CLOCK, corpus.CLOCK + 61, "", "open", "close"),
    *("run", "status", "ssh", ["ssh"], ["web", "ssh"], [], {}, {"a": "b"}, {"a": 1}, "10.77.0.2"),
    *("::1", "fe80::1%x", "\ud800", "A" * 22, to_b64(openpgp.short(HOST)), 30, 10**30, [[]]),
)


def warden() -> Warden:
    """Return one whose GnuPG lets all through, as if bob had signed it."""
    with tempfile.TemporaryDirectory() as base:
        path = Path(base) / "agent.yml"
        path.write_text(yaml.safe_dump(readers.policy()))
        policy = policy_file.load(path)
    host_key = mock.Mock(fingerprint=HOST)
    host_key.unseal = lambda raw: raw
    host_key.addressed = lambda to: host_key if to == openpgp.short(HOST) else None
    host_key.seal_receipt = lambda raw, _: b"sealed" + raw
    operators = mock.Mock()
    operators.verify = lambda *_: corpus.fingerprint("bob")
    operators.states = dict
    firewall = mock.Mock(news="")
    firewall.leases = list
    return Warden(
        policy=policy,
        host_key=host_key,
        operators=operators,
        ledger=Ledger(Path(":memory:")),
        firewall=firewall,
        shelf=mock.MagicMock(),
        clock=lambda: corpus.CLOCK,
    )


WARDEN = warden()


def answer(frame: bytes) -> None:
    try:
        knock = Knock.decode(frame)
    except MessageError:
        return
    replies: list[bytes] = []
    WARDEN.answer(knock, replies.append)
    assert len(replies) == 1
    if replies[0]:
        receipt = Receipt.decode(replies[0].removeprefix(b"sealed"))
        assert receipt.ok == (receipt.code in (Code.OPENED, Code.CLOSED, Code.STATUS, Code.RAN))


def bundled(raw: bytes) -> bytes:
    return Knock(7, "10.77.0.2", Bundle(raw, 0, (), b"signature").encode()).encode()


def fields(data: bytes) -> bytes:
    """Return a good request, changed field by field as the bytes say."""
    fresh = to_b64(data[:16].ljust(16, b"\0"))
    good = {"v": 1, "id": fresh, "t": corpus.CLOCK, "to": to_b64(openpgp.short(HOST)), "do": "open"}
    for name, value in zip(data[16::2], data[17::2], strict=False):
        good[FIELDS[name % len(FIELDS)]] = VALUES[value % len(VALUES)]
    return json.dumps(good).encode()


def statuses(data: bytes) -> None:
    """What GnuPG says decides alone; it must not break who listens."""
    text = data.decode("latin-1")
    result = SimpleNamespace(stderr=text, returncode=0, status="", ok=True, data=b"")
    with contextlib.suppress(MessageError):
        openpgp._check_opened(result, signatures=1)
    with contextlib.suppress(MessageError):
        assert openpgp._signed_by(result)


def test_one_input(data: bytes) -> None:
    if not data:
        return
    kind, rest = data[0] % 6, data[1:]
    if kind == 0:
        answer(rest)
    elif kind == 1 and rest:
        answer(Knock(7, "10.77.0.2", rest).encode())
    elif kind == 2:
        answer(bundled(rest))
    elif kind == 3:
        answer(bundled(fields(rest)))
    elif kind == 4:
        with contextlib.suppress(MessageError):
            receipt = Receipt.decode(rest)
            assert Receipt.decode(receipt.encode()) == receipt
        with contextlib.suppress(MessageError):
            request = Request.decode(rest)
            assert Request.decode(request.encode()) == request
    else:
        statuses(rest)


def seeds() -> Iterator[bytes]:
    request = corpus.asked().request
    yield b"\0" + bundled(request)
    batch = Batch.of([request] * 5)
    yield b"\1" + batch.bundle(3, b"signature").encode()
    yield b"\2" + request
    yield b"\3" + bytes(range(16)) + b"\4\x0a\5\x0f"
    yield b"\4" + Receipt(b"r" * 16, 1, True, Code.OPENED, "::1", 1, leases={"ssh": 9}).encode()
    good = ["DECRYPTION_OKAY", "BEGIN_DECRYPTION", "NEWSIG", "GOODSIG"]
    lines = [
        f"[GNUPG:] {word}" for word in [*good, "PLAINTEXT 62 0 ", "VALIDSIG 1 2 3 4 5 6 7 8 00 10"]
    ]
    yield b"\5" + "\n".join(lines).encode()


if __name__ == "__main__":
    from campaign import fuzz

    fuzz(test_one_input, seeds())
