"""Host cards that ansible-vault encrypted, read by every command that needs one."""

import json
import os
import subprocess
import sys

import galaxy
import pytest
import yaml

from tariq import cli
from tariq.client import card, helper, vault
from tariq.errors import CardError, KeyUnusableError

KNOCK_KEY = "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IHNlYzA="
CARD = {
    "card": 1,
    "name": "web1",
    "addresses": ["192.0.2.11"],
    "port": 62201,
    "transports": ["fastopen"],
    "fingerprint": "0123456789ABCDEF0123456789ABCDEF01234567",
    "public_key": "AAAA",
    "knock_key": KNOCK_KEY,
    "services": {"ssh": "tcp/22"},
    "groups": ["webservers"],
    "policy": 12,
}
PASSWORD = "open sesame"
VERBS = {
    "knock": ["knock", "web1"],
    "close": ["close", "web1"],
    "status": ["status", "--group", "webservers"],
    "run": ["run", "web1", "reboot"],
    "proxy": ["proxy", "web1", "22"],
}


@pytest.fixture(scope="module")
def vaulted(tmp_path_factory):
    """The same card, encrypted as a whole and by its knock key only, by ansible-vault itself."""
    base = tmp_path_factory.mktemp("vaulted")
    (base / "password").write_text(PASSWORD + "\n")
    (base / "web1.yml").write_text(yaml.safe_dump(CARD))
    options = ("--vault-id", f"ops@{base}/password")
    galaxy.run("vault", "encrypt", *options, base / "web1.yml")
    words = ("encrypt_string", *options, "--name", "knock_key", "--stdin-name", "knock_key")
    key = galaxy.run("vault", *words, input=KNOCK_KEY + "\n").stdout
    others = yaml.safe_dump({n: value for n, value in CARD.items() if n != "knock_key"})
    return {"file": (base / "web1.yml").read_text(), "value": others + key}


@pytest.fixture(params=["file", "value"])
def text(vaulted, request):
    return vaulted[request.param]


