"""A knock comes in by whatever link there is, also by one that came after the agent started."""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from collections.abc import Callable

import pytest
from lab import PATIENCE, PORT, Network
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

from tariq.agent import sentry
from tariq.message import Action

TRY, SOON = 0.4, 5
"""Seconds of a try, and within how many a link that has come or changed is picked up."""
_ports = itertools.count(20_000)


def tries(world, address: str, change=lambda: None) -> int:
    """Make a change; return how many tries it then takes, as a client makes them, to open ssh."""
    payload = world.bob.payload(world.host)
    change()
    for count in itertools.count(1):
        began = time.monotonic()
        if count % sentry.MAX_RETRIES == 0:  # it answers no more sockets of one client
            payload = world.bob.payload(world.host)
        with contextlib.suppress(OSError):  # the client's own end isn't up yet
            if world.net.client.exchange(address, payload, TRY):
                break
        assert count < 5 * SOON, "no answer"
        time.sleep(max(0.0, began + TRY - time.monotonic()))
    assert world.net.client.connects(address, 22)
    close = world.bob.payload(world.host, do=Action.CLOSE, seconds=None)
    assert world.net.client.exchange(address, close, PATIENCE)
    assert not world.net.client.connects(address, 22)
    return count


def soon(measure: Callable[[], int]) -> bool:
    """Tell whether it takes few tries, be it not at once: the machine may stall."""
    return any(measure() <= SOON for _ in range(3))


@pytest.mark.parametrize(
    "kind",
    ["veth", "vlan", "stacked vlans", "bridge", "macvlan", "gre", "tun", "tun as ppp", "ppp"],
)
def test_a_link_that_appears(world, kind):
    """``tun as ppp`` is a tun device that calls itself PPP, for kernels without PPP."""

    def measure() -> int:
        with link(kind, world.net.host, world.net.client):
            assert not world.net.client.connects(HOST, 22, 0.3)
            return tries(world, HOST)

    assert soon(measure)


def test_a_link_that_goes_down_and_comes_up(world):
    def measure() -> int:
        world.net.host.ip("link", "set", "new0", "down")
        assert world.net.client.exchange(HOST, world.bob.payload(world.host), 0.2) is None
        return tries(world, HOST, lambda: world.net.host.ip("link", "set", "new0", "up"))

    with link("veth", world.net.host, world.net.client):
        for _ in range(2):
            assert soon(measure)


def test_a_link_that_is_deleted_and_made_again(world):
    def measure() -> int:
        with link("veth", world.net.host, world.net.client):
            return tries(world, HOST)

    for _ in range(2):
        assert soon(measure)


def test_the_first_link_lives_on_when_another_dies(world):
    def measure() -> int:
        with link("veth", world.net.host, world.net.client):
            tries(world, HOST)
        return max(tries(world, world.address(version)) for version in (4, 6))

    assert soon(measure)


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

    def rename(old: str, new: str) -> None:
        net.host.ip("link", "set", old, "down")
        net.host.ip("link", "set", old, "name", new)

    def measure() -> int:
        with link("veth", net.host, net.client, "late0"):
            first = tries(named, HOST)  # it is there now, and named
            rename("late0", "other0")
            net.host.ip("link", "set", "other0", "up")
            for _ in range(SOON):
                payload = named.bob.payload(named.host)
                assert net.client.exchange(HOST, payload, TRY) is None, "by no name that is listed"
            named.close()  # what came before it was looked at by then
            assert not net.client.connects(HOST, 22)
            rename("other0", "late0")
            up = lambda: net.host.ip("link", "set", "late0", "up")  # noqa: E731
            return max(first, tries(named, HOST, up))

    assert tries(named, named.address())
    assert soon(measure)


# --- headers that clients' kernels don't send, and routers may ---------------------------------


def crafted(world, ip: Packet) -> Packet:
    """Return a good knock behind an IP header of one's own."""
    payload = world.bob.payload(world.host)
    return ip / TCP(sport=next(_ports), dport=PORT, flags="S", seq=1) / Raw(payload)


def sent(world, *packets: Packet) -> bool:
    """Send packets from the client; tell whether ssh is open when a later knock has opened web."""
    version = packets[0].version
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with world.net.client.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as out:
        for packet in packets:
            out.sendto(bytes(packet), (packet.dst, 0))
    world.answered(world.bob.payload(world.host, what=("web",)), version)
    assert world.reachable(version, 443)
    opened = world.reachable(version)
    both = {"do": Action.CLOSE, "what": ("ssh", "web"), "seconds": None}
    world.answered(world.bob.payload(world.host, **both), version)
    assert not world.reachable(version)
    return opened


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
