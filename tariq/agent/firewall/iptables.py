"""iptables and ipset, by their programs: iptables-restore(8), iptables-extensions(8), ipset(8).

Chains of our own, ``TARIQ-…``, and one jump to each from a built-in chain; sets
``tariq-…`` of address, protocol and port hold the leases, with the kernel's own timeouts.
Each table changes in one step (``iptables-restore --noflush``).
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tariq.agent.firewall import conntrack
from tariq.agent.firewall.base import CUT_SECONDS, ENDLESS, Guard, Lease, call, find
from tariq.agent.policy import Service
from tariq.errors import FirewallError

OURS = "TARIQ-"
_LINE = re.compile(rf"(:|-A ){OURS}|-A .* -[jg] {OURS}[A-Z]+$")
"""What ``iptables-save`` prints of chains, rules and jumps that are ours."""
_FAMILY = {4: "inet", 6: "inet6"}
_ABSENT = "does not exist"
_IN_USE = "in use by a kernel component"


@dataclass
class Table:
    """What one table is to hold: rules by chain of ours, and jumps from built-in chains."""

    rules: dict[str, list[str]] = field(default_factory=dict)
    jumps: list[str] = field(default_factory=list)

    def add(self, chain: str, *rules: str) -> None:
        """Append rules to a chain of ours."""
        self.rules.setdefault(OURS + chain, []).extend(rules)

    def jump(self, built_in: str, chain: str, condition: str = "") -> None:
        """Let packets of a built-in chain come to one of ours before anything else."""
        self.jumps.append(f"{built_in} {condition} -j {OURS}{chain}")


class Iptables:
    """The iptables backend; ``variant`` is legacy, nft or, where hosts have but one, nothing."""

    every = 3.0

    def __init__(self, variant: str = "") -> None:
        middle = f"tables-{variant}" if variant else "tables"
        self.name = f"ip{middle}"
        self._programs = {
            version: tuple(find(f"{ip}{middle}-{what}", "iptables") for what in ("save", "restore"))
            for version, ip in ((4, "ip"), (6, "ip6"))
            if version == 4 or _has_ipv6()
        }
        self._expected: list[str] | None = None

    @property
    def _ipset(self) -> str:
        return find("ipset", "ipset")

    def check(self) -> None:
        """See ``base.Firewall``. A chain comes and goes in one step in each table of a guard."""
        self.leases()
        chain = f"{OURS}CHECK"
        for version, (_, restore) in self._programs.items():
            tables = _tables(Guard(1, ()), version)
            text = "".join(f"*{table}\n:{chain} -\n-X {chain}\nCOMMIT\n" for table in tables)
            call([restore, "-w", "5", "--noflush"], text)

    def guard(self, wanted: Guard) -> None:
        """See ``base.Firewall``."""
        for kind in ("leases", "cut"):
            for version, family in _FAMILY.items():
                self._set(f"create tariq-{kind}{version} hash:ip,port family {family} timeout 0")
        for version in self._programs:
            self._put(version, _tables(wanted, version))
        self._expected = self._shape()

    def unguard(self) -> None:
        """See ``base.Firewall``."""
        for version in self._programs:
            self._put(version, {})
        with contextlib.suppress(FirewallError):  # without its rules a set does nothing
            for name in self._sets():
                # the other variant's guard may be using it
                call([self._ipset, "destroy", name], fine=_IN_USE)
        self._expected = None

    def intact(self) -> bool:
        """See ``base.Firewall``."""
        return self._expected is not None and self._shape() == self._expected

    def open(self, leases: Iterable[Lease]) -> None:
        """See ``base.Firewall``."""
        leases = list(leases)
        there = {(lease.address, lease.service) for lease in self.leases()}
        try:
            self._set(*(_add("leases", lease, lease.seconds) for lease in leases))
        except FirewallError:
            new = [lease for lease in leases if (lease.address, lease.service) not in there]
            self._set(*(_delete(lease) for lease in new))
            raise

    def close(self, leases: Iterable[Lease], *, cut: bool = False) -> None:
        """See ``base.Firewall``."""
        leases = list(leases)
        self._set(*(_delete(lease) for lease in leases))
        if cut:
            self._set(*(_add("cut", lease, CUT_SECONDS) for lease in leases))
            conntrack.forget(leases)

    def leases(self) -> list[Lease]:
        """See ``base.Firewall``."""
        names = [f"tariq-leases{version}" for version in _FAMILY]
        saved = [call([self._ipset, "save", name], fine=_ABSENT) for name in names]
        lines = [line.split() for line in "".join(saved).splitlines()]
        return [_lease(words) for words in lines if words[0] == "add"]

    def _set(self, *commands: str) -> None:
        """Run commands of ipset; what exists is changed, what doesn't needs no deleting."""
        call([self._ipset, "-exist", "restore"], "".join(f"{each}\n" for each in commands))

    def _sets(self) -> list[str]:
        names = call([self._ipset, "list", "-name"]).split()
        return [name for name in names if name.startswith("tariq-")]

    def _saved(self, version: int) -> dict[str, list[str]]:
        """Return, by table, the lines of what is there that are ours."""
        tables: dict[str, list[str]] = {}
        for line in call([self._programs[version][0]]).splitlines():
            if line.startswith("*"):
                mine = tables.setdefault(line[1:], [])
            elif _LINE.match(line):
                mine.append(line.partition(" [")[0] if line[0] == ":" else line)
        return tables

    def _shape(self) -> list[str]:
        rules = [
            f"{version} {table} {line}"
            for version in self._programs
            for table, lines in sorted(self._saved(version).items())
            for line in lines
        ]
        return [*sorted(self._sets()), *rules]

    def _put(self, version: int, wanted: dict[str, Table]) -> None:
        """Bring tables from what is there to what is wanted, each in one step."""
        saved = self._saved(version)
        names = [name for name in {**wanted, **saved} if name in wanted or saved[name]]
        text = "".join(
            _restore(name, saved.get(name, []), wanted.get(name, Table())) for name in names
        )
        if text:
            call([self._programs[version][1], "-w", "5", "--noflush"], text)


