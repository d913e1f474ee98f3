"""The units under a real systemd: how confined they are, and what ends and restarts what."""

import re
import time

import pytest

AGENT, SENTRY, GUARD = "tariq-agent.service", "tariq-sentry.service", "tariq-guard.service"
HOST = "web1"
LEASES = ("nft", "list", "set", "inet", "tariq", "leases4")
CAPABILITIES = {"net_admin": 1 << 12, "net_raw": 1 << 13}
"""linux/capability.h."""


def main_pid(fleet, unit: str) -> int:
    return int(fleet.on(HOST, "systemctl", "show", "-P", "MainPID", unit).stdout)


def status_of(fleet, pid: int) -> dict[str, str]:
    lines = fleet.on(HOST, "cat", f"/proc/{pid}/status").stdout.splitlines()
    return {name: value.strip() for name, value in (line.split(":", 1) for line in lines)}


def wait_until(what, seconds=20.0):
    end = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.2)
    return value


def knocks(fleet) -> bool:
    return fleet.tariq("knock", HOST, "--for", "1s", check=False).returncode == 0


@pytest.mark.parametrize("unit", [AGENT, SENTRY, GUARD])
def test_what_systemd_says_of_its_exposure(fleet, unit):
    """0 is perfect, 10 is bare; 2.0 is what this project allows itself."""
    path = f"/etc/systemd/system/{unit}"
    told = fleet.on(HOST, "systemd-analyze", "security", "--offline=true", "--no-pager", path)
    assert float(re.search(r"exposure level for \S+: ([\d.]+)", told.stdout)[1]) <= 2.0


@pytest.mark.parametrize("unit", [AGENT, SENTRY, GUARD])
def test_systemd_understands_every_line(fleet, unit):
    told = fleet.on(HOST, "systemd-analyze", "verify", f"/etc/systemd/system/{unit}", check=False)
    assert f"{unit}:" not in told.stdout + told.stderr


def test_the_sentry_has_nothing_left(fleet):
    status = status_of(fleet, main_pid(fleet, SENTRY))
    uid = fleet.on(HOST, "id", "-u", "tariq-sentry").stdout.strip()
    assert set(status["Uid"].split()) == {uid}
    assert all(int(status[f"Cap{each}"], 16) == 0 for each in ("Inh", "Prm", "Eff", "Amb"))
    assert int(status["CapBnd"], 16) == CAPABILITIES["net_raw"], "which nothing can get back:"
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert status["Threads"] == "1"


def test_the_sentry_s_memory_and_processor_are_bounded(fleet):
    bounds = {
        "MemoryMax": str(256 << 20),
        "MemorySwapMax": "0",
        "CPUQuotaPerSecUSec": "800ms",
        "TasksMax": "1",
    }
    shown = fleet.on(HOST, "systemctl", "show", *(f"-p{name}" for name in bounds), SENTRY).stdout
    assert dict(line.split("=", 1) for line in shown.splitlines()) == bounds
    limits = fleet.on(HOST, "cat", f"/proc/{main_pid(fleet, SENTRY)}/limits").stdout
    assert limits.split("Max open files ")[1].split()[:2] == ["0", "0"]


def test_the_warden_is_root_with_the_firewall_and_no_more(fleet):
    status = status_of(fleet, main_pid(fleet, AGENT))
    assert set(status["Uid"].split()) == {"0"}
    assert int(status["CapBnd"], 16) == int(status["CapEff"], 16) == CAPABILITIES["net_admin"]
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"


def test_the_warden_holds_no_packet_or_raw_socket(fleet):
    held = fleet.on(HOST, "ss", "-H", "-a", "-p", "-0", "-w").stdout
    assert f"pid={main_pid(fleet, SENTRY)}," in held, "the control: the sentry does"
    assert f"pid={main_pid(fleet, AGENT)}," not in held


def test_only_the_sentry_s_user_reaches_the_warden(fleet):
    """The socket's mode refuses others; the link is the sentry's, by its user."""
    told = fleet.on(HOST, "stat", "-c", "%U %G %a", "/run/tariq/sentry.sock").stdout
    assert told.split() == ["root", "tariq-sentry", "660"]
    told = fleet.on(
        HOST, "setpriv", "--reuid=nobody", "--clear-groups", "ls", "/run/tariq", check=False
    )
    assert "Permission denied" in told.stderr


