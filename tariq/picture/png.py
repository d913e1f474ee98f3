"""The PNG around the pixels: one fixed layout, checked before Pillow decodes.

    signature · IHDR (8-bit RGB, not interlaced) · eXIf (78 bytes, see below) · IDAT · IEND

Chunks are those of the PNG specification, third edition (W3C), 5 and 11; eXIf is
in 11.3.4.5. Ours holds one tag, ImageUniqueID (0xA420, Exif 2.32), whose 32 hex
digits real cameras fill with random ones; ``proof`` fills them with the proof.

Pillow overlooks wrong checksums of IDAT and IEND and whatever follows the last pixel,
and inflates as much as there is; so all of that is checked here first.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

from PIL import Image

from tariq.errors import MessageError

MAX_PIXELS = 4096
"""More low bits than a packet's worth of PNG can hold; a decoder bomb needs more."""
SIGNATURE = b"\x89PNG\r\n\x1a\n"
UNIQUE_ID_DIGITS = 32

_EXIF_IFD, _IMAGE_UNIQUE_ID = 0x8769, 0xA420
_CHUNK = struct.Struct("!I4s")


def _exif(unique_id: str) -> bytes:
    exif = Image.Exif()
    exif.get_ifd(_EXIF_IFD)[_IMAGE_UNIQUE_ID] = unique_id
    return exif.tobytes().removeprefix(b"Exif\0\0")


_TEMPLATE = _exif("0" * UNIQUE_ID_DIGITS)
EXIF_CHUNK_AT = len(SIGNATURE) + 8 + 13 + 4
"""Right behind IHDR."""
_EXIF_AT = EXIF_CHUNK_AT + 8
UNIQUE_ID_AT = _EXIF_AT + _TEMPLATE.index(b"0" * UNIQUE_ID_DIGITS)
"""Where the 32 digits stand in every payload."""
EXIF_CRC_AT = _EXIF_AT + len(_TEMPLATE)
EXIF_HEAD = _CHUNK.pack(len(_TEMPLATE), b"eXIf")
"""Length and type of the eXIf chunk: the same in every payload."""
MIN_SIZE = EXIF_CRC_AT + 4 + 12 + 12
MAX_SIZE = 1500
"""More than one packet's payload on any path but a few; ours stay below ``picture.BUDGET``."""


def write(picture: Image.Image) -> bytes:
    """Encode RGB pixels, with a unique id of zeros that ``proof.stamp`` fills in.

    ``compress_type`` 2 is zlib's Z_HUFFMAN_ONLY: noise has no repetitions to find,
    and the default strategy makes these pictures a tenth larger.
    """
    out = io.BytesIO()
    picture.save(out, "PNG", compress_type=2, exif=_TEMPLATE)
    return out.getvalue()


def unique_id(payload: bytes) -> str:
    """Return the 32 digits from their fixed place; raise MessageError if there is none.

    Looks only at fixed offsets of the first bytes, so that it is safe and cheap on
    anything that a stranger sends.
    """
    if len(payload) < MIN_SIZE or not payload.startswith(SIGNATURE):
        raise MessageError("proof", "not in a png")
    if payload[EXIF_CHUNK_AT:_EXIF_AT] != EXIF_HEAD:
        raise MessageError("proof", "no unique id in its place")
    digits = payload[UNIQUE_ID_AT : UNIQUE_ID_AT + UNIQUE_ID_DIGITS]
    if digits.strip(b"0123456789abcdef"):
        raise MessageError("proof", "the unique id is not hexadecimal")
    return digits.decode("ascii")


def with_unique_id(payload: bytes, digits: str) -> bytes:
    """Return the picture with these digits and the checksum that they need."""
    out = bytearray(payload)
    out[UNIQUE_ID_AT : UNIQUE_ID_AT + UNIQUE_ID_DIGITS] = digits.encode("ascii")
    out[EXIF_CRC_AT : EXIF_CRC_AT + 4] = _exif_crc(out)
    return bytes(out)


def has_exif_crc(payload: bytes) -> bool:
    """Tell whether the eXIf chunk's checksum is right: the one thing a tag can't cover."""
    return payload[EXIF_CRC_AT : EXIF_CRC_AT + 4] == _exif_crc(payload)


def _exif_crc(payload: bytes | bytearray) -> bytes:
    return zlib.crc32(payload[EXIF_CHUNK_AT + 4 : EXIF_CRC_AT]).to_bytes(4, "big")


def read(payload: bytes) -> Image.Image:
    """Decode a picture of exactly this layout; raise MessageError for any other."""
    _check_layout(payload)
    try:
        with Image.open(io.BytesIO(payload), formats=("PNG",)) as picture:
            picture.load()
            return picture.copy()
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as why:
        raise MessageError("picture", "doesn't decode") from why


def _check_layout(payload: bytes) -> None:
    if not payload.startswith(SIGNATURE):
        raise MessageError("picture", "not a png")
    chunks = list(_chunks(payload))
    if [kind for kind, _ in chunks] != [b"IHDR", b"eXIf", b"IDAT", b"IEND"]:
        raise MessageError("picture", "chunks other than its own")
    header, exif, data, end = (body for _, body in chunks)
    _check_pixels(data, *_check_header(header))
    before, after = _TEMPLATE.split(b"0" * UNIQUE_ID_DIGITS)
    if not (exif.startswith(before) and exif.endswith(after)) or len(exif) != len(_TEMPLATE) or end:
        raise MessageError("picture", "chunks with other content")


def _chunks(payload: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(SIGNATURE)
    while at < len(payload):
        if at + 12 > len(payload):
            raise MessageError("picture", "cut short")
        length, kind = _CHUNK.unpack_from(payload, at)
        end = at + 12 + length
        if end > len(payload):
            raise MessageError("picture", "cut short")
        if zlib.crc32(payload[at + 4 : end - 4]).to_bytes(4, "big") != payload[end - 4 : end]:
            raise MessageError("picture", "a wrong checksum")
        yield kind, payload[at + 8 : end - 4]
        at = end


def _check_pixels(data: bytes, width: int, height: int) -> None:
    """Inflate no more than the pixels need, and see that the stream ends with them."""
    size = height * (1 + 3 * width)  # a filter's number before each row (PNG, 7.3)
    inflate = zlib.decompressobj()
    try:
        rows = inflate.decompress(data, size + 1)
    except zlib.error as why:
        raise MessageError("picture", "doesn't inflate") from why
    if len(rows) != size or not inflate.eof or inflate.unused_data:
        raise MessageError("picture", "more or less than its pixels")


def _check_header(body: bytes) -> tuple[int, int]:
    """Return width and height."""
    width, height, *rest = struct.unpack("!IIBBBBB", body) if len(body) == 13 else (0, 0)
    if rest != [8, 2, 0, 0, 0]:  # depth, colour type RGB, deflate, adaptive, not interlaced
        raise MessageError("picture", "not 8-bit rgb")
    if not 0 < width * height <= MAX_PIXELS or width > MAX_PIXELS or height > MAX_PIXELS:
        raise MessageError("picture", f"more than {MAX_PIXELS} pixels")
    return width, height
