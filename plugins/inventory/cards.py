# Copyright: The Tariq contributors
# MIT License (see LICENSE, or https://opensource.org/license/mit)
"""Hosts out of a folder of host cards."""

from __future__ import annotations

import ipaddress
import re
import shlex
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError, AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin, Constructable

DOCUMENTATION = r"""
name: cards
short_description: Hosts, groups and addresses from a folder of host cards
version_added: 0.1.0
author:
  - The Tariq contributors (@tariq)
description:
  - Reads the host cards that the role C(tariq.tariq.tariq) brought to the controller, one file
    C(NAME.yml) per host. Cards may be encrypted with ansible-vault.
  - Gives each host C(ansible_host), its groups, C(tariq_cards_dir), the mapping C(tariq_card) with
    C(addresses), C(fingerprint), C(policy), C(port) and C(services), and the ProxyCommand with
    which Ansible knocks before it connects. No key of the card becomes a variable.
  - The name of its configuration file must end in C(cards.yml) or C(cards.yaml).
notes:
  - A card holds what its host said when it was deployed. Its name must be that of its file. If a
    host that somebody else took over must not be able to name its own groups and addresses, keep
    an inventory of your own, or set O(use_groups=false) and compare the addresses.
extends_documentation_fragment:
  - ansible.builtin.constructed
options:
  plugin:
    description:
      - Marks the file as one for this plugin.
    type: str
    required: true
    choices:
      - tariq.tariq.cards
  path:
    description:
      - The folder of cards; relative to this file.
    type: str
    default: cards
  ip_version:
    description:
      - Which of a card's addresses C(ansible_host) is; the first, whatever it is, by default.
      - A host whose card has no such address is an error.
    type: int
    choices: [4, 6]
  use_groups:
    description:
      - Whether the groups that cards name are made.
    type: bool
    default: true
  proxy:
    description:
      - Whether C(ansible_ssh_common_args) gets the ProxyCommand that knocks.
    type: bool
    default: true
  program:
    description:
      - The program C(tariq) in that ProxyCommand.
    type: str
    default: tariq
"""

EXAMPLES = r"""
# inventories/mine/cards.yml, with the cards in inventories/mine/cards/
plugin: tariq.tariq.cards

# All cards of a folder elsewhere, over IPv6; one group per policy serial, such as serial_12.
# plugin: tariq.tariq.cards
# path: ~/.config/tariq/cards
# ip_version: 6
# keyed_groups:
#   - key: tariq_card.policy | string
#     prefix: serial
"""

# What a host wrote ends in variables and on a command line, so each value has a form that can
# hold neither a template nor a shell's or ssh's own signs.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}", re.ASCII)
SERVICE = re.compile(r"(tcp|udp)/[0-9]{1,5}", re.ASCII)
FINGERPRINT = re.compile(r"[0-9A-F]{40}([0-9A-F]{24})?", re.ASCII)


class WrongCard(ValueError):
    """What of a card can't be used, and why."""


