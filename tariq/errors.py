"""Every error that a user may see, each with an exit status of its own.

A message names the thing, the reason and the next step, in lower case:
``web9: not in the inventory; check the name, or pass --inventory``.
Raise the most exact class; the command line prints the message on stderr and
exits with ``status``. The statuses are documented in ``docs/exit-statuses.md``,
and a test holds the two together.
"""

from __future__ import annotations

from typing import ClassVar


class TariqError(Exception):
    """Base of all of Tariq's errors.

    ``thing`` is what it is about, ``reason`` what is wrong with it and ``hint``
    what the reader can do next.
    """

    status: ClassVar[int] = 1

    def __init__(self, thing: str, reason: str, hint: str = "") -> None:
        self.thing, self.reason, self.hint = thing, reason, hint
        text = f"{thing}: {reason}" + (f"; {hint}" if hint else "")
        super().__init__(text)


class UsageError(TariqError):
    """The command line asks for something contradictory."""

    status = 2


class UnknownHostError(TariqError):
    """A host name that the inventory doesn't know."""

    status = 3


class NoHostsError(TariqError):
    """A pattern that selects no host."""

    status = 4


class CardError(TariqError):
    """A host card that is missing or can't be used."""

    status = 5


class KeyUnusableError(TariqError):
    """A key that is missing, locked, expired or can't be read."""

    status = 6


class NoGpgError(TariqError):
    """There is no GnuPG on this machine, or it doesn't run."""

    status = 7


class PrivilegeError(TariqError):
    """Something needs root or a capability that this process doesn't have."""

    status = 8


class PolicyError(TariqError):
    """A policy that can't be used."""

    status = 9


class InventoryError(TariqError):
    """An inventory that can't be read, or ansible-core is not installed."""

    status = 10


class ConfigError(TariqError):
    """The client's own configuration file can't be used."""

    status = 11


class BudgetError(TariqError):
    """A message that doesn't fit into one packet."""

    status = 12


class TransportError(TariqError):
    """This machine can't send what the transport wants to send."""

    status = 13


class AgentError(TariqError):
    """The agent can't start or go on: identity, ledger, sockets."""

    status = 14


class FirewallError(AgentError):
    """The firewall refused a change."""

    status = 15


class RevokedError(TariqError):
    """A host that still trusts a key that was revoked."""

    status = 16


class AuditError(TariqError):
    """An audit trail that doesn't verify or can't be read."""

    status = 17


class MessageError(TariqError):
    """Bytes from the wire that aren't what they claim to be.

    Never shown by the agent, which answers such bytes with silence. ``thing`` is the
    layer that refused them, in the order in which they are peeled: ``packet``,
    ``proof``, ``picture``, ``text``, ``frame`` (between sentry and warden),
    ``openpgp``, ``bundle``, ``signature``, ``json``, ``host``, ``ledger``, and
    ``receipt`` on the client.
    """
