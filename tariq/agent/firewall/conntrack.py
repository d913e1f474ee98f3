"""Making the kernel forget connections, for ``close --cut``. conntrack(8)."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from tariq.agent.firewall.base import Lease, call, find

_NONE = " 0 flow entries"
"""What it says where there was nothing to delete, with the exit status of an error."""


def forget(leases: Iterable[Lease]) -> None:
    """Delete what connection tracking knows of these addresses' connections to these services.

    Also of those that it learned of from the host's own packets, in the middle of a
    connection: to the kernel they began here. Raises FirewallError.
    """
    conntrack = find("conntrack", "conntrack")
    for lease in leases:
        version = ipaddress.ip_address(lease.address).version
        family = ["-f", "ipv4" if version == 4 else "ipv6", "-p", lease.service.protocol]
        port = str(lease.service.port)
        inwards = ["-s", lease.address, "--orig-port-dst", port]
        outwards = ["-d", lease.address, "--orig-port-src", port]
        for which in (inwards, outwards):
            call([conntrack, "-D", *family, *which], fine=_NONE)
