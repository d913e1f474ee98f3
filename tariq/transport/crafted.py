"""The client's transport with scapy: a SYN of its own making, sniffed answers.

For systems without Fast Open, and as the model of what a kernel won't send. Needs
CAP_NET_RAW. This machine's kernel knows nothing of the connection, so it resets it
on the host's SYN-ACK; the answer's other packets are on their way by then.
"""

from __future__ import annotations

import ipaddress
import random
import secrets
import select
import socket
import time

from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet, Raw

from tariq.errors import MessageError
from tariq.transport import bpf, sockets, wire
from tariq.transport.base import Fate, NoAnswer, source_towards
from tariq.transport.sniffer import RawSender, Sniffer

_PORTS = range(32_768, 60_999)
"""Linux's default net.ipv4.ip_local_port_range."""


class Crafted:
    """Knock with crafted packets."""

    def exchange(self, address: str, port: int, payload: bytes, seconds: float) -> bytes:
        """See ``base.Transport``."""
        is_ipv6 = ipaddress.ip_address(address).version == 6
        family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
        source = source_towards(address, port)
        if source is None:
            raise NoAnswer(Fate.UNREACHABLE)
        sport = random.SystemRandom().choice(_PORTS)
        sniffer = Sniffer(sockets.open_sniffer(family, bpf.answers(family, port, sport)), family)
        with sniffer.ins, sockets.open_sender(family) as out:
            sender = RawSender({family: out})
            sender.send(_syn(source, address, sport, port, payload))
            return _wait(sniffer, address, source, time.monotonic() + seconds)


def _syn(source: str, address: str, sport: int, port: int, payload: bytes) -> Packet:
    ip = IPv6(src=source, dst=address) if ":" in address else IP(src=source, dst=address)
    options = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (secrets.randbits(32), 0))]
    options += [("NOP", None), ("WScale", 7)]
    tcp = TCP(
        sport=sport,
        dport=port,
        flags="S",
        seq=secrets.randbits(32),
        window=64_240,
        options=options,
    )
    return ip / tcp / Raw(payload)


def _wait(sniffer: Sniffer, address: str, source: str, deadline: float) -> bytes:
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([sniffer.ins], [], [], left)[0]:
            break
        received = sniffer.receive()
        if received is None:
            continue
        try:
            segment = wire.parse(received[0])
        except MessageError:
            continue
        if segment.src == address and segment.dst == source and segment.payload:
            return segment.payload
    raise NoAnswer(Fate.SILENT)
