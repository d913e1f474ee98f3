"""Whatever isn't an operator's fresh knock for this host changes nothing and gets no answer."""

from __future__ import annotations

import socket
import time

import pytest
from lab import PORT, AgentHost, Forger, Network, Recorder
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw

from tariq.agent.sentry import RETRY_SECONDS
from tariq.message import Action, Batch, Request

BOTH = pytest.mark.parametrize("version", [4, 6])


def crafted(payload: bytes, version: int, flags: str = "S") -> bytes:
    """Return a knock's packet from the client's address, as bytes."""
    source, host = (
        (Network.V4["client"], Network.V4["host"])
        if version == 4
        else (Network.V6["client"], Network.V6["host"])
    )
    ip = IP(src=source, dst=host) if version == 4 else IPv6(src=source, dst=host)
    return bytes(ip / TCP(sport=40_000, dport=PORT, flags=flags, seq=1) / Raw(payload))


def raw_sender(node, version: int) -> socket.socket:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    return node.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)


@BOTH
def test_a_good_forgery_kit_makes_good_knocks(world, version):
    """The control: the very tools that forge below open the port when they don't."""
    assert world.net.client.exchange(world.address(version), world.bob.payload(world.host))
    assert world.reachable(version)
    time.sleep(2.2)
    assert not world.reachable(version)


@BOTH
def test_a_replay_opens_nothing_and_gets_no_answer(world, from_host, version):
    """Byte for byte as sniffed, from the same address and from another, also after a restart."""
    onlooker = Recorder(world.net.host)
    world.knock(f"-{version}", "--for", "1s")
    [knock] = [each for each in onlooker.segments() if each.dport == PORT and each.payload]
    onlooker.close()
    address = world.address(version)

    from_host()
    assert world.net.stranger.exchange(address, knock.payload) is None, "from elsewhere, at once"
    time.sleep(RETRY_SECONDS + 0.5)
    assert world.net.client.exchange(address, knock.payload) is None, "from the same address"
    assert world.net.stranger.exchange(address, knock.payload) is None
    assert world.host.stop() == 0
    world.host.start()
    assert world.net.client.exchange(address, knock.payload) is None, "after a restart"
    assert world.net.stranger.exchange(address, knock.payload) is None
    world.host.kill()
    world.host.start()
    assert world.net.client.exchange(address, knock.payload) is None, "after a crash"
    assert not from_host()
    assert not world.reachable(version)
    assert not world.reachable(version, node=world.net.stranger)


@BOTH
def test_a_retry_gets_the_same_receipt_and_does_nothing_twice(world, version):
    """The same bytes from the same address within seconds are a client that heard nothing."""
    payload = world.bob.payload(world.host, seconds=1)
    address = world.address(version)
    first = world.net.client.exchange(address, payload)
    assert first
    time.sleep(1.5)
    assert world.net.client.exchange(address, payload) == first
    assert not world.reachable(version), "the lease ended, and the retry didn't renew it"


def test_a_rewrapped_knock_is_refused_by_its_signed_id(world, from_host):
    """A holder of the host's public key and the knock key wraps the same bundle again."""
    request = Request(
        to=bytes.fromhex(world.host.card()["fingerprint"])[:16],
        do=Action.OPEN,
        t=int(time.time()),
        what=("ssh",),
        seconds=1,
    )
    batch = Batch.of([request.encode()])
    bundle = batch.bundle(0, world.bob.key.sign(batch.to_sign))
    first = Forger.wrap(world.host, world.host.card(), bundle)
    again = Forger.wrap(world.host, world.host.card(), bundle)
    assert first != again
    assert world.net.client.exchange(world.address(), first)
    time.sleep(1.5)
    from_host()
    assert world.net.stranger.exchange(world.address(), again) is None
    assert world.net.client.exchange(world.address(), again) is None
    assert not from_host()
    assert not world.reachable()


@BOTH
def test_a_key_that_is_not_in_the_keyring_gets_silence(world, from_host, version):
    mallory = Forger(world.base, f"mallory{version}")
    try:
        payload = mallory.payload(world.host)
        assert world.net.client.exchange(world.address(version), payload) is None
    finally:
        mallory.close()
    assert not from_host()
    assert not world.reachable(version)


@BOTH
def test_a_knock_for_another_host_gets_silence(world, from_host, version):
    """Both ways that it can go wrong: sealed to another host, or signed for another."""
    other = AgentHost(world.base, world.net.stranger, world.python, name=f"web2-{version}")
    other.write_policy()
    try:
        sealed_elsewhere = world.bob.payload(world.host, sealed_for=other)
        signed_elsewhere = world.bob.payload(world.host, to=other.card()["fingerprint"])
        for payload in (sealed_elsewhere, signed_elsewhere):
            assert world.net.client.exchange(world.address(version), payload) is None
    finally:
        other.close()
    assert not from_host()
    assert not world.reachable(version)


@pytest.mark.parametrize("age", [1900, -1900, 86_400])
def test_a_knock_out_of_its_time_gets_silence(world, from_host, age):
    """Too old or too early for its picture's proof (test_meaning has the clocks in between)."""
    payload = world.bob.payload(world.host, age=age, stamped=time.time() - age)
    assert world.net.client.exchange(world.address(), payload) is None
    assert not from_host()
    assert not world.reachable()


@BOTH
def test_one_flipped_bit_anywhere_gets_silence(world, from_host, version):
    """Every bit of a good knock's payload, one at a time, over the wire."""
    payload = world.bob.payload(world.host)
    whole = crafted(payload, version)  # nothing on the way looks at TCP's checksum
    start = len(whole) - len(payload)
    with raw_sender(world.net.client, version) as sock:
        for bit in range(start * 8, len(whole) * 8):
            broken = bytearray(whole)
            broken[bit // 8] ^= 1 << bit % 8
            sock.sendto(bytes(broken), (world.address(version), 0))
            if bit % 64 == 0:
                time.sleep(0.01)  # all are looked at: none hides behind a full buffer
    assert not from_host(1.0)
    assert not world.reachable(version)
    assert world.net.client.exchange(world.address(version), payload), "whole, it opens"
    time.sleep(2.2)


@BOTH
def test_a_knock_cut_short_anywhere_gets_silence(world, from_host, version):
    """Cut to each length, with IP headers that agree (IPv4) or still tell the old one (IPv6)."""
    payload = world.bob.payload(world.host)
    whole = crafted(payload, version)
    with raw_sender(world.net.client, version) as sock:
        for length in range(40, len(whole)):
            sock.sendto(whole[:length], (world.address(version), 0))
            if length % 16 == 0:
                time.sleep(0.01)
    assert not from_host(1.0)
    assert not world.reachable(version)


@pytest.mark.parametrize("flags", ["SA", "A", "PA", "F", "R", "FPU", "", "SF", "SR"])
def test_a_good_payload_on_anything_but_a_syn_gets_silence(world, from_host, flags):
    payload = world.bob.payload(world.host)
    with raw_sender(world.net.client, 4) as sock:
        sock.sendto(crafted(payload, 4, flags), (world.address(), 0))
    assert not from_host(0.6)
    assert not world.reachable()


def test_a_service_that_the_operator_may_not_use_is_a_signed_no(world):
    """After the signature proved who asks, a refusal may be told."""
    world.host.policy["operators"]["bob"]["services"] = ["web"]
    world.host.stop()
    world.host.start()
    try:
        assert world.net.client.exchange(world.address(), world.bob.payload(world.host))
        assert not world.reachable()
    finally:
        world.host.policy["operators"]["bob"]["services"] = ["ssh", "web"]
        world.host.stop()
        world.host.start()
