"""``tariq task``: what tasks did on this host, for root there."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tariq.agent import identity, shelf
from tariq.agent.identity import STATE, Places
from tariq.errors import AgentError


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> None:
    """Add the command and its verbs."""
    text = "see what tasks did on this host"
    command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
    verbs = command.add_subparsers(dest="verb", metavar="VERB", required=True)
    listing = verbs.add_parser("list", help="list the runs that are kept")
    listing.set_defaults(run=_list)
    log = verbs.add_parser("log", help="print the whole output of a run")
    log.add_argument("label", metavar="ID", help="as receipts and the list show it")
    log.set_defaults(run=_log)
    for verb in (listing, log):
        verb.add_argument(
            "--state", metavar="DIR", type=Path, default=STATE, help="default: %(default)s"
        )


def _runs(args: argparse.Namespace) -> dict[str, shelf.Run]:
    identity.need_root("tariq task")
    return {run.label: run for run in shelf.read(Places(state=args.state).tasks)}


def _list(args: argparse.Namespace) -> int:
    print("ID        STARTED              OPERATOR  STATE     EXIT  BYTES  TASK")
    for run in _runs(args).values():
        end = run.end or shelf.End(0)
        started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run.t))
        status = "-" if end.exit is None else end.exit
        state = shelf.state_of(run).value
        size = f"{end.size:>6}"
        print(
            f"{run.label}  {started}  {run.operator:8}  {state:8}  {status:>4} {size}  {run.name}"
        )
    return 0


def _log(args: argparse.Namespace) -> int:
    """Print the output as it is: bytes, not text."""
    if args.label not in _runs(args):
        raise AgentError(f"run {args.label}", "not kept here", "see 'tariq task list'")
    sys.stdout.buffer.write(shelf.head(Places(state=args.state).tasks, args.label))
    return 0
