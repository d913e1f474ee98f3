"""The proof: what a picture must show before anything costly is done with it.

The 32 hex digits of the unique id are nonce (8) ‖ mark (8) ‖ tag (16), under keys
derived from the host's knock key and the 600-second window that the sender's
clock is in; the window before and the one after count too.

- The *mark*, HalfSipHash-2-4 of the nonce, is cheap enough for a kernel filter.
- The *tag*, HMAC-SHA-256 cut to 64 bits, covers a label, the direction and the
  whole PNG with the tag's digits and the eXIf checksum zeroed. That checksum,
  which depends on the tag, is checked by itself.

Neither authorises anything: that is OpenPGP alone.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
from collections.abc import Iterator

from tariq.errors import MessageError
from tariq.picture import png

WINDOW = 600
"""Seconds for which one pair of keys is used."""
NONCE_BYTES = 4
KEY_BYTES = 32

_MARK_AT, _TAG_AT = 8, 16
_WORD = 0xFFFFFFFF
_ZERO_TAG = b"0" * 16
_NONE = "none that counts now"


class AlteredError(MessageError):
    """The mark is good and the rest isn't: somebody's copy of a real picture, changed."""


def stamp(payload: bytes, knock_key: bytes, direction: int, nonce: bytes, now: float) -> bytes:
    """Write the proof into a picture that ``png.write`` made; ``now`` in Unix seconds."""
    mark_key, tag_key = _keys(knock_key, direction, window_of(now))
    digits = nonce.hex() + half_sip_hash(mark_key, nonce).hex()
    payload = png.with_unique_id(payload, digits + _ZERO_TAG.decode())
    return png.with_unique_id(payload, digits + _tag(tag_key, direction, payload))


def check(payload: bytes, knock_key: bytes, direction: int, now: float) -> bytes:
    """Return the nonce of a picture with a good proof.

    Else raise MessageError, and AlteredError where a window's mark is good.
    """
    digits = png.unique_id(payload)
    nonce, mark = bytes.fromhex(digits[:_MARK_AT]), digits[_MARK_AT:_TAG_AT]
    for window in windows(now):
        mark_key, tag_key = _keys(knock_key, direction, window)
        if half_sip_hash(mark_key, nonce).hex() != mark:
            continue
        good = hmac.compare_digest(_tag(tag_key, direction, payload), digits[_TAG_AT:])
        if not (good and png.has_exif_crc(payload)):
            raise AlteredError("proof", _NONE)
        return nonce
    raise MessageError("proof", _NONE)


def tag_of(payload: bytes) -> str:
    """Return the tag's digits: what names a picture in the memory of those accepted."""
    return png.unique_id(payload)[_TAG_AT:]


def nonce_of(payload: bytes) -> bytes:
    """Return the nonce: what names a picture to a kernel filter."""
    return bytes.fromhex(png.unique_id(payload)[:_MARK_AT])


def window_of(now: float) -> int:
    """Return the number of the window that a time is in."""
    return int(now) // WINDOW


def windows(now: float) -> Iterator[int]:
    """Return the windows whose proofs count now, the likeliest first."""
    this = window_of(now)
    yield from (this, this - 1, this + 1)


def mark_keys(knock_key: bytes, direction: int, now: float) -> list[bytes]:
    """Return the keys of the marks that count now: what a kernel filter needs to know."""
    return [_keys(knock_key, direction, window)[0] for window in windows(now)]


@functools.lru_cache(maxsize=16)
def _keys(knock_key: bytes, direction: int, window: int) -> tuple[bytes, bytes]:
    """Return the key of the mark (8 bytes) and the key of the tag (32 bytes)."""
    context = bytes([direction]) + window.to_bytes(8, "big", signed=True)
    mark = hmac.digest(knock_key, b"tariq mark v1\0" + context, "sha256")[:8]
    return mark, hmac.digest(knock_key, b"tariq tag v1\0" + context, "sha256")


def _tag(key: bytes, direction: int, payload: bytes) -> str:
    tag_at = png.UNIQUE_ID_AT + _TAG_AT
    zeroed = bytearray(payload)
    zeroed[tag_at : tag_at + len(_ZERO_TAG)] = _ZERO_TAG
    zeroed[png.EXIF_CRC_AT : png.EXIF_CRC_AT + 4] = bytes(4)
    label = b"tariq proof v1\0" + bytes([direction])
    return hmac.new(key, label + zeroed, hashlib.sha256).hexdigest()[: len(_ZERO_TAG)]


def half_sip_hash(key: bytes, message: bytes) -> bytes:
    """Return HalfSipHash-2-4 with 32 bits of output (include/linux/siphash.h's hsiphash).

    ``key`` is 8 bytes. Written out here because no kept library has it, and
    because the same steps are what a kernel filter computes.
    """
    k0, k1 = int.from_bytes(key[:4], "little"), int.from_bytes(key[4:8], "little")
    state = [k0, k1, 0x6C796765 ^ k0, 0x74656462 ^ k1]
    whole = len(message) // 4 * 4
    last = message[whole:].ljust(3, b"\0") + bytes([len(message) & 0xFF])
    for at in range(0, whole, 4):
        _absorb(state, int.from_bytes(message[at : at + 4], "little"))
    _absorb(state, int.from_bytes(last, "little"))
    state[2] ^= 0xFF
    for _ in range(4):
        _round(state)
    return (state[1] ^ state[3]).to_bytes(4, "little")


def _absorb(state: list[int], word: int) -> None:
    state[3] ^= word
    _round(state)
    _round(state)
    state[0] ^= word


def _rotate(word: int, bits: int) -> int:
    return (word << bits | word >> (32 - bits)) & _WORD


def _round(v: list[int]) -> None:
    v[0] = (v[0] + v[1]) & _WORD
    v[1] = _rotate(v[1], 5) ^ v[0]
    v[0] = _rotate(v[0], 16)
    v[2] = (v[2] + v[3]) & _WORD
    v[3] = _rotate(v[3], 8) ^ v[2]
    v[0] = (v[0] + v[3]) & _WORD
    v[3] = _rotate(v[3], 7) ^ v[0]
    v[2] = (v[2] + v[1]) & _WORD
    v[1] = _rotate(v[1], 13) ^ v[2]
    v[2] = _rotate(v[2], 16)
