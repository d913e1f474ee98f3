"""docs/fleet.md, played from its first command to its last on fresh hosts (`make guide`).

What a reader would have of their own is put in its place: addresses, an account, ssh's key, and
somebody at a terminal who types passphrases.
"""

import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pinentry
import pytest
import yaml

REPO = Path(__file__).parents[2]
PAGE = REPO / "docs" / "fleet.md"
NOT_HERE = ("python3 -m venv ", ". ~/tariq/bin/activate", "pip install ")
"""The environment that runs the tests stands for the one that these make."""
ADMIN = """
useradd --create-home --shell /bin/bash admin
install -d -m 700 -o admin ~admin/.ssh
install -m 600 -o admin ~/.ssh/authorized_keys ~admin/.ssh/
echo 'admin ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/admin
rm ~/.ssh/authorized_keys
"""
"""How hosts may be reached before: by an account that may become root, and not as root."""


def blocks():
    """Yield the language of each block, its text, and the paragraph before it."""
    for before, kind, text in re.findall(r"([^\n]*)\n\n```(\w+)\n(.*?)```", PAGE.read_text(), re.S):
        yield kind, text, before


class Person:
    """Somebody with a home, a terminal, and keys; each block is given to a new shell."""

    def __init__(self, home, env, start):
        self.home = home
        self.ours, self.terminal = pty.openpty()
        self.gnupg = home / ".config" / "tariq" / "gnupg"
        pinentry.types_for(self.gnupg)
        self.env = {"HOME": str(home), "LC_ALL": "C.UTF-8", "ANSIBLE_NOCOLOR": "1", **env}
        (home / "cwd").write_text(str(start))

    def does(self, commands):
        """Run a block in the shell; return its status and what it printed."""
        script = f"""set -eu
cd "$(cat {self.home}/cwd)"; set -x
{commands}
{{ set +x; }} 2>/dev/null; pwd >{self.home}/cwd"""
        done = subprocess.run(
            ["bash", "-c", script],
            env=self.env,
            text=True,
            check=False,
            stdin=self.terminal,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=400,
        )
        return done.returncode, done.stdout

    def keys(self):
        listed = self.does("tariq key list")[1]
        return {n.upper(): f for f, n in re.findall(r"^([0-9A-F]{40}) +(\S+)", listed, re.M)}

    def leaves(self):
        subprocess.run(["gpgconf", "--homedir", self.gnupg, "--kill", "all"], check=False)
        os.close(self.ours)
        os.close(self.terminal)


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
    for host in ("web1", "web2"):
        bare_fleet.on(host, "sh", "-euc", ADMIN)

    def filled(text):
        for host, example in (("web1", "192.0.2.11"), ("web2", "192.0.2.12")):
            text = text.replace(example, bare_fleet.address(host))
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

    proofs = []
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
        if "it fails" in text:
            assert "web1  silent" in said, "Bob's last knock"
        if "fleet status" in text:
            proofs += re.findall(r"\d of \d hosts are current", said)[-1:]
    assert proofs == ["2 of 2 hosts are current", "1 of 1 hosts are current"]
    assert bare_fleet.reachable("web2"), "given back"
    assert not bare_fleet.reachable("web1")
    assert set(fingerprints) == {"ALICE", "ALICE2", "BOB"}
    lent = PAGE.read_text().partition("    sudo ")[2].replace("~/tariq/bin/", "")
    assert "web1  status" in alice.does(lent)[1], "--transport scapy, at the page's end"
