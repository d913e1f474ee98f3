"""The collection's plugins against a real agent: Ansible knocks from the controller."""

import json
import re
import shlex

import galaxy
import pytest
from lab import NOBODY, scratch

BOTH = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(scope="module")
def ansible(world):
    """Run one task with the inventory of cards, as alice, on the client's machine."""
    with scratch() as base:
        base.chmod(0o755)
        galaxy.install(galaxy.REPO, base)
        inventory = world.cards.parent / "ansible.cards.yml"
        inventory.write_text(f"plugin: tariq.tariq.cards\npath: {world.cards}\n")
        env = {
            **world.alice.env,
            "TARIQ_GNUPGHOME": str(world.alice.gnupg),
            "ANSIBLE_COLLECTIONS_PATH": str(base),
            "ANSIBLE_INVENTORY": str(inventory),
            "ANSIBLE_NOCOLOR": "1",
        }

        def told(program, *words, check=True):
            command = [world.python, "-m", "ansible", program, *words]
            return world.net.client.run(*command, user=NOBODY, env=env, cwd="/", check=check)

        yield told


def knock(ansible, *options, host="web1", more=()):
    """Return the result of the module for a host."""
    words = (host, "-m", "tariq.tariq.tariq_knock", "-a", " ".join(options), *more)
    said = ansible("adhoc", *words, check=False).stdout
    match = re.search(rf"^{host} \| ([A-Z]+)!? => (\{{.*?^\}})", said, re.MULTILINE | re.DOTALL)
    assert match, said
    return {**json.loads(match[2]), "failed": match[1] == "FAILED"}


@BOTH
def test_the_module_opens_and_closes(world, ansible, version):
    assert not world.reachable(version)
    opened = knock(ansible, "for=60s", f"ip_version={version}")
    assert opened["changed"] is True
    assert not opened["failed"]
    [outcome] = opened["receipts"]
    assert outcome["receipt"]["seen"] == (world.net.V4 if version == 4 else world.net.V6)["client"]
    assert world.reachable(version)
    asked = knock(ansible, "do=status", f"ip_version={version}")
    assert asked["changed"] is False
    assert "ssh" in asked["receipts"][0]["receipt"]["leases"]
    closed = knock(ansible, "do=close", f"ip_version={version}")
    assert closed["changed"] is True
    assert not world.reachable(version)


def test_check_mode_says_that_it_would_open_and_does_not(world, ansible):
    told = knock(ansible, "for=9s", "ip_version=4", more=["--check"])
    assert told["changed"] is True
    assert told["receipts"] == []
    assert not world.reachable(4)
    asked = knock(ansible, "do=status", more=["--check"])
    assert asked["receipts"][0]["ok"], "asking changes nothing, so it is done"


def test_one_task_for_many_hosts_tells_who_said_yes(world, ansible):
    """web9 has a card, and nobody is at its address; web1's receipt is there all the same."""
    card = world.host.write_card(world.cards, [world.net.V4["stranger"]], name="web9")
    try:
        told = knock(ansible, "hosts=web1,web9", "for=60s", "ip_version=4")
    finally:
        card.unlink()
    assert told["failed"]
    assert re.match(r"web9: (refused|silent): ", told["msg"])
    assert [each["ok"] for each in told["receipts"]] == [True, False]
    assert world.reachable(4)
    world.close()


def test_a_host_without_a_card_is_told_as_such(ansible):
    told = knock(ansible, "hosts=web7")
    assert told["failed"]
    assert "web7: no card at" in told["msg"]


def test_a_task_runs_and_its_output_comes_back(world, ansible):
    world.host.policy["tasks"] = {
        "say": {
            "argv": ["/bin/echo", "{word}"],
            "user": "nobody",
            "params": {"word": {"choice": ["yes", "no"]}},
        }
    }
    world.host.policy["operators"]["alice"]["tasks"] = ["say"]
    world.host.stop()
    world.host.start()
    told = knock(ansible, "do=run", "task=say", "params={'word':'yes'}", "ip_version=4")
    assert told["changed"] is True, told
    [outcome] = told["receipts"]
    assert (outcome["receipt"]["exit"], outcome["receipt"]["out"]) == (0, "yes\n")
    refused = knock(ansible, "do=run", "task=say", "params={'word':'maybe'}", "ip_version=4")
    assert refused["failed"]


def test_the_proxy_of_the_inventory_knocks_and_connects(world, ansible):
    known = json.loads(ansible("inventory", "--host", "web1").stdout)
    known = {
        name: value.get("__ansible_unsafe", "") if isinstance(value, dict) else value
        for name, value in known.items()
    }
    [_, option] = shlex.split(known["ansible_ssh_common_args"])
    command = option.removeprefix("ProxyCommand=").replace("%p", "22")
    command = command.replace("tariq ", f"{world.python} -m tariq ", 1)
    world.knock("-4", verb="close")
    assert not world.reachable(4)
    done = world.net.client.run(
        *("sh", "-c", f"{command} </dev/null"),  # which epoll, for one, would refuse
        user=NOBODY,
        env={**world.alice.env, "TARIQ_GNUPGHOME": str(world.alice.gnupg)},
        cwd="/",
    )
    assert done.stdout == "hello\n"
    world.knock("-4", verb="close")
