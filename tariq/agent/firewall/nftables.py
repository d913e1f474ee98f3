"""nftables through libnftables, in the process.

One table, ``inet tariq``, and nothing outside it. Two sets (IPv4, IPv6) of
address . protocol . port hold the leases, with the kernel's own timeouts, so a
lease ends even if the agent is dead. libnftables-json(5), nft(8).
"""

from __future__ import annotations

import ctypes
import ipaddress
import json
from collections.abc import Iterable
from typing import Any

from tariq.agent.firewall.base import Lease
from tariq.agent.policy import Service
from tariq.errors import FirewallError

TABLE = "inet tariq"
_JSON_OUTPUT = 1 << 4
"""NFT_CTX_OUTPUT_JSON, nftables/libnftables.h."""

_SKELETON = f"""\
add table {TABLE}
add set {TABLE} leases4 {{ typeof ip saddr . meta l4proto . th dport; flags timeout; }}
add set {TABLE} leases6 {{ typeof ip6 saddr . meta l4proto . th dport; flags timeout; }}
add set {TABLE} guarded {{ typeof meta l4proto . th dport; }}
add chain {TABLE} untracked {{ type filter hook prerouting priority raw; policy accept; }}
add chain {TABLE} untracked_out {{ type filter hook output priority raw; policy accept; }}
add chain {TABLE} guard {{ type filter hook input priority filter - 10; policy accept; }}
"""


class Nftables:
    """The nftables backend."""

    def __init__(self) -> None:
        self._nft = _Libnftables()

    def guard(self, knock_port: int, services: Iterable[Service]) -> None:
        """See ``base.Firewall``."""
        ports = ", ".join(f"{service.protocol} . {service.port}" for service in services)
        elements = f"add element {TABLE} guarded {{ {ports} }}\n" if ports else ""
        self._nft.run(_SKELETON + _rules(knock_port) + elements)

    def unguard(self) -> None:
        """See ``base.Firewall``."""
        self._nft.run(f"add table {TABLE}\ndelete table {TABLE}\n")

    def open(self, lease: Lease) -> None:
        """See ``base.Firewall``.

        An element's timeout can't be changed in every kernel, so the old one is
        deleted and a new one added, in one transaction. The added element before
        the deletion keeps the deletion from failing where there is none.
        """
        where, element = _element(lease.address, lease.service)
        self._nft.run(
            f"add element {TABLE} {where} {{ {element} timeout 1s }}\n"
            f"delete element {TABLE} {where} {{ {element} }}\n"
            f"add element {TABLE} {where} {{ {element} timeout {lease.seconds}s }}\n"
        )

    def close(self, address: str, service: Service) -> None:
        """See ``base.Firewall``."""
        where, element = _element(address, service)
        self._nft.run(
            f"add element {TABLE} {where} {{ {element} timeout 1s }}\n"
            f"delete element {TABLE} {where} {{ {element} }}\n"
        )

    def leases(self) -> list[Lease]:
        """See ``base.Firewall``."""
        found = []
        for where in ("leases4", "leases6"):
            listing = json.loads(self._nft.run(f"list set {TABLE} {where}\n"))
            for item in listing["nftables"]:
                elements = item.get("set", {}).get("elem", [])
                found += [_lease(element["elem"]) for element in elements]
        return found


def _rules(knock_port: int) -> str:
    """Return the rules, after flushing those of an earlier guard.

    The knock port is dropped before anything else: no rule, here or in a chain that
    comes later, can let the host's kernel answer it with a reset. Connection tracking
    leaves it alone, else a flood would fill its table and the crafted answers would
    count as invalid.
    """
    knock = f"tcp dport {knock_port}"
    rules = [
        ("untracked", f"{knock} fib daddr type local notrack"),
        ("untracked_out", f"tcp sport {knock_port} notrack"),
        ("guard", f"{knock} drop"),
        ("guard", 'iifname "lo" accept'),
        ("guard", "ct state established,related accept"),
        ("guard", "ip saddr . meta l4proto . th dport @leases4 accept"),
        ("guard", "ip6 saddr . meta l4proto . th dport @leases6 accept"),
        ("guard", "meta l4proto . th dport @guarded drop"),
    ]
    chains = dict.fromkeys(chain for chain, _ in rules)
    flush = "".join(f"flush chain {TABLE} {chain}\n" for chain in chains)
    flush += f"flush set {TABLE} guarded\n"
    return flush + "".join(f"add rule {TABLE} {chain} {rule}\n" for chain, rule in rules)


def _element(address: str, service: Service) -> tuple[str, str]:
    ip = ipaddress.ip_address(address)
    return f"leases{ip.version}", f"{ip} . {service.protocol} . {service.port}"


def _lease(element: dict[str, Any]) -> Lease:
    address, protocol, port = element["val"]["concat"]
    return Lease(address, Service(protocol, int(port)), int(element["expires"]))


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
