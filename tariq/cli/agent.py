"""``tariq agent``: what runs on hosts, as root."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import logging
import os
import shlex
import sys
import time
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from tariq.agent import identity, policy_file, rotation, schedule
from tariq.agent import trial as trials
from tariq.agent.identity import ETC, RUN, STATE, Places
from tariq.agent.policy import Decision, Policy, wrong_family
from tariq.agent.tasks import BadParams
from tariq.cli import trial
from tariq.cli.common import duration
from tariq.errors import AgentError, PolicyError, UsageError
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
        usage="tariq agent explain OPERATOR open|close|run NAME [PARAM=VALUE…]"
        " [from ADDRESS] [at WHEN]",
    )
    explain.add_argument("operator", metavar="OPERATOR")
    explain.add_argument("action", choices=["open", "close", "run"])
    explain.add_argument("what", metavar="NAME", help="a service or a task")
    explain.add_argument("clauses", nargs="*", metavar="PARAM=VALUE | from ADDRESS | at WHEN")
    explain.add_argument("--file", metavar="FILE", type=Path, help="another policy")
    explain.set_defaults(run=_explain)

    card = verbs.add_parser("card", help="print this host's card, for clients")
    card.add_argument("--address", metavar="ADDRESS", type=_address, action="append", default=[])
    card.add_argument("--group", metavar="NAME", action="append", default=[])
    card.set_defaults(run=_card)

    rotate = verbs.add_parser(
        "rotate", help="change this host's keys, in three steps between which two count"
    )
    rotate.add_argument("step", choices=rotation.STEPS)
    rotate.add_argument("kinds", nargs="*", metavar="knock|host", help="default: both")
    rotate.add_argument("--json", action="store_true", help="print the result as JSON")
    rotate.set_defaults(run=_rotate)
    audit = verbs.add_parser("audit", help="print what was asked and done here, or verify it")
    audit.add_argument("--verify", action="store_true", help="check the chain of hashes only")
    audit.add_argument("--json", action="store_true", help="one JSON object a line")
    audit.add_argument(
        "--since", metavar="TIME", type=_since, default=0, help="such as 2h, 7d or 2027-01-31"
    )
    audit.set_defaults(run=_audit)

    run = verbs.add_parser("run", help="serve until SIGTERM")
    run.add_argument(
        "--sentry-unit",
        action="store_true",
        help="wait for a sentry that systemd starts, rather than start one",
    )
    run.set_defaults(run=_run)

    guard = verbs.add_parser(
        "guard", help="close guarded ports, as the policy says; no agent needed"
    )
    guard.set_defaults(run=_guard)
    unguard = verbs.add_parser("unguard", help="open every guarded port again, for everybody")
    unguard.set_defaults(run=_unguard)
    trials = trial.add_to(verbs)
    for verb in (init, check, explain, card, audit, rotate, run, guard, unguard, *trials):
        verb.add_argument(
            "--etc", metavar="DIR", type=Path, default=ETC, help="default: %(default)s"
        )
    for verb in (init, card, audit, rotate, run, *trials):
        verb.add_argument(
            "--state", metavar="DIR", type=Path, default=STATE, help="default: %(default)s"
        )
    for verb in (run, guard, unguard):
        verb.add_argument(
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


def _rotate(args: argparse.Namespace) -> int:
    """Take one step for the keys that are named; the agent counts what it read at its start."""
    identity.need_root("tariq agent rotate")
    known = {"knock": identity.rotate_knock_key, "host": identity.rotate_host_key}
    for kind in args.kinds:
        if kind not in known:
            raise UsageError(kind, "no kind of key", f"name {' or '.join(known)}")
    kinds = args.kinds or list(known)
    changed = [kind for kind in kinds if known[kind](_places(args), args.step)]
    if args.json:
        print(json.dumps({"changed": changed}))
    else:
        print(f"{args.step}: {', '.join(changed) or 'nothing'} changed; restart the agent")
    return 0


def _check(args: argparse.Namespace) -> int:
    """Tell every mistake, or that there is none and what is foolish.

    The host's own policy is good only if its agent could start with it; another may be a draft,
    whose users and keys come later. Keys are root's alone to read.
    """
    places = _places(args)
    path = args.file or places.policy
    rules, mistakes = policy_file.check(path)
    keys, unproved = None, ""
    if rules is not None and _same(path, places.policy):
        if os.geteuid() == 0:
            identity.knock_keys(places)
            keys = identity.operators_keys(places)
            unproved = trials.warning(places)
        mistakes = policy_file.absent(path, rules, keys)
    for mistake in mistakes:
        print(f"tariq: {mistake}", file=sys.stderr)
    if rules is None or mistakes:
        return PolicyError.status
    print(f"{path}: good: {policy_file.describe(rules)}")
    warnings = list(policy_file.warnings(rules, dt.datetime.now(rules.timezone).date()))
    warnings += policy_file.key_warnings(rules, keys or {})
    warnings += [unproved] if unproved else []
    for warning in warnings:
        print(f"{path}: warning: {warning}")
    return 0


def _same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:
        return False


def _explain(args: argparse.Namespace) -> int:
    """Say whether a policy allows something, and why, as the warden would find."""
    rules = policy_file.load(args.file or _places(args).policy)
    clauses = _clauses([word for word in args.clauses if "=" not in word])
    values = _values([word for word in args.clauses if "=" in word], args.action)
    if args.operator not in rules.operators:
        raise UsageError(args.operator, "no operator of this policy", "see its operators")
    kind = "tasks" if args.action == "run" else "services"
    if args.what not in (rules.tasks if kind == "tasks" else rules.services):
        raise UsageError(args.what, f"not among the {kind} of this policy", f"see its {kind}")
    now = dt.datetime.now(rules.timezone)
    try:
        when = schedule.moment(clauses["at"], rules.timezone, now) if "at" in clauses else now
    except ValueError:
        hint = "write it as 'sat 03:00' or '2027-01-02 03:00'"
        raise UsageError(f"at {clauses['at']!r}", "no time", hint) from None
    asked = Asked(args.operator, args.what, clauses.get("from"), when)
    if args.action == "close":
        ok, told = True, ["an operator may always close for its own address"]
    elif args.action == "run":
        ok, told = _explain_run(rules, asked, values)
    else:
        ok, told = _explain_open(rules, asked)
    if ok and rules.require_source:
        told.append("the knock must name its address (--source)")
    print(f"{'yes' if ok else 'no'}: {told[0]}", *told[1:], sep="\n")
    return 0 if ok else 1


@dataclass(frozen=True, slots=True)
class Asked:
    """Who asks for which service or task, from which address if one was named, and when."""

    operator: str
    what: str
    source: str | None
    when: dt.datetime

    def decided(self, rules: Policy, kind: str) -> Decision:
        """Return what the policy says; raise UsageError if it depends on an address not named."""
        if self.source is None and rules.depends_on_source(self.operator, kind, self.what):
            raise self.without_source()
        source = self.source or "0.0.0.0"  # noqa: S104 - any will do
        return rules.may(self.operator, kind, self.what, source, self.when.timestamp())

    def without_source(self) -> UsageError:
        """Return the error that no address was named."""
        hint = "name it, as in: from 203.0.113.9"
        return UsageError("from", "not named, and it depends on the address", hint)


def _explain_open(rules: Policy, asked: Asked) -> tuple[bool, list[str]]:
    service = rules.services[asked.what]
    if asked.source is None and len(service.forward) == 1:
        raise asked.without_source()
    if asked.source and (why := wrong_family(asked.what, service, asked.source)):
        return False, [why]
    decision = asked.decided(rules, "services")
    lease = f", for {decision.longest} s at most" if decision.ok else ""
    told = [f"{decision.why}{lease} ({asked.when:%a %Y-%m-%d %H:%M %Z})"]
    if asked.source and any(ip_address(asked.source) in each for each in rules.break_glass):
        told.append(f"{asked.source} needs no lease: it is in break_glass")
    return decision.ok, told


def _explain_run(rules: Policy, asked: Asked, values: dict[str, str]) -> tuple[bool, list[str]]:
    """Also show what would be run."""
    decision, task = asked.decided(rules, "tasks"), rules.tasks[asked.what]
    told = [f"{decision.why} ({asked.when:%a %Y-%m-%d %H:%M %Z})"]
    if not decision.ok:
        return False, told
    try:
        argv = shlex.join(task.fill(values))
    except BadParams as why:
        return False, [f"{asked.what}: {why}"]
    limits = f"in {task.cwd}, for {task.seconds} s at most"
    return True, [*told, f"runs as {task.user}, {limits}: {argv}"]


def _values(words: list[str], action: str) -> dict[str, str]:
    """Read ``PARAM=VALUE``, which only a task takes, each once."""
    found: dict[str, str] = {}
    for word in words:
        name, _, value = word.partition("=")
        if action != "run":
            raise UsageError(word, f"'{action}' takes no parameters", "leave it out")
        if name in found:
            raise UsageError(word, f"a second {name}", "give each parameter once")
        found[name] = value
    return found


def _clauses(words: list[str]) -> dict[str, str]:
    """Read ``from ADDRESS at WHEN`` in any order."""
    found = dict(zip(words[::2], words[1::2], strict=False))
    if len(words) != 2 * len(found) or found.keys() - {"from", "at"}:
        hint = "as in: alice open ssh from 203.0.113.9 at 'sat 03:00'"
        raise UsageError(" ".join(words), "not understood", hint)
    if "from" in found:
        try:
            address(found["from"])
        except Wrong as why:
            raise UsageError(found["from"], why.reason, "name one address") from None
    return found


def _since(text: str) -> int:
    """Read a time before now, or a day, as Unix seconds."""
    try:
        return int(dt.datetime.fromisoformat(text).astimezone().timestamp())
    except ValueError:
        return int(time.time()) - duration(text)


def _audit(args: argparse.Namespace) -> int:
    """Print the trail, or say whether it is whole."""
    from tariq.agent import journal, ledger

    identity.need_root("tariq agent audit")
    path = _places(args).ledger
    if args.verify:
        count, head = ledger.verify_audit(path)
        print(f"{count} rows fit the chain; the last hash is {head}")
        return 0
    for entry in ledger.read_audit(path, args.since):
        if args.json:
            print(json.dumps({**entry.content, "hash": entry.hash}))
            continue
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.content.get("t", 0)))
        print(f"{entry.seq:>6}  {when}  {entry.content.get('id', '-'):8}  ", end="")
        print(journal.message(entry.content))
    return 0


def _card(args: argparse.Namespace) -> int:
    identity.need_root("tariq agent card")
    places = _places(args)
    print(identity.card(places, policy_file.load(places.policy), args.address, args.group), end="")
    return 0


def _run(args: argparse.Namespace) -> int:
    from tariq.agent import daemon

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s: %(message)s")
    places = _places(args)
    daemon.run(places, places.sentry_socket if args.sentry_unit else None)
    return 0


def _guard(args: argparse.Namespace) -> int:
    """Put the guard up; leases that exist live on."""
    from tariq.agent.firewall import Guard, Keeper, choose, in_charge

    identity.need_root("tariq agent guard")
    places = _places(args)
    rules = policy_file.load(places.policy)
    backend, others = choose(rules.firewall)
    if (agent := in_charge(places.unguarded)) not in ("", backend.name):
        reason = f"the agent guards with {agent}, and its policy now says {backend.name}"
        raise AgentError("guard", reason, "systemctl reload tariq-agent, or restart it")
    Keeper(backend, Guard.of(rules), others=others, unguarded=places.unguarded).start()
    print(f"guarding {', '.join(rules.services) or 'nothing'} with {backend.name}")
    return 0


def _unguard(args: argparse.Namespace) -> int:
    """Take the guard down, and keep an agent that runs from putting it back."""
    from tariq.agent.firewall import take_down

    identity.need_root("tariq agent unguard")
    take_down(_places(args).unguarded)
    print(
        "guarded ports are open to everybody until 'tariq agent guard', or the agent's next start"
    )
    return 0
