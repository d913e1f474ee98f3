"""A good knock opens one service, for one address, for its time."""

import json
import socket
import time

import galaxy
import pytest
import yaml
from lab import PATIENCE, PORT, eventually, run

BOTH = pytest.mark.parametrize("version", [4, 6])


@BOTH
@pytest.mark.parametrize("transport", ["fastopen", "scapy"])
def test_a_port_opens_for_its_lease_and_closes_after_it(world, version, transport):
    user = "nobody" if transport == "fastopen" else None
    assert not world.reachable(version)
    told = world.knock(f"-{version}", "--for", "8s", "--transport", transport, user=user)
    assert "opened" in told.stdout
    assert world.reachable(version)
    assert not world.reachable(version, node=world.net.stranger), "only for the knocker"
    assert not world.reachable(version, port=443), "only the service asked for"
    assert not world.reachable(10 - version), "only for the address seen"
    eventually(lambda: not world.reachable(version))


@BOTH
def test_a_connection_outlives_its_lease(world, version):
    world.knock(f"-{version}", "--for", "6s")
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    with world.net.client.socket(family) as sock:
        sock.settimeout(PATIENCE)
        sock.connect((world.address(version), 22))
        assert sock.recv(16) == b"hello\n"
        eventually(lambda: not world.reachable(version))
        sock.sendall(b"still here")
        assert sock.recv(16) == b"still here"


def test_a_receipt_tells_what_the_host_did(world):
    told = json.loads(world.knock("--for", "30s", "--open", "ssh,web", "--json", "-4").stdout)
    [outcome] = told
    assert outcome["ok"] is True
    assert outcome["address"] == world.net.V4["host"]
    receipt = outcome["receipt"]
    assert receipt["code"] == "opened"
    assert receipt["seen"] == world.net.V4["client"]
    assert receipt["policy"] == 7
    assert set(receipt["leases"]) == {"ssh", "web"}
    assert all(20 < until - receipt["t"] <= 30 for until in receipt["leases"].values())
    assert world.reachable(4, 22)
    assert world.reachable(4, 443)
    world.knock("--service", "ssh,web", "-4", verb="close")
    assert not world.reachable(4, 22)
    assert not world.reachable(4, 443)


def test_close_ends_a_lease_at_once_and_status_tells_of_it(world):
    world.knock("--for", "60s", "-4")
    assert "ssh until" in world.knock("-4", verb="status").stdout
    assert "closed" in world.knock("-4", verb="close").stdout
    assert not world.reachable(4)
    assert "nothing open" in world.knock("-4", verb="status").stdout


def test_knocking_again_prolongs_a_lease(world):
    world.knock("--for", "2s", "-4")
    world.knock("--for", "60s", "-4")
    time.sleep(2.5)
    assert world.reachable(4)
    world.knock("-4", verb="close")


def test_a_host_caps_what_is_asked_for(world):
    told = json.loads(world.knock("--for", "1d", "-4", "--json").stdout)
    assert 50 < told[0]["receipt"]["leases"]["ssh"] - told[0]["receipt"]["t"] <= 60
    world.knock("-4", verb="close")


def test_a_service_that_the_host_does_not_know_is_a_signed_no(world):
    told = world.knock("--open", "gopher", "-4", check=False)
    assert told.returncode == 1
    assert "no service 'gopher' here" in told.stdout


def test_the_named_source_address_must_be_the_one_seen(world):
    told = world.knock("--source", "10.77.0.3", "-4", check=False)
    assert told.returncode == 1
    assert "address" in told.stdout
    assert not world.reachable(4)
    assert world.knock("--source", world.net.V4["client"], "--for", "1s", "-4").returncode == 0


def test_other_traffic_is_none_of_its_business(world):
    assert world.net.client.connects(world.address(4), 8080)
    assert world.net.stranger.connects(world.address(6), 8080)


def test_two_clients_each_get_their_own(world):
    first = world.knock("--for", "60s", "-4")
    second = world.knock("--for", "60s", "-4", node=world.net.stranger)
    assert "10.77.0.2" in first.stdout
    assert "10.77.0.3" in second.stdout
    assert world.reachable(4, node=world.net.stranger)
    world.knock("-4", verb="close", node=world.net.stranger)
    assert world.reachable(4), "closing is for one's own lease"
    world.knock("-4", verb="close")


def test_a_one_host_knock_loads_none_of_the_heavy_packages(world):
    """Scapy, ansible, OpenCV and rich cost more than the whole knock."""
    code = (
        "import sys, tariq.cli, tariq.client.knock;"
        "tariq.client.knock.SECONDS_PER_TRY = 6.0;"
        "status = tariq.cli.main(['knock', 'web1', '--for', '1s', '-4', '--cards',"
        f" {str(world.cards)!r}]);"
        "heavy = {'scapy', 'ansible', 'cv2', 'numpy', 'rich'} & set(sys.modules);"
        "print('heavy:', sorted(heavy)); sys.exit(status)"
    )
    command = world.net.client.command(world.python, "-c", code, user="nobody")
    env = {**world.alice.env, "TARIQ_GNUPGHOME": str(world.alice.gnupg)}
    told = run(*command, env=env, cwd="/")
    assert "opened" in told.stdout
    assert "heavy: []" in told.stdout


def test_a_vaulted_card_opens_the_host_as_its_plain_one_does(world):
    """And nothing that the client says has the card's secret in it, nor the password."""
    card = world.host.write_card(world.cards, [world.net.V4["host"]], name="vaulted")
    secret = yaml.safe_load(card.read_text())["knock_key"]
    password = world.base / "password"
    password.write_text("open sesame\n")
    password.chmod(0o644)
    galaxy.run("vault", "encrypt", "--vault-password-file", password, card)
    card.chmod(0o644)
    assert secret not in card.read_text()
    try:
        shut = world.knock(host="vaulted", check=False)
        assert shut.returncode == 5
        named = {"ANSIBLE_VAULT_PASSWORD_FILE": str(password)}
        told = world.knock("--for", "1s", "--json", host="vaulted", env=named)
        assert '"code": "opened"' in told.stdout
        said = shut.stdout + shut.stderr + told.stdout + told.stderr
        assert secret not in said
        assert "sesame" not in said
    finally:
        card.unlink()


def test_the_client_waits_no_longer_than_its_tries(world):
    """Three tries of 0.7 s towards a port where nobody answers."""
    card = world.host.write_card(world.cards, [world.net.V4["host"]], name="quiet", port=PORT + 1)
    world.net.host.run(
        "nft",
        "add table inet mute; add chain inet mute in "
        "{ type filter hook input priority 0; }; add rule inet mute in "
        f"tcp dport {PORT + 1} drop",
    )
    try:
        started = time.monotonic()
        told = world.knock(host="quiet", check=False, patient=False)
        assert told.returncode == 1
        assert "silent" in told.stdout
        assert time.monotonic() - started < 15
    finally:
        world.net.host.run("nft", "delete", "table", "inet", "mute")
        card.unlink()
