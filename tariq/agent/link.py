"""What passes between sentry and warden: small frames on one SOCK_SEQPACKET pair.

The socket keeps frames apart, so there is no stream to get out of step. The
warden trusts nothing in a ``Knock`` but its size: a forged one must still pass
GnuPG.
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tariq.errors import MessageError

MAX_FRAME = 8192
REPORT = 0
"""The number of a frame that is no knock but says what the sentry did with packets."""
REPORTED = (
    "looked at",
    "on another interface",
    *(f"refused at the {layer}" for layer in ("packet", "proof", "picture", "text")),
    "replayed",
    "over the limit",
    "passed on",
    "answers that could not be sent",
    "dropped by a full buffer",
    "filters without room for the mark (net.core.optmem_max)",
)
"""All that a report may count."""
_COUNT = re.compile(r"(\d{1,15}) (.+)", re.ASCII)
_KNOCK = struct.Struct("!I16s")
_REPLY = struct.Struct("!I")


@dataclass(frozen=True, slots=True)
class Setup:
    """What the sentry is told first: all that it ever knows."""

    port: int
    knock_key: str
    """Hexadecimal."""
    interfaces: Sequence[str] = ()
    """Where knocks may come in; none: everywhere."""
    other_key: str = ""
    """A second knock key that counts while the host changes from one to another."""

    def keys(self) -> tuple[bytes, ...]:
        """Return the one knock key, or both."""
        return tuple(bytes.fromhex(key) for key in (self.knock_key, self.other_key) if key)

    def encode(self) -> bytes:
        """Return JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, raw: bytes) -> Setup:
        """Read JSON from the warden, which is trusted."""
        return cls(**json.loads(raw))


@dataclass(frozen=True, slots=True)
class Knock:
    """Sentry to warden: OpenPGP bytes, and the address that they came from."""

    number: int
    source: str
    message: bytes

    def encode(self) -> bytes:
        """Return number, address as IPv6 (IPv4 mapped, RFC 4291, 2.5.5.2) and message."""
        ip = ipaddress.ip_address(self.source)
        packed = ip.packed if ip.version == 6 else b"\0" * 10 + b"\xff\xff" + ip.packed
        return _KNOCK.pack(self.number, packed) + self.message

    @classmethod
    def decode(cls, raw: bytes) -> Knock:
        """Read a frame; raise MessageError if it is too short to be one."""
        if len(raw) <= _KNOCK.size:
            raise MessageError("frame", "cut short")
        number, packed = _KNOCK.unpack_from(raw)
        ip = ipaddress.IPv6Address(packed)
        return cls(number, str(ip.ipv4_mapped or ip), raw[_KNOCK.size :])


@dataclass(frozen=True, slots=True)
class Reply:
    """Warden to sentry: the sealed receipt, or nothing for silence."""

    number: int
    message: bytes

    def encode(self) -> bytes:
        """Return number and message."""
        return _REPLY.pack(self.number) + self.message

    @classmethod
    def decode(cls, raw: bytes) -> Reply:
        """Read a frame from the warden, which is trusted."""
        (number,) = _REPLY.unpack_from(raw)
        return cls(number, raw[_REPLY.size :])


def read_report(message: bytes) -> dict[str, int]:
    """Return what a report counts (``packets: 12 looked at, 3 replayed``), and nothing else."""
    parts = message.decode("ascii", "replace").removeprefix("packets: ").split(", ")
    found = [match.groups() for part in parts if (match := _COUNT.fullmatch(part))]
    return {what: int(count) for count, what in found if what in REPORTED}


def pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends, the warden's first."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
