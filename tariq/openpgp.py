"""OpenPGP through GnuPG: who may see a message, and whose it is.

Four roles, each with a private GnuPG home of its own kind:

- ``OperatorKey`` signs batches with the operator's secret key (client);
- ``CardRing`` seals bundles to hosts and opens their receipts; it holds public
  keys only, in a directory that is thrown away (client);
- ``HostKey`` unseals bundles and signs receipts (agent);
- ``OperatorRing`` verifies operators' signatures (agent).

python-gnupg reports success in places where nothing was proved: a missing
``sign=`` key makes GnuPG sign with another one, an unsigned message decrypts with
``ok``, and so does one that GnuPG itself calls bad by its exit status. So keys are
always named with ``--local-user``, and what was received is judged by GnuPG's exit
status and its own status lines (doc/DETAILS): one literal in one layer of encryption,
and a signature only if it is good, alone, of bytes, and by exactly the expected key.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import gnupg

from tariq.errors import AgentError, CardError, KeyUnusableError, MessageError, NoGpgError

MAX_PLAINTEXT = 4096
"""Bytes that a decryption may give: a bomb ends there (gpg(1), --max-output)."""
GPG_SECONDS = 10.0
"""For so long one call of GnuPG may take; a call takes some 15 ms, unless its agent is stuck."""

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


def keys_digest(fingerprints: Iterable[str]) -> bytes:
    """Return what stands for a set of keys in a receipt: 16 bytes of SHA-256 over them, sorted."""
    text = "\n".join(sorted(set(fingerprints)))
    return hashlib.sha256(text.encode("ascii")).digest()[:16]


def private_dir(path: Path) -> Path:
    """Make a directory that only its owner can enter (gpg demands it), and return it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


class _Gpg(gnupg.GPG):  # type: ignore[misc]  # python-gnupg is untyped
    """python-gnupg with a time limit for each call, and with our errors.

    A ``patient`` one has none: a human types a passphrase or touches a token meanwhile.
    Raises NoGpgError where GnuPG can't be run, gives no answer or breaks off.
    """

    def __init__(self, *, patient: bool, **settings: object) -> None:
        self._patient = patient
        super().__init__(**settings)

    def _open_subprocess(self, *args: Any, **more: Any) -> Any:  # noqa: ANN401
        try:
            return super()._open_subprocess(*args, **more)
        except OSError as why:
            hint = "install gnupg (apt install gnupg)"
            raise NoGpgError("gpg", f"doesn't run: {why.strerror}", hint) from why

    def _collect_output(self, process: subprocess.Popen[bytes], *args: Any, **more: Any) -> int:  # noqa: ANN401
        """Wait for GnuPG to end; python-gnupg does so for every call, and for ever."""
        struck = threading.Event()

        def strike() -> None:
            struck.set()
            process.kill()

        timer = threading.Timer(GPG_SECONDS, strike)
        if not self._patient:
            timer.start()
        try:
            status: int = super()._collect_output(process, *args, **more)
        finally:
            timer.cancel()
        if struck.is_set():
            hint = "end its agent, if that hangs: gpgconf --kill gpg-agent"
            raise NoGpgError("gpg", f"gave no answer within {GPG_SECONDS:g} s", hint)
        if status < 0:
            raise NoGpgError("gpg", f"was ended by signal {-status}", "see the machine's log")
        return status

    def _handle_io(self, *args: Any, **more: Any) -> Any:  # noqa: ANN401
        try:
            return super()._handle_io(*args, **more)
        except OSError as why:  # it ended before it had read all
            raise NoGpgError("gpg", f"broke off: {why.strerror}", "try it by hand") from why

    def _read_response(self, stream: Any, result: Any) -> None:  # noqa: ANN401
        """Read status lines in a thread of its own, whose errors nobody would see."""
        result.stderr = ""
        try:
            super()._read_response(stream, result)
        except ValueError:  # a line that python-gnupg can't take apart: nothing is proved
            stream.read()


