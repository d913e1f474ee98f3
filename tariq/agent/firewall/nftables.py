"""nftables through libnftables, in the process.

One table, ``inet tariq``, and nothing outside it. Sets of address . protocol . port hold
the leases, with the kernel's own timeouts, so a lease ends even if the agent is dead.
libnftables-json(5), nft(8).
"""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import json
import os
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

from tariq.agent.firewall import conntrack
from tariq.agent.firewall.base import CUT_SECONDS, ENDLESS, Guard, Lease
from tariq.agent.firewall.netlink import delete_inet_table
from tariq.agent.policy import Service
from tariq.errors import FirewallError

TABLE = "inet tariq"
_TRIED = "inet tariq_check"
_ANY_GUARD = Guard(1, (Service("tcp", 1),))
_JSON_OUTPUT = 1 << 4
"""NFT_CTX_OUTPUT_JSON, nftables/libnftables.h."""
_OWNED = f"see 'nft list table {TABLE}': does another program own the table?"
_ABSENT = os.strerror(errno.ENOENT)
_SETS = ("leases4", "leases6", "cut4", "cut6")
_FAMILY = {4: "ip", 6: "ip6"}

# early: before anybody's address translation, so that ports which are passed on (Docker's
# published ones, our own forwards) are guarded under the number that a stranger dials.
_CHAINS = {
    "untracked": "type filter hook prerouting priority raw",
    "untracked_out": "type filter hook output priority raw",
    "early": "type filter hook prerouting priority dstnat - 10",
    "guard": "type filter hook input priority filter - 10",
}
_NAT_CHAINS = {
    "forward_to": "type nat hook prerouting priority dstnat - 5",
    "forward_from": "type nat hook postrouting priority srcnat - 5",
}


class Nftables:
    """The nftables backend."""

    name = "nftables"
    every = 1.0

    def __init__(self) -> None:
        self._expected: list[Any] | None = None

    @cached_property
    def _nft(self) -> _Libnftables:
        """Load the library when it is needed first: ``unguard`` must do without."""
        return _Libnftables()

    def check(self) -> None:
        """See ``base.Firewall``.

        The kernel looks at a whole guard that the same transaction takes away again: not every
        one that has nf_tables has its family "inet", or every expression.
        """
        self.leases()
        self._run([f"add table {_TRIED}", *_skeleton(_TRIED, _ANY_GUARD), f"delete table {_TRIED}"])

    def guard(self, wanted: Guard) -> None:
        """See ``base.Firewall``. The table is made anew, in one transaction, with what it held."""
        held = [element for where in _SETS for element in self._elements(where)]
        commands = [f"add table {TABLE}", f"delete table {TABLE}", f"add table {TABLE}"]
        commands += _skeleton(TABLE, wanted)
        commands += [f"add element {TABLE} {element}" for element in held]
        self._run(commands)
        self._expected = self._shape()

    def unguard(self) -> None:
        """See ``base.Firewall``."""
        delete_inet_table(TABLE.split()[1])
        self._expected = None

    def intact(self) -> bool:
        """See ``base.Firewall``."""
        return self._expected is not None and self._shape() == self._expected

    def open(self, leases: Iterable[Lease]) -> None:
        """See ``base.Firewall``."""
        self._run([line for lease in leases for line in _replace("leases", lease, lease.seconds)])

    def close(self, leases: Iterable[Lease], *, cut: bool = False) -> None:
        """See ``base.Firewall``."""
        leases = list(leases)
        commands = [line for lease in leases for line in _remove("leases", lease)]
        if cut:
            commands += [line for lease in leases for line in _replace("cut", lease, CUT_SECONDS)]
        self._run(commands)
        if cut:
            conntrack.forget(leases)

    def leases(self) -> list[Lease]:
        """See ``base.Firewall``."""
        return [_lease(each) for where in _SETS[:2] for each in self._listed(where)]

    def _run(self, commands: Iterable[str]) -> None:
        self._nft.run("".join(f"{command}\n" for command in commands))

    def _shape(self) -> list[Any] | None:
        """Return what the table holds, but for elements of its sets, or None if it is gone."""
        listed = self._list(f"list table {TABLE}\n")
        if not listed:
            return None
        things = [thing for item in listed for thing in item.items() if thing[0] != "metainfo"]
        for _, thing in things:
            thing.pop("handle", None)  # another process may have put the same guard up
            thing.pop("elem", None)
        return things

    def _listed(self, where: str) -> Iterator[dict[str, Any]]:
        for item in self._list(f"list set {TABLE} {where}\n"):
            for element in item.get("set", {}).get("elem", []):
                yield element.get("elem", {"val": element})

    def _list(self, command: str) -> list[dict[str, Any]]:
        """Return what there is; nothing if there is no such thing."""
        try:
            listed = self._nft.run(command)
            found: list[dict[str, Any]] = json.loads(listed)["nftables"]
        except FirewallError as why:
            if _ABSENT in why.reason:
                return []
            raise
        except (ValueError, LookupError) as why:  # of a table with an owner, 1.0.6 prints half
            raise FirewallError("nftables", "its list can't be read", _OWNED) from why
        return found

    def _elements(self, where: str) -> Iterator[str]:
        for lease in map(_lease, self._listed(where)):
            if lease.seconds > 0:
                yield f"{where} {{ {_key(lease)} timeout {lease.seconds}s }}"


