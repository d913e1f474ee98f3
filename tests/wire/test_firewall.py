"""Both firewalls, by effect: what a stranger, a client and the host's own rules see of a lease."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest
from lab import FULL, PORT, Namespace, Server, backends_for, eventually, made, short

BOTH = pytest.mark.parametrize("version", [4, 6])
MARK = 0x10
PATIENCE = 5.0
"""Seconds that what is to be open may take; what is to be closed is believed sooner."""
CHAT, METRICS = 4430, 161
INNER, INNER_UDP, INNER_CHAT = 2222, 2161, 4431
MASKED, MASKED_UDP = 2223, 3161
PUBLISHED, PUBLISHED_UDP, PUBLISHED_CHAT = 8443, 8161, 4432
BACK = {4: "10.78.0.2", 6: "fd78::2"}
FRIEND = {4: "10.77.0.66", 6: "fd77::66"}


def forward(port: int) -> list[str]:
    """Return where a service is on the host behind, for ``forward``."""
    return [f"{BACK[4]}:{port}", f"[{BACK[6]}]:{port}"]


SERVICES = {
    "ssh": {"protocol": "tcp", "port": 22},
    "web": {"protocol": "tcp", "port": 443},
    "chat": {"protocol": "tcp", "port": CHAT},
    "metrics": {"protocol": "udp", "port": METRICS},
    "inner": {"protocol": "tcp", "port": INNER, "forward": forward(22)},
    "inner-udp": {"protocol": "udp", "port": INNER_UDP, "forward": forward(METRICS)},
    "inner-chat": {"protocol": "tcp", "port": INNER_CHAT, "forward": forward(INNER_CHAT)},
    "masked": {"protocol": "tcp", "port": MASKED, "forward": forward(22), "masquerade": True},
    "masked-udp": {
        "protocol": "udp",
        "port": MASKED_UDP,
        "forward": forward(METRICS),
        "masquerade": True,
    },
    "four": {"protocol": "tcp", "port": 2224, "forward": "10.78.0.2:22"},
    "published": {"protocol": "tcp", "port": PUBLISHED},
    "published-udp": {"protocol": "udp", "port": PUBLISHED_UDP},
    "published-chat": {"protocol": "tcp", "port": PUBLISHED_CHAT},
}


ESTABLISHED = ("-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT")
LIKE_OURS = ("-m", "comment", "--comment", "TARIQ-LIKE", "-p", "tcp")


def nftables_only(test):
    """Mark what has nothing to show of another backend."""
    test.nftables_only = True
    return test


def iptables_only(test):
    """Mark what nftables has nothing to show of."""
    test.iptables_only = True
    return test


def pytest_generate_tests(metafunc):
    backends = backends_for(metafunc.function)
    if hasattr(metafunc.function, "nftables_only"):
        backends = ["nftables"]
    if hasattr(metafunc.function, "iptables_only"):
        backends = [each for each in FULL if each != "nftables"] or ["iptables-nft"]
    metafunc.parametrize("world", backends, indirect=True, scope="module")


class Echo:
    """A UDP service that sends back what it gets."""

    def __init__(self, node: Namespace, port: int) -> None:
        self.process = subprocess.Popen(
            node.command(
                "/usr/bin/python3",
                "-c",
                "import contextlib, socket\n"
                "s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\n"
                f"s.bind(('::', {port}))\n"
                "while True:\n"
                "  with contextlib.suppress(OSError):\n"  # where there is no way back
                "    s.sendto(*s.recvfrom(2000))\n",
            )
        )

    def close(self) -> None:
        self.process.kill()
        self.process.wait(5)


def behind(net) -> Namespace:
    """Make a namespace that is reached through the host only, as a container is."""
    node = Namespace(f"{net.host.name}back")
    net.host.ip("link", "add", "eth1", "type", "veth", "peer", "name", "eth0", "netns", node.name)
    net.host.ip("addr", "add", "10.78.0.1/24", "dev", "eth1")
    net.host.ip("addr", "add", "fd78::1/64", "dev", "eth1", "nodad")
    net.host.ip("link", "set", "eth1", "up")
    node.ip("addr", "add", f"{BACK[4]}/24", "dev", "eth0")
    node.ip("addr", "add", f"{BACK[6]}/64", "dev", "eth0", "nodad")
    node.ip("link", "set", "eth0", "up")
    routes(node, "add")
    for setting in ("ipv4.ip_forward", "ipv6.conf.all.forwarding"):
        net.host.run("sysctl", "-qw", f"net.{setting}=1")
    for version, bits in ((4, 24), (6, 64)):
        # used only where a socket is bound to it
        unused = ["nodad", "preferred_lft", "0"] if version == 6 else []
        net.stranger.ip("addr", "add", f"{FRIEND[version]}/{bits}", "dev", "eth0", *unused)
    return node


def routes(node: Namespace, verb: str) -> None:
    node.ip("-4", "route", verb, "default", "via", "10.78.0.1")
    node.ip("-6", "route", verb, "default", "via", "fd78::1")


@pytest.fixture(scope="module")
def world(request, python):
    """The usual world, guarded by one backend, with a host behind it."""
    with contextlib.ExitStack() as stack:

        def prepare(net):
            node = behind(net)
            stack.callback(node.delete)
            stack.callback(Server(node, 22).close)
            for where in (net.host, node):
                stack.callback(Echo(where, METRICS).close)
            net.back = node

        networks = [f"{address}/{32 if v == 4 else 128}" for v, address in FRIEND.items()]
        policy = {
            "services": SERVICES,
            "firewall": request.param,
            "mark": MARK,
            "break_glass": networks,
        }
        world = stack.enter_context(made(python, prepare, **policy))
        world.backend = request.param
        yield world


def tables(world, version: int) -> str:
    """Return the iptables program of the backend, or that of a host with nftables."""
    program = "iptables-nft" if world.backend == "nftables" else world.backend
    return program if version == 4 else program.replace("ip", "ip6", 1)


@pytest.fixture(autouse=True)
def closed(world):
    """Every test begins without leases: those of an earlier one would be its own."""
    yield
    for version in (4, 6):
        told = world.knock(f"-{version}", "--json", verb="status", check=False).stdout
        receipt = json.loads(told)[0].get("receipt") or {}
        if names := ",".join(receipt.get("leases", ())):
            world.knock(f"-{version}", "--service", names, verb="close")


def reached(world, version: int = 4, port: int = 22, node=None) -> bool:
    """Tell as ``World.reachable`` does, for what is to be open."""
    return (node or world.net.client).connects(world.address(version), port, PATIENCE)


def answered(
    world, version: int, port: int = METRICS, *, node=None, sock=None, seconds: float = PATIENCE
) -> bool:
    """Tell whether a UDP service answers."""
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    with contextlib.ExitStack() as stack:
        if sock is None:
            node = node or world.net.client
            sock = stack.enter_context(node.socket(family, socket.SOCK_DGRAM))
        sock.settimeout(seconds)
        sock.sendto(b"hello", (world.address(version), port))
        try:
            return sock.recv(64) == b"hello"
        except TimeoutError:
            return False


def silent(world, version: int, port: int = METRICS, **how) -> bool:
    """Tell whether a UDP service that is to be closed keeps silent."""
    return not answered(world, version, port, seconds=0.6, **how)


def expires(world, version: int, tcp: tuple[str, int], udp: tuple[str, int]) -> None:
    """Shorten two leases, and wait for their end."""
    world.knock(f"-{version}", "--open", f"{tcp[0]},{udp[0]}", "--for", "1s")
    eventually(lambda: not world.reachable(version, tcp[1]), 10)
    eventually(lambda: silent(world, version, udp[1]), 10)


# --- leases -----------------------------------------------------------------------------


@BOTH
@short
def test_a_lease_opens_tcp_and_udp_for_its_time(world, version):
    assert not world.reachable(version)
    assert silent(world, version)
    world.knock(f"-{version}", "--open", "ssh,metrics", "--for", "60s")
    assert reached(world, version)
    assert answered(world, version)
    assert not world.reachable(version, node=world.net.stranger), "only for the knocker"
    assert silent(world, version, node=world.net.stranger)
    assert not world.reachable(version, 443), "only what was asked for"
    assert reached(world, version, 8080), "what isn't guarded is left alone"
    expires(world, version, ("ssh", 22), ("metrics", METRICS))


@short
def test_knocking_again_extends_one_lease(world):
    world.knock("-4", "--for", "3s")
    first = time.monotonic()
    world.knock("-4", "--for", "1d")
    [told] = json.loads(world.knock("-4", "--json", verb="status").stdout)
    assert set(told["receipt"]["leases"]) == {"ssh"}
    left = told["receipt"]["leases"]["ssh"] - told["receipt"]["t"]
    assert 40 < left <= 60, "the policy's longest"
    assert len(elements(world)) == 1
    time.sleep(max(0.0, first + 3.5 - time.monotonic()))
    assert reached(world)


def elements(world) -> list[str]:
    """Return the elements of the sets of leases, as the system's own tools show them."""
    if world.backend == "nftables":
        listed = world.net.host.run("nft", "list", "set", "inet", "tariq", "leases4").stdout
        return re.findall(r"10\.77\.0\.2 \. tcp \. \d+ timeout", listed)
    saved = world.net.host.run("ipset", "save", "tariq-leases4").stdout
    return [line for line in saved.splitlines() if line.startswith("add ")]


