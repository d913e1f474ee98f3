"""docs/fleet.md, played from its first command to its last on fresh hosts (`make guide`).

What a reader would have of their own is put in its place: addresses, ssh's key, passphrases.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).parents[2]
PAGE = REPO / "docs" / "fleet.md"
NOT_HERE = ("python3 -m venv ", ". ~/tariq/bin/activate", "pip install ")
"""The environment that runs the tests stands for the one that these make."""


def blocks():
    """Yield the language of each block, its text, and the paragraph before it."""
    for before, kind, text in re.findall(r"([^\n]*)\n\n```(\w+)\n(.*?)```", PAGE.read_text(), re.S):
        yield kind, text, before


class Person:
    """Somebody with a home, a shell whose settings last, and keys."""

    def __init__(self, home, env, start):
        self.home = home
        self.home.mkdir()
        self.env = {"HOME": str(home), "LC_ALL": "C.UTF-8", "ANSIBLE_NOCOLOR": "1", **env}
        (home / "state").write_text("")
        (home / "cwd").write_text(str(start))

    def does(self, commands):
        """Run a block in the shell; return its status and what it printed."""
        script = f"""set -eu
. {self.home}/state; cd "$(cat {self.home}/cwd)"; set -x
{commands}
{{ set +x; }} 2>/dev/null; export -p >{self.home}/state; pwd >{self.home}/cwd"""
        done = subprocess.run(
            ["bash", "-c", script],
            env=self.env,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=400,
        )
        return done.returncode, done.stdout

    def keys(self):
        listed = self.does("tariq key list")[1]
        return {n.upper(): f for f, n in re.findall(r"^([0-9A-F]{40}) +(\S+)", listed, re.M)}

    def leaves(self):
        gnupg = str(self.home / ".config" / "tariq" / "gnupg")
        subprocess.run(["gpgconf", "--homedir", gnupg, "--kill", "all"], check=False)


@pytest.fixture
def people(bare_fleet):
    state = bare_fleet.env["FLEET_STATE"]
    env = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "ANSIBLE_SSH_ARGS": f"-o UserKnownHostsFile={state}/known_hosts -o IdentitiesOnly=yes"
        f" -o IdentityFile={state}/id_ed25519 -o ControlMaster=auto -o ControlPersist=20s",
    }
    # Short, because paths of sockets are.
    with tempfile.TemporaryDirectory(prefix="tq") as name:
        alice = Person(Path(name) / "alice", env, start=REPO)
        both = [alice, Person(Path(name) / "bob", env, start=name)]
        try:
            yield both
        finally:
            for each in both:
                each.leaves()


def test_the_page_leads_from_nothing_to_a_proved_revocation(bare_fleet, people):
    alice, bob = people
    fleet = alice.home / "fleet"
    fingerprints = {}

    def filled(text):
        for host, example in (("web1", "192.0.2.11"), ("web2", "192.0.2.12")):
            text = text.replace(example, bare_fleet.address(host))
        text = text.replace("ansible_user: admin", "ansible_user: root")
        text = re.sub(r"(tariq key new \w+)", r"\1 --no-passphrase", text)
        lines = [line for line in text.splitlines() if not line.startswith(NOT_HERE)]
        known = "|".join(sorted(fingerprints, reverse=True)) or "nobody"
        return re.sub(rf"\b({known})\b", lambda m: f'"{fingerprints[m[0]]}"', "\n".join(lines))

    def write(text, before):
        """Write a file, or change the variables of it that a block has."""
        named = re.findall(r"`((?:group_vars/)?\w+\.yml)`", before)
        path = fleet / (named[-1] if named else "group_vars/all.yml")
        new = yaml.safe_load(filled(text))
        if isinstance(new, list):
            return alice.does(
                f"cat >play.yml <<'END'\n{text}\nEND\nansible-playbook -i hosts.yml play.yml"
            )
        old = yaml.safe_load(path.read_text()) if path.exists() else {}
        path.write_text(yaml.safe_dump({**old, **new}))
        return 0, ""

    said = ""
    for kind, text, before in blocks():
        if kind == "yaml":
            status, said = write(text, before)
            assert status == 0, said
            continue
        who = bob if text.startswith("# on Bob's machine") else alice
        status, said = who.does(filled(text))
        assert (status != 0) == ("it fails" in text.partition("\n")[0]), f"{text}\n{said}"
        fingerprints |= who.keys()
        if "key new bob" in text:
            shutil.copy(bob.home.parent / "bob.asc", fleet / "keys")
        if "BOB" in fingerprints and (fleet / "cards").exists():
            shutil.copytree(fleet / "cards", bob.home / ".config/tariq/cards", dirs_exist_ok=True)
        if "tariq close" in text:
            assert not bare_fleet.reachable("web1"), "guarded"
        if text.endswith("web1 --for 30s\n"):
            assert bare_fleet.reachable("web1"), "Bob came in"
        if "fleet status" in text:
            assert "2 of 2 hosts are current" in said
    assert "web1  silent" in said, "Bob's last knock"
    assert set(fingerprints) == {"ALICE", "ALICE2", "BOB"}
