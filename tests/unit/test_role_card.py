"""How the role keeps host cards on the controller: in the clear, or vaulted and never unvaulted."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.vault import VaultLib, VaultSecret
from galaxy import REPO

KEYS = (
    "b25lIG9uZSBvbmUgb25lIG9uZSBvbmUgb25lIG9uZTE=",
    "dHdvIHR3byB0d28gdHdvIHR3byB0d28gdHdvIHR3bzI=",
)
PASSWORD = "open sesame"


def card(key=KEYS[0]):
    head = "# Tariq host card: secret.\n"
    content = {"card": 1, "name": "web1", "knock_key": key, "services": {"ssh": "tcp/22"}}
    return head + yaml.safe_dump(content, sort_keys=False)


@pytest.fixture(scope="module")
def plugin():
    path = REPO / "roles" / "tariq" / "action_plugins" / "host_card.py"
    spec = importlib.util.spec_from_file_location("host_card", path)
    found = importlib.util.module_from_spec(spec)
    sys.modules["host_card"] = found
    spec.loader.exec_module(found)
    return found


def vault(**passwords):
    return VaultLib([(name, VaultSecret(word.encode())) for name, word in passwords.items()])


OPS = {"ops": PASSWORD}


@pytest.fixture
def keep(plugin, tmp_path):
    """Do as a deployment does; return whether it changed anything, and the file."""
    path = tmp_path / "web1.yml"

    def once(content, vaulted=False, **passwords):
        new = plugin.renewed(path, content, vault(**passwords), vaulted=vaulted)
        if new is not None:
            plugin.write(path, new)
        return new is not None, path

    return once


def test_a_card_in_the_clear_is_written_once_and_for_its_owner_only(keep):
    assert keep(card()) == (True, keep(card())[1])
    changed, path = keep(card())
    assert not changed
    assert path.read_text() == card()
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    assert keep(card())[0]
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["web1.yml"]


def test_a_vaulted_card_stays_so_and_only_a_new_one_is_a_change(keep):
    assert keep(card())[0]
    changed, path = keep(card(), vaulted=True, **OPS)
    assert changed
    before = path.read_text()
    assert before.startswith("$ANSIBLE_VAULT;1.2;AES256;ops\n")
    # whatever the variable says from now on, and whichever password comes first
    both = {"other": "guess", **OPS}
    assert keep(card(), **both) == (False, path)
    assert path.read_text() == before
    assert keep(card(KEYS[1]), **both) == (True, path)
    text = path.read_text()
    assert text.startswith("$ANSIBLE_VAULT;1.2;AES256;ops\n")
    assert vault(**OPS).decrypt(text).decode() == card(KEYS[1])


def test_a_knock_key_that_is_vaulted_by_itself_stays_so(keep, tmp_path):
    def block(key):
        text = vault(default=PASSWORD).encrypt(key, vault_id="default").decode()
        return "!vault |\n          " + text.strip().replace("\n", "\n          ")

    path = tmp_path / "web1.yml"
    # written by a person: in another order, with a line's end in the key
    path.write_text(
        f"knock_key: {block(KEYS[0] + chr(10))}\ncard: 1\nname: web1\nservices:\n  ssh: tcp/22\n"
    )
    path.chmod(0o600)
    assert keep(card(), vaulted=True, default=PASSWORD) == (False, path)
    assert keep(card(KEYS[1]), default=PASSWORD) == (True, path)
    text = path.read_text()
    assert "knock_key: !vault |\n  $ANSIBLE_VAULT;1.1;AES256\n" in text
    assert "name: web1\n" in text
    assert KEYS[1] not in text
    assert keep(card(KEYS[1]), default=PASSWORD) == (False, path)
    assert keep(card(), default=PASSWORD)[0]


@pytest.mark.parametrize(
    ("vaulted", "passwords", "named", "reason"),
    [
        (False, {}, None, "it is vaulted, and this run has no vault password; name the password"),
        (False, {"ops": "guess"}, None, "no vault password of this run opens it; name the"),
        (True, {}, None, "it is vaulted, and this run has no vault password"),
    ],
)
def test_a_card_that_cannot_be_opened_is_left_as_it_is(
    keep, plugin, vaulted, passwords, named, reason
):
    _, path = keep(card(), vaulted=True, **OPS)
    before = path.read_text()
    for content in (None, card(KEYS[1])):
        with pytest.raises(plugin.Wrong, match=reason):
            keep(content, vaulted=vaulted, **passwords)
    assert path.read_text() == before


def test_what_to_vault_a_new_card_with_must_be_clear(keep, plugin, monkeypatch):
    with pytest.raises(plugin.Wrong, match="to be vaulted, and this run has no vault password;"):
        keep(None, vaulted=True)
    two = {"dev": "one", "ops": PASSWORD}
    with pytest.raises(plugin.Wrong, match=r"several passwords \(dev, ops\); name one in vault_e"):
        keep(None, vaulted=True, **two)
    monkeypatch.setattr(plugin.constants, "DEFAULT_VAULT_ENCRYPT_IDENTITY", "ops", raising=False)
    assert keep(None, vaulted=True, **two)[0] is False
    assert (
        keep(card(), vaulted=True, **two)[1].read_text().startswith("$ANSIBLE_VAULT;1.2;AES256;ops")
    )
    monkeypatch.setattr(plugin.constants, "DEFAULT_VAULT_ENCRYPT_IDENTITY", "qa", raising=False)
    path = keep(card(), **two)[1]
    path.unlink()
    with pytest.raises(plugin.Wrong, match="no vault password called qa"):
        keep(None, vaulted=True, **two)


def test_ansible_s_own_loader_has_what_the_plugin_asks_it_for():
    loader = DataLoader()
    loader.set_vault_secrets([("ops", VaultSecret(PASSWORD.encode()))])
    assert [name for name, _ in loader._vault.secrets] == ["ops"]


# --- by the role itself, with a program in place of the host's


@pytest.fixture
def play(tmp_path):
    """Run the role's own files for a host that is this machine."""
    program = tmp_path / "venv" / "bin" / "tariq"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\nexec cat {tmp_path}/host.yml\n")
    program.chmod(0o755)
    (tmp_path / "password").write_text(PASSWORD + "\n")
    (tmp_path / "hosts").write_text("web1 ansible_connection=local\n")
    variables = {
        "ansible_python_interpreter": sys.executable,
        "tariq_venv": str(tmp_path / "venv"),
        "tariq_addresses": ["192.0.2.1"],
        "tariq_cards_vaulted": True,
    }
    few = {"gather_facts": True, "gather_subset": ["!all", "!min", "platform"]}
    book = tmp_path / "play.yml"

    def told(*files, password=True):
        tasks = [
            {
                "name": "Role",
                "ansible.builtin.include_role": {"name": "tariq", "tasks_from": name},
            }
            for name in files
        ]
        book.write_text(
            yaml.safe_dump([{"hosts": "web1", **few, "vars": variables, "tasks": tasks}])
        )
        named = {"ANSIBLE_VAULT_PASSWORD_FILE": str(tmp_path / "password")} if password else {}
        clean = {
            name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")
        }
        done = subprocess.run(
            [sys.executable, "-m", "ansible", "playbook", "-vvv", "-i", tmp_path / "hosts", book],
            env={
                **clean,
                "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_ROLES_PATH": str(REPO / "roles"),
                **named,
            },
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            timeout=120,
        )
        return done.stdout + done.stderr

    return told


