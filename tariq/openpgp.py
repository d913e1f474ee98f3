"""OpenPGP through GnuPG: who may see a message, and whose it is.

Four roles, each with a private GnuPG home of its own kind:

- ``OperatorKey`` signs batches with the operator's secret key (client);
- ``CardRing`` seals bundles to hosts and opens their receipts; it holds public
  keys only, in a directory that is thrown away (client);
- ``HostKey`` unseals bundles and signs receipts (agent);
- ``OperatorRing`` verifies operators' signatures (agent).

python-gnupg reports success in places where nothing was proved: a missing
``sign=`` key makes GnuPG sign with another one, and an unsigned message decrypts
with ``ok``. So keys are always named with ``--local-user``, and a signature counts
only if it is ``valid``, alone, and by exactly the expected fingerprint.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import gnupg

from tariq.errors import AgentError, CardError, KeyUnusableError, MessageError, NoGpgError

MAX_PLAINTEXT = 4096
"""Bytes that a decryption may give: a bomb ends there (gpg(1), --max-output)."""

_KEY = """\
Key-Type: eddsa
Key-Curve: ed25519
Key-Usage: sign
{subkey}Name-Real: {name}
Expire-Date: 0
{protection}%commit
"""
_SUBKEY = "Subkey-Type: ecdh\nSubkey-Curve: cv25519\nSubkey-Usage: encrypt\n"
_BARE = ["--compress-algo", "none", "--set-filename", "", "--no-emit-version"]
"""Nothing in a message that isn't needed: no file name, no compression."""

# python-gnupg logs tracebacks of what is reported as an error here.
logging.getLogger("gnupg").propagate = False
logging.getLogger("gnupg").addHandler(logging.NullHandler())


def short(fingerprint: str) -> bytes:
    """Return the first 16 bytes of a fingerprint: how a request names its host."""
    return bytes.fromhex(fingerprint)[:16]


def private_dir(path: Path) -> Path:
    """Make a directory that only its owner can enter (gpg demands it), and return it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def _open_home(home: Path, *options: str) -> gnupg.GPG:
    """Start python-gnupg on a home directory; raise NoGpgError or KeyUnusableError."""
    if shutil.which("gpg") is None:
        raise NoGpgError("gpg", "not found on this machine", "install gnupg (apt install gnupg)")
    env = {**os.environ, "LC_ALL": "C"}
    try:
        return gnupg.GPG(gnupghome=str(home), options=list(options), env=env)
    except ValueError as why:
        hint = "check its path and that you may read it"
        raise KeyUnusableError(str(home), "not a usable GnuPG home", hint) from why
    except OSError as why:
        raise NoGpgError("gpg", f"doesn't run: {why}", "reinstall gnupg") from why


def _last_line(result: Any) -> str:  # noqa: ANN401 - python-gnupg is untyped
    """Return GnuPG's own reason for a failure, for an error message."""
    lines = [line for line in str(result.stderr).splitlines() if line.startswith("gpg: ")]
    return lines[-1].removeprefix("gpg: ") if lines else str(result.status or "no reason given")


def _signed_by(result: Any) -> str:  # noqa: ANN401
    """Return the primary fingerprint of the one valid signature; else raise MessageError."""
    if not result.valid or result.problems or len(result.sig_info) != 1:
        raise MessageError("signature", str(result.status or "none"))
    return str(result.pubkey_fingerprint or result.fingerprint)


def _generate(gpg: gnupg.GPG, name: str, *, passphrase: bool, encrypts: bool) -> str:
    recipe = _KEY.format(
        subkey=_SUBKEY if encrypts else "",
        name=name,
        protection="" if passphrase else "%no-protection\n",
    )
    made = gpg.gen_key(recipe)
    if not made.fingerprint:
        hint = "see that gpg-agent runs and the home directory is writable"
        raise KeyUnusableError(f"key {name!r}", f"not made: {_last_line(made)}", hint)
    return str(made.fingerprint)


def stop_agent(home: Path) -> None:
    """End the gpg-agent that GnuPG started for a home directory of ours."""
    import subprocess

    command = ["gpgconf", "--homedir", str(home), "--kill", "gpg-agent"]
    subprocess.run(command, check=False, capture_output=True, timeout=10)


