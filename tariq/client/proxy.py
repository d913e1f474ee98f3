"""``tariq proxy``: knock, connect, and relay; for ssh's ProxyCommand, and so for Ansible."""

from __future__ import annotations

import os
import selectors
import socket

from tariq.errors import TransportError

_CHUNK = 65_536
_SECONDS = 10.0


def connect(address: str, port: int) -> socket.socket:
    """Connect; raise TransportError."""
    try:
        sock = socket.create_connection((address, port), _SECONDS)
    except OSError as why:
        hint = "see what is open with 'tariq status', and that the service runs"
        raise TransportError(f"{address} port {port}", f"{why}".lower(), hint) from why
    sock.settimeout(None)
    return sock


def relay(sock: socket.socket, reader: int, writer: int) -> None:
    """Copy both ways between a connection and two descriptors until the host closes."""
    # poll(2) and not epoll(7): that refuses what is neither pipe nor socket, such as /dev/null
    with selectors.PollSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        selector.register(reader, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd == reader:
                    if not _forward(reader, sock):
                        selector.unregister(reader)
                elif not _back(sock, writer):
                    return


def _forward(reader: int, sock: socket.socket) -> bool:
    data = os.read(reader, _CHUNK)
    try:
        if data:
            sock.sendall(data)
        else:
            sock.shutdown(socket.SHUT_WR)
    except OSError:
        return False
    return bool(data)


def _back(sock: socket.socket, writer: int) -> bool:
    try:
        data = sock.recv(_CHUNK)
    except OSError:
        return False
    left = memoryview(data)
    while left:
        left = left[os.write(writer, left) :]
    return bool(data)