def test_close_ends_a_lease_at_once(world):
    world.knock("-4", "--for", "60s")
    assert "ssh until" in world.knock("-4", verb="status").stdout
    assert "closed" in world.knock("-4", verb="close").stdout
    assert not world.reachable(4)
    assert "nothing open" in world.knock("-4", verb="status").stdout


# --- cutting -----------------------------------------------------------------------------


class Chatty:
    """One connection from the client to a server that also speaks by itself."""

    def __init__(self, world, version: int, port: int, where: Namespace) -> None:
        family = socket.AF_INET6 if version == 6 else socket.AF_INET
        self.listener = where.socket(family)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(("", port))
        self.listener.listen(1)
        self.listener.settimeout(PATIENCE)
        self.client = world.net.client.socket(family)
        self.client.settimeout(PATIENCE)
        self.client.connect((world.address(version), port))
        self.server, _ = self.listener.accept()

    def reaches(self, text: bytes, seconds: float = PATIENCE) -> bool:
        """Tell whether the server gets what the client says, after saying something itself."""
        self.server.settimeout(seconds)
        with contextlib.suppress(OSError):
            self.server.sendall(b"anybody there?")
            time.sleep(0.1)
            self.client.sendall(text)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if text in self.server.recv(4096):
                    return True
            except OSError:
                return False
        return False

    def close(self) -> None:
        for sock in (self.client, self.server, self.listener):
            sock.close()


