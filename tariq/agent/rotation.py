"""Changing a host's keys so that nobody is cut off half-way: for a while, two of them count.

    begin    makes the next key; an agent that starts from now on takes both
    switch   the next key becomes the one on the host's card, and the other the old one
    finish   forgets the old one

Between any two steps, before and after a restart of the agent, clients with the old card
and clients with the new one get in. Each step replaces one file as a whole, and can be
said again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tariq.errors import AgentError

STEPS = ("begin", "switch", "finish")


@dataclass(frozen=True, slots=True)
class Pair:
    """The key on the card, and perhaps another that counts as well: the ``next`` or the ``old``.

    Keys are texts: the knock key itself, or a host key's fingerprint.
    """

    first: str
    role: str = ""
    other: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Return one, or both, the one on the card first."""
        return (self.first, self.other) if self.other else (self.first,)

    @classmethod
    def read(cls, path: Path) -> Pair | None:
        """Read a file of one or two lines; None if it isn't there. Raises AgentError."""
        try:
            first, *more = path.read_text("ascii").splitlines() or [""]
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as why:
            raise AgentError(str(path), f"can't be read: {why}", "mend it, or its mode") from why
        role, _, other = (more or [""])[0].partition(" ")
        if len(more) > 1 or (more and (role not in ("next", "old") or not other)):
            hint = "keep its first line, and restart the agent"
            raise AgentError(str(path), "not a key and perhaps a 'next' or 'old' one", hint)
        return cls(first, role, other)

    def write(self, path: Path) -> None:
        """Replace the file, which nobody else can ever read."""
        line = f"{self.role} {self.other}\n" if self.other else ""
        write_secret(path, f"{self.first}\n{line}".encode("ascii"))

    def begun(self, make: Callable[[], str]) -> Pair:
        """Return this with a next key, which is made unless a change is under way."""
        return self if self.other else Pair(self.first, "next", make())

    def after(self, step: str, thing: str) -> Pair:
        """Return what ``switch`` or ``finish`` makes of this; raise AgentError if too early."""
        if step == "switch":
            return Pair(self.other, "old", self.first) if self.role == "next" else self
        if self.role == "next":
            hint = "run 'tariq agent rotate switch' first, and give everybody the new card"
            raise AgentError(thing, "the next one is not on the card yet", hint)
        return Pair(self.first)


def write_secret(path: Path, data: bytes) -> None:
    """Write a file that is whole or not there, and that nobody else can ever read."""
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    where = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(where)  # the name, too, outlives a loss of power from here on
    finally:
        os.close(where)
