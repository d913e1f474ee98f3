"""Hostile pictures, texts and packets: what needs no key but the knock key."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from hostile.corpus import CLOCK, KNOCK_KEY, PORT
from PIL import Image
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.packet import Raw

from tariq import picture
from tariq.picture import Direction, lsb, png, proof, veil

NONCE = b"nonc"
Made = tuple[str, str, str, bytes]
"""Name, what it tries, the layer that must refuse it, bytes."""


def chunk(kind: bytes, body: bytes, crc: int | None = None, length: int | None = None) -> bytes:
    crc = zlib.crc32(kind + body) if crc is None else crc
    length = len(body) if length is None else length
    return length.to_bytes(4, "big") + kind + body + crc.to_bytes(4, "big")


def header(width: int, height: int, *rest: int) -> bytes:
    return struct.pack("!IIBBBBB", width, height, *(rest or (8, 2, 0, 0, 0)))


EXIF = chunk(b"eXIf", png._TEMPLATE)
END = chunk(b"IEND", b"")
SIDE = 20
ROWS = b"".join(b"\0" + bytes(3 * SIDE) for _ in range(SIDE))
DATA = zlib.compress(ROWS, 9)
IDAT = chunk(b"IDAT", DATA)
IHDR = chunk(b"IHDR", header(SIDE, SIDE))
PLAIN = png.SIGNATURE + IHDR + EXIF + IDAT + END


def png_of(*chunks: bytes, head: bytes = IHDR) -> bytes:
    return png.SIGNATURE + head + EXIF + b"".join(chunks)


def rows(width: int, height: int, bytes_a_row: int) -> bytes:
    return chunk(b"IDAT", zlib.compress((b"\0" + bytes(bytes_a_row)) * height, 9))


def stamped(payload: bytes, way: Direction) -> bytes:
    return proof.stamp(payload, KNOCK_KEY, way, NONCE, CLOCK)


def flip(payload: bytes, at: int, bit: int = 0) -> bytes:
    return payload[:at] + bytes([payload[at] ^ 1 << bit]) + payload[at + 1 :]


def pictures() -> Iterator[Made]:
    """Pictures of a holder of the card: their proof is good, and what it covers is hostile."""

    def made(name: str, why: str, *chunks: bytes, head: bytes = IHDR) -> Made:
        return f"picture-{name}", why, "picture", png_of(*chunks, head=head)

    big = chunk(b"IDAT", zlib.compress(bytes(1_000_000), 9))
    bomb = zlib.compress(bytes(400_000), 9)
    anim = struct.pack("!II", 2, 0)
    frame = struct.pack("!IIIIIHHBB", 0, SIDE, SIDE, 0, 0, 1, 10, 0, 0)
    for name, why, *shape in (
        ("huge", "2147483647 by 2147483647 pixels", 2**31 - 1, 2**31 - 1),
        ("huge-product", "65536 by 65536: a product of zero in 32 bits", 65_536, 65_536),
        ("wide", "one row of 65535 pixels", 65_535, 1),
        ("no-width", "no width at all", 0, SIDE),
        ("no-height", "no height at all", SIDE, 0),
        ("16-bit", "16 bits a channel", SIDE, SIDE, 16, 2, 0, 0, 0),
        ("1-bit", "one bit a pixel", SIDE, SIDE, 1, 0, 0, 0, 0),
        ("grey", "grey, where stegano expects three channels", SIDE, SIDE, 8, 0, 0, 0, 0),
        ("grey-alpha", "grey with alpha", SIDE, SIDE, 8, 4, 0, 0, 0),
        ("rgba", "RGB with alpha: stegano reads other low bits", SIDE, SIDE, 8, 6, 0, 0, 0),
        ("colour-type-9", "a colour type that doesn't exist", SIDE, SIDE, 8, 9, 0, 0, 0),
        ("compression-1", "a compression that doesn't exist", SIDE, SIDE, 8, 2, 1, 0, 0),
        ("filter-1", "a filter method that doesn't exist", SIDE, SIDE, 8, 2, 0, 1, 0),
        ("interlaced", "Adam7: another order of pixels", SIDE, SIDE, 8, 2, 0, 0, 1),
    ):
        yield made(name, why, IDAT, END, head=chunk(b"IHDR", header(*shape)))
    palette = chunk(b"IHDR", header(SIDE, SIDE, 8, 3, 0, 0, 0))
    colours = chunk(b"PLTE", bytes(6))
    yield made("palette", "colours from a palette", colours, rows(20, 20, 20), END, head=palette)
    yield made("long-ihdr", "an IHDR of 14 bytes", IDAT, END, head=_odd_ihdr())
    yield made(
        "640-black",
        "640 by 640 black pixels: stegano walks through them for 1.7 s",
        rows(640, 640, 1920),
        END,
        head=chunk(b"IHDR", header(640, 640)),
    )
    yield made("bomb-idat", "an IDAT that inflates to a million bytes", big, END)
    for kind, text in ((b"iCCP", b"p\0\0"), (b"zTXt", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0")):
        name = kind.decode()
        body = chunk(kind, text + bomb)
        yield made(f"bomb-{name.lower()}", f"a {name} that inflates to 400,000", body, IDAT, END)
    yield made(
        "apng",
        "an animation of two frames",
        chunk(b"acTL", anim),
        chunk(b"fcTL", frame),
        IDAT,
        chunk(b"fdAT", bytes(4) + DATA),
        END,
    )
    yield made(
        "two-ihdr", "a second IHDR, of 4096 by 1", chunk(b"IHDR", header(4096, 1)), IDAT, END
    )
    yield made("two-exif", "a second eXIf", EXIF, IDAT, END)
    yield made(
        "text", "a tEXt chunk, where Pillow would read text", chunk(b"tEXt", b"k\0v"), IDAT, END
    )
    yield made(
        "unknown-critical", "a critical chunk that nobody knows", chunk(b"ABCD", b""), IDAT, END
    )
    yield "picture-no-idat", "no IDAT: too short to hold a proof", "proof", png_of(END)
    yield made("no-iend", "no IEND", IDAT)
    yield made("two-iend", "a second IEND", IDAT, END, END)
    yield made("idat-split", "IDAT in two", chunk(b"IDAT", DATA[:9]), chunk(b"IDAT", DATA[9:]), END)
    yield made("idat-empty", "an empty IDAT as well", IDAT, chunk(b"IDAT", b""), END)
    yield made("idat-twice", "the same IDAT twice", IDAT, IDAT, END)
    yield made("idat-not-deflate", "an IDAT that isn't deflate", chunk(b"IDAT", bytes(40)), END)
    yield made("idat-cut", "a stream that is cut short", chunk(b"IDAT", DATA[:-9]), END)
    yield made("idat-adler", "a stream with a wrong sum", chunk(b"IDAT", flip(DATA, -1)), END)
    yield made("idat-dictionary", "a stream that asks for a dictionary", _with_dictionary(), END)
    more = zlib.compress(ROWS + b"more", 9)
    yield made("more-pixels", "data after the pixels", chunk(b"IDAT", more), END)
    yield made("less-pixels", "a pixel short", chunk(b"IDAT", zlib.compress(ROWS[:-3], 9)), END)
    yield made("more-stream", "data after the stream", chunk(b"IDAT", DATA + b"more"), END)
    odd = zlib.compress(b"\7" + ROWS[1:], 9)
    yield made(
        "filter-type", "a row with a filter type that doesn't exist", chunk(b"IDAT", odd), END
    )
    yield made("full-iend", "an IEND with content", IDAT, chunk(b"IEND", b"more"))
    yield made("trailing", "data after IEND", IDAT, END, b"trailing data")
    yield made("trailing-png", "a whole picture after IEND", IDAT, END, PLAIN)
    yield made(
        "crc-ihdr",
        "a wrong checksum of IHDR",
        IDAT,
        END,
        head=chunk(b"IHDR", header(20, 20), crc=1),
    )
    yield made(
        "crc-idat",
        "a wrong checksum of IDAT, which Pillow overlooks",
        chunk(b"IDAT", DATA, crc=1),
        END,
    )
    yield made(
        "crc-iend",
        "a wrong checksum of IEND, which Pillow overlooks",
        IDAT,
        chunk(b"IEND", b"", crc=1),
    )
    yield made(
        "length-huge", "a chunk of 4294967295 bytes", chunk(b"IDAT", DATA, length=2**32 - 1), END
    )
    yield made(
        "length-past-end", "a chunk that ends behind the end", chunk(b"IDAT", DATA, length=999), END
    )
    yield made(
        "length-short",
        "a chunk's length that is one short",
        chunk(b"IDAT", DATA, length=len(DATA) - 1),
        END,
    )
    yield made("half-chunk", "half a chunk's head at the end", IDAT, END, b"\0\0\0")
    at = {"ihdr": 20, "exif": png.EXIF_CHUNK_AT + 12, "idat": png.EXIF_CRC_AT + 16, "iend": -6}
    for name, place in at.items():
        yield f"picture-flip-{name}", f"a bit flipped in {name}", "picture", flip(PLAIN, place)


def _odd_ihdr() -> bytes:
    """An IHDR one byte longer moves eXIf; its length field alone lies instead."""
    return chunk(b"IHDR", header(SIDE, SIDE), length=14)


def _with_dictionary() -> bytes:
    deflate = zlib.compressobj(9, zdict=b"dictionary")
    return chunk(b"IDAT", deflate.compress(ROWS) + deflate.flush())


def veiled(raw_text: bytes, way: Direction, side: int = 30) -> bytes:
    """Put bytes where stegano would put ``LENGTH:TEXT``, and veil them."""
    bits = "".join(f"{byte:08b}" for byte in raw_text)
    raw = bytearray(side * side * 3)
    raw[: len(bits)] = bytes(int(bit) for bit in bits)
    image = Image.frombytes("RGB", (side, side), bytes(raw))
    return png.write(veil.apply(image, veil.key(KNOCK_KEY, way, NONCE)))


def texts(way: Direction) -> Iterator[Made]:
    """What stegano reads, in pictures that are good in every way."""
    for name, why, raw in (
        ("empty", "low bits of zero: no length at all", b""),
        ("no-colon", "a length without a colon", b"12345"),
        ("no-digits", "a colon without a length", b":abc"),
        ("semicolon", "another sign than a colon", b"3;abc"),
        ("unicode-digits", "digits of another script, which int() takes", "٣:abc".encode()),
        ("superscript", "a digit of Latin-1 that isdigit() takes", b"\xb2:abc"),
        ("minus", "a negative length", b"-1:a"),
        ("plus", "a length with a sign", b"+3:abc"),
        ("space", "a length with a space before it", b" 3:abc"),
        ("underscore", "a length that int() takes", b"1_0:abcdefghij"),
        ("leading-zero", "a second spelling of a length", b"03:abc"),
        ("too-long", "a length larger than the picture", b"999:abc"),
        ("far-too-long", "a length of five digits", b"99999:a"),
        ("one-too-long", "a length one larger than the picture", b"335:abc"),
        ("not-base85", "text that isn't base85", b"5:~ ~ ~"),
        ("base85-overflow", "base85 beyond 32 bits", b"5:~~~~~"),
        ("base85-one", "base85 of a single character over", b"6:00000~"),
        ("latin-1", "text that isn't ASCII", b"5:\xe9\xe9\xe9\xe9\xe9"),
        ("nul", "text of zero bytes", b"5:\0\0\0\0\0"),
    ):
        yield f"text-{name}", why, "text", veiled(raw, way)
    whole = lsb.hide(Image.new("RGB", (30, 30)), "0" * 300)
    naked = png.write(whole)
    yield "text-not-veiled", "text without a veil", "text", naked


def unproven(good: bytes, way: Direction) -> Iterator[Made]:
    """What somebody sends who holds no card, or holds it up at the wrong time."""
    other = Direction.TO_CLIENT if way is Direction.TO_HOST else Direction.TO_HOST
    digits = png.UNIQUE_ID_AT
    for name, why, raw in (
        ("nothing", "one byte", b"x"),
        ("signature", "a PNG's signature and nothing else", png.SIGNATURE),
        ("noise", "noise behind a PNG's signature", png.SIGNATURE + bytes(range(256)) * 4),
        ("jpeg", "a JPEG's head", b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(300)),
        ("cut-half", "half of a good picture", good[: len(good) // 2]),
        ("cut-one", "a good picture less its last byte", good[:-1]),
        ("cut-head", "a good picture less its first byte", good[1:]),
        ("trailing", "a byte after a good picture", good + b"\0"),
        ("flip-signature", "a bit flipped in the signature", flip(good, 0)),
        ("flip-ihdr", "a bit flipped in IHDR", flip(good, 19)),
        ("flip-exif", "a bit flipped in eXIf", flip(good, png.EXIF_CHUNK_AT + 20)),
        ("flip-nonce", "a bit flipped in the nonce", flip(good, digits)),
        ("flip-mark", "a bit flipped in the mark", flip(good, digits + 8)),
        ("flip-tag", "a bit flipped in the tag", flip(good, digits + 31)),
        ("flip-idat", "a bit flipped in IDAT", flip(good, png.EXIF_CRC_AT + 60)),
        ("flip-iend", "a bit flipped in IEND", flip(good, -5)),
        ("crc-exif", "a wrong checksum of eXIf, which no tag covers", flip(good, png.EXIF_CRC_AT)),
        (
            "not-hex",
            "a unique id that isn't hexadecimal",
            good[:digits] + b"zzzz" + good[digits + 4 :],
        ),
        ("upper-case", "a unique id in capitals", _upper(good)),
        ("zero", "a unique id of zeros", png.with_unique_id(good, "0" * 32)),
        (
            "other-key",
            "a proof under another knock key",
            proof.stamp(good, bytes(32), way, NONCE, CLOCK),
        ),
        ("other-way", "a picture of the other direction", stamped(good, other)),
        (
            "old",
            "a proof of two windows ago",
            proof.stamp(good, KNOCK_KEY, way, NONCE, CLOCK - 1200),
        ),
        (
            "early",
            "a proof of two windows ahead",
            proof.stamp(good, KNOCK_KEY, way, NONCE, CLOCK + 1200),
        ),
    ):
        yield f"proof-{name}", why, "proof", raw


def _upper(good: bytes) -> bytes:
    at = png.UNIQUE_ID_AT
    return png.with_unique_id(good, good[at : at + 32].decode().upper())


def packets(good: bytes) -> Iterator[Made]:
    """Whole packets around a good payload, which no parser may read."""
    there, here = "10.77.0.1", "10.77.0.2"
    tcp = TCP(sport=40_000, dport=PORT, flags="S", seq=1) / Raw(good)
    v4, v6 = IP(src=here, dst=there), IPv6(src="fd77::2", dst="fd77::1")
    whole = bytes(v4 / tcp)
    long_head = bytearray(whole)
    long_head[0] = 0x41
    lying = bytearray(whole)
    lying[2:4] = (24).to_bytes(2, "big")
    offset = bytearray(whole)
    offset[32] = 0xF0 if len(good) < 20 else 0x10
    chain = b"".join([b"\x3c\0" + bytes(6)] * 40)
    for name, why, raw in (
        ("empty", "an IPv4 packet of its first byte", whole[:1]),
        ("version-5", "neither IPv4 nor IPv6", b"\x55" + whole[1:]),
        ("short-header", "an IPv4 header that says it is four bytes long", bytes(long_head)),
        ("short-total", "a total length that ends inside TCP's header", bytes(lying)),
        ("tcp-offset", "TCP data that would begin inside its header", bytes(offset)),
        ("fragment", "the first fragment", bytes(IP(src=here, dst=there, flags="MF") / tcp)),
        ("fragment-later", "a later fragment", bytes(IP(src=here, dst=there, frag=9) / tcp)),
        ("udp", "the same payload over UDP", bytes(v4 / UDP(dport=PORT) / Raw(good))),
        ("ipv6-fragment", "an atomic fragment (RFC 6946)", bytes(v6 / IPv6ExtHdrFragment() / tcp)),
        (
            "ipv6-cut-chain",
            "extension headers to the very end",
            bytes(IPv6(src="fd77::2", dst="fd77::1", nh=60) / Raw(chain)),
        ),
        (
            "ipv6-long-option",
            "an extension header longer than the packet",
            bytes(
                IPv6(src="fd77::2", dst="fd77::1", nh=0) / Raw(b"\x06\xff" + bytes(6) + good[:60])
            ),
        ),
        (
            "ipv6-no-next",
            "no next header",
            bytes(IPv6(src="fd77::2", dst="fd77::1", nh=59) / Raw(good)),
        ),
    ):
        yield f"packet-{name}", why, "packet", raw
    extended = v6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / tcp
    yield (
        "good-ipv6-extensions",
        "control: extension headers as they may be",
        "yes",
        bytes(extended),
    )


def wrapped(message: bytes, way: Direction, when: float = CLOCK) -> bytes:
    """Return a good picture of any message, however large."""
    return picture.wrap(message, KNOCK_KEY, way, when, budget=6000)
