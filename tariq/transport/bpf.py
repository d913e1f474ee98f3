"""The kernel's filter on the sniffing sockets: classic BPF, assembled here.

``SOCK_DGRAM`` packet sockets start at the network header (packet(7)), so one program
per address family serves every kind of link. ``knocks`` passes a TCP SYN to the knock port
whose payload begins as one of our PNGs *and carries the mark*, HalfSipHash-2-4 of its
nonce under one of the given keys: a flood that doesn't know the knock key never reaches
a process. What passes is checked again, in full, by ``wire`` and ``picture.proof``.

Instruction encodings: linux/bpf_common.h and linux/filter.h. Written out because the
usual compiler, libpcap, would have to be installed on every host, and knows nothing of
sockets without link headers or of keyed hashes.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from tariq.picture import png
from tariq.transport.wire import FLAGS_MASK, SYN

MAX_INSTRUCTIONS = 4096
"""BPF_MAXINSNS, linux/bpf_common.h."""
MAX_BLOCKED = 200
"""Nonces that one program can name: a jump reaches 255 instructions."""
PASS, DROP = 0xFFFF, 0

_LD_IMM, _LD_LEN, _LD_MEM, _ST = 0x00, 0x80, 0x60, 0x02
_LD_W, _LD_H, _LD_B = 0x20, 0x28, 0x30  # A = packet[k], BPF_ABS
_LDI_W, _LDI_H, _LDI_B = 0x40, 0x48, 0x50  # A = packet[X + k], BPF_IND
_LDX_IMM, _LDX_MEM, _LDX_MSH = 0x01, 0x61, 0xB1
_ADD_K, _ADD_X, _SUB_X, _MUL_K = 0x04, 0x0C, 0x1C, 0x24
_AND_K, _OR_X, _XOR_K, _XOR_X, _LSH_K, _RSH_K = 0x54, 0x4C, 0xA4, 0xAC, 0x64, 0x74
_JA, _JEQ, _JGE, _JSET, _JEQ_X, _RET, _TAX = 0x05, 0x15, 0x35, 0x45, 0x1D, 0x06, 0x07
_CONDITIONAL = {_JEQ, _JGE, _JSET, _JEQ_X}

_PACKET_TYPE = 0xFFFFF000 + 4  # SKF_AD_OFF + SKF_AD_PKTTYPE
_PACKET_HOST = 0
_EXTENSIONS = (0, 43, 60)
"""Hop-by-hop, routing, destination options (RFC 8200, 4.1); a fragment (44) is dropped."""
_MAX_EXTENSIONS = 4

# Scratch memory, M[0] to M[15]
_V0, _V1, _V2, _V3, _NONCE, _MARK, _SPARE, _NEXT_HEADER, _PAYLOAD_AT = range(9)


@dataclass(frozen=True, slots=True)
class Op:
    """One instruction. ``then`` and ``otherwise`` name labels; none: the next instruction."""

    code: int
    k: int = 0
    then: str = ""
    otherwise: str = ""
    label: str = ""


Code = list[Op]


def _require(code: int, k: int) -> Op:
    """Go on if the comparison holds, else drop."""
    return Op(code, k, otherwise="drop")


def knocks(
    family: int, port: int, mark_keys: Sequence[bytes], blocked: Sequence[bytes] = ()
) -> bytes:
    """Return the agent's program for AF_INET or AF_INET6, as ``struct sock_filter``.

    ``blocked`` are nonces (4 bytes, up to ``MAX_BLOCKED``) of knocks that somebody floods
    the host with copies of: the one kind of flood that has a good mark.
    """
    # the kernel's checker wants M[] written on every way to a read, past the early drops too
    # (check_load_and_stores in net/core/filter.c, which looks through returns)
    code = [Op(_ST, _PAYLOAD_AT), *_whole_tcp(family), *_knock_part(port)]
    code += [*_read_digits(0, _NONCE), *_not_one_of(blocked)]
    code += _read_digits(8, _MARK)
    for key in mark_keys:
        code += _marked_under(key)
    return _assemble([*code, Op(_RET, DROP)])


def unkeyed(family: int, port: int, blocked: Sequence[bytes] = ()) -> bytes:
    """Return the agent's program without its mark: short, and passes what looks like a knock."""
    code = [Op(_ST, _PAYLOAD_AT), *_whole_tcp(family), *_knock_part(port)]
    if blocked:
        code += [*_read_digits(0, _NONCE), *_not_one_of(blocked)]
    return _assemble([*code, Op(_RET, PASS)])


