"""``tariq key``: the operator's own key."""

from __future__ import annotations

import argparse

from tariq.cli import common
from tariq.openpgp import OperatorKey


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> None:
    """Add the command and its verbs."""
    text = "make, unlock, list and export operators' keys"
    command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
    verbs = command.add_subparsers(dest="verb", metavar="VERB", required=True)

    new = verbs.add_parser("new", help="make a key (Ed25519)")
    new.add_argument("name", metavar="NAME", help="your name, as the policy will call you")
    new.add_argument(
        "--no-passphrase", action="store_true", help="for a robot: whoever reads the file is you"
    )
    new.set_defaults(run=_new)

    unlock = verbs.add_parser("unlock", help="sign once, so that gpg-agent knows the passphrase")
    unlock.set_defaults(run=_unlock)

    listing = verbs.add_parser("list", help="list the keys that can sign here")
    listing.set_defaults(run=_list)

    export = verbs.add_parser("export", help="print a public key, for the hosts")
    export.set_defaults(run=_export)
    for verb in (unlock, export):
        verb.add_argument("name", metavar="NAME", nargs="?", help="default: the only one")
    for verb in (new, unlock, listing, export):
        verb.add_argument("--gnupg-home", metavar="DIR", help="default: ~/.config/tariq/gnupg")


def _new(args: argparse.Namespace) -> int:
    home = common.settings(args).gnupg_home
    key = OperatorKey.make(home, args.name, passphrase=not args.no_passphrase)
    print(f"{key.fingerprint}  {key.name}")
    return 0


def _list(args: argparse.Namespace) -> int:
    home = common.settings(args).gnupg_home
    keys = OperatorKey.all(home) if home.is_dir() else []
    for key in keys:
        print(f"{key.fingerprint}  {key.name}")
    return 0


def _unlock(args: argparse.Namespace) -> int:
    _named(args).sign(b"")
    return 0


def _export(args: argparse.Namespace) -> int:
    print(_named(args).export(), end="")
    return 0


def _named(args: argparse.Namespace) -> OperatorKey:
    known = common.settings(args)
    return OperatorKey.find(known.gnupg_home, args.name or known.key)
