"""The hostile corpus through real kernels: to a whole agent, and to a whole client.

``tests/hostile`` shows the layer of every refusal with the clock of each file. Here the
attackers hold the host's card and give what they made a fresh proof; times, addresses and
replays have their tests in ``test_meaning.py`` and ``test_silence.py``.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import json
import re
import selectors
import shutil
import socket
import threading
import time

import pytest
import yaml
from hostile import corpus, readers
from lab import (
    NOBODY,
    PATIENCE,
    PORT,
    AgentHost,
    Network,
    Operator,
    Recorder,
    Server,
    eventually,
    scratch,
)

from tariq import openpgp
from tariq.agent import sentry

FITS = 1460
"""Bytes of payload in one Ethernet frame."""
CROWD = ipaddress.ip_network("10.77.8.0/21")
"""Addresses of the stranger's, one per attack, so that the log tells them apart."""
NOT_HERE = ("yes", "time", "address", "ledger")


class Target:
    """A whole agent with the keys of the corpus, and a crowd of strangers around it."""

    def __init__(self, base, python) -> None:
        self.net = Network()
        self.host = AgentHost(base, self.net.host, python)
        self.host.close()
        shutil.rmtree(self.host.state / "gnupg")
        readers.import_secret(self.host.state / "gnupg", "host")
        openpgp.stop_agent(self.host.state / "gnupg")
        (self.host.etc / "knock.key").write_bytes(base64.b64encode(corpus.KNOCK_KEY))
        for asc in (corpus.KEYS / "operators").glob("*.asc"):
            shutil.copy(asc, self.host.etc / "operators")
        self.host.policy = readers.policy()
        self.net.stranger.ip("route", "add", "local", str(CROWD), "dev", "lo")
        self.net.host.ip("route", "add", str(CROWD), "via", self.net.V4["stranger"])
        shown = json.loads(self.net.host.run("ip", "-j", "link", "show", "eth0").stdout)
        self.mac = bytes.fromhex(shown[0]["address"].replace(":", ""))
        self.out = self.net.stranger.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
        self.server = Server(self.net.host, 22)
        self.bob = readers.bob(base / "bob")
        self.knocks = readers.good_knocks(self.bob)

    def send(self, packet: bytes) -> None:
        ethertype = 0x86DD if packet[0] >> 4 == 6 else 0x0800
        self.out.sendto(packet, ("eth0", ethertype, 0, 0, self.mac))

    def open(self) -> bool:
        return self.net.client.connects(self.net.V4["host"], 22)

    def serves(self) -> None:
        """See that a good knock opens ssh, once what was sent before it was looked at."""
        assert not self.open()
        assert self.net.client.exchange(self.net.V4["host"], next(self.knocks), seconds=60)
        assert self.open()
        self.net.host.run("nft", "flush", "set", "inet", "tariq", "leases4")
        assert not self.open()

    def close(self) -> None:
        self.out.close()
        self.server.close()
        self.host.close()
        openpgp.stop_agent(self.bob.home)
        self.net.delete()


@pytest.fixture(scope="module")
def target(python):
    with scratch() as base:
        made = Target(base, python)
        made.base = base
        try:
            yield made
        finally:
            made.close()


def test_no_attack_gets_an_answer_and_the_agent_serves_on(target):
    """All that fit a packet, each from an address of its own, with good knocks in between.

    The sentry's bucket lets so many with a good proof in at once, and the agent is started
    again when it is empty: each attack is really looked at, and the log shows where the
    warden refused.
    """
    target.host.start()
    onlooker = Recorder(target.net.stranger)
    target.serves()
    sent, proven = {}, 1
    for source, attack in zip(CROWD.hosts(), corpus.every("agent").values(), strict=False):
        payload = attack.stamped(time.time()) if attack.form == "payload" else b""
        if attack.layer in NOT_HERE or len(payload) > FITS:
            continue
        if attack.proof == "good" and proven >= sentry.BURST - 2:
            target.serves()
            target.host.stop()
            target.host.start()
            proven = 0
        proven += attack.proof == "good"
        target.send(attack.body if not payload else readers.around(payload, str(source)))
        sent[str(source)] = attack
    target.serves()
    assert len(sent) > 200
    deep = {s: each for s, each in sent.items() if each.layer not in (*corpus.SENTRYS, "frame")}
    assert len(deep) > 80
    told = eventually(lambda: _all_told(target, deep), every=0.3)
    wrong = {each.name: told[s] for s, each in deep.items() if told[s] != each.layer}
    assert wrong == {}
    assert set(told) == set(deep), "the warden heard of nobody whom the sentry refused"
    assert "frame: cut short" in target.host.log.read_text()
    assert "Traceback" not in target.host.log.read_text()
    assert [each for each in onlooker.segments(0.5) if each.src == target.net.V4["host"]] == []

    last = CROWD[2000]
    target.send(readers.around(next(target.knocks), str(last)))
    answers = eventually(lambda: [s.dst for s in onlooker.segments(0.2) if s.sport == PORT])
    assert str(last) in answers, "the control: an answer to the crowd would have been seen"
    onlooker.close()
    target.serves()


