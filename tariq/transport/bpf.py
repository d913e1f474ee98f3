"""The kernel's filter on the sniffing sockets: classic BPF, assembled here.

``SOCK_DGRAM`` packet sockets start at the network header (packet(7)), so one
program per address family serves every kind of link. It passes a TCP SYN to the
knock port whose payload begins as a PNG and has a plausible size, and nothing
else; what passes is checked again, in full, by ``wire`` and ``picture.proof``.

Instruction encodings: linux/filter.h and linux/bpf_common.h. Written out because
the usual compiler, libpcap, would have to be installed on every host and knows
nothing of sockets without link headers.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from tariq.picture import png
from tariq.transport.wire import FLAGS_MASK, SYN

SO_ATTACH_FILTER = 26
"""asm-generic/socket.h; Python's socket module doesn't name it."""
PASS, DROP = 0xFFFF, 0
_LD_W, _LD_H, _LD_B = 0x20, 0x28, 0x30  # BPF_LD | BPF_ABS
_PACKET_TYPE = 0xFFFFF000 + 4  # SKF_AD_OFF + SKF_AD_PKTTYPE
_PACKET_HOST = 0
_LDI_W, _LDI_H, _LDI_B = 0x40, 0x48, 0x50  # BPF_LD | BPF_IND
_LDX_IMM, _LD_LEN, _LDX_MSH = 0x01, 0x80, 0xB1
_ADD_X, _SUB_X, _RSH_K, _LSH_K, _AND_K = 0x0C, 0x1C, 0x74, 0x64, 0x54
_JEQ, _JGE, _JSET, _RET, _TAX = 0x15, 0x35, 0x45, 0x06, 0x07


@dataclass(frozen=True, slots=True)
class Op:
    """One instruction; a comparison jumps to the final drop where it fails (or ``unless``)."""

    code: int
    k: int = 0
    unless: bool = False


def _require(code: int, k: int) -> Op:
    """Go on if the comparison holds, else drop."""
    return Op(code, k)


def _forbid(code: int, k: int) -> Op:
    """Drop if the comparison holds, else go on."""
    return Op(code, k, unless=True)


def _knock_part(port: int) -> list[Op]:
    """Check the TCP header and what follows; X holds where the header starts."""
    first, second = struct.unpack("!II", png.SIGNATURE)
    return [
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
        Op(_LD_LEN),
        Op(_SUB_X),
        _require(_JGE, png.MIN_SIZE),
        Op(_LDI_W, 0),
        _require(_JEQ, first),
        Op(_LDI_W, 4),
        _require(_JEQ, second),
    ]


def knocks(family: int, port: int) -> bytes:
    """Return the agent's program for AF_INET or AF_INET6, as ``struct sock_filter``."""
    return _assemble([*_whole_tcp(family), *_knock_part(port), Op(_RET, PASS)])


def answers(family: int, sport: int, dport: int) -> bytes:
    """Return the crafted client's program: segments between two ports."""
    ports = [Op(_LDI_W, 0), _require(_JEQ, sport << 16 | dport)]
    return _assemble([*_whole_tcp(family), *ports, Op(_RET, PASS)])


def _whole_tcp(family: int) -> list[Op]:
    """Require a whole TCP segment to this machine; X holds where its header starts."""
    to_us = [Op(_LD_W, _PACKET_TYPE), _require(_JEQ, _PACKET_HOST)]
    if family == socket.AF_INET:
        return [
            *to_us,
            Op(_LD_B, 9),
            _require(_JEQ, socket.IPPROTO_TCP),
            Op(_LD_H, 6),
            _forbid(_JSET, 0x3FFF),  # more fragments, or an offset
            Op(_LDX_MSH, 0),  # X: 4 * header length
        ]
    return [*to_us, Op(_LD_B, 6), _require(_JEQ, socket.IPPROTO_TCP), Op(_LDX_IMM, 40)]


def _assemble(ops: Sequence[Op]) -> bytes:
    """Encode; the one jump target is the drop that is put at the end."""
    out = b""
    for at, op in enumerate(ops):
        away = len(ops) - at - 1
        jumps = op.code in (_JEQ, _JGE, _JSET)
        then, otherwise = ((away, 0) if op.unless else (0, away)) if jumps else (0, 0)
        out += struct.pack("=HBBI", op.code, then, otherwise, op.k)
    return out + struct.pack("=HBBI", _RET, 0, 0, DROP)


def attach(sock: socket.socket, code: bytes) -> None:
    """Attach a program to a socket (socket(7), SO_ATTACH_FILTER); needs no privilege."""
    array = ctypes.create_string_buffer(code, len(code))
    fprog = struct.pack("HP", len(code) // 8, ctypes.addressof(array))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, fprog)
