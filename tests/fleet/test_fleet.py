"""`ansible-playbook deploy.yml`, then `tariq knock --group webservers`, on real hosts.

The tests run in the order of this file: the last one takes the agents off again.
"""

import base64
import json
import re
import tempfile
import time
from pathlib import Path

import galaxy
import pytest
import yaml

HOSTS = ("web1", "web2", "web3")
AGENT = "tariq-agent.service"


def wait_until(what, seconds=20):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.3)


def close_all(fleet):
    for version in ("-4", "-6"):
        fleet.tariq("close", "--group", "webservers", version)


def test_a_dry_run_on_fresh_hosts_changes_nothing(bare_fleet):
    told = bare_fleet.playbook("deploy.yml", "--check", "--diff", "--limit", "web1")
    assert "failed=0" in told.stdout
    assert bare_fleet.reachable("web1")
    assert bare_fleet.on("web1", "ls", "/etc/tariq", check=False).returncode != 0


def test_a_controller_that_gets_no_answer_leaves_the_host_open(bare_fleet):
    """The client here has no key at all; `make lockout` has the other ways to fail."""
    told = bare_fleet.playbook(
        "deploy.yml", "--limit", "web1", "-e", '{"tariq_client": ["false"]}', check=False
    )
    assert told.returncode != 0
    assert "the agent is not in service, and the host is not guarded" in told.stdout
    assert bare_fleet.reachable("web1")
    assert bare_fleet.reachable("web1", 6)


@pytest.mark.parametrize("version", [4, 6])
def test_the_whole_group_opens_for_its_lease(fleet, version):
    close_all(fleet)
    assert not any(fleet.reachable(host, version) for host in HOSTS)
    told = fleet.tariq("knock", "--group", "webservers", "--for", "20s", f"-{version}")
    for host in HOSTS:
        assert re.search(rf"^{host} +opened ", told.stdout, re.MULTILINE), told.stdout
    assert "3 of 3 hosts said yes" in told.stderr
    assert all(fleet.reachable(host, version) for host in HOSTS)
    wait_until(lambda: not any(fleet.reachable(host, version) for host in HOSTS), 60)


def test_a_pattern_selects_as_ansible_does(fleet):
    told = fleet.outcomes("status", "--group", "webservers:!web2")
    assert set(told) == {"web1", "web3"}


def test_a_host_that_is_down_is_told_from_those_that_are_up(fleet):
    fleet.on("web2", "systemctl", "stop", "tariq-agent")
    try:
        for _ in range(5):  # until only that one is silent
            told = fleet.tariq("knock", "--group", "webservers", "--for", "1s", check=False)
            if "2 of 3" in told.stderr:
                break
        assert told.returncode == 1
        assert re.search(r"^web2 +silent ", told.stdout, re.MULTILINE)
        assert "2 of 3 hosts said yes; silent: web2" in told.stderr
        assert not fleet.reachable("web2"), "a stopped agent fails closed"
    finally:
        fleet.on("web2", "systemctl", "start", "tariq-agent")


def test_ansible_itself_comes_in_by_knocking_and_finds_nothing_to_do(fleet, tmp_path):
    """Whether a card is in the clear, vaulted as a whole (web2), or has a vaulted key (web3)."""
    close_all(fleet)
    password = tmp_path / "password"
    password.write_text("open sesame\n")
    # of its own, so that no connection that is still there is used
    sockets = tempfile.mkdtemp(prefix="tq")
    own = {"ANSIBLE_VAULT_PASSWORD_FILE": str(password), "ANSIBLE_SSH_CONTROL_PATH_DIR": sockets}
    named = type(fleet)({**fleet.env, **own})
    cards = Path(fleet.env["TARIQ_CARDS"])
    plain = {host: (cards / f"{host}.yml").read_text() for host in HOSTS}
    options = ("--vault-password-file", password)
    try:
        galaxy.run("vault", "encrypt", *options, cards / "web2.yml")
        key = re.search(r"^knock_key: (.*)$", plain["web3"], re.MULTILINE)
        words = ("encrypt_string", *options, "--name", "knock_key", key[1])
        sealed = galaxy.run("vault", *words).stdout
        (cards / "web3.yml").write_text(plain["web3"].replace(key[0], sealed))
        before = [(cards / f"{host}.yml").read_text() for host in HOSTS]
        told = named.playbook("deploy.yml")
        recap = re.findall(r"changed=(\d+) .*failed=(\d+)", told.stdout)
        assert recap == [("0", "0")] * 3, told.stdout
        assert [(cards / f"{host}.yml").read_text() for host in HOSTS] == before
        told = fleet.tariq("status", "web2", check=False)
        assert "card web2: it is vaulted" in told.stderr, "the control"
    finally:
        for host in HOSTS:
            (cards / f"{host}.yml").write_text(plain[host])


def test_a_dry_run_on_deployed_hosts_finds_nothing_to_do(fleet):
    told = fleet.playbook("deploy.yml", "--check", "--diff", "--limit", "web2")
    assert re.findall(r"changed=(\d+) .*failed=(\d+)", told.stdout) == [("0", "0")]


