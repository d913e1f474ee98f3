"""Reading and checking ``agent.yml``: every mistake with line and column, and what is foolish."""

from __future__ import annotations

import datetime as dt
import grp
import ipaddress
import os
import pwd
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tariq import strict
from tariq.agent import schedule, tasks
from tariq.agent.pattern import Pattern
from tariq.agent.policy import (
    ALL,
    DAY,
    LONGEST_LEASE,
    Endpoint,
    Grant,
    Limits,
    Network,
    Operator,
    Policy,
    Service,
)
from tariq.agent.tasks import Choice, Int, Task, Text
from tariq.errors import PolicyError
from tariq.message import MAX_VALUE

_HINT = "see docs/policy.md"
_BROADCAST = ipaddress.IPv4Address("255.255.255.255")
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_PLACE = re.compile(r"(?:\[(?P<v6>[0-9a-f:.]+)\]|(?P<v4>[0-9.]+)):(?P<port>[0-9]{1,5})", re.I)


def _network(value: Any) -> Network:  # noqa: ANN401
    try:
        network = ipaddress.ip_network(value if isinstance(value, str) else "")
    except ValueError:
        raise strict.Wrong("not a network such as 203.0.113.0/24, with no bits behind it") from None
    if network.version == 6 and network.subnet_of(_MAPPED):
        plain = (int(network.network_address) & 0xFFFF_FFFF, network.prefixlen - 96)
        raise strict.Wrong(f"matches nobody; write {ipaddress.IPv4Network(plain)}")
    return network


def _host(value: Any) -> str:  # noqa: ANN401
    name = strict.text(value)
    if len(name) > 253 or not name.isprintable():
        raise strict.Wrong("not a host's name: up to 253 printable characters")
    return name


def _several(item: strict.Check, least: int = 0) -> strict.Check:
    """Return a check of one item or a list of them."""
    many = strict.listing(item, least)
    return lambda value: many(value) if isinstance(value, list) else (item(value),)


def _interface(value: Any) -> str:  # noqa: ANN401
    """Check a name as dev_valid_name() in net/core/dev.c does."""
    name = strict.text(value)
    if len(name.encode()) > 15 or name in (".", "..") or re.search(r"[/:\s]", name):
        raise strict.Wrong("not the name of a network interface, such as eth0")
    return name


def _unprivileged(value: Any) -> str:  # noqa: ANN401
    """Check a user, who may be absent from this machine: the policy may be another's."""
    name = strict.text(value)
    if _exists(pwd.getpwnam, name) and pwd.getpwnam(name).pw_uid == 0:
        raise strict.Wrong("must not be root: name an unprivileged user")
    return name


def _endpoint(value: Any) -> Endpoint:  # noqa: ANN401
    wrong = strict.Wrong("not a place such as 10.0.0.5:22 or '[fd00::5]:22'")
    match = _PLACE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise wrong
    kind = ipaddress.IPv6Address if match["v6"] else ipaddress.IPv4Address
    try:
        address = kind(match["v6"] or match["v4"])
    except ValueError:
        raise wrong from None
    here = address.is_unspecified or address.is_loopback or address.is_multicast
    if here or address in _MAPPED or address == _BROADCAST:
        raise strict.Wrong("not the address of another host")
    return Endpoint(str(address), strict.whole(1, 65_535)(int(match["port"])))


FIREWALLS = ("auto", "nftables", "iptables", "iptables-nft", "iptables-legacy")
_SERVICE = strict.fields(
    {
        "protocol": strict.one_of("tcp", "udp"),
        "port": strict.whole(1, 65_535),
        "forward": _several(_endpoint, least=1),
        "masquerade": strict.flag,
    },
    required={"protocol", "port"},
)


def _param(value: Any) -> tasks.Param:  # noqa: ANN401
    """Check one parameter: exactly one of ``int``, ``choice`` and ``pattern``."""
    if not isinstance(value, dict) or len(value.keys() & _PARAMS) != 1:
        raise strict.Wrong("not a mapping with one of int, choice, pattern")
    (kind,) = value.keys() & _PARAMS
    raw = _PARAMS[kind](value)
    if kind == "int":
        low, high = raw["int"]
        return Int(low, high)
    if kind == "choice":
        return Choice(raw["choice"])
    return Text(raw["pattern"], raw.get("length", 64), raw.get("dash", False))


def _pattern(value: Any) -> Pattern:  # noqa: ANN401
    try:
        return Pattern(strict.text(value))
    except ValueError as why:
        raise strict.Wrong(str(why)) from None


def _range(value: Any) -> tuple[int, int]:  # noqa: ANN401
    ends = _INTS(value)
    if len(ends) != 2 or ends[0] > ends[1]:
        raise strict.Wrong("not a range such as [1, 9]")
    return ends[0], ends[1]


