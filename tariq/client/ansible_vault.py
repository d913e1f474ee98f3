"""Helper process: decrypt what ansible-vault encrypted.

    python -m tariq.client.ansible_vault < LIST

Reads a JSON list of vaulted texts, prints one of ``{"text"}`` or ``{"reason"}`` for
each. Passwords come from where Ansible's own programs have them, but for their command
line: ``vault_identity_list`` and ``vault_password_file`` of ansible.cfg, and the
variables of the same names.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from tariq.client.helper import NO_ANSIBLE, UNREADABLE


def secrets(loader: Any) -> list[Any]:  # noqa: ANN401
    """Give a DataLoader the passwords that are configured, and return them."""
    from ansible import constants
    from ansible.cli import CLI

    ids = [*(constants.DEFAULT_VAULT_IDENTITY_LIST or [])]
    if not ids and not constants.DEFAULT_VAULT_PASSWORD_FILE:
        return []
    # It adds the password file by itself.
    found: list[Any] = CLI.setup_vault_secrets(loader, vault_ids=ids, auto_prompt=False)
    loader.set_vault_secrets(found)
    return found


def _opened(text: str, known: list[Any]) -> dict[str, str]:
    from ansible.errors import AnsibleError
    from ansible.parsing.vault import AnsibleVaultFormatError, VaultLib

    if not known:
        return {"reason": "it is vaulted, and no password is named"}
    try:
        return {"text": VaultLib(known).decrypt(text).decode()}
    except (AnsibleVaultFormatError, UnicodeDecodeError):
        return {"reason": "what is vaulted in it is damaged"}
    except AnsibleError:
        return {"reason": "it is vaulted, and no password that is named opens it"}


def main() -> None:
    """Print what each text is, or why that can't be said."""
    # All of it first, so that a password is never read from here.
    texts = json.load(sys.stdin)
    try:
        from ansible.parsing.dataloader import DataLoader
    except ImportError:
        sys.exit(NO_ANSIBLE)
    try:
        known = secrets(DataLoader())
    except Exception as why:  # noqa: BLE001 - scripts of any make; told as one line
        print(" ".join(str(why).split()), file=sys.stderr)
        sys.exit(UNREADABLE)
    json.dump([_opened(text, known) for text in texts], sys.stdout)


if __name__ == "__main__":
    main()
