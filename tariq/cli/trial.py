"""``tariq agent trial``: guard on trial, so that a mistake can't lock anybody out."""

from __future__ import annotations

import argparse
import json

from tariq.agent import identity
from tariq.agent import trial as trials
from tariq.agent.identity import Places

_DAY = 86_400


def add_to(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
) -> list[argparse.ArgumentParser]:
    """Add the verb and its own verbs, and return these."""
    trial = verbs.add_parser("trial", help="start the agent on trial: unconfirmed, it ends itself")
    steps = trial.add_subparsers(dest="step", metavar="STEP", required=True)

    begin = steps.add_parser("begin", help="start the agent, print a token, and count down")
    begin.add_argument("--seconds", metavar="N", type=_seconds, default=90, help="default: 90")
    begin.set_defaults(run=_begin)

    confirm = steps.add_parser("confirm", help="keep it, if a new ssh connection came through")
    confirm.add_argument("token", metavar="TOKEN", help="what 'begin' printed")
    confirm.add_argument("--untried", action="store_true", help="without that proof")
    confirm.set_defaults(run=_confirm)

    end = steps.add_parser("end", help="give it up now: stop the agent and open its ports")
    end.add_argument("token", metavar="TOKEN", nargs="?", help="only this trial")
    end.set_defaults(run=_end)

    status = steps.add_parser("status", help="say whether what is installed was confirmed")
    status.add_argument("--json", action="store_true", help="print the answer as JSON")
    status.set_defaults(run=_status)

    may = steps.add_parser("may-start", help="for the units: may they, on a host that starts")
    may.set_defaults(run=_may_start)
    return [begin, confirm, end, status, may]


def _seconds(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= _DAY:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to {_DAY}")
    return int(text)


def _places(args: argparse.Namespace) -> Places:
    identity.need_root(f"tariq agent trial {args.step}")
    return Places(args.etc, args.state)


def _begin(args: argparse.Namespace) -> int:
    print(trials.begin(_places(args), args.seconds))
    return 0


def _confirm(args: argparse.Namespace) -> int:
    trials.confirm(_places(args), args.token, untried=args.untried)
    print("confirmed: the agent is in service, and will be after a restart of the host")
    return 0


def _end(args: argparse.Namespace) -> int:
    if trials.end(_places(args), args.token):
        print("the agent is stopped, and its ports are open; the next deployment tries again")
    else:
        print("no such trial is running")
    return 0


def _status(args: argparse.Namespace) -> int:
    """Exit with 0 only if confirmed."""
    found = trials.status(_places(args))
    if args.json:
        print(json.dumps({"state": found.state, "reason": found.reason}))
    else:
        print(f"{found.state}: {found.reason}" if found.reason else found.state)
    return 0 if found.state == "confirmed" else 1


def _may_start(args: argparse.Namespace) -> int:
    trials.check_start(_places(args))
    return 0
