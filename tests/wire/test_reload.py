"""SIGHUP: a new policy at once and whole, or not at all, and nobody is cut off."""

import copy
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from lab import PORT, eventually

from tariq.message import Action


@pytest.fixture
def policy(world):
    """The policy, to be changed at will; afterwards it is as before."""
    before = copy.deepcopy(world.host.policy)
    yield world.host.policy
    world.host.policy.clear()
    world.host.policy.update(before)
    world.host.stop()
    world.host.start()


def reload(world, says):
    """Write the policy, send SIGHUP, and wait for what the log says of it."""
    world.host.write_policy()
    already = world.host.log.read_text().count(says)
    world.host.process.send_signal(signal.SIGHUP)
    eventually(lambda: world.host.log.read_text().count(says) > already)


def test_services_operators_and_tasks_change_and_leases_stay(world, policy):
    sentry = world.host.sentry_pid()
    world.knock("-4", "--for", "60s", "--open", "ssh")
    assert world.net.stranger.connects(world.address(), 8080), "not guarded yet"
    policy["serial"] = 8
    policy["services"]["extra"] = {"protocol": "tcp", "port": 8080}
    policy["tasks"] = {"hello": {"argv": ["/bin/echo", "hello"], "user": "nobody"}}
    policy["operators"]["alice"] |= {"services": ["ssh", "extra"], "tasks": ["hello"]}
    del policy["operators"]["bob"]
    reload(world, "reloaded: policy 8")
    assert world.reachable(), "the lease lives on"
    assert not world.net.stranger.connects(world.address(), 8080), "guarded now"
    assert "opened" in world.knock("-4", "--for", "60s", "--open", "extra").stdout
    assert world.reachable(port=8080)
    assert "hello" in world.knock("hello", "-4", verb="run").stdout
    world.knock("-4", "--service", "ssh,extra", verb="close")
    assert world.net.client.exchange(world.address(), world.bob.payload(world.host)) is None
    eventually(lambda: "silence for 10.77.0.2: signature: " in world.host.log.read_text())
    assert not world.reachable()
    assert world.host.sentry_pid() == sentry, "the same sentry, with all that it remembers"


def test_a_bad_policy_changes_nothing_and_the_log_says_where(world, policy):
    policy["serial"] = 9
    policy["services"]["web"]["port"] = 70_000
    reload(world, "not reloaded, policy 7 goes on")
    assert "services.web.port: not a whole number" in world.host.log.read_text()
    assert "line " in world.host.log.read_text().rpartition("not reloaded")[2]
    told = world.knock("-4", "--for", "1s", "--open", "web").stdout
    assert "opened" in told
    assert " 7 " in told


def test_an_operator_without_a_key_changes_nothing_either(world, policy):
    policy["serial"] = 9
    policy["operators"]["carol"] = {"fingerprint": "0" * 40, "services": ["ssh"]}
    for _ in range(2):  # a second try must not take the keyring that is in use
        reload(world, "not reloaded, policy 7 goes on")
        assert " 7 " in world.knock("-4", "--for", "1s").stdout


def test_nor_does_a_file_without_a_key_however_often_it_is_tried(world, policy):
    bad = world.host.etc / "operators" / "a-bad.asc"
    bad.write_text("no key here\n")
    try:
        for _ in range(3):
            reload(world, "not reloaded, policy 7 goes on")
            assert " 7 " in world.knock("-4", "--for", "1s").stdout
    finally:
        bad.unlink()


def test_whoever_waits_for_a_task_is_answered_across_a_reload(world, policy):
    argv = ["/bin/sh", "-c", "sleep 1; echo done"]
    policy["tasks"] = {"nap": {"argv": argv, "user": "nobody"}}
    policy["operators"]["bob"]["tasks"] = ["nap"]
    reload(world, "reloaded: policy 7")

    def said_meanwhile() -> str:
        """Knock, and reload as soon as the run has begun; return what the log says of it."""
        at = len(world.host.log.read_text())
        payload = world.bob.payload(world.host, do=Action.RUN, what=("nap",), seconds=None)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(world.answered, payload)
            eventually(lambda: '"accepted"' in world.host.log.read_text()[at:])
            reload(world, "reloaded: policy 7")
            assert waiting.result()
        return world.host.log.read_text()[at:]

    # once in a few times the reload is in time, however slow the machine is
    tries = (said_meanwhile() for _ in range(9))
    assert any(said.index("reloaded: policy 7") < said.index('"answered"') for said in tries)


def test_another_knock_port_takes_another_sentry(world, policy):
    sentry = world.host.sentry_pid()
    policy["port"] = PORT + 1
    reload(world, f"knock port {PORT + 1}")
    assert world.host.sentry_pid() != sentry
    card = world.host.write_card(world.cards, [world.address()], name="moved", port=PORT + 1)
    try:
        old = world.bob.payload(world.host)
        assert world.net.client.exchange(world.address(), old, 0.5) is None
        world.knock("-4", host="moved", verb="status")
        assert not world.reachable()
        told = world.knock("-4", "--for", "1s", host="moved").stdout
        assert "opened" in told
    finally:
        card.unlink()
