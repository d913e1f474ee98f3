"""The packet and raw sockets that knocking needs; opening one takes CAP_NET_RAW.

Loads next to nothing, so that a process can open them as its very first act and be rid
of the privilege before it loads what parses. None is a TCP or UDP socket and none is bound
to a port. ``bpf`` writes the programs that are attached here.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct

from tariq.errors import PrivilegeError

_ETHERTYPES = {socket.AF_INET: 0x0800, socket.AF_INET6: 0x86DD}  # linux/if_ether.h
_BUFFER = 4 << 20
_SO_RCVBUFFORCE = 33
"""asm-generic/socket.h: goes over the sysctl's limit, with CAP_NET_ADMIN."""
_SO_ATTACH_FILTER = 26
"""asm-generic/socket.h; Python's socket module doesn't name it."""
DEAF = struct.pack("=HBBI", 0x06, 0, 0, 0)
"""BPF_RET 0: passes nothing, until the process that will read has what it needs."""


def open_sniffer(family: int, program: bytes = DEAF) -> socket.socket:
    """Open a packet socket on every interface, present and future, behind a filter.

    Bound to an ethertype, not to an interface: it sees incoming packets once, after
    VLAN tags and bridges are done with them, and outlives interfaces. A packet that
    slips in before the filter is attached does no harm: readers check it all again.
    """
    ethertype = _ETHERTYPES[socket.AddressFamily(family)]
    sock = _raw(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ethertype))
    attach(sock, program)
    widen(sock)
    sock.setblocking(False)
    return sock


def widen(sock: socket.socket) -> None:
    """Give a socket a large receive buffer, or the largest that this process may."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)


def open_sender(family: int) -> socket.socket:
    """Open a raw socket whose packets bring their own IP header (raw(7), IPPROTO_RAW)."""
    return _raw(family, socket.SOCK_RAW, socket.IPPROTO_RAW)


def _raw(family: int, kind: int, protocol: int) -> socket.socket:
    try:
        return socket.socket(family, kind, protocol)
    except PermissionError as why:
        hint = "run as root, or give the process CAP_NET_RAW"
        raise PrivilegeError("raw socket", "not permitted", hint) from why


def attach(sock: socket.socket, code: bytes) -> None:
    """Attach a program to a socket (socket(7), SO_ATTACH_FILTER); needs no privilege.

    A program that is there already is replaced in one step: no packet sees neither.
    """
    array = ctypes.create_string_buffer(code, len(code))
    fprog = struct.pack("HP", len(code) // 8, ctypes.addressof(array))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)


def replace(sock: socket.socket, code: bytes, meanwhile: bytes) -> bool:
    """Attach a long program by way of a short one; return False if only that fits.

    The kernel charges old and new together to net.core.optmem_max, which is 20,480 bytes
    before Linux 6.7: two long ones don't fit (ENOMEM).
    """
    attach(sock, meanwhile)
    try:
        attach(sock, code)
    except OSError as why:
        if why.errno != errno.ENOMEM:
            raise
        return False
    return True
