"""What goes wrong at a bad moment: nothing is opened unrecorded, nothing outlives its time.

Every step of a knock is a place where the agent may be killed, by ``make faults``, on every
firewall backend; the everyday suite has one of each kind. The agent runs as always, but for
a driver (``DRIVER``) that wraps the steps.
"""

import contextlib
import errno
import inspect
import json
import os
import resource
import shutil
import signal
import socket
import sqlite3
import time
from pathlib import Path

import pytest
from lab import PATIENCE, backends_for, eventually, made, run, short

from tariq.agent import shelf
from tariq.message import Action, State

STEPS = (
    "HostKey.unseal",
    "OperatorRing.verify",
    "Ledger.claim",
    "Ledger.lease",
    "Firewall.open",
    "Ledger.settle",
    "HostKey.seal_receipt",
    "Sentinel.send",
    "the end",
)
VICTIMS = ("warden", "sentry", "both")
EVERY = [(step, victim) for step in STEPS for victim in VICTIMS]
ALL = os.environ.get("TARIQ_FAULTS") == "all"
"""``make faults`` wants every case; the everyday suite has a few seconds for one of each kind."""
TASK_STEPS = (
    "Ledger.claim",
    "Shelf.start",
    "Launcher.start",
    "Ledger.settle",
    "HostKey.seal_receipt",
    "Sentinel.send",
    "the end",
)
LEASE, LONG = 3, 20
DISKS = [
    ("state", "Ledger.claim", False, False),
    ("run", "HostKey.unseal", False, False),
    ("state", "HostKey.unseal", False, False),
    ("state", "Ledger.lease", True, False),
    ("state", "Ledger.settle", True, True),
]
"""Which disk fills up, when, whether there is an answer, and whether the lease is there by then."""
MOST = 30
"""More steps than anything has that is killed at each of them."""
BEFORE = ("nothing", "a guard", "another backend")
KILLED = EVERY if ALL else [("Firewall.open", "both")]
TASKS = [(step, victim) for step in TASK_STEPS for victim in VICTIMS]
RUNNING = TASKS if ALL else [("Launcher.start", "warden")]


def fill(directory: Path) -> Path:
    """Fill a file system to the last byte."""
    path = directory / "ballast"
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(b"\0" * 4096):
            pass
    return path


DRIVER = (
    f"import contextlib\nfrom pathlib import Path\n{inspect.getsource(fill)}"
    + """\
import os, signal, sys, time
from tariq import openpgp
from tariq.agent import firewall, launch, ledger, sentinel, shelf, warden
from tariq.agent.firewall import conntrack
folder = Path(FOLDER)

def wrap(owner, name, step):
    plain = getattr(owner, name)
    def wrapped(*args, **more):
        strike(step, args[0])
        done = plain(*args, **more)
        if step == "Sentinel.send":
            strike("the end", args[0])
        return done
    setattr(owner, name, wrapped)

class Sentinel(sentinel.Sentinel):
    def __init__(self, *args, **more):
        strike.sentinel = self
        super().__init__(*args, **more)

sentinel.Sentinel = Sentinel

def strike(step, owner):
    order = folder / "order"
    if not order.exists():
        return
    wanted, what, count = order.read_text().split(":")
    if wanted not in (step, "any"):
        return
    if int(count) > 1:
        order.write_text(f"{wanted}:{what}:{int(count) - 1}")
        return
    order.unlink()
    if what == "fill":
        fill(Path((folder / "disk").read_text()))
        return
    if what == "refuse":  # by the real library or program, with a real error
        if isinstance(owner, firewall.Nftables):
            owner._run(["add element inet tariq no_such_set { 1 }"])
        owner._set("add no-such-set 192.0.2.1")
    if what != "warden":
        os.kill(strike.sentinel._process.pid, signal.SIGKILL)
    if what != "sentry":
        os.kill(os.getpid(), signal.SIGKILL)

for cls, name in ((openpgp.HostKey, "unseal"), (openpgp.OperatorRing, "verify"),
                  (ledger.Ledger, "claim"), (ledger.Ledger, "lease"),
                  (ledger.Ledger, "settle"), (openpgp.HostKey, "seal_receipt"),
                  (sentinel.Sentinel, "send"), (shelf.Shelf, "start")):
    wrap(cls, name, f"{cls.__name__}.{name}")
for cls in (firewall.Nftables, firewall.Iptables):
    wrap(cls, "open", "Firewall.open")
for owner, name in ((firewall.Nftables, "_run"), (firewall.Iptables, "_set"),
                    (firewall.Iptables, "_put"), (conntrack, "forget")):
    wrap(owner, name, "Firewall.write")
for cls in (launch.Unit, launch.Child):
    wrap(cls, "start", "Launcher.start")

def clock():
    jump = folder / "jump"
    return time.time() + (float(jump.read_text()) if jump.exists() else 0)

warden.Warden.__init__.__kwdefaults__["clock"] = clock
openpgp.GPG_SECONDS = float(os.environ.get("GPG_SECONDS", openpgp.GPG_SECONDS))
from tariq.cli import main
sys.exit(main(sys.argv[1:]))
"""
)


