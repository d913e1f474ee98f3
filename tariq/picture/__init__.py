"""OpenPGP bytes into a PNG and back.

``wrap`` and ``unwrap`` are the whole chain; the steps are one file each:

    wrap:    base85 ▸ cover ▸ lsb.hide ▸ veil ▸ png ▸ proof
    unwrap:  proof ▸ png (header only) ▸ Pillow ▸ veil ▸ lsb.reveal ▸ base85

``proof`` comes first on the way in, costs one HMAC, and needs neither zlib nor
Pillow: nothing that a stranger made gets any further. This package knows
nothing of sockets or GnuPG.
"""

from __future__ import annotations

import base64
import secrets
from enum import IntEnum

from tariq.errors import BudgetError, MessageError
from tariq.picture import cover, lsb, png, proof, veil

BUDGET = 1400
"""Bytes of payload that every ordinary path carries in one packet."""

CAPACITY = 512
"""Bytes of OpenPGP that fit ``BUDGET`` whatever they are: every picture differs a little."""

ROOMS = (440, CAPACITY)
"""Bytes of OpenPGP that pictures are drawn for: the size of one tells an onlooker no more than
which of these it is. The smaller takes an ordinary request or receipt, and makes less than the
1,220 bytes that every IPv6 path carries (1,211 at most in 1,500)."""


class Direction(IntEnum):
    """Which way a picture travels; part of its proof and of its veil."""

    TO_HOST = 1
    TO_CLIENT = 2


def wrap(
    message: bytes, knock_key: bytes, direction: Direction, now: float, budget: int = BUDGET
) -> bytes:
    """Hide OpenPGP bytes in a fresh picture; ``now`` in Unix seconds.

    Raises BudgetError where the PNG would be larger than ``budget`` bytes.
    """
    text = base64.b85encode(message).decode("ascii")
    nonce = secrets.token_bytes(proof.NONCE_BYTES)
    picture = lsb.hide(cover.identicon(_pixels_for(message)), text)
    picture = veil.apply(picture, veil.key(knock_key, direction, nonce))
    payload = proof.stamp(png.write(picture), knock_key, direction, nonce, now)
    if len(payload) > budget:
        raise BudgetError(
            "message",
            f"{len(message)} bytes of OpenPGP make a picture of {len(payload)} bytes,"
            f" {len(payload) - budget} over the {budget} that one packet carries",
            "ask for less at once, or use an Ed25519 key",
        )
    return payload


def _pixels_for(message: bytes) -> int:
    room = next((room for room in ROOMS if len(message) <= room), len(message))
    return lsb.pixels_for(base64.b85encode(bytes(room)).decode("ascii"))


def unwrap(payload: bytes, knock_key: bytes, direction: Direction, now: float) -> bytes:
    """Return the OpenPGP bytes of a picture that proves itself; else raise MessageError."""
    nonce = proof.check(payload, knock_key, direction, now)
    picture = png.read(payload)
    text = lsb.reveal(veil.apply(picture, veil.key(knock_key, direction, nonce)))
    try:
        return base64.b85decode(text)
    except ValueError as why:
        raise MessageError("text", "not base85") from why
