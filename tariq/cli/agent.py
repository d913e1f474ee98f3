"""``tariq agent``: what runs on hosts, as root."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path

from tariq.agent import identity, policy
from tariq.agent.identity import ETC, RUN, STATE, Places
from tariq.strict import Wrong, address


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> None:
    """Add the command and its verbs."""
    text = "run and manage the agent on this host"
    command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
    verbs = command.add_subparsers(dest="verb", metavar="VERB", required=True)

    init = verbs.add_parser("init", help="make this host's keys, where there are none")
    init.add_argument("--json", action="store_true", help="print the result as JSON")
    init.set_defaults(run=_init)

    check = verbs.add_parser("check", help="check a policy")
    check.add_argument("file", metavar="FILE", nargs="?", type=Path)
    check.set_defaults(run=_check)

    card = verbs.add_parser("card", help="print this host's card, for clients")
    card.add_argument("--address", metavar="ADDRESS", type=_address, action="append", default=[])
    card.add_argument("--group", metavar="NAME", action="append", default=[])
    card.set_defaults(run=_card)

    run = verbs.add_parser("run", help="serve until SIGTERM")
    run.set_defaults(run=_run)

    unguard = verbs.add_parser("unguard", help="open every guarded port again, for everybody")
    unguard.set_defaults(run=_unguard)
    for verb in (init, check, card, run, unguard):
        verb.add_argument(
            "--etc", metavar="DIR", type=Path, default=ETC, help="default: %(default)s"
        )
    for verb in (init, card, run):
        verb.add_argument(
            "--state", metavar="DIR", type=Path, default=STATE, help="default: %(default)s"
        )
    run.add_argument(
        "--run",
        dest="run_dir",
        metavar="DIR",
        type=Path,
        default=RUN,
        help="default: %(default)s",
    )


def _address(text: str) -> str:
    try:
        return address(text)
    except Wrong:
        raise argparse.ArgumentTypeError(f"{text!r} is no ip address") from None


def _places(args: argparse.Namespace) -> Places:
    return Places(args.etc, getattr(args, "state", STATE), getattr(args, "run_dir", RUN))


def _init(args: argparse.Namespace) -> int:
    identity.need_root("tariq agent init")
    changed, fingerprint = identity.init(_places(args))
    if args.json:
        print(json.dumps({"changed": changed, "fingerprint": fingerprint}))
    else:
        print(f"{fingerprint}  {'made' if changed else 'unchanged'}")
    return 0


def _check(args: argparse.Namespace) -> int:
    places = _places(args)
    path = args.file or places.policy
    rules = policy.load(path)
    if args.file is None and os.geteuid() == 0:  # what only root may read belongs to it
        identity.knock_key(places)
    print(
        f"{path}: good: policy {rules.serial} of {rules.host}, {len(rules.services)} services,"
        f" {len(rules.operators)} operators"
    )
    return 0


def _card(args: argparse.Namespace) -> int:
    identity.need_root("tariq agent card")
    places = _places(args)
    print(identity.card(places, policy.load(places.policy), args.address, args.group), end="")
    return 0


def _run(args: argparse.Namespace) -> int:
    from tariq.agent import daemon

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s: %(message)s")
    daemon.run(_places(args))
    return 0


def _unguard(_: argparse.Namespace) -> int:
    from tariq.agent.firewall import Nftables

    identity.need_root("tariq agent unguard")
    Nftables().unguard()
    print("guarded ports are open to everybody until the agent starts again")
    return 0
