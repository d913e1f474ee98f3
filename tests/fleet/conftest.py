"""Three real Debian hosts, deployed to once for all tests of this folder.

Where tests run in several processes there are two such fleets: tests/conftest.py tells who has
which.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
REPO = HERE.parents[1]
BIN = Path(sys.prefix) / "bin"
INVENTORY = REPO / "inventories" / "fleet" / "hosts.yml"
HOSTS = ("web1", "web2", "web3")


def pytest_ignore_collect(collection_path, config):
    """Leave the long ones out unless they are named, as `make lockout` does."""
    named = any("test_lockout" in argument for argument in config.args)
    return True if collection_path.name == "test_lockout.py" and not named else None


@dataclass
class Fleet:
    """The hosts, and the controller's view of them."""

    env: dict[str, str]

    def run(self, *command, check=True, seconds=900, **more):
        done = subprocess.run(
            [str(word) for word in command],
            env={**os.environ, **self.env},
            cwd=REPO,
            text=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=False,
            **more,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{command} gave {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    def tariq(self, *words, check=True, **more):
        """Run the client; what must succeed is said again where a slow machine was only silent."""
        end = time.monotonic() + 30
        while True:
            done = self.run(BIN / "tariq", *words, check=False, **more)
            told = done.stdout + done.stderr
            if done.returncode == 0 or not check:
                return done
            if "silent" not in told or time.monotonic() > end:
                raise AssertionError(f"tariq {words} gave {done.returncode}:\n{told}")

    def playbook(self, *words, **more):
        return self.run(BIN / "ansible-playbook", "-i", INVENTORY, *words, **more)

    def start_playbook(self, *words):
        """Start one, in a process group of its own, and return it while it runs."""
        return subprocess.Popen(
            [str(word) for word in (BIN / "ansible-playbook", "-i", INVENTORY, *words)],
            env={**os.environ, **self.env},
            cwd=REPO,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def on(self, host: str, *words, **more):
        """Run a command on a host, past ssh and the firewall."""
        return self.run("tools/fleet", "shell", host, *words, **more)

    def restart(self, host: str) -> None:
        """Restart a host as a machine would be: everything in it ends, and systemd begins anew."""
        self.run("tools/fleet", "engine", "restart", "-t", "5", f"{self.env['FLEET_NAME']}-{host}")

    def address(self, host: str, version: int = 4) -> str:
        return self.env[f"FLEET_{host.upper()}_{version}"]

    def reachable(self, host: str, version: int = 4) -> bool:
        """Tell whether sshd answers a new connection from this machine."""
        try:
            with socket.create_connection((self.address(host, version), 22), 1.0) as sock:
                sock.settimeout(20)  # the port is open: what is late is only sshd
                return sock.recv(8).startswith(b"SSH-2.0")
        except OSError:
            return False

    def outcomes(self, *words) -> dict[str, dict]:
        done = self.tariq(*words, "--json", check=False)
        assert done.stdout, done.stderr
        return {each["host"]: each for each in json.loads(done.stdout)}

    def receipts(self, *words) -> dict[str, dict]:
        """Return receipts of hosts that must answer, however busy they are."""
        end = time.monotonic() + 30
        told = self.outcomes(*words)
        while any(each["ending"] == "silent" for each in told.values()):
            assert time.monotonic() < end, told
            told = self.outcomes(*words)
        return {host: each["receipt"] for host, each in told.items()}


@pytest.fixture(scope="session")
def bare_fleet():
    """Hosts that run, and an operator's key; nothing is deployed yet."""
    name = os.environ.get("FLEET_TEST_NAME", "tariq-test")
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")  # gw0, gw1, ...
    fleet = Fleet({"FLEET_NAME": f"{name}-{worker}".rstrip("-")})
    fleet.run("tools/fleet", "down")
    try:
        fleet.run("tools/fleet", "up", seconds=1500)
        listed = fleet.run("tools/fleet", "env").stdout.splitlines()
        known = dict(line.removeprefix("export ").split("=", 1) for line in listed if "=" in line)
        fleet.env |= {name: value.strip("'\"") for name, value in known.items()}
        fleet.run("tools/fleet", "operator")
        state = Path(fleet.env["FLEET_STATE"])
        fleet.env |= {
            "TARIQ_INVENTORY": str(INVENTORY),
            "TARIQ_CARDS": str(state / "cards"),
            "TARIQ_GNUPGHOME": str(state / "gnupg"),
            "ANSIBLE_NOCOLOR": "1",
        }
        yield fleet
    finally:
        fleet.run("tools/fleet", "down")


@pytest.fixture(scope="session")
def fleet(bare_fleet):
    """Deployed to, with the output of the deployment kept; -vvv, so that secrets would show."""
    assert all(bare_fleet.reachable(host) for host in HOSTS), "open before"
    bare_fleet.deployment = bare_fleet.playbook("deploy.yml", "-vvv")
    return bare_fleet