def test_no_secret_is_in_the_most_verbose_output(fleet):
    output = fleet.deployment.stdout + fleet.deployment.stderr
    for host in HOSTS:
        card = yaml.safe_load((Path(fleet.env["TARIQ_CARDS"]) / f"{host}.yml").read_text())
        assert card["knock_key"] not in output
        assert card["fingerprint"] in output, "the control: what may be shown is shown"


def test_cards_are_for_their_owner_only(fleet):
    cards = Path(fleet.env["TARIQ_CARDS"])
    assert cards.stat().st_mode & 0o777 == 0o700
    assert all(card.stat().st_mode & 0o777 == 0o600 for card in cards.glob("*.yml"))


def test_the_host_carries_neither_ansible_nor_opencv_and_runs_clean(fleet):
    packages = fleet.on("web1", "sh", "-c", "ls /opt/tariq/lib/python3*/site-packages").stdout
    assert "scapy" in packages
    assert not re.search(r"^(cv2|numpy|ansible)", packages, re.MULTILINE)
    assert "0 loaded units listed" in fleet.on("web1", "systemctl", "--failed").stdout
    journal = fleet.on("web1", "journalctl", "-u", "tariq-agent", "--no-pager").stdout
    assert "Traceback" not in journal


def test_processes_and_sockets_on_a_host(fleet):
    listed = fleet.on("web1", "ps", "-eo", "user:20,args").stdout
    assert re.search(r"^tariq-sentry .*tariq.agent.sentry", listed, re.MULTILINE)
    pids = fleet.on("web1", "pgrep", "-f", "tariq").stdout.split()
    sockets = fleet.on("web1", "ss", "-Hatunp").stdout
    assert "sshd" in sockets, "the control"
    assert not any(f"pid={pid}," in sockets for pid in pids)


def test_an_agent_that_is_restarted_keeps_leases(fleet):
    fleet.tariq("knock", "web1", "--for", "60s")
    fleet.on("web1", "systemctl", "restart", "tariq-agent")
    assert fleet.reachable("web1")
    fleet.tariq("close", "web1")
    assert not fleet.reachable("web1")


def test_a_trial_that_nobody_confirms_ends_itself(fleet):
    """Also on a host that was guarded before; the next test's deployment guards it again."""

    def begin(seconds: str) -> str:
        words = ("tariq", "agent", "trial", "begin", "--seconds", seconds)
        return fleet.on("web1", *words).stdout.strip()

    close_all(fleet)
    token = begin("600")
    assert not fleet.reachable("web1")
    assert "disabled" in fleet.on("web1", "systemctl", "is-enabled", AGENT, check=False).stdout
    told = fleet.on("web1", "tariq", "agent", "trial", "confirm", token, check=False)
    assert "this is no ssh connection" in told.stderr
    token = begin("20")
    wait_until(lambda: fleet.reachable("web1") and fleet.reachable("web1", 6), 90)
    told = fleet.on("web1", "tariq", "agent", "trial", "confirm", token, check=False)
    assert "not running (any more)" in told.stderr
    assert not fleet.reachable("web2"), "the control"


def test_an_operator_that_is_no_longer_listed_gets_silence(fleet, tmp_path):
    """The role takes the key off the host; what the operator then gets is silence."""
    other = {"TARIQ_GNUPGHOME": f"{fleet.env['FLEET_STATE']}/eve"}
    eve = type(fleet)({**fleet.env, **other})
    eve.tariq("key", "new", "eve", "--no-passphrase")
    extra = tmp_path / "eve.yml"
    tags = "tariq_configure,tariq_card,tariq_service"
    deploy = ("deploy.yml", "--limit", "web1", "--tags", tags, "-e", f"@{extra}")
    both = {
        "demo": {
            "fingerprint": Path(fleet.env["FLEET_STATE"], "operator.fingerprint")
            .read_text()
            .strip(),
            "key_file": f"{fleet.env['FLEET_STATE']}/operator.asc",
        },
        "eve": {
            "fingerprint": eve.tariq("key", "list").stdout.split()[0],
            "key": eve.tariq("key", "export").stdout,
        },
    }
    try:
        extra.write_text(yaml.safe_dump({"tariq_operators": both, "tariq_policy_serial": 2}))
        fleet.playbook(*deploy)
        assert eve.receipts("status", "web1")["web1"]["policy"] == 2
        extra.write_text(
            yaml.safe_dump({"tariq_operators": {"demo": both["demo"]}, "tariq_policy_serial": 3})
        )
        fleet.playbook(*deploy)
        assert eve.outcomes("status", "web1")["web1"]["ending"] == "silent"
        assert fleet.receipts("status", "web1")["web1"]["ok"]
    finally:
        fleet.run("gpgconf", "--homedir", other["TARIQ_GNUPGHOME"], "--kill", "all", check=False)


