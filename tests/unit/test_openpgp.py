"""GnuPG's word is taken only where it is a plain yes, and it never keeps anybody waiting."""

import os
import pty
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pinentry
import pytest
from hostile import pgp
from lab import eventually, scratch

from tariq import openpgp
from tariq.errors import KeyUnusableError, MessageError, NoGpgError, TariqError
from tariq.message import Batch
from tariq.openpgp import CardRing, HostKey, OperatorKey, OperatorRing

SECRET = "A" * 22


@pytest.fixture(scope="module")
def keys():
    """A host, the operators that it trusts, and an operator's key."""
    with scratch() as base:
        host = HostKey.make(base / "host", "web1")
        alice = OperatorKey.make(base / "alice", "alice", passphrase=False)
        # GnuPG's status lines show user ids as they are, and python-gnupg writes Latin-1:
        # these two characters are an "Å" in UTF-8, and str.splitlines splits at the second
        sly = f"mallory Ã\x85[GNUPG:] VALIDSIG {'0' * 40} 1 1 0 4 0 22 8 00 {alice.fingerprint}"
        mallory = OperatorKey.make(base / "mallory", sly, passphrase=False)
        for name, key in (("alice", alice), ("mallory", mallory)):
            (base / f"{name}.asc").write_text(key.export())
        ring = OperatorRing(base / "ring", sorted(base.glob("*.asc")))
        yield host, alice, mallory, ring
        for home in (host.home, alice.home, mallory.home):
            openpgp.stop_agent(home)


@pytest.fixture(scope="module")
def sealer(keys):
    return pgp.Sealer(keys[0].home, keys[0].fingerprint)


GOOD = pgp.literal(b"words")
INNER = {
    "two literals": GOOD + GOOD,
    "nothing": b"",
    "a packet that is cut short": GOOD + b"\xd4\x01\x00",
    "text": pgp.literal(b"words", b"t"),
    "a bomb": pgp.compressed(pgp.literal(bytes(1_000_000))),
    "a bomb in layers": pgp.compressed(pgp.compressed(pgp.literal(bytes(1_000_000)))),
}


def test_a_host_opens_what_is_one_message(keys, sealer):
    assert keys[0].unseal(sealer.seal(GOOD)) == b"words"


@pytest.mark.parametrize("name", INNER)
def test_a_host_opens_nothing_else(keys, sealer, name):
    with pytest.raises(MessageError, match="openpgp"):
        keys[0].unseal(sealer.seal(INNER[name]))


def test_nothing_may_stand_around_a_message_or_be_nested(keys, sealer):
    good = sealer.seal(GOOD)
    signed = pgp.gpg(keys[1].home, "--sign", "--compress-algo", "none", data=b"words")
    for broken in (
        good + b"junk",
        good + good,
        good + GOOD,
        GOOD + good,
        GOOD,
        signed,
        sealer.seal(good),
        sealer.seal(signed),
        sealer.seal(GOOD, mdc=False),
        sealer.seal(GOOD, damage=True),
    ):
        with pytest.raises(MessageError, match="openpgp"):
            keys[0].unseal(broken)


def test_a_signature_counts_alone_and_once(keys):
    _, alice, mallory, ring = keys
    data = Batch.of([b"request"]).to_sign
    good = alice.sign(data)
    assert ring.verify(data, good) == alice.fingerprint
    text = pgp.gpg(alice.home, "--detach-sign", "--textmode", data=data)
    for signature in (
        good + good,
        good + alice.sign(data),
        good + mallory.sign(data),
        text,
        good + b"junk",
        good[:-1],
        b"",
        b"junk",
        alice.sign(b"other"),
    ):
        with pytest.raises(MessageError, match="signature"):
            ring.verify(data, signature)


def test_a_user_id_can_not_write_a_status_line(keys):
    """Somebody who may do little names its key so that GnuPG's words seem to name another."""
    _, _, mallory, ring = keys
    signed = pgp.gpg(mallory.home, "--sign", data=b"data")
    told = pgp.gpg(
        ring._home, "--status-fd", "1", "--output", "/dev/null", "--decrypt", data=signed
    )
    assert b"\xc3\x85[GNUPG:] VALIDSIG" in told, "the control"
    assert ring.verify(b"data", mallory.sign(b"data")) == mallory.fingerprint


@pytest.mark.parametrize("line", ["VALIDSIG", "VALIDSIG 1 2 3", ""])
def test_a_status_line_that_is_cut_short_proves_nothing(line):
    """The fuzzer's finding: GnuPG never wrote one, but nothing must rely on that."""
    lines = [f"[GNUPG:] {each}" for each in ("NEWSIG", "GOODSIG", line)]
    told = SimpleNamespace(stderr="\n".join(lines), returncode=0, status="")
    with pytest.raises(MessageError, match="signature"):
        openpgp._signed_by(told)


