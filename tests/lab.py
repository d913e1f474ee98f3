"""A small network of real kernels: a switch, a host with an agent, a client and a stranger.

Each is a network namespace on this machine; packets cross veth pairs and one
bridge. Everything is made by the test that uses it and taken down with it.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import errno
import itertools
import os
import pwd
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import yaml

from tariq import openpgp, picture
from tariq.errors import MessageError
from tariq.message import Action, Batch, Bundle, Receipt, Request, to_b64
from tariq.picture import Direction
from tariq.transport import wire
from tariq.transport.base import NoAnswer
from tariq.transport.fastopen import FastOpen

REPO = Path(__file__).resolve().parents[1]
NOBODY = "nobody"
PORT = 62201
CLOSED = 1
"""A port where nobody listens, and which no test guards."""
PATIENCE = 15.0
"""Seconds for what is sure to come, on a machine that may be busy or stall."""
PATIENT = """
import sys
from tariq.client import knock
from tariq.cli import main

knock.SECONDS_PER_TRY = 6.0
sys.exit(main())
"""
"""The client as it is, but that a machine that stalls costs it no try."""
FULL = os.environ.get("FIREWALLS", "").split()
"""Firewall backends that get every test; ``make firewall`` and ``make faults`` name all three."""
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_net = threading.Lock()
_count = itertools.count()


def short(test):
    """Mark what the everyday suite shows of the second backend too."""
    test.short = True
    return test


def backends_for(test) -> list[str]:
    """Return the firewall backends that a test is for."""
    return FULL or ["nftables", *(["iptables-nft"] if hasattr(test, "short") else [])]


def run(*command: str, check: bool = True, **more) -> subprocess.CompletedProcess[str]:
    """Run a command, bounded, and show what it printed if it fails."""
    more.setdefault("timeout", 60)
    done = subprocess.run(command, text=True, capture_output=True, check=False, **more)
    if check and done.returncode != 0:
        raise AssertionError(f"{command} gave {done.returncode}:\n{done.stdout}{done.stderr}")
    return done


def eventually(what, seconds: float = PATIENCE, every: float = 0.05):
    """Return the first true value of ``what()``; fail after ``seconds``."""
    end = time.monotonic() + seconds
    while True:
        value = what()
        if value:
            return value
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(every)


def reachable_python(base: Path) -> str:
    """Return an interpreter with this package that an unprivileged user can run.

    A checkout below a home directory of mode 0700 is closed to the users that the
    sentry and the rootless client run as; those get a copy (hard links, no space).
    """
    mine = sys.executable
    if _can_use(mine):
        return mine
    copy = base / "venv"
    subprocess.run(["cp", "-a", "--reflink=auto", sys.prefix, copy], check=True)
    shutil.copytree(REPO / "tariq", base / "code" / "tariq")
    (base / "code").chmod(0o755)
    site = next((copy / "lib").glob("python3*/site-packages"))
    for pth in site.glob("*tariq*.pth"):
        pth.write_text(f"{base / 'code'}\n")
    python = str(copy / "bin" / "python")
    assert _can_use(python), f"{python} can't be run by {NOBODY}; make .venv with a system python"
    return python


def _can_use(python: str) -> bool:
    command = ["setpriv", "--reuid", NOBODY, "--clear-groups", python, "-c", "import tariq.message"]
    return subprocess.run(command, check=False, capture_output=True, cwd="/").returncode == 0


class Namespace:
    """One network namespace."""

    def __init__(self, name: str) -> None:
        self.name = name
        run("ip", "netns", "add", name)
        self.ip("link", "set", "lo", "up")

    def ip(self, *words: str) -> None:
        run("ip", "-n", self.name, *words)

    def command(self, *words: str, user: str | None = None) -> list[str]:
        drop = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups"] if user else []
        if user:
            drop += ["--no-new-privs", "--bounding-set=-all"]
            drop[4] = str(pwd.getpwnam(user).pw_gid)
        return ["ip", "netns", "exec", self.name, *drop, *words]

    def run(self, *words: str, user: str | None = None, **more):
        return run(*self.command(*words, user=user), **more)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Sockets made by this thread inside belong to the namespace, for good."""
        with (
            _net,
            open("/proc/thread-self/ns/net") as before,
            open(f"/run/netns/{self.name}") as ns,
        ):
            assert _libc.setns(ns.fileno(), _CLONE_NEWNET) == 0
            try:
                yield
            finally:
                assert _libc.setns(before.fileno(), _CLONE_NEWNET) == 0

    def socket(self, family: int, kind: int = socket.SOCK_STREAM, protocol: int = 0):
        with self.entered():
            return socket.socket(family, kind, protocol)

    def connects(self, address: str, port: int, seconds: float = 5.0) -> bool:
        """Tell whether a TCP connection is made and answered.

        No is told after the host refused one to a closed port, which was begun later: so what
        is slow isn't taken for what is shut.
        """
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        end = time.monotonic() + seconds
        with self.socket(family) as sock, self.socket(family) as control:
            for each, to in ((sock, port), (control, CLOSED)):
                each.setblocking(False)
                if each.connect_ex((address, to)) != errno.EINPROGRESS:
                    return False
            select.select([], [sock, control], [], seconds)
            left = min(0.5, end - time.monotonic())
            if not select.select([], [sock], [], max(0.0, left))[1]:
                return False
            sock.settimeout(max(0.5, end - time.monotonic()))
            try:
                return sock.recv(16) == b"hello\n"
            except OSError:
                return False

    def exchange(self, address: str, payload: bytes, seconds: float = 0.7) -> bytes | None:
        """Knock with a raw payload; return the answer, or None for silence."""
        with self.entered():
            try:
                return FastOpen().exchange(address, PORT, payload, seconds)
            except NoAnswer:
                return None

    def delete(self) -> None:
        run("ip", "netns", "del", self.name, check=False)


