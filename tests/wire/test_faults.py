"""What goes wrong at a bad moment: nothing is opened unrecorded, nothing outlives its time.

Every step of a knock is a place where the agent may be killed, by ``make faults``; the
everyday suite has one of each kind. The agent runs as always, but for a driver
(``DRIVER``) that wraps the steps.
"""

import contextlib
import errno
import inspect
import os
import resource
import shutil
import sqlite3
import time
from pathlib import Path

import pytest
from lab import eventually, run

from tariq.agent import shelf
from tariq.message import Action, State

STEPS = (
    "HostKey.unseal",
    "OperatorRing.verify",
    "Ledger.claim",
    "Nftables.open",
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
LEASE = 3
FULL = [
    ("state", "Ledger.claim", False),
    ("run", "HostKey.unseal", False),
    ("state", "HostKey.unseal", False),
    ("state", "Ledger.settle", True),
]
"""Which disk fills up, when, and whether the lease is there by then."""
KILLED = EVERY if ALL else [("Nftables.open", "both")]
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
folder = Path(FOLDER)

def wrap(cls, name, step):
    plain = getattr(cls, name)
    def wrapped(*args, **more):
        strike(step)
        done = plain(*args, **more)
        if step == "Sentinel.send":
            strike("the end")
        return done
    setattr(cls, name, wrapped)

class Sentinel(sentinel.Sentinel):
    def __init__(self, *args, **more):
        strike.sentinel = self
        super().__init__(*args, **more)

sentinel.Sentinel = Sentinel

def strike(step):
    order = folder / "order"
    if not order.exists() or order.read_text().split(":")[0] != step:
        return
    what = order.read_text().split(":")[1]
    order.unlink()
    if what == "fill":
        fill(Path((folder / "disk").read_text()))
        return
    if what == "refuse":  # by the real library, with a real error
        firewall.nftables._Libnftables().run("add element inet tariq no_such_set { 1 }")
    if what != "warden":
        os.kill(strike.sentinel._process.pid, signal.SIGKILL)
    if what != "sentry":
        os.kill(os.getpid(), signal.SIGKILL)

for cls, name in ((openpgp.HostKey, "unseal"), (openpgp.OperatorRing, "verify"),
                  (ledger.Ledger, "claim"), (ledger.Ledger, "settle"),
                  (firewall.Nftables, "open"), (openpgp.HostKey, "seal_receipt"),
                  (sentinel.Sentinel, "send"), (shelf.Shelf, "start")):
    wrap(cls, name, f"{cls.__name__}.{name}")
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

    def start(self) -> None:
        self.world.host.start(("-c", DRIVER.replace("FOLDER", repr(str(self.folder)))))

    def order(self, step: str, what: str) -> None:
        self._say("order", f"{step}:{what}")

    def jump(self, seconds: float) -> None:
        self._say("jump", str(seconds))

    def _say(self, name: str, text: str) -> None:
        """Write a file that is whole whenever the agent looks."""
        new = self.folder / f"{name}.new"
        new.write_text(text)
        new.rename(self.folder / name)

    def knock(self, seconds: int | None = LEASE, **wish) -> bytes:
        """Send a knock, once, whatever comes of it; return it."""
        payload = self.world.bob.payload(self.world.host, seconds=seconds, **wish)
        self.answer = self.send(payload)
        return payload

    def send(self, payload: bytes) -> bytes | None:
        return self.world.net.client.exchange(self.world.address(), payload)

    def rows(self) -> list[tuple[str, bytes | None]]:
        """Return operator and receipt of every request on record."""
        with contextlib.closing(sqlite3.connect(self.world.host.state / "ledger.db")) as db:
            return db.execute("SELECT operator, receipt FROM used").fetchall()


@pytest.fixture
def faulty(world, tmp_path):
    """An agent on order; it's left to the next test, or the world's end, to kill."""
    world.host.kill()
    world.net.host.run("nft", "delete", "table", "inet", "tariq", check=False)
    return Faulty(world, tmp_path)


def dead(world) -> bool:
    return world.host.process.poll() is not None


def serves(world) -> bool:
    return world.knock("-4", "--for", "1s", check=False).returncode == 0


@pytest.mark.parametrize(("step", "victim"), KILLED)
def test_killed_between_any_two_steps(faulty, world, step, victim):
    recorded = len(faulty.rows())
    faulty.order(step, victim)
    payload = faulty.knock()
    ends = time.monotonic() + LEASE
    eventually(lambda: not (faulty.folder / "order").exists(), 3)
    if victim != "sentry":
        eventually(lambda: dead(world), 5)
    opened, recorded = world.reachable(), len(faulty.rows()) - recorded
    assert opened <= recorded, "nothing is opened without a record of it"
    if faulty.answer is not None:
        assert opened, "nothing is receipted that wasn't done"
    if victim != "sentry":
        world.host.kill()
        faulty.start()
    eventually(lambda: world.reachable() == opened or time.monotonic() > ends, 3)
    if recorded:
        world.net.host.run("nft", "flush", "set", "inet", "tariq", "leases4")
        assert faulty.send(payload) is None, "what was begun once is never begun again"
        assert not world.reachable()
    eventually(lambda: serves(world), 10)
    assert world.net.stranger.exchange(world.address(), payload) is None or not recorded
    eventually(lambda: not world.reachable(), LEASE + 1)


@pytest.mark.parametrize(("step", "victim"), RUNNING)
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
    eventually(lambda: not (faulty.folder / "order").exists(), 4)
    if victim != "sentry":
        eventually(lambda: dead(world), 5)
        world.host.kill()
        faulty.start()
    recorded = len(faulty.rows()) - recorded
    eventually(lambda: serves(world), 10)
    answers = [faulty.send(payload) for _ in range(2)]
    assert not recorded or answers == [None, None]
    time.sleep(1)  # a second run would show by now
    ran = len(made.read_text().split()) if made.exists() else 0
    began = TASK_STEPS.index(step) > TASK_STEPS.index("Launcher.start") or victim == "sentry"
    assert ran == began if recorded and step != "Ledger.claim" else ran <= 1
    assert faulty.answer is None or ran == 1


def test_a_lease_ends_on_time_whoever_is_dead(faulty, world):
    faulty.order("the end", "warden")
    began = time.monotonic()
    faulty.knock()
    assert faulty.answer is not None, "it is dead, and its answer on the way"
    eventually(lambda: dead(world), 5)
    assert world.reachable()
    eventually(lambda: not world.reachable(), LEASE + 1)
    assert time.monotonic() - began > LEASE - 1, "nor sooner"


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


@pytest.mark.parametrize(("which", "when", "opens"), FULL if ALL else FULL[:2])
def test_a_full_disk(faulty, world, which, when, opens):
    """What can't be recorded isn't done; what was done before the disk was full ends on time."""
    disk = {"state": world.host.state, "run": world.host.base / "run"}[which]
    world.host.stop()
    with small_disk(disk):
        (faulty.folder / "disk").write_text(str(disk))
        faulty.start()
        faulty.order(when, "fill")
        payload, ends = faulty.knock(), time.monotonic() + LEASE
        assert (faulty.answer is not None) == world.reachable() == opens
        assert world.net.stranger.exchange(world.address(), payload) is None
        eventually(lambda: not world.reachable(), ends - time.monotonic() + 1)
        assert not serves(world), "the control: the disk is full"
        (disk / "ballast").unlink()
        eventually(lambda: serves(world), 5)
        world.host.kill()  # a new sentry, which remembers no picture
        faulty.start()
        assert not opens or faulty.send(payload) is None
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
    eventually(lambda: serves(world), 10)
    eventually(lambda: not world.reachable(), LEASE + 1)


def test_the_firewall_refuses(faulty, world):
    """What can't be done isn't receipted as done."""
    faulty.order("Nftables.open", "refuse")
    told = world.knock("-4", "--for", f"{LEASE}s", check=False)
    assert told.returncode == 1
    assert "failed" in told.stdout
    assert not world.reachable()
    assert serves(world)


def test_clocks_jump(faulty, world):
    """A lease is the kernel's; a receipt tells of the jump; what was used stays used."""
    payload, began = faulty.knock(), time.monotonic()
    assert faulty.answer is not None
    for hours in (-0.4, 24):
        faulty.jump(3600 * hours)
        time.sleep(1.1)  # what is of the same second as an id that is now forgotten counts as used
        told = world.knock("-4", "--for", "60s", check=False)
        assert "skew" in told.stdout
        world.net.stranger.exchange(world.address(), payload)
    eventually(lambda: not world.reachable(), LEASE + 1)
    assert time.monotonic() - began < 2 * LEASE + 2
    faulty.jump(0)
    world.host.kill()  # a new sentry, which remembers no picture
    faulty.start()
    assert world.net.stranger.exchange(world.address(), payload) is None
    assert not world.reachable(node=world.net.stranger)
    eventually(lambda: serves(world), 5)


def test_a_reboot(faulty, world):
    """The kernel has forgotten everything; the guard comes back, and no lease."""
    payload = faulty.knock(60)
    assert world.reachable()
    world.host.kill()
    world.net.host.run("nft", "delete", "table", "inet", "tariq")
    faulty.start()
    assert not world.reachable()
    assert faulty.send(payload) is None
    assert not world.reachable()
    assert serves(world)


def test_a_warden_without_descriptors(faulty, world):
    """No pipe to GnuPG, no file: knocks get silence until there is room again."""
    pid, kind = world.host.process.pid, resource.RLIMIT_NOFILE
    plenty = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (4, plenty[1]))
    faulty.knock()
    assert faulty.answer is None
    assert not world.reachable()
    resource.prlimit(pid, kind, plenty)
    assert serves(world)
    assert not dead(world)
