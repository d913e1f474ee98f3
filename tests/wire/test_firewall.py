"""Both firewalls, by effect: what a stranger, a client and the host's own rules see of a lease."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time

import pytest
from lab import PORT, Namespace, Server, eventually, made

BOTH = pytest.mark.parametrize("version", [4, 6])
FULL = os.environ.get("FIREWALLS", "").split()
"""Backends that get every test; ``make firewall`` names all three."""
MARK = 0x10
CHAT, INNER, MASKED, PUBLISHED = 4430, 2222, 2223, 8443
FRIEND = {4: "10.77.0.66", 6: "fd77::66"}
SERVICES = {
    "ssh": {"protocol": "tcp", "port": 22},
    "web": {"protocol": "tcp", "port": 443},
    "chat": {"protocol": "tcp", "port": CHAT},
    "metrics": {"protocol": "udp", "port": 161},
    "inner": {"protocol": "tcp", "port": INNER, "forward": ["10.78.0.2:22", "[fd78::2]:22"]},
    "masked": {
        "protocol": "tcp",
        "port": MASKED,
        "forward": ["10.78.0.2:22", "[fd78::2]:22"],
        "masquerade": True,
    },
    "four": {"protocol": "tcp", "port": 2224, "forward": "10.78.0.2:22"},
    "published": {"protocol": "tcp", "port": PUBLISHED},
}


ESTABLISHED = ("-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT")
LIKE_OURS = (
    "-m",
    "comment",
    "--comment",
    "TARIQ-LIKE",
    "-p",
    "tcp",
    "--dport",
    "8",
    "-j",
    "ACCEPT",
)


def short(test):
    """Mark what the everyday suite shows of the second backend too."""
    test.short = True
    return test


def nftables_only(test):
    """Mark what has nothing to show of another backend."""
    test.nftables_only = True
    return test


def pytest_generate_tests(metafunc):
    second = ["iptables-nft"] if hasattr(metafunc.function, "short") else []
    backends = FULL or ["nftables", *second]
    if hasattr(metafunc.function, "nftables_only"):
        backends = ["nftables"]
    metafunc.parametrize("world", backends, indirect=True, scope="module")


class Echo:
    """A UDP service that sends back what it gets."""

    def __init__(self, node: Namespace, port: int) -> None:
        self.process = subprocess.Popen(
            node.command(
                "/usr/bin/python3",
                "-c",
                "import socket\n"
                "s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\n"
                f"s.bind(('::', {port}))\n"
                "while True: s.sendto(*s.recvfrom(2000))\n",
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
    node.ip("addr", "add", "10.78.0.2/24", "dev", "eth0")
    node.ip("addr", "add", "fd78::2/64", "dev", "eth0", "nodad")
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
            for port in (22, 8000):
                stack.callback(Server(node, port).close)
            stack.callback(Echo(net.host, 161).close)
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
        world.tables = request.param if request.param != "nftables" else "iptables-nft"
        yield world


@pytest.fixture(autouse=True)
def closed(world):
    """Every test begins without leases: those of an earlier one would be its own."""
    yield
    names = ",".join(SERVICES)
    for version in (4, 6):
        listed = world.knock(f"-{version}", "--json", verb="status", check=False).stdout
        if '"leases": {}' not in listed:
            keep = "--service", names.replace(",four", "") if version == 6 else names
            world.knock(f"-{version}", *keep, verb="close", check=False)


def answered(world, version: int, seconds: float = 0.6, sock=None) -> bool:
    """Tell whether the UDP service answers."""
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    with contextlib.ExitStack() as stack:
        if sock is None:
            sock = stack.enter_context(world.net.client.socket(family, socket.SOCK_DGRAM))
        sock.settimeout(seconds)
        sock.sendto(b"hello", (world.address(version), 161))
        try:
            return sock.recv(64) == b"hello"
        except TimeoutError:
            return False


# --- leases -----------------------------------------------------------------------------


@BOTH
@short
def test_a_lease_opens_tcp_and_udp_for_its_time(world, version):
    assert not world.reachable(version)
    assert not answered(world, version)
    world.knock(f"-{version}", "--open", "ssh,metrics", "--for", "4s")
    assert world.reachable(version)
    assert answered(world, version)
    assert not world.reachable(version, node=world.net.stranger), "only for the knocker"
    assert not world.reachable(version, 443), "only what was asked for"
    assert world.reachable(version, 8080), "what isn't guarded is left alone"
    eventually(lambda: not world.reachable(version), 6)
    assert not answered(world, version)


@short
def test_knocking_again_extends_one_lease(world):
    world.knock("-4", "--for", "3s")
    world.knock("-4", "--for", "1d")
    [told] = json.loads(world.knock("-4", "--json", verb="status").stdout)
    assert set(told["receipt"]["leases"]) == {"ssh"}
    left = told["receipt"]["leases"]["ssh"] - told["receipt"]["t"]
    assert 50 < left <= 60, "the policy's longest"
    assert len(elements(world)) == 1
    time.sleep(2.5)
    assert world.reachable(4)


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
    """One connection from the client to a server on the host that also speaks by itself."""

    def __init__(self, world, version: int) -> None:
        family = socket.AF_INET6 if version == 6 else socket.AF_INET
        self.listener = world.net.host.socket(family)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind((world.address(version), CHAT))
        self.listener.listen(1)
        self.client = world.net.client.socket(family)
        self.client.settimeout(2)
        self.client.connect((world.address(version), CHAT))
        self.server, _ = self.listener.accept()

    def reaches(self, text: bytes, seconds: float = 1.0) -> bool:
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


@BOTH
@short
def test_cut_ends_living_connections_for_good(world, version):
    world.knock(f"-{version}", "--open", "chat", "--for", "60s")
    with contextlib.closing(Chatty(world, version)) as line:
        assert line.reaches(b"one")
        world.knock(f"-{version}", "--service", "chat", verb="close")
        assert line.reaches(b"two"), "a connection outlives its lease"
        told = world.knock(f"-{version}", "--service", "chat", "--cut", verb="close")
        assert "connections cut" in told.stdout
        assert not line.reaches(b"three")
        assert not line.reaches(b"four", 2), "not even where the server speaks first"
        world.knock(f"-{version}", "--open", "chat", "--for", "60s")
        assert not line.reaches(b"five", 2), "nor under a new lease"
        with world.net.client.socket(line.client.family) as another:
            another.settimeout(2)
            another.connect((world.address(version), CHAT))  # which is for new connections


def test_cut_ends_udp_too(world):
    world.knock("-4", "--open", "metrics", "--for", "60s")
    with world.net.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        assert answered(world, 4, sock=sock)
        world.knock("-4", "--service", "metrics", verb="close")
        assert answered(world, 4, sock=sock), "an exchange outlives its lease"
        world.knock("-4", "--service", "metrics", "--cut", verb="close")
        assert not answered(world, 4, sock=sock)


# --- living with others ---------------------------------------------------------------------


def everything_else(world) -> dict[str, list[str]]:
    """Return all rules and sets of the host that aren't Tariq's."""
    run = world.net.host.run
    found = {}
    for program in ("iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy"):
        lines = run(f"{program}-save").stdout.splitlines()
        kept = [re.sub(r" \[.*", "", line) for line in lines if not line.startswith("#")]
        found[program] = sorted(line for line in kept if "TARIQ" not in line)
    tables = json.loads(run("nft", "-j", "list", "ruleset").stdout)["nftables"]
    mine = [item for item in tables if "mine" in json.dumps(item)]
    found["nft"] = [re.sub(r'"handle": \d+', "", json.dumps(item)) for item in mine]
    found["ipset"] = [
        line for line in run("ipset", "save").stdout.splitlines() if "tariq" not in line
    ]
    return found


def traces(world) -> str:
    run = world.net.host.run
    listed = [run("nft", "list", "ruleset"), run("ipset", "save")]
    listed += [run(f"{ip}tables-{kind}-save") for ip in ("ip", "ip6") for kind in ("nft", "legacy")]
    lines = "".join(each.stdout for each in listed).splitlines()
    return "\n".join(line for line in lines if "tariq" in line.lower() and "TARIQ-LIKE" not in line)


@short
def test_the_rest_of_the_ruleset_is_left_as_it_was(world):
    run, tables = world.net.host.run, world.tables
    world.host.stop()
    world.host.unguard()
    assert traces(world) == ""
    run("nft", "add table inet mine; add chain inet mine in { type filter hook input priority 0; };"
        "add rule inet mine in tcp dport 8080 accept comment mine")  # fmt: skip
    run("ipset", "create", "mine", "hash:ip")
    run("ipset", "add", "mine", "192.0.2.1")
    for program in (tables, tables.replace("ip", "ip6", 1)):
        for table, chain in {
            "raw": "PREROUTING",
            "mangle": "PREROUTING",
            "filter": "INPUT",
        }.items():
            words = LIKE_OURS
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
        eventually(lambda: not world.reachable(4), 5)
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
        for program in (tables, tables.replace("ip", "ip6", 1)):
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
        assert world.reachable(version)
        assert world.reachable(version, INNER), "what is passed on has the mark too"
        assert not world.reachable(version, node=world.net.stranger)
        assert not world.reachable(version, 8080), "the rest is dropped as it was"
        assert friend_reaches(world, version), "those who need no lease have the mark as well"
    finally:
        run("nft", "delete", "table", "inet", "mine")


@short
def test_in_iptables_a_lease_is_enough_for_a_default_drop(world):
    """As ufw has it: built-in chains drop by default, established connections pass."""
    if world.backend == "nftables":
        return  # there the mark is needed: the test before
    run, tables = world.net.host.run, world.tables
    for chain in ("INPUT", "FORWARD"):
        run(tables, "-A", chain, *ESTABLISHED)
        run(tables, "-P", chain, "DROP")
    try:
        world.knock("-4", "--open", "ssh,inner", "--for", "60s")
        assert world.reachable(4)
        assert world.reachable(4, INNER)
        assert not world.reachable(4, 8080)
    finally:
        for chain in ("INPUT", "FORWARD"):
            run(tables, "-P", chain, "ACCEPT")
            run(tables, "-D", chain, *ESTABLISHED)


@BOTH
@short
def test_a_published_port_is_guarded_before_it_is_passed_on(world, version):
    """Docker publishes ports by such a rule; the packets never reach the host's input."""
    program = world.tables if version == 4 else world.tables.replace("ip", "ip6", 1)
    target = "10.78.0.2:8000" if version == 4 else "[fd78::2]:8000"
    match = ["-p", "tcp", "--dport", str(PUBLISHED), "-m", "addrtype", "--dst-type", "LOCAL"]
    rule = ["PREROUTING", *match, "-j", "DNAT", "--to-destination", target]
    world.net.host.run(program, "-t", "nat", "-A", *rule)
    try:
        assert not world.reachable(version, PUBLISHED)
        world.knock(f"-{version}", "--open", "published", "--for", "3s")
        assert world.reachable(version, PUBLISHED)
        assert not world.reachable(version, PUBLISHED, node=world.net.stranger)
        eventually(lambda: not world.reachable(version, PUBLISHED), 5)
    finally:
        world.net.host.run(program, "-t", "nat", "-D", *rule)


