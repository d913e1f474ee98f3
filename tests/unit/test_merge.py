"""What a host's policy is made of: variables of all hosts, of its groups and its own add up."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tariq.agent import policy_file
from tariq.client import fleet as fleet_status
from tariq.client import inventory
from tariq.client.config import Config
from tariq.client.knock import Ending, Outcome
from tariq.errors import InventoryError
from tariq.message import Code, Receipt
from tariq.openpgp import keys_digest

REPO = Path(__file__).parents[2]
ALICE, BOB, EVE, NEW, MALLORY = ("A" * 40, "B" * 40, "E" * 40, "C" * 40, "D" * 40)
PUBLIC = "-----BEGIN PGP PUBLIC KEY BLOCK-----"


def operator(fingerprint, **grants):
    return {"fingerprint": fingerprint, "key": PUBLIC, **grants}


FLEET = {
    "hosts.yml": {
        "webservers": {"hosts": {"web1": None, "web2": None}},
        "databases": {"hosts": {"db1": None}},
        "special": {"hosts": {"every": None}},
        "all": {"vars": {"ansible_connection": "local"}},
    },
    "group_vars/all.yml": {
        "tariq_operators": {"alice": operator(" ".join(["AAAA"] * 10), groups=["admins"])},
        "tariq_operators_robots": {"robot": operator(BOB, services=["ssh"], longest=60)},
        "tariq_groups": {"admins": {"services": ["all"], "from": ["203.0.113.0/24"]}},
        "tariq_policy_serial": 4,
        "tariq_timezone": "UTC",
    },
    "group_vars/webservers.yml": {
        "tariq_services_web": {"dashboard": {"protocol": "tcp", "port": "{{ 8000 + 443 }}"}},
        "tariq_tasks_web": {"restart": {"argv": ["/bin/true"], "user": "root"}},
        "tariq_operators_web": {
            "eve": operator(EVE, until="2031-01-02", hours="mon-fri 07:00-19:00")
        },
    },
    "group_vars/databases.yml": {
        "tariq_services_db": {"postgresql": {"protocol": "tcp", "port": 5432}},
        "tariq_operators_dbs": {"robot": None},
    },
    # All that an inventory can say otherwise than by default.
    "host_vars/every.yml": {
        "tariq_port": 62202,
        "tariq_window": 61,
        "tariq_default_lease": 31,
        "tariq_audit_days": 30,
        "tariq_require_source": True,
        "tariq_interfaces": ["lo"],
        "tariq_firewall": "iptables-nft",
        "tariq_mark": "0x7a7a",
        "tariq_break_glass": ["203.0.113.9/32"],
        "tariq_tasks": {"restart": {"argv": ["/bin/true"], "user": "root"}},
    },
    "host_vars/web2.yml": {
        "tariq_services_web2": {"ssh": {"protocol": "tcp", "port": 2222}},
        "tariq_revoked": [MALLORY.lower()],
        "tariq_operators_zz": {
            "alice": operator(ALICE, next={"fingerprint": NEW, "key": PUBLIC}, longest=120),
            "mallory": operator(MALLORY),
        },
    },
}
SHOW = [
    {
        "hosts": "all",
        "gather_facts": False,
        "tasks": [
            {
                "ansible.builtin.include_role": {
                    "name": "tariq",
                    "tasks_from": "merge.yml",
                    "public": True,
                }
            },
            {
                "ansible.builtin.copy": {
                    "content": "{{ lookup('ansible.builtin.template', template) }}",
                    "dest": "{{ inventory_dir }}/{{ inventory_hostname }}.agent",
                },
                "vars": {"template": str(REPO / "roles/tariq/templates/agent.yml.j2")},
            },
        ],
    }
]


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content))


def play(folder, files):
    write(folder, files)
    (folder / "show.yml").write_text(yaml.safe_dump(SHOW))
    command = [sys.executable, "-m", "ansible", "playbook", "-i", folder / "hosts.yml"]
    return subprocess.run(
        [*map(str, command), str(folder / "show.yml")],
        env={
            **os.environ,
            "ANSIBLE_ROLES_PATH": str(REPO / "roles"),
            "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_FORKS": "10",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """Every host's policy, as the role would write it."""
    folder = tmp_path_factory.mktemp("inventory")
    done = play(folder, FLEET)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def policy(fleet, host):
    found, mistakes = policy_file.check(fleet / f"{host}.agent")
    assert not mistakes, [str(mistake) for mistake in mistakes]
    return found


