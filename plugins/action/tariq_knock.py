# Copyright: The Tariq contributors
# MIT License (see LICENSE, or https://opensource.org/license/mit)
"""Knock from the controller: runs `tariq ... --json` and returns its outcomes.

An action plugin and not a module, because the host that a task is for is closed until the
knock has come through: nothing can run on it, and no interpreter or privilege of the host's
matters on the controller.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

COMMANDS = {"open": "knock", "close": "close", "status": "status", "run": "run"}
CHANGES = ("opened", "closed", "ran")
# Options that not everything that is asked can use.
ONLY_FOR = {
    "for": ("open",),
    "services": ("open", "close"),
    "task": ("run",),
    "params": ("run",),
}
# plugins/modules/tariq_knock.py describes these; a test compares.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "hosts": {"type": "list", "elements": "str"},
    "do": {"type": "str", "choices": list(COMMANDS), "default": "open"},
    "services": {"type": "list", "elements": "str", "default": []},
    "for": {"type": "str"},
    "task": {"type": "str"},
    "params": {"type": "dict", "default": {}},
    "source": {"type": "str"},
    "ip_version": {"type": "int", "choices": [4, 6]},
    "transport": {"type": "str", "choices": ["fastopen", "scapy"]},
    "cards": {"type": "path"},
    "key": {"type": "str"},
    "gnupg_home": {"type": "path"},
    "program": {"type": "path"},
    "timeout": {"type": "int", "default": 300},
}
# The rest are options of every command under the same name.
PLAIN = {"source": "--source", "transport": "--transport", "key": "--key"}
PATHS = {"gnupg_home": "--gnupg-home"}


class ActionModule(ActionBase):  # type: ignore[misc]
    """Knock at one or more hosts with one signature."""

    _requires_connection = False

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return receipts; the result is failed unless every host said yes."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        _, wanted = self.validate_argument_spec(argument_spec=ARGUMENTS)
        hosts = wanted["hosts"] or [variables["inventory_hostname"]]
        _refuse_odd(wanted)
        if self._task.check_mode and wanted["do"] != "status":
            return {**result, "changed": True, "receipts": [], "msg": "check mode: no knock"}
        # A name that begins with a dash would be read as an option.
        command = [*_command(wanted, _cards(wanted, variables)), "--", *_words(wanted, hosts)]
        return {**result, **_told(*_knock(command, wanted["timeout"]))}


def _refuse_odd(wanted: dict[str, Any]) -> None:
    do = wanted["do"]
    for name, uses in ONLY_FOR.items():
        if wanted[name] and do not in uses:
            raise AnsibleActionFail(f"{name}: nothing that 'do: {do}' could use; take it out")
    if do == "run" and not wanted["task"]:
        raise AnsibleActionFail("task: missing, for 'do: run'; name one of the hosts' tasks")


def _words(wanted: dict[str, Any], hosts: list[str]) -> list[str]:
    if wanted["do"] != "run":
        return hosts
    parameters = [f"{name}={value}" for name, value in wanted["params"].items()]
    return [",".join(hosts), wanted["task"], *parameters]


def _cards(wanted: dict[str, Any], variables: dict[str, Any]) -> str:
    """Return the folder of cards: as named, the host's own, or beside the inventory."""
    if wanted["cards"]:
        return str(wanted["cards"])
    if variables.get("tariq_cards_dir"):
        return str(variables["tariq_cards_dir"])
    beside = variables.get("inventory_dir")
    if not beside:
        raise AnsibleActionFail(
            "cards: no inventory file that they could lie beside; name the folder"
        )
    return str(Path(beside) / "cards")


def _command(wanted: dict[str, Any], cards: str) -> list[str]:
    command = [_program(wanted["program"]), COMMANDS[wanted["do"]], "--json", f"--cards={cards}"]
    for name, option in {**PLAIN, **PATHS}.items():
        if wanted[name] is not None:
            command.append(f"{option}={wanted[name]}")
    if wanted["ip_version"] is not None:
        command.append(f"-{wanted['ip_version']}")
    if wanted["services"]:
        option = "--open" if wanted["do"] == "open" else "--service"
        command.append(f"{option}={','.join(wanted['services'])}")
    if wanted["for"] is not None:
        command.append(f"--for={wanted['for']}")
    return command


def _program(named: str | None) -> str:
    if named:
        return named
    beside = Path(sys.executable).parent / "tariq"
    found = str(beside) if beside.exists() else shutil.which("tariq")
    if found is None:
        raise AnsibleActionFail(
            "tariq: not installed on the controller; install it with pip "
            "from a checkout or the collection's folder, or name it in 'program'"
        )
    return found


def _knock(command: list[str], seconds: int) -> tuple[list[dict[str, Any]], str]:
    """Return outcomes and what was said beside them; raise AnsibleActionFail without any."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        raise AnsibleActionFail(
            f"tariq: not done after {seconds} seconds; "
            "does the key wait for a passphrase or a touch? enter it before, or raise 'timeout'"
        ) from None
    except OSError as why:
        raise AnsibleActionFail(f"{command[0]}: {(why.strerror or str(why)).lower()}") from None
    said = done.stderr.strip()
    try:
        outcomes: list[dict[str, Any]] = json.loads(done.stdout)
    except ValueError:
        reason = said.splitlines()[-1] if said else f"exit status {done.returncode}"
        raise AnsibleActionFail(reason) from None
    return outcomes, said


def _told(outcomes: list[dict[str, Any]], said: str) -> dict[str, Any]:
    codes = [each["receipt"]["code"] for each in outcomes if "receipt" in each]
    bad = [each for each in outcomes if not each["ok"]]
    result = {"changed": any(code in CHANGES for code in codes), "receipts": outcomes}
    if bad:
        reasons = [f"{each['host']}: {each['ending']}: {each['reason']}" for each in bad]
        return {**result, "failed": True, "msg": "; ".join(reasons)}
    return {**result, "msg": said} if said else result
