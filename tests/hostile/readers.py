"""Who reads the corpus: an agent and a client, in this process, each with a clock of its own."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self
from unittest import mock

import yaml
from hostile import corpus, pgp
from hostile.corpus import CLOCK, KEYS, KNOCK_KEY, PORT, Attack
from scapy.layers.inet import IP, TCP
from scapy.packet import Raw

from tariq import openpgp, picture
from tariq.agent import policy_file
from tariq.agent import sentry as sentries
from tariq.agent.ledger import Ledger
from tariq.agent.link import Knock, Setup
from tariq.agent.warden import Warden
from tariq.client import knock as client_knock
from tariq.client.card import Card
from tariq.errors import MessageError
from tariq.message import Action, Batch, Bundle, Code, Receipt, Request, to_b64
from tariq.picture import Direction
from tariq.transport import wire

SOURCE, HOST = "10.77.0.2", "10.77.0.1"
CODES = {Code.OPENED: "yes", Code.SKEW: "time", Code.ADDRESS: "address"}
"""Refusals that are a signed receipt, because an operator's key is known to have asked."""


def import_secret(home: Path, name: str) -> None:
    pgp.gpg(openpgp.private_dir(home), "--import", data=(KEYS / f"{name}.secret.asc").read_bytes())


def around(payload: bytes, source: str = SOURCE, sport: int = 40_000) -> bytes:
    """Return an IPv4 SYN with a payload, as bytes."""
    return bytes(IP(src=source, dst=HOST) / TCP(sport=sport, dport=PORT, flags="S") / Raw(payload))


class Link:
    """The sentry's end of the link, which keeps what it was given."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def send(self, frame: bytes, _: int = 0) -> int:
        self.frames.append(frame)
        return len(frame)


class Words(logging.Handler):
    """Keeps what the warden says in its log."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Agent:
    """A sentry and a warden with the corpus' keys; only link and firewall are stand-ins.

    The wire test has the same corpus against a whole agent and a kernel's firewall.
    """

    def __init__(self, base: Path) -> None:
        self.base, self.now = openpgp.private_dir(base), float(CLOCK)
        import_secret(base / "host", "host")
        self.host_key = openpgp.HostKey.load(base / "host")
        operators = openpgp.OperatorRing(base / "ring", sorted((KEYS / "operators").glob("*.asc")))
        self.link, self.words, self.firewall = Link(), Words(), mock.MagicMock()
        logging.getLogger("tariq.warden").addHandler(self.words)
        logging.getLogger("tariq.warden").setLevel(logging.INFO)
        self.sentry = sentries.Sentry(
            Setup(PORT, KNOCK_KEY.hex()), self.link, mock.MagicMock(), clock=self.clock
        )
        self.sentry._bucket = sentries.Bucket(1e6, 1e6, time.monotonic)  # a bucket has its own test
        self.warden = Warden(
            policy=policy_file.load(self.write_policy()),
            host_key=self.host_key,
            operators=operators,
            ledger=Ledger(base / "ledger.db"),
            firewall=self.firewall,
            shelf=mock.MagicMock(),
            clock=self.clock,
        )

    def clock(self) -> float:
        return self.now

    def write_policy(self) -> Path:
        path = self.base / "agent.yml"
        path.write_text(yaml.safe_dump(policy()))
        return path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("tariq.warden").removeHandler(self.words)
        openpgp.stop_agent(self.base / "host")

    def deliver(self, attack: Attack) -> tuple[str, str]:
        """Return the layer that refused it, and the reason; ``yes`` if none did."""
        self.now = attack.clock
        packet = attack.body if attack.form == "packet" else around(attack.body)
        return self.on_packet(packet)

    def on_packet(self, packet: bytes) -> tuple[str, str]:
        before = self.sentry.counts.copy()
        self.link.frames.clear()
        self.sentry.on_packet(packet)
        new = self.sentry.counts - before
        refused = [name.removeprefix("refused at the ") for name in new if "refused" in name]
        if refused:
            return refused[0], self.reason(packet)
        assert self.link.frames, f"neither refused nor passed on: {new}"
        try:
            frame = Knock.decode(self.link.frames[0])
        except MessageError as why:
            return why.thing, why.reason
        return self.on_knock(frame)

    def reason(self, packet: bytes) -> str:
        """Ask the sentry's parts themselves why."""
        try:
            syn = wire.parse(packet)
            picture.unwrap(syn.payload, KNOCK_KEY, Direction.TO_HOST, self.now)
        except MessageError as why:
            return why.reason
        raise AssertionError("the sentry refused what its parts take")

    def on_knock(self, frame: Knock) -> tuple[str, str]:
        self.words.lines.clear()
        replies: list[bytes] = []
        self.warden.answer(frame, replies.append)
        assert len(replies) == 1
        if not replies[0]:
            _, _, told = self.words.lines[-1].partition("silence for ")
            _, layer, reason = told.split(": ", 2)
            return layer, reason
        request = Request.decode(Bundle.decode(self.host_key.unseal(frame.message)).request)
        with openpgp.CardRing() as ring:
            ring.add(self.host_key.fingerprint, self.host_key.export())
            raw = ring.open_receipt(self.host_key.fingerprint, replies[0], to_b64(request.id))
        receipt = Receipt.decode(raw)
        return CODES[receipt.code], receipt.detail


