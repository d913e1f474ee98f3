"""``tariq knock``, ``tariq close`` and ``tariq status``."""

from __future__ import annotations

import argparse
import ipaddress
import sys
import time
from collections.abc import Sequence

from tariq.cli import common
from tariq.client import report, seen
from tariq.client.knock import Outcome, Target, Wish, knock_all
from tariq.message import Action

_HELP = {
    "knock": (Action.OPEN, "open services on hosts for this machine's address"),
    "close": (Action.CLOSE, "end leases before their time"),
    "status": (Action.STATUS, "show what is open for this machine's address"),
}


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> None:
    """Add one of the three."""
    action, text = _HELP[name]
    command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
    command.add_argument("hosts", metavar="HOST", nargs="*", help="hosts that have a card")
    command.add_argument("--group", "-g", metavar="PATTERN", help="hosts of an Ansible inventory")
    if action is not Action.STATUS:
        what = "services, default: each host's own"
        command.add_argument(
            "--open" if action is Action.OPEN else "--service",
            dest="services",
            metavar="NAMES",
            type=common.names,
            default=(),
            help=what,
        )
    if action is Action.OPEN:
        command.add_argument(
            "--for",
            dest="seconds",
            metavar="TIME",
            type=common.duration,
            help="such as 30s or 2m; default: the host's",
        )
    if action is Action.CLOSE:
        text = "end the connections that live on the leases as well"
        command.add_argument("--cut", action="store_true", help=text)
    add_options(command)
    command.set_defaults(run=_run, action=action, services=(), seconds=None, cut=False)


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what every command has that knocks."""
    command.add_argument(
        "--source",
        metavar="SOURCE",
        type=_source,
        help="the address that hosts must see: ADDRESS, 'auto' (this machine's),"
        " or 'remembered' (what each host saw before); any other is refused",
    )
    command.add_argument("--json", action="store_true", help="print outcomes as JSON")
    common.add_key_options(command)
    common.add_path_options(command)


def _source(text: str) -> str:
    if text in common.SOURCES:
        return text
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no ip address") from None


def _run(args: argparse.Namespace) -> int:
    return ask(args, Wish(args.action, args.services, args.seconds, cut=args.cut))


def ask(args: argparse.Namespace, wish: Wish) -> int:
    """Ask every host of ``args``, print what came of it, and return the exit status."""
    known = common.settings(args)
    cards = common.select(args.hosts, args.group, known)
    key = common.operator_key(known)
    targets = common.targets(cards, args, known)
    with _Progress(len(cards)) as progress:
        outcomes = knock_all(targets, wish, key, progress)
    _remember(targets, outcomes)
    print(report.as_json(outcomes) if args.json else report.table(outcomes, time.time()))
    if not args.json and (output := report.outputs(outcomes)):
        print(output)
    good = all(outcome.ok for outcome in outcomes)
    if len(cards) > 1 or not good:
        print(report.summary(outcomes), file=sys.stderr)
    return 0 if good else 1


def _remember(targets: Sequence[Target], outcomes: Sequence[Outcome]) -> None:
    """Keep which address each host saw, and tell of those that changed."""
    memory = seen.Seen(seen.path())
    for target, outcome in zip(targets, outcomes, strict=True):
        named = target.source is not None
        if warning := memory.learn(target.card.fingerprint, outcome, named=named):
            print(f"tariq: warning: {warning}", file=sys.stderr)


class _Progress:
    """A line on a terminal's standard error while many hosts are knocked."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._shown = total > 1 and sys.stderr.isatty()

    def __enter__(self) -> _Progress:
        self._show()
        return self

    def __call__(self, _: Outcome) -> None:
        self._done += 1
        self._show()

    def __exit__(self, *_: object) -> None:
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def _show(self) -> None:
        if self._shown:
            text = f"\rknocking: {self._done} of {self._total} hosts answered or gave up"
            print(text, end="", file=sys.stderr, flush=True)
