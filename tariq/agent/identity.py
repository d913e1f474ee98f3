"""What makes a host itself: its OpenPGP key, its knock key, and the card that tells of both."""

from __future__ import annotations

import base64
import os
import secrets
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from tariq import openpgp
from tariq.agent import rotation
from tariq.agent.policy import Policy
from tariq.errors import AgentError, PrivilegeError
from tariq.picture.proof import KEY_BYTES

ETC, STATE, RUN = Path("/etc/tariq"), Path("/var/lib/tariq"), Path("/run/tariq")


@dataclass(frozen=True, slots=True)
class Places:
    """Where an agent keeps its things; tests move them."""

    etc: Path = ETC
    state: Path = STATE
    run: Path = RUN

    @property
    def policy(self) -> Path:
        """The policy file."""
        return self.etc / "agent.yml"

    @property
    def operators(self) -> Path:
        """The directory of operators' armoured public keys."""
        return self.etc / "operators"

    @property
    def knock_key(self) -> Path:
        """The file of the knock key, base64."""
        return self.etc / "knock.key"

    @property
    def host_keys(self) -> Path:
        """The file that says which of two host keys is which; absent where there was ever one."""
        return self.etc / "host.key"

    @property
    def host_key(self) -> Path:
        """The GnuPG home of the host's own key."""
        return self.state / "gnupg"

    @property
    def ledger(self) -> Path:
        """The database of request ids."""
        return self.state / "ledger.db"

    @property
    def trial(self) -> Path:
        """What is remembered of the last dead-man trial."""
        return self.state / "trial.json"

    @property
    def tasks(self) -> Path:
        """The directory of tasks' runs and their output."""
        return self.state / "tasks"

    @property
    def metrics(self) -> Path:
        """The Prometheus textfile."""
        return self.run / "metrics.prom"

    @property
    def unguarded(self) -> Path:
        """The file that says that root wants the guard down for now."""
        return self.run / "unguarded"

    @property
    def keyring(self) -> Path:
        """The GnuPG home of the operators' keys, built at every start."""
        return self.run / "operators"

    @property
    def sentry_socket(self) -> Path:
        """Where the sentry comes to the warden, if systemd starts it."""
        return self.run / "sentry.sock"


def need_root(thing: str) -> None:
    """Raise PrivilegeError unless this process is root."""
    if os.geteuid() != 0:
        raise PrivilegeError(thing, "needs root", "run it with sudo")


def init(places: Places) -> tuple[bool, str]:
    """Make what is missing of a host's identity; return whether anything was, and the fingerprint.

    The secret key is made here and never leaves; nothing that exists is touched.
    """
    changed = False
    openpgp.private_dir(places.state)
    places.etc.mkdir(mode=0o755, parents=True, exist_ok=True)
    if not places.knock_key.exists():
        rotation.Pair(_new_knock_key()).write(places.knock_key)
        changed = True
    if openpgp.HostKey.exists(places.host_key):
        return changed, host_key(places).fingerprint
    made = openpgp.HostKey.make(places.host_key, socket.gethostname())
    openpgp.stop_agent(places.host_key)
    return True, made.fingerprint


def knock_keys(places: Places) -> tuple[bytes, ...]:
    """Read the knock key, and a second one while keys change; raise AgentError if it isn't one."""
    pair = rotation.Pair.read(places.knock_key)
    hint = "make one with 'tariq agent init'"
    if pair is None:
        raise AgentError(str(places.knock_key), "no such file or directory", hint)
    found = []
    for text in pair.names:
        try:
            found.append(base64.b64decode(text, validate=True))
        except ValueError:
            found.append(b"")
        if len(found[-1]) != KEY_BYTES:
            raise AgentError(str(places.knock_key), f"not {KEY_BYTES} bytes of base64", hint)
    return tuple(found)


def host_key(places: Places) -> openpgp.HostKey:
    """Return the host's key, which also knows of a second one while keys change."""
    pair = rotation.Pair.read(places.host_keys)
    return openpgp.HostKey.load(places.host_key, pair.names if pair else ())


def _new_knock_key() -> str:
    return base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()


def rotate_knock_key(places: Places, step: str) -> bool:
    """Take a step of ``rotation`` with the knock key; return whether it changed anything."""
    knock_keys(places)
    pair = rotation.Pair.read(places.knock_key)
    assert pair is not None
    after = pair.begun(_new_knock_key) if step == "begin" else pair.after(step, "knock key")
    if after != pair:
        after.write(places.knock_key)
    return after != pair


def rotate_host_key(places: Places, step: str) -> bool:
    """Take a step of ``rotation`` with the host's key; return whether it changed anything."""
    pair = rotation.Pair.read(places.host_keys)
    if pair is None:
        pair = rotation.Pair(host_key(places).fingerprint)
    if step == "begin" and not pair.other:
        # named before another is made, so that a host that is cut off here knows its own
        pair.write(places.host_keys)
        host_key(places).forget_others()
    after = (
        pair.begun(lambda: openpgp.HostKey.make(places.host_key, socket.gethostname()).fingerprint)
        if step == "begin"
        else pair.after(step, "host key")
    )
    if after != pair:
        after.write(places.host_keys)
    leftover = step == "finish" and host_key(places).forget_others()
    openpgp.stop_agent(places.host_key)
    return after != pair or leftover


def operators_keys(places: Places) -> dict[str, str]:
    """Return the keys of ``operators/`` and what is wrong with each, as ``OperatorRing.states``."""
    with tempfile.TemporaryDirectory(prefix="tariq-") as home:
        ring = openpgp.OperatorRing(Path(home) / "ring", sorted(places.operators.glob("*.asc")))
        return ring.states()


def card(places: Places, policy: Policy, addresses: Sequence[str], groups: Sequence[str]) -> str:
    """Return the host card, as YAML."""
    host = host_key(places)
    content = {
        "card": 1,
        "name": policy.host,
        "addresses": list(addresses),
        "port": policy.port,
        "transports": ["fastopen", "scapy"],
        "fingerprint": host.fingerprint,
        "public_key": base64.b64encode(host.export()).decode(),
        "knock_key": base64.b64encode(knock_keys(places)[0]).decode(),
        "services": {
            name: f"{service.protocol}/{service.port}" for name, service in policy.services.items()
        },
        "default_service": policy.default_service,
        "groups": list(groups),
        "policy": policy.serial,
    }
    head = "# Tariq host card: secret, because of the knock key. Written by the host; don't edit.\n"
    return head + yaml.safe_dump(content, sort_keys=False, width=10_000)