class Faulty:
    """The world's agent under a driver that does harm on order."""

    def __init__(self, world, folder: Path) -> None:
        self.world, self.folder = world, folder
        self.start()

    @property
    def script(self) -> tuple[str, ...]:
        return ("-c", DRIVER.replace("FOLDER", repr(str(self.folder))))

    def start(self) -> None:
        self.world.host.start(self.script)

    def order(self, step: str, what: str, count: int = 1) -> None:
        """Let something happen before the agent takes a step (or "any"), that many times on."""
        self._say("order", f"{step}:{what}:{count}")

    def obeyed(self) -> bool:
        return not (self.folder / "order").exists()

    def withdraw(self) -> None:
        (self.folder / "order").unlink(missing_ok=True)

    def restart(self) -> None:
        """Start an agent after one that may be dead, as systemd does."""
        self.world.host.kill()
        self.start()

    def jump(self, seconds: float) -> None:
        self._say("jump", str(seconds))

    def _say(self, name: str, text: str) -> None:
        """Write a file that is whole whenever the agent looks."""
        new = self.folder / f"{name}.new"
        new.write_text(text)
        new.rename(self.folder / name)

    def knock(self, seconds: int | None = LEASE, *, answered: bool = False, **wish) -> bytes:
        """Send a knock, once, whatever comes of it, and wait if it will be answered; return it."""
        payload = self.world.bob.payload(self.world.host, seconds=seconds, **wish)
        self.answer = self.send(payload, PATIENCE if answered else 0.7)
        return payload

    def send(self, payload: bytes, seconds: float = 0.7) -> bytes | None:
        return self.world.net.client.exchange(self.world.address(), payload, seconds)

    def rows(self) -> list[tuple[str, bytes | None]]:
        """Return operator and receipt of every request on record."""
        with contextlib.closing(sqlite3.connect(self.world.host.state / "ledger.db")) as db:
            return db.execute("SELECT operator, receipt FROM used").fetchall()


def no_firewall(test):
    """Mark what is the same whatever the backend."""
    test.no_firewall = True
    return test


def pytest_generate_tests(metafunc):
    if "world" not in metafunc.fixturenames:
        return
    backends = backends_for(metafunc.function)
    if hasattr(metafunc.function, "no_firewall"):
        backends = backends[:1]
    metafunc.parametrize("world", backends, indirect=True, scope="module")


@pytest.fixture(scope="module")
def world(request, python):
    """The usual world, guarded by one backend."""
    with made(python, firewall=request.param) as world:
        world.backend = request.param
        yield world


@pytest.fixture
def faulty(world, tmp_path):
    """An agent on order; it's left to the next test, or the world's end, to kill."""
    world.host.kill()
    world.host.policy["firewall"] = world.backend
    forget(world)
    return Faulty(world, tmp_path)


# --- the kernel, past the agent, by the system's own tools ---------------------------------------