def _word(value: Any) -> str:  # noqa: ANN401
    if not isinstance(value, str) or not (value.isascii() and value.isprintable()) or not value:
        raise strict.Wrong("not a word of printable ascii (numbers need quotes)")
    return value


def _absolute(value: Any) -> str:  # noqa: ANN401
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise strict.Wrong("not an absolute path")
    return value


def _argv(value: Any) -> tuple[str, ...]:  # noqa: ANN401
    """Check an argv: a program by its absolute path, and templates."""
    items: tuple[str, ...] = strict.listing(strict.text, least=1)(value)
    for at, item in enumerate(items):
        try:
            parts = list(tasks.template(item))
        except ValueError as why:
            raise strict.Wrong(str(why), str(at)) from None
        if "\0" in item:
            raise strict.Wrong("no argument can hold a zero byte", str(at))
        if at == 0 and (not item.startswith("/") or any(name for _, name in parts)):
            reason = "not the absolute path of a program, without placeholders"
            raise strict.Wrong(reason, "0")
    return items


_INTS = strict.listing(strict.whole(-(10**15) + 1, 10**15 - 1))
_PARAMS = {
    "int": strict.fields({"int": _range}),
    "choice": strict.fields({"choice": strict.listing(_word, least=1)}),
    "pattern": strict.fields(
        {
            "pattern": _pattern,
            "length": strict.whole(1, MAX_VALUE),
            "dash": strict.flag,
        },
        required={"pattern"},
    ),
}
_TASK = strict.fields(
    {
        "argv": _argv,
        "params": strict.mapping(strict.name, _param),
        "user": strict.text,
        "group": strict.text,
        "cwd": _absolute,
        "seconds": strict.whole(1, DAY, "seconds"),
        "output": strict.whole(0, 16 << 20),
        "concurrent": strict.flag,
    },
    required={"argv", "user"},
)
_GRANT: dict[str, strict.Check] = {
    "services": _several(strict.name),
    "tasks": _several(strict.name),
    "from": _several(_network, least=1),
    "hours": _several(schedule.span, least=1),
    "until": schedule.last_day,
    "longest": strict.whole(1, LONGEST_LEASE, "seconds"),
}
_GROUP = strict.fields(_GRANT, required=set())
_OPERATOR = strict.fields(
    {
        "fingerprint": strict.fingerprint,
        "groups": _several(strict.name),
        **_GRANT,
    },
    required={"fingerprint"},
)
FIELDS: dict[str, strict.Check] = {
    "version": strict.whole(1, 1),
    "serial": strict.whole(1, 1 << 31),
    "host": _host,
    "port": strict.whole(1, 65_535),
    "sentry_user": _unprivileged,
    "window": strict.whole(5, DAY, "seconds"),
    "default_lease": strict.whole(1, DAY, "seconds"),
    "require_source": strict.flag,
    "audit_days": strict.whole(1, 36_500),
    "firewall": strict.one_of(*FIREWALLS),
    "mark": strict.whole(1, 0xFFFF_FFFF),
    "break_glass": _several(_network),
    "timezone": schedule.timezone,
    "services": strict.mapping(strict.name, _SERVICE),
    "default_service": strict.name,
    "operators": strict.mapping(strict.name, _OPERATOR),
    "groups": strict.mapping(strict.name, _GROUP),
    "interfaces": _several(_interface, least=1),
    "tasks": strict.mapping(strict.name, _TASK),
}
"""Fields of a policy; a test holds the role and docs/policy.md to them."""
_POLICY = strict.fields(
    FIELDS,
    required={"version", "serial", "host", "port", "services", "operators"},
)
_ELSEWHERE = ("version",)
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
        good, wrong = _POLICY(raw), []
    except strict.Wrong as why:
        good, wrong = why.rest, why.all
    wrong += _wrong_references(good or {})
    if not wrong:
        return _build(good), []
    places = strict.Places(path)
    return None, [PolicyError(places.tell(each.where), each.reason, _HINT) for each in wrong]


def _build(raw: dict[str, Any]) -> Policy:
    fields = {name: value for name, value in raw.items() if name not in _ELSEWHERE}
    fields["services"] = {name: Service(**each) for name, each in raw["services"].items()}
    fields["tasks"] = {name: Task(**each) for name, each in raw.get("tasks", {}).items()}
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
    """Yield what names something that isn't there, or something twice.

    A field that is wrong in itself is None here, or not there: nothing more is said of it.
    """
    default = raw.get("default_service")
    if default is not None:
        yield from _unknown_names(raw, "services", [("default_service", default)])
    yield from _wrong_services(_named(raw, "services"), raw.get("port"))
    yield from _wrong_placeholders(_named(raw, "tasks"))
    for holders in ("operators", "groups"):
        for name, holder in _named(raw, holders).items():
            for kind in ("services", "tasks", "groups"):
                named = enumerate(holder.get(kind) or ())
                where = f"{holders}.{name}.{kind}"
                yield from _unknown_names(
                    raw, kind, [(f"{where}.{at}", each) for at, each in named]
                )
    yield from _repeated_keys(_named(raw, "operators"))