def cut(world, version: int, service: str, where: Namespace) -> None:
    """Cut a living connection, and see that it is dead for good."""
    port = SERVICES[service]["port"]
    world.knock(f"-{version}", "--open", service, "--for", "60s")
    with contextlib.closing(Chatty(world, version, port, where)) as line:
        assert line.reaches(b"one")
        world.knock(f"-{version}", "--service", service, verb="close")
        assert line.reaches(b"two"), "a connection outlives its lease"
        told = world.knock(f"-{version}", "--service", service, "--cut", verb="close")
        assert "connections cut" in told.stdout
        assert not line.reaches(b"three", 1)
        assert not line.reaches(b"four", 2), "not even where the server speaks first"
        world.knock(f"-{version}", "--open", service, "--for", "60s")
        assert not line.reaches(b"five", 2), "nor under a new lease"
        with world.net.client.socket(line.client.family) as another:
            another.settimeout(PATIENCE)
            another.connect((world.address(version), port))  # which is for new connections


def cut_udp(world, version: int, service: str) -> None:
    port = SERVICES[service]["port"]
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    world.knock(f"-{version}", "--open", service, "--for", "60s")
    with world.net.client.socket(family, socket.SOCK_DGRAM) as sock:
        assert answered(world, version, port, sock=sock)
        world.knock(f"-{version}", "--service", service, verb="close")
        assert answered(world, version, port, sock=sock), "an exchange outlives its lease"
        world.knock(f"-{version}", "--service", service, "--cut", verb="close")
        assert silent(world, version, port, sock=sock)


@BOTH
@short
def test_cut_ends_living_connections_for_good(world, version):
    cut(world, version, "chat", world.net.host)


@BOTH
def test_cut_ends_udp_too(world, version):
    cut_udp(world, version, "metrics")


@BOTH
def test_cut_ends_what_is_passed_on(world, version):
    cut(world, version, "inner-chat", world.net.back)
    cut_udp(world, version, "inner-udp")


@BOTH
def test_cut_ends_what_docker_passes_on(world, version):
    with docker(world, version):
        cut(world, version, "published-chat", world.net.back)
        cut_udp(world, version, "published-udp")


# --- living with others ---------------------------------------------------------------------


def everything_else(world) -> dict[str, list[str]]:
    """Return all rules and sets of the host that aren't Tariq's, in their order."""
    run = world.net.host.run
    found = {}
    for program in ("iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy"):
        lines = run(f"{program}-save").stdout.splitlines()
        kept = [re.sub(r" \[.*", "", line) for line in lines if not line.startswith("#")]
        found[program] = [line for line in kept if not ours(line)]
    items = json.loads(run("nft", "-j", "list", "ruleset").stdout)["nftables"]
    found["nft"] = [re.sub(COUNTED, "", text) for text in map(json.dumps, items) if not ours(text)]
    found["ipset"] = [line for line in run("ipset", "save").stdout.splitlines() if not ours(line)]
    return found