def forget(world) -> None:
    """Let the kernel forget every rule and lease, in both families, as after a reboot."""
    run = world.net.host.run
    run("nft", "delete", "table", "inet", "tariq", check=False)
    empty = "".join(f"*{table}\nCOMMIT\n" for table in ("raw", "mangle", "filter", "nat"))
    for variant in ("nft", "legacy"):
        for program in ("iptables", "ip6tables"):
            run(f"{program}-{variant}-restore", input=empty)
    run("ipset", "destroy")


def grant(world, backend: str, seconds: int) -> None:
    """Give the client a lease for ssh."""
    client = world.net.V4["client"]
    if backend == "nftables":
        element = f"{{ {client} . tcp . 22 timeout {seconds}s }}"
        world.net.host.run("nft", "add", "element", "inet", "tariq", "leases4", element)
    else:
        element = f"{client},tcp:22"
        world.net.host.run("ipset", "add", "tariq-leases4", element, "timeout", str(seconds))


def left(world) -> int:
    """Return how long the kernel still lets the client in, in seconds; 0 is not at all."""
    if world.backend == "nftables":
        listed = world.net.host.run("nft", "-j", "list", "set", "inet", "tariq", "leases4")
        sets = [each["set"] for each in json.loads(listed.stdout)["nftables"] if "set" in each]
        return max((each["elem"]["expires"] for each in sets[0].get("elem", [])), default=0)
    saved = world.net.host.run("ipset", "save", "tariq-leases4").stdout.splitlines()
    return max((int(line.split()[-1]) for line in saved if line.startswith("add ")), default=0)


def end_leases(world) -> None:
    """Take the leases away beside the agent."""
    if world.backend == "nftables":
        world.net.host.run("nft", "flush", "set", "inet", "tariq", "leases4")
    else:
        world.net.host.run("ipset", "flush", "tariq-leases4")


def closed(world) -> bool:
    """Tell whether nobody without a lease gets in, over IPv4 or IPv6."""
    addresses = map(world.address, (4, 6))
    return not any(world.net.stranger.connects(address, 22, 0.4) for address in addresses)


# --- killed ------------------------------------------------------------------------------------


def dead(world) -> bool:
    return world.host.process.poll() is not None


def serves(world) -> bool:
    return world.knock("-4", "--for", "1s", check=False, patient=False).returncode == 0


@pytest.mark.parametrize(("step", "victim"), KILLED)
@short
def test_killed_between_any_two_steps(faulty, world, step, victim):
    recorded = len(faulty.rows())
    faulty.order(step, victim)
    payload = faulty.knock()
    ends = time.monotonic() + LEASE
    eventually(faulty.obeyed, PATIENCE)
    if victim != "sentry":
        eventually(lambda: dead(world), PATIENCE)
    opened, recorded = world.reachable(), len(faulty.rows()) - recorded
    assert opened <= recorded, "nothing is opened without a record of it"
    if faulty.answer is not None:
        assert opened or time.monotonic() > ends, "nothing is receipted that wasn't done"
    if victim != "sentry":
        faulty.restart()
    eventually(lambda: world.reachable() == opened or time.monotonic() > ends, PATIENCE)
    if recorded:
        end_leases(world)
        assert faulty.send(payload) is None, "what was begun once is never begun again"
        assert not world.reachable()
    eventually(lambda: serves(world), 30)
    assert world.net.stranger.exchange(world.address(), payload) is None or not recorded
    eventually(lambda: not world.reachable(), LEASE + PATIENCE)


def each_step(world, everyday: dict[str, int]):
    """Yield the numbers of the steps to be killed at; the last is one that never comes."""
    return range(1, MOST) if ALL else [everyday[world.backend]]


@pytest.mark.parametrize("before", BEFORE if ALL else BEFORE[:1])
@short
def test_killed_while_the_guard_goes_up(faulty, world, before):
    """What stood goes on; the next guard, or agent, makes all whole, with the lease that ran."""
    other = "iptables-nft" if world.backend == "nftables" else "nftables"
    for step in each_step(world, {"nftables": 2, "iptables-nft": 6}):
        world.host.kill()
        forget(world)
        if before != "nothing":
            backend = other if before == "another backend" else world.backend
            world.host.policy["firewall"] = backend
            world.host.write_policy()
            world.host.guard()
            grant(world, backend, 60)
        ends = time.monotonic() + 60
        world.host.policy["firewall"] = world.backend
        world.host.write_policy()
        faulty.order("Firewall.write", "warden", step)
        status = world.host.guard(faulty.script, check=False).returncode
        if not faulty.obeyed():
            break
        assert status == -signal.SIGKILL
        assert closed(world) or before == "nothing"
        world.host.guard() if step % 2 else faulty.start()
        assert closed(world)
        assert world.reachable() == (before != "nothing")
        assert left(world) <= ends - time.monotonic() + 1
    assert faulty.obeyed() is not ALL, "every step had its turn"
    faulty.withdraw()
    faulty.restart()
    eventually(lambda: serves(world), 30)


