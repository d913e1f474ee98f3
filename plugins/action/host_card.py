# Copyright: The Tariq contributors
# MIT License (see LICENSE, or https://opensource.org/license/mit)
"""Write a host's card on the controller, vaulted if it is to be; for the role's own use.

An action plugin, because no module and no filter has the vault passwords of the run. Roles of a
checkout have their plugins beside them, and those of a collection don't: hence the link in
roles/tariq/action_plugins.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from ansible import constants
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.parsing.vault import is_encrypted
from ansible.plugins.action import ActionBase

MODE = 0o600
NEXT = (
    "name the password in ansible.cfg or in ANSIBLE_VAULT_PASSWORD_FILE, "
    "where the client and Ansible's ProxyCommand find it, too"
)
ARGUMENTS: dict[str, dict[str, Any]] = {
    "path": {"type": "str", "required": True},
    # Without it, nothing is written: can the card be read, and written when there is a new one?
    "content": {"type": "str", "no_log": True},
    "vaulted": {"type": "bool", "default": False},
}


class Wrong(ValueError):
    """Why a card can't be read or written, and the next step."""


class Vaulted(str):
    """A value that is encrypted."""

    __slots__ = ()


class Loader(yaml.SafeLoader):
    """YAML as Ansible has it, as far as cards may use it."""


def _vaulted(loader: Loader, node: yaml.ScalarNode) -> Vaulted:
    return Vaulted(loader.construct_scalar(node))


Loader.add_constructor("!vault", _vaulted)


@dataclass(frozen=True)
class Old:
    """The card that is there: ``text`` in the clear, which of its fields are encrypted, and how."""

    text: str
    whole: bool = False
    fields: dict[str, str] = field(default_factory=dict)
    secret: tuple[str, Any] | None = None

    @property
    def vaulted(self) -> bool:
        """Whether any of it is encrypted."""
        return self.whole or bool(self.fields)

    def says(self, content: str) -> bool:
        """Tell whether a card's content is what this one has, in its own words if it is plain."""
        if self.text == content or not self.vaulted:
            return self.text == content
        mine = parsed(self.text)
        return isinstance(mine, dict) and {**mine, **self.fields} == parsed(content)


class ActionModule(ActionBase):  # type: ignore[misc]
    """Keep one card as its host says it is."""

    _requires_connection = False

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return whether the card was, or would be, written; fail if that can't be done."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, wanted = self.validate_argument_spec(argument_spec=ARGUMENTS)
        path = Path(self._loader.path_dwim(wanted["path"]))
        vault = self._loader._vault  # there is no public way to its passwords
        try:
            new = renewed(path, wanted["content"], vault, vaulted=wanted["vaulted"])
            if new is not None and not self._task.check_mode:
                write(path, new)
        except Wrong as why:
            raise AnsibleActionFail(f"host card {path}: {why}") from None
        except OSError as why:
            reason = (why.strerror or str(why)).lower()
            raise AnsibleActionFail(f"host card {path}: {reason}; mend it") from None
        return {**result, "changed": new is not None}


def renewed(path: Path, content: str | None, vault: Any, *, vaulted: bool) -> str | None:  # noqa: ANN401
    """Return what is to be written, or None; raise Wrong, also if there is nothing to write yet.

    A card that is vaulted stays so, in the form and by the password that it has.
    """
    old = read(path, vault) if path.exists() else None
    secret = old.secret if old and old.vaulted else None
    if vaulted and secret is None:
        secret = secret_for_new(vault)
    if content is None:
        return None
    if old and old.says(content) and (old.vaulted or not vaulted):
        mode = path.stat().st_mode & 0o777
        return None if mode == MODE else path.read_text("utf-8")
    if secret is None:
        return content
    if old and old.fields:
        return with_fields(content, list(old.fields), vault, secret)
    return encrypted(content, vault, secret)


def read(path: Path, vault: Any) -> Old:  # noqa: ANN401
    """Return a card that is there; raise Wrong if no password of the run opens it."""
    text = path.read_text("utf-8")
    if is_encrypted(text):
        plain, secret = opened(text, vault)
        return Old(plain, whole=True, secret=secret)
    content = parsed(text)
    items = content.items() if isinstance(content, dict) else ()
    found = {name: opened(value, vault) for name, value in items if isinstance(value, Vaulted)}
    # "echo KEY | ansible-vault encrypt_string" leaves a line's end in it
    fields = {name: plain.strip() for name, (plain, _) in found.items()}
    return Old(text, fields=fields, secret=next(iter(found.values()))[1] if found else None)


def opened(text: str, vault: Any) -> tuple[str, tuple[str, Any]]:  # noqa: ANN401
    """Return what was encrypted, and the id and password that opened it."""
    if not vault.secrets:
        raise Wrong(f"it is vaulted, and this run has no vault password; {NEXT}")
    try:
        plain, name, secret = vault.decrypt_and_get_vault_id(str(text))
        return plain.decode(), (name, secret)
    except (AnsibleError, UnicodeDecodeError):
        raise Wrong(f"it is vaulted, and no vault password of this run opens it; {NEXT}") from None


def secret_for_new(vault: Any) -> tuple[str, Any]:  # noqa: ANN401
    """Return the id and the password for a card that is vaulted for the first time."""
    named = constants.DEFAULT_VAULT_ENCRYPT_IDENTITY
    found = {name: secret for name, secret in vault.secrets or () if named in (None, "", name)}
    if len(found) == 1:
        return next(iter(found.items()))
    if not found:
        reason = f"this run has no vault password{f' called {named}' if named else ''}"
        raise Wrong(f"it is to be vaulted, and {reason}; {NEXT}")
    raise Wrong(
        f"it is to be vaulted, and this run has several passwords ({', '.join(found)}); "
        "name one in vault_encrypt_identity of ansible.cfg"
    )


def encrypted(text: str, vault: Any, secret: tuple[str, Any]) -> str:  # noqa: ANN401
    """Return a text as ansible-vault writes it."""
    name, password = secret
    return str(vault.encrypt(text, password, name).decode())


def with_fields(content: str, names: list[str], vault: Any, secret: tuple[str, Any]) -> str:  # noqa: ANN401
    """Return a card of which some fields are encrypted."""
    values = parsed(content)
    for name in names:
        block = encrypted(str(values.get(name)), vault, secret).strip().replace("\n", "\n  ")
        content, count = re.subn(
            rf"^{re.escape(name)}: .*$", f"{name}: !vault |\n  {block}", content, flags=re.MULTILINE
        )
        if count != 1:
            raise Wrong(f"{name} is vaulted, and the new card has none; remove the old card")
    return content


def parsed(text: str) -> Any:  # noqa: ANN401
    """Return what a card holds, or None."""
    try:
        return yaml.load(text, Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, TypeError):
        return None


def write(path: Path, text: str) -> None:
    """Put a card in place, whole."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, encoding="utf-8", delete=False) as file:
        try:
            file.write(text)
            file.close()
            Path(file.name).chmod(MODE)
            Path(file.name).replace(path)
        except OSError:
            Path(file.name).unlink(missing_ok=True)
            raise
