"""The agent as a process: what it holds, what it can't do, and how it ends."""

import os
import signal
import time
from pathlib import Path

import pytest
from lab import eventually

from tariq.message import Action


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, value in (line.split(":", 1) for line in lines)}


def test_no_tcp_or_udp_socket_of_any_kind(world):
    pids = {world.host.process.pid, world.host.sentry_pid()}
    world.knock("--for", "1s", "-4")
    listed = world.net.host.run("ss", "-H", "-a", "-n", "-p", "-t", "-u").stdout
    assert "pid=" in listed, "the control: the test's own server is listed"
    for line in listed.splitlines():
        assert not any(f"pid={pid}," in line for pid in pids), line
    sentry = Path(f"/proc/{world.host.sentry_pid()}")
    held = {os.readlink(fd) for fd in (sentry / "fd").iterdir()}
    packet = {
        f"socket:[{row.split()[8]}]"
        for row in (sentry / "net" / "packet").read_text().splitlines()[1:]
    }
    assert len(held & packet) == 2, "it does sniff, IPv4 and IPv6"


def test_the_sentry_can_do_nothing_but_parse(world):
    status = status_of(world.host.sentry_pid())
    assert set(status["Uid"].split()) == {"65534"}
    assert set(status["Gid"].split()) == {"65534"}
    assert status["Groups"] == ""
    assert int(status["CapPrm"], 16) == int(status["CapEff"], 16) == int(status["CapAmb"], 16) == 0
    assert status["NoNewPrivs"] == "1"


@pytest.mark.parametrize("secret", ["knock key", "host key", "ledger", "operators' keyring"])
def test_the_sentry_s_user_can_read_no_secret(world, secret):
    host = world.host
    path = {
        "knock key": host.etc / "knock.key",
        "host key": host.state / "gnupg" / "pubring.kbx",
        "ledger": host.state / "ledger.db",
        "operators' keyring": host.base / "run" / "operators",
    }[secret]
    assert path.exists()
    reading = ["cat", str(path)] if path.is_file() else ["ls", str(path)]
    denied = world.net.host.run(*reading, user="nobody", check=False)
    assert denied.returncode != 0
    assert "Permission denied" in denied.stderr


def test_a_sentry_that_dies_is_replaced(world):
    before = world.host.sentry_pid()
    os.kill(before, signal.SIGKILL)

    def another():
        try:
            return world.host.sentry_pid() not in (before, None)
        except ValueError:
            return False

    eventually(another)
    eventually(lambda: world.knock("--for", "1s", "-4", check=False).returncode == 0, 30)


def test_a_warden_that_dies_takes_the_sentry_along_and_leaves_the_guard(world):
    sentry = world.host.sentry_pid()
    world.knock("--for", "60s", "-4")
    world.host.kill()
    eventually(lambda: not Path(f"/proc/{sentry}").exists())
    assert world.reachable(4), "the kernel keeps the lease"
    assert not world.reachable(4, node=world.net.stranger), "and the guard"
    world.host.start()
    assert world.reachable(4), "a restart keeps it too"
    world.knock("-4", verb="close")
    assert not world.reachable(4)


def test_sigterm_ends_both_cleanly_and_unguard_opens_everything(world):
    sentry = world.host.sentry_pid()
    assert world.host.stop() == 0
    assert not Path(f"/proc/{sentry}").exists()
    assert not world.reachable(4), "a stopped agent fails closed"
    world.host.unguard()
    assert world.reachable(4)
    assert "tariq" not in world.net.host.run("nft", "list", "ruleset").stdout
    world.host.start()
    assert not world.reachable(4)


def test_unguard_works_without_the_library_that_the_guard_came_from(world):
    world.host.stop()
    hidden = 'for each in $(ldconfig -p | sed -n "s/.*libnftables.so.1 .*=> //p"); do'
    hidden += ' mount --bind /dev/null "$each"; done'
    unguard = f"{world.python} -m tariq agent unguard --run {world.host.base / 'run'}"
    assert not world.reachable(4)
    world.net.host.run("unshare", "-m", "sh", "-c", f"{hidden}; exec {unguard}", cwd="/")
    assert world.reachable(4)
    world.host.start()
    assert not world.reachable(4)


def test_the_rest_of_the_ruleset_is_left_as_it_was(world):
    nft = world.net.host.run
    world.host.stop()
    nft(
        "nft",
        "add table inet mine; add chain inet mine in { type filter hook input priority 0; };"
        "add rule inet mine in tcp dport 8080 counter accept comment mine",
    )
    mine = nft("nft", "list", "table", "inet", "mine").stdout
    world.host.start()
    world.knock("--for", "1s", "-4")
    time.sleep(1.5)
    world.host.stop()
    assert nft("nft", "list", "table", "inet", "mine").stdout == mine
    world.host.unguard()
    listed = nft("nft", "list", "ruleset").stdout
    assert listed == mine
    nft("nft", "delete", "table", "inet", "mine")
    world.host.start()


def test_nothing_that_a_stranger_sends_is_logged_line_by_line(world):
    """A knock that comes after it is logged as it always is, and nothing else is."""
    world.host.stop()
    world.host.start()  # the sentry's next summary is a minute away

    def logged_of(strange: int) -> int:
        before = world.host.log.read_bytes()
        for _ in range(strange):
            junk = b"\x89PNG\r\n\x1a\n" + os.urandom(900)
            world.net.stranger.exchange(world.address(), junk, 0.05)
        world.answered(world.bob.payload(world.host, do=Action.STATUS, what=()))
        return world.host.log.read_bytes()[len(before) :].count(b"\n")

    usual = logged_of(0)
    assert usual > 0
    assert logged_of(5) == usual
