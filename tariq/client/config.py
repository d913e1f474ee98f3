"""Where the client finds things: command line, environment, then its own file.

``~/.config/tariq/config.yml`` may name ``inventory``, ``cards``, ``key``,
``gnupg_home`` and ``transport``; paths in it are relative to it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tariq import strict
from tariq.errors import ConfigError
from tariq.transport.base import TRANSPORTS

_FIELDS = strict.fields(
    {
        "inventory": strict.text,
        "cards": strict.text,
        "key": strict.text,
        "gnupg_home": strict.text,
        "transport": strict.one_of(*TRANSPORTS),
    },
    required=set(),
)
_ENVIRONMENT = {
    "inventory": "TARIQ_INVENTORY",
    "cards": "TARIQ_CARDS",
    "key": "TARIQ_KEY",
    "gnupg_home": "TARIQ_GNUPGHOME",
}


@dataclass(frozen=True, slots=True)
class Config:
    """What a command works with. ``cards`` of None: beside the inventory."""

    gnupg_home: Path
    inventory: tuple[Path, ...] = ()
    cards: Path | None = None
    key: str | None = None
    transport: str | None = None

    @property
    def cards_dir(self) -> Path:
        """The directory of cards: as named, beside the inventory, or the user's own."""
        if self.cards is not None:
            return self.cards
        if self.inventory:
            first = self.inventory[0]
            return (first if first.is_dir() else first.parent) / "cards"
        return directory() / "cards"


def directory() -> Path:
    """Return ``~/.config/tariq``, or where XDG_CONFIG_HOME puts it."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "tariq"


def load(given: Mapping[str, str | None], inventory: Sequence[str] = ()) -> Config:
    """Merge command line (``given``, ``inventory``), environment and file; raise ConfigError."""
    merged = _file(directory() / "config.yml")
    for name, variable in _ENVIRONMENT.items():
        if value := os.environ.get(variable):
            merged[name] = value
    merged |= {name: value for name, value in given.items() if value is not None}

    def path(name: str) -> Path | None:
        return Path(merged[name]).expanduser() if name in merged else None

    named = inventory or [merged[name] for name in ("inventory",) if name in merged]
    return Config(
        gnupg_home=path("gnupg_home") or directory() / "gnupg",
        inventory=tuple(Path(each).expanduser() for each in named),
        cards=path("cards"),
        key=merged.get("key"),
        transport=merged.get("transport"),
    )


def _file(path: Path) -> dict[str, str]:
    try:
        if not path.exists():
            return {}
    except OSError:
        return {}
    raw = strict.read(path, ConfigError, "check its mode")
    try:
        known: dict[str, str] = _FIELDS(raw or {})
    except strict.Wrong as why:
        thing = f"{path}: {why.where}" if why.where else str(path)
        raise ConfigError(thing, why.reason, "see docs/configuration.md") from None
    for name in ("inventory", "cards", "gnupg_home"):
        if name in known:
            known[name] = str(path.parent / Path(known[name]).expanduser())
    return known