def _open_home(home: Path, *options: str, patient: bool = False) -> _Gpg:
    """Start python-gnupg on a home directory; raise NoGpgError or KeyUnusableError."""
    if shutil.which("gpg") is None:
        raise NoGpgError("gpg", "not found on this machine", "install gnupg (apt install gnupg)")
    env = {**os.environ, "LC_ALL": "C"}
    if patient and (terminal := _terminal()):
        env.setdefault("GPG_TTY", terminal)
    try:
        return _Gpg(patient=patient, gnupghome=str(home), options=list(options), env=env)
    except ValueError as why:
        hint = "check its path and that you may read it"
        raise KeyUnusableError(str(home), "not a usable GnuPG home", hint) from why


def _terminal() -> str | None:
    """Return the human's terminal: GnuPG looks at its standard input, which is a pipe of ours."""
    for stream in range(3):
        with contextlib.suppress(OSError):
            return os.ttyname(stream)
    return None


def _last_line(result: Any) -> str:  # noqa: ANN401 - python-gnupg is untyped
    """Return GnuPG's own reason for a failure, for an error message."""
    lines = [line for line in str(result.stderr).splitlines() if line.startswith("gpg: ")]
    return lines[-1].removeprefix("gpg: ") if lines else str(result.status or "no reason given")


def _statuses(result: Any) -> list[list[str]]:  # noqa: ANN401
    """Return GnuPG's status lines as words.

    Lines end with a line feed and nothing else: ``splitlines`` would let a user id
    with a byte 0x85 (half of an "Å") write lines of its own.
    """
    prefix = "[GNUPG:] "
    lines = str(result.stderr).split("\n")
    told = [line.removeprefix(prefix).split() for line in lines if line.startswith(prefix)]
    return [words for words in told if words]


def _check_opened(result: Any, *, signatures: int) -> None:  # noqa: ANN401
    """Raise MessageError unless GnuPG opened one literal in one layer, and had no complaint."""
    statuses = _statuses(result)
    counts = Counter(words[0] for words in statuses)
    once = ("BEGIN_DECRYPTION", "DECRYPTION_OKAY", "PLAINTEXT")
    if result.returncode != 0 or counts["DECRYPTION_OKAY"] == 0:
        reason = str(result.status or "not encrypted")
        reason = "more or other than one message" if result.ok else reason
        raise MessageError("openpgp", reason)
    if any(counts[name] != 1 for name in once) or counts["NEWSIG"] != signatures:
        raise MessageError("openpgp", "not one message in one layer")
    if ["PLAINTEXT", "62"] not in [words[:2] for words in statuses]:  # 62: binary, in hexadecimal
        raise MessageError("openpgp", "not of bytes")


def _signed_by(result: Any) -> str:  # noqa: ANN401
    """Return the primary fingerprint of the one good signature; else raise MessageError."""
    statuses = _statuses(result)
    counts = Counter(words[0] for words in statuses)
    if any(counts[name] != 1 for name in ("NEWSIG", "GOODSIG", "VALIDSIG")) or result.returncode:
        known = "more than one" if counts["NEWSIG"] > 1 else str(result.status or "none")
        raise MessageError("signature", known)
    [valid] = [words for words in statuses if words[0] == "VALIDSIG"]
    # class 00 is of a binary document, 01 of text, in any line ends (RFC 4880, 5.2.1)
    if len(valid) < 11 or valid[9] != "00":
        raise MessageError("signature", "not of bytes")
    return valid[10]


