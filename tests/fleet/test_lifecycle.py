"""A fleet over the years: keys come and go, runs are cut off, versions go up and down.

Every test has an inventory of its own beside the fleet's, as an operator edits one, with
a serial that only rises. ``lifecycle.py`` (``make lifecycle``) has what takes longer.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).parents[2]
BIN = Path(sys.prefix) / "bin"
INVENTORY = REPO / "inventories" / "fleet" / "hosts.yml"
SERIAL = count(1000)
HOSTS = "web1,web2"  # web3 may have been retired
HELPER = "tariq-test-port"
SUDO = "/usr/local/bin/tariq-test-sudo"
AS_ROOT = '#!/bin/sh\nwhile [ "$1" != /bin/sh ]; do shift; done\nexec "$@"\n'


class Site:
    """An inventory that grows, and what is run with it.

    Like many inventories it says ``ansible_become``, with a sudo that only the hosts have.
    """

    def __init__(self, fleet, folder: Path):
        self.fleet, self.folder = fleet, folder
        self.file = folder / "hosts.yml"
        text = INVENTORY.read_text().replace("(inventory_dir ~ '/../..') | realpath", f"'{REPO}'")
        self.file.write_text(text)
        self.variables: dict = {
            "tariq_services_test": {"extra": {"protocol": "tcp", "port": 8080}},
            "ansible_become": True,
            "ansible_become_exe": SUDO,
        }
        self.change()

    def change(self, **variables):
        """Write group_vars under the next serial."""
        self.variables |= variables | {"tariq_policy_serial": next(SERIAL)}
        folder = self.folder / "group_vars"
        folder.mkdir(exist_ok=True)
        (folder / "webservers.yml").write_text(yaml.safe_dump(self.variables))

    def command(self, playbook, *words, limit=HOSTS):
        return [BIN / "ansible-playbook", "-i", self.file, playbook, "--limit", limit, *words]

    def play(self, playbook, *words, limit=HOSTS, **more):
        return self.fleet.run(*self.command(playbook, *words, limit=limit), **more)

    def status(self, limit=HOSTS):
        told = self.fleet.tariq(
            "fleet", "status", "--inventory", self.file, "--group", limit, check=False
        )
        rows = [line.split(maxsplit=3) for line in told.stdout.splitlines()[1:]]
        return told.returncode, {row[0]: row[1] for row in rows}, told

    def current(self, limit=HOSTS):
        code, states, told = self.status(limit)
        assert set(states.values()) == {"current"}, told.stdout + told.stderr
        return code == 0

    def cut_off(self, at, *words, limit="web2", seconds=300):
        """Run deploy.yml and kill it as a task begins: its number, or part of its name.

        Returns the task's header, or None if the run ended before.
        """
        process = subprocess.Popen(
            [str(word) for word in self.command("deploy.yml", *words, limit=limit)],
            env={**os.environ, **self.fleet.env},
            cwd=REPO,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        numbers = count(1)
        try:
            for line in process.stdout:
                if not line.startswith(("TASK [", "RUNNING HANDLER [")):
                    continue
                number = next(numbers)
                if at == number or (isinstance(at, str) and at in line):
                    return line.strip()
            return None
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


@pytest.fixture(scope="module")
def site(fleet, tmp_path_factory):
    made = Site(fleet, tmp_path_factory.mktemp("site"))
    fleet.env["ANSIBLE_BECOME_ALLOW_SAME_USER"] = "1"  # ansible logs in as root here
    for host in HOSTS.split(","):
        fleet.on(host, "sh", "-c", f"printf %s '{AS_ROOT}' >{SUDO}; chmod 755 {SUDO}")
        # something that listens on the other guarded port
        fleet.on(
            host,
            *("systemd-run", "--quiet", "--collect", f"--unit={HELPER}", "/usr/bin/python3"),
            *("-m", "http.server", "8080"),
        )
    made.play("deploy.yml", "--tags", "tariq_configure,tariq_card,tariq_service")
    yield made
    del fleet.env["ANSIBLE_BECOME_ALLOW_SAME_USER"]
    for host in HOSTS.split(","):
        fleet.on(host, "systemctl", "stop", HELPER, check=False)


@pytest.fixture(scope="module")
def eve(fleet):
    """Another operator, with a key of her own."""
    home = Path(fleet.env["FLEET_STATE"]) / "eve2"
    other = type(fleet)({**fleet.env, "TARIQ_GNUPGHOME": str(home)})
    other.tariq("key", "new", "eve2", "--no-passphrase")
    other.fingerprint = other.tariq("key", "list").stdout.split()[0]
    other.entry = {
        "fingerprint": other.fingerprint,
        "key": other.tariq("key", "export").stdout,
        "services": ["extra", "ssh"],
        "longest": 600,
    }
    yield other
    fleet.run("gpgconf", "--homedir", home, "--kill", "all", check=False)
    shutil.rmtree(home, ignore_errors=True)


def wait_until(what, seconds=20):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.3)


def answers(fleet, host, port):
    import socket

    try:
        socket.create_connection((fleet.address(host), port), 1.0).close()
    except OSError:
        return False
    return True


def come_in_by(other, site, host):
    """Let the connection that Ansible keeps be one that only this operator's key has opened."""
    forget = "import sqlite3; db = sqlite3.connect('/var/lib/tariq/ledger.db')"
    forget += "; db.execute('DELETE FROM leased'); db.commit()"
    site.fleet.on(host, "systemctl", "stop", "tariq-agent")
    site.fleet.on(host, "/usr/bin/python3", "-c", forget)
    site.fleet.on(host, "systemctl", "start", "tariq-agent")
    kept = {"ansible_ssh_args": "-o ControlMaster=auto -o ControlPersist=300s"}
    come = ["-m", "ansible.builtin.ping", "-e", json.dumps(kept)]
    other.run(BIN / "ansible", "-i", site.file, host, *come)


