"""The veil: why the low bits of Tariq's pictures look like noise.

Stegano writes a plain length first, and base85 leaves the top bit of every byte
zero. So the low bit of every channel of every pixel, used or not, is XORed with a
keystream, SHAKE-256(label ‖ knock key ‖ direction ‖ nonce). This is camouflage;
secrecy is OpenPGP's.
"""

from __future__ import annotations

import hashlib

from PIL import Image

_LABEL = b"tariq veil v1\0"
_BITS = tuple(bytes(byte >> shift & 1 for shift in range(8)) for byte in range(256))
"""Each byte as eight bytes of 0 or 1."""


def key(knock_key: bytes, direction: int, nonce: bytes) -> bytes:
    """Return the seed of one picture's keystream."""
    return _LABEL + knock_key + bytes([direction]) + nonce


def apply(picture: Image.Image, seed: bytes) -> Image.Image:
    """Veil an RGB picture, or lift the veil again: both are the same XOR."""
    raw = picture.tobytes()
    stream = hashlib.shake_256(seed).digest(-(-len(raw) // 8))
    mask = b"".join(_BITS[byte] for byte in stream)[: len(raw)]
    mixed = int.from_bytes(raw, "big") ^ int.from_bytes(mask, "big")
    return Image.frombytes("RGB", picture.size, mixed.to_bytes(len(raw), "big"))