COUNTED = r'"(handle|packets|bytes)": \d+'


def ours(text: str) -> bool:
    """Tell whether a rule or set, as some program prints it, is Tariq's."""
    names = ("TARIQ-", "tariq-", '"table": "tariq"', '"family": "inet", "name": "tariq"')
    return any(name in text.replace("TARIQ-LIKE", "") for name in names)


def traces(world) -> str:
    run = world.net.host.run
    listed = [run("nft", "list", "ruleset"), run("ipset", "save")]
    listed += [run(f"{ip}tables-{kind}-save") for ip in ("ip", "ip6") for kind in ("nft", "legacy")]
    lines = "".join(each.stdout for each in listed).splitlines()
    return "\n".join(line for line in lines if "tariq" in line.lower() and "TARIQ-LIKE" not in line)


@short
def test_the_rest_of_the_ruleset_is_left_as_it_was(world):
    run = world.net.host.run
    world.host.stop()
    world.host.unguard()
    assert traces(world) == ""
    run("nft", "add table inet mine; add chain inet mine in { type filter hook input priority 0; };"
        "add rule inet mine in tcp dport 8080 accept comment mine")  # fmt: skip
    run("ipset", "create", "mine", "hash:ip")
    run("ipset", "add", "mine", "192.0.2.1")
    for program in (tables(world, 4), tables(world, 6)):
        for table, chain in (("raw", "PREROUTING"), ("mangle", "PREROUTING"), ("filter", "INPUT")):
            for port in ("9", "8"):  # their order is theirs, too
                words = [*LIKE_OURS, "--dport", port, "-j", "ACCEPT"]
                run(program, "-t", table, "-A", chain, *words)
        run(program, "-t", "nat", "-N", "MINE")
        run(program, "-N", "MINE")
        run(program, "-A", "FORWARD", "-j", "MINE")
    try:
        before = everything_else(world)
        seen = {"before": before}
        world.host.start()
        seen["installed"] = everything_else(world)
        world.knock("-4", "--for", "1s")
        seen["knocked"] = everything_else(world)
        eventually(lambda: not world.reachable(4), 10)
        seen["expired"] = everything_else(world)
        world.host.stop()
        seen["stopped"] = everything_else(world)
        world.host.unguard()
        seen["unguarded"] = everything_else(world)
        assert traces(world) == ""
        for moment, found in seen.items():
            assert found == before, moment
    finally:
        run("nft", "delete", "table", "inet", "mine")
        run("ipset", "destroy", "mine")
        for program in (tables(world, 4), tables(world, 6)):
            for table in ("raw", "mangle", "filter", "nat"):
                run(program, "-t", table, "-F")
                run(program, "-t", table, "-X")
        world.host.start()


DEFAULT_DROP = """
table inet mine {
  chain in {
    type filter hook input priority filter; policy drop;
    iifname "lo" accept
    ct state established,related accept
    meta l4proto { icmp, icmpv6 } accept
  }
  chain through {
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
    meta l4proto { icmp, icmpv6 } accept
  }
}
"""


@BOTH
def test_a_default_drop_ruleset_accepts_leases_by_their_mark(world, version):
    run = world.net.host.run
    run("nft", "-f", "-", input=DEFAULT_DROP)
    try:
        world.knock(f"-{version}", "--open", "ssh,inner", "--for", "60s")
        assert not world.reachable(version), "an accept elsewhere doesn't override this drop"
        for chain in ("in", "through"):
            run(
                "nft",
                "insert",
                "rule",
                "inet",
                "mine",
                chain,
                f"meta mark & {MARK} == {MARK} accept",
            )
        assert reached(world, version)
        assert reached(world, version, INNER), "what is passed on has the mark too"
        assert not world.reachable(version, node=world.net.stranger)
        assert not world.reachable(version, 8080), "the rest is dropped as it was"
        assert friend_reaches(world, version), "those who need no lease have the mark as well"
    finally:
        run("nft", "delete", "table", "inet", "mine")


@BOTH
@iptables_only
def test_in_iptables_a_lease_is_enough_for_a_default_drop(world, version):
    """As ufw has it: built-in chains drop by default, established connections pass."""
    run, program = world.net.host.run, tables(world, version)
    for chain in ("INPUT", "FORWARD"):
        run(program, "-A", chain, *ESTABLISHED)
        run(program, "-P", chain, "DROP")
    if version == 6:
        run(program, "-A", "INPUT", "-p", "icmpv6", "-j", "ACCEPT")
    try:
        world.knock(f"-{version}", "--open", "ssh,inner", "--for", "60s")
        assert reached(world, version)
        assert reached(world, version, INNER)
        assert not world.reachable(version, 8080)
        assert friend_reaches(world, version)
    finally:
        for chain in ("INPUT", "FORWARD"):
            run(program, "-P", chain, "ACCEPT")
            run(program, "-D", chain, *ESTABLISHED)
        if version == 6:
            run(program, "-D", "INPUT", "-p", "icmpv6", "-j", "ACCEPT")