def _skeleton(table: str, wanted: Guard) -> Iterator[str]:
    """Yield the commands that make a table's sets, chains and rules."""
    for where in _SETS:
        key = f"typeof {_FAMILY[int(where[-1])]} saddr . meta l4proto . th dport"
        yield f"add set {table} {where} {{ {key}; flags timeout; }}"
    forwards = [service for service in wanted.services if service.forward]
    chains = {**_CHAINS, **(_NAT_CHAINS if forwards else {})}
    for chain, hook in chains.items():
        yield f"add chain {table} {chain} {{ {hook}; policy accept; }}"
    for chain in ("ports", "service"):
        yield f"add chain {table} {chain}"
    rules = [*_port_rules(wanted), *_service_rules(wanted)]
    rules += [rule for service in forwards for rule in _forward_rules(service)]
    for chain, rule in rules:
        yield f"add rule {table} {chain} {rule}"


def _port_rules(wanted: Guard) -> Iterator[tuple[str, str]]:
    """Yield the rules that every packet passes.

    The knock port is dropped before anything else: no rule, here or in a chain that
    comes later, can let the host's kernel answer it with a reset. But not sooner than at
    the host's own door: where bridges pass prerouting (net.bridge.bridge-nf-call-iptables,
    as Docker sets it), that is before the sentry's socket. Connection tracking leaves it
    alone, else a flood would fill its table and the crafted answers would count as invalid.
    """
    knock = f"tcp dport {wanted.port}"
    yield "untracked", f"{knock} fib daddr type local notrack"
    yield "untracked_out", f"tcp sport {wanted.port} notrack"
    yield "early", "fib daddr type local jump ports"
    yield "guard", f"{knock} drop"
    yield "guard", "jump ports"
    if wanted.services:
        ports = ", ".join(f"{each.protocol} . {each.port}" for each in wanted.services)
        yield "ports", f"meta l4proto . th dport {{ {ports} }} goto service"