class Recorder:
    """Keeps the TCP packets that reach a namespace, as a promiscuous onlooker would."""

    def __init__(self, node: Namespace) -> None:
        every = socket.htons(3)  # ETH_P_ALL
        self.sock = node.socket(socket.AF_PACKET, socket.SOCK_DGRAM, every)
        self.sock.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        self.sock.setblocking(False)

    def segments(self, seconds: float = 0.0) -> list[wire.Segment]:
        """Return what has come in, waiting ``seconds`` first."""
        time.sleep(seconds)
        found = []
        while True:
            try:
                packet, where = self.sock.recvfrom(65_535)
            except BlockingIOError:
                return found
            with contextlib.suppress(MessageError):
                if where[2] != socket.PACKET_OUTGOING:
                    found.append(wire.parse(packet))

    def close(self) -> None:
        self.sock.close()


class Network:
    """A bridge with three namespaces on it: host, client, stranger. A test may ``add`` a twin."""

    V4: ClassVar = {
        "host": "10.77.0.1",
        "client": "10.77.0.2",
        "stranger": "10.77.0.3",
        "twin": "10.77.0.4",
    }
    V6: ClassVar = {
        "host": "fd77::1",
        "client": "fd77::2",
        "stranger": "fd77::3",
        "twin": "fd77::4",
    }

    def __init__(self) -> None:
        self.tag = f"tq{os.getpid()}x{next(_count)}"  # what an earlier one left is no obstacle
        self.switch = Namespace(f"{self.tag}b")
        self.switch.ip("link", "add", "br0", "type", "bridge")
        self.switch.ip("link", "set", "br0", "up")
        self.host = self.add("host")
        self.client = self.add("client")
        self.stranger = self.add("stranger")

    def add(self, name: str) -> Namespace:
        node = Namespace(f"{self.tag}{name[0]}")
        port = f"p{name[0]}"
        node.ip(
            "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", self.switch.name
        )
        self.switch.ip("link", "set", port, "master", "br0", "up")
        node.ip("addr", "add", f"{self.V4[name]}/24", "dev", "eth0")
        node.ip("addr", "add", f"{self.V6[name]}/64", "dev", "eth0", "nodad")
        node.ip("link", "set", "eth0", "up")
        return node

    def delete(self) -> None:
        for node in (self.host, self.client, self.stranger, self.switch):
            node.delete()