DOCKER = f"""
*raw
-I PREROUTING -d HOME ! -i PORT0 -j DROP
COMMIT
*nat
:DOCKER - [0:0]
-I PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-I OUTPUT ! -d LOOPBACK -m addrtype --dst-type LOCAL -j DOCKER
-I POSTROUTING -s NETWORK ! -o PORT0 -j MASQUERADE
-A DOCKER ! -i PORT0 -p tcp --dport {PUBLISHED} -j DNAT --to TARGET:22
-A DOCKER ! -i PORT0 -p tcp --dport {PUBLISHED_CHAT} -j DNAT --to TARGET:{PUBLISHED_CHAT}
-A DOCKER ! -i PORT0 -p udp --dport {PUBLISHED_UDP} -j DNAT --to TARGET:{METRICS}
COMMIT
*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-BRIDGE - [0:0]
:DOCKER-CT - [0:0]
:DOCKER-FORWARD - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-I FORWARD -j DOCKER-FORWARD
-I FORWARD -j DOCKER-USER
-A DOCKER -d HOME ! -i PORT0 -o PORT0 -p tcp --dport 22 -j ACCEPT
-A DOCKER -d HOME ! -i PORT0 -o PORT0 -p tcp --dport {PUBLISHED_CHAT} -j ACCEPT
-A DOCKER -d HOME ! -i PORT0 -o PORT0 -p udp --dport {METRICS} -j ACCEPT
-A DOCKER ! -i PORT0 -o PORT0 -j DROP
-A DOCKER-BRIDGE -o PORT0 -j DOCKER
-A DOCKER-CT -o PORT0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -j DOCKER-CT
-A DOCKER-FORWARD -j DOCKER-ISOLATION-STAGE-1
-A DOCKER-FORWARD -j DOCKER-BRIDGE
-A DOCKER-FORWARD -i PORT0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i PORT0 ! -o PORT0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-2 -o PORT0 -j DROP
COMMIT
"""
"""What Docker 28 puts up for a container that publishes three ports."""


@contextlib.contextmanager
def docker(world, version: int, bridge: str = "eth1"):
    """Let Docker start on the host; the host behind is a container if the bridge leads to it."""
    words = {
        "PORT0": bridge,
        "HOME": f"{BACK[version]}/{32 if version == 4 else 128}",
        "TARGET": BACK[4] if version == 4 else f"[{BACK[6]}]",
        "NETWORK": "10.78.0.0/24" if version == 4 else "fd78::/64",
        "LOOPBACK": "127.0.0.0/8" if version == 4 else "::1/128",
    }
    up = re.sub("|".join(words), lambda found: words[found[0]], DOCKER)
    restore = [f"{tables(world, version)}-restore", "--noflush"]
    world.net.host.run(*restore, input=up)
    try:
        yield
    finally:
        world.net.host.run(*restore, input="".join(undoing(up.splitlines())))


def undoing(lines: list[str]) -> Iterator[str]:
    """Yield the input of ``iptables-restore`` that takes away what ``lines`` put up."""
    chains = []
    for line in lines:
        if line.startswith(":DOCKER"):
            chains.append(line[1:].split()[0])
        elif line == "COMMIT":
            yield from [f"-F {chain}\n" for chain in chains] + [f"-X {chain}\n" for chain in chains]
            yield "COMMIT\n"
            chains = []
        elif not line.startswith("-A"):
            yield line.replace("-I", "-D", 1).replace("FORWARD DROP", "FORWARD ACCEPT") + "\n"


@BOTH
@short
def test_a_port_that_docker_publishes_is_guarded_before_it_is_passed_on(world, version):
    """Its packets never reach the host's input, and Docker's forward chain accepts them."""
    with docker(world, version):
        assert not world.reachable(version, PUBLISHED)
        assert silent(world, version, PUBLISHED_UDP)
        world.knock(f"-{version}", "--open", "published,published-udp", "--for", "60s")
        assert reached(world, version, PUBLISHED)
        assert answered(world, version, PUBLISHED_UDP)
        assert not world.reachable(version, PUBLISHED, node=world.net.stranger)
        assert silent(world, version, PUBLISHED_UDP, node=world.net.stranger)
        leased = ("published", PUBLISHED), ("published-udp", PUBLISHED_UDP)
        expires(world, version, *leased)