def _service_rules(wanted: Guard) -> Iterator[tuple[str, str]]:
    """Yield the rules for guarded ports.

    A connection that was cut may come back neither by what the client sends in its
    middle nor by what the host does: the kernel takes both for new connections (tcp_loose).
    """
    mark = f"meta mark set meta mark or {wanted.mark:#x} " if wanted.mark else ""
    middle = "ct state new tcp flags & (fin|syn|rst|ack) != syn"
    yield "service", 'iifname "lo" accept'
    for version, ip in _FAMILY.items():
        if networks := ", ".join(wanted.networks(version)):
            yield "service", f"{ip} saddr {{ {networks} }} {mark}accept"
    for version, ip in _FAMILY.items():
        was_cut = f"{ip} saddr . meta l4proto . th dport @cut{version}"
        yield "service", f"{was_cut} ct direction reply drop"
        yield "service", f"{was_cut} {middle} drop"
    yield "service", "ct state established,related accept"
    for version, ip in _FAMILY.items():
        leased = f"{ip} saddr . meta l4proto . th dport @leases{version}"
        yield "service", f"{leased} {mark}accept"
    yield "service", "drop"


def _forward_rules(service: Service) -> Iterator[tuple[str, str]]:
    """Yield the address translation of a service that is on another host."""
    for there in service.forward:
        ip, dport = _FAMILY[there.version], f"{service.protocol} dport"
        leased = f"{ip} saddr . meta l4proto . th dport @leases{there.version}"
        here = f"fib daddr type local {dport} {service.port}"
        yield "forward_to", f"{here} {leased} dnat {ip} to {there}"
        if service.masquerade:
            ours = f"ct status dnat ct original proto-dst {service.port}"
            place = f"{ip} daddr {there.address} {dport} {there.port}"
            yield "forward_from", f"{place} {ours} masquerade"


def _key(lease: Lease) -> str:
    service = lease.service
    return f"{ipaddress.ip_address(lease.address)} . {service.protocol} . {service.port}"


def _place(kind: str, lease: Lease) -> str:
    return f"{TABLE} {kind}{ipaddress.ip_address(lease.address).version}"


def _remove(kind: str, lease: Lease) -> Iterator[str]:
    """Yield what deletes an element; adding it first keeps that from failing where it isn't."""
    yield f"add element {_place(kind, lease)} {{ {_key(lease)} timeout 1s }}"
    yield f"delete element {_place(kind, lease)} {{ {_key(lease)} }}"


def _replace(kind: str, lease: Lease, seconds: int) -> Iterator[str]:
    """Yield what sets an element's timeout, which can't be changed in every kernel."""
    yield from _remove(kind, lease)
    yield f"add element {_place(kind, lease)} {{ {_key(lease)} timeout {seconds}s }}"


def _lease(element: dict[str, Any]) -> Lease:
    address, protocol, port = element["val"]["concat"]
    return Lease(address, Service(protocol, int(port)), int(element.get("expires", ENDLESS)))


class _Libnftables:
    """The four functions of libnftables(3) that are needed, through ctypes.

    The nftables package of most distributions brings Python bindings for their own
    interpreter only; a virtual environment doesn't see those.
    """

    def __init__(self) -> None:
        try:
            self._lib = ctypes.CDLL("libnftables.so.1")
        except OSError as why:
            hint = "apt install libnftables1"
            raise FirewallError("libnftables", "not found on this machine", hint) from why
        self._lib.nft_ctx_new.restype = ctypes.c_void_p
        for function in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
            getattr(self._lib, function).restype = ctypes.c_char_p
        self._ctx = ctypes.c_void_p(self._lib.nft_ctx_new(0))
        self._lib.nft_ctx_buffer_output(self._ctx)
        self._lib.nft_ctx_buffer_error(self._ctx)
        self._lib.nft_ctx_output_set_flags(self._ctx, _JSON_OUTPUT)

    def run(self, commands: str) -> str:
        """Run commands as one transaction and return what they print; raise FirewallError."""
        failed = self._lib.nft_run_cmd_from_buffer(self._ctx, commands.encode())
        output: bytes = self._lib.nft_ctx_get_output_buffer(self._ctx)
        error: bytes = self._lib.nft_ctx_get_error_buffer(self._ctx)
        if failed:
            lines = error.decode(errors="replace").strip().splitlines()
            reason = lines[0] if lines else "no reason given"
            raise FirewallError("nftables", reason, "needs root and kernel support (nf_tables)")
        return output.decode()
