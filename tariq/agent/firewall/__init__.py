"""The firewall: who may reach a guarded port, and until when."""

from tariq.agent.firewall.base import Firewall, Lease
from tariq.agent.firewall.nftables import Nftables

__all__ = ["Firewall", "Lease", "Nftables"]
