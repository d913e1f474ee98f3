"""nmap can't tell a guarded host from a twin that simply drops the same ports."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from xml.etree import ElementTree

import pytest
from lab import PORT, Network, Server, eventually

FIRST = ("-sS", "-sU", "-p", f"T:9,22,443,8080,{PORT},U:9,161,{PORT}")
"""An open and a closed port are among them, so that not everything is silent."""
OTHERS = [(kind, "-p", f"9,22,8080,{PORT}") for kind in ("-sA", "-sF", "-sN", "-sX")]
RULES = f"""
add table inet twin
add chain inet twin in {{ type filter hook input priority filter; }}
add rule inet twin in tcp dport {{ 22, 443, {PORT} }} drop
add rule inet twin in udp dport 161 drop
"""


@pytest.fixture(scope="module")
def twin(world):
    """A host without Tariq whose same ports are dropped, and a UDP service on the guarded one."""
    world.host.stop()
    world.host.policy["services"]["snmp"] = {"protocol": "udp", "port": 161}
    world.host.start()
    node = world.net.add("twin")
    servers = [Server(node, port) for port in (22, 443, 8080)]
    try:
        node.run("nft", "-f", "-", input=RULES)
        yield node
    finally:
        for server in servers:
            server.close()
        node.delete()


def scan(world, version: int, *words: str) -> tuple[dict, dict]:
    """Scan host and twin from the stranger; return state, reason and ttl by port, of each."""
    addresses = [(Network.V4 if version == 4 else Network.V6)[name] for name in ("host", "twin")]
    quick = ["-n", "-Pn", "-T4", "--max-retries", "3", "--reason", "-oX", "-"]
    command = ["nmap", *(["-6"] if version == 6 else []), *quick, *words, *addresses]
    tree = ElementTree.fromstring(world.net.stranger.run(*command).stdout)
    found = {}
    for host in tree.iter("host"):
        states = {
            (port.get("protocol"), int(port.get("portid"))): tuple(
                port.find("state").get(name) for name in ("state", "reason", "reason_ttl")
            )
            for port in host.iter("port")
        }
        found[host.find("address").get("addr")] = states
    return found[addresses[0]], found[addresses[1]]


@contextlib.contextmanager
def bad_knocks(world) -> Iterator[list[int]]:
    """Send knocks that are wrong in their last bit, all the while; yield their count."""
    good = world.bob.payload(world.host)
    bad = good[:-1] + bytes([good[-1] ^ 1])
    sent, over = [0], threading.Event()

    def send() -> None:
        while not over.wait(0.05):
            for version in (4, 6):
                world.net.stranger.exchange(world.address(version), bad, 0.01)
                sent[0] += 1

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield sent
    finally:
        over.set()
        sender.join(10)


def compare(world, version: int, *words: str, before: dict | None = None) -> dict:
    """Return what nmap finds of both; on a busy machine it finds even the twin changed."""
    for _ in range(3):
        host, twin = scan(world, version, *words)
        if twin == (before or host):
            break
    assert host == twin, words
    return host


@pytest.mark.parametrize("version", [4, 6])
def test_before_during_and_after_knocks(world, twin, version):
    before = compare(world, version, *FIRST)
    states = {port: state for port, (state, *_) in before.items()}
    assert states["tcp", 8080] == "open", "the controls: it sees what is to be seen"
    assert states["tcp", 9] == states["udp", 9] == "closed"
    assert states["tcp", 22] == states["tcp", 443] == states["tcp", PORT] == "filtered"
    assert states["udp", 161] == "open|filtered"
    with bad_knocks(world) as sent:
        assert compare(world, version, *FIRST, before=before) == before
        eventually(lambda: sent[0] > 10)
    assert compare(world, version, *FIRST, before=before) == before
    world.knock(f"-{version}", "--for", "60s")
    again = compare(world, version, *FIRST, before=before)
    assert again == before, "somebody else's lease shows nothing"
    assert world.reachable(version), "the control: there was a lease all the while"
    world.close(version)


@pytest.mark.parametrize("words", OTHERS, ids=lambda words: words[0])
def test_other_ways_to_scan(world, twin, words):
    before = compare(world, 4, *words)
    assert len({state for state, *_ in before.values()}) > 1, "the control: ports differ"
    with bad_knocks(world):
        assert compare(world, 4, *words, before=before) == before
    assert compare(world, 4, *words, before=before) == before


def test_a_port_that_is_not_guarded_is_told_apart(world, twin):
    """The control of all of the above: without its guard the host is another than its twin."""
    world.host.unguard()
    try:
        host, dropped = scan(world, 4, *FIRST)
        assert host != dropped
    finally:
        world.host.stop()
        world.host.start()