@pytest.fixture
def cards(tmp_path, text, monkeypatch):
    """A folder with web1's card, a password file, and none that is named."""
    for name in [name for name in os.environ if name.startswith(("ANSIBLE_", "TARIQ_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "password").write_text(PASSWORD + "\n")
    (tmp_path / "wrong").write_text("guess\n")
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "web1.yml").write_text(text)
    return tmp_path / "cards"


def test_the_card_is_what_it_was_before(cards, monkeypatch):
    monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", "password")
    read = card.load([(cards, "web1")])
    (cards / "web1.yml").write_text(yaml.safe_dump(CARD))
    assert read == card.load([(cards, "web1")])


def config(cards):
    (cards.parent / "ansible.cfg").write_text("[defaults]\nvault_password_file = password\n")


def script(cards):
    path = cards.parent / "ask"
    path.write_text(f"#!/bin/sh\necho '{PASSWORD}'\n")
    path.chmod(0o700)


@pytest.mark.parametrize("text", ["file"], indirect=True)
@pytest.mark.parametrize(
    ("prepare", "variables"),
    [
        (config, {}),
        (script, {"ANSIBLE_VAULT_PASSWORD_FILE": "ask"}),
        (script, {"ANSIBLE_VAULT_IDENTITY_LIST": "old@wrong,ops@ask"}),
    ],
)
def test_the_password_comes_from_where_ansible_has_it(cards, monkeypatch, prepare, variables):
    prepare(cards)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert card.load([(cards, "web1")])[0].name == "web1"


@pytest.mark.parametrize("text", ["file"], indirect=True)
@pytest.mark.parametrize("verb", VERBS)
def test_every_command_reads_it_or_says_in_a_line_what_is_missing(cards, monkeypatch, capsys, verb):
    """With answers as the helper gives them; the other tests run the real one."""

    def status(**answer):
        done = subprocess.CompletedProcess([], 0, json.dumps([answer]), "")
        monkeypatch.setattr(helper, "run", lambda *_, **__: done)
        return cli.main([*VERBS[verb], "--cards", str(cards)]), capsys.readouterr().err

    assert status(reason="it is vaulted, and no password is named") == (
        CardError.status,
        "tariq: card web1: it is vaulted, and no password is named; "
        "name one in ansible.cfg or in ANSIBLE_VAULT_PASSWORD_FILE\n",
    )
    # what it needs next, there is none of
    assert status(text=yaml.safe_dump(CARD))[0] == KeyUnusableError.status


@pytest.mark.parametrize("text", ["file"], indirect=True)
def test_of_a_fleet_each_card_is_judged_by_itself(cards):
    (cards / "web2.yml").write_text("card: 2\n")
    inventory = cards.parent / "hosts.yml"
    inventory.write_text("web: {hosts: {web1: , web2: , web3: }}\n")
    told = subprocess.run(
        [sys.executable, "-m", "tariq", "fleet", "status", "--json", "--inventory", str(inventory)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert told.returncode == 1, told.stderr
    reasons = [each["detail"] for each in json.loads(told.stdout)]
    assert reasons[0].startswith("card web1: it is vaulted, and no password is named")
    assert "web2.yml" in reasons[1]
    assert reasons[2].startswith("web3: no card at")


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        ("wrong", "card web1: it is vaulted, and no password that is named opens it"),
        ("nowhere", "card web1: it is vaulted, and there is no password: .*nowhere was not found"),
    ],
)
def test_a_wrong_password_is_told_as_such(cards, monkeypatch, named, reason):
    monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", named)
    with pytest.raises(CardError, match=reason) as told:
        card.load([(cards, "web1")])
    assert "guess" not in str(told.value)


@pytest.mark.parametrize("text", ["file"], indirect=True)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text[:-40], "what is vaulted in it is damaged|no password .* opens it"),
        (lambda text: text.split("\n")[0] + "\nzz\n", "what is vaulted in it is damaged"),
        (lambda text: text.replace("AES256", "ROT13"), "no password that is named opens it"),
        (lambda text: "knock_key: !vault [1]\n", "expected a scalar node"),
        (lambda text: yaml.safe_dump({**CARD, "knock_key": "%"}), "knock_key: not"),
    ],
)
def test_a_damaged_card_is_an_error_and_never_a_traceback(cards, monkeypatch, text, change, reason):
    monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", "password")
    (cards / "web1.yml").write_text(change(text))
    with pytest.raises(CardError, match=reason):
        card.load([(cards, "web1")])


def test_one_process_opens_all_cards_and_a_plain_one_needs_none(cards, monkeypatch, vaulted):
    monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", "password")
    started = []
    run = helper.run
    monkeypatch.setattr(
        helper, "run", lambda *words, **more: started.append(words) or run(*words, **more)
    )
    (cards / "plain.yml").write_text(yaml.safe_dump({**CARD, "name": "plain"}))
    (cards / "web2.yml").write_text(vaulted["file"])
    assert card.load([(cards, "plain")])[0].name == "plain"
    assert not started
    found = card.load_all([(cards, name) for name in ("plain", "web1", "web2", "web1", "web9")])
    assert [getattr(each, "name", None) for each in found] == [
        "plain",
        "web1",
        "web1",
        "web1",
        None,
    ]
    assert len(started) == 1


def test_without_ansible_core_it_says_what_to_install(monkeypatch):
    gone = subprocess.CompletedProcess([], helper.NO_ANSIBLE, "", "")
    monkeypatch.setattr(helper, "run", lambda *_, **__: gone)
    [refused] = vault.decrypt(["$ANSIBLE_VAULT;1.1;AES256\n00\n"])
    assert (refused.reason, refused.hint) == (
        "it is vaulted, and ansible-core is not installed",
        "pip install 'tariq[fleet]'",
    )


def test_a_value_that_nothing_expects_to_be_vaulted_is_refused(tmp_path):
    text = "services: {ssh: !vault x}\n" + yaml.safe_dump(
        {name: value for name, value in CARD.items() if name != "services"}
    )
    (tmp_path / "web1.yml").write_text(text)
    with pytest.raises(CardError, match=r"services\.ssh: not a text"):
        card.load([(tmp_path, "web1")])