def test_a_sentry_that_is_killed_comes_back(fleet):
    warden, sentry = main_pid(fleet, AGENT), main_pid(fleet, SENTRY)
    fleet.on(HOST, "kill", "-9", str(sentry))
    wait_until(lambda: knocks(fleet), 60)
    assert main_pid(fleet, SENTRY) not in (0, sentry)
    assert main_pid(fleet, AGENT) == warden


def test_a_warden_that_is_killed_takes_the_sentry_along_and_both_come_back(fleet):
    warden, sentry = main_pid(fleet, AGENT), main_pid(fleet, SENTRY)
    fleet.on(HOST, "kill", "-9", str(warden))
    gone = ["sh", "-c", f"! test -e /proc/{sentry}"]
    wait_until(lambda: fleet.on(HOST, *gone, check=False).returncode == 0, 30)
    wait_until(lambda: knocks(fleet), 60)
    assert main_pid(fleet, AGENT) not in (0, warden)
    assert main_pid(fleet, SENTRY) not in (0, sentry)


def test_a_warden_whose_program_is_gone_for_a_while_comes_back(fleet):
    program = fleet.on(HOST, "sh", "-c", "readlink -f $(command -v tariq)").stdout.strip()
    fleet.on(HOST, "mv", program, f"{program}.away")
    try:
        fleet.on(HOST, "systemctl", "kill", "--signal=KILL", AGENT)
        shown = ["systemctl", "show", "-P", "NRestarts", AGENT]
        before = int(fleet.on(HOST, *shown).stdout)
        wait_until(lambda: int(fleet.on(HOST, *shown).stdout) > before + 1, 30)
    finally:
        fleet.on(HOST, "mv", f"{program}.away", program)
    wait_until(lambda: knocks(fleet), 20)


def test_a_restart_is_ready_when_it_says_so(fleet):
    fleet.on(HOST, "systemctl", "restart", AGENT)
    told = fleet.tariq("knock", HOST, "-4", "--for", "60s", check=False)
    if told.returncode != 0:  # then only the receipt was late: a client waits for two seconds
        assert "expires" in fleet.on(HOST, *LEASES).stdout, told.stdout + told.stderr
    fleet.tariq("close", HOST, "-4")
    assert fleet.on(HOST, "systemctl", "is-active", SENTRY).stdout.strip() == "active"


def test_a_stop_ends_both_and_a_start_starts_both(fleet):
    fleet.on(HOST, "systemctl", "stop", AGENT)
    try:
        both = ["systemctl", "is-active", AGENT, SENTRY]
        gone = ["inactive", "inactive"]  # the sentry is stopped after the agent
        wait_until(lambda: fleet.on(HOST, *both, check=False).stdout.split() == gone, 20)
        assert not knocks(fleet)
        assert not fleet.reachable(HOST), "the guard stays"
    finally:
        fleet.on(HOST, "systemctl", "start", AGENT)
    wait_until(lambda: knocks(fleet), 30)


def test_the_guard_alone_closes_the_ports(fleet):
    fleet.on(HOST, "systemctl", "stop", AGENT)
    try:
        fleet.on(HOST, "tariq", "agent", "unguard")
        wait_until(lambda: fleet.reachable(HOST), 30)
        fleet.on(HOST, "systemctl", "restart", GUARD)
        assert not fleet.reachable(HOST)
    finally:
        fleet.on(HOST, "systemctl", "start", AGENT)
    wait_until(lambda: knocks(fleet), 30)


def test_a_host_that_restarts_is_guarded_before_its_network_is_up(fleet):
    fleet.tariq("knock", HOST, "--for", "120s")
    fleet.restart(HOST)
    running = ["systemctl", "is-active", AGENT]
    wait_until(lambda: fleet.on(HOST, *running, check=False).stdout.strip() == "active", 40)
    assert not fleet.reachable(HOST), "no lease is left over"

    def at(moment: str, unit: str) -> int:
        shown = fleet.on(HOST, "systemctl", "show", "-P", f"{moment}TimestampMonotonic", unit)
        return int(shown.stdout)

    guarded = at("ActiveEnter", GUARD)
    assert 0 < guarded <= at("ActiveEnter", "network-pre.target")
    assert guarded <= at("InactiveExit", AGENT)
    wait_until(lambda: knocks(fleet), 30)


def test_no_unit_has_failed_and_nothing_was_logged_in_anger(fleet):
    assert "0 loaded units listed" in fleet.on(HOST, "systemctl", "--failed").stdout
    journal = fleet.on(HOST, "journalctl", "-u", "tariq-*", "--no-pager").stdout
    assert "Traceback" not in journal