# --- forwarding ---------------------------------------------------------------------------------


@BOTH
@short
def test_a_forwarding_lease_reaches_a_host_behind_for_its_time(world, version):
    assert not world.reachable(version, INNER)
    world.knock(f"-{version}", "--open", "inner", "--for", "3s")
    assert world.reachable(version, INNER)
    assert not world.reachable(version, INNER, node=world.net.stranger)
    assert not world.reachable(version), "nothing of the host itself"
    eventually(lambda: not world.reachable(version, INNER), 5)


@BOTH
def test_masquerade_is_for_hosts_without_a_way_back(world, version):
    world.knock(f"-{version}", "--open", "inner,masked", "--for", "60s")
    routes(world.net.back, "del")
    try:
        assert world.reachable(version, MASKED)
        assert not world.reachable(version, INNER), "the control"
    finally:
        routes(world.net.back, "add")


def test_a_service_without_an_address_of_the_knocker_s_family_is_a_clear_no(world):
    told = world.knock("-6", "--open", "four", check=False)
    assert told.returncode == 1
    assert "10.78.0.2:22, without IPv6: knock with -4" in told.stdout
    world.knock("-4", "--open", "four", "--for", "1s")


# --- break glass ------------------------------------------------------------


def friend_reaches(world, version: int, port: int = 22) -> bool:
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    with world.net.stranger.socket(family) as sock:
        sock.settimeout(0.8)
        sock.bind((FRIEND[version], 0))
        try:
            sock.connect((world.address(version), port))
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
        for program in (world.tables, world.tables.replace("ip", "ip6", 1)):
            for table in ("raw", "mangle", "filter", "nat"):
                run(program, "-t", table, "-F")
                run(program, "-t", table, "-X")
        run("ipset", "destroy")
    finally:
        os.kill(world.host.process.pid, signal.SIGCONT)