@short
def test_killed_while_the_guard_is_put_back(faulty, world):
    """Guarded again by the next agent; a lease is there for its time, or said to be lost."""
    for step in each_step(world, {"nftables": 1, "iptables-nft": 6}):
        faulty.knock(60)
        ends, logged = time.monotonic() + 60, world.host.log.stat().st_size
        assert world.reachable()
        faulty.order("Firewall.write", "warden", step)
        world.host.process.send_signal(signal.SIGSTOP)  # else it is put back half-way
        forget(world)
        world.host.process.send_signal(signal.SIGCONT)

        def put_back(logged=logged):
            return b"was gone, put back" in world.host.log.read_bytes()[logged:]

        eventually(lambda: dead(world) or put_back(), PATIENCE)
        if not dead(world):
            break
        faulty.restart()
        assert closed(world)
        told = world.knock("-4", verb="status").stdout
        assert world.reachable() != ("gone when the agent started: 1" in told)
        assert left(world) <= ends - time.monotonic() + 1
    assert faulty.obeyed() is not ALL, "every step had its turn"
    faulty.withdraw()


def test_killed_while_a_lease_is_closed_and_its_connections_cut(faulty, world):
    """Unanswered is on record as unknown; asked again, it is done."""
    ask = {"do": Action.CLOSE, "cut": True}
    for step in each_step(world, {"nftables": 5}):
        faulty.knock(60)
        ends = time.monotonic() + 60
        with world.net.client.socket(socket.AF_INET) as sock:
            sock.settimeout(0.8)
            sock.connect((world.address(), 22))
            assert sock.recv(16) == b"hello\n"
            assert alive(sock)
            recorded = len(faulty.rows())
            faulty.order("any", "both", step)
            payload = faulty.knock(None, **ask)
            recorded = len(faulty.rows()) - recorded
            if not faulty.obeyed():
                break
            eventually(lambda: dead(world), PATIENCE)
            assert faulty.answer is None or not (world.reachable() or alive(sock))
            faulty.restart()
            assert closed(world)
            assert left(world) <= ends - time.monotonic() + 1
            assert all(receipt is not None for _, receipt in faulty.rows())
            assert not recorded or faulty.send(payload) is None
            eventually(lambda: serves(world), 30)
            faulty.knock(None, answered=True, **ask)
            assert faulty.answer is not None
            assert not world.reachable()
            assert not alive(sock)
    assert faulty.obeyed() is not ALL, "every step had its turn"
    faulty.withdraw()
    faulty.restart()
    assert "gone" not in world.knock("-4", verb="status").stdout, "it was closed, not lost"


def alive(sock: socket.socket) -> bool:
    """Tell whether a connection's other end still answers."""
    try:
        sock.sendall(b"anybody there?")
        return bool(sock.recv(64))
    except OSError:
        return False


