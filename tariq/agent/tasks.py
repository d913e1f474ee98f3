"""Tasks: named commands with a fixed argv, whose parameters are checked before they are filled in.

There is never a shell, and a value is never split: it is one argument, or a part of one.
``policy_file`` reads tasks, the warden fills them, ``runner`` runs them.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

from tariq.agent.pattern import Pattern

_FREE = ("/..", "a b", ";$*")
"""What a pattern that accepts two of these hardly restricts."""
_SHELL = re.compile(r"(?:.*/)?(?:(?:ba|da|a|k|mk|z|c|tc|fi)?sh|su|runuser)")
_PROGRAM = re.compile(r"-[A-Za-z]*c[A-Za-z]*")


class BadParams(Exception):
    """Parameters that a task doesn't take: names what is wrong with which."""


class Param(Protocol):
    """A kind of parameter."""

    @property
    def dash(self) -> bool:
        """Whether a value that begins an argument may begin with ``-``."""

    def wrong(self, value: str) -> str | None:
        """Return what is wrong with a value, or None."""


@dataclass(frozen=True, slots=True)
class Int:
    """A whole number within a range."""

    low: int
    high: int
    dash: bool = True

    def wrong(self, value: str) -> str | None:
        """See ``Param``; one spelling only, so ``007`` and ``+7`` are no numbers."""
        digits = value.removeprefix("-")
        plain = digits.isascii() and digits.isdigit() and len(digits) < 16
        if plain and str(int(value)) == value and self.low <= int(value) <= self.high:
            return None
        return f"not a whole number from {self.low} to {self.high}"


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some words."""

    words: tuple[str, ...]
    dash: bool = True

    def wrong(self, value: str) -> str | None:
        """See ``Param``."""
        return None if value in self.words else f"not one of {', '.join(self.words)}"


@dataclass(frozen=True, slots=True)
class Text:
    """Printable ASCII that a pattern matches as a whole."""

    pattern: Pattern
    length: int
    dash: bool = False

    def wrong(self, value: str) -> str | None:
        """See ``Param``."""
        if not value or len(value) > self.length:
            return f"not 1 to {self.length} characters"
        if not (value.isascii() and value.isprintable()):
            return "not printable ascii"
        if not self.pattern.matches(value):
            return f"doesn't match {self.pattern.source}"
        return None

    @property
    def free(self) -> bool:
        """Whether it hardly restricts anything, as ``.*`` and ``[^;]+`` do."""
        return sum(self.pattern.matches(probe[: self.length]) for probe in _FREE) > 1


@dataclass(frozen=True, slots=True)
class Task:
    """A command; ``seconds`` it may take, ``output`` bytes of which are kept."""

    argv: tuple[str, ...]
    user: str
    params: Mapping[str, Param] = field(default_factory=dict)
    group: str | None = None
    cwd: str = "/"
    seconds: int = 60
    output: int = 65_536
    concurrent: bool = False

    def fill(self, args: Mapping[str, str]) -> list[str]:
        """Return the argv of one run; raise BadParams."""
        if missing := sorted(self.params.keys() - args.keys()):
            raise BadParams(f"without {', '.join(missing)}")
        if unknown := sorted(args.keys() - self.params.keys()):
            raise BadParams(f"no parameter {unknown[0]!r}")
        for name, param in self.params.items():
            if why := param.wrong(args[name]):
                raise BadParams(f"{name}: {why}")
        return [self._filled(item, args) for item in self.argv]

    def _filled(self, item: str, args: Mapping[str, str]) -> str:
        """Fill one item; a value that begins it must not turn it into an option."""
        parts = list(template(item))
        text = "".join(literal + (args[name] if name else "") for literal, name in parts)
        literal, first = parts[0] if parts else ("", None)
        if first and not literal and text.startswith("-") and not self.params[first].dash:
            raise BadParams(f"{first}: begins with '-'")
        return text


def template(item: str) -> Iterator[tuple[str, str | None]]:
    """Yield literal text and the parameter after it; ``{{`` and ``}}`` are braces.

    Raises ValueError for what is no template.
    """
    for literal, name, spec, conversion in string.Formatter().parse(item):
        if spec or conversion or name == "":
            raise ValueError("a placeholder is a name in braces, such as {version}")
        yield literal, name


def in_shell(argv: Sequence[str]) -> list[str]:
    """Return the parameters that an argv makes a part of a shell's program, by ``-c``."""
    shell = False
    for item, following in pairwise(argv):
        shell = shell or _SHELL.fullmatch(item) is not None
        if shell and _PROGRAM.fullmatch(item):
            return [name for _, name in template(following) if name]
    return []
