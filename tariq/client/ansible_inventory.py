"""Helper process: resolve a host pattern with ansible-core, print JSON.

    python -m tariq.client.ansible_inventory INVENTORY PATTERN [policy]

With ``policy``, each host also has what the inventory says of its policy, put together
as the role does it: the keys to trust, those that are revoked, and the serial.

Ansible reports an unreadable inventory and an unknown group with success and no
hosts. So whatever it merely warns of is an error here, and every part of the
pattern must name something.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

from tariq.client import ansible_vault
from tariq.client.helper import NO_ANSIBLE, UNKNOWN, UNREADABLE

os.environ["ANSIBLE_INVENTORY_UNPARSED_FAILED"] = "true"
os.environ["ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED"] = "true"
os.environ.setdefault("ANSIBLE_LOCALHOST_WARNING", "false")
os.environ.setdefault("ANSIBLE_DEPRECATION_WARNINGS", "false")

_PLAIN = re.compile(r"[A-Za-z0-9_.-]+")


def _hosts(inventory: str, pattern: str, *, policy: bool) -> list[dict[str, Any]]:
    from ansible.inventory.manager import InventoryManager
    from ansible.parsing.dataloader import DataLoader
    from ansible.plugins.loader import init_plugin_loader
    from ansible.template import Templar
    from ansible.vars.manager import VariableManager

    init_plugin_loader()  # else no ansible.builtin.… is found
    loader = DataLoader()
    ansible_vault.secrets(loader)
    manager = InventoryManager(loader=loader, sources=[inventory])
    _require_known(manager, pattern)
    variables = VariableManager(loader=loader, inventory=manager)

    def about(host: Any) -> dict[str, Any]:  # noqa: ANN401
        known = variables.get_vars(host=host)
        templar = Templar(loader=loader, variables=known)

        def value(name: str, default: Any = None) -> Any:  # noqa: ANN401
            return templar.template(known[name]) if name in known else default

        cards = value("tariq_cards_dir")
        found = {"name": str(host.name), "cards": None if cards is None else str(cards)}
        return found | (_policy(known, value) if policy else {})

    return [about(host) for host in manager.list_hosts(pattern)]


def _policy(known: Iterable[str], value: Callable[..., Any]) -> dict[str, Any]:
    """Return what roles/tariq (tasks/merge.yml, templates/operators.json.j2) makes of it."""
    operators: dict[str, Any] = {}
    nowhere: set[str] = set()
    others = sorted(name for name in known if re.fullmatch(r"tariq_operators_.+", name))
    for name in ("tariq_operators", *others):
        found = value(name, {})
        operators |= found
        nowhere |= {each for each, entry in found.items() if entry is None}
    entries = [entry for name, entry in operators.items() if name not in nowhere]
    entries += [entry["next"] for entry in entries if entry.get("next")]
    revoked = {_digits(each) for each in value("tariq_revoked", [])}
    keys = {_digits(entry["fingerprint"]) for entry in entries}
    serial = int(value("tariq_policy_serial", 1))
    return {"keys": sorted(keys - revoked), "revoked": sorted(revoked), "serial": serial}


def _digits(fingerprint: object) -> str:
    return str(fingerprint).replace(" ", "").upper()


def _require_known(manager: Any, pattern: str) -> None:  # noqa: ANN401
    for part in re.split(r"[:,]", pattern):
        name = part.lstrip("!&")
        known = name in manager.groups or name in manager.hosts or name in ("all", "*")
        if _PLAIN.fullmatch(name) and not known:
            print(f"{name} is neither a host nor a group", file=sys.stderr)
            sys.exit(UNKNOWN)


def main(inventory: str, pattern: str, more: str = "") -> None:
    """Print ``{"hosts": [{"name", "cards", …}]}``."""
    try:
        import ansible  # noqa: F401
    except ImportError:
        sys.exit(NO_ANSIBLE)
    try:
        hosts = _hosts(inventory, pattern, policy=more == "policy")
    except Exception as why:  # noqa: BLE001 - plugins of any make; told as one line
        print(" ".join(str(why).split()), file=sys.stderr)
        sys.exit(UNREADABLE)
    json.dump({"hosts": hosts}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