@pytest.mark.parametrize(("step", "victim"), RUNNING)
@no_firewall
def test_a_task_runs_at_most_once_wherever_it_is_interrupted(faulty, world, step, victim):
    made = faulty.folder / "made"
    sh = ["/bin/sh", "-c", f"echo x >>{made}"]
    world.host.policy["tasks"] = {"count": {"argv": sh, "user": "root", "concurrent": True}}
    world.host.policy["operators"]["bob"]["tasks"] = ["count"]
    world.host.kill()
    faulty.start()
    recorded = len(faulty.rows())
    faulty.order(step, victim)
    payload = faulty.knock(None, do=Action.RUN, what=("count",))
    eventually(faulty.obeyed, 4)
    if victim != "sentry":
        eventually(lambda: dead(world), PATIENCE)
        faulty.restart()
    recorded = len(faulty.rows()) - recorded
    eventually(lambda: serves(world), 30)
    answers = [faulty.send(payload) for _ in range(2)]
    assert not recorded or answers == [None, None]
    time.sleep(1)  # a second run would show by now
    ran = len(made.read_text().split()) if made.exists() else 0
    began = TASK_STEPS.index(step) > TASK_STEPS.index("Launcher.start") or victim == "sentry"
    assert ran == began if recorded and step != "Ledger.claim" else ran <= 1
    assert faulty.answer is None or ran == 1


@short
def test_a_lease_ends_on_time_whoever_is_dead(faulty, world):
    faulty.order("the end", "warden")
    began = time.monotonic()
    faulty.knock(10, answered=True)
    assert faulty.answer is not None, "it is dead, and its answer on the way"
    eventually(lambda: dead(world), PATIENCE)
    assert world.reachable()
    eventually(lambda: not world.reachable(), 10 + PATIENCE)
    assert time.monotonic() - began > 9, "nor sooner"


@contextlib.contextmanager
def small_disk(directory: Path):
    """Put a directory on a file system of its own of 2 MiB, for a while."""
    kept = directory.with_name("kept")
    shutil.copytree(directory, kept, ignore=shutil.ignore_patterns("S.*"))
    run("mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", str(directory))
    try:
        run("cp", "-a", f"{kept}/.", str(directory))
        yield
    finally:
        run("umount", "--lazy", str(directory))
        shutil.rmtree(kept)


@pytest.mark.parametrize(("which", "when", "answers", "opens"), DISKS if ALL else DISKS[:2])
def test_a_full_disk(faulty, world, which, when, answers, opens):
    """What can't be recorded isn't done; what was done before the disk was full ends on time."""
    disk = {"state": world.host.state, "run": world.host.base / "run"}[which]
    world.host.stop()
    with small_disk(disk):
        (faulty.folder / "disk").write_text(str(disk))
        faulty.start()
        faulty.order(when, "fill")
        payload, ends = faulty.knock(answered=answers), time.monotonic() + LEASE
        assert (faulty.answer is not None) == answers
        assert world.reachable() == opens or time.monotonic() > ends
        assert world.net.stranger.exchange(world.address(), payload) is None
        eventually(lambda: not world.reachable(), LEASE + PATIENCE)
        assert not serves(world), "the control: the disk is full"
        (disk / "ballast").unlink()
        eventually(lambda: serves(world), 30)
        world.host.kill()  # a new sentry, which remembers no picture
        faulty.start()
        assert not answers or faulty.send(payload) is None
        world.host.stop()
    faulty.start()


def test_a_run_that_is_lost_on_a_full_disk_is_told_of_later(tmp_path, monkeypatch):
    class Broken:
        def start(self, directory: Path, label: str, seconds: int):
            fill(directory)
            raise OSError(errno.EAGAIN, "no more processes")

    monkeypatch.setattr(shelf, "START_SECONDS", 0.0)
    who = {"user": "root", "group": None, "operator": "alice", "source": "192.0.2.1"}
    run = shelf.Run("a" * 8, "echo", ["/bin/true"], cwd="/", seconds=1, output=1, t=0.0, **who)
    directory = tmp_path / "tasks"
    directory.mkdir()
    with small_disk(directory):
        runs = shelf.Shelf(directory, Broken())
        runs.start(run)
        assert runs.step() == []
        (directory / "ballast").unlink()
        assert runs.step() == [run]
        assert runs.state(run.label) is State.LOST


