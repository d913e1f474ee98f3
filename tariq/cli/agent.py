"""``tariq agent``: what runs on hosts, as root."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import logging
import os
import sys
from pathlib import Path

from tariq.agent import identity, policy_file, schedule
from tariq.agent.identity import ETC, RUN, STATE, Places
from tariq.errors import PolicyError, UsageError
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

    explain = verbs.add_parser(
        "explain",
        help="say whether the policy allows something, and why",
        usage="tariq agent explain OPERATOR open|close|run NAME [from ADDRESS] [at WHEN]",
    )
    explain.add_argument("operator", metavar="OPERATOR")
    explain.add_argument("action", choices=["open", "close", "run"])
    explain.add_argument("what", metavar="NAME", help="a service or a task")
    explain.add_argument("clauses", nargs="*", metavar="from ADDRESS | at WHEN")
    explain.add_argument("--file", metavar="FILE", type=Path, help="another policy")
    explain.set_defaults(run=_explain)

    card = verbs.add_parser("card", help="print this host's card, for clients")
    card.add_argument("--address", metavar="ADDRESS", type=_address, action="append", default=[])
    card.add_argument("--group", metavar="NAME", action="append", default=[])
    card.set_defaults(run=_card)

    run = verbs.add_parser("run", help="serve until SIGTERM")
    run.set_defaults(run=_run)

    unguard = verbs.add_parser("unguard", help="open every guarded port again, for everybody")
    unguard.set_defaults(run=_unguard)
    for verb in (init, check, explain, card, run, unguard):
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
    """Tell every mistake, or that there is none and what is foolish."""
    places = _places(args)
    path = args.file or places.policy
    rules, mistakes = policy_file.check(path)
    for mistake in mistakes:
        print(f"tariq: {mistake}", file=sys.stderr)
    if rules is None:
        return PolicyError.status
    print(f"{path}: good: {policy_file.describe(rules)}")
    warnings = list(policy_file.warnings(rules, dt.datetime.now(rules.timezone).date()))
    if args.file is None and os.geteuid() == 0:  # what only root may read belongs to it
        identity.knock_key(places)
        warnings += identity.key_warnings(places, rules)
    for warning in warnings:
        print(f"{path}: warning: {warning}")
    return 0


def _explain(args: argparse.Namespace) -> int:
    """Say whether a policy allows something, and why."""
    rules = policy_file.load(args.file or _places(args).policy)
    clauses = _clauses(args.clauses)
    if args.operator not in rules.operators:
        raise UsageError(args.operator, "no operator of this policy", "see its operators")
    kind = "tasks" if args.action == "run" else "services"
    now = dt.datetime.now(rules.timezone)
    try:
        when = schedule.moment(clauses["at"], rules.timezone, now) if "at" in clauses else now
    except ValueError:
        hint = "write it as 'sat 03:00' or '2027-01-02 03:00'"
        raise UsageError(f"at {clauses['at']!r}", "no time", hint) from None
    source = address(clauses.get("from", "0.0.0.0"))  # noqa: S104 - "from anywhere"
    decision = rules.may(args.operator, kind, args.what, source, when.timestamp())
    lease = f", for {decision.longest} s at most" if decision.ok and kind == "services" else ""
    print(f"{'yes' if decision.ok else 'no'}: {decision.why}{lease} ({when:%a %Y-%m-%d %H:%M %Z})")
    return 0 if decision.ok else 1


def _clauses(words: list[str]) -> dict[str, str]:
    """Read ``from ADDRESS at WHEN`` in any order."""
    found = dict(zip(words[::2], words[1::2], strict=False))
    if len(words) % 2 or found.keys() - {"from", "at"}:
        hint = "as in: alice open ssh from 203.0.113.9 at 'sat 03:00'"
        raise UsageError(" ".join(words), "not understood", hint)
    if "from" in found:
        try:
            address(found["from"])
        except Wrong as why:
            raise UsageError(found["from"], why.reason, "name one address") from None
    return found


def _card(args: argparse.Namespace) -> int:
    identity.need_root("tariq agent card")
    places = _places(args)
    print(identity.card(places, policy_file.load(places.policy), args.address, args.group), end="")
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