def _named(raw: Mapping[str, Any], kind: str) -> dict[str, Mapping[str, Any]]:
    """Return the services, tasks, groups or operators, with what of each is good."""
    return {name: each or {} for name, each in (raw.get(kind) or {}).items()}


def _wrong_placeholders(known: Mapping[str, Any]) -> Iterator[strict.Wrong]:
    """Yield placeholders without a parameter, and parameters without a placeholder."""
    for name, task in known.items():
        if name == ALL:
            yield strict.Wrong("that word stands for every task", f"tasks.{name}")
        params, argv, used = task.get("params", {}), task.get("argv"), set()
        if params is None or argv is None:
            continue
        for at, item in enumerate(argv):
            named = {param for _, param in tasks.template(item) if param}
            used |= named
            for param in sorted(named - params.keys()):
                yield strict.Wrong(f"no parameter {param!r}", f"tasks.{name}.argv.{at}")
        for param in sorted(name for name in params.keys() - used if params[name] is not None):
            yield strict.Wrong("no argument uses it", f"tasks.{name}.params.{param}")


def _wrong_services(known: Mapping[str, Any], knock_port: int | None) -> Iterator[strict.Wrong]:
    seen: dict[tuple[str, int], str] = {}
    for name, service in known.items():
        where, protocol, port = f"services.{name}", service.get("protocol"), service.get("port")
        target = service.get("forward", ())
        if name == ALL:
            yield strict.Wrong("that word stands for every service", where)
        if protocol == "tcp" and port is not None and port == knock_port:
            yield strict.Wrong("the knock port itself can't be a service", f"{where}.port")
        if protocol and port and (other := seen.setdefault((protocol, port), name)) != name:
            yield strict.Wrong(f"{other} has the same protocol and port", f"{where}.port")
        if target and None not in target and len({each.version for each in target}) < len(target):
            yield strict.Wrong("two places of the same ip version", f"{where}.forward")
        if service.get("masquerade") and target == ():
            yield strict.Wrong("only for a service with 'forward'", f"{where}.masquerade")


def _unknown_names(
    raw: Mapping[str, Any], kind: str, named: Iterable[tuple[str, str | None]]
) -> Iterator[strict.Wrong]:
    known = raw.get(kind, {})
    for where, name in named:
        every = name == ALL and kind != "groups" and where != "default_service"
        if known is not None and name is not None and name not in known and not every:
            yield strict.Wrong(f"no {kind[:-1]} {name!r} is defined", where)


def _repeated_keys(operators: Mapping[str, Any]) -> Iterator[strict.Wrong]:
    seen: dict[str, str] = {}
    for name, operator in operators.items():
        key = operator.get("fingerprint")
        if key and (other := seen.setdefault(key, name)) != name:
            yield strict.Wrong(f"{other} has the same key", f"operators.{name}.fingerprint")


def absent(path: Path, policy: Policy, keys: Mapping[str, str] | None) -> list[PolicyError]:
    """Return what this machine lacks for an agent to start with a policy, which is the machine's.

    ``keys``: fingerprints of the operators' keys that are there; None if that isn't known.
    """
    places = strict.Places(path)
    found = []
    if not _exists(pwd.getpwnam, policy.sentry_user):
        hint = f"useradd --system {policy.sentry_user}"
        found.append(PolicyError(places.tell("sentry_user"), _no_user(policy.sentry_user), hint))
    for name, operator in policy.operators.items():
        if keys is not None and operator.fingerprint not in keys:
            reason = f"no key {operator.fingerprint} in operators/ beside the policy"
            where = places.tell(f"operators.{name}.fingerprint")
            found.append(PolicyError(where, reason, f"put {name}'s public key there as {name}.asc"))
    return found


# --- what is legal but foolish ------------------------------------------------------------


