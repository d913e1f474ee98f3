"""A client behind a router that masquerades, and drops whatever conntrack calls invalid."""

import json

import pytest
from lab import Namespace, eventually

OUTSIDE = {4: "10.77.0.5", 6: "fd77::5"}
RULES = """
table inet nat {
  chain out { type nat hook postrouting priority srcnat; oifname "eth0" masquerade; }
  chain through { type filter hook forward priority filter; ct state invalid counter drop; }
}
"""


@pytest.fixture(scope="module")
def router(world):
    node = Namespace(f"{world.net.tag}r")
    try:
        peer = ("type", "veth", "peer", "name", "pr", "netns", world.net.switch.name)
        node.ip("link", "add", "eth0", *peer)
        world.net.switch.ip("link", "set", "pr", "master", "br0", "up")
        for address in (f"{OUTSIDE[4]}/24", f"{OUTSIDE[6]}/64"):
            node.ip("addr", "add", address, "dev", "eth0", "nodad")
        node.ip("link", "set", "eth0", "up")
        for setting in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
            node.run("sysctl", "-qw", f"{setting}=1")
        node.run("nft", "-f", "-", input=RULES)
        yield node
    finally:
        node.delete()


@pytest.fixture(scope="module")
def inside(world, router):
    """A machine that the host knows nothing of but the router's address."""
    node = Namespace(f"{world.net.tag}i")
    try:
        node.ip("link", "add", "eth0", "type", "veth", "peer", "name", "in", "netns", router.name)
        for last, here, card in (("2", node, "eth0"), ("1", router, "in")):
            for address in (f"10.79.0.{last}/24", f"fd79::{last}/64"):
                here.ip("addr", "add", address, "dev", card, "nodad")
            here.ip("link", "set", card, "up")
        node.ip("route", "add", "default", "via", "10.79.0.1")
        node.ip("-6", "route", "add", "default", "via", "fd79::1")
        yield node
    finally:
        node.delete()


@pytest.mark.parametrize("version", [4, 6])
def test_a_client_behind_address_translation_gets_in(world, router, inside, version):
    def reachable(node) -> bool:
        return world.reachable(version, node=node)

    assert not reachable(inside)
    told = world.knock(f"-{version}", "--for", "60s", "--json", node=inside).stdout
    [outcome] = json.loads(told)
    assert outcome["receipt"]["seen"] == OUTSIDE[version]
    assert eventually(lambda: reachable(inside))
    assert not reachable(world.net.client), "nobody else"
    assert reachable(router), "whoever shares the address shares the lease: SECURITY.md accepts it"
    world.knock(f"-{version}", verb="close", node=inside)
    assert not reachable(inside)


@pytest.mark.parametrize("version", [4, 6])
def test_an_own_address_that_the_host_does_not_see_is_told_and_opens_nothing(
    world, inside, version
):
    source = "10.79.0.2" if version == 4 else "fd79::2"
    for named in ("auto", source):
        done = world.knock(f"-{version}", "--source", named, "--json", node=inside, check=False)
        [outcome] = json.loads(done.stdout)
        assert (done.returncode, outcome["receipt"]["code"]) == (1, "address")
        assert outcome["receipt"]["seen"] == OUTSIDE[version]
    assert not world.reachable(version, node=inside)
    assert not world.reachable(version, node=world.net.client)
