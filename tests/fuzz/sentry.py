"""Fuzz the sentry: no packet raises anything, nor takes long, however deep it gets.

The first byte says how deep the rest is put: as it is; behind good headers; with a good
proof; as chunks or as pixels of a good picture; as text under the veil.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))

with atheris.instrument_imports(
    include=["tariq", "stegano", "PIL.PngImagePlugin", "PIL.ImageFile"]
):
    from hostile import corpus, pictures, readers

    from tariq import picture
    from tariq.agent import sentry as sentries
    from tariq.agent.link import Knock, Setup
    from tariq.errors import MessageError

MANY = 512
"""Pictures that one sentry sees, so that its memory doesn't slow the fuzzer down."""


def fresh() -> sentries.Sentry:
    setup = Setup(corpus.PORT, corpus.KNOCK_KEY.hex())
    made = sentries.Sentry(setup, readers.Link(), mock.MagicMock(), clock=lambda: corpus.CLOCK)
    made._bucket = sentries.Bucket(1e9, 1e9, lambda: 0.0)
    return made


def packet_of(data: bytes) -> bytes:
    kind, rest = data[0] % 6, data[1:]
    if kind == 0:
        return rest
    if kind == 1:
        payload = rest
    elif kind == 2:
        payload = _stamped(rest)
    elif kind == 3:
        payload = _stamped(pictures.png_of(*_chunks(rest)))
    elif kind == 4:
        payload = _stamped(pictures.png_of(pictures.chunk(b"IDAT", _deflated(rest)), pictures.END))
    else:
        payload = _stamped(pictures.veiled(rest[: 30 * 30 * 3 // 8], picture.Direction.TO_HOST))
    return HEADERS + payload


def _stamped(payload: bytes) -> bytes:
    if len(payload) < pictures.png.MIN_SIZE:
        payload = payload.ljust(pictures.png.MIN_SIZE, b"\0")
    return pictures.stamped(payload, picture.Direction.TO_HOST)


def _chunks(data: bytes) -> Iterator[bytes]:
    """Cut into chunks of good checksums: kind, length, body."""
    kinds = (b"IDAT", b"IEND", b"IHDR", b"eXIf", b"PLTE", b"tRNS", b"zTXt", b"acTL")
    while data:
        size = data[1] if len(data) > 1 else 0
        yield pictures.chunk(kinds[data[0] % len(kinds)], data[2 : 2 + size])
        data = data[2 + size :]


def _deflated(data: bytes) -> bytes:
    """The pixels of a 20 by 20 picture, or more or fewer of them."""
    size = len(pictures.ROWS) + (data[0] - 128 if data else 0)
    return zlib.compress((data * (size // max(1, len(data)) + 1))[:size], 1)


_FULL = readers.around(b"x" * 1000)
HEADERS = _FULL[:2] + (40 + 1400).to_bytes(2, "big") + _FULL[4:-1000]
STATE = {"sentry": fresh(), "seen": 0}


def test_one_input(data: bytes) -> None:
    if not data:
        return
    STATE["seen"] += 1
    if STATE["seen"] % MANY == 0:
        STATE["sentry"] = fresh()
    sentry = STATE["sentry"]
    sentry.on_packet(packet_of(data))
    for frame in sentry._link.frames:
        try:
            Knock.decode(frame)
        except MessageError as why:
            assert why.thing == "frame"
    sentry._link.frames.clear()
    sentry._waiting.clear()


def seeds() -> Iterator[bytes]:
    for attack in corpus.every("agent").values():
        if attack.form == "packet":
            yield b"\0" + attack.body
        else:
            yield b"\1" + attack.body
            yield b"\2" + attack.body
    yield b"\3\0\x1a" + pictures.DATA[:26] + b"\1\0"
    yield b"\4\x80\0\1\2\3"
    for text in (b"3:abc", b"5:00000", b"999:a", b"\xd9\xa3:a"):
        yield b"\5" + text


if __name__ == "__main__":
    from campaign import fuzz

    fuzz(test_one_input, seeds())
