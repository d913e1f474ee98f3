"""Each way to be unable to start ends in one clear line and a status of its own."""

import base64
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tariq import errors
from tariq.cli import INTERNAL_ERROR, INTERRUPTED

REPO = Path(__file__).parents[2]
CARD = {
    "card": 1,
    "name": "web1",
    "addresses": ["192.0.2.1"],
    "port": 62201,
    "transports": ["fastopen"],
    "fingerprint": "0123456789ABCDEF0123456789ABCDEF01234567",
    "public_key": "",
    "knock_key": base64.b64encode(bytes(32)).decode(),
    "services": {"ssh": "tcp/22"},
    "policy": 1,
}
POLICY = {
    "version": 1,
    "serial": 1,
    "host": "web1",
    "port": 62201,
    "services": {"ssh": {"protocol": "tcp", "port": 22}},
    "operators": {"alice": {"fingerprint": CARD["fingerprint"], "services": ["ssh"]}},
}
INVENTORY = {
    "webservers": {"hosts": {"web1": None, "web2": None}},
    "nobody": {"hosts": {}},
    "elsewhere": {"hosts": {"db1": {"tariq_cards_dir": "{{ inventory_dir }}/{{ 'db' }}cards"}}},
}


@pytest.fixture
def place(tmp_path):
    """A directory with an inventory, a card for web1 and an empty GnuPG home."""
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "web1.yml").write_text(yaml.safe_dump(CARD))
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(INVENTORY))
    (tmp_path / "gnupg").mkdir(mode=0o700)
    (tmp_path / "agent.yml").write_text(yaml.safe_dump(POLICY))
    return tmp_path


def tariq(place, *words, status, says, env=None, user=None, cwd=None):
    """Run the program; check the status and that it said one clear line and no traceback."""
    full = {"HOME": str(place), "PATH": os.environ["PATH"], "TARIQ_GNUPGHOME": str(place / "gnupg")}
    drop = ["setpriv", "--reuid", user, "--clear-groups"] if user else []
    done = subprocess.run(
        [*drop, sys.executable, "-m", "tariq", *words],
        env=full | (env or {}),
        cwd=cwd or place,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert re.search(says, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    [line] = done.stderr.strip().splitlines()
    assert line.startswith("tariq: ")
    assert "; " in line, "it tells the next step"
    return line


def test_a_host_that_is_not_in_the_inventory(place):
    tariq(place, "knock", "web9", "-i", "hosts.yml", status=3, says="web9: not in hosts.yml; check")


def test_a_group_that_is_not_in_the_inventory(place):
    tariq(place, "knock", "--group", "mail", "-i", "hosts.yml", status=3, says="mail: not in")


def test_an_empty_group(place):
    tariq(place, "knock", "--group", "nobody", "-i", "hosts.yml", status=4, says="no host in")
    tariq(
        place,
        "knock",
        "--group",
        "webservers:!webservers",
        "-i",
        "hosts.yml",
        status=4,
        says="no host",
    )


def test_a_missing_card(place):
    tariq(place, "knock", "web2", "-i", "hosts.yml", status=5, says="web2: no card at .*deploy")
    tariq(place, "knock", "web2", "--cards", "cards", status=5, says="web2: no card")
    tariq(place, "knock", "-g", "webservers", "-i", "hosts.yml", status=5, says="web2: no card")


def test_cards_of_a_group_may_be_elsewhere(place):
    line = tariq(
        place, "knock", "-g", "elsewhere", "-i", "hosts.yml", status=5, says="db1: no card"
    )
    assert f"{place}/dbcards/db1.yml" in line


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"extra": 1}, "extra: unknown field"),
        ({"port": None}, "port: not a whole number"),
        ({"addresses": ["web1"]}, r"addresses\.0: not an ip address"),
        ({"knock_key": "short"}, "knock_key: not"),
        ({"transports": ["pigeon"]}, r"transports\.0: not one of"),
        ({"card": 2}, "card: not"),
    ],
)
def test_a_card_that_can_not_be_used(place, change, says):
    (place / "cards" / "web1.yml").write_text(yaml.safe_dump(CARD | change))
    tariq(place, "knock", "web1", "--cards", "cards", status=5, says=says)


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "\x00",
        "- 1",
        "",
        "a: 1\na: 1",
        "!!python/object:os.system {}",
        "a: !!bool x",
        "a: !!timestamp x",
    ],
)
def test_a_card_that_is_not_a_card(place, text):
    (place / "cards" / "web1.yml").write_text(text)
    tariq(place, "knock", "web1", "--cards", "cards", status=5, says=r"web1\.yml")