def answers(family: int, sport: int, dport: int) -> bytes:
    """Return the crafted client's program: segments between two ports."""
    ports = [Op(_LDI_W, 0), _require(_JEQ, sport << 16 | dport)]
    return _assemble([*_whole_tcp(family), *ports, *_drop_here(), Op(_RET, PASS)])


# --- headers ------------------------------------------------------------------------------


def _whole_tcp(family: int) -> Code:
    """Require a whole TCP segment to this machine; X holds where its header starts."""
    to_us = [Op(_LD_W, _PACKET_TYPE), _require(_JEQ, _PACKET_HOST)]
    return [*to_us, *(_ipv4() if family == socket.AF_INET else _ipv6())]


def _ipv4() -> Code:
    return [
        Op(_LD_B, 9),
        _require(_JEQ, socket.IPPROTO_TCP),
        Op(_LD_H, 6),
        Op(_JSET, 0x3FFF, then="drop"),  # more fragments, or an offset
        Op(_LDX_MSH, 0),  # X: 4 * header length, options included
    ]


def _ipv6() -> Code:
    """Step over extension headers; classic BPF can't jump back, so the steps are written out."""
    code = [Op(_LD_B, 6), Op(_ST, _NEXT_HEADER), Op(_LDX_IMM, 40)]
    for step in range(_MAX_EXTENSIONS):
        code += [
            Op(_LD_MEM, _NEXT_HEADER),
            Op(_JEQ, socket.IPPROTO_TCP, then="tcp"),
            *(Op(_JEQ, kind, then=f"extension{step}") for kind in _EXTENSIONS),
            Op(_JA, then="drop"),
            Op(_LDI_B, 0, label=f"extension{step}"),
            Op(_ST, _NEXT_HEADER),
            Op(_LDI_B, 1),  # its length in 8 bytes, not counting the first 8
            Op(_ADD_K, 1),
            Op(_LSH_K, 3),
            Op(_ADD_X),
            Op(_TAX),
        ]
    return [*code, Op(_LD_MEM, _NEXT_HEADER), _require(_JEQ, socket.IPPROTO_TCP), _nothing("tcp")]


def _nothing(label: str) -> Op:
    """Return an instruction that only carries a label."""
    return Op(_LD_IMM, 0, label=label)


def _drop_here() -> Code:
    """Place the target of all drops so far: a jump reaches 255 instructions, no further."""
    return [Op(_JA, then="on"), Op(_RET, DROP, label="drop"), _nothing("on")]


def _knock_part(port: int) -> Code:
    """Check the TCP header and the payload's head; leave the payload's place in M."""
    head = png.SIGNATURE + b"\0\0\0\x0dIHDR"
    code = [
        Op(_LDI_H, 2),
        _require(_JEQ, port),
        Op(_LDI_B, 13),
        Op(_AND_K, FLAGS_MASK),
        _require(_JEQ, SYN),
        Op(_LDI_B, 12),  # data offset, in words, in the upper half
        Op(_RSH_K, 4),
        Op(_LSH_K, 2),
        Op(_ADD_X),
        Op(_TAX),  # X: where the payload starts
        Op(_ST, _PAYLOAD_AT),
        Op(_LD_LEN),
        Op(_SUB_X),
        _require(_JGE, png.MIN_SIZE),
        Op(_JGE, png.MAX_SIZE + 1, then="drop"),
    ]
    for at, expected in ((0, head), (png.EXIF_CHUNK_AT, png.EXIF_HEAD)):
        for offset in range(0, len(expected), 4):
            (word,) = struct.unpack_from("!I", expected, offset)
            code += [Op(_LDI_W, at + offset), _require(_JEQ, word)]
    return [*code, *_drop_here()]


# --- the mark -------------------------------------------------------------------------------


def _read_digits(at: int, into: int) -> Code:
    """Read eight hex digits of the unique id as a little-endian word.

    Four digits at a time: a digit's value is its low nibble, plus nine if it is a letter
    (whose bit 6 is set). Digits that aren't hexadecimal give some value; ``proof`` refuses them.
    """
    code = []
    for half in (0, 4):
        code += [
            Op(_LDX_MEM, _PAYLOAD_AT),
            Op(_LDI_W, png.UNIQUE_ID_AT + at + half),
            Op(_ST, _SPARE),
            Op(_RSH_K, 6),
            Op(_AND_K, 0x01010101),
            Op(_MUL_K, 9),
            Op(_TAX),
            Op(_LD_MEM, _SPARE),
            Op(_AND_K, 0x0F0F0F0F),
            Op(_ADD_X),
            Op(_ST, _SPARE),  # one nibble in each byte
            Op(_RSH_K, 4),
            Op(_TAX),
            Op(_LD_MEM, _SPARE),
            Op(_OR_X),
            Op(_AND_K, 0x00FF00FF),
            Op(_ST, _SPARE),  # two bytes, the first in the upper half
            Op(_LSH_K, 8),
            Op(_AND_K, 0xFF00),
            Op(_TAX),
            Op(_LD_MEM, _SPARE),
            Op(_RSH_K, 16),
            Op(_OR_X),
        ]
        code += [Op(_ST, into)] if half == 0 else [Op(_LSH_K, 16), *_combine(_OR_X, into)]
    return code


