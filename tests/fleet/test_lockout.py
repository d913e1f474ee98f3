"""Sabotage: whatever breaks while a host is put under guard, its ssh answers again.

Each test starts from a host that was confirmed and has to be tried again, so its guard is up
and it would stay locked if nothing took it down. `make lockout` runs them; `make test` has a
short form in test_fleet.py.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

HOST = "web1"
BASTION, STRANGER = "web2", "web3"
"""Nothing is deployed to these two; one of them is the break-glass network."""
AGENT, SENTRY, GUARD = "tariq-agent.service", "tariq-sentry.service", "tariq-guard.service"
PAGE = Path(__file__).parents[2] / "docs" / "lockout.md"
DROP_IN = f"/run/systemd/system/{AGENT}.d/sabotage.conf"
SERVICE = ("--limit", HOST, "--tags", "tariq_service")
"""A deployment that changes nothing but puts what is there into service, on trial."""
CUT = """\
table inet cut {
  chain in { type filter hook input priority -400; iifname != "lo" drop; }
  chain out { type filter hook output priority -400; oifname != "lo" drop; }
}
"""
STEPS = (
    "Is what is installed confirmed and in service",
    "Start the agent on trial",
    "Knock",
    "Come in through the guard and confirm",
)


class Lab:
    """One host, and what is done to it past ssh and firewall."""

    def __init__(self, fleet):
        self.fleet = fleet

    def on(self, *words, **more):
        return self.fleet.on(HOST, *words, **more)

    def sh(self, script, **more):
        return self.on("sh", "-c", script, **more)

    def deploy(self, *words, seconds=40, **more):
        networks = [f"{self.fleet.address(BASTION, v)}/{32 if v == 4 else 128}" for v in (4, 6)]
        always = {"tariq_trial_seconds": seconds, "tariq_break_glass": networks}
        return self.fleet.playbook("deploy.yml", *words, "-e", json.dumps(always), **more)

    def state(self):
        return (
            self.on("tariq", "agent", "trial", "status", check=False)
            .stdout.partition(":")[0]
            .strip()
        )

    def reachable(self):
        return self.fleet.reachable(HOST, 4) and self.fleet.reachable(HOST, 6)

    def reaches(self, host):
        """Return by which IP versions sshd answers another host of the fleet."""
        known = {self.fleet.address(HOST, version): version for version in (4, 6)}
        tried = "exec 3<>/dev/tcp/$0/22 && read -r -t 4 line <&3 && [[ $line == SSH-* ]]"
        each = f"timeout 5 bash -c '{tried} && echo $0'"
        script = "".join(f"{each} {address} & " for address in known)
        told = self.fleet.on(host, "bash", "-c", f"{script} wait").stdout
        return {known[address] for address in told.split()}

    def wait_for_ssh(self, seconds):
        """Wait until ssh answers without a knock, and return how long that took."""
        began = time.monotonic()
        while not self.reachable():
            assert time.monotonic() - began < seconds, "locked out"
            time.sleep(0.3)
        return time.monotonic() - began


@pytest.fixture(scope="module")
def deployed(bare_fleet):
    lab = Lab(bare_fleet)
    lab.deploy("--limit", HOST)
    return lab


@pytest.fixture
def lab(deployed):
    """A guarded host whose configuration has just changed."""
    if deployed.state() != "confirmed":
        deployed.deploy("--limit", HOST, "--tags", "tariq_card,tariq_service")
    assert deployed.state() == "confirmed"
    deployed.fleet.tariq("close", HOST, "-4")
    deployed.fleet.tariq("close", HOST, "-6")
    assert not deployed.fleet.reachable(HOST, 4)
    assert not deployed.fleet.reachable(HOST, 6)
    deployed.sh(f"echo {secrets.token_hex(4)} >/etc/tariq/note")
    return deployed


def fails(lab, *words, **more):
    """Deploy, and return what it says of why it failed."""
    told = lab.deploy(*SERVICE, *words, check=False, **more)
    assert told.returncode != 0, told.stdout
    assert lab.state() == "needed"
    return told.stdout


def test_the_control_nothing_is_broken(lab):
    lab.deploy(*SERVICE)
    assert lab.state() == "confirmed"
    lab.fleet.tariq("close", HOST)
    assert not lab.fleet.reachable(HOST)


def test_wrong_knock_key(lab):
    lab.sh("head -c 32 /dev/urandom | base64 >/etc/tariq/knock.key")
    assert "silent" in fails(lab)
    assert lab.reachable()


@pytest.mark.parametrize(("hours", "ending"), [(0.1, "your clock says"), (3, "silent")])
def test_wrong_clock(lab, tmp_path, hours, ending):
    """The controller's: all hosts of a test share the machine's clock, which isn't ours to set."""
    client = tmp_path / "client.py"
    client.write_text(
        "import sys, time\n"
        "real = time.time\n"
        f"time.time = lambda: real() + {hours * 3600}\n"
        "from tariq.cli import main\n"
        "sys.exit(main())\n"
    )
    home = f"TARIQ_GNUPGHOME={lab.fleet.env['TARIQ_GNUPGHOME']}"
    command = f'{{"tariq_client": ["env", "{home}", "{sys.executable}", "{client}"]}}'
    assert ending in fails(lab, "-e", command)
    assert lab.reachable()


