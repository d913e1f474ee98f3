"""What a client's transport is."""

from __future__ import annotations

import socket
from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

from tariq.errors import TransportError

MAX_ANSWER = 4096
"""Bytes of an answer that a client reads: over twice what one segment carries."""


class Fate(StrEnum):
    """Why a knock brought no answer."""

    SILENT = "silent"
    UNREACHABLE = "unreachable"
    REFUSED = "refused"


class NoAnswer(Exception):
    """One try ended without an answer; ``fate`` tells how."""

    def __init__(self, fate: Fate) -> None:
        super().__init__(fate.value)
        self.fate = fate


class Transport(Protocol):
    """Sends one payload and waits for one answer."""

    def exchange(self, address: str, port: int, payload: bytes, seconds: float) -> bytes:
        """Return the answer; raise NoAnswer, or TransportError if this machine can't send."""


def source_towards(address: str, port: int) -> str | None:
    """Return the address that the kernel would send from, or None; nothing is sent."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, port))
        except OSError:
            return None
        return str(probe.getsockname()[0])


def _fastopen() -> Transport:
    from tariq.transport.fastopen import FastOpen

    return FastOpen()


def _scapy() -> Transport:
    try:
        from tariq.transport.crafted import Crafted
    except ImportError as why:
        hint = "pip install 'tariq[agent]', or use --transport fastopen"
        raise TransportError("transport scapy", "scapy is not installed", hint) from why
    return Crafted()


TRANSPORTS: dict[str, Callable[[], Transport]] = {"fastopen": _fastopen, "scapy": _scapy}
"""Makers by name; what a maker needs is imported only when it is asked for."""