@short
def test_a_flush_is_noticed_mended_logged_and_told_of(world):
    granted = time.monotonic()
    world.knock("-4", "--for", "10s")
    flush(world)
    gone = time.monotonic()
    eventually(lambda: not world.reachable(4, node=world.net.stranger), 5)
    assert time.monotonic() - gone < 5
    assert time.monotonic() - granted < 9, "the machine is too slow for this test"
    assert world.reachable(4), "the lease is put back too"
    told = world.knock("-4", verb="status").stdout
    assert "the guard was gone, put back; leases restored: 1" in told
    assert "the guard was gone" in world.host.log.read_text()
    eventually(lambda: not world.reachable(4), 12)
    assert time.monotonic() - granted < 11.5, "but not for longer than it was granted"


def test_a_half_taken_guard_is_mended_too(world):
    run = world.net.host.run
    if world.backend == "nftables":
        run("nft", "flush", "chain", "inet", "tariq", "service")
    else:
        run(world.tables, "-D", "INPUT", "-j", "TARIQ-GUARD")
        run(world.tables, "-t", "mangle", "-F", "PREROUTING")
    eventually(lambda: not world.reachable(4, node=world.net.stranger), 5)


def test_a_lease_that_root_deletes_stays_deleted_and_is_told_of(world):
    world.knock("-4", "--for", "60s")
    time.sleep(1.2)
    if world.backend == "nftables":
        world.net.host.run("nft", "flush", "set", "inet", "tariq", "leases4")
    else:
        world.net.host.run("ipset", "flush", "tariq-leases4")
    told = lambda: world.knock("-4", verb="status").stdout  # noqa: E731
    eventually(lambda: "1 leases were taken away by another program" in told(), 8)
    assert not world.reachable(4)


