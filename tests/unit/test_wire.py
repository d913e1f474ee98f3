"""The parser of raw packets: whatever comes, it is a segment or a MessageError."""

import contextlib

from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw

from tariq.errors import MessageError
from tariq.transport import wire

PACKETS = [
    bytes(ip / TCP(flags="S", dport=7) / Raw(b"words"))
    for ip in (IP(dst="192.0.2.1"), IPv6(dst="2001:db8::1"))
]


def test_a_packet_cut_anywhere_is_refused_or_read():
    for packet in PACKETS:
        assert wire.parse(packet).payload == b"words"
        for length in range(len(packet) - len(b"words")):
            with contextlib.suppress(MessageError):
                assert wire.parse(packet[:length]).payload == b""


@given(st.binary(max_size=80))
def test_noise_is_refused_or_read(noise):
    for start in (b"", b"\x45", b"\x60"):
        with contextlib.suppress(MessageError):
            wire.parse(start + noise)
