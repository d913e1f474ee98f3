"""scapy sockets over descriptors that somebody privileged opened.

``sockets`` opens them, with CAP_NET_RAW and without scapy; the classes here need no
privilege.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping

from scapy.packet import Packet
from scapy.supersocket import SuperSocket

from tariq.transport import wire

_SOL_PACKET, _PACKET_STATISTICS = 263, 6  # linux/socket.h, linux/if_packet.h


class Sniffer(SuperSocket):
    """A packet socket that yields raw network-layer bytes."""

    desc = "read ip packets from a filtered packet socket"

    def __init__(self, sock: socket.socket, family: int) -> None:
        self.ins, self.family = sock, family
        self.outs = None

    def dropped(self) -> int:
        """Return how many packets the kernel has dropped since the last call, for want of room."""
        counts = self.ins.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        return int(struct.unpack("II", counts)[1])

    def receive(self) -> tuple[bytes, str] | None:
        """Return one packet's bytes, undissected, and its interface; None if there is none.

        The name is that of the interface now; it is empty if that has gone (packet(7)).
        """
        try:
            packet, where = self.ins.recvfrom(wire.MAX_PACKET)
        except OSError:  # nothing is waiting, or an interface went away: the socket lives on
            return None
        return packet, where[0]


class RawSender(SuperSocket):
    """Raw sockets, by address family, that send crafted packets by the kernel's routes."""

    desc = "send crafted ip packets"

    def __init__(self, by_family: Mapping[int, socket.socket]) -> None:
        self.by_family = by_family
        self.ins = self.outs = next(iter(by_family.values()))

    def send(self, x: Packet) -> int:
        """Send one IP or IPv6 packet to its own destination."""
        out = self.by_family.get(socket.AF_INET6 if x.name == "IPv6" else socket.AF_INET)
        if out is None:
            return 0
        return out.sendto(bytes(x), (x.dst, 0))
