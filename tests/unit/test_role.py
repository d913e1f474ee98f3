"""The role's variables: declared, described and used, the same everywhere."""

import importlib.util
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).parents[2]
TOOL = REPO / "tools" / "role_readme.py"


@pytest.fixture
def checked(tmp_path, monkeypatch, capsys):
    """Run the checker over a copy of the role; return its status and its words."""
    spec = importlib.util.spec_from_file_location("role_readme", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    role = shutil.copytree(REPO / "roles" / "tariq", tmp_path / "tariq")
    monkeypatch.setattr(tool, "ROLE", role)
    monkeypatch.setattr(sys, "argv", [str(TOOL), "--check"])

    def told(file="", old="", new=""):
        if file:
            path = role / file
            text = path.read_text()
            assert old in text
            path.write_text(text.replace(old, new, 1) if old else text + new)
        return tool.main(), capsys.readouterr().err

    return told


def test_specs_defaults_readme_and_tasks_agree(checked):
    assert checked() == (0, "")


@pytest.mark.parametrize(
    ("file", "old", "new", "reason"),
    [
        ("defaults/main.yml", "", "tariq_new: 1\n", "not in meta/argument_specs.yml"),
        ("defaults/main.yml", "62201", "62202", "tariq_port: the default is 62202"),
        ("meta/argument_specs.yml", "tariq_port:", "tariq_prt:", "not in defaults/main.yml"),
        ("vars/main.yml", "", "__tariq_new: 1\n", "__tariq_new is set and never used"),
        ("tasks/remove.yml", "__tariq_has_program.stat", "__tariq_has_prgram.stat", "never set"),
        ("templates/agent.yml.j2", "", "{{ tariq_prot }}\n", "tariq_prot is used and never set"),
        ("meta/argument_specs.yml", "Who may knock.", "Who may.", "README.md is out of date"),
    ],
)
def test_the_checker_sees_what_does_not_agree(checked, file, old, new, reason):
    status, said = checked(file, old, new)
    assert status == 1
    assert reason in said


def test_every_way_into_the_role_checks_its_variables():
    """include_role with tasks_from checks them only if there are specs by that name."""
    played = [yaml.safe_load(file.read_text()) for file in REPO.glob("playbooks/*.yml")]
    used = {
        Path(task["ansible.builtin.include_role"]["tasks_from"]).stem
        for task in tasks_of(play for plays in played for play in plays)
        if "ansible.builtin.include_role" in task
    }
    specs = yaml.safe_load((REPO / "roles/tariq/meta/argument_specs.yml").read_text())
    assert specs["argument_specs"].keys() == {"main", *used} == {"main", "rotate", "revoke"}


def tasks_of(tree):
    for item in tree:
        yield item
        for name in ("block", "rescue", "always", "tasks"):
            yield from tasks_of(item.get(name, []))


def test_no_task_for_the_controller_asks_for_root():
    """The keyword alone loses against an inventory's ansible_become."""
    files = [*REPO.glob("roles/tariq/tasks/*.yml"), *REPO.glob("playbooks/*.yml")]
    tasks = [task for file in files for task in tasks_of(yaml.safe_load(file.read_text()))]
    delegated = [task for task in tasks if "delegate_to" in task]
    assert len(delegated) >= 5
    for task in delegated:
        assert (task["become"], task["vars"]["ansible_become"]) == (False, False), task["name"]


SCENARIOS = sorted(path.parent.name for path in (REPO / "molecule").glob("*/molecule.yml"))


def test_contributing_tells_of_every_scenario():
    page = (REPO / "CONTRIBUTING.md").read_text().partition("| scenario (")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"^\| `([a-z]+)` \|", page, re.MULTILINE)) == SCENARIOS


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_playbook_of_a_scenario_is_there(name):
    """Molecule leaves out a playbook that it can't find, and says nothing."""
    folder = REPO / "molecule" / name
    shared = yaml.safe_load((REPO / ".config" / "molecule" / "config.yml").read_text())
    own = yaml.safe_load((folder / "molecule.yml").read_text())
    assert own["scenario"]["name"] == name
    playbooks = {**shared["ansible"]["playbooks"], **own.get("ansible", {}).get("playbooks", {})}
    assert playbooks.keys() >= {"create", "prepare", "converge", "verify", "destroy"}
    for path in playbooks.values():
        assert (folder / path).exists(), path
    played = "".join(path.read_text() for path in folder.glob("*.yml"))
    for found in folder.glob("*.yml"):
        assert found.name == "molecule.yml" or found.name in played, f"{found.name} is never played"


TOGETHER = (
    {"ExecReload"},
    {"Restart", "RestartSec"},
    {"StateDirectory", "StateDirectoryMode", "RuntimeDirectory"},
    {"ProtectSystem", "ReadWritePaths", "UMask"},
    {"ProtectHome", "PrivateTmp"},
    {"ExecStartPre", "ReadWritePaths"},
    {"AmbientCapabilities", "CapabilityBoundingSet"},
    {"SystemCallFilter", "SystemCallErrorNumber"},
    {"TasksMax", "MemoryMax", "MemorySwapMax", "CPUQuota"},
    {f"Protect{what}" for what in ("KernelTunables", "KernelLogs", "KernelModules")}
    | {"ProtectControlGroups", "ProtectClock", "ProtectHostname"},
    {"ProtectProc", "ProcSubset"},
    {"RemoveIPC", "KeyringMode"},
)
"""What one reason may be for; everything else has its own."""
PLAIN = {"Type", "NotifyAccess", "ExecStartPre", "ExecStart", "User", "RemainAfterExit"}
"""What starts a unit, and needs no reason."""


def without_a_reason(unit: str) -> list[str]:
    """Return the directives of [Service] that no comment stands right before."""
    found, run = [], None
    service = unit.partition("[Service]\n")[2].partition("\n[Install]")[0]
    for line in service.splitlines():
        if line.startswith("#"):
            run = set()
        elif not line:
            run = None
        elif "=" in line and not line.startswith("{"):
            name = line.partition("=")[0]
            alone = run is None or (run and not any(run | {name} <= each for each in TOGETHER))
            if alone and name not in PLAIN:
                found.append(name)
            run = (run or set()) | {name}
    return found


@pytest.mark.parametrize("unit", ["agent", "sentry", "guard"])
def test_every_directive_of_a_unit_has_its_reason_beside_it(unit):
    text = (REPO / "roles" / "tariq" / "templates" / f"tariq-{unit}.service.j2").read_text()
    assert without_a_reason(text) == []
    bare = text.replace("# No other personality of the kernel", "LimitNPROC=1\n#")
    assert without_a_reason(bare) == ["LimitNPROC"], "the control"
