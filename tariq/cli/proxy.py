"""``tariq proxy``."""

from __future__ import annotations

import argparse
import sys

from tariq.cli import common
from tariq.client import card as cards
from tariq.client import proxy
from tariq.client.card import Card
from tariq.client.config import Config
from tariq.client.knock import Ending, How, Outcome, Wish, knock_all
from tariq.errors import CardError, TransportError, UsageError
from tariq.message import Action
from tariq.openpgp import OperatorKey


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
        help="connect without a knock to a host that has no card yet; needs --address",
    )
    command.add_argument("--address", metavar="ADDRESS", help="where to connect without a card")
    common.add_key_options(command)
    common.add_path_options(command)
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    known = common.settings(args)
    if args.direct_without_card and not cards.path_of(known.cards_dir, args.host).exists():
        if not args.address:
            raise UsageError("--direct-without-card", "needs --address", "pass --address %h")
        address = args.address
    else:
        address = _knock(args, known)
    with proxy.connect(address, args.port) as sock:
        proxy.relay(sock, sys.stdin.fileno(), sys.stdout.fileno())
    return 0


def _knock(args: argparse.Namespace, known: Config) -> str:
    """Open the service on that port; return the address that let us in."""
    card = common.select([args.host], None, known)[0]
    service = _service_on(card, args.port)
    key = OperatorKey.find(known.gnupg_home, known.key)
    how: How = common.how(args, known)
    outcome: Outcome = knock_all([card], Wish(Action.OPEN, (service,)), key, how)[0]
    if outcome.ending is not Ending.YES:
        reason = f"{outcome.ending.value}: {outcome.reason}"
        raise TransportError(args.host, f"not opened ({reason})", "try 'tariq knock' by itself")
    return outcome.address


def _service_on(card: Card, port: int) -> str:
    for name, where in card.services.items():
        if where == f"tcp/{port}":
            return name
    raise CardError(card.name, f"no service on tcp/{port}", "connect to it without a proxy")