class Server:
    """A TCP service in a namespace that says hello, on IPv4 and IPv6."""

    def __init__(self, node: Namespace, port: int) -> None:
        self.sock = node.socket(socket.AF_INET6)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.sock.bind(("::", port))
        self.sock.listen(64)
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                conn, _ = self.sock.accept()
            except OSError:
                return
            threading.Thread(target=self._greet, args=(conn,), daemon=True).start()

    @staticmethod
    def _greet(conn: socket.socket) -> None:
        with conn, contextlib.suppress(OSError):
            conn.sendall(b"hello\n")
            while data := conn.recv(4096):  # echoes, so that a living connection can be shown
                conn.sendall(data)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


class Operator:
    """A person with a key of their own, as an ordinary user."""

    def __init__(self, base: Path, name: str, python: str) -> None:
        self.name, self.python = name, python
        self.dir = base / name
        self.dir.mkdir(mode=0o755)
        shutil.chown(self.dir, NOBODY)
        self.gnupg = self.dir / "gnupg"
        self.tariq("key", "new", name, "--no-passphrase")
        self.public = self.tariq("key", "export").stdout
        self.fingerprint = self.tariq("key", "list").stdout.split()[0]

    @property
    def env(self) -> dict[str, str]:
        return {"HOME": str(self.dir), "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}

    def tariq(
        self,
        *words: str,
        node: Namespace | None = None,
        env=None,
        user: str | None = NOBODY,
        patient: bool = True,
        **more,
    ):
        """Run the client in a namespace, as nobody unless told otherwise.

        Only where silence is expected it has to be told not to be ``patient``.
        """
        command = [self.python, *(("-c", PATIENT) if patient else ("-m", "tariq")), *words]
        gid = str(pwd.getpwnam(NOBODY).pw_gid)
        if node:
            command = node.command(*command, user=user)
        elif user:
            command = ["setpriv", "--reuid", user, "--regid", gid, "--clear-groups", *command]
        full = {**self.env, "TARIQ_GNUPGHOME": str(self.gnupg), **(env or {})}
        return run(*command, env=full, cwd="/", **more)

    def close(self) -> None:
        run("gpgconf", "--homedir", str(self.gnupg), "--kill", "all", check=False)


class Forger:
    """Makes knocks that the client never would, with a real key of its own."""

    def __init__(self, base: Path, name: str) -> None:
        self.name = name
        self.home = base / f"{name}-gnupg"
        self.key = openpgp.OperatorKey.make(self.home, name, passphrase=False)
        self.public, self.fingerprint = self.key.export(), self.key.fingerprint

    def payload(
        self,
        host: AgentHost,
        *,
        age: int = 0,
        to: str | None = None,
        sealed_for: AgentHost | None = None,
        bundle=None,
        stamped: float | None = None,
        **wish,
    ) -> bytes:
        """Return a knock's picture; what is left out is as it should be."""
        card, lock = host.card(), (sealed_for or host).card()
        request = Request(
            to=openpgp.short(to or card["fingerprint"]),
            do=wish.pop("do", Action.OPEN),
            t=int(time.time()) - age,
            what=wish.pop("what", ("ssh",)),
            seconds=wish.pop("seconds", 60),
            **wish,
        )
        batch = Batch.of([request.encode()])
        bundle = bundle or batch.bundle(0, self.key.sign(batch.to_sign))
        return self.wrap(host, lock, bundle, stamped)

    @staticmethod
    def wrap(host: AgentHost, lock: dict, bundle: Bundle, stamped: float | None = None) -> bytes:
        with openpgp.CardRing() as ring:
            ring.add(lock["fingerprint"], base64.b64decode(lock["public_key"]))
            sealed = ring.seal(lock["fingerprint"], bundle.encode())
        knock_key = base64.b64decode(host.card()["knock_key"])
        return picture.wrap(sealed, knock_key, Direction.TO_HOST, stamped or time.time())

    def receipt(self, host: AgentHost, address: str, node: Namespace, **how) -> Receipt | None:
        """Knock, and return the receipt as the client would read it, or None for silence."""
        request = Request(
            to=openpgp.short(host.card()["fingerprint"]),
            do=how.pop("do", Action.OPEN),
            t=int(time.time()) - how.pop("age", 0),
            what=("ssh",),
            seconds=how.pop("seconds", 60),
            src=how.pop("src", None),
        )
        batch = Batch.of([request.encode()])
        bundle = batch.bundle(0, self.key.sign(batch.to_sign))
        self.last = self.wrap(host, host.card(), bundle)
        answer = node.exchange(address, self.last, PATIENCE)
        if answer is None:
            return None
        card = host.card()
        key = base64.b64decode(card["knock_key"])
        with openpgp.CardRing() as ring:
            ring.add(card["fingerprint"], base64.b64decode(card["public_key"]))
            sealed = picture.unwrap(answer, key, Direction.TO_CLIENT, time.time())
            raw = ring.open_receipt(card["fingerprint"], sealed, to_b64(request.id))
        return Receipt.decode(raw)

    def close(self) -> None:
        openpgp.stop_agent(self.home)


class AgentHost:
    """A host with identity, policy and an agent, in a namespace."""

    def __init__(self, base: Path, node: Namespace, python: str, name: str = "web1") -> None:
        self.node, self.python, self.name = node, python, name
        self.base = base / name
        self.base.mkdir(mode=0o755)
        self.etc, self.state = self.base / "etc", self.base / "state"
        (self.etc / "operators").mkdir(parents=True)
        self.log = self.base / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self._card: dict | None = None
        self.policy = {
            "version": 1,
            "serial": 7,
            "host": name,
            "port": PORT,
            "sentry_user": NOBODY,
            "services": {
                "ssh": {"protocol": "tcp", "port": 22},
                "web": {"protocol": "tcp", "port": 443},
            },
            "default_service": "ssh",
            "operators": {},
        }
        self.tariq("agent", "init")

    @property
    def _dirs(self) -> list[str]:
        return ["--etc", str(self.etc), "--state", str(self.state)]

    @property
    def _run_dir(self) -> list[str]:
        return ["--run", str(self.base / "run")]

    def tariq(self, *words: str, state: bool = True, **more):
        dirs = self._dirs if state else self._dirs[:2]
        return self.node.run(self.python, "-m", "tariq", *words, *dirs, cwd="/", **more)

    def card(self) -> dict:
        if self._card is None:
            self._card = yaml.safe_load(
                self.tariq("agent", "card", "--address", "192.0.2.1").stdout
            )
        return self._card

    def trust(self, operator, services=("ssh", "web"), longest: int = 60) -> None:
        (self.etc / "operators" / f"{operator.name}.asc").write_text(operator.public)
        self.policy["operators"][operator.name] = {
            "fingerprint": operator.fingerprint,
            "services": list(services),
            "longest": longest,
        }

    def write_policy(self) -> None:
        (self.etc / "agent.yml").write_text(yaml.safe_dump(self.policy))

    def guard(self, script: tuple[str, ...] = ("-m", "tariq"), **more):
        """Put the guard of the policy up; no agent needed."""
        words = (*script, "agent", "guard", *self._dirs[:2], *self._run_dir)
        return self.node.run(self.python, *words, cwd="/", **more)

    def unguard(self, **more):
        """Take the guard down; an agent that runs is told by its own directory, and lets it be."""
        words = ("-m", "tariq", "agent", "unguard", *self._run_dir)
        return self.node.run(self.python, *words, cwd="/", **more)

    def start(self, script: tuple[str, ...] = ("-m", "tariq")) -> None:
        """Start the agent and wait until it says that it is ready."""
        self.write_policy()
        notify = str(self.base / "notify")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(notify)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, self.log.open("ab") as log:
            ready.bind(notify)
            ready.settimeout(60)
            self.process = subprocess.Popen(
                self.node.command(
                    self.python,
                    *script,
                    "agent",
                    "run",
                    *self._dirs,
                    *self._run_dir,
                ),
                stdout=log,
                stderr=log,
                cwd="/",
                env={**os.environ, "NOTIFY_SOCKET": notify},
            )
            try:
                ready.recv(64)
            except TimeoutError:
                self.kill()
                raise AssertionError(f"the agent didn't start:\n{self.log.read_text()}") from None

    def stop(self) -> int | None:
        """Stop it as systemd would; return its exit status, or None if there is none to stop."""
        if self.process is None:
            return None
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(30)
        self.process = None
        return status

    def kill(self) -> None:
        """End it without a chance to tidy up."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(15)
            self.process = None

    def sentry_pid(self) -> int:
        """Return the pid of the warden's one Python child."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        found = []
        for pid in children.split():
            with contextlib.suppress(OSError):  # it may end at any time
                if "tariq.agent.sentry" in Path(f"/proc/{pid}/cmdline").read_text():
                    found.append(int(pid))
        [pid] = found
        return pid

    def write_card(self, directory: Path, addresses, **changes) -> Path:
        words = [word for address in addresses for word in ("--address", address)]
        card = yaml.safe_load(self.tariq("agent", "card", *words).stdout)
        path = directory / f"{changes.get('name', self.name)}.yml"
        path.write_text(yaml.safe_dump({**card, **changes}))
        path.chmod(0o644)
        return path

    def close(self) -> None:
        self.kill()
        run("gpgconf", "--homedir", str(self.state / "gnupg"), "--kill", "all", check=False)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A short path that everybody can enter: GnuPG's sockets need the one, nobody the other."""
    base = Path(tempfile.mkdtemp(prefix="tq", dir="/tmp"))
    base.chmod(0o755)
    try:
        yield base
    finally:
        shutil.rmtree(base, ignore_errors=True)


@dataclass
class World:
    """A host web1 with an agent that trusts alice (a person) and bob (who forges)."""

    base: Path
    net: Network
    host: AgentHost
    alice: Operator
    bob: Forger
    cards: Path
    python: str

    def knock(self, *words: str, verb: str = "knock", host: str = "web1", **more):
        """Run the client as alice, an ordinary user, on the client's machine."""
        more.setdefault("node", self.net.client)
        return self.alice.tariq(verb, host, "--cards", str(self.cards), *words, **more)

    def answered(
        self, payload: bytes, version: int = 4, node=None, seconds: float = PATIENCE
    ) -> bytes:
        """Knock with a raw payload that is good; return the answer."""
        node = node or self.net.client
        answer = node.exchange(self.address(version), payload, seconds)
        assert answer, f"no answer within {seconds} s"
        return answer

    def close(self, version: int = 4, node=None) -> None:
        """End the lease of ssh, whoever opened it."""
        payload = self.bob.payload(self.host, do=Action.CLOSE, seconds=None)
        self.answered(payload, version, node)

    def reachable(self, version: int = 4, port: int = 22, node=None) -> bool:
        return (node or self.net.client).connects(self.address(version), port)

    def address(self, version: int = 4) -> str:
        return (self.net.V4 if version == 4 else self.net.V6)["host"]


@contextlib.contextmanager
def made(python, prepare=lambda _: None, **policy):
    """Make a world with these fields in the host's policy."""
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(scratch())
        net = Network()
        stack.callback(net.delete)
        for port in (22, 443, 8080):
            stack.callback(Server(net.host, port).close)
        alice, bob = Operator(base, "alice", python), Forger(base, "bob")
        for each in (alice, bob):
            stack.callback(each.close)
        host = AgentHost(base, net.host, python)
        stack.callback(host.close)
        host.policy |= policy
        services = tuple(host.policy["services"])
        host.trust(alice, services)
        host.trust(bob, services)
        cards = base / "cards"
        cards.mkdir()
        prepare(net)
        host.start()
        host.write_card(cards, [net.V4["host"], net.V6["host"]])
        yield World(base, net, host, alice, bob, cards, python)