@contextmanager
def drop_in(lab, line):
    lab.sh(f"mkdir -p $(dirname {DROP_IN}) && printf '[Service]\\n{line}\\n' >{DROP_IN}")
    try:
        yield
    finally:
        lab.sh(f"rm {DROP_IN} && systemctl daemon-reload")


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("ExecStartPre=/bin/false", id="before it guards"),
        pytest.param("ExecStartPost=/bin/kill -SEGV $MAINPID", id="as soon as it guards"),
    ],
)
def test_agent_crashes_at_start(lab, line):
    with drop_in(lab, line):
        fails(lab)
        assert lab.reachable()


def test_firewall_backend_missing(lab):
    where = lab.sh(
        "ldconfig -p | sed -n 's/.*libnftables.so.1 .*=> //p' | head -n 1"
    ).stdout.strip()
    lab.sh(f"mv {where} {where}.hidden")
    try:
        told = fails(lab)
        # "auto" then tries iptables, for which the agent's unit has no right
        assert "libnftables" in told or "ipset" in told
        assert lab.reachable()
    finally:
        lab.sh(f"mv {where}.hidden {where}")


def test_a_guard_of_another_backend_is_left_over(lab):
    """The agent's unit has no right to touch it, and it would drop whom the agent lets in."""
    policy = "/etc/tariq/agent.yml"
    lab.sh(
        f"cp {policy} /run/was && echo 'firewall: iptables-legacy' >>{policy}"
        f" && systemctl stop {AGENT} && tariq agent guard; mv /run/was {policy};"
        f" systemctl start {AGENT}"
    )
    assert "TARIQ" in lab.on("iptables-legacy-save").stdout
    lab.deploy(*SERVICE)
    assert "TARIQ" not in lab.on("iptables-legacy-save").stdout
    lab.fleet.tariq("close", HOST)
    assert not lab.fleet.reachable(HOST)


def test_sentry_killed_whenever_it_guards(lab):
    lab.sh(
        "systemd-run --quiet --unit=killer sh -c"
        " 'while :; do pkill -KILL -u tariq-sentry; sleep 0.05; done'"
    )
    try:
        fails(lab)
        assert lab.reachable()
    finally:
        lab.sh("systemctl stop killer.service")


@contextmanager
def program_that(lab, line):
    """Put a script in the place of the host's program, which is beside it.

    It is for what is asked of a trial. Units must become the program itself: systemd takes a
    word of readiness from a unit's main process only.
    """
    real = lab.sh("readlink -f $(command -v tariq)").stdout.strip()
    script = f"""#!/bin/sh
        [ "$2" = trial ] || exec {real}.real "$@"
        real() {{ {real}.real "$@"; }}
        {line}
    """
    lab.on("sh", "-c", 'cp "$0" "$0.real"; printf %s "$1" >"$0"', real, script)
    try:
        yield
    finally:
        lab.sh(f"mv {real}.real {real}")


def test_a_confirmation_whose_answer_is_lost_is_told_as_it_is(lab):
    with program_that(lab, 'real "$@" && [ "$3" != confirm ]'):
        told = lab.deploy(*SERVICE, check=False)
    assert told.returncode != 0
    assert "yet the agent was confirmed and is in service" in told.stdout
    assert lab.state() == "confirmed"
    lab.fleet.tariq("knock", HOST)
    assert lab.fleet.reachable(HOST)