def test_what_is_opened_without_an_end_is_told_of_and_stops_no_agent(world):
    if world.backend == "nftables":
        add = ["nft", "add element inet tariq leases4 { 192.0.2.66 . tcp . 22 }"]
    else:
        add = ["ipset", "-exist", "add", "tariq-leases4", "192.0.2.66,tcp:22", "timeout", "0"]
    world.net.host.run(*add)
    told = lambda: world.knock("-4", verb="status").stdout  # noqa: E731
    try:
        eventually(lambda: "without an end, by another program: 1" in told(), 8)
        world.knock("-4", "--for", "60s")
        assert world.reachable(4)
        world.host.stop()
        world.host.start()
        assert world.reachable(4), "and the lease lives on"
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
        assert world.reachable(4)
    finally:
        world.host.stop()
        world.host.policy["firewall"] = mine
        world.host.start()


def test_unguard_holds_while_the_agent_runs_until_guard(world):
    world.host.unguard()
    try:
        time.sleep(4)
        assert world.reachable(4, node=world.net.stranger), "root's word holds"
        assert world.knock("-4", check=False).returncode == 1, "refused or failed, never opened"
        assert world.reachable(4, node=world.net.stranger), "and a knock doesn't change it"
        assert "root ran 'tariq agent unguard'" in world.host.log.read_text()
    finally:
        told = world.host.guard()
    assert f"with {world.backend}" in told.stdout
    assert not world.reachable(4, node=world.net.stranger)
    time.sleep(3.5)
    assert not world.reachable(4, node=world.net.stranger)


def test_guard_needs_no_agent_and_keeps_leases(world):
    world.knock("-4", "--for", "60s")
    world.host.stop()
    try:
        world.host.guard()
        shape = everything_else(world)
        assert world.reachable(4)
        assert not world.reachable(4, node=world.net.stranger)
        world.host.guard()
        assert world.reachable(4), "and can be said twice"
        assert everything_else(world) == shape
        world.host.unguard()
        assert world.reachable(4, node=world.net.stranger)
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
    eventually(lambda: not world.reachable(4, node=world.net.stranger), 6)
    world.net.host.run("nft", "delete", "table", "inet", "mute")
    world.knock("-4", "--for", "60s")
    assert world.reachable(4)


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
            listed = lambda: world.net.host.run("nft", "list", "tables").stdout  # noqa: E731
            eventually(lambda: "tariq" in listed(), 5)
            time.sleep(0.3)
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
            assert world.reachable(4), backend
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
        assert world.reachable(4), "nothing guards until the agent starts"
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
            assert world.reachable(version)
    finally:
        world.host.stop()
        world.host.policy["firewall"] = world.backend
        world.host.start()
    assert "TARIQ-GUARD" not in traces(world)
