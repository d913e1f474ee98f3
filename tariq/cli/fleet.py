"""``tariq fleet``: what concerns a whole inventory."""

from __future__ import annotations

import argparse
import sys

from tariq.cli import common
from tariq.client import card as cards
from tariq.client import fleet, inventory
from tariq.client.config import Config
from tariq.client.inventory import Selected
from tariq.client.knock import Ending, Outcome, Wish, knock_all
from tariq.errors import CardError, RevokedError
from tariq.message import Action


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> None:
    """Add the command and its verb."""
    text = "ask a whole inventory"
    command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
    verbs = command.add_subparsers(dest="verb", metavar="VERB", required=True)
    text = "ask every host which policy it has and which keys it trusts"
    status = verbs.add_parser("status", help=text, description=text.capitalize() + ".")
    status.add_argument(
        "--group", "-g", metavar="PATTERN", default="all", help="default: the whole inventory"
    )
    status.add_argument("--json", action="store_true", help="print findings as JSON")
    common.add_key_options(status)
    common.add_path_options(status)
    status.set_defaults(run=_status)


def _status(args: argparse.Namespace) -> int:
    """Print who is current; the exit status is 0 only if all are (docs/exit-statuses.md)."""
    known = common.settings(args)
    wanted = inventory.select(known.inventory, args.group, policy=True)
    outcomes = _ask(wanted, args, known)
    findings = [fleet.judge(each, outcomes[each.name]) for each in wanted]
    print(fleet.as_json(findings) if args.json else fleet.table(findings))
    print(fleet.summary(findings), file=sys.stderr)
    bad = [each.host for each in findings if each.state == fleet.REVOKED]
    if bad:
        hint = "deploy to it; if it stays so, say tariq_revoked for it, too (docs/lifecycle.md)"
        raise RevokedError(", ".join(bad), "still trusts a revoked key", hint)
    return 0 if all(each.state == fleet.CURRENT for each in findings) else 1


def _ask(wanted: list[Selected], args: argparse.Namespace, known: Config) -> dict[str, Outcome]:
    """Knock every host that has a card; one without is an error of its own."""
    outcomes, found = {}, []
    places = [(each.cards_dir(known), each.name) for each in wanted]
    for each, card in zip(wanted, cards.load_all(places), strict=True):
        if isinstance(card, CardError):
            outcomes[each.name] = Outcome(each.name, Ending.ERROR, reason=str(card))
        else:
            found.append(card)
    if found:
        targets = common.targets(found, args, known)
        asked = knock_all(targets, Wish(Action.STATUS), common.operator_key(known))
        # by the inventory's name: a card's own name is what its host calls itself
        names = [each.name for each in wanted if each.name not in outcomes]
        outcomes |= dict(zip(names, asked, strict=True))
    return outcomes