@pytest.mark.parametrize("port", ["022", "7:23", "6_2201"])
def test_a_card_s_number_is_never_read_as_another(place, port):
    text = yaml.safe_dump(CARD).replace("port: 62201", f"port: {port}")
    (place / "cards" / "web1.yml").write_text(text)
    says = "port: not a whole number from 1 to 65535, digits only"
    tariq(place, "knock", "web1", "--cards", "cards", status=5, says=says)


@pytest.mark.parametrize("name", ["../web1", ".web1", "a/b", ""])
def test_a_host_name_can_not_leave_the_directory_of_cards(place, name):
    tariq(place, "knock", name, "--cards", "cards", status=5, says="not a name")


def test_no_operator_key(place):
    tariq(
        place,
        "knock",
        "web1",
        "--cards",
        "cards",
        status=6,
        says="no such secret key.*tariq key new",
    )


def test_an_unreadable_key(place):
    """A home that isn't there, and one that its user may not enter."""
    env = {"TARIQ_GNUPGHOME": str(place / "none")}
    tariq(place, "knock", "web1", "--cards", "cards", status=6, says="none: no GnuPG home", env=env)
    if os.geteuid() != 0:
        (place / "gnupg").chmod(0)
        tariq(place, "knock", "web1", "--cards", "cards", status=6, says="that you can read")
        (place / "gnupg").chmod(0o700)


def test_no_gpg_on_the_machine(place):
    empty = place / "bin"
    empty.mkdir()
    env = {"PATH": str(empty)}
    tariq(place, "knock", "web1", "--cards", "cards", status=7, says="gpg: not found.*apt", env=env)
    tariq(place, "key", "new", "alice", status=7, says="gpg: not found.*apt", env=env)


@pytest.mark.parametrize("verb", ["run", "init", "card", "guard", "unguard"])
def test_no_root_for_the_agent(place, verb):
    if os.geteuid() == 0 and not _nobody_can_run():
        pytest.skip("cannot here: nobody can't enter this checkout; tests/wire has the same test")
    user = "nobody" if os.geteuid() == 0 else None
    tariq(place, "agent", verb, status=8, says="needs root; .*sudo", user=user, cwd="/")


def _nobody_can_run() -> bool:
    command = [
        "setpriv",
        "--reuid",
        "nobody",
        "--clear-groups",
        sys.executable,
        "-c",
        "import tariq",
    ]
    return subprocess.run(command, cwd="/", capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"longest": 5}, "longest: unknown field"),
        (
            {
                "operators": {
                    "a": {"fingerprint": CARD["fingerprint"], "services": ["ssh"], "max": 1}
                }
            },
            r"operators\.a\.max: unknown field",
        ),
        ({"operators": {"a": {"fingerprint": "1234", "services": []}}}, r"a\.fingerprint: not a"),
        (
            {"operators": {"a": {"fingerprint": CARD["fingerprint"], "services": ["ftp"]}}},
            r"operators\.a\.services\.0: no service 'ftp'",
        ),
        (
            {"operators": {n: {"fingerprint": CARD["fingerprint"], "services": []} for n in "ab"}},
            r"operators\.b\.fingerprint: a has the same key",
        ),
        ({"services": {"ssh": {"protocol": "icmp", "port": 22}}}, r"services\.ssh\.protocol"),
        ({"services": {"ssh": {"protocol": "tcp", "port": 62201}}}, "knock port"),
        (
            {"services": POLICY["services"] | {"SSH": {"protocol": "tcp", "port": 23}}},
            r"services\.SSH: not a name",
        ),
        ({"default_service": "web"}, "default_service: no service 'web'"),
        ({"serial": True}, "serial: not a whole number"),
        ({"window": 0}, "window: not"),
        ({"tasks": {"reboot": {"user": "root"}}}, r"tasks\.reboot\.argv: missing"),
    ],
)
def test_a_policy_that_can_not_be_used(place, change, says):
    path = place / "agent.yml"
    path.write_text(yaml.safe_dump(POLICY | change))
    tariq(place, "agent", "check", "agent.yml", status=9, says=says)


