"""Groups of hosts, from an Ansible inventory.

ansible-core takes 0.5 s to import and is GPL-3.0-or-later, so it runs in a helper
process (``ansible_inventory``) that prints JSON; commands that name their hosts
don't start it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tariq.errors import InventoryError, NoHostsError, UnknownHostError

_SECONDS = 120
NO_ANSIBLE, UNREADABLE, UNKNOWN = 3, 4, 5
"""Exit statuses of the helper."""


@dataclass(frozen=True, slots=True)
class Selected:
    """One host of a pattern; ``cards`` is its own ``tariq_cards_dir``, if it has one."""

    name: str
    cards: Path | None


def select(inventory: Path | None, pattern: str) -> list[Selected]:
    """Return the hosts of a pattern, as ``ansible --limit`` would read it.

    Raises InventoryError, UnknownHostError, and NoHostsError where nothing is selected.
    """
    if inventory is None:
        hint = "pass --inventory FILE, or set TARIQ_INVENTORY"
        raise InventoryError(f"group {pattern!r}", "no inventory is named", hint)
    if not inventory.exists():
        raise InventoryError(str(inventory), "no such inventory", "check the path")
    answer = _ask(inventory, pattern)
    hosts = [
        Selected(host["name"], Path(host["cards"]) if host["cards"] else None)
        for host in answer["hosts"]
    ]
    if not hosts:
        hint = "check the pattern with 'ansible-inventory --graph'"
        raise NoHostsError(f"group {pattern!r}", f"no host in {inventory}", hint)
    return hosts


def _ask(inventory: Path, pattern: str) -> dict[str, list[dict[str, str]]]:
    command = [sys.executable, "-m", "tariq.client.ansible_inventory", str(inventory), pattern]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired as why:
        hint = "check its dynamic sources with 'ansible-inventory --list'"
        raise InventoryError(str(inventory), f"no answer in {_SECONDS} s", hint) from why
    if done.returncode == 0:
        answer: dict[str, list[dict[str, str]]] = json.loads(done.stdout)
        return answer
    reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    if done.returncode == UNKNOWN:
        hint = "check the name, or pass another --inventory"
        raise UnknownHostError(pattern, f"not in {inventory}", hint)
    if done.returncode == NO_ANSIBLE:
        hint = "pip install 'tariq[fleet]', or name the hosts themselves"
        raise InventoryError("ansible-core", "not installed", hint)
    raise InventoryError(str(inventory), f"can't be read: {reason}", "mend the inventory")
