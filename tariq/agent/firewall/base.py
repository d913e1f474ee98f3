"""What a firewall backend is. One file per implementation."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tariq.agent.policy import Network, Policy, Service
from tariq.errors import FirewallError

CUT_SECONDS = 86_400
"""For so long a connection that was cut can't come back; longer than any kernel holds an
unanswered one (tcp_retries2 gives up within half an hour, tcp(7))."""
ENDLESS = -1
"""The seconds of what another program put among the leases without an end."""
SBIN = ("/usr/sbin", "/sbin")


@dataclass(frozen=True, slots=True)
class Lease:
    """One address may reach one service for so many more seconds."""

    address: str
    service: Service
    seconds: int


@dataclass(frozen=True, slots=True)
class Guard:
    """What a policy asks of the firewall, apart from leases."""

    port: int
    services: tuple[Service, ...]
    break_glass: tuple[Network, ...] = ()
    mark: int = 0

    @classmethod
    def of(cls, policy: Policy) -> Guard:
        """Return what a policy asks for."""
        return cls(policy.port, tuple(policy.services.values()), policy.break_glass, policy.mark)

    def networks(self, version: int) -> list[str]:
        """Return the networks of one IP version that need no lease."""
        return [str(each) for each in self.break_glass if each.version == version]


class Firewall(Protocol):
    """A backend; every call raises FirewallError if it can't do what it says."""

    name: str
    """As a policy names it."""
    every: float
    """Seconds between two looks at whether the guard stands: what a look costs differs."""

    def check(self) -> None:
        """Find out whether this host's kernel and programs can do all of this; change nothing."""

    def guard(self, wanted: Guard) -> None:
        """Drop the knock port, and the services for all without a lease.

        Replaces an earlier guard in one step; leases that exist live on.
        """

    def unguard(self) -> None:
        """Take away every trace; not an error where there is none."""

    def intact(self) -> bool:
        """Tell whether what the last ``guard`` put up is still there, whole."""

    def open(self, leases: Iterable[Lease]) -> None:
        """Grant or prolong leases, all or none; the kernel itself ends them."""

    def close(self, leases: Iterable[Lease], *, cut: bool = False) -> None:
        """End leases now; not an error where there is none.

        ``cut``: connections of these addresses to these services don't live on either.
        """

    def leases(self) -> list[Lease]:
        """Return the leases that the kernel holds; none if there is no guard.

        Also those that are ``ENDLESS``, which no lease of ours is.
        """


def find(program: str, package: str) -> str:
    """Return the path of a system's program; raise FirewallError where it is missing."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *SBIN])
    found = shutil.which(program, path=path)
    if found is None:
        raise FirewallError(program, "not found on this machine", f"apt install {package}")
    return found


def call(command: Sequence[str], text: str = "", fine: str | None = None) -> str:
    """Run a program and return what it prints; raise FirewallError if it fails.

    A failure that says ``fine`` is none.
    """
    thing = command[0].rpartition("/")[2]
    try:
        done = subprocess.run(
            command, input=text, text=True, capture_output=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as why:
        raise FirewallError(thing, f"can't be run: {why}", "see the agent's log") from why
    if done.returncode != 0 and (fine is None or fine not in done.stderr):
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise FirewallError(thing, lines[0], "needs root and kernel support (netfilter)")
    return done.stdout
