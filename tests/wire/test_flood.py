"""Real knocks come through while one core sends junk as fast as it can (bench/flood.py: longer)."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from lab import PORT, REPO, Recorder, eventually

from tariq import picture
from tariq.agent.link import Setup, pair
from tariq.agent.sentry import Sentry
from tariq.picture import Direction, proof
from tariq.transport import bpf, sockets
from tariq.transport.base import NoAnswer
from tariq.transport.fastopen import FastOpen
from tariq.transport.sniffer import Sniffer

KINDS = ("marked-like", "replays", "altered", "syns")


def memory_of(pid: int) -> int:
    """Return resident memory in kB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


@pytest.mark.parametrize("kind", KINDS)
def test_knocks_come_through_a_flood(world, kind):
    onlooker = Recorder(world.net.host)
    world.knock("-4", "--for", "1s")
    [knock] = [each for each in onlooker.segments() if each.dport == PORT and each.payload]
    onlooker.close()
    copy = world.base / "knock.bin"
    copy.write_bytes(knock.payload)
    pid, log = world.host.sentry_pid(), world.host.log.read_bytes()
    before = memory_of(pid)
    command = world.net.stranger.command(
        sys.executable,
        str(REPO / "bench" / "junk.py"),
        kind,
        "10.77.0.3",
        "10.77.0.1",
        str(PORT),
        "6",
        str(copy),
    )
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as flood:
        yes = sum(world.knock("-4", "--for", "1s", check=False).returncode == 0 for _ in range(4))
        sent = int(flood.communicate(timeout=30)[0].split()[0])
    assert sent > 1000, "the control: there was a flood"
    assert yes == 4
    assert world.host.sentry_pid() == pid
    assert memory_of(pid) < before + 8192
    lines = world.host.log.read_bytes()[len(log) :].splitlines()
    assert len(lines) <= 2 * 4 + 1, "one line per knock, and a summary at most"


def test_the_sentry_can_open_nothing_more(world):
    """Not one descriptor, process or byte of a file; its memory is bounded, too."""
    limits = Path(f"/proc/{world.host.sentry_pid()}/limits").read_text()
    for what in ("open files", "processes", "file size", "core file size"):
        assert limits.split(f"Max {what} ")[1].split()[:2] == ["0", "0"], what
    assert int(limits.split("Max address space ")[1].split()[1]) < 1 << 30


def test_filters_follow_the_clock_without_a_gap(world):
    """The kernel holds three windows at any time; the sentry renews them as they roll over."""
    now = [1_800_000_000.0]
    key = os.urandom(32)
    with world.net.host.entered():
        sock = sockets.open_sniffer(
            socket.AF_INET,
            bpf.knocks(socket.AF_INET, 7, proof.mark_keys(key, Direction.TO_HOST, now[0])),
        )
    ours, theirs = pair()
    with sock, ours, theirs:
        sniffer = Sniffer(sock, socket.AF_INET)
        sentry = Sentry(Setup(7, key.hex()), theirs, None, clock=lambda: now[0])
        sentry.on_tick([sniffer])

        def passes(stamped: float) -> bool:
            payload = picture.wrap(b"words", key, Direction.TO_HOST, stamped)
            with world.net.client.entered(), contextlib.suppress(NoAnswer):
                FastOpen().exchange(world.address(), 7, payload, 0.2)
            return sniffer.receive() is not None

        assert passes(now[0])
        ahead = now[0] + proof.WINDOW
        assert passes(ahead), "before the clock comes to it"
        assert not passes(now[0] + 3 * proof.WINDOW)
        now[0] += 3 * proof.WINDOW
        sentry.on_tick([sniffer])
        assert passes(now[0])
        assert not passes(ahead - proof.WINDOW), "and the old windows are gone"
    assert eventually(lambda: world.knock("-4", "--for", "1s", check=False).returncode == 0)


@pytest.mark.parametrize("room", [20_480, 8_192])
def test_a_kernel_with_little_room_for_filters_still_answers(world, room):
    """20,480 bytes is what Linux before 6.7 allows; with less, the sentry alone checks the mark."""
    setting = "net.core.optmem_max"
    before = world.net.host.run("sysctl", "-n", setting).stdout.strip()
    world.host.stop()
    try:
        world.net.host.run("sysctl", "-w", f"{setting}={room}")
        world.host.start()
        for version in (4, 6):
            assert world.knock(f"-{version}", "--for", "1s", check=False).returncode == 0
    finally:
        world.host.stop()
        world.net.host.run("sysctl", "-w", f"{setting}={before}")
        world.host.start()


def test_filters_are_replaced_where_two_do_not_fit(world):
    setting = "net.core.optmem_max"
    before = world.net.host.run("sysctl", "-n", setting).stdout.strip()
    keys = [os.urandom(8) for _ in range(3)]
    try:
        world.net.host.run("sysctl", "-w", f"{setting}=20480")
        for family in (socket.AF_INET, socket.AF_INET6):
            plain, keyed = bpf.unkeyed(family, 7), bpf.knocks(family, 7, keys)
            with world.net.host.entered():
                sock = sockets.open_sniffer(family, plain)
            with sock:
                assert all(sockets.replace(sock, keyed, plain) for _ in range(3))
    finally:
        world.net.host.run("sysctl", "-w", f"{setting}={before}")
