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
    def host_key(self) -> Path:
        """The GnuPG home of the host's own key."""
        return self.state / "gnupg"

    @property
    def ledger(self) -> Path:
        """The database of request ids."""
        return self.state / "ledger.db"

    @property
    def keyring(self) -> Path:
        """The GnuPG home of the operators' keys, built at every start."""
        return self.run / "operators"


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
        _write_secret(places.knock_key, base64.b64encode(secrets.token_bytes(KEY_BYTES)) + b"\n")
        changed = True
    if (places.host_key / "pubring.kbx").exists():
        return changed, openpgp.HostKey.load(places.host_key).fingerprint
    made = openpgp.HostKey.make(places.host_key, socket.gethostname())
    openpgp.stop_agent(places.host_key)
    return True, made.fingerprint


def _write_secret(path: Path, data: bytes) -> None:
    """Write a file that is whole or not there, and that nobody else can ever read."""
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)


def knock_key(places: Places) -> bytes:
    """Read the knock key; raise AgentError if it isn't one."""
    hint = "make one with 'tariq agent init'"
    try:
        key = base64.b64decode(places.knock_key.read_bytes(), validate=False)
    except OSError as why:
        raise AgentError(str(places.knock_key), (why.strerror or "").lower(), hint) from why
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise AgentError(str(places.knock_key), f"not {KEY_BYTES} bytes of base64", hint)
    return key


def key_warnings(places: Places, policy: Policy) -> list[str]:
    """Return what is wrong with operators' keys: missing, expired or revoked, or not listed."""
    with tempfile.TemporaryDirectory(prefix="tariq-") as home:
        ring = openpgp.OperatorRing(Path(home) / "ring", sorted(places.operators.glob("*.asc")))
        known = ring.states()
    found = []
    for name, operator in policy.operators.items():
        state = known.pop(operator.fingerprint, "missing")
        if state:
            found.append(f"operators.{name}: its key is {state}")
    return found + [f"{places.operators}: key {key} is nobody's in the policy" for key in known]


def card(places: Places, policy: Policy, addresses: Sequence[str], groups: Sequence[str]) -> str:
    """Return the host card, as YAML."""
    host = openpgp.HostKey.load(places.host_key)
    content = {
        "card": 1,
        "name": policy.host,
        "addresses": list(addresses),
        "port": policy.port,
        "transports": ["fastopen", "scapy"],
        "fingerprint": host.fingerprint,
        "public_key": base64.b64encode(host.export()).decode(),
        "knock_key": base64.b64encode(knock_key(places)).decode(),
        "services": {
            name: f"{service.protocol}/{service.port}" for name, service in policy.services.items()
        },
        "default_service": policy.default_service,
        "groups": list(groups),
        "policy": policy.serial,
    }
    head = "# Tariq host card: secret, because of the knock key. Written by the host; don't edit.\n"
    return head + yaml.safe_dump(content, sort_keys=False, width=10_000)