@BOTH
def test_a_forwarding_lease_and_docker_s_default_drop(world, version):
    program = tables(world, version)
    mark = ["-m", "mark", "--mark", f"{MARK}/{MARK}", "-j", "ACCEPT"]
    with docker(world, version, "docker0"):
        world.knock(f"-{version}", "--open", "inner", "--for", "60s")
        if world.backend == "nftables":
            assert not world.reachable(version, INNER), "an accept elsewhere is not enough"
            for words in (ESTABLISHED, mark):
                world.net.host.run(program, "-I", "DOCKER-USER", *words)
        assert reached(world, version, INNER)
        assert not world.reachable(version, INNER, node=world.net.stranger)


# --- forwarding ---------------------------------------------------------------------------------


@BOTH
@short
def test_a_forwarding_lease_reaches_a_host_behind_for_its_time(world, version):
    assert not world.reachable(version, INNER)
    assert silent(world, version, INNER_UDP)
    world.knock(f"-{version}", "--open", "inner,inner-udp", "--for", "60s")
    assert reached(world, version, INNER)
    assert answered(world, version, INNER_UDP)
    assert not world.reachable(version, INNER, node=world.net.stranger)
    assert silent(world, version, INNER_UDP, node=world.net.stranger)
    assert not world.reachable(version), "nothing of the host itself"
    expires(world, version, ("inner", INNER), ("inner-udp", INNER_UDP))


@BOTH
def test_masquerade_is_for_hosts_without_a_way_back(world, version):
    world.knock(f"-{version}", "--open", "inner,masked,inner-udp,masked-udp", "--for", "60s")
    routes(world.net.back, "del")
    try:
        assert reached(world, version, MASKED)
        assert answered(world, version, MASKED_UDP)
        assert not world.reachable(version, INNER), "the control"
        assert silent(world, version, INNER_UDP), "the control"
    finally:
        routes(world.net.back, "add")


def test_a_service_without_an_address_of_the_knocker_s_family_is_a_clear_no(world):
    told = world.knock("-6", "--open", "four", check=False)
    assert told.returncode == 1
    assert "10.78.0.2:22, without IPv6: knock with -4" in told.stdout
    world.knock("-4", "--open", "four", "--for", "1s")


# --- break glass ------------------------------------------------------------


def friend_reaches(world, version: int) -> bool:
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    with world.net.stranger.socket(family) as sock:
        sock.settimeout(PATIENCE)
        sock.bind((FRIEND[version], 0))
        try:
            sock.connect((world.address(version), 22))
            return sock.recv(16) == b"hello\n"
        except OSError:
            return False


@BOTH
def test_break_glass_networks_need_no_lease_even_without_an_agent(world, version):
    assert friend_reaches(world, version)
    assert not world.reachable(version, node=world.net.stranger), "the same machine otherwise"
    world.host.stop()
    try:
        assert friend_reaches(world, version)
    finally:
        world.host.start()


# --- flushed, taken down, broken ----------------------------------------


def flush(world) -> None:
    """Do what a careless program does to everybody's rules."""
    run = world.net.host.run
    if world.backend == "nftables":
        run("nft", "flush", "ruleset")
        return
    # many commands: the agent must not mend the first while the last is still to come
    os.kill(world.host.process.pid, signal.SIGSTOP)
    try:
        for program in (tables(world, 4), tables(world, 6)):
            for table in ("raw", "mangle", "filter", "nat"):
                run(program, "-t", table, "-F")
                run(program, "-t", table, "-X")
        run("ipset", "destroy")
    finally:
        os.kill(world.host.process.pid, signal.SIGCONT)


def shut_out_after_flush(world) -> float:
    """Flush, and return the seconds until a stranger is shut out again."""
    flush(world)
    gone = time.monotonic()
    eventually(lambda: not world.reachable(4, node=world.net.stranger), 20)
    return time.monotonic() - gone


def until(world, *words, **how) -> int:
    """Return the time until which the lease runs, as a receipt tells it."""
    [told] = json.loads(world.knock("-4", "--json", *words, **how).stdout)
    return told["receipt"]["leases"]["ssh"]


@short
def test_a_flush_is_noticed_mended_logged_and_told_of(world):
    granted = until(world, "--for", "60s")
    # one time in three is enough: a machine that stalls is not what is tested
    assert any(shut_out_after_flush(world) < 5 for _ in range(3))
    assert reached(world), "the lease is put back too"
    assert until(world, verb="status") <= granted + 1, "but not for longer than it was granted"
    told = world.knock("-4", verb="status").stdout
    assert "the guard was gone, put back; leases restored: 1" in told
    assert "the guard was gone" in world.host.log.read_text()


