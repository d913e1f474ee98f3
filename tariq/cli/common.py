"""Options and look-ups that several commands share."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from tariq.client import card as cards
from tariq.client import config, seen
from tariq.client.card import Card
from tariq.client.config import Config
from tariq.client.knock import Target
from tariq.errors import InventoryError, NoHostsError, TransportError, UsageError
from tariq.message import MAX_SECONDS, NAME
from tariq.openpgp import OperatorKey
from tariq.transport.base import TRANSPORTS, source_towards

SOURCES = ("auto", "remembered")
"""Words that stand for an address of this machine."""
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def add_key_options(command: argparse.ArgumentParser) -> None:
    """Add what finds the operator's key."""
    group = command.add_argument_group("your key")
    group.add_argument("--key", metavar="NAME", help="its name, or the end of its fingerprint")
    group.add_argument("--gnupg-home", metavar="DIR", help="default: ~/.config/tariq/gnupg")


def add_path_options(command: argparse.ArgumentParser) -> None:
    """Add what finds cards and says how packets travel."""
    group = command.add_argument_group("where and how")
    text = "an Ansible inventory; may be said several times"
    group.add_argument("--inventory", "-i", metavar="FILE", action="append", help=text)
    group.add_argument("--cards", metavar="DIR", help="host cards; default: beside the inventory")
    group.add_argument("--transport", choices=list(TRANSPORTS), help="default: by the card")
    family = group.add_mutually_exclusive_group()
    family.add_argument("-4", dest="version", action="store_const", const=4, help="only IPv4")
    family.add_argument("-6", dest="version", action="store_const", const=6, help="only IPv6")


def settings(args: argparse.Namespace) -> Config:
    """Merge options, environment and configuration file."""
    names = ("cards", "key", "gnupg_home", "transport")
    given = {name: getattr(args, name, None) for name in names}
    return config.load(given, getattr(args, "inventory", None) or ())


def targets(cards: Sequence[Card], args: argparse.Namespace, known: Config) -> list[Target]:
    """Return how to get to each host, and the address that each must see (``--source``)."""
    return [_target(card, args.version, getattr(args, "source", None), known) for card in cards]


def _target(card: Card, version: int | None, source: str | None, known: Config) -> Target:
    transport = known.transport or card.transports[0]
    addresses = tuple(card.addresses_of(version))
    if source is not None:
        addresses, source = _sourced(card, addresses, source)
    if not addresses:
        reason = "its card has no address of that ip version"
        raise TransportError(card.name, reason, "drop -4, -6 or --source")
    return Target(card, addresses, transport, source)


def _sourced(card: Card, addresses: tuple[str, ...], source: str) -> tuple[tuple[str, ...], str]:
    """Return the addresses that a named source fits, and the source itself."""
    if source not in SOURCES:
        return tuple(a for a in addresses if (":" in a) == (":" in source)), source
    memory = seen.Seen(seen.path())
    for address in addresses:
        version = 6 if ":" in address else 4
        ours = (
            source_towards(address, card.port)
            if source == "auto"
            else memory.address(card.fingerprint, version)
        )
        if ours is not None:
            return (address,), ours
    if source == "auto":
        raise TransportError(card.name, "no route to any of its addresses", "check the network")
    hint = "knock once without --source, or name the address"
    raise UsageError(card.name, "never told which address it saw", hint)


def operator_key(known: Config) -> OperatorKey:
    """Return the operator's key."""
    return OperatorKey.find(known.gnupg_home, known.key)


def select(hosts: Sequence[str], group: str | None, known: Config) -> list[Card]:
    """Return the cards of the hosts that were named, or of a group's."""
    if bool(hosts) == bool(group):
        raise UsageError("hosts", "name hosts, or one --group", "see 'tariq knock --help'")
    if group is None:
        places = [_place_of(host, known) for host in dict.fromkeys(hosts)]
        return cards.load(places)
    from tariq.client import inventory

    if not known.inventory and known.cards is not None:
        return _cards_with_group(group, known)
    found = inventory.select(known.inventory, group)
    places = [(host.cards_dir(known), host.name) for host in found]
    return cards.load(places)


def _cards_with_group(group: str, known: Config) -> list[Card]:
    """Without an inventory, a group is what the cards themselves say."""
    paths = sorted(known.cards_dir.glob("*.yml"))
    found = cards.load([(known.cards_dir, path.stem) for path in paths])
    chosen = [card for card in found if group in (*card.groups, "all")]
    if not chosen:
        hint = "pass --inventory FILE, or check the name"
        raise NoHostsError(f"group {group!r}", f"no card in {known.cards_dir} has it", hint)
    return chosen


def _place_of(host: str, known: Config) -> tuple[Path, str]:
    """Return where a host's card is; the inventory is only asked if it isn't where all are."""
    if not known.inventory or cards.path_of(known.cards_dir, host).exists():
        return known.cards_dir, host
    from tariq.client import inventory

    found = inventory.select(known.inventory, host)
    if [each.name for each in found] != [host]:
        raise InventoryError(host, "a group, not a host", "pass it with --group")
    return found[0].cards_dir(known), host


def duration(text: str) -> int:
    """Read ``30``, ``30s``, ``2m``, ``1h`` or ``1d`` as seconds."""
    match = re.fullmatch(r"([0-9]{1,9})([smhd]?)", text, re.ASCII)
    seconds = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 1 <= seconds <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 30s, 2m, 1h or 1d")
    return seconds


def names(text: str) -> tuple[str, ...]:
    """Read ``ssh,https``."""
    found = tuple(dict.fromkeys(text.split(",")))
    for name in found:
        if not NAME.fullmatch(name):
            raise argparse.ArgumentTypeError(f"{name!r} is no name of a service")
    return found
