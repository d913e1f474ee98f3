"""A host changes its keys, and nobody is cut off half-way."""

import json

import pytest

from tariq import openpgp
from tariq.agent import identity
from tariq.agent.identity import Places
from tariq.agent.rotation import Pair


@pytest.fixture
def places(world):
    return Places(world.host.etc, world.host.state, world.base / "run")


def rotate(world, step, *kinds, **more):
    return world.host.tariq("agent", "rotate", step, *kinds, "--json", **more)


def changed(world, step, *kinds):
    return json.loads(rotate(world, step, *kinds).stdout)["changed"]


def restart(world):
    world.host.stop()
    world.host.start()


def new_card(world, name):
    """Ask the host for its card, as a later deployment does."""
    folder = world.base / name
    folder.mkdir()
    world.host.write_card(folder, [world.net.V4["host"]])
    return folder


def gets_in(world, cards, check=True):
    told = world.alice.tariq(
        *("status", "web1", "--cards", str(cards), "-4"),
        node=world.net.client,
        check=check,
        patient=check,
    )
    return told.returncode == 0


def test_both_keys_count_at_every_step_until_the_old_ones_are_forgotten(world, places):
    old = world.cards
    assert gets_in(world, old)
    assert changed(world, "begin") == ["knock", "host"]
    assert changed(world, "begin") == [], "it can be said again"
    assert gets_in(world, old), "an agent that isn't restarted goes on"
    restart(world)
    assert gets_in(world, old)
    assert gets_in(world, new_card(world, "begun")), "which is still the old one"

    assert changed(world, "switch") == ["knock", "host"]
    assert changed(world, "switch") == []
    fresh = new_card(world, "switched")
    texts = [(folder / "web1.yml").read_text() for folder in (old, fresh)]
    for field in ("fingerprint", "public_key", "knock_key"):
        first, second = (
            next(line for line in text.splitlines() if line.startswith(field)) for text in texts
        )
        assert first != second
    assert gets_in(world, old)
    assert gets_in(world, fresh), "the agent took both since its restart"
    restart(world)
    assert gets_in(world, old)
    assert gets_in(world, fresh)

    assert changed(world, "finish") == ["knock", "host"]
    assert changed(world, "finish") == []
    restart(world)
    assert not gets_in(world, old, check=False)
    assert gets_in(world, fresh)
    keys = world.host.node.run(
        *("gpg", "--homedir", str(places.host_key), "--list-secret-keys", "--with-colons")
    ).stdout
    assert keys.count("\nsec:") + keys.startswith("sec:") == 1, "the old secret is gone"


def test_it_is_not_finished_before_the_new_card_is_out(world):
    changed(world, "begin", "knock")
    told = rotate(world, "finish", "knock", check=False)
    assert told.returncode == 14
    assert "switch' first" in told.stderr
    changed(world, "switch", "knock")
    assert changed(world, "finish", "knock") == ["knock"]


def test_a_host_that_was_cut_off_while_a_key_was_made_makes_another(world, places):
    """The ring has a secret key that no file names: it is not taken for the host's own."""
    cards = new_card(world, "before")
    mine = Pair.read(places.host_keys)
    assert mine is not None
    assert mine.other == "", "no change is under way"
    stray = openpgp.HostKey.make(places.host_key, "half-made").fingerprint
    restart(world)
    assert gets_in(world, cards)
    assert changed(world, "begin", "host") == ["host"]
    pair = Pair.read(places.host_keys)
    assert (pair.first, pair.role) == (mine.first, "next")
    assert stray not in pair.names
    assert not identity.host_key(places).forget_others(), "the stray is gone already"
    openpgp.stop_agent(places.host_key)
    changed(world, "switch", "host")
    changed(world, "finish", "host")
    restart(world)


@pytest.mark.parametrize("text", ["a\nnext\n", "a\nolder b\n", "a\nnext b\nold c\n"])
def test_a_damaged_file_is_told(world, places, text):
    before = places.knock_key.read_bytes()
    try:
        places.knock_key.write_text(text)
        told = rotate(world, "begin", "knock", check=False)
        assert told.returncode == 14
        assert "keep its first line" in told.stderr
    finally:
        places.knock_key.write_bytes(before)


def test_another_kind_is_refused(world):
    assert rotate(world, "begin", "operator", check=False).returncode == 2