def test_a_web_server_guards_other_ports_than_a_database(fleet):
    ports = {
        host: {name: each.port for name, each in policy(fleet, host).services.items()}
        for host in ("web1", "web2", "db1")
    }
    assert ports == {
        "web1": {"ssh": 22, "dashboard": 8443},
        "web2": {"ssh": 2222, "dashboard": 8443},
        "db1": {"ssh": 22, "postgresql": 5432},
    }


def test_operators_add_up_and_a_host_can_leave_one_out(fleet):
    names = {host: set(policy(fleet, host).operators) for host in ("web1", "db1")}
    assert names == {"web1": {"alice", "robot", "eve"}, "db1": {"alice"}}


def test_an_operator_gets_every_field_of_the_policy(fleet):
    rules = policy(fleet, "web1")
    eve = rules.operators["eve"].own
    assert eve.services == ("all",)
    assert str(eve.limits.until) == "2031-01-02"
    assert eve.limits.hours[0].text == "mon-fri 07:00-19:00"
    assert eve.limits.longest == 300
    assert rules.operators["alice"].groups == ("admins",)
    assert rules.operators["alice"].own.limits.longest is None
    assert rules.operators["robot"].own.limits.longest == 60
    assert str(rules.groups["admins"].limits.networks[0]) == "203.0.113.0/24"
    assert rules.serial == 4


def test_the_role_can_write_every_field_that_a_policy_has(fleet):
    """And docs/policy.md tells of each. A field that is new has to get a variable."""
    written = yaml.safe_load((fleet / "every.agent").read_text())
    page = (REPO / "docs" / "policy.md").read_text()
    documented = re.findall(r"^\| `(\w+)` \| (?:yes|no) \|", page, re.MULTILINE)
    assert set(written) == set(policy_file.FIELDS) == set(documented)
    rules = policy(fleet, "every")
    assert (rules.mark, rules.audit_days, rules.firewall) == (0x7A7A, 30, "iptables-nft")
    plain = yaml.safe_load((fleet / "db1.agent").read_text())
    unset = {
        "audit_days",
        "firewall",
        "mark",
        "break_glass",
        "interfaces",
        "require_source",
        "tasks",
    }
    assert not unset & plain.keys(), "what is as ever is left to the agent"


def test_a_revoked_key_is_left_out_and_the_next_one_is_trusted_as_well(fleet):
    operators = policy(fleet, "web2").operators
    assert {name: each.fingerprint for name, each in operators.items()} == {
        "alice": ALICE,
        "alice.next": NEW,
        "robot": BOB,
        "eve": EVE,
    }
    assert operators["alice"].own == operators["alice.next"].own


def test_the_client_expects_what_the_role_writes(fleet):
    wanted = inventory.select([fleet / "hosts.yml"], "all", policy=True)
    assert {each.name for each in wanted} == {"web1", "web2", "db1", "every"}
    for each in wanted:
        rules = policy(fleet, each.name)
        assert each.keys == {known.fingerprint for known in rules.operators.values()}
        assert each.serial == rules.serial
        assert each.revoked == {MALLORY}


THREE = {"alice": operator(ALICE), "bob": operator(BOB), "eve": operator(EVE)}
SMALL = {
    "hosts.yml": {
        "webservers": {"hosts": {"web1": None}},
        "databases": {"hosts": {"db1": None}},
        "all": {"vars": {"ansible_connection": "local"}},
    },
    "group_vars/all.yml": {"tariq_operators": THREE, "tariq_revoked_all": [BOB]},
    "group_vars/webservers.yml": {"tariq_revoked": [" ".join(["eeee"] * 10)]},
}


def said(keys, serial=1):
    receipt = Receipt(bytes(16), 0, True, Code.STATUS, "", serial, keys=keys_digest(keys))
    return Outcome("", Ending.YES, receipt=receipt)