def test_a_key_is_revoked_its_leases_end_and_that_is_proved(
    site, fleet, eve, monkeypatch, tmp_path
):
    """Also where the key that is revoked is the one by which the controller has come in."""
    assert site.current()
    site.change(tariq_operators_eve={"eve": eve.entry})
    assert site.status()[0:2] == (1, {"web1": "stale", "web2": "stale"})
    site.play("deploy.yml", "--tags", "tariq_configure,tariq_card,tariq_service")
    assert site.current()
    eve.tariq("knock", "web1", "web2", "--open", "extra", "--for", "600s")
    assert answers(fleet, "web1", 8080)

    # without a trial, nothing but the revocation itself leaves the connection that is there
    trial = "{{ inventory_hostname != 'web2' }}"
    site.change(tariq_revoked=[eve.fingerprint], tariq_trial=trial)
    code, states, told = site.status()
    assert (code, states) == (16, {"web1": "revoked", "web2": "revoked"})
    assert f"still trusts {eve.fingerprint}" in told.stdout

    for each in (fleet, eve):  # no connection is left from before
        monkeypatch.setitem(each.env, "ANSIBLE_SSH_CONTROL_PATH_DIR", str(tmp_path))
    come_in_by(eve, site, "web2")
    checked = site.play("playbooks/revoke.yml", "--check")
    assert re.search(r"web1 +revoked", checked.stdout), checked.stdout
    one = tmp_path / "one.yml"  # the first of two inventories, which doesn't know web2
    one.write_text(yaml.safe_dump({"webservers": {"hosts": {"web1": None}}}))
    (tmp_path / "names").write_text("web1\nweb2\n")
    words = ("-i", one, "-i", site.file, "playbooks/revoke.yml", "--limit", f"@{tmp_path}/names")
    proved = fleet.run(BIN / "ansible-playbook", *words)
    del site.variables["tariq_trial"]
    for host in HOSTS.split(","):
        assert re.search(rf"{host} +current", proved.stdout), proved.stdout
    assert site.current()
    assert eve.outcomes("status", "web1")["web1"]["ending"] == "silent"
    assert not answers(fleet, "web1", 8080), "the lease went with the key"

    fleet.on("web2", "systemctl", "stop", "tariq-agent")
    try:
        code, states, _ = site.status()
        assert (code, states) == (1, {"web1": "current", "web2": "silent"})
    finally:
        fleet.on("web2", "systemctl", "start", "tariq-agent")


def test_a_changed_policy_needs_a_new_number(site, fleet):
    before = fleet.on("web2", "cat", "/etc/tariq/agent.yml").stdout
    words = ("-e", "tariq_window=59", "--tags", "tariq_configure")
    told = site.play("deploy.yml", *words, limit="web2", check=False)
    assert told.returncode != 0
    assert "raise tariq_policy_serial to" in " ".join(told.stdout.split())
    assert fleet.on("web2", "cat", "/etc/tariq/agent.yml").stdout == before


