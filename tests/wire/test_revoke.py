"""A key that is taken off: the host says which keys it trusts."""

import json
import socket

from lab import PATIENCE, eventually

from tariq.message import Action
from tariq.openpgp import keys_digest


def trusted(world) -> bytes | None:
    receipt = world.bob.receipt(world.host, world.address(), world.net.client, do=Action.STATUS)
    assert receipt is not None
    return receipt.keys


def test_a_status_receipt_tells_which_keys_the_agent_trusts(world):
    both = {world.alice.fingerprint, world.bob.fingerprint}
    assert trusted(world) == keys_digest(both)
    opened = world.bob.receipt(world.host, world.address(), world.net.client)
    assert opened.keys is None, "only who asks is told"
    world.close()


def test_a_key_that_is_listed_nowhere_does_not_count_and_one_that_is_removed_is_gone(world):
    """What counts is what the process trusts, so neither file alone changes anything."""
    world.host.policy["operators"].pop("alice")
    world.host.write_policy()
    assert trusted(world) == keys_digest({world.alice.fingerprint, world.bob.fingerprint})
    world.host.stop()
    world.host.start()
    assert (world.host.etc / "operators" / "alice.asc").exists()
    assert trusted(world) == keys_digest({world.bob.fingerprint})


def test_leases_of_a_revoked_key_end_and_others_live_on(world):
    net = world.net
    world.host.trust(world.alice)
    world.host.stop()
    world.host.start()
    world.knock("--open", "web", "--for", "60s")
    for node in (net.client, net.stranger):
        world.answered(world.bob.payload(world.host), node=node)
    assert all(world.reachable(node=node) for node in (net.client, net.stranger))

    with net.stranger.socket(socket.AF_INET) as living:
        living.settimeout(PATIENCE)
        living.connect((world.address(), 22))
        assert living.recv(16) == b"hello\n"
        assert _echoes(living)

        world.host.policy["operators"].pop("bob")
        world.host.stop()
        world.host.start()
        assert not world.reachable(node=net.stranger)
        assert not world.reachable()
        assert world.reachable(port=443), "alice's lease from the same address lives on"
        living.settimeout(1)
        assert not _echoes(living), "nor does what was open live on"
    status = json.loads(world.knock("--json", verb="status").stdout)[0]["receipt"]
    assert set(status["leases"]) == {"web"}


def test_a_connection_that_may_be_a_trusted_key_s_lives_on(world):
    """The one by which the revocation itself arrives, for example."""
    world.host.trust(world.alice)
    world.host.trust(world.bob)
    world.host.stop()
    world.host.start()
    world.knock("-4", "--open", "ssh", "--for", "6s")
    with world.net.client.socket(socket.AF_INET) as living:
        living.settimeout(PATIENCE)
        living.connect((world.address(), 22))
        assert living.recv(16) == b"hello\n"
        eventually(lambda: not world.reachable())
        world.answered(world.bob.payload(world.host))
        assert world.reachable()
        world.host.policy["operators"].pop("bob")
        world.host.stop()
        world.host.start()
        assert not world.reachable(), "bob's lease is over"
        assert _echoes(living)


def _echoes(sock) -> bool:
    try:
        sock.sendall(b"still there?\n")
        return bool(sock.recv(16))
    except OSError:
        return False