def _not_one_of(blocked: Sequence[bytes]) -> Code:
    words = [int.from_bytes(nonce, "little") for nonce in blocked[-MAX_BLOCKED:]]
    code = [Op(_LD_MEM, _NONCE), *(Op(_JEQ, word, then="blocked") for word in words)]
    return [
        *code,
        Op(_JA, then="unblocked"),
        Op(_RET, DROP, label="blocked"),
        _nothing("unblocked"),
    ]


def _combine(code: int, with_: int) -> Code:
    """Combine A with M[with_] and store it there."""
    return [Op(_LDX_MEM, with_), Op(code), Op(_ST, with_)]


def _marked_under(key: bytes) -> Code:
    """Pass if the mark is HalfSipHash-2-4 of the nonce; as ``proof.half_sip_hash`` does it."""
    k0, k1 = struct.unpack("<II", key)
    start = (k0, k1, k0 ^ 0x6C796765, k1 ^ 0x74656462)
    code = [op for at, word in enumerate(start) for op in (Op(_LD_IMM, word), Op(_ST, at))]
    code += [Op(_LD_MEM, _NONCE), *_absorb()]
    code += [Op(_LD_IMM, 4 << 24), *_absorb()]  # the length, four bytes, and no tail
    code += [Op(_LD_MEM, _V2), Op(_XOR_K, 0xFF), Op(_ST, _V2), *_round() * 4]
    code += [Op(_LD_MEM, _V1), Op(_LDX_MEM, _V3), Op(_XOR_X), Op(_LDX_MEM, _MARK)]
    label = f"not {key.hex()}"
    return [*code, Op(_JEQ_X, otherwise=label), Op(_RET, PASS), _nothing(label)]


def _absorb() -> Code:
    """Take the word in A into the state."""
    keep = [Op(_ST, _SPARE)]
    return [
        *keep,
        *_combine(_XOR_X, _V3),
        *_round() * 2,
        Op(_LD_MEM, _SPARE),
        *_combine(_XOR_X, _V0),
    ]


def _round() -> Code:
    return [
        *_add(_V0, _V1),
        *_rotate(_V1, 5, _V0),
        *_rotate(_V0, 16),
        *_add(_V2, _V3),
        *_rotate(_V3, 8, _V2),
        *_add(_V0, _V3),
        *_rotate(_V3, 7, _V0),
        *_add(_V2, _V1),
        *_rotate(_V1, 13, _V2),
        *_rotate(_V2, 16),
    ]


def _add(to: int, what: int) -> Code:
    return [Op(_LD_MEM, what), *_combine(_ADD_X, to)]


def _rotate(what: int, bits: int, xor: int | None = None) -> Code:
    """Rotate M[what] left, and XOR it with another."""
    code = [Op(_LD_MEM, what), Op(_LSH_K, bits), Op(_TAX), Op(_LD_MEM, what)]
    code += [Op(_RSH_K, 32 - bits), Op(_OR_X)]
    code += [] if xor is None else [Op(_LDX_MEM, xor), Op(_XOR_X)]
    return [*code, Op(_ST, what)]


# --- assembling -------------------------------------------------------------------------------


def _assemble(code: Code) -> bytes:
    """Encode, with jumps to labels that come later; raise ValueError for one out of reach."""
    if len(code) > MAX_INSTRUCTIONS:
        raise ValueError(f"{len(code)} instructions; the kernel takes {MAX_INSTRUCTIONS}")
    places = {op.label: at for at, op in enumerate(code) if op.label}
    out = b""
    for at, op in enumerate(code):
        then = places[op.then] - at - 1 if op.then else 0
        otherwise = places[op.otherwise] - at - 1 if op.otherwise else 0
        if op.code in _CONDITIONAL:
            out += struct.pack("=HBBI", op.code, _near(then), _near(otherwise), op.k)
        else:
            out += struct.pack("=HBBI", op.code, 0, 0, then if op.code == _JA else op.k)
    return out


def _near(distance: int) -> int:
    if not 0 <= distance <= 255:
        raise ValueError(f"a jump over {distance} instructions")
    return distance
