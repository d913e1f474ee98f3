"""What a firewall backend is. One file per implementation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from tariq.agent.policy import Service


@dataclass(frozen=True, slots=True)
class Lease:
    """One address may reach one service for so many more seconds."""

    address: str
    service: Service
    seconds: int


class Firewall(Protocol):
    """Changes are atomic: each call does all of its work or raises FirewallError."""

    def guard(self, knock_port: int, services: Iterable[Service]) -> None:
        """Drop the knock port and these services for all without a lease.

        Replaces an earlier guard in one step; leases that exist live on.
        """

    def unguard(self) -> None:
        """Take away every trace; not an error where there is none."""

    def open(self, lease: Lease) -> None:
        """Grant or prolong a lease; the kernel itself ends it."""

    def close(self, address: str, service: Service) -> None:
        """End a lease now; not an error where there is none."""

    def leases(self) -> list[Lease]:
        """Return the leases that the kernel holds."""
