"""The packet and raw sockets that knocking needs; opening one takes CAP_NET_RAW.

Kept apart from ``sniffer`` so that a privileged process can open them without
loading scapy. None is a TCP or UDP socket and none is bound to a port.
"""

from __future__ import annotations

import socket

from tariq.errors import PrivilegeError
from tariq.transport import bpf

_ETHERTYPES = {socket.AF_INET: 0x0800, socket.AF_INET6: 0x86DD}  # linux/if_ether.h
_BUFFER = 4 << 20
_SO_RCVBUFFORCE = 33
"""asm-generic/socket.h: goes over the sysctl's limit, with CAP_NET_ADMIN."""


def open_sniffer(family: int, program: bytes) -> socket.socket:
    """Open a packet socket on every interface, present and future, behind a filter.

    Bound to an ethertype, not to an interface: it sees incoming packets once, after
    VLAN tags and bridges are done with them, and outlives interfaces. A packet that
    slips in before the filter is attached does no harm: readers check it all again.
    """
    ethertype = _ETHERTYPES[socket.AddressFamily(family)]
    sock = _raw(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ethertype))
    bpf.attach(sock, program)
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    sock.setblocking(False)
    return sock


def open_sender(family: int) -> socket.socket:
    """Open a raw socket whose packets bring their own IP header (raw(7), IPPROTO_RAW)."""
    return _raw(family, socket.SOCK_RAW, socket.IPPROTO_RAW)


def _raw(family: int, kind: int, protocol: int) -> socket.socket:
    try:
        return socket.socket(family, kind, protocol)
    except PermissionError as why:
        hint = "run as root, or give the process CAP_NET_RAW"
        raise PrivilegeError("raw socket", "not permitted", hint) from why
