"""Whatever isn't an operator's fresh knock for this host changes nothing and gets no answer."""

from __future__ import annotations

import re
import socket
import time

import pytest
from lab import PORT, AgentHost, Forger, Network, Recorder, eventually
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


def send_all(world, version: int, packets) -> None:
    """Send packets from the client; the sentry looks at each: none hides behind a full buffer."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with world.net.client.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        for start in range(0, len(packets), 512):
            for _ in range(9):
                before = lost(world)
                for at, packet in enumerate(packets[start : start + 512]):
                    sock.sendto(packet, (world.address(version), 0))
                    if at % 64 == 63:
                        time.sleep(0.01)
                if lost(world) == before:
                    break
            else:
                pytest.fail("too slow a machine: the sentry's buffer is full each time")


def lost(world) -> int:
    """Return how many packets the full buffers of packet sockets have cost (ss(8), skmem)."""
    told = world.net.host.run("ss", "-H", "-0", "-m", "-n").stdout
    return sum(int(count) for count in re.findall(r"skmem:\(.*?,d(\d+)\)", told))


@BOTH
def test_a_good_forgery_kit_makes_good_knocks(world, version):
    """The control: the very tools that forge below open the port when they don't."""
    world.answered(world.bob.payload(world.host, seconds=6), version)
    assert world.reachable(version)
    eventually(lambda: not world.reachable(version))


@BOTH
def test_a_replay_opens_nothing_and_gets_no_answer(world, from_host, version):
    """Byte for byte as sniffed, from the same address and from another, also after a restart."""
    onlooker = Recorder(world.net.host)
    world.knock(f"-{version}", "--for", "60s")
    [knock, *_] = [each for each in onlooker.segments() if each.dport == PORT and each.payload]
    onlooker.close()
    address = world.address(version)
    assert world.reachable(version)
    world.close(version)

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
    for _ in range(9):  # the sentry remembers an answer for seconds, and the machine may stall
        payload = world.bob.payload(world.host, seconds=1)
        began = time.monotonic()
        first = world.answered(payload, version)
        time.sleep(1.1)
        again = world.net.client.exchange(world.address(version), payload, 3)
        if again is not None or time.monotonic() - began < RETRY_SECONDS + 2:
            break
    assert again == first
    assert not world.reachable(version), "the lease ended, and the retry didn't renew it"


def test_a_rewrapped_knock_is_refused_by_its_signed_id(world, from_host):
    """A holder of the host's public key and the knock key wraps the same bundle again."""
    request = Request(
        to=bytes.fromhex(world.host.card()["fingerprint"])[:16],
        do=Action.OPEN,
        t=int(time.time()),
        what=("ssh",),
        seconds=60,
    )
    batch = Batch.of([request.encode()])
    bundle = batch.bundle(0, world.bob.key.sign(batch.to_sign))
    first = Forger.wrap(world.host, world.host.card(), bundle)
    again = Forger.wrap(world.host, world.host.card(), bundle)
    assert first != again
    world.answered(first)
    assert world.reachable()
    world.close()
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
    flipped = []
    for bit in range(start * 8, len(whole) * 8):
        flipped.append(bytearray(whole))
        flipped[-1][bit // 8] ^= 1 << bit % 8
    send_all(world, version, flipped)
    assert not from_host()
    assert not world.reachable(version)
    send_all(world, version, [crafted(world.bob.payload(world.host), version)])
    assert len(from_host()) == 3, "the control: whole, one sent the same way is answered"
    assert world.reachable(version)
    world.close(version)


@BOTH
def test_a_knock_cut_short_anywhere_gets_silence(world, from_host, version):
    """Cut to each length, with IP headers that agree (IPv4) or still tell the old one (IPv6)."""
    payload = world.bob.payload(world.host)
    whole = crafted(payload, version)
    send_all(world, version, [whole[:length] for length in range(40, len(whole))])
    assert not from_host()
    assert not world.reachable(version)


@pytest.mark.parametrize("flags", ["SA", "A", "PA", "F", "R", "FPU", "", "SF", "SR"])
def test_a_good_payload_on_anything_but_a_syn_gets_silence(world, from_host, flags):
    payload = world.bob.payload(world.host)
    send_all(world, 4, [crafted(payload, 4, flags)])
    assert not from_host()
    assert not world.reachable()


def test_a_service_that_the_operator_may_not_use_is_a_signed_no(world):
    """After the signature proved who asks, a refusal may be told."""
    world.host.policy["operators"]["bob"]["services"] = ["web"]
    world.host.stop()
    world.host.start()
    try:
        world.answered(world.bob.payload(world.host))
        assert not world.reachable()
    finally:
        world.host.policy["operators"]["bob"]["services"] = ["ssh", "web"]
        world.host.stop()
        world.host.start()
