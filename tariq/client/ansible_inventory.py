"""Helper process: resolve a host pattern with ansible-core, print JSON.

    python -m tariq.client.ansible_inventory INVENTORY PATTERN

Ansible reports an unreadable inventory and an unknown group with success and no
hosts. So whatever it merely warns of is an error here, and every part of the
pattern must name something.
"""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any

from tariq.client.inventory import NO_ANSIBLE, UNKNOWN, UNREADABLE

os.environ["ANSIBLE_INVENTORY_UNPARSED_FAILED"] = "true"
os.environ["ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED"] = "true"
os.environ.setdefault("ANSIBLE_LOCALHOST_WARNING", "false")
os.environ.setdefault("ANSIBLE_DEPRECATION_WARNINGS", "false")

_PLAIN = re.compile(r"[A-Za-z0-9_.-]+")


def _hosts(inventory: str, pattern: str) -> list[dict[str, str | None]]:
    from ansible.inventory.manager import InventoryManager
    from ansible.parsing.dataloader import DataLoader
    from ansible.template import Templar
    from ansible.vars.manager import VariableManager

    loader = DataLoader()
    _vault_secrets(loader)
    manager = InventoryManager(loader=loader, sources=[inventory])
    _require_known(manager, pattern)
    variables = VariableManager(loader=loader, inventory=manager)

    def cards(host: Any) -> str | None:  # noqa: ANN401
        known = variables.get_vars(host=host)
        if "tariq_cards_dir" not in known:
            return None
        templar = Templar(loader=loader, variables=known)
        return str(templar.template(known["tariq_cards_dir"]))

    return [{"name": str(h.name), "cards": cards(h)} for h in manager.list_hosts(pattern)]


def _vault_secrets(loader: Any) -> None:  # noqa: ANN401
    """Use the vault passwords that ansible.cfg or ANSIBLE_VAULT_PASSWORD_FILE names."""
    from ansible import constants
    from ansible.cli import CLI

    ids = [*(constants.DEFAULT_VAULT_IDENTITY_LIST or [])]
    if constants.DEFAULT_VAULT_PASSWORD_FILE:
        ids.append(f"{constants.DEFAULT_VAULT_IDENTITY}@{constants.DEFAULT_VAULT_PASSWORD_FILE}")
    if ids:
        loader.set_vault_secrets(CLI.setup_vault_secrets(loader, vault_ids=ids, auto_prompt=False))


def _require_known(manager: Any, pattern: str) -> None:  # noqa: ANN401
    for part in re.split(r"[:,]", pattern):
        name = part.lstrip("!&")
        known = name in manager.groups or name in manager.hosts or name in ("all", "*")
        if _PLAIN.fullmatch(name) and not known:
            print(f"{name} is neither a host nor a group", file=sys.stderr)
            sys.exit(UNKNOWN)


def main(inventory: str, pattern: str) -> None:
    """Print ``{"hosts": [{"name", "cards"}]}``."""
    try:
        import ansible  # noqa: F401
    except ImportError:
        sys.exit(NO_ANSIBLE)
    try:
        hosts = _hosts(inventory, pattern)
    except Exception as why:  # noqa: BLE001 - plugins of any make; told as one line
        print(" ".join(str(why).split()), file=sys.stderr)
        sys.exit(UNREADABLE)
    json.dump({"hosts": hosts}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
