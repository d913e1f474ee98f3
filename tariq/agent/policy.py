"""The policy ``agent.yml``: services, operators, groups of them, and what each may do.

This file holds what a policy *is* and decides; ``policy_file`` reads and checks one.
What an operator may do is the sum of its grants: its own, and those of its groups. Limits
of a group narrow what that group gives; limits of an operator narrow all that it has.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tariq.agent import schedule
from tariq.agent.tasks import Task

DAY = 86_400
LONGEST = 3600
"""Seconds, where neither a group nor the operator says."""
LONGEST_LEASE = 24 * DAY
"""Seconds that any policy may allow: what ipset's timers hold, ipset(8)."""
ALL = "all"
"""In a list of services or tasks: every one that the policy has."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Address and port on another host."""

    address: str
    port: int

    @property
    def version(self) -> int:
        """The IP version, 4 or 6."""
        return 6 if ":" in self.address else 4

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.version == 6 else self.address
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Service:
    """A guarded protocol and port: two with the same are the same to the firewall.

    ``forward``: where it really is, if on another host, one per IP version at most;
    ``masquerade``: that host sees this one's address, not the knocker's.
    """

    protocol: str
    port: int
    forward: tuple[Endpoint, ...] = field(default=(), compare=False)
    masquerade: bool = field(default=False, compare=False)

    def forward_of(self, version: int) -> Endpoint | None:
        """Return where it really is for one IP version, if on another host."""
        return next((each for each in self.forward if each.version == version), None)


def wrong_family(name: str, service: Service, source: str) -> str | None:
    """Return why an address can't reach a service that is passed on to another host."""
    version = ipaddress.ip_address(source).version
    if not service.forward or service.forward_of(version):
        return None
    return f"{name} is at {service.forward[0]}, without IPv{version}: knock with -{10 - version}"


@dataclass(frozen=True, slots=True)
class Limits:
    """From where, when, until which day (inclusive), and for how many seconds at most."""

    networks: tuple[Network, ...] = ()
    hours: tuple[schedule.Span, ...] = ()
    until: dt.date | None = None
    longest: int | None = None

    def refuses(self, source: str, when: dt.datetime) -> str | None:
        """Return why these limits refuse an address at a local time, or None."""
        address = ipaddress.ip_address(source)
        if self.networks and not any(address in network for network in self.networks):
            return f"{source} is in none of {', '.join(map(str, self.networks))}"
        if self.until is not None and when.date() > self.until:
            return f"{self.until} was the last day"
        if not schedule.holds(self.hours, when):
            return (
                f"{when:%a %H:%M} is not in {', '.join(span.text for span in self.hours)}".lower()
            )
        return None


@dataclass(frozen=True, slots=True)
class Grant:
    """What somebody may do, within limits."""

    services: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)

    def names(self, kind: str) -> tuple[str, ...]:
        """Return the names of ``services`` or ``tasks``."""
        return self.services if kind == "services" else self.tasks


@dataclass(frozen=True, slots=True)
class Operator:
    """A key, a grant of its own, and the groups that it is in."""

    fingerprint: str
    own: Grant
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether something is allowed, why, and the longest lease in seconds."""

    ok: bool
    why: str
    longest: int = 0


@dataclass(frozen=True, slots=True)
class Policy:
    """A whole policy; ``window`` is how many seconds a knock's clock may be off."""

    serial: int
    host: str
    port: int
    services: Mapping[str, Service]
    operators: Mapping[str, Operator]
    groups: Mapping[str, Grant] = field(default_factory=dict)
    tasks: Mapping[str, Task] = field(default_factory=dict)
    default_service: str | None = None
    sentry_user: str = "tariq-sentry"
    window: int = 60
    default_lease: int = 30
    require_source: bool = False
    audit_days: int = 400
    interfaces: tuple[str, ...] = ()
    """Where knocks may come in; none: everywhere."""
    firewall: str = "auto"
    mark: int = 0
    break_glass: tuple[Network, ...] = ()
    timezone: dt.tzinfo = dt.UTC

    def operator_of(self, fingerprint: str) -> tuple[str, Operator] | None:
        """Return the operator whose key that is."""
        for name, operator in self.operators.items():
            if operator.fingerprint == fingerprint:
                return name, operator
        return None

    def grants_of(self, operator: Operator) -> Iterator[tuple[str, Grant]]:
        """Yield what an operator has, and from where it has it."""
        yield "its own", operator.own
        for name in operator.groups:
            yield f"group {name}", self.groups[name]

    def depends_on_source(self, name: str, kind: str, what: str) -> bool:
        """Tell whether ``may`` has to know the address to decide."""
        operator = self.operators[name]
        grants = [
            grant
            for _, grant in self.grants_of(operator)
            if not {what, ALL}.isdisjoint(grant.names(kind))
        ]
        limits = [operator.own.limits, *(grant.limits for grant in grants)]
        return bool(grants) and any(each.networks for each in limits)

    def may(self, name: str, kind: str, what: str, source: str, now: float) -> Decision:
        """Decide whether an operator may use a service or run a task, and say why.

        ``kind`` is ``services`` or ``tasks``, ``source`` an address, ``now`` in Unix seconds.
        """
        operator = self.operators[name]
        when = dt.datetime.fromtimestamp(now, self.timezone)
        if why := operator.own.limits.refuses(source, when):
            return Decision(False, f"{name}: {why}")
        found, reasons = [], []
        for origin, grant in self.grants_of(operator):
            if {what, ALL}.isdisjoint(grant.names(kind)):
                continue
            if why := grant.limits.refuses(source, when):
                reasons.append(f"{origin}: {why}")
            else:
                found.append((grant.limits.longest or LONGEST, origin))
        if not found:
            return Decision(False, "; ".join(reasons) or f"{name} has no {what} among its {kind}")
        longest, origin = max(found)
        return Decision(True, f"by {origin}", min(longest, operator.own.limits.longest or longest))