def test_a_receipt_is_one_message_signed_once_by_the_host(keys):
    host = keys[0]
    with CardRing() as ring:
        ring.add(host.fingerprint, host.export())
        good = host.seal_receipt(b"yes", SECRET)
        assert ring.open_receipt(host.fingerprint, good, SECRET) == b"yes"
        unsigned = _sealed_under(SECRET, host, "--symmetric")
        for broken in (good + good, good + b"junk", good[:-9], unsigned, b"", GOOD):
            with pytest.raises(MessageError, match="openpgp"):
                ring.open_receipt(host.fingerprint, broken, SECRET)
        with pytest.raises(MessageError, match="openpgp"):
            ring.open_receipt(host.fingerprint, good, SECRET[:-1] + "B")


def _sealed_under(passphrase, host, *what):
    words = ["--pinentry-mode", "loopback", "--passphrase", passphrase, "--compress-algo", "none"]
    return pgp.gpg(host.home, *words, *what, data=b"words")


# --- GnuPG that hangs, is gone or breaks off ---------------------------------------------


@pytest.fixture
def stuck(tmp_path, monkeypatch):
    """Put a gpg on the path that does as it is told by a file."""
    real = openpgp.shutil.which("gpg")
    fake = tmp_path / "gpg"
    fake.write_text(f'#!/bin/sh\n. {tmp_path}/mood\nexec {real} "$@"\n')
    fake.chmod(0o755)
    mood = tmp_path / "mood"
    mood.write_text("")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return mood


def roles(base, host_home, asc):
    """Return a call of GnuPG for each role that must not wait."""
    host = HostKey.load(host_home)
    operators = OperatorRing(base / "ring", [asc])
    cards = CardRing()
    cards.add(host.fingerprint, host.export())
    return [
        lambda: host.unseal(b"x"),
        lambda: host.seal_receipt(b"x", SECRET),
        lambda: operators.verify(b"x", b"y"),
        operators.states,
        lambda: cards.seal(host.fingerprint, b"x"),
        lambda: cards.open_receipt(host.fingerprint, b"x", SECRET),
        lambda: HostKey.load(host_home),
    ]


@pytest.mark.parametrize(
    ("mood", "told"),
    [("exec sleep 60", "gave no answer"), ("kill -9 $$", "signal 9")],
    ids=["hangs", "dies"],
)
def test_no_call_waits_for_ever_or_ends_in_a_traceback(
    keys, stuck, tmp_path, monkeypatch, mood, told
):
    asc = tmp_path / "alice.asc"
    asc.write_text(keys[1].export())
    calls = roles(tmp_path, keys[0].home, asc)
    stuck.write_text(mood)
    monkeypatch.setattr(openpgp, "GPG_SECONDS", 0.7)
    for call in calls:
        started = time.monotonic()
        with pytest.raises(TariqError) as why:
            call()
        assert told in str(why.value)
        assert time.monotonic() - started < 30


def test_gpg_that_goes_away_while_an_agent_runs_is_an_error_of_ours(keys, monkeypatch, tmp_path):
    host = HostKey.load(keys[0].home)
    monkeypatch.setitem(host._gpg.env, "PATH", str(tmp_path))
    with pytest.raises(NoGpgError, match="doesn't run"):
        host.unseal(b"x")


def test_a_human_may_take_long_to_sign(keys, stuck, monkeypatch):
    """The passphrase is typed, or the token touched, in that time."""
    monkeypatch.setattr(openpgp, "GPG_SECONDS", 0.7)
    stuck.write_text('case "$*" in *detach*) sleep 1.5;; esac')
    assert keys[1].sign(b"data")


def test_no_timer_is_left_behind(keys):
    before = threading.active_count()
    keys[3].states()
    eventually(lambda: threading.active_count() <= before)


def test_a_key_that_can_not_be_made_says_why(stuck, tmp_path):
    stuck.write_text('case "$*" in *gen-key*) exit 2;; esac')
    with pytest.raises(KeyUnusableError, match="not made"):
        OperatorKey.make(tmp_path / "home", "carol", passphrase=False)


@pytest.mark.parametrize("stream", ["stdin", "stderr"])
def test_a_passphrase_is_asked_for_at_the_terminal(stream):
    """GnuPG looks for the terminal at its standard input, which is a pipe; few set GPG_TTY."""
    ours, terminal = pty.openpty()

    def tariq(*words, **streams):
        plain = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        env = {name: value for name, value in os.environ.items() if name != "GPG_TTY"}
        return subprocess.run(
            [sys.executable, "-m", "tariq", "key", *words, "--gnupg-home", home],
            **{**plain, **streams},
            env=env,
            check=False,
            text=True,
            timeout=60,
        )

    with scratch() as base:
        home = base / "home"
        pinentry.types_for(home)
        try:
            made = tariq("new", "alice", **{stream: terminal})
            assert made.returncode == 0, made.stderr
            subprocess.run(["gpgconf", "--homedir", home, "--reload", "gpg-agent"], check=True)
            locked = tariq("unlock")
            assert locked.returncode != 0, "nobody can be asked"
            assert "unlock it with 'tariq key unlock'" in locked.stderr
            asked = tariq("unlock", **{stream: terminal})
            assert asked.returncode == 0, asked.stderr
            remembered = tariq("unlock")
            assert remembered.returncode == 0, remembered.stderr
        finally:
            os.close(ours)
            os.close(terminal)
            openpgp.stop_agent(home)
