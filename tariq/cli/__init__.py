"""The command line. Each command is one file; each is imported only when it is used."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from tariq import __version__
from tariq.errors import TariqError

_COMMANDS = ("knock", "close", "status", "run", "proxy", "key", "fleet", "task", "agent")
_MODULES = dict.fromkeys(("knock", "close", "status"), "request")
INTERNAL_ERROR, INTERRUPTED = 70, 130
"""sysexits.h's EX_SOFTWARE, and what a shell says of SIGINT."""


def parser(only: str | None = None) -> argparse.ArgumentParser:
    """Return the parser; ``only`` names the command to load, None loads them all."""
    top = argparse.ArgumentParser(
        prog="tariq",
        description="Open firewall ports on hosts that nobody can see, with one signed packet.",
    )
    top.add_argument("--version", action="version", version=f"tariq {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in _COMMANDS:
        if only is None or only == name:
            import_module(f"tariq.cli.{_MODULES.get(name, name)}").add_to(commands, name)
    return top


def _parse(top: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Parse, and let hosts stand after options too, which argparse's ``*`` doesn't."""
    args, rest = top.parse_known_args(words)
    if rest and (not hasattr(args, "hosts") or any(word.startswith("-") for word in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.hosts += rest
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status (docs/exit-statuses.md)."""
    words = list(sys.argv[1:] if argv is None else argv)
    only = words[0] if words and words[0] in _COMMANDS else None
    args = _parse(parser(only), words)
    try:
        status: int = args.run(args)
        sys.stdout.flush()
    except TariqError as why:
        print(f"tariq: {why}", file=sys.stderr)
        return why.status
    except KeyboardInterrupt:
        print("tariq: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as why:
        if os.environ.get("TARIQ_DEBUG"):
            raise
        text = " ".join(f"{type(why).__name__}: {why}".split())
        print(
            f"tariq: internal error: {text}; run again with TARIQ_DEBUG=1 and report it",
            file=sys.stderr,
        )
        return INTERNAL_ERROR
    return status