@pytest.fixture
def path_of_ours(tmp_path):
    """A folder for PATH with nothing but what the agent runs, so that a test can take it away."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("gpg", "gpgconf", "gpg-agent", "ip"):
        (folder / name).symlink_to(shutil.which(name))
    return folder


def replace(program: Path, script: str | None) -> None:
    """Put a script, or nothing, where a program is."""
    program.unlink(missing_ok=True)
    if script is not None:
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)


GPG = shutil.which("gpg")
GNUPG_FAULTS = {
    "missing": (None, False),
    "hanging": ("exec /bin/sleep 30", False),
    "killed": ("kill -9 $$", False),
    "hanging when it signs": (
        f'case "$*" in *--sign*) exec /bin/sleep 30;; esac; exec {GPG} "$@"',
        True,
    ),
}


@pytest.mark.parametrize("fault", GNUPG_FAULTS if ALL else ["hanging"])
def test_gnupg_fails(faulty, world, path_of_ours, fault):
    """Silence, and nothing opened, unless all but the receipt was done; then the lease ends."""
    script, opens = GNUPG_FAULTS[fault]
    world.host.kill()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(path_of_ours))
        patch.setenv("GPG_SECONDS", "1")
        faulty.start()
    replace(path_of_ours / "gpg", script)
    faulty.knock()
    assert faulty.answer is None
    assert world.reachable() == opens
    replace(path_of_ours / "gpg", f'exec {GPG} "$@"')
    eventually(lambda: serves(world), 30)
    eventually(lambda: not world.reachable(), LEASE + PATIENCE)


def test_the_firewall_refuses(faulty, world):
    """What can't be done isn't receipted as done."""
    faulty.order("Firewall.open", "refuse")
    told = world.knock("-4", "--for", f"{LEASE}s", check=False)
    assert told.returncode == 1
    assert "failed" in told.stdout
    assert not world.reachable()
    eventually(lambda: serves(world), 30)


def test_clocks_jump(faulty, world):
    """A lease is the kernel's; a receipt tells of the jump; what was used stays used."""
    payload = faulty.knock(answered=True)
    assert faulty.answer is not None
    for hours in (-0.4, 24):
        faulty.jump(3600 * hours)
        time.sleep(1.1)  # what is of the same second as an id that is now forgotten counts as used
        told = world.knock("-4", "--for", "60s", check=False)
        assert "skew" in told.stdout
        world.net.stranger.exchange(world.address(), payload)
    eventually(lambda: not world.reachable(), LEASE + PATIENCE)
    faulty.jump(0)
    world.host.kill()  # a new sentry, which remembers no picture
    faulty.start()
    assert world.net.stranger.exchange(world.address(), payload) is None
    assert not world.reachable(node=world.net.stranger)
    eventually(lambda: serves(world), 30)


@pytest.mark.skipif(
    "User Mode Linux" not in Path("/proc/cpuinfo").read_text(),
    reason="cannot here: it would set this machine's clock ('make kernel' has one of its own)",
)
def test_the_host_s_clock_is_set(faulty, world):
    """A lease goes on for its seconds, and by the new clock another is given."""
    for days in (1, -1, 0):
        began = time.monotonic()
        faulty.knock(LONG)
        eventually(world.reachable, 10)  # that kernel is slow: the answer may come too late
        time.clock_settime(time.CLOCK_REALTIME, time.time() + days * 86_400)
        while time.monotonic() < began + LONG - 2:  # the agent looks at its leases meanwhile
            assert world.net.client.connects(world.address(), 22, 5), "it ended too soon"
            time.sleep(0.2)
        eventually(lambda: not world.reachable(), LONG + PATIENCE)


def test_a_reboot(faulty, world):
    """The kernel has forgotten everything; the guard comes back, and no lease."""
    payload = faulty.knock(60)
    assert world.reachable()
    world.host.kill()
    forget(world)
    assert world.reachable(node=world.net.stranger), "the control"
    faulty.start()
    assert closed(world)
    assert not world.reachable()
    assert faulty.send(payload) is None
    assert not world.reachable()
    eventually(lambda: serves(world), 30)


@no_firewall
def test_a_warden_without_descriptors(faulty, world):
    """No pipe to GnuPG, no file: knocks get silence until there is room again."""
    pid, kind = world.host.process.pid, resource.RLIMIT_NOFILE
    plenty = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (4, plenty[1]))
    faulty.knock()
    assert faulty.answer is None
    assert not world.reachable()
    resource.prlimit(pid, kind, plenty)
    eventually(lambda: serves(world), 30)
    assert not dead(world)