def variants() -> list[str]:
    """Return the variants that this host has, what it calls ``iptables`` first."""
    try:
        told = call([find("iptables", "iptables"), "--version"])
    except FirewallError:
        return []
    known = ["nft", "legacy"] if "nf_tables" in told else ["legacy", "nft"]
    return [variant for variant in known if _has(f"iptables-{variant}-restore")] or [""]


def _has_ipv6() -> bool:
    """Tell whether the kernel has IPv6; where a unit hides /proc/sys, better guard too much."""
    settings = Path("/proc/sys/net")
    return (settings / "ipv6").exists() or not settings.exists()


def _has(program: str) -> bool:
    try:
        return bool(find(program, "iptables"))
    except FirewallError:
        return False


# --- what the tables hold ------------------------------------------------------------------


def _tables(wanted: Guard, version: int) -> dict[str, Table]:
    """Return the tables. The guard comes twice.

    In mangle before anybody's address translation, so that ports which are passed on
    (Docker's published ones, our own forwards) are guarded under the number that a
    stranger dials; there it can set a mark. In filter it can say that a lease is enough.
    """
    raw, mangle, filter_ = Table(), Table(), Table()
    knock = f"-p tcp --dport {wanted.port}"
    raw.add("IN", f"{knock} -m addrtype --dst-type LOCAL -j CT --notrack")
    raw.add("OUT", f"-p tcp --sport {wanted.port} -j CT --notrack")
    raw.jump("PREROUTING", "IN")
    raw.jump("OUTPUT", "OUT")
    filter_.add("GUARD", f"{knock} -j DROP")  # only there; nftables._port_rules says why
    for table, allow in ((mangle, "RETURN"), (filter_, "ACCEPT")):
        table.add("GUARD")
        for service in wanted.services:
            match = f"-p {service.protocol} --dport {service.port}"
            table.add("GUARD", f"{match} -g {OURS}SERVICE")
        table.add("SERVICE", *_service_rules(wanted, version, allow))
    mangle.jump("PREROUTING", "GUARD", "-m addrtype --dst-type LOCAL")
    filter_.jump("INPUT", "GUARD")
    tables = {"raw": raw, "filter": filter_, "mangle": mangle}
    forwards = [each for each in wanted.services if each.forward_of(version)]
    if forwards:
        tables["nat"] = Table()
        for service in forwards:
            _forward(service, version, tables["nat"], filter_)
        filter_.jump("FORWARD", "FORWARD")
        tables["nat"].jump("PREROUTING", "FORWARD")
        tables["nat"].jump("POSTROUTING", "SOURCE")
    return tables