def test_a_policy_without_a_needed_field_or_with_one_twice(place):
    path = place / "agent.yml"
    path.write_text(yaml.safe_dump({k: v for k, v in POLICY.items() if k != "serial"}))
    tariq(place, "agent", "check", "agent.yml", status=9, says="serial: missing")
    path.write_text(yaml.safe_dump(POLICY) + "serial: 2\n")
    tariq(place, "agent", "check", "agent.yml", status=9, says="line [0-9]+, column 1.*twice")
    path.write_bytes(b"\xff\xfe\xfd")
    tariq(place, "agent", "check", "agent.yml", status=9, says="not utf-8")
    path.unlink()
    tariq(place, "agent", "check", "agent.yml", status=9, says="no such file")


def test_a_good_policy_is_said_to_be_good(place):
    done = subprocess.run(
        [sys.executable, "-m", "tariq", "agent", "check", place / "agent.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert "good: policy 1 of web1, 1 services, 1 operators" in done.stdout


def test_no_inventory(place):
    tariq(place, "knock", "-g", "webservers", status=10, says="no inventory is named")
    tariq(place, "knock", "-g", "webservers", "-i", "none.yml", status=10, says="no such inventory")


@pytest.mark.parametrize("text", ["a: [", "[webservers\nweb1\n"])
def test_an_inventory_that_can_not_be_read(place, text):
    """Ansible itself calls this a success with no hosts."""
    (place / "hosts.yml").write_text(text)
    tariq(place, "knock", "-g", "webservers", "-i", "hosts.yml", status=10, says="can't be read")


def test_a_configuration_file_with_an_unknown_field(place):
    config = place / ".config" / "tariq"
    config.mkdir(parents=True)
    (config / "config.yml").write_text("keys: alice\n")
    tariq(place, "knock", "web1", status=11, says="keys: unknown field")


@pytest.mark.parametrize("words", [["knock"], ["knock", "web1", "--group", "x"]])
def test_hosts_and_a_group_at_once_or_neither(place, words):
    tariq(place, *words, "--cards", "cards", status=2, says="name hosts, or one --group")


def test_the_wrong_kind_of_option_is_a_usage_error(place):
    for words in (["--for", "soon"], ["--open", "a b"], ["--source", "here"], ["--nonsense"]):
        done = subprocess.run(
            [sys.executable, "-m", "tariq", "knock", "web1", *words],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


def test_every_status_is_different_and_documented():
    classes = [
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.TariqError) and "status" in vars(kind)
    ]
    statuses = {kind.status: kind.__name__ for kind in classes}
    assert len(statuses) == len(classes)
    page = (REPO / "docs" / "exit-statuses.md").read_text()
    documented = {int(row) for row in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    assert documented == {0, INTERNAL_ERROR, INTERRUPTED, *statuses}


def test_messages_are_lower_case_and_never_end_in_a_full_stop():
    """What can be read off the source without running it."""
    source = "".join(path.read_text() for path in (REPO / "tariq").rglob("*.py"))
    hints = re.findall(r'hint = f?"([^"]+)"', source)
    assert len(hints) > 20
    for hint in hints:
        assert hint[0].islower(), hint
        assert not hint.endswith("."), hint


@pytest.mark.skipif(shutil.which("gpg") is None, reason="needs gpg")
def test_a_second_key_of_the_same_name_is_refused(place):
    env = {**os.environ, "TARIQ_GNUPGHOME": str(place / "g"), "HOME": str(place)}
    command = [sys.executable, "-m", "tariq", "key", "new", "alice", "--no-passphrase"]
    assert subprocess.run(command, env=env, check=False, capture_output=True).returncode == 0
    try:
        tariq(
            place,
            "key",
            "new",
            "alice",
            "--no-passphrase",
            status=6,
            says="already",
            env={"TARIQ_GNUPGHOME": str(place / "g")},
        )
    finally:
        subprocess.run(["gpgconf", "--homedir", place / "g", "--kill", "all"], check=False)
