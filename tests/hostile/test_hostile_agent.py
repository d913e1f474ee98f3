"""Each attack on the agent is refused where its file says, and the next knock is served.

Here sentry and warden are the real ones, with real GnuPG and ledger, in one process and
with the clock of the file; ``tests/wire/test_hostile.py`` sends the same files to a whole
agent through a kernel.
"""

import pytest
from hostile import corpus, readers
from lab import scratch

from tariq import openpgp

ATTACKS = corpus.every("agent")


@pytest.fixture(scope="module")
def agent():
    with scratch() as base, readers.Agent(base / "agent") as made:
        made.knocks = readers.good_knocks(readers.bob(base / "bob"), corpus.CLOCK)
        made.delivered = set()
        yield made
        openpgp.stop_agent(base / "bob")


def deliver(agent, attack):
    agent.delivered.add(attack.name)
    return agent.deliver(attack)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_at_its_layer_and_the_next_knock_is_served(agent, name):
    attack = ATTACKS[name]
    if attack.after and attack.after not in agent.delivered:
        assert deliver(agent, ATTACKS[attack.after])[0] == "yes"
    agent.firewall.reset_mock()
    layer, reason = deliver(agent, attack)
    assert layer == attack.layer
    if layer not in corpus.GNUPG_DECIDES:
        assert reason == attack.reason
    assert agent.firewall.open.called == (layer == "yes")
    _serves(agent, deep=layer not in corpus.SENTRYS)


def _serves(agent, *, deep):
    """See that a good knock is passed on; whoever met the attack last has to serve it."""
    agent.now = corpus.CLOCK
    packet = readers.around(next(agent.knocks))
    if deep:
        assert agent.on_packet(packet) == ("yes", "")
        assert agent.firewall.open.called
        return
    agent.link.frames.clear()
    agent.sentry.on_packet(packet)
    assert len(agent.link.frames) == 1


def test_a_clock_that_jumps_back_revives_no_knock():
    """Used, forgotten two hours later because it is too old, sent as the clock goes back."""
    with scratch() as base, readers.Agent(base / "agent") as agent:
        bob = readers.bob(base / "bob")
        assert agent.deliver(ATTACKS["good-before-rewrapped"])[0] == "yes"
        agent.now = corpus.CLOCK + 7200
        later = next(readers.good_knocks(bob, agent.now))
        assert agent.on_packet(readers.around(later)) == ("yes", "")
        used = agent.warden._ledger._db.execute("SELECT count(*) FROM used").fetchone()
        assert used == (1,), "the control: the first was forgotten"
        agent.firewall.reset_mock()
        assert agent.deliver(ATTACKS["ledger-rewrapped"]) == ("ledger", "used before")
        assert not agent.firewall.open.called
        openpgp.stop_agent(bob.home)


def test_the_corpus_has_what_it_must_have():
    """Every layer is tried, by the card's holder as well as by strangers; controls are accepted."""
    for to in ("agent", "client"):
        files = corpus.every(to).values()
        layers = {each.layer for each in files}
        assert layers >= {"proof", "picture", "text", "openpgp", "json", "yes"}
        assert len(files) > 120
        assert all(each.proof == "good" for each in files if each.layer in ("picture", "text"))
        assert len({each.body for each in files}) == len(files), "no file twice"
    agents = {each.layer for each in corpus.every("agent").values()}
    assert agents == set(corpus.LAYERS) - {"receipt"}
