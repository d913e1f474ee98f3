"""Text in the low bits of a picture, by stegano's ``lsb``.

Two things about stegano 3 shape this file. ``import stegano`` loads OpenCV and
NumPy (0.25 s, 260 MB on disk) for one generator that Tariq doesn't use, so a
stand-in takes that submodule's place before stegano is imported. And ``reveal``
trusts what it reads: it raises IndexError, ValueError or TypeError on hostile
pictures and walks off any that has no length, so it only ever sees small RGB
pictures that have proved themselves (``proof``), and everything it raises is
one MessageError.
"""

from __future__ import annotations

import itertools
import math
import sys
from types import ModuleType

from PIL import Image

from tariq.errors import MessageError


def _stand_in() -> ModuleType:
    """Return what stegano.lsb needs of its generators: pixels in reading order."""
    module = ModuleType("stegano.lsb.generators")
    module.identity = itertools.count  # type: ignore[attr-defined]
    return module


sys.modules.setdefault("stegano.lsb.generators", _stand_in())

from stegano import lsb as _stegano  # noqa: E402 - the stand-in comes first


def pixels_for(text: str) -> int:
    """Return how many pixels stegano needs: ``LENGTH:TEXT`` at three bits a pixel."""
    return math.ceil((len(f"{len(text)}:") + len(text)) * 8 / 3)


def hide(cover: Image.Image, text: str) -> Image.Image:
    """Return the cover with ASCII text in its low bits; the cover must be RGB."""
    hidden: Image.Image = _stegano.hide(cover, text)
    return hidden


def reveal(picture: Image.Image) -> str:
    """Return the text of an RGB picture; raise MessageError if there is none."""
    _check_length(picture)
    try:
        return str(_stegano.reveal(picture))
    except (IndexError, ValueError, TypeError) as why:
        raise MessageError("text", "none") from why


def _check_length(picture: Image.Image) -> None:
    """Read stegano's length ourselves first: ASCII digits, a colon, and a length that fits.

    Stegano accepts digits of any script and a missing colon, and walks on.
    """
    width, height = picture.size
    digits = ""
    bits = (byte & 1 for byte in picture.tobytes())
    for _ in range(5):
        char = chr(sum(bit << 7 - i for i, bit in enumerate(itertools.islice(bits, 8))))
        if char == ":":
            break
        digits += char
    if (
        not (digits.isascii() and digits.isdecimal())
        or str(int(digits)) != digits
        or len(digits) > 4
    ):
        raise MessageError("text", "without a length")
    if (len(digits) + 1 + int(digits)) * 8 > width * height * 3:
        raise MessageError("text", "longer than its picture")