def warnings(policy: Policy, today: dt.date) -> Iterator[str]:
    """Yield what a policy's owner would want to know; the policy is good all the same."""
    if not _exists(pwd.getpwnam, policy.sentry_user):
        yield f"sentry_user: {_no_user(policy.sentry_user)}"
    yield from _unreachable_services(policy, today)
    four = [each for each in policy.break_glass if isinstance(each, ipaddress.IPv4Network)]
    six = [each for each in policy.break_glass if isinstance(each, ipaddress.IPv6Network)]
    whole: list[Network] = [
        *ipaddress.collapse_addresses(four),
        *ipaddress.collapse_addresses(six),
    ]
    for network in whole:
        if network.prefixlen == 0:
            yield f"break_glass: {network} is everybody: nothing is guarded from them"
    yield from _idle_names(policy)
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
    for name, task in policy.tasks.items():
        yield from (f"tasks.{name}: {why}" for why in _foolish_task(name, task, policy, today))
    if policy.window > 600:
        yield "window: more than the 600 seconds that pictures count in has no effect"


def key_warnings(policy: Policy, keys: Mapping[str, str]) -> Iterator[str]:
    """Yield what is wrong with operators' keys: expired or revoked, or nobody's."""
    for name, operator in policy.operators.items():
        if state := keys.get(operator.fingerprint):
            yield f"operators.{name}: its key is {state}"
    listed = {operator.fingerprint for operator in policy.operators.values()}
    yield from (f"operators/: key {key} is nobody's in the policy" for key in keys.keys() - listed)


def _idle_names(policy: Policy) -> Iterator[str]:
    grants = {f"groups.{name}": grant for name, grant in policy.groups.items()}
    grants |= {f"operators.{name}": operator.own for name, operator in policy.operators.items()}
    for where, grant in grants.items():
        for kind in ("services", "tasks"):
            names = grant.names(kind)
            if len(set(names)) < len(names):
                yield f"{where}.{kind}: a name twice"
            if ALL in names and set(names) != {ALL}:
                yield f"{where}.{kind}: all, and others that are among all"


def _unreachable_services(policy: Policy, today: dt.date) -> Iterator[str]:
    given = {service for grant in _grants_of(policy, today) for service in grant.services}
    for name, service in policy.services.items():
        if given.isdisjoint({name, ALL}):
            extra = ": nobody could log in" if service == Service("tcp", 22) else ""
            yield f"services.{name}: no operator may open it{extra}"
            if name == policy.default_service:
                yield "default_service: no operator may open it, so every bare knock is denied"


def _foolish_task(name: str, task: Task, policy: Policy, today: dt.date) -> Iterator[str]:
    given = {each for grant in _grants_of(policy, today) for each in grant.tasks}
    if given.isdisjoint({name, ALL}):
        yield "no operator may run it"
    if not _exists(pwd.getpwnam, task.user):
        yield _no_user(task.user)
    if task.group is not None and not _exists(grp.getgrnam, task.group):
        yield f"no group {task.group!r} on this machine"
    for param, kind in task.params.items():
        if task.user == "root" and isinstance(kind, Text) and kind.free:
            yield f"runs as root, and {param} may be nearly anything"
    for param in tasks.in_shell(task.argv):
        yield f'{param} becomes part of a shell\'s program; pass it after that, and use "$1"'
    yield from _foolish_path(Path(task.argv[0]), "program")
    yield from _foolish_path(Path(task.cwd), "cwd")


def _foolish_path(path: Path, what: str) -> Iterator[str]:
    """Yield what is wrong with a path: whoever may write it, or above it, decides what is done."""
    if what == "program" and not (path.is_file() and os.access(path, os.X_OK)):
        yield f"no program {path} on this machine"
    elif what == "cwd" and not path.is_dir():
        yield f"no directory {path} on this machine"
    for each in (path, *path.parents):
        try:
            found = each.stat()
        except OSError:
            continue
        sticky = each != path and found.st_mode & stat.S_ISVTX
        if found.st_mode & 0o022 and not sticky:
            yield f"{what} {each} can be written by others than its owner"
        elif what == "program" and found.st_uid not in (0, os.geteuid()):
            yield f"{what} {each} belongs to a user that isn't root"


def _no_user(name: str) -> str:
    return f"no user {name!r} on this machine"


def _exists(look_up: Callable[[str], object], name: str) -> bool:
    try:
        look_up(name)
    except KeyError:
        return False
    return True


def _grants_of(policy: Policy, today: dt.date) -> Iterator[Grant]:
    """Yield what operators have whose last day isn't over."""
    for operator in policy.operators.values():
        for _, grant in policy.grants_of(operator):
            ends = (operator.own.limits.until, grant.limits.until)
            if all(end is None or end >= today for end in ends):
                yield grant


def describe(policy: Policy) -> str:
    """Return one line about a good policy."""
    counts = {"services": policy.services, "operators": policy.operators}
    counts |= {"groups": policy.groups} if policy.groups else {}
    counts |= {"tasks": policy.tasks} if policy.tasks else {}
    parts = [f"{len(each)} {name}" for name, each in counts.items()]
    return f"policy {policy.serial} of {policy.host}, {', '.join(parts)}"
