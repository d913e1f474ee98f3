"""The agent's answer: three crafted packets, sent back to back.

SYN-ACK that acknowledges the knock's payload, one PSH-ACK segment with the
receipt, FIN-ACK. The client's kernel takes them for an ordinary connection; the
agent keeps no state and binds nothing.
"""

from __future__ import annotations

import secrets

from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet, Raw
from scapy.supersocket import SuperSocket

from tariq.transport.sniffer import RawSender
from tariq.transport.wire import Segment

_WINDOW = 65_535
_MSS = 1_400


def packets(syn: Segment, payload: bytes) -> list[Packet]:
    """Craft the three answers to one SYN."""
    ip = IPv6(src=syn.dst, dst=syn.src) if ":" in syn.src else IP(src=syn.dst, dst=syn.src, id=0)
    ours = secrets.randbits(32)
    theirs = _seq(syn.seq + 1 + len(syn.payload))  # a SYN counts for one (RFC 9293, 3.4)

    def segment(flags: str, offset: int, options: list[tuple[str, int]]) -> Packet:
        tcp = TCP(
            sport=syn.dport,
            dport=syn.sport,
            flags=flags,
            seq=_seq(ours + offset),
            ack=theirs,
            window=_WINDOW,
            options=options,
        )
        return ip / tcp

    return [
        segment("SA", 0, [("MSS", _MSS)]),
        segment("PA", 1, []) / Raw(payload),
        segment("FA", 1 + len(payload), []),
    ]


def send(out: SuperSocket | RawSender, syn: Segment, payload: bytes) -> None:
    """Send the three answers."""
    for packet in packets(syn, payload):
        out.send(packet)


def _seq(number: int) -> int:
    return number & 0xFFFFFFFF
