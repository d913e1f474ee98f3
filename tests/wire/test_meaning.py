"""What a good signature doesn't excuse: another host, another address, another time."""

import json
import time

import pytest
from lab import AgentHost, Forger

from tariq.agent.sentry import RETRY_SECONDS
from tariq.message import Bundle, Code
from tariq.openpgp import HostKey


def test_a_compromised_host_can_not_pass_a_knock_on(world, from_host):
    """It holds its own key, and so the operator's bundle in the clear, and seals it anew."""
    thief = AgentHost(world.base, world.net.stranger, world.python, name="thief")
    thief.trust(world.bob)
    thief.write_policy()
    try:
        with_thief = _bundle_for(world, thief)
        payload = Forger.wrap(world.host, world.host.card(), with_thief)
        assert world.net.client.exchange(world.address(), payload) is None
    finally:
        thief.close()
    assert not from_host()
    assert not world.reachable()


def _bundle_for(world, thief) -> Bundle:
    """Knock at the thief, who decrypts with its own key as its agent would."""
    import base64

    from tariq import openpgp, picture
    from tariq.picture import Direction

    payload = world.bob.payload(thief)
    key = base64.b64decode(thief.card()["knock_key"])
    sealed = picture.unwrap(payload, key, Direction.TO_HOST, time.time())
    host_key: openpgp.HostKey = HostKey.load(thief.state / "gnupg")
    return Bundle.decode(host_key.unseal(sealed))


@pytest.mark.parametrize("version", [4, 6])
def test_a_captured_knock_is_no_use_elsewhere_if_it_names_its_address(world, from_host, version):
    """Caught on the way, so that the host never saw it, and sent from the thief's address."""
    own = (world.net.V4 if version == 4 else world.net.V6)["client"]
    receipt = world.bob.receipt(world.host, world.address(version), world.net.stranger, src=own)
    assert receipt is not None
    assert (receipt.ok, receipt.code) == (False, Code.ADDRESS)
    assert receipt.seen == (world.net.V4 if version == 4 else world.net.V6)["stranger"]
    assert not world.reachable(version, node=world.net.stranger)
    assert not world.reachable(version)
    time.sleep(RETRY_SECONDS + 0.5)
    from_host()
    assert world.net.client.exchange(world.address(version), world.bob.last) is None
    assert not from_host()
    assert not world.reachable(version)


@pytest.mark.parametrize("age", [90, -90, 400])
def test_a_clock_that_is_off_is_told_of_both_clocks_once(world, from_host, age):
    receipt = world.bob.receipt(world.host, world.address(), world.net.client, age=age)
    if receipt is None and abs(age) > 90:
        pytest.fail("silence within the proof's windows")
    assert (receipt.ok, receipt.code) == (False, Code.SKEW)
    assert abs(receipt.t - time.time()) < 30
    assert receipt.detail.count("UTC") == 2
    assert not world.reachable()
    time.sleep(RETRY_SECONDS + 0.5)
    from_host()
    assert world.net.client.exchange(world.address(), world.bob.last) is None
    assert world.net.stranger.exchange(world.address(), world.bob.last) is None
    assert not from_host(), "what was used, if only to be refused, is a replay"


def test_a_host_can_demand_that_the_address_is_named(world):
    world.host.policy["require_source"] = True
    world.host.stop()
    world.host.start()
    try:
        told = world.knock("-4", "--for", "1s", check=False)
        assert told.returncode == 1
        assert "wants --source named" in told.stdout
        assert not world.reachable()
        assert "opened" in world.knock("-4", "--for", "1s", "--source", "auto").stdout
        assert "opened" in world.knock("-6", "--for", "1s", "--source", "auto").stdout
    finally:
        del world.host.policy["require_source"]
        world.host.stop()
        world.host.start()


def test_the_address_that_a_host_saw_is_remembered_and_a_change_is_told(world):
    memory = world.alice.dir / ".local" / "state" / "tariq" / "seen.json"
    memory.unlink(missing_ok=True)
    never = world.knock("-4", "--source", "remembered", check=False)
    assert never.returncode == 2
    assert "never told which address it saw" in never.stderr

    world.knock("-4", "--for", "1s")
    [known] = json.loads(memory.read_text()).values()
    assert known == {"4": world.net.V4["client"]}
    assert "opened" in world.knock("-4", "--for", "1s", "--source", "remembered").stdout

    moved = {"node": world.net.stranger}
    told = world.knock("-4", "--for", "1s", **moved)
    assert "saw you as 10.77.0.3, and as 10.77.0.2 before" in told.stderr
    held = world.knock("-4", "--for", "1s", "--source", "remembered", check=False, **moved)
    assert held.returncode == 1
    assert "address" in held.stdout
    [known] = json.loads(memory.read_text()).values()
    assert known == {"4": world.net.V4["client"]}, "never followed silently"

    world.knock("-4", "--for", "1s", "--source", world.net.V4["stranger"], **moved)
    [known] = json.loads(memory.read_text()).values()
    assert known == {"4": world.net.V4["stranger"]}, "named, and believed"
    memory.unlink()
