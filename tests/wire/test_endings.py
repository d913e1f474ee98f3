"""A host that says yes is told from one that is down, silent, refusing or lying."""

import contextlib
import json

import pytest
from lab import PORT, AgentHost, Server

LIAR = """
import sys
from tariq import openpgp
from tariq.cli import main

honest, load = openpgp.HostKey.seal_receipt, openpgp.HostKey.load.__func__
others = {}

def loading(cls, home, *more):
    mine = load(cls, home, *more)
    args = "Key-Type: eddsa\\nKey-Curve: ed25519\\nName-Real: liar\\n%no-protection\\n%commit\\n"
    others[mine.home] = openpgp.HostKey(mine.home, mine._gpg.gen_key(args).fingerprint, mine._gpg)
    return mine

openpgp.HostKey.load = classmethod(loading)
openpgp.HostKey.seal_receipt = lambda self, *what: honest(others[self.home], *what)
sys.exit(main())
"""


@pytest.fixture(scope="module")
def hosts(world):
    """web1 says yes; the others each fail in their own way, at addresses of their own."""
    net = world.net
    for address in ("10.77.0.21", "10.77.0.22"):
        net.stranger.ip("addr", "add", f"{address}/24", "dev", "eth0")
    net.stranger.run(
        "nft",
        "add table inet mute; add chain inet mute in "
        "{ type filter hook input priority 0; }; add rule inet mute in "
        f"ip daddr 10.77.0.21 tcp dport {PORT} drop",
    )
    liar = AgentHost(world.base, net.stranger, world.python, name="liar")
    script = world.base / "liar.py"
    script.write_text(LIAR)
    liar.trust(world.alice)
    made = [
        world.host.write_card(world.cards, ["10.77.0.99"], name="down"),
        world.host.write_card(world.cards, ["10.77.0.21"], name="mute"),
        world.host.write_card(world.cards, ["10.77.0.22"], name="bare"),
    ]
    yield liar, script, made
    liar.close()
    net.stranger.run("nft", "flush", "ruleset")
    for address in ("10.77.0.21", "10.77.0.22"):
        net.stranger.ip("addr", "del", f"{address}/24", "dev", "eth0")
    for card in made:
        card.unlink(missing_ok=True)


def test_each_host_gets_its_own_ending(world, hosts):
    told = world.knock("--for", "1s", "--json", "down", "mute", "bare", check=False)
    assert told.returncode == 1
    endings = {each["host"]: each for each in json.loads(told.stdout)}
    assert endings["web1"]["ending"] == "yes"
    assert endings["mute"]["ending"] == "silent"
    assert endings["bare"]["ending"] == "refused"
    assert endings["down"]["ending"] in ("silent", "unreachable")
    for host in ("down", "mute", "bare"):
        assert not endings[host]["ok"]
        assert endings[host]["reason"]
        assert "receipt" not in endings[host]
    assert "1 of 4 hosts said yes" in told.stderr


def test_a_receipt_signed_by_another_key_is_a_lie(world, hosts):
    """The liar can read the request and knows its id; what it can't do is sign as the card says."""
    liar, script, cards = hosts
    liar.write_policy()
    cards.append(liar.write_card(world.cards, [world.net.V4["stranger"]]))
    liar.start((str(script),))
    try:
        told = world.knock("--json", "--for", "1s", host="liar", check=False)
    finally:
        liar.stop()
        liar.unguard()
    assert told.returncode == 1
    [outcome] = json.loads(told.stdout)
    assert outcome["ending"] == "forged"
    assert "receipt" not in outcome


class Junk(Server):
    """Somebody else's box at the address."""

    @staticmethod
    def _greet(conn) -> None:
        with conn, contextlib.suppress(OSError):
            conn.recv(4096)
            conn.sendall(b"junk")


def test_a_host_that_answers_without_the_knock_key_is_a_lie(world, hosts):
    server = Junk(world.net.stranger, PORT)
    try:
        card = world.host.write_card(world.cards, ["10.77.0.22"], name="junk")
        told = world.knock("--json", "--for", "1s", host="junk", check=False)
        card.unlink()
    finally:
        server.close()
    assert told.returncode == 1
    assert json.loads(told.stdout)[0]["ending"] == "forged"
