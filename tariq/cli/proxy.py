"""``tariq proxy``."""

from __future__ import annotations

import argparse
import sys

from tariq.cli import common
from tariq.client import card as cards
from tariq.client import proxy
from tariq.client.card import Card
from tariq.client.config import Config
from tariq.client.knock import Outcome, Wish, knock_all
from tariq.errors import CardError, TransportError, UsageError
from tariq.message import Action


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> None:
    """Add the command."""
    text = "knock, connect and relay, for ssh's ProxyCommand"
    command = commands.add_parser(
        name,
        help=text,
        description=text.capitalize() + ". In ssh_config: ProxyCommand tariq proxy %n %p",
    )
    command.add_argument("host", metavar="HOST", help="a host that has a card")
    command.add_argument("port", metavar="PORT", type=int, help="a TCP port on it")
    command.add_argument(
        "--direct-without-card",
        action="store_true",
        help="connect anyway to a host that has no card yet, or answers no knock; needs --address",
    )
    command.add_argument("--address", metavar="ADDRESS", help="where to connect without a card")
    common.add_key_options(command)
    common.add_path_options(command)
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    known = common.settings(args)
    if args.direct_without_card and not args.address:
        raise UsageError("--direct-without-card", "needs --address", "pass --address %h")
    with proxy.connect(_way_in(args, known), args.port) as sock:
        proxy.relay(sock, sys.stdin.fileno(), sys.stdout.fileno())
    return 0


def _way_in(args: argparse.Namespace, known: Config) -> str:
    """Return the address to connect to, after a knock where one is possible.

    A first deployment brings the card before the agent starts, so without an answer
    ``--direct-without-card`` still tries the port: where it is guarded, that fails too.
    """
    if not args.direct_without_card:
        outcome = _knock(args, known)
        if outcome.ok:
            return outcome.address
        reason = f"not opened ({outcome.ending.value}: {outcome.reason})"
        raise TransportError(args.host, reason, "try 'tariq knock' by itself")
    if not cards.path_of(known.cards_dir, args.host).exists():
        return str(args.address)
    outcome = _knock(args, known)
    return outcome.address if outcome.ok else str(args.address)


def _knock(args: argparse.Namespace, known: Config) -> Outcome:
    """Open the service on that port."""
    card = common.select([args.host], None, known)[0]
    wish = Wish(Action.OPEN, (_service_on(card, args.port),))
    key = common.operator_key(known)
    return knock_all(common.targets([card], args, known), wish, key)[0]


def _service_on(card: Card, port: int) -> str:
    for name, where in card.services.items():
        if where == f"tcp/{port}":
            return name
    raise CardError(card.name, f"no service on tcp/{port}", "connect to it without a proxy")
