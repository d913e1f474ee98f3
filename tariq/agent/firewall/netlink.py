"""Delete an nftables table with nothing but a socket.

The door for emergencies must not hang on a library that may be what is broken.
netlink(7); linux/netfilter/nfnetlink.h and nf_tables.h name the numbers.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from tariq.errors import FirewallError

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_DELETE_TABLE = _SUBSYSTEM << 8 | 2
_INET = 1  # NFPROTO_INET
_TABLE_NAME = 1  # NFTA_TABLE_NAME
_REQUEST, _ACK = 0x01, 0x04
_ERROR = 2  # NLMSG_ERROR: carries 0 for an acknowledgement
_SECONDS = 10.0


def delete_inet_table(name: str) -> None:
    """Delete a table of the family inet with all in it; not an error where there is none.

    Raise FirewallError if the kernel refuses.
    """
    value = name.encode() + b"\0"
    attribute = struct.pack("=HH", 4 + len(value), _TABLE_NAME) + value
    attribute += bytes(-len(attribute) % 4)
    # one transaction is several messages between a begin and an end
    batch = _message(_BATCH_BEGIN, _REQUEST, 0, _SUBSYSTEM)
    batch += _message(_DELETE_TABLE, _REQUEST | _ACK, _INET, 0, attribute)
    batch += _message(_BATCH_END, _REQUEST, 0, _SUBSYSTEM)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as sock:
            sock.settimeout(_SECONDS)
            sock.sendto(batch, (0, 0))
            failed = _error(sock.recv(65_536))
    except OSError as why:
        raise FirewallError("nftables", (why.strerror or str(why)).lower(), "run as root") from why
    if failed not in (0, errno.ENOENT):
        raise FirewallError("nftables", os.strerror(failed).lower(), "see 'nft list ruleset'")


def _message(kind: int, flags: int, family: int, resource: int, attributes: bytes = b"") -> bytes:
    """Return one message: nlmsghdr, nfgenmsg (its resource is big-endian), attributes."""
    body = struct.pack("=BB", family, 0) + struct.pack("!H", resource) + attributes
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 0, 0) + body


def _error(answer: bytes) -> int:
    """Return the errno of an answer, which is a nlmsgerr."""
    kind = int(struct.unpack_from("=H", answer, 4)[0])
    return -int(struct.unpack_from("=i", answer, 16)[0]) if kind == _ERROR else errno.EBADMSG
