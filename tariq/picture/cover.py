"""The picture that a message is hidden in.

An identicon: a coarse mirrored pattern in two colours, drawn anew for every
message. Its two colours share their channel
values, because what the PNG's Huffman code costs depends on how many different
bytes there are.
"""

from __future__ import annotations

import math
import random

from PIL import Image

_CELLS = 5
_SYSTEM = random.SystemRandom()


def identicon(pixels: int) -> Image.Image:
    """Draw a picture of at least ``pixels`` pixels, nearly square."""
    width = max(_CELLS, math.isqrt(pixels))
    height = max(_CELLS, math.ceil(pixels / width))
    low, high = _shades()
    ink, paper = (low, high, low), (high, low, high)
    if _SYSTEM.getrandbits(1):
        ink, paper = (low, low, high), (high, high, low)
    small = Image.new("RGB", (_CELLS, _CELLS), paper)
    for y in range(_CELLS):
        for x in range(_CELLS // 2 + 1):
            if _SYSTEM.getrandbits(1):
                small.putpixel((x, y), ink)
                small.putpixel((_CELLS - 1 - x, y), ink)
    return small.resize((width, height), Image.Resampling.NEAREST)


def _shades() -> tuple[int, int]:
    """Return two channel values with low bits of zero, far enough apart to be seen."""
    return _SYSTEM.randrange(0, 96, 2), _SYSTEM.randrange(144, 256, 2)