def test_a_run_that_begins_nothing_ends_no_other_s_trial(lab):
    token = lab.on("tariq", "agent", "trial", "begin", "--seconds", "300").stdout.strip()
    with program_that(lab, '[ "$3" != begin ] && real "$@"'):
        told = lab.deploy(*SERVICE, check=False)
    assert told.returncode != 0
    assert "opens its ports by itself" in told.stdout
    assert lab.state() == "running"
    lab.on("tariq", "agent", "trial", "confirm", "--untried", token)


@contextmanager
def playbook_at(lab, step, seconds):
    """Run a deployment up to the moment when it begins a step; end it by force afterwards."""
    running = lab.fleet.start_playbook(
        "deploy.yml", *SERVICE, "-e", f"tariq_trial_seconds={seconds}"
    )
    try:
        assert any(f"[tariq : {step}]" in line for line in running.stdout), "never came so far"
        yield
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()


@pytest.mark.parametrize("step", STEPS)
def test_controller_killed(lab, step):
    with playbook_at(lab, step, seconds=12):
        pass
    assert_open_or_confirmed(lab)


@pytest.mark.parametrize("step", STEPS)
def test_network_cut(lab, step):
    """Nothing passes for as long as the trial lasts, and then some."""
    with playbook_at(lab, step, seconds=12):
        lab.sh(f"echo '{CUT}' | nft -f -")
        time.sleep(1)
        settled(lab)
    lab.on("nft", "delete", "table", "inet", "cut")
    assert_open_or_confirmed(lab)


def settled(lab):
    end = time.monotonic() + 40
    while lab.state() == "running":
        assert time.monotonic() < end
        time.sleep(0.5)


def assert_open_or_confirmed(lab):
    """Guarded only where the proof was complete, or where the new trial had not begun."""
    settled(lab)
    if lab.state() == "confirmed":
        assert lab.fleet.outcomes("knock", HOST)[HOST]["ok"]
        assert lab.fleet.reachable(HOST)
    elif lab.on("systemctl", "is-enabled", AGENT, check=False).stdout.strip() == "enabled":
        lab.fleet.tariq("knock", HOST)  # nothing was touched: the old agent serves
        assert lab.fleet.reachable(HOST)
    else:
        lab.wait_for_ssh(30)


def test_host_restarted_during_the_trial(lab):
    lab.on("tariq", "agent", "trial", "begin", "--seconds", "60")
    lab.fleet.restart(HOST)
    lab.wait_for_ssh(30)
    assert lab.state() == "needed"
    time.sleep(3)
    assert lab.reachable(), "nothing guards it later on"


def test_host_restarted_between_the_files_and_the_trial(lab):
    """The deployment that wrote the note was cut off there; the units are still enabled."""
    lab.on("systemctl", "restart", AGENT)
    assert not lab.reachable(), "by hand, what is there counts"
    lab.fleet.tariq("knock", HOST)
    assert lab.fleet.reachable(HOST)
    lab.fleet.restart(HOST)
    lab.wait_for_ssh(30)
    end = time.monotonic() + 30
    while (
        "not started, and the ports are open" not in lab.on("journalctl", "-b", "-u", AGENT).stdout
    ):
        assert time.monotonic() < end
        time.sleep(0.3)
    assert lab.reachable(), "nothing guards it later on"
    assert lab.state() == "needed"


def test_host_restarted_when_confirmed_is_guarded(lab):
    """The control of the one before."""
    lab.deploy(*SERVICE)
    lab.fleet.restart(HOST)
    end = time.monotonic() + 30
    while lab.on("systemctl", "is-active", AGENT, check=False).stdout.strip() != "active":
        assert time.monotonic() < end
        time.sleep(0.3)
    assert not lab.fleet.reachable(HOST)
    assert_break_glass(lab)
    assert lab.fleet.outcomes("knock", HOST)[HOST]["ok"]
    assert lab.fleet.reachable(HOST)


