"""Fuzz GnuPG's part with GnuPG itself: any bytes give a plain text or a MessageError.

Some 60 a second, and GnuPG isn't instrumented: this finds what GnuPG says that
``tariq.openpgp`` doesn't expect. The first byte says where the rest is put: a message; packets
inside good encryption; a bundle's signature; a receipt.
"""

from __future__ import annotations

import atexit
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))

with atheris.instrument_imports(include=["tariq.openpgp", "gnupg"]):
    from hostile import corpus, pgp, readers

    from tariq import openpgp, picture
    from tariq.errors import MessageError
    from tariq.message import to_b64

BASE = Path(tempfile.mkdtemp(prefix="tq", dir="/tmp"))
readers.import_secret(BASE / "host", "host")
HOST = openpgp.HostKey.load(BASE / "host")
RING = openpgp.OperatorRing(BASE / "ring", sorted((corpus.KEYS / "operators").glob("*.asc")))
CARDS = openpgp.CardRing()
CARDS.add(HOST.fingerprint, HOST.export())
SECRET = to_b64(corpus.REQUEST_ID)
SEALED = pgp.gpg(
    HOST.home, "--trust-model", "always", "-R", HOST.fingerprint, "--encrypt", data=b"words"
)
SESSION = pgp.session_key(HOST.home, SEALED)


@atexit.register
def tidy() -> None:
    openpgp.stop_agent(HOST.home)
    shutil.rmtree(BASE, ignore_errors=True)


def test_one_input(data: bytes) -> None:
    if len(data) < 2:
        return
    kind, rest = data[0] % 4, data[1:2048]
    with contextlib.suppress(MessageError):
        if kind == 0:
            HOST.unseal(rest)
        elif kind == 1:
            opened = HOST.unseal(pgp.packets(SEALED)[0] + pgp.encrypted(SESSION, rest))
            assert len(opened) <= openpgp.MAX_PLAINTEXT
        elif kind == 2:
            signer = RING.verify(b"data", rest)
            raise AssertionError(f"nobody signed, but {signer} is said to have")
        else:
            CARDS.open_receipt(HOST.fingerprint, rest, SECRET)


def seeds() -> Iterator[bytes]:
    for attack in corpus.every("agent").values():
        if attack.layer == "openpgp":
            way, now = picture.Direction.TO_HOST, attack.clock
            yield b"\0" + picture.unwrap(attack.body, corpus.KNOCK_KEY, way, now)
    for inner in (pgp.literal(b"words"), pgp.compressed(pgp.literal(b"words"))):
        yield b"\1" + inner
    for attack in corpus.every("client").values():
        if attack.layer == "openpgp":
            way, now = picture.Direction.TO_CLIENT, attack.clock
            message = picture.unwrap(attack.body, corpus.KNOCK_KEY, way, now)
            yield b"\2" + message
            yield b"\3" + message


if __name__ == "__main__":
    from campaign import fuzz

    fuzz(test_one_input, seeds())
