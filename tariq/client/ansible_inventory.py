"""Helper process: resolve a host pattern with ansible-core, print JSON.

    python -m tariq.client.ansible_inventory hosts|policy PATTERN INVENTORY...

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
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tariq.client import ansible_vault
from tariq.client.helper import NO_ANSIBLE, UNKNOWN, UNREADABLE

os.environ["ANSIBLE_INVENTORY_UNPARSED_FAILED"] = "true"
os.environ["ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED"] = "true"
os.environ.setdefault("ANSIBLE_LOCALHOST_WARNING", "false")
os.environ.setdefault("ANSIBLE_DEPRECATION_WARNINGS", "false")

_PLAIN = re.compile(r"[A-Za-z0-9_.-]+")
_REVOKED = re.compile(r"tariq_revoked(_.+)?")
_FINGERPRINT = re.compile(r"[0-9A-F]{40}")


def _hosts(inventories: Sequence[str], pattern: str, *, policy: bool) -> list[dict[str, Any]]:
    from ansible.inventory.manager import InventoryManager
    from ansible.parsing.dataloader import DataLoader
    from ansible.plugins.loader import init_plugin_loader
    from ansible.template import Templar
    from ansible.vars.manager import VariableManager

    init_plugin_loader()  # else no ansible.builtin.… is found
    loader = DataLoader()
    ansible_vault.secrets(loader)
    manager = InventoryManager(loader=loader, sources=list(inventories))
    _require_known(manager, pattern)
    variables = VariableManager(loader=loader, inventory=manager)

    def about(host: Any) -> dict[str, Any]:  # noqa: ANN401
        known = variables.get_vars(host=host)
        templar = Templar(loader=loader, variables=known)

        def value(name: str, default: Any = None) -> Any:  # noqa: ANN401
            return templar.template(known[name]) if name in known else default

        cards, beside = value("tariq_cards_dir"), known.get("inventory_dir")
        return {
            "name": str(host.name),
            "cards": None if cards is None else str(cards),
            "beside": None if beside is None else str(beside),
            **(_policy(known, value, revoked) if policy else {}),
        }

    revoked = _revoked(manager, loader, variables) if policy else set()
    return [about(host) for host in manager.list_hosts(pattern)]


def _revoked(manager: Any, loader: Any, variables: Any) -> set[str]:  # noqa: ANN401
    """Return the keys that are revoked anywhere in the inventory.

    Of two lists with the same name Ansible shows a host the nearer one. Here each counts, and
    for all hosts, so that no key passes as trusted because another list hides its own.
    """
    from ansible.template import Templar
    from ansible.vars.plugins import get_vars_from_inventory_sources as from_files

    def own(place: Any) -> list[tuple[str, Any]]:  # noqa: ANN401 - a group, or a host
        found = from_files(loader, manager._sources, [place], "all")
        both = [*place.get_vars().items(), *found.items()]
        return [(name, said) for name, said in both if _REVOKED.fullmatch(name)]

    groups = {name: own(group) for name, group in manager.groups.items()}
    found: set[str] = set()
    for host in manager.list_hosts("all"):
        known = variables.get_vars(host=host)
        templar = Templar(loader=loader, variables=known)
        lists = [(name, said) for name, said in known.items() if _REVOKED.fullmatch(name)]
        lists += own(host)
        lists += [each for group in host.get_groups() for each in groups[group.name]]
        for name, said in lists:
            found |= _fingerprints(name, templar.template(said))
    return found


def _fingerprints(name: str, said: object) -> set[str]:
    wrong = f"{name} must be a list of fingerprints"
    if not isinstance(said, list):
        raise TypeError(wrong)
    for each in said:
        if not _FINGERPRINT.fullmatch(_digits(each)):
            raise ValueError(f"{wrong}: {str(each)!r} has not 40 hex digits")
    return {_digits(each) for each in said}


def _policy(known: Iterable[str], value: Callable[..., Any], revoked: set[str]) -> dict[str, Any]:
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


def main(what: str, pattern: str, *inventories: str) -> None:
    """Print ``{"hosts": [{"name", "cards", "beside", …}]}``."""
    try:
        import ansible  # noqa: F401
    except ImportError:
        sys.exit(NO_ANSIBLE)
    try:
        hosts = _hosts(inventories, pattern, policy=what == "policy")
    except Exception as why:  # noqa: BLE001 - plugins of any make; told as one line
        print(" ".join(str(why).split()), file=sys.stderr)
        sys.exit(UNREADABLE)
    json.dump({"hosts": hosts}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