def test_a_bad_policy_never_reaches_the_host(fleet):
    before = fleet.on("web1", "cat", "/etc/tariq/agent.yml").stdout
    bad = json.dumps({"tariq_tasks": {"reboot": {}}, "tariq_policy_serial": 4})
    told = fleet.playbook("deploy.yml", "--limit", "web1", "-e", bad, check=False)
    assert told.returncode != 0
    assert "tasks.reboot" in told.stdout, "its content is the reason, not its number"
    assert fleet.on("web1", "cat", "/etc/tariq/agent.yml").stdout == before
    assert fleet.receipts("status", "web1")["web1"]["ok"]


def put_policy(fleet, host, policy: str):
    text = base64.b64encode(policy.encode()).decode()
    fleet.on(host, "sh", "-c", f"echo {text} | base64 -d >/etc/tariq/agent.yml")


def test_a_task_has_a_unit_of_its_own_outlives_the_agent_and_is_not_confined(fleet):
    """And `systemctl reload` takes on a good policy, refuses a bad one; the journal has rows."""
    before = fleet.on("web2", "cat", "/etc/tariq/agent.yml").stdout
    where = "/usr/local/tariq-task"
    script = f"cat /proc/self/cgroup >{where}; until [ -e {where}-go ]; do sleep 0.2; done"
    script = ["/bin/sh", "-c", f"{script}; echo done >>{where}"]
    policy = yaml.safe_load(before)
    policy["serial"] += 1
    policy["tasks"] = {"slow": {"argv": script, "user": "root", "seconds": 300}}
    policy["operators"]["demo"]["tasks"] = ["slow"]
    pid = fleet.on("web2", "systemctl", "show", "-P", "MainPID", "tariq-agent").stdout

    def known(what: str):
        return fleet.receipts("status", "web2")["web2"].get(what, [])

    try:
        keyless = {"nobody": {"fingerprint": "0" * 40, "services": ["ssh"]}}
        for bad in ({"port": 0}, {"operators": policy["operators"] | keyless}):
            put_policy(fleet, "web2", yaml.safe_dump({**policy, **bad}))
            reloaded = fleet.on("web2", "systemctl", "reload", "tariq-agent", check=False)
            assert reloaded.returncode != 0, bad
        assert fleet.receipts("status", "web2")["web2"]["ok"]
        put_policy(fleet, "web2", yaml.safe_dump(policy))
        fleet.on("web2", "systemctl", "reload", "tariq-agent")
        wait_until(lambda: known("policy") == policy["serial"])
        fleet.outcomes("run", "web2", "slow")  # where its receipt is late, status knows of it
        [(label, state)] = [(run["label"], run["state"]) for run in known("tasks")]
        assert state == "running"
        assert pid == fleet.on("web2", "systemctl", "show", "-P", "MainPID", "tariq-agent").stdout
        fleet.on("web2", "systemctl", "is-active", f"tariq-task-{label}")
        strict = fleet.on("web2", "systemctl", "show", "-P", "ProtectSystem", "tariq-agent").stdout
        assert strict == "strict\n", "the agent itself can't write there"
        fleet.on("web2", "systemctl", "restart", "tariq-agent")
        assert [run["state"] for run in known("tasks")] == ["running"]
        fleet.on("web2", "touch", f"{where}-go")
        wait_until(lambda: [run.get("exit") for run in known("tasks")] == [0], 40)
        written = fleet.on("web2", "cat", where).stdout
        assert f"tariq-task-{label}.service" in written
        assert written.endswith("done\n")
        rows = fleet.on("web2", "journalctl", "TARIQ_OPERATOR=demo", "-o", "json").stdout
        assert any(json.loads(row).get("TARIQ_ID") == label for row in rows.splitlines())
    finally:
        put_policy(fleet, "web2", before)
        fleet.on("web2", "rm", "-f", where, f"{where}-go")
        fleet.on("web2", "systemctl", "reload", "tariq-agent")


def test_a_retired_host_is_as_it_was(fleet):
    fleet.on("web3", "tariq", "agent", "trial", "begin", "--seconds", "900")
    fleet.playbook("playbooks/retire.yml", "--limit", "web3")
    assert fleet.reachable("web3")
    units = fleet.on("web3", "systemctl", "list-units", "--all", "--no-legend", "tariq*").stdout
    assert units == "", "no timer is left either"
    assert fleet.reachable("web3", 6)
    left = "ls -d /etc/tariq* /var/lib/tariq* /opt/tariq* /usr/local/bin/tariq /var/cache/tariq*"
    assert fleet.on("web3", "sh", "-c", f"{left} 2>/dev/null", check=False).stdout == ""
    assert "tariq" not in fleet.on("web3", "nft", "list", "ruleset").stdout
    assert fleet.on("web3", "id", "tariq-sentry", check=False).returncode != 0
    assert not (Path(fleet.env["TARIQ_CARDS"]) / "web3.yml").exists()
    fleet.tariq("close", "web1", "-4")
    assert not fleet.reachable("web1")
