"""Groups of hosts, from an Ansible inventory.

ansible-core runs in a helper process (``ansible_inventory``); commands that name their
hosts don't start it.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tariq.client import helper
from tariq.client.config import Config
from tariq.errors import InventoryError, NoHostsError, UnknownHostError


@dataclass(frozen=True, slots=True)
class Selected:
    """One host of a pattern; ``cards`` is its own ``tariq_cards_dir``, if it has one.

    ``beside`` is the directory of the inventory that it comes from. With ``policy``: the
    fingerprints that it should trust, those that nobody should, and its policy's serial.
    """

    name: str
    cards: Path | None
    keys: frozenset[str] = frozenset()
    revoked: frozenset[str] = frozenset()
    serial: int = 0
    beside: Path | None = None

    def cards_dir(self, known: Config) -> Path:
        """Return the directory that its card is in, which is where the role puts it."""
        return self.cards or known.cards or (self.beside or known.cards_dir.parent) / "cards"


def select(inventory: Sequence[Path], pattern: str, *, policy: bool = False) -> list[Selected]:
    """Return the hosts of a pattern, as ``ansible --limit`` would read it.

    Raises InventoryError, UnknownHostError, and NoHostsError where nothing is selected.
    """
    if not inventory:
        hint = "pass --inventory FILE, or set TARIQ_INVENTORY"
        raise InventoryError(f"group {pattern!r}", "no inventory is named", hint)
    for each in inventory:
        if not each.exists():
            raise InventoryError(str(each), "no such inventory", "check the path")
    hosts = [_selected(host) for host in _ask(inventory, pattern, policy=policy)["hosts"]]
    if not hosts:
        hint = "check the pattern with 'ansible-inventory --graph'"
        raise NoHostsError(f"group {pattern!r}", f"no host in {_named(inventory)}", hint)
    return hosts


def _selected(host: dict[str, Any]) -> Selected:
    cards, beside = (Path(host[name]) if host[name] else None for name in ("cards", "beside"))
    keys, revoked = (frozenset(host.get(name, ())) for name in ("keys", "revoked"))
    return Selected(host["name"], cards, keys, revoked, host.get("serial", 0), beside)


def _named(inventory: Sequence[Path]) -> str:
    return ", ".join(map(str, inventory))


def _ask(
    inventory: Sequence[Path], pattern: str, *, policy: bool
) -> dict[str, list[dict[str, Any]]]:
    what = "policy" if policy else "hosts"
    try:
        done = helper.run("ansible_inventory", what, pattern, *map(str, inventory))
    except subprocess.TimeoutExpired as why:
        hint = "check its dynamic sources with 'ansible-inventory --list'"
        raise InventoryError(_named(inventory), f"no answer in {helper.SECONDS} s", hint) from why
    if done.returncode == 0:
        answer: dict[str, list[dict[str, Any]]] = json.loads(done.stdout)
        return answer
    if done.returncode == helper.UNKNOWN:
        hint = "check the name, or pass another --inventory"
        raise UnknownHostError(pattern, f"not in {_named(inventory)}", hint)
    if done.returncode == helper.NO_ANSIBLE:
        hint = "pip install 'tariq[fleet]', or name the hosts themselves"
        raise InventoryError("ansible-core", "not installed", hint)
    reason = f"can't be read: {helper.reason(done)}"
    raise InventoryError(_named(inventory), reason, "mend the inventory")
