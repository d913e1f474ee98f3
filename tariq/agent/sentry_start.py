"""The sentry's first steps: open its sockets, give up every right, and only then load a parser.

    python -m tariq.agent.sentry_start LINK [USER]

LINK is the path of the warden's socket (the sentry is a unit of its own, systemd gave it
CAP_NET_RAW and its user), or the number of an inherited descriptor (the warden started it
as root, and USER is who it becomes). Nothing that a stranger sent is read before
``give_up`` has returned: the sockets pass nothing (``sockets.DEAF``) until ``sentry`` lets them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import socket
import struct
import sys
import time

from tariq.errors import TariqError
from tariq.transport import sockets

CONNECT_SECONDS = 20.0
"""For so long the warden may take to listen; both units are started at once."""
_CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h


Opened = tuple[int, socket.socket, socket.socket]
"""Family, sniffer and sender."""


def open_sockets() -> list[Opened]:
    """Return the sockets for IPv4 and, where the kernel has it, IPv6.

    Raises PrivilegeError without CAP_NET_RAW.
    """
    opened = [_open(socket.AF_INET)]
    with contextlib.suppress(OSError):
        opened.append(_open(socket.AF_INET6))
    return opened


def _open(family: int) -> Opened:
    sender = sockets.open_sender(family)  # first: it fails where there is no such family
    return family, sockets.open_sniffer(family), sender


def give_up(user: str | None) -> None:
    """Become ``user``, if named, and give up every capability, for good (capabilities(7))."""
    if user is not None:
        entry = pwd.getpwnam(user)
        os.setgroups([])
        os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
        os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    if ctypes.CDLL(None, use_errno=True).capset(header, bytes(24)) != 0:
        sys.exit(f"tariq sentry: can't drop its capabilities: {os.strerror(ctypes.get_errno())}")


def connect(where: str) -> socket.socket:
    """Return the link to the warden; raise OSError if nobody listens for too long."""
    if where.isdecimal():
        return socket.socket(fileno=int(where))
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            link.connect(where)
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
        else:
            return link


def main(where: str, user: str | None = None) -> None:
    """Take the first steps and become the sentry."""
    try:
        opened = open_sockets()
        give_up(user)
        link = connect(where)
    except (TariqError, OSError) as why:
        sys.exit(f"tariq sentry: {why}")

    from tariq.agent import sentry

    sentry.main(link, opened)


if __name__ == "__main__":
    main(*sys.argv[1:])
