"""The installed collection on the hosts that were deployed to from the checkout.

Comes after test_fleet.py, which leaves web1 and web2 guarded.
"""

import re

import galaxy
import pytest
import yaml

INVENTORY = galaxy.REPO / "inventories" / "fleet" / "hosts.yml"


@pytest.fixture(scope="module")
def ansible(fleet, tmp_path_factory):
    """Run Ansible's programs with the collection, and with nothing of the checkout's own."""
    base = tmp_path_factory.mktemp("collections")
    galaxy.install(galaxy.REPO, base)
    empty = base / "ansible.cfg"
    empty.touch()
    env = {
        **fleet.env,
        "ANSIBLE_COLLECTIONS_PATH": str(base),
        "ANSIBLE_CONFIG": str(empty),
        "ANSIBLE_PIPELINING": "1",
        "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")),
    }

    def told(program, *words, **more):
        return galaxy.run(program, *words, env=env, **more)

    return told


@pytest.fixture
def by_cards(fleet, tmp_path):
    """An inventory of host cards, which knows how to knock, and one that doesn't."""

    def written(proxy):
        state = fleet.env["FLEET_STATE"]
        config = {
            "plugin": "tariq.tariq.cards",
            "path": f"{state}/cards",
            "ip_version": 4,
            "proxy": proxy,
            "program": str(galaxy.REPO / ".venv" / "bin" / "tariq"),
        }
        path = tmp_path / "fleet.cards.yml"
        path.write_text(yaml.safe_dump(config))
        patience = 30 if proxy else 5
        known = f"-o UserKnownHostsFile={state}/known_hosts -o ControlPersist=20s"
        variables = {
            "ansible_user": "root",
            "ansible_ssh_private_key_file": f"{state}/id_ed25519",
            "ansible_ssh_args": f"-o ControlMaster=auto -o ConnectTimeout={patience} {known}",
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        return ["-i", path, *(f"-e{name}={value!r}" for name, value in variables.items())]

    return written


def played(tmp_path, *tasks):
    path = tmp_path / "play.yml"
    path.write_text(yaml.safe_dump([{"hosts": "web2", "gather_facts": False, "tasks": [*tasks]}]))
    return path


def test_its_deployment_finds_nothing_to_do_where_the_checkout_deployed(ansible):
    """So wheel, policy, unit and card are the same to the byte."""
    told = ansible("playbook", "-i", INVENTORY, "tariq.tariq.deploy", "--limit", "web2")
    assert re.findall(r"changed=(\d+) .*failed=(\d+)", told.stdout) == [("0", "0")], told.stdout


KNOCK = {"tariq.tariq.tariq_knock": {"for": "60s", "ip_version": 4}}
WORK = {"ansible.builtin.command": "hostname", "changed_when": False}
OVER = {"tariq.tariq.tariq_knock": {"do": "close", "ip_version": 4}}
"""The lease's end; the connection that was made in it lives on."""
AGAIN = {"ansible.builtin.meta": "reset_connection"}


def test_a_play_may_knock_before_it_connects(fleet, ansible, by_cards, tmp_path):
    fleet.tariq("close", "web2", "-4")
    done = ansible("playbook", *by_cards(proxy=False), played(tmp_path, AGAIN, WORK), check=False)
    assert "unreachable=1" in done.stdout, "the control: without a knock there is no way in"
    ansible("playbook", *by_cards(proxy=False), played(tmp_path, AGAIN, KNOCK, WORK))


def test_the_proxy_knocks_whenever_ansible_connects_anew(fleet, ansible, by_cards, tmp_path):
    """Why the ProxyCommand is the way that is recommended.

    A knock by a task is over with its lease, and a play may need a new connection at any
    time: after a restart of the host, or an idle ControlPersist.
    """
    tasks = [AGAIN, WORK, OVER, AGAIN, WORK]
    fleet.tariq("close", "web2", "-4")
    done = ansible("playbook", *by_cards(proxy=False), played(tmp_path, KNOCK, *tasks), check=False)
    assert "ok=3" in done.stdout, "knocked, worked, closed"
    assert "unreachable=1" in done.stdout
    fleet.tariq("close", "web2", "-4")
    ansible("playbook", *by_cards(proxy=True), played(tmp_path, *tasks))
