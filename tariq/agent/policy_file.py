"""Reading and checking ``agent.yml``: every mistake with line and column, and what is foolish."""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tariq import strict
from tariq.agent import schedule
from tariq.agent.policy import ALL, DAY, Grant, Limits, Network, Operator, Policy, Service
from tariq.errors import PolicyError

_HINT = "see docs/policy.md"


def _network(value: Any) -> Network:  # noqa: ANN401
    try:
        return ipaddress.ip_network(value if isinstance(value, str) else "")
    except ValueError:
        raise strict.Wrong("not a network such as 203.0.113.0/24, with no bits behind it") from None


def _several(item: strict.Check) -> strict.Check:
    """Return a check of one item or a list of them."""
    many = strict.listing(item, least=1)
    return lambda value: many(value if isinstance(value, list) else [value])


_SERVICE = strict.fields({"protocol": strict.one_of("tcp", "udp"), "port": strict.whole(1, 65_535)})
_GRANT: dict[str, strict.Check] = {
    "services": strict.listing(strict.name),
    "tasks": strict.listing(strict.name),
    "from": _several(_network),
    "hours": _several(schedule.span),
    "until": schedule.last_day,
    "longest": strict.whole(1, 366 * DAY),
}
_GROUP = strict.fields(_GRANT, required=set())
_OPERATOR = strict.fields(
    {
        "fingerprint": strict.fingerprint,
        "groups": strict.listing(strict.name),
        **_GRANT,
    },
    required={"fingerprint"},
)
_POLICY = strict.fields(
    {
        "version": strict.whole(1, 1),
        "serial": strict.whole(1, 1 << 31),
        "host": strict.text,
        "port": strict.whole(1, 65_535),
        "sentry_user": strict.text,
        "window": strict.whole(5, DAY),
        "default_lease": strict.whole(1, DAY),
        "require_source": strict.flag,
        "timezone": schedule.timezone,
        "services": strict.mapping(strict.name, _SERVICE),
        "default_service": strict.name,
        "operators": strict.mapping(strict.name, _OPERATOR),
        "groups": strict.mapping(strict.name, _GROUP),
        "tasks": strict.fields({}),
    },
    required={"version", "serial", "host", "port", "services", "operators"},
)
_ELSEWHERE = ("version", "tasks")
"""Fields of the file that are no fields of ``Policy``."""


def load(path: Path) -> Policy:
    """Read a policy; raise PolicyError, which names the first mistake and counts the others."""
    policy, mistakes = check(path)
    if policy is not None:
        return policy
    first, *others = mistakes
    more = f"'tariq agent check' tells of {len(others)} more" if others else _HINT
    raise PolicyError(first.thing, first.reason, more)


def check(path: Path) -> tuple[Policy | None, list[PolicyError]]:
    """Read a policy; return it, or every mistake. Raises PolicyError if it isn't YAML."""
    raw = strict.read(path, PolicyError, "name a policy that you may read")
    try:
        return _build(_POLICY(raw)), []
    except strict.Wrong as why:
        places = strict.Places(path)
        return None, [PolicyError(places.tell(each.where), each.reason, _HINT) for each in why.all]


def _build(raw: dict[str, Any]) -> Policy:
    if mistakes := list(_wrong_references(raw)):
        raise strict.Wrong.of(mistakes)
    fields = {name: value for name, value in raw.items() if name not in _ELSEWHERE}
    fields["services"] = {name: Service(**each) for name, each in raw["services"].items()}
    fields["groups"] = {name: _grant(each) for name, each in raw.get("groups", {}).items()}
    fields["operators"] = {
        name: Operator(each["fingerprint"], _grant(each), each.get("groups", ()))
        for name, each in raw["operators"].items()
    }
    return Policy(**fields)


def _grant(raw: Mapping[str, Any]) -> Grant:
    limits = Limits(raw.get("from", ()), raw.get("hours", ()), raw.get("until"), raw.get("longest"))
    return Grant(raw.get("services", ()), raw.get("tasks", ()), limits)


def _wrong_references(raw: Mapping[str, Any]) -> Iterator[strict.Wrong]:
    """Yield what names something that isn't there, or something twice."""
    known = {"services": raw["services"], "tasks": raw.get("tasks", {})}
    groups = raw.get("groups", {})
    default = raw.get("default_service")
    if default is not None and default not in known["services"]:
        yield strict.Wrong(f"no service {default!r} is defined", "default_service")
    for name, service in raw["services"].items():
        if name == ALL:
            yield strict.Wrong("that word stands for every service", f"services.{name}")
        if service["protocol"] == "tcp" and service["port"] == raw["port"]:
            yield strict.Wrong("the knock port itself can't be a service", f"services.{name}.port")
    for kind, holders in (("operators", raw["operators"]), ("groups", groups)):
        for name, holder in holders.items():
            yield from _unknown_names(f"{kind}.{name}", holder, known)
    for name, operator in raw["operators"].items():
        for at, group in enumerate(operator.get("groups", ())):
            if group not in groups:
                where = f"operators.{name}.groups.{at}"
                yield strict.Wrong(f"no group {group!r} is defined", where)
    yield from _repeated_keys(raw["operators"])


def _unknown_names(
    where: str, holder: Mapping[str, Any], known: Mapping[str, Any]
) -> Iterator[strict.Wrong]:
    for kind in ("services", "tasks"):
        for at, name in enumerate(holder.get(kind, ())):
            if name != ALL and name not in known[kind]:
                reason = f"no {kind[:-1]} {name!r} is defined"
                yield strict.Wrong(reason, f"{where}.{kind}.{at}")


def _repeated_keys(operators: Mapping[str, Any]) -> Iterator[strict.Wrong]:
    seen: dict[str, str] = {}
    for name, operator in operators.items():
        other = seen.setdefault(operator["fingerprint"], name)
        if other != name:
            yield strict.Wrong(f"{other} has the same key", f"operators.{name}.fingerprint")


# --- what is legal but foolish ------------------------------------------------------------


def warnings(policy: Policy, today: dt.date) -> Iterator[str]:
    """Yield what a policy's owner would want to know; the policy is good all the same."""
    yield from _unreachable_services(policy)
    used = {group for operator in policy.operators.values() for group in operator.groups}
    for name in policy.groups.keys() - used:
        yield f"groups.{name}: nobody is in it"
    for name, operator in policy.operators.items():
        if not any(grant.services or grant.tasks for _, grant in policy.grants_of(operator)):
            yield f"operators.{name}: may do nothing"
        for origin, grant in policy.grants_of(operator):
            if grant.limits.until is not None and grant.limits.until < today:
                yield f"operators.{name}: the last day of {origin} was {grant.limits.until}"
            if (grant.limits.longest or 0) > DAY:
                yield f"operators.{name}: leases of {origin} may last longer than a day"
    if policy.window > 600:
        yield "window: more than the 600 seconds that pictures count in has no effect"


def _unreachable_services(policy: Policy) -> Iterator[str]:
    given = {
        service
        for operator in policy.operators.values()
        for _, grant in policy.grants_of(operator)
        for service in grant.services
    }
    for name, service in policy.services.items():
        if given.isdisjoint({name, ALL}):
            extra = ": nobody could log in" if service == Service("tcp", 22) else ""
            yield f"services.{name}: no operator may open it{extra}"


def describe(policy: Policy) -> str:
    """Return one line about a good policy."""
    counts = {"services": policy.services, "operators": policy.operators, "groups": policy.groups}
    parts = [f"{len(each)} {name}" for name, each in counts.items() if each or name != "groups"]
    return f"policy {policy.serial} of {policy.host}, {', '.join(parts)}"
