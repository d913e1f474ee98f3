"""scapy sockets over descriptors that somebody privileged opened.

``sockets`` opens them, with CAP_NET_RAW and without scapy; the classes here need no
privilege.
"""

from __future__ import annotations

import socket
import struct

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

    def recv_bytes(self) -> bytes | None:
        """Return one packet's bytes, undissected, or None when there is none waiting."""
        try:
            return self.ins.recv(wire.MAX_PACKET)
        except BlockingIOError:
            return None
        except OSError:  # an interface went away: the socket itself lives on
            return None


class RawSender(SuperSocket):
    """Raw sockets, one per family, that send crafted packets by the kernel's routes."""

    desc = "send crafted ip packets"

    def __init__(self, ipv4: socket.socket, ipv6: socket.socket | None) -> None:
        self.ipv4, self.ipv6 = ipv4, ipv6
        self.ins = ipv4
        self.outs = ipv4

    def send(self, x: Packet) -> int:
        """Send one IP or IPv6 packet to its own destination."""
        out = self.ipv6 if x.name == "IPv6" else self.ipv4
        if out is None:
            return 0
        return out.sendto(bytes(x), (x.dst, 0))