class InventoryModule(BaseInventoryPlugin, Constructable):  # type: ignore[misc]
    """The inventory plugin tariq.tariq.cards."""

    NAME = "tariq.tariq.cards"

    def verify_file(self, path: str) -> bool:
        """Tell whether a file is a configuration of this plugin, by its name."""
        return path.endswith(("cards.yml", "cards.yaml")) and bool(super().verify_file(path))

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:  # noqa: ANN401
        """Add every card's host; raise AnsibleParserError for a card that can't be used."""
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        folder = Path(path).absolute().parent / Path(self.get_option("path")).expanduser()
        if not folder.is_dir():
            raise AnsibleParserError(f"{folder}: no such folder of cards; see 'path' in {path}")
        for file in sorted(folder.glob("*.yml")):
            try:
                self._add(file)
            except WrongCard as why:
                hint = "deploy to the host again to write a new card"
                raise AnsibleParserError(f"{file}: {why}; {hint}") from None

    def _add(self, file: Path) -> None:
        card = read_card(self._read(file), file.stem)
        host = card.pop("name")
        self.inventory.add_host(host)
        groups = card.pop("groups")
        for group in groups if self.get_option("use_groups") else []:
            self.inventory.add_child(self.inventory.add_group(group), host)
        variables = {
            "ansible_host": _address(card["addresses"], self.get_option("ip_version")),
            "tariq_cards_dir": str(file.parent),
            "tariq_card": card,
        }
        if self.get_option("proxy"):
            variables["ansible_ssh_common_args"] = self._proxy(file.parent, host)
        for name, value in variables.items():
            self.inventory.set_variable(host, name, value)
        self._construct(host)

    def _read(self, file: Path) -> Any:  # noqa: ANN401
        try:
            return self.loader.load_from_file(str(file), cache="none")
        except AnsibleError as why:
            raise WrongCard(" ".join(str(why).split())) from None

    def _proxy(self, folder: Path, host: str) -> str:
        words = [self.get_option("program"), "proxy", "--cards", str(folder)]
        # "%" begins a sign of ssh's own, such as %h.
        command = shlex.join(words).replace("%", "%%")
        return "-o " + shlex.quote(f"ProxyCommand={command} {host} %p")

    def _construct(self, host: str) -> None:
        strict = self.get_option("strict")
        known = self.inventory.get_host(host).get_vars()
        self._set_composite_vars(self.get_option("compose"), known, host, strict)
        known = self.inventory.get_host(host).get_vars()
        self._add_host_to_composed_groups(self.get_option("groups"), known, host, strict)
        self._add_host_to_keyed_groups(self.get_option("keyed_groups"), known, host, strict)


def read_card(raw: Any, stem: str) -> dict[str, Any]:  # noqa: ANN401
    """Return what is used of a card, each value of its own form; raise WrongCard."""
    if not isinstance(raw, dict):
        raise WrongCard("not a card")
    if raw.get("name") != stem or not NAME.fullmatch(stem):
        raise WrongCard(f"name: {raw.get('name')!r} is not the name of the file")
    addresses = [_ip(each) for each in _list(raw, "addresses")]
    if not addresses:
        raise WrongCard("addresses: none")
    services = raw.get("services")
    if not isinstance(services, dict):
        raise WrongCard("services: not a mapping")
    return {
        "name": str(stem),
        "addresses": addresses,
        "groups": [_form(each, NAME, "groups") for each in _list(raw, "groups")],
        "fingerprint": _form(raw.get("fingerprint"), FINGERPRINT, "fingerprint"),
        "services": {
            _form(name, NAME, "services"): _form(where, SERVICE, "services")
            for name, where in services.items()
        },
        "port": _number(raw, "port"),
        "policy": _number(raw, "policy"),
    }


def _ip(value: Any) -> str:  # noqa: ANN401
    # A zone may be any text, a template for example: fe80::1%{{ ... }}
    try:
        if "%" not in value:
            return str(ipaddress.ip_address(value))
    except (TypeError, ValueError):
        pass
    raise WrongCard(f"addresses: {value!r} is no address")


def _list(raw: dict[str, Any], field: str) -> list[Any]:
    value = raw.get(field, [])
    if not isinstance(value, list):
        raise WrongCard(f"{field}: not a list")
    return value


def _form(value: Any, form: re.Pattern[str], field: str) -> str:  # noqa: ANN401
    if not isinstance(value, str) or not form.fullmatch(value):
        raise WrongCard(f"{field}: {value!r} has not the form that it has on a card")
    return str(value)


def _number(raw: dict[str, Any], field: str) -> int:
    value = raw.get(field)
    if not isinstance(value, int) or isinstance(value, bool):
        raise WrongCard(f"{field}: not a number")
    return int(value)


def _address(addresses: list[str], version: int | None) -> str:
    for address in addresses:
        if version is None or (":" in address) == (version == 6):
            return address
    raise WrongCard(f"addresses: none of ip version {version}")