def policy() -> dict:
    """Return the policy of the host of the corpus: what may be signed by whom."""
    named = ("bob", "dave", "revoked", "expired", "unable")
    return {
        "version": 1,
        "serial": 7,
        "host": "web1",
        "port": PORT,
        "sentry_user": "nobody",
        "services": {"ssh": {"protocol": "tcp", "port": 22}},
        "operators": {
            name: {"fingerprint": corpus.fingerprint(name), "services": ["ssh"]} for name in named
        },
    }


def good_knocks(key: openpgp.OperatorKey, clock: float | None = None) -> Iterator[bytes]:
    """Yield the payloads of good knocks for ever, one signature for 64."""
    to = openpgp.short(corpus.fingerprint("host"))
    with openpgp.CardRing() as ring:
        ring.add(corpus.fingerprint("host"), (KEYS / "host.gpg").read_bytes())
        while True:
            now = time.time() if clock is None else clock
            wishes = [
                Request(to=to, do=Action.OPEN, t=int(now), what=("ssh",), seconds=60).encode()
                for _ in range(64)
            ]
            batch = Batch.of(wishes)
            signature = key.sign(batch.to_sign)
            for index in range(64):
                if clock is None and time.time() - now > 20:
                    break  # a host would soon find them too old
                sealed = ring.seal(
                    corpus.fingerprint("host"), batch.bundle(index, signature).encode()
                )
                stamp = time.time() if clock is None else clock
                yield picture.wrap(sealed, KNOCK_KEY, Direction.TO_HOST, stamp)


def bob(home: Path) -> openpgp.OperatorKey:
    import_secret(home, "bob")
    return openpgp.OperatorKey(home, corpus.fingerprint("bob"), "bob")


class Client:
    """The client's own reading of an answer, with the card of the corpus' host."""

    def __init__(self) -> None:
        self.ring = openpgp.CardRing()
        key = (KEYS / "host.gpg").read_bytes()
        self.ring.add(corpus.fingerprint("host"), key)
        self.card = Card(
            name="web1",
            addresses=(HOST,),
            port=PORT,
            transports=("fastopen",),
            fingerprint=corpus.fingerprint("host"),
            public_key=key,
            knock_key=KNOCK_KEY,
            services={"ssh": "tcp/22"},
            policy=7,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.ring.__exit__()

    def read(self, attack: Attack) -> tuple[str, str]:
        """Return the layer that refused it, and the reason; ``yes`` if none did."""
        with mock.patch.object(client_knock.time, "time", lambda: float(attack.clock)):
            try:
                client_knock._open(self.card, corpus.asked(), attack.body, self.ring)
            except MessageError as why:
                return why.thing, why.reason
        return "yes", ""