def test_revoked_keys_add_up_and_one_that_is_revoked_anywhere_counts_everywhere(tmp_path):
    done = play(tmp_path, SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(policy(tmp_path, "web1").operators) == {"alice"}
    assert set(policy(tmp_path, "db1").operators) == {"alice", "eve"}, "nothing says so there"
    for name in ("web1", "db1"):
        (wanted,) = inventory.select([tmp_path / "hosts.yml"], name, policy=True)
        assert (wanted.keys, wanted.revoked) == ({ALICE}, {BOB, EVE})
        assert fleet_status.judge(wanted, said([ALICE, EVE])).state == "revoked"
        assert fleet_status.judge(wanted, said([ALICE])).state == "current"


def test_a_list_that_a_nearer_one_of_its_name_hides_still_counts_in_the_proof(tmp_path):
    """Ansible shows the host, and so the role, only the nearer one."""
    hidden = {"tariq_operators": THREE, "tariq_revoked": [EVE]}
    write(tmp_path, {**SMALL, "group_vars/all.yml": hidden})
    write(tmp_path, {"group_vars/webservers.yml": {"tariq_revoked": [BOB]}})
    (wanted,) = inventory.select([tmp_path / "hosts.yml"], "web1", policy=True)
    finding = fleet_status.judge(wanted, said([ALICE, EVE]))
    assert (finding.state, finding.detail) == ("revoked", f"still trusts {EVE}")


def test_several_inventories_count_together_and_each_has_its_cards_beside_it(tmp_path):
    for name, host in (("one", "web1"), ("two", "db1")):
        write(tmp_path, {f"{name}/hosts.yml": {"all": {"hosts": {host: None}}}})
    write(tmp_path, {"two/group_vars/all.yml": {"tariq_operators": THREE, "tariq_revoked": [EVE]}})
    both = [tmp_path / name / "hosts.yml" for name in ("one", "two")]
    found = {each.name: each for each in inventory.select(both, "web1,db1", policy=True)}
    assert found.keys() == {"web1", "db1"}
    assert all(each.keys == {ALICE, BOB} for each in found.values())
    known = Config(gnupg_home=tmp_path, inventory=tuple(both))
    assert found["web1"].cards_dir(known) == tmp_path / "one" / "cards"
    assert found["db1"].cards_dir(known) == tmp_path / "two" / "cards"


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        (["eve"], "tariq_revoked_x must be a list of fingerprints: 'eve' has not 40 hex digits"),
        (["0xEEE"], "'0xEEE' has not"),
        (["E" * 16], "has not 40 hex digits"),
        ([":".join(["EE"] * 20)], "has not 40 hex digits"),
        (EVE, "tariq_revoked_x must be a list"),
        (None, "tariq_revoked_x must be a list"),
    ],
)
def test_the_client_takes_nothing_but_fingerprints(tmp_path, entries, reason):
    write(tmp_path, {**SMALL, "group_vars/webservers.yml": {"tariq_revoked_x": entries}})
    with pytest.raises(InventoryError, match=reason):
        inventory.select([tmp_path / "hosts.yml"], "all", policy=True)


MISTAKES = [
    ({"tariq_services_x": ["ssh"]}, "tariq_services_x must be a mapping"),
    ({"tariq_operators": {"alice": {"fingerprint": ALICE}}}, "either key"),
    ({"tariq_operators": {"alice": operator("AB")}}, "40 hex digits"),
    ({"tariq_operators": {"Alice": operator(ALICE)}}, "a name in small letters"),
    ({"tariq_operators": {"a": operator(ALICE, next={"key": PUBLIC})}}, "and so must its next"),
    ({"tariq_operators": {"a": {"fingerprint": ALICE, "key": "x"}}}, "no armoured public key"),
    ({"tariq_operators": {}}, "tariq_operators is empty"),
    ({"tariq_operators": {"eve": operator(EVE)}, "tariq_revoked": [EVE]}, "in tariq_revoked"),
    ({"tariq_revoked": [ALICE, "eve"]}, "tariq_revoked must be a list of fingerprints"),
    ({"tariq_revoked_x": ["E" * 16]}, "tariq_revoked_x must be a list"),
    ({"tariq_revoked_x": [":".join(["EE"] * 20)]}, "each 40 hex digits"),
    ({"tariq_revoked_x": EVE}, "tariq_revoked_x must be a list"),
    ({"tariq_default_service": "www"}, "www, which is not in tariq_services"),
]


def test_what_can_not_be_is_told_by_its_variable(tmp_path):
    base = {"tariq_operators": {"alice": operator(ALICE)}, "ansible_connection": "local"}
    hosts = {f"case{at}": variables for at, (variables, _) in enumerate(MISTAKES)}
    done = play(tmp_path, {"hosts.yml": {"all": {"hosts": {**hosts, "good": {}}, "vars": base}}})
    blocks = re.split(r"^(?:fatal|failed): \[(\w+)\]", done.stdout, flags=re.MULTILINE)
    failures = dict(zip(reversed(blocks[1::2]), reversed(blocks[2::2]), strict=True))
    assert (tmp_path / "good.agent").exists()
    for at, (_, reason) in enumerate(MISTAKES):
        told = " ".join(failures[f"case{at}"].split())
        assert reason in told, told
        assert not (tmp_path / f"case{at}.agent").exists()


def test_a_task_that_one_group_has(fleet):
    tasks = {
        host: yaml.safe_load((fleet / f"{host}.agent").read_text()).get("tasks")
        for host in ("web1", "db1")
    }
    assert tasks == {"web1": {"restart": {"argv": ["/bin/true"], "user": "root"}}, "db1": None}