# --- the operator -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OperatorKey:
    """An operator's secret key in a GnuPG home (a token's stub will do)."""

    home: Path
    fingerprint: str
    name: str

    @classmethod
    def make(cls, home: Path, name: str, *, passphrase: bool) -> OperatorKey:
        """Make an Ed25519 signing key; gpg-agent asks for the passphrase, if one is wanted."""
        gpg = _open_home(private_dir(home))
        if any(key.name == name for key in cls.all(home)):
            hint = "choose another name, or export that one"
            raise KeyUnusableError(f"key {name!r}", "there is one by that name already", hint)
        return cls(home, _generate(gpg, name, passphrase=passphrase, encrypts=False), name)

    @classmethod
    def all(cls, home: Path) -> list[OperatorKey]:
        """Return the secret keys of a home."""
        keys = _open_home(home).list_keys(secret=True)
        return [cls(home, key["fingerprint"], key["uids"][0]) for key in keys]

    @classmethod
    def find(cls, home: Path, wanted: str | None) -> OperatorKey:
        """Return the key that a name or the end of a fingerprint names, or the only one."""
        if not home.is_dir() or not os.access(home, os.R_OK | os.X_OK):
            hint = "make a key with 'tariq key new NAME', or pass --gnupg-home"
            raise KeyUnusableError(str(home), "no GnuPG home that you can read", hint)
        keys = cls.all(home)
        chosen = [key for key in keys if wanted is None or key.answers_to(wanted)]
        if len(chosen) == 1:
            return chosen[0]
        thing = f"operator key {wanted!r}" if wanted else "operator key"
        if not chosen:
            hint = "make one with 'tariq key new NAME', or name another with --key"
            raise KeyUnusableError(thing, f"no such secret key in {home}", hint)
        names = ", ".join(f"{key.name} ({key.fingerprint[-16:]})" for key in chosen)
        raise KeyUnusableError(thing, f"several would do: {names}", "name one with --key")

    def answers_to(self, wanted: str) -> bool:
        """Tell whether a user means this key: its user id, or the end of its fingerprint."""
        digits = wanted.removeprefix("0x").upper().replace(" ", "")
        return wanted == self.name or (len(digits) >= 8 and self.fingerprint.endswith(digits))

    def sign(self, data: bytes) -> bytes:
        """Return a binary detached signature; raise KeyUnusableError if the key won't."""
        args = ["--local-user", self.fingerprint, "--no-emit-version"]
        signed = _open_home(self.home).sign(data, detach=True, binary=True, extra_args=args)
        if signed.status != "signature created" or not signed.data:
            hint = "unlock it, or choose another with --key"
            thing = f"operator key {self.name} ({self.fingerprint[-16:]})"
            raise KeyUnusableError(thing, f"did not sign: {_last_line(signed)}", hint)
        return bytes(signed.data)

    def export(self) -> str:
        """Return the public key, armoured."""
        return str(_open_home(self.home).export_keys(self.fingerprint, minimal=True))


class CardRing:
    """Hosts' public keys in a throw-away home, each in a keyring file of its own.

    A keyring file is just the key's packets, so nothing is imported, and a key
    that is meant for one host can't be picked for another.
    """

    def __init__(self) -> None:
        self._dir = tempfile.TemporaryDirectory(prefix="tariq-")
        self._home = Path(self._dir.name)
        # no secret key is ever needed here, so no gpg-agent is started
        self._gpg = _open_home(self._home, "--no-default-keyring", "--no-autostart")

    def __enter__(self) -> Self:
        """Return the ring itself; leaving deletes it."""
        return self

    def __exit__(self, *_: object) -> None:
        self._dir.cleanup()

    def add(self, fingerprint: str, public_key: bytes) -> None:
        """Take a host's public key in."""
        self._file(fingerprint).write_bytes(public_key)

    def seal(self, fingerprint: str, bundle: bytes) -> bytes:
        """Encrypt to one host, without naming it; raise CardError if its key won't do."""
        sealed = self._gpg.encrypt(
            bundle,
            None,
            hidden_recipients=[fingerprint],
            always_trust=True,
            armor=False,
            extra_args=[*self._keyring(fingerprint), *_BARE, "--cipher-algo", "AES256"],
        )
        if not sealed.ok:
            reason = f"can't be encrypted to: {_last_line(sealed)}"
            raise CardError(f"key {fingerprint}", reason, "fetch the host's card again")
        return bytes(sealed.data)

    def open_receipt(self, fingerprint: str, sealed: bytes, passphrase: str) -> bytes:
        """Return what the host signed; raise MessageError unless it was that host."""
        args = [*self._keyring(fingerprint), *_DECRYPT]
        opened = self._gpg.decrypt(
            sealed, passphrase=passphrase, always_trust=True, extra_args=args
        )
        if not opened.ok:
            raise MessageError("receipt", str(opened.status or "not OpenPGP"))
        if _signed_by(opened) != fingerprint:
            raise MessageError("receipt", "signed by another key")
        return bytes(opened.data)

    def _file(self, fingerprint: str) -> Path:
        return self._home / f"{fingerprint}.gpg"

    def _keyring(self, fingerprint: str) -> list[str]:
        return ["--keyring", str(self._file(fingerprint))]


