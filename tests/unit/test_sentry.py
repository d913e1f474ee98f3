"""What the sentry lets through to what costs more, and what it tells the kernel to drop."""

import os
import socket
import subprocess
import sys
import textwrap
from unittest import mock

import pytest
from bpf_machine import PORT, run, syn

from tariq import picture
from tariq.agent import sentry as sentries
from tariq.agent.link import Setup, pair
from tariq.picture import Direction, png, proof
from tariq.transport import bpf, wire

KEY, NOW = bytes(range(32)), 1_800_000_000.0


@pytest.fixture
def link():
    ours, theirs = pair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


@pytest.fixture
def sentry(link):
    return sentries.Sentry(Setup(PORT, KEY.hex()), link[1], mock.MagicMock(), clock=lambda: NOW)


def knock(message=b"words"):
    return picture.wrap(message, KEY, Direction.TO_HOST, NOW)


def frames(link) -> int:
    """Return how many knocks the warden got."""
    count = 0
    while True:
        try:
            link[0].recv(65_536)
        except BlockingIOError:
            return count
        count += 1


def test_who_has_the_card_costs_no_more_than_the_bucket_holds(sentry, link, monkeypatch):
    now = [100.0]
    sentry._bucket = sentries.Bucket(sentries.RATE, sentries.BURST, lambda: now[0])
    decoded = mock.Mock(wraps=picture.unwrap)
    monkeypatch.setattr(picture, "unwrap", decoded)
    for _ in range(50):
        sentry.on_packet(syn(knock()))
    assert decoded.call_count == frames(link) == 40
    assert sentry.counts["over the limit"] == 10
    now[0] += 1
    for _ in range(10):
        sentry.on_packet(syn(knock()))
    assert decoded.call_count == 45
    assert frames(link) == 5


def altered(payload: bytes, at: int) -> bytes:
    """Return a copy with nonce and mark as they were, and something else changed."""
    out = bytearray(payload)
    out[at] ^= 1
    return bytes(out)


@pytest.fixture
def filters(sentry):
    """The programs that a kernel gets at the next look at the clock."""
    sniffer = mock.Mock(family=socket.AF_INET)
    attached = []

    def look():
        with mock.patch.object(
            sentries.sockets, "replace", lambda _, code, __: attached.append(code) or True
        ):
            sentry.on_tick([sniffer])
        return attached[-1]

    return look


@pytest.mark.parametrize("places", [[-20], range(-40, -20)], ids=["one", "many"])
def test_altered_copies_of_a_knock_are_soon_left_to_the_kernel(sentry, link, filters, places):
    good = knock()
    assert run(filters(), syn(good))
    for number in range(sentries.FLOOD):
        sentry.on_packet(syn(altered(good, places[number % len(places)])))
    assert sentry.tick_due
    program = filters()
    assert not run(program, syn(altered(good, -20)))
    assert run(program, syn(knock())), "every other knock comes through"
    assert frames(link) == 0


def test_pictures_without_the_mark_block_nothing(sentry, filters):
    good = knock()
    junk = png.with_unique_id(good, png.unique_id(good)[:8] + "0" * 24)
    for _ in range(2 * sentries.FLOOD):
        sentry.on_packet(syn(junk))
    assert run(filters(), syn(good)), "else anybody could have a nonce blocked"


def test_what_is_blocked_stays_bounded(sentry, link):
    """Who has the card can make any number of nonces with good marks."""
    mark_key = proof.mark_keys(KEY, Direction.TO_HOST, NOW)[0]
    good = knock()
    for number in range(bpf.MAX_BLOCKED + 50):
        nonce = number.to_bytes(4, "big")
        digits = nonce.hex() + proof.half_sip_hash(mark_key, nonce).hex() + "0" * 16
        for _ in range(sentries.FLOOD):
            sentry.on_packet(syn(png.with_unique_id(good, digits)))
    assert len(sentry._blocked) == bpf.MAX_BLOCKED
    for number in range(sentries.MEMORY + 10):
        sentry._on_copy(png.with_unique_id(good, f"{number:08x}" + "0" * 24))
    assert len(sentry._copies) <= sentries.MEMORY


def test_a_knock_for_which_there_was_no_room_is_taken_at_the_next_try(sentry, link, monkeypatch):
    good = knock()
    monkeypatch.setattr(sentry, "_tell", lambda _: False)
    sentry.on_packet(syn(good))
    monkeypatch.undo()
    sentry.on_packet(syn(good))
    assert frames(link) == 1


def test_an_answer_that_the_kernel_refuses_to_send_ends_nothing(link, caplog):
    """EPERM: a rule drops it; ENETUNREACH: the route has gone."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:  # EACCES without SO_BROADCAST
        sender = sentries.RawSender({socket.AF_INET: out})
        sentry = sentries.Sentry(Setup(PORT, KEY.hex()), link[1], sender, clock=lambda: NOW)
        asked = wire.Segment("255.255.255.255", "10.0.0.1", 4000, PORT, 1, 0, wire.SYN, knock())
        sentry._on_proven(asked, KEY)
        frame = sentries.Knock.decode(link[0].recv(65_536))
        sentry.on_reply(sentries.Reply(frame.number, b"yes"))
    assert sentry.counts["answers that could not be sent"] == 1


@pytest.mark.parametrize(
    "source", ["0.0.0.0", "255.255.255.255", "224.0.0.1", "239.1.2.3", "::", "ff02::1"]
)
def test_an_address_that_nobody_can_have_is_refused(sentry, link, source):
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    packet = bytearray(syn(knock(), 6 if ":" in source else 4))
    raw = socket.inet_pton(family, source)
    at = 8 if ":" in source else 12
    packet[at : at + len(raw)] = raw
    sentry.on_packet(bytes(packet))
    assert frames(link) == 0
    assert sentry.counts["refused at the packet"] == 1


def test_confined_it_can_open_nothing_and_start_nothing():
    """Also where numbers below the highest descriptor are free."""
    script = textwrap.dedent("""
        import os, socket, threading
        from tariq.agent import sentry
        spare = [os.open("/dev/null", os.O_RDONLY) for _ in range(8)]
        a, b = socket.socketpair()
        os.close(spare[2]); os.close(spare[5])
        os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
        sentry.confine()
        refused = []
        for attempt in (
            lambda: os.open("/dev/null", os.O_RDONLY), socket.socket, os.pipe,
            lambda: os.dup(0), os.fork, threading.Thread(target=print).start,
        ):
            try:
                attempt()
            except (OSError, RuntimeError):
                refused.append(True)
        a.send(b"still here")
        print(len(refused), b.recv(20).decode())
    """)
    if os.geteuid() != 0:
        script = script.replace("os.setres", "0 and os.setres")
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "6 still here\n"
