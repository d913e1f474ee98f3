"""Texts that ansible-vault encrypted, decrypted by a helper process (``ansible_vault``)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from tariq.client import helper

_HEADER = "$ANSIBLE_VAULT;"
_NEXT = "name one in ansible.cfg or in ANSIBLE_VAULT_PASSWORD_FILE"


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a text stays closed, and the next step."""

    reason: str
    hint: str


def is_vaulted(text: str) -> bool:
    """Tell whether a whole file is encrypted, as Ansible tells it."""
    return text.startswith(_HEADER)


def decrypt(texts: Sequence[str]) -> list[str | Refused]:
    """Return what each text is; one process for all, and none for none."""
    if not texts:
        return []
    try:
        done = helper.run("ansible_vault", given=json.dumps(texts))
    except subprocess.TimeoutExpired:
        reason = f"it is vaulted, and the password didn't come in {helper.SECONDS} s"
        return [Refused(reason, "check the script that prints it")] * len(texts)
    if done.returncode != 0:
        return [_failure(done)] * len(texts)
    return [
        each["text"] if "text" in each else Refused(each["reason"], _NEXT)
        for each in json.loads(done.stdout)
    ]


def _failure(done: subprocess.CompletedProcess[str]) -> Refused:
    if done.returncode == helper.NO_ANSIBLE:
        hint = "pip install 'tariq[fleet]'"
        return Refused("it is vaulted, and ansible-core is not installed", hint)
    return Refused(f"it is vaulted, and there is no password: {helper.reason(done)}", _NEXT)