_DECRYPT = ["--max-output", str(MAX_PLAINTEXT)]


# --- the host -----------------------------------------------------------------------------


@dataclass(slots=True)
class HostKey:
    """The host's own key, without a passphrase, in a home that only root can enter."""

    home: Path
    fingerprint: str
    _gpg: gnupg.GPG

    @classmethod
    def make(cls, home: Path, name: str) -> HostKey:
        """Make Ed25519 and Curve25519 keys."""
        gpg = _open_home(private_dir(home))
        made = _generate(gpg, f"tariq host {name}", passphrase=False, encrypts=True)
        return cls(home, made, gpg)

    @classmethod
    def load(cls, home: Path) -> HostKey:
        """Take the one secret key of a home; raise AgentError if it isn't exactly one."""
        if not home.is_dir():
            raise AgentError(str(home), "no host key", "make one with 'tariq agent init'")
        gpg = _open_home(home)
        keys = gpg.list_keys(secret=True)
        if len(keys) != 1:
            hint = "keep one, or remove the directory and run 'tariq agent init'"
            raise AgentError(str(home), f"{len(keys)} secret keys where one belongs", hint)
        return cls(home, keys[0]["fingerprint"], gpg)

    def export(self) -> bytes:
        """Return the public key's packets."""
        return bytes(self._gpg.export_keys(self.fingerprint, minimal=True, armor=False))

    def unseal(self, sealed: bytes) -> bytes:
        """Decrypt a bundle; raise MessageError if it isn't for this host."""
        # a message under a passphrase would else wait for somebody to type one
        args = [*_DECRYPT, "--pinentry-mode", "error"]
        opened = self._gpg.decrypt(sealed, always_trust=True, extra_args=args)
        if not opened.ok:
            raise MessageError("bundle", str(opened.status or "not OpenPGP"))
        return bytes(opened.data)

    def seal_receipt(self, receipt: bytes, passphrase: str) -> bytes:
        """Sign, and encrypt under what only the operator and this host know.

        The passphrase is the request's random id: 128 bits, so stretching it
        (--s2k-mode) would only cost bytes and time.
        """
        args = ["--local-user", self.fingerprint, "--s2k-mode", "0", *_BARE]
        sealed = self._gpg.encrypt(
            receipt,
            None,
            symmetric="AES256",
            sign=True,
            passphrase=passphrase,
            armor=False,
            extra_args=args,
        )
        if not sealed.ok:
            raise AgentError("receipt", f"not signed: {_last_line(sealed)}", "check the host key")
        return bytes(sealed.data)


class OperatorRing:
    """Operators' public keys, built anew from a directory of armoured files."""

    def __init__(self, home: Path, files: Sequence[Path]) -> None:
        shutil.rmtree(home, ignore_errors=True)
        self._home = private_dir(home)
        self._gpg = _open_home(home, "--no-autostart")
        for file in files:
            self._take_in(file)

    def _take_in(self, file: Path) -> None:
        try:
            taken = self._gpg.import_keys(file.read_bytes())
        except OSError as why:
            raise AgentError(str(file), f"can't be read: {why.strerror}", "mend its mode") from why
        if not taken.fingerprints:
            raise AgentError(str(file), "holds no public key", "export one with 'tariq key export'")

    def __contains__(self, fingerprint: object) -> bool:
        return fingerprint in self.states()

    def states(self) -> dict[str, str]:
        """Return ``expired``, ``revoked``, ``disabled`` or nothing for each fingerprint.

        The letters are those of gpg's doc/DETAILS, field 2.
        """
        words = {"e": "expired", "r": "revoked", "d": "disabled"}
        keys = self._gpg.list_keys()
        return {key["fingerprint"]: words.get(key["trust"], "") for key in keys}

    def verify(self, data: bytes, signature: bytes) -> str:
        """Return the signer's primary fingerprint; raise MessageError if none may be trusted."""
        with tempfile.NamedTemporaryFile(dir=self._home) as file:
            file.write(signature)
            file.flush()
            args = ["--trust-model", "always"]
            return _signed_by(self._gpg.verify_data(file.name, data, extra_args=args))