def _service_rules(wanted: Guard, version: int, allow: str) -> Iterator[str]:
    """Yield the rules for guarded ports; ``nftables._service_rules`` says why they are so."""
    cut = f"-m set --match-set tariq-cut{version} src,dst -m conntrack"
    marked = wanted.mark and allow == "RETURN"  # only mangle can set marks
    mark = f"-j MARK --set-xmark {wanted.mark:#x}/{wanted.mark:#x}"
    free = [f"-s {network}" for network in wanted.networks(version)]
    yield "-i lo -j RETURN"
    for match in free:
        yield from [f"{match} {mark}"] if marked else []
        yield f"{match} -j {allow}"
    yield f"{cut} --ctdir REPLY -j DROP"
    yield f"-p tcp ! --syn {cut} --ctstate NEW -j DROP"
    yield "-m conntrack --ctstate ESTABLISHED,RELATED -j RETURN"
    leased = f"-m set --match-set tariq-leases{version} src,dst"
    yield from [f"{leased} {mark}"] if marked else []
    yield f"{leased} -j {allow}"
    yield "-j DROP"


def _forward(service: Service, version: int, nat: Table, filter_: Table) -> None:
    """Add the address translation of a service that is on another host."""
    there = service.forward_of(version)
    if there is None:
        return
    protocol = f"-p {service.protocol}"
    leased = f"-m set --match-set tariq-leases{version} src,dst"
    here = f"{protocol} --dport {service.port} -m addrtype --dst-type LOCAL {leased}"
    ours = f"-m conntrack --ctstate DNAT --ctorigdstport {service.port}"
    nat.add("FORWARD", f"{here} -j DNAT --to-destination {there}")
    filter_.add("FORWARD", f"{protocol} {ours} --ctreplsrc {there.address} -j ACCEPT")
    place = f"-d {there.address} {protocol} --dport {there.port}"
    nat.add("SOURCE", *([f"{place} {ours} -j MASQUERADE"] if service.masquerade else []))


def _restore(name: str, saved: list[str], wanted: Table) -> str:
    """Return what turns one table from what is there into what is wanted."""
    there = [line[1:].split()[0] for line in saved if line.startswith(":")]
    jumps = [line for line in saved if not line.startswith((":", f"-A {OURS}"))]
    old = [chain for chain in there if chain not in wanted.rules]
    lines = [f"*{name}", *(f":{chain} - [0:0]" for chain in wanted.rules)]
    lines += [line.replace("-A", "-D", 1) for line in jumps]
    lines += [f"-F {chain}" for chain in old] + [f"-X {chain}" for chain in old]
    lines += [f"-A {chain} {rule}" for chain, rules in wanted.rules.items() for rule in rules]
    lines += [f"-I {jump}" for jump in wanted.jumps]
    return "\n".join([*lines, "COMMIT", ""])


# --- elements of sets -----------------------------------------------------------------------


def _entry(kind: str, lease: Lease) -> str:
    ip, service = ipaddress.ip_address(lease.address), lease.service
    return f"tariq-{kind}{ip.version} {ip},{service.protocol}:{service.port}"


def _add(kind: str, lease: Lease, seconds: int) -> str:
    return f"add {_entry(kind, lease)} timeout {seconds}"


def _delete(lease: Lease) -> str:
    return f"del {_entry('leases', lease)}"


def _lease(words: list[str]) -> Lease:
    """Read ``add tariq-leases4 10.0.0.2,tcp:22 timeout 29``; 0 is for ever."""
    address, _, rest = words[2].partition(",")
    protocol, _, port = rest.partition(":")
    return Lease(address, Service(protocol, int(port)), int(words[4]) or ENDLESS)
