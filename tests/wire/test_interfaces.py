"""A knock comes in by whatever link there is, also by one that came after the agent started."""

from __future__ import annotations

import itertools
import socket
import time

import pytest
from lab import PORT, Network, eventually
from links import HOST, link
from scapy.layers.inet import IP, TCP, IPOption_NOP, IPOption_RR, fragment
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
    fragment6,
)
from scapy.packet import Packet, Raw

SECONDS = 2.0
"""Within these a link that has come, come back or changed is picked up; what a knock takes on
this machine, over a link that was always there, comes on top."""
_ports = itertools.count(20_000)


def knocked(world, address: str) -> float:
    """Return how many seconds a knock and the connection after it take, on a link that is up."""
    payload = world.bob.payload(world.host, seconds=1)
    began = time.monotonic()
    assert world.net.client.exchange(address, payload, 2)
    assert world.net.client.connects(address, 22)
    taken = time.monotonic() - began
    eventually(lambda: not world.net.client.connects(address, 22, 0.3))
    return taken


def opens(world, address: str, change=lambda: None) -> bool:
    """Make a change; tell whether one knock, sent again as a client does, opens ssh in time."""
    usual = knocked(world, world.address())
    payload = world.bob.payload(world.host, seconds=1)
    change()
    end = time.monotonic() + SECONDS + usual
    while time.monotonic() < end:
        try:
            answered = world.net.client.exchange(address, payload, 0.4)
        except OSError:  # the client's own end isn't up yet
            time.sleep(0.05)
            continue
        if answered:
            opened = world.net.client.connects(address, 22) and time.monotonic() < end
            eventually(lambda: not world.net.client.connects(address, 22, 0.3))
            return opened
    return False


@pytest.mark.parametrize(
    "kind",
    ["veth", "vlan", "stacked vlans", "bridge", "macvlan", "gre", "tun", "tun as ppp", "ppp"],
)
def test_a_link_that_appears(world, kind):
    """``tun as ppp`` is a tun device that calls itself PPP, for kernels without PPP."""
    with link(kind, world.net.host, world.net.client):
        assert not world.net.client.connects(HOST, 22, 0.3)
        assert opens(world, HOST)


def test_a_link_that_goes_down_and_comes_up(world):
    with link("veth", world.net.host, world.net.client):
        for _ in range(2):
            world.net.host.ip("link", "set", "new0", "down")
            assert world.net.client.exchange(HOST, world.bob.payload(world.host), 0.2) is None
            assert opens(world, HOST, lambda: world.net.host.ip("link", "set", "new0", "up"))


def test_a_link_that_is_deleted_and_made_again(world):
    for _ in range(2):
        with link("veth", world.net.host, world.net.client):
            assert opens(world, HOST)


def test_the_first_link_lives_on_when_another_dies(world):
    with link("veth", world.net.host, world.net.client):
        assert opens(world, HOST)
    assert opens(world, world.address(4))
    assert opens(world, world.address(6))


@pytest.fixture
def named(world):
    """The agent, told to take knocks from eth0 and from an interface that isn't there yet."""
    world.host.stop()
    world.host.policy["interfaces"] = ["eth0", "late0"]
    world.host.start()
    yield world
    world.host.stop()
    del world.host.policy["interfaces"]
    world.host.start()


def test_only_interfaces_that_are_named(named):
    net = named.net
    assert opens(named, named.address())
    with link("veth", net.host, net.client, "late0"):
        assert opens(named, HOST), "it is there now, and named"
        net.host.ip("link", "set", "late0", "down")
        net.host.ip("link", "set", "late0", "name", "other0")
        net.host.ip("link", "set", "other0", "up")
        assert not opens(named, HOST), "the same cable by a name that isn't listed"
        net.host.ip("link", "set", "other0", "down")
        net.host.ip("link", "set", "other0", "name", "late0")
        assert opens(named, HOST, lambda: net.host.ip("link", "set", "late0", "up"))


# --- headers that clients' kernels don't send, and routers may ---------------------------------


def crafted(world, ip: Packet) -> Packet:
    """Return a good knock behind an IP header of one's own."""
    payload = world.bob.payload(world.host, seconds=1)
    return ip / TCP(sport=next(_ports), dport=PORT, flags="S", seq=1) / Raw(payload)


def sent(world, *packets: Packet) -> bool:
    """Send packets from the client; tell whether ssh opens in time."""
    version = packets[0].version
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with world.net.client.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as out:
        for packet in packets:
            out.sendto(bytes(packet), (packet.dst, 0))
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        if world.reachable(version):
            eventually(lambda: not world.reachable(version))
            return True
    return False


def ipv4(**more) -> IP:
    return IP(src=Network.V4["client"], dst=Network.V4["host"], **more)


def ipv6() -> IPv6:
    return IPv6(src=Network.V6["client"], dst=Network.V6["host"])


@pytest.mark.parametrize(
    "options",
    [[], [IPOption_NOP()] * 4, [IPOption_RR(length=39, routers=["0.0.0.0"] * 9)]],
    ids=["none", "nops", "record route, as long as can be"],
)
def test_ipv4_options(world, options):
    assert sent(world, crafted(world, ipv4(options=options)))


@pytest.mark.parametrize(
    "extensions",
    [
        [],
        [IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0" * 4)])],
        [IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 60)])],
        [IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(), IPv6ExtHdrDestOpt()],
        [IPv6ExtHdrRouting(type=0, addresses=[], segleft=0)],
    ],
    ids=["none", "hop by hop", "destination, long", "three", "routing"],
)
def test_ipv6_extension_headers(world, extensions):
    ip = ipv6()
    for header in extensions:
        ip = ip / header.copy()
    assert sent(world, crafted(world, ip))


def test_fragments_are_ignored(world):
    """The kernel would put them together; a sniffer sees each alone, and looks at none."""
    whole = IP(bytes(crafted(world, ipv4())))
    assert not sent(world, *fragment(whole, 576))
    pieces = fragment6(IPv6(bytes(crafted(world, ipv6() / IPv6ExtHdrFragment(id=7)))), 576)
    assert len(pieces) > 1
    assert not sent(world, *pieces)
    atomic = ipv6() / IPv6ExtHdrFragment(id=8)  # RFC 6946: a fragment that is whole
    assert not sent(world, crafted(world, atomic))
