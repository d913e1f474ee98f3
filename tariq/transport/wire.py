"""What a knock looks like in raw bytes, from the network header on.

Plain ``struct`` and fixed offsets (RFC 791, RFC 8200, RFC 9293): this runs on
whatever passes the kernel's filter, before anything has proved itself.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from tariq.errors import MessageError

SYN, FIN, PSH, ACK = 0x02, 0x01, 0x08, 0x10
FLAGS_MASK = 0x3F
"""The six classic flags; ECN's two may be set on any SYN (RFC 3168, 6.1.1)."""
MAX_PACKET = 65_575
"""The longest IPv6 packet without jumbograms."""
_TCP = 6
_EXTENSIONS = {0, 43, 60}
"""Hop-by-hop, routing and destination options (RFC 8200, 4.1); never fragments."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The parts of one TCP segment that matter here."""

    src: str
    dst: str
    sport: int
    dport: int
    seq: int
    ack: int
    flags: int
    payload: bytes


def parse(packet: bytes) -> Segment:
    """Read an IPv4 or IPv6 packet; raise MessageError unless it is one whole TCP segment."""
    try:
        version = packet[0] >> 4
        if version == 4:
            return _ipv4(packet)
        if version == 6:
            return _ipv6(packet)
    except (struct.error, IndexError, ValueError) as why:  # ValueError: half an address
        raise MessageError("packet", "cut short") from why
    raise MessageError("packet", "neither ipv4 nor ipv6")


def _ipv4(packet: bytes) -> Segment:
    header = (packet[0] & 0xF) * 4
    total, fragment = struct.unpack_from("!H2xH", packet, 2)
    if packet[9] != _TCP or fragment & 0x3FFF:
        raise MessageError("packet", "not a whole tcp segment")
    if packet[12] == 0 or packet[12] >= 224:  # this network, multicast, broadcast (RFC 6890)
        raise MessageError("packet", "from no host's address")
    src = socket.inet_ntop(socket.AF_INET, packet[12:16])
    dst = socket.inet_ntop(socket.AF_INET, packet[16:20])
    return _tcp(src, dst, packet[header:total] if header >= 20 else b"")


def _ipv6(packet: bytes) -> Segment:
    (length,) = struct.unpack_from("!H", packet, 4)
    if packet[8] == 0xFF or not any(packet[8:24]):  # multicast, unspecified (RFC 4291, 2.5.2)
        raise MessageError("packet", "from no host's address")
    src = socket.inet_ntop(socket.AF_INET6, packet[8:24])
    dst = socket.inet_ntop(socket.AF_INET6, packet[24:40])
    kind, at, end = packet[6], 40, 40 + length
    while kind in _EXTENSIONS and at < end:
        kind, at = packet[at], at + (packet[at + 1] + 1) * 8
    if kind != _TCP:
        raise MessageError("packet", "not a whole tcp segment")
    return _tcp(src, dst, packet[at:end])


def _tcp(src: str, dst: str, segment: bytes) -> Segment:
    sport, dport, seq, ack, offset, flags = struct.unpack_from("!HHIIBB", segment)
    data_at = (offset >> 4) * 4
    if not 20 <= data_at <= len(segment):
        raise MessageError("packet", "cut short")
    return Segment(src, dst, sport, dport, seq, ack, flags & FLAGS_MASK, segment[data_at:])