def changed(told, host="web2"):
    """Return the names of the tasks that changed something, or would."""
    tasks = re.split(
        r"^(?:TASK|RUNNING HANDLER) \[(?:tariq : )?(.*)\] \**$", told.stdout, flags=re.M
    )
    return {
        name
        for name, said in zip(tasks[1::2], tasks[2::2], strict=True)
        if re.search(rf"^changed: \[{host}\b", said, re.M)
    }


WOULD_START = "Say that the agent would be started anew"
TRIAL = {"Start the agent on trial", "Come in through the guard and confirm"}


def test_a_dry_run_tells_what_the_real_run_changes_and_changes_nothing(site, fleet):
    look = "sha256sum $(find /etc/tariq /etc/systemd/system -type f | sort)"
    look += "; systemctl show -P MainPID tariq-agent"
    words = ("--tags", "tariq_configure,tariq_card,tariq_service")
    site.change(tariq_default_lease=31)
    card = Path(site.fleet.env["TARIQ_CARDS"], "web2.yml")
    before = fleet.on("web2", "sh", "-c", look).stdout, card.read_text()
    dry = site.play("deploy.yml", "--check", "--diff", *words, limit="web2")
    assert re.search(r"^ *\+default_lease: 31$", dry.stdout, re.M), dry.stdout
    assert (fleet.on("web2", "sh", "-c", look).stdout, card.read_text()) == before
    real = site.play("deploy.yml", *words, limit="web2")
    assert changed(real) >= TRIAL
    assert changed(dry) - {WOULD_START} == changed(real) - TRIAL
    assert WOULD_START in changed(dry)


def test_a_knock_key_is_replaced_and_the_old_card_counts_until_the_end(site, fleet, tmp_path):
    """And a dry run says what each step would do. `make lifecycle` has the host's key as well."""
    cards = fleet.env["TARIQ_CARDS"]
    old = shutil.copytree(cards, tmp_path / "old")
    rotate = ("playbooks/rotate.yml", "-e", '{"tariq_rotate": ["knock"]}')

    def gets_in(folder):
        return fleet.outcomes("status", "web2", "--cards", folder)["web2"]["ok"]

    def key(folder):
        return yaml.safe_load(Path(folder, "web2.yml").read_text())["knock_key"]

    dry = site.play(*rotate, "--check", limit="web2")
    assert changed(dry) == {
        "Say which step is next",
        "Host card on the controller",
        "Is what is installed confirmed and in service",
        WOULD_START,
    }
    assert key(cards) == key(old)
    site.play(*rotate, limit="web2")
    assert key(cards) != key(old)
    assert gets_in(cards)
    assert gets_in(old)
    site.play(*rotate, "-e", "tariq_rotate_finish=true", limit="web2")
    assert gets_in(cards)
    assert not gets_in(old)


def cut_off_and_finish(site, fleet, eve, at, *words):
    """Kill a run that changes policy and keys, so that every moment has two sides; then finish it.

    Returns the header of the task that it was killed at, or None if the run ended before.
    """
    there = "eve" in site.variables.get("tariq_operators_eve", {})
    site.change(tariq_operators_eve={} if there else {"eve": eve.entry}, tariq_revoked=[])
    where = site.cut_off(at, *words)
    assert fleet.receipts("status", "web2")["web2"]["ok"], where
    fleet.on("web2", "systemctl", "restart", "tariq-agent")
    assert fleet.receipts("status", "web2")["web2"]["ok"], where
    told = site.play("deploy.yml", *words, limit="web2")
    assert "failed=0" in told.stdout
    assert site.current("web2")
    return where


def test_a_run_that_is_killed_leaves_a_host_that_answers_and_the_next_run_finishes(
    site, fleet, eve
):
    """Where most is half done: new keys and policy are there, old keys too, the agent is old."""
    words = ("--tags", "tariq_configure,tariq_card,tariq_service")
    assert cut_off_and_finish(site, fleet, eve, "Remove keys of operators", *words)


def test_the_size_on_a_host(fleet):
    assert int(fleet.on("web2", "du", "-sm", "/opt/tariq.d").stdout.split()[0]) < 60
