"""``tariq run``: run a named task on hosts."""

from __future__ import annotations

import argparse

from tariq.cli import request
from tariq.client.knock import Wish
from tariq.errors import UsageError
from tariq.message import MAX_VALUE, NAME, Action

_USAGE = """\
tariq run HOST[,HOST…] TASK [PARAM=VALUE…] [options]
       tariq run --group PATTERN TASK [PARAM=VALUE…] [options]"""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> None:
    """Add the command."""
    text = "run a task that hosts' policies name"
    command = commands.add_parser(
        name, help=text, description=text.capitalize() + ".", usage=_USAGE
    )
    command.add_argument(
        "hosts", metavar="HOST[,HOST…] TASK [PARAM=VALUE…]", nargs="*", help="with --group, no HOST"
    )
    command.add_argument("--group", "-g", metavar="PATTERN", help="hosts of an Ansible inventory")
    request.add_options(command)
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    words = list(args.hosts)
    hosts = [] if args.group or not words else words.pop(0).split(",")
    if not words:
        raise UsageError("task", "none is named", "write it as: tariq run web1 deploy version=v1")
    task = words.pop(0)
    if not NAME.fullmatch(task):
        hint = "it comes after the hosts, or alone with --group"
        raise UsageError(repr(task), "no name of a task", hint)
    args.hosts = hosts
    return request.ask(args, Wish(Action.RUN, (task,), args=_params(words)))


def _params(words: list[str]) -> dict[str, str]:
    """Read ``version=v1.2.3 env=staging``."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not NAME.fullmatch(name):
            raise UsageError(repr(word), "no parameter", "write each as name=value")
        if name in found:
            raise UsageError(name, "given twice", "give each parameter once")
        if len(value) > MAX_VALUE:
            reason = f"longer than {MAX_VALUE} characters"
            raise UsageError(name, reason, "no host would take it")
        found[name] = value
    return found
