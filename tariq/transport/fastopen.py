"""The client's transport without root: the kernel's own TCP Fast Open SYN.

``TCP_FASTOPEN_NO_COOKIE`` (linux/tcp.h; tcp(7)) lets ``MSG_FASTOPEN`` put data on
a SYN without a cookie (RFC 7413 describes the option that is left out). The SYN is the
client kernel's own, so nothing in its header tells it from any other.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
import time

from tariq.errors import TransportError
from tariq.transport.base import MAX_ANSWER, Fate, NoAnswer

_TCP_FASTOPEN_NO_COOKIE = 34
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: close() sends a reset, so no FIN is retransmitted."""
_FATES = {
    errno.ECONNREFUSED: Fate.REFUSED,
    errno.ECONNRESET: Fate.REFUSED,
    errno.EHOSTUNREACH: Fate.UNREACHABLE,
    errno.ENETUNREACH: Fate.UNREACHABLE,
    errno.EADDRNOTAVAIL: Fate.UNREACHABLE,
    errno.ETIMEDOUT: Fate.SILENT,
}


class FastOpen:
    """Knock with one ordinary TCP socket."""

    def exchange(self, address: str, port: int, payload: bytes, seconds: float) -> bytes:
        """See ``base.Transport``."""
        deadline = time.monotonic() + seconds
        family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            try:
                _send_on_syn(sock, (address, port), payload)
                return _read_all(sock, deadline)
            except TimeoutError as why:
                raise NoAnswer(Fate.SILENT) from why
            except OSError as why:
                if why.errno in _FATES:
                    raise NoAnswer(_FATES[why.errno]) from why
                raise TransportError(f"{address} port {port}", f"can't knock: {why}") from why


def _send_on_syn(sock: socket.socket, to: tuple[str, int], payload: bytes) -> None:
    hint = "set sysctl net.ipv4.tcp_fastopen=1, or use --transport scapy as root"
    try:
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_FASTOPEN_NO_COOKIE, 1)
        sock.setblocking(False)
        sent = sock.sendto(payload, socket.MSG_FASTOPEN, to)
    except BlockingIOError as why:  # the kernel sent a SYN without the data
        raise TransportError("fast open", "this kernel holds it back just now", hint) from why
    except OSError as why:
        if why.errno in (errno.EOPNOTSUPP, errno.ENOPROTOOPT):
            raise TransportError("fast open", "switched off on this machine", hint) from why
        raise
    if sent != len(payload):
        reason = f"this path's packets carry only {sent} of {len(payload)} bytes"
        raise TransportError("fast open", reason, "use --transport scapy, or a larger mtu")


def _read_all(sock: socket.socket, deadline: float) -> bytes:
    answer = b""
    while len(answer) < MAX_ANSWER:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            part = sock.recv(MAX_ANSWER - len(answer))
        except ConnectionResetError:
            if answer:  # the host's kernel spoke up after the agent did
                break
            raise
        if not part:
            break
        answer += part
    if not answer:
        raise NoAnswer(Fate.REFUSED)
    return answer