def test_a_connection_that_was_there_before_proves_nothing(lab, tmp_path):
    config = lab.fleet.env["FLEET_SSH_CONFIG"]
    shared = ["ssh", "-F", config, "-o", f"ControlPath={tmp_path}/master", HOST]
    lab.fleet.tariq("knock", HOST, "-4")
    master = subprocess.Popen([*shared[:-1], "-M", "-N", HOST])
    try:
        while not (tmp_path / "master").exists():
            assert master.poll() is None
            time.sleep(0.1)
        token = lab.on("tariq", "agent", "trial", "begin", "--seconds", "40").stdout.strip()
        confirm = ["tariq", "agent", "trial", "confirm", token]
        told = lab.fleet.run(*shared, *confirm, check=False)
        assert "older than the guard" in told.stderr
        lab.fleet.tariq("knock", HOST, "-4")
        lab.fleet.run("ssh", "-F", config, "-o", "ControlPath=none", HOST, *confirm)
        assert lab.state() == "confirmed"
    finally:
        master.terminate()
        master.wait()


def test_a_controller_without_a_key_deploys_at_its_own_risk(lab):
    """Its only way in is the connection that it had before the guard went up."""
    lab.sh(f"systemctl stop {AGENT} && tariq agent unguard")
    plain = f'{{"ansible_ssh_common_args": "-F {lab.fleet.env["FLEET_SSH_CONFIG"]}"}}'
    lab.deploy(*SERVICE, "-e", plain, "-e", "tariq_trial=false")
    assert lab.state() == "confirmed"
    assert not lab.fleet.reachable(HOST)


# --- emergencies: docs/lockout.md ------------------------------------------------------------


def assert_break_glass(lab):
    assert lab.reaches(BASTION) == {4, 6}
    assert lab.reaches(STRANGER) == set(), "an address beside it"
    assert not lab.fleet.reachable(HOST)


def test_a_break_glass_network_needs_no_lease_and_no_agent(lab):
    assert_break_glass(lab)
    lab.on("systemctl", "stop", AGENT, SENTRY)
    try:
        assert_break_glass(lab)
        lab.on("tariq", "agent", "unguard")
        lab.on("systemctl", "restart", GUARD)
        assert_break_glass(lab)
    finally:  # the controller's way in
        lab.on("systemctl", "start", AGENT)


def test_a_deployment_by_way_of_a_bastion_where_no_knock_is_possible(lab, tmp_path):
    """The operator's keys and cards are lost; the deployment brings the card back."""
    card = Path(lab.fleet.env["TARIQ_CARDS"]) / f"{HOST}.yml"
    lost = {"TARIQ_GNUPGHOME": tmp_path / "keys", "ANSIBLE_SSH_CONTROL_PATH_DIR": tmp_path / "cp"}
    poor = Lab(type(lab.fleet)({**lab.fleet.env, **{name: str(at) for name, at in lost.items()}}))
    shutil.move(card, tmp_path / "card")
    try:
        assert poor.fleet.tariq("knock", HOST, check=False).returncode != 0
        assert not poor.reachable()
        way = f"-F {lab.fleet.env['FLEET_SSH_CONFIG']} -J {BASTION}"
        told = {"tariq_client": [], "ansible_ssh_common_args": way}
        poor.deploy("--limit", HOST, "-e", json.dumps(told))
        assert lab.state() == "confirmed"
        assert not lab.reachable()
        assert card.read_text() == (tmp_path / "card").read_text()
        lab.fleet.tariq("knock", HOST)
        assert lab.fleet.reachable(HOST)
    finally:
        shutil.copy2(tmp_path / "card", card)


def test_the_console_opens_and_closes_the_ports_beside_an_agent_that_runs(lab):
    lab.on("tariq", "agent", "unguard")
    time.sleep(4)
    assert lab.reachable(), "nor does the agent put the guard back"
    lab.on("tariq", "agent", "guard")
    assert_break_glass(lab)
    lab.fleet.tariq("knock", HOST)
    assert lab.fleet.reachable(HOST)
    lab.fleet.tariq("close", HOST)
    lab.on("tariq", "agent", "unguard")
    assert lab.reachable()
    lab.on("systemctl", "restart", AGENT)
    assert not lab.fleet.reachable(HOST), "until the agent's next start"


def test_the_console_opens_for_good_and_the_next_deployment_guards_again(lab):
    [command] = [line for line in PAGE.read_text().splitlines() if line.startswith("    systemctl")]
    lab.sh(command)
    assert lab.reachable()
    lab.fleet.restart(HOST)
    lab.wait_for_ssh(30)
    time.sleep(3)
    assert lab.reachable(), "nothing puts the guard back"
    lab.deploy(*SERVICE)
    assert lab.state() == "confirmed"
    lab.fleet.tariq("close", HOST)
    assert not lab.fleet.reachable(HOST)
