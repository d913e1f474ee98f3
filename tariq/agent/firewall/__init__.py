"""The firewall: who may reach a guarded port, and until when."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tariq.agent.firewall import iptables
from tariq.agent.firewall.base import Firewall, Guard, Lease
from tariq.agent.firewall.iptables import Iptables
from tariq.agent.firewall.keeper import Keeper, clear, in_charge
from tariq.agent.firewall.netlink import delete_inet_table
from tariq.agent.firewall.nftables import TABLE, Nftables
from tariq.errors import FirewallError

__all__ = [
    "Firewall",
    "Guard",
    "Keeper",
    "Lease",
    "choose",
    "clear_others",
    "in_charge",
    "take_down",
]
log = logging.getLogger("tariq.firewall")


def _known() -> Iterator[Firewall]:
    """Yield the backends that this host has the programs for, the best first."""
    makers: list[Callable[[], Firewall]] = [Nftables]
    makers += [partial(Iptables, variant) for variant in iptables.variants()]
    for make in makers:
        try:
            yield make()
        except FirewallError as why:
            log.debug("%s", why)  # told by ``choose``, if nothing else is there


def _works(backend: Firewall) -> bool:
    try:
        backend.check()
    except FirewallError as why:
        log.debug("%s", why)
        return False
    return True


def choose(name: str) -> tuple[Firewall, list[Firewall]]:
    """Return the backend that a policy names, and the others that this host may have used.

    ``name`` is as in ``policy_file.FIREWALLS``. Raises FirewallError where there is none. What
    others hold is to be taken down even if they no longer work: it would go on dropping.
    """
    known = list(_known())
    for found in known:
        if (name in ("auto", found.name) or found.name.startswith(f"{name}-")) and _works(found):
            return found, [other for other in known if other is not found]
    if name == "nftables":
        Nftables().check()  # raises, with the reason
    what = "no backend works here" if name == "auto" else f"{name} doesn't work here"
    raise FirewallError("firewall", what, "apt install libnftables1, or iptables and ipset")


def clear_others(name: str) -> None:
    """Take down what an earlier policy left in backends other than the one that is named.

    For who isn't confined: an agent that has no more rights than nftables needs can't reach
    the tables of iptables-legacy, and a guard that stayed there would go on dropping.
    """
    for other in choose(name)[1]:
        clear(other)


def take_down(unguarded: Path) -> None:
    """Remove the guard from every backend; raise FirewallError if one can't.

    The file tells an agent that runs that root wants it so; without an agent there is no
    directory for it, and nobody to be told.
    """
    for _ in range(3):
        told = _tell(unguarded)
        # by the shortest way: what a backend needs to guard may be what is broken
        delete_inet_table(TABLE.split()[1])
        for variant in iptables.variants():
            Iptables(variant).unguard()
        if not told or unguarded.exists():  # else an agent that was starting has just forgotten it
            break


def _tell(unguarded: Path) -> bool:
    try:
        unguarded.touch(mode=0o600)
    except OSError:  # no agent to be told; or a full /run, which must not keep the ports closed
        return False
    return True