def test_the_role_vaults_a_card_and_its_most_verbose_output_has_no_secret(play, tmp_path):
    (tmp_path / "host.yml").write_text(card())
    told = play("card.yml", "card.yml")
    assert re.search(r"ok=\d+ +changed=2 .*failed=0", told), told  # the folder, and the card once
    path = tmp_path / "cards" / "web1.yml"
    assert vault(default=PASSWORD).decrypt(path.read_text()).decode().strip() == card().strip()
    assert KEYS[0] not in told
    assert PASSWORD not in told
    assert "name: web1" not in told


def test_what_goes_wrong_with_a_card_is_said_although_its_content_is_not(play, tmp_path):
    (tmp_path / "host.yml").write_text(card())
    (tmp_path / "cards" / "web1.yml").mkdir(parents=True)
    told = play("card.yml")
    assert f"host card {tmp_path}/cards/web1.yml: is a directory; mend it" in " ".join(told.split())
    assert KEYS[0] not in told


def test_the_role_looks_at_the_card_before_it_changes_anything(play, tmp_path):
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "web1.yml").write_text(vault(**OPS).encrypt(card()).decode())
    told = play("preflight_present.yml", password=False)
    assert "it is vaulted, and this run has no vault password; name the" in " ".join(told.split())
    assert "Traceback" not in told