def _generate(gpg: _Gpg, name: str, *, passphrase: bool, encrypts: bool) -> str:
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
    """End the gpg-agent that GnuPG started for a home directory of ours, if that can be done."""
    command = ["gpgconf", "--homedir", str(home), "--kill", "gpg-agent"]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(command, check=False, capture_output=True, timeout=5)


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
        gpg = _open_home(private_dir(home), patient=True)
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
        gpg = _open_home(self.home, patient=True)
        signed = gpg.sign(data, detach=True, binary=True, extra_args=args)
        if signed.status != "signature created" or not signed.data:
            hint = "unlock it with 'tariq key unlock', or choose another with --key"
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
        _check_opened(opened, signatures=1)
        if _signed_by(opened) != fingerprint:
            raise MessageError("signature", "by another key")
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
    _gpg: _Gpg
    other: str | None = None
    """The fingerprint of a second key that counts while the host changes from one to another."""

    @classmethod
    def make(cls, home: Path, name: str) -> HostKey:
        """Make Ed25519 and Curve25519 keys."""
        gpg = _open_home(private_dir(home))
        made = _generate(gpg, f"tariq host {name}", passphrase=False, encrypts=True)
        return cls(home, made, gpg)

    @classmethod
    def load(cls, home: Path, named: Sequence[str] = ()) -> HostKey:
        """Take the keys that are ``named``, one or two, or the one secret key of a home.

        Raises AgentError if they aren't there, or it isn't exactly one.
        """
        if not home.is_dir():
            raise AgentError(str(home), "no host key", "make one with 'tariq agent init'")
        gpg = _open_home(home)
        keys = [str(key["fingerprint"]) for key in gpg.list_keys(secret=True)]
        hint = "keep one, or remove the directory and run 'tariq agent init'"
        if not named and len(keys) != 1:
            raise AgentError(str(home), f"{len(keys)} secret keys where one belongs", hint)
        for missing in set(named) - set(keys):
            raise AgentError(str(home), f"no secret key {missing}", hint)
        first, *others = named or keys
        return cls(home, first, gpg, *others)

    @staticmethod
    def exists(home: Path) -> bool:
        """Tell whether a home has any secret key; ``make`` that was cut off leaves none.

        Raises AgentError where GnuPG can't tell: a second key mustn't be made.
        """
        if not home.is_dir():
            return False
        keys = _open_home(home).list_keys(secret=True)
        if keys.returncode != 0:
            reason = f"can't be listed: gpg's exit status is {keys.returncode}"
            raise AgentError(str(home), reason, f"try 'gpg --homedir {home} -K'")
        return bool(keys)

    def addressed(self, to: bytes) -> HostKey | None:
        """Return the one of the host's keys that a request names (``short``), or None."""
        for fingerprint in (self.fingerprint, self.other):
            if fingerprint is not None and short(fingerprint) == to:
                return replace(self, fingerprint=fingerprint)
        return None

    def forget_others(self) -> bool:
        """Remove every secret key of the home that isn't named; return whether there was one."""
        keys = [str(key["fingerprint"]) for key in self._gpg.list_keys(secret=True)]
        extra = [key for key in keys if key not in (self.fingerprint, self.other)]
        for key in extra:
            for secret in (True, False):
                done = self._gpg.delete_keys(key, secret=secret, expect_passphrase=False)
                if done.status != "ok":
                    hint = "remove it by hand: gpg --homedir DIR --delete-secret-and-public-key"
                    raise AgentError(f"host key {key}", f"not removed: {done.status}", hint)
        return bool(extra)

    def export(self) -> bytes:
        """Return the public key's packets."""
        return bytes(self._gpg.export_keys(self.fingerprint, minimal=True, armor=False))

    def unseal(self, sealed: bytes) -> bytes:
        """Decrypt a bundle; raise MessageError unless it is one message for this host."""
        if self.other is not None:
            # gpg fails if the first key that it tries isn't the one, even if the next one is
            with contextlib.suppress(MessageError):
                return self._unseal(sealed, self.other)
        return self._unseal(sealed, self.fingerprint)

    def _unseal(self, sealed: bytes, key: str) -> bytes:
        # a message under a passphrase would else wait for somebody to type one
        args = [*_DECRYPT, "--pinentry-mode", "error", "--try-secret-key", key]
        opened = self._gpg.decrypt(sealed, always_trust=True, extra_args=args)
        _check_opened(opened, signatures=0)
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
        """Return the signer's primary fingerprint; raise MessageError if none may be trusted.

        Raises AgentError where the signature can't be written down for GnuPG to read.
        """
        try:
            with tempfile.NamedTemporaryFile(dir=self._home) as file:
                file.write(signature)
                file.flush()
                args = ["--trust-model", "always"]
                return _signed_by(self._gpg.verify_data(file.name, data, extra_args=args))
        except OSError as why:
            reason = f"can't be written: {why.strerror}"
            raise AgentError(str(self._home), reason, "free its file system") from why