def test_a_half_taken_guard_is_mended_too(world):
    run = world.net.host.run
    if world.backend == "nftables":
        run("nft", "flush", "chain", "inet", "tariq", "service")
    else:
        run(tables(world, 4), "-D", "INPUT", "-j", "TARIQ-GUARD")
        run(tables(world, 4), "-t", "mangle", "-F", "PREROUTING")
    eventually(lambda: not world.reachable(4, node=world.net.stranger), 10)


def test_a_lease_that_root_deletes_stays_deleted_and_is_told_of(world):
    world.knock("-4", "--for", "60s")
    if world.backend == "nftables":
        world.net.host.run("nft", "flush", "set", "inet", "tariq", "leases4")
    else:
        world.net.host.run("ipset", "flush", "tariq-leases4")
    told = lambda: world.knock("-4", verb="status").stdout  # noqa: E731
    eventually(lambda: "1 leases were taken away by another program" in told(), 15)
    assert not world.reachable(4)


def test_what_is_opened_without_an_end_is_told_of_and_stops_no_agent(world):
    if world.backend == "nftables":
        add = ["nft", "add element inet tariq leases4 { 192.0.2.66 . tcp . 22 }"]
    else:
        add = ["ipset", "-exist", "add", "tariq-leases4", "192.0.2.66,tcp:22", "timeout", "0"]
    world.net.host.run(*add)
    told = lambda: world.knock("-4", verb="status").stdout  # noqa: E731
    try:
        eventually(lambda: "without an end, by another program: 1" in told(), 15)
        world.knock("-4", "--for", "60s")
        assert reached(world)
        world.host.stop()
        world.host.start()
        assert reached(world), "and the lease lives on"
    finally:
        world.host.stop()
        world.host.unguard()
        world.host.start()


def test_guard_beside_an_agent_waits_for_it_to_know_the_same_backend(world):
    """Else both would guard, one of them without the leases that the agent gives."""
    mine, other = world.backend, "iptables-nft" if world.backend == "nftables" else "nftables"
    words = ["agent", "guard", *world.host._run_dir]
    guard = lambda: world.host.tariq(*words, state=False, check=False)  # noqa: E731
    world.host.unguard()
    world.host.policy["firewall"] = other
    world.host.write_policy()
    try:
        told = guard()
        assert f"the agent guards with {mine}" in told.stderr
        assert not traces(world)
        world.host.process.send_signal(signal.SIGHUP)
        eventually(lambda: guard().returncode == 0, 10)
        time.sleep(1.5)  # the agent has looked again
        assert ("table inet tariq" in traces(world)) == (other == "nftables")
        assert ("TARIQ-GUARD" in traces(world)) != (other == "nftables")
        world.knock("-4", "--for", "60s")
        assert reached(world)
    finally:
        world.host.stop()
        world.host.policy["firewall"] = mine
        world.host.start()


def test_unguard_holds_while_the_agent_runs_until_guard(world):
    world.host.unguard()
    try:
        time.sleep(4)
        assert reached(world, node=world.net.stranger), "root's word holds"
        assert world.knock("-4", check=False).returncode == 1, "refused or failed, never opened"
        assert reached(world, node=world.net.stranger), "and a knock doesn't change it"
        assert "root ran 'tariq agent unguard'" in world.host.log.read_text()
    finally:
        told = world.host.guard()
    assert f"with {world.backend}" in told.stdout
    assert not world.reachable(4, node=world.net.stranger)
    time.sleep(3.5)
    assert not world.reachable(4, node=world.net.stranger)


def test_guard_needs_no_agent_and_keeps_leases(world):
    world.knock("-4", "--for", "60s")
    world.knock("-4", "--open", "web", "--for", "6s")
    assert reached(world, 4, 443)
    world.host.stop()
    try:
        eventually(lambda: not world.reachable(4, 443), 15)  # which nobody but the kernel can do
        world.host.guard()
        shape = everything_else(world)
        assert reached(world)
        assert not world.reachable(4, node=world.net.stranger)
        world.host.guard()
        assert reached(world), "and can be said twice"
        assert everything_else(world) == shape
        world.host.unguard()
        assert reached(world, node=world.net.stranger)
        world.host.guard()
        assert not world.reachable(4), "after a reboot no lease is left"
        assert not world.reachable(4, node=world.net.stranger)
    finally:
        world.host.start()