def _all_told(target, deep):
    log = target.host.log.read_text()
    told = dict(re.findall(r"silence for (10\.77\.[\d.]+): (\w+): ", log))
    return told if set(deep) <= set(told) else None


class LyingHosts:
    """One port for each hostile answer; whoever connects and sends anything gets it."""

    def __init__(self, node, answers) -> None:
        self.selector = selectors.DefaultSelector()
        self.ports = {}
        self.stopping = False
        for number, answer in enumerate(answers):
            sock = node.socket(socket.AF_INET)
            sock.bind(("0.0.0.0", PORT + 1 + number))
            sock.listen(8)
            self.selector.register(sock, selectors.EVENT_READ, answer)
            self.ports[answer.name] = PORT + 1 + number
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while not self.stopping:
            for key, _ in self.selector.select(0.2):
                conn, _ = key.fileobj.accept()
                threading.Thread(target=self._lie, args=(conn, key.data), daemon=True).start()

    @staticmethod
    def _lie(conn, answer) -> None:
        with conn, contextlib.suppress(OSError):
            conn.settimeout(PATIENCE)
            conn.recv(4096)
            conn.sendall(answer.stamped(time.time()))

    def close(self) -> None:
        self.stopping = True
        self.thread.join(5)
        for key in list(self.selector.get_map().values()):
            key.fileobj.close()
        self.selector.close()


CLIENT = f"""
import sys, types
from tariq import message
from tariq.client import knock
from tariq.cli import main

knock.SECONDS_PER_TRY = 6.0
message.secrets = types.SimpleNamespace(token_bytes=lambda _: {corpus.REQUEST_ID!r})
sys.exit(main())
"""
"""The client as it is, but that its request has the id which the corpus answers."""


def test_no_answer_fools_or_upsets_the_client(target, python):
    """One knock at a group of hosts that all lie, each in its own way, but for one."""
    answers = corpus.every("client")
    cards = target.base / "cards"
    cards.mkdir()
    hosts = LyingHosts(target.net.stranger, answers.values())
    alice = Operator(target.base, "alice", python)
    script = target.base / "client.py"
    script.write_text(CLIENT)
    for name, port in hosts.ports.items():
        card = {
            **target.host.card(),
            "name": name,
            "port": port,
            "addresses": [target.net.V4["stranger"]],
        }
        (cards / f"{name}.yml").write_text(yaml.safe_dump(card))
    try:
        words = ["knock", *answers, "--cards", str(cards), "--for", "1s", "--json", "--open", "ssh"]
        told = target.net.client.run(
            *(python, str(script), *words),
            user=NOBODY,
            env={**alice.env, "TARIQ_GNUPGHOME": str(alice.gnupg)},
            cwd="/",
            check=False,
            timeout=150,
        )
    finally:
        hosts.close()
        alice.close()
    assert told.returncode == 1, told.stderr
    assert "Traceback" not in told.stderr
    assert "\x1b" not in told.stdout + told.stderr
    endings = {each["host"]: each["ending"] for each in json.loads(told.stdout)}
    assert endings.pop("good") == "yes"
    assert {name: ending for name, ending in endings.items() if ending != "forged"} == {}
    assert len(endings) == len(answers) - 1
