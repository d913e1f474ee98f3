"""One network with one agent for a module of tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from lab import AgentHost, Forger, Network, Operator, Recorder, Server, reachable_python, scratch


@dataclass
class World:
    """A host web1 with an agent that trusts alice (a person) and bob (who forges)."""

    base: Path
    net: Network
    host: AgentHost
    alice: Operator
    bob: Forger
    cards: Path
    python: str

    def knock(self, *words: str, verb: str = "knock", host: str = "web1", **more):
        """Run the client as alice, an ordinary user, on the client's machine."""
        more.setdefault("node", self.net.client)
        return self.alice.tariq(verb, host, "--cards", str(self.cards), *words, **more)

    def reachable(self, version: int = 4, port: int = 22, node=None) -> bool:
        return (node or self.net.client).connects(self.address(version), port)

    def address(self, version: int = 4) -> str:
        return (self.net.V4 if version == 4 else self.net.V6)["host"]


@pytest.fixture(scope="module")
def python():
    with scratch() as base:
        yield reachable_python(base)


@pytest.fixture(scope="module")
def world(python):
    with scratch() as base:
        net = Network()
        servers = [Server(net.host, port) for port in (22, 443, 8080)]
        alice, bob = Operator(base, "alice", python), Forger(base, "bob")
        host = AgentHost(base, net.host, python)
        host.trust(alice)
        host.trust(bob)
        cards = base / "cards"
        cards.mkdir()
        try:
            host.start()
            host.write_card(cards, [net.V4["host"], net.V6["host"]])
            yield World(base, net, host, alice, bob, cards, python)
        finally:
            host.close()
            alice.close()
            bob.close()
            for server in servers:
                server.close()
            net.delete()


@pytest.fixture
def from_host(world):
    """What the host sends to the client's and the stranger's machines while a test runs."""
    recorders = [Recorder(world.net.client), Recorder(world.net.stranger)]

    def answers(seconds: float = 0.3):
        segments = [each for recorder in recorders for each in recorder.segments(seconds / 2)]
        return [each for each in segments if each.src in (world.address(4), world.address(6))]

    yield answers
    for recorder in recorders:
        recorder.close()