def test_a_firewall_that_fails_is_said_to_have_failed(world):
    """Somebody else holds what we need: nothing is claimed as done, and it mends itself."""
    with broken(world):
        world.net.host.run("nft", "-f", "-", input=MUTE)
        told = world.knock("-4", "--for", "5s", check=False)
        assert told.returncode == 1
        assert "failed" in told.stdout
    eventually(lambda: not world.reachable(4, node=world.net.stranger), 15)
    world.net.host.run("nft", "delete", "table", "inet", "mute")
    world.knock("-4", "--for", "60s")
    assert reached(world)


MUTE = f"""
table inet mute {{
  chain in {{
    type filter hook input priority 0
    tcp dport {PORT} drop comment "else the kernel refuses"
  }}
}}
"""


@contextlib.contextmanager
def broken(world):
    if world.backend == "nftables":
        # a table that belongs to a process (nft(8), "owner") is closed to all others; in one
        # transaction with the flush, or the agent may mend its own in between
        script = "(echo 'flush ruleset; add table inet tariq { flags owner; }'; sleep 60) | nft -i"
        holder = subprocess.Popen(
            world.net.host.command("sh", "-c", script),
            stdout=subprocess.DEVNULL,
            process_group=0,
        )
        try:
            eventually(lambda: world.reachable(4, node=world.net.stranger), 10)  # flushed
            yield
        finally:
            os.killpg(holder.pid, 9)
            holder.wait(5)
        return
    flush(world)
    world.net.host.run("ipset", "create", "tariq-leases4", "hash:net")
    try:
        yield
    finally:
        world.net.host.run("ipset", "destroy", "tariq-leases4")


def test_a_guard_moves_from_one_backend_to_the_other_with_its_leases(world):
    other = "iptables-nft" if world.backend == "nftables" else "nftables"
    world.knock("-4", "--for", "60s")
    try:
        for backend in (other, world.backend):
            world.host.stop()
            world.host.policy["firewall"] = backend
            world.host.start()
            assert reached(world), backend
            assert not world.reachable(4, node=world.net.stranger)
            both = {"nftables": "table inet tariq" in traces(world),
                    "iptables": "TARIQ-GUARD" in traces(world)}  # fmt: skip
            assert sum(both.values()) == 1, both
    finally:
        world.host.policy["firewall"] = world.backend


def test_a_guard_that_the_agent_could_not_take_along_is_cleared(world):
    """The agent's unit has no right to touch iptables' tables; who puts it into service has."""
    mine, other = world.backend, "iptables-nft" if world.backend == "nftables" else "nftables"
    world.host.stop()
    try:
        world.host.policy["firewall"] = other
        world.host.write_policy()
        world.host.guard()
        world.host.policy["firewall"] = mine
        code = f"from tariq.agent import firewall; firewall.clear_others({mine!r})"
        world.net.host.run(world.python, "-c", code, cwd="/")
        assert not traces(world)
        assert reached(world), "nothing guards until the agent starts"
    finally:
        world.host.start()
    assert not world.reachable(4)


WITHOUT_LIBRARY = """
import ctypes, sys
real = ctypes.CDLL
def without(name, *args, **kw):
    if "libnftables" in str(name):
        raise OSError("hidden")
    return real(name, *args, **kw)
ctypes.CDLL = without
from tariq.cli import main
sys.exit(main())
"""


WITHOUT_FAMILY = """
import sys
from tariq.agent.firewall import nftables
from tariq.errors import FirewallError
real = nftables._Libnftables.run
def run(self, commands):
    if "add table inet" in commands:
        raise FirewallError("nftables", "Operation not supported")
    return real(self, commands)
nftables._Libnftables.run = run
from tariq.cli import main
sys.exit(main())
"""
"""What a kernel says that has nf_tables without its family: reading works, guarding doesn't."""


@nftables_only
@pytest.mark.parametrize("script", [WITHOUT_LIBRARY, WITHOUT_FAMILY], ids=["library", "family"])
def test_auto_takes_the_other_backend_and_leaves_nothing_of_one_that_broke(world, script):
    """Else a lease would be receipted as open, and the old table would go on dropping."""
    world.host.stop()
    world.host.policy["firewall"] = "auto"
    try:
        world.host.start(("-c", script))
        assert "TARIQ-GUARD" in traces(world)
        assert "table inet tariq" not in traces(world)
        for version in (4, 6):
            assert not world.reachable(version)
            world.knock(f"-{version}", "--for", "60s")
            assert reached(world, version)
    finally:
        world.host.stop()
        world.host.policy["firewall"] = world.backend
        world.host.start()
    assert "TARIQ-GUARD" not in traces(world)
