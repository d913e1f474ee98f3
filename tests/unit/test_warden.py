"""The warden at bad moments: an operator gets silence or ``failed``, and the agent goes on.

GnuPG is left out here: what it opens and whom it names are given.
"""

import contextlib
import errno
import ipaddress
import time
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import pytest

from tariq import openpgp
from tariq.agent import warden as wardens
from tariq.agent.ledger import Ledger, read_audit
from tariq.agent.link import Knock
from tariq.agent.policy import DAY, Grant, Limits, Operator, Policy, Service
from tariq.agent.runner import write_end
from tariq.agent.shelf import Run, Shelf
from tariq.agent.tasks import Task
from tariq.agent.warden import Warden
from tariq.errors import AgentError, FirewallError, NoGpgError
from tariq.message import Action, Bundle, Code, Receipt, Request

ALICE, HOST, SOURCE = "A" * 40, "B" * 40, "192.0.2.1"
SSH, WEB = Service("tcp", 22), Service("tcp", 443)
RULES = Policy(
    1,
    "web1",
    62201,
    services={"ssh": SSH, "web": WEB},
    operators={"alice": Operator(ALICE, Grant(("all",), ("all",)))},
    tasks={"nap": Task(("/bin/true",), "root", concurrent=True)},
    default_service="ssh",
)


class Launcher:
    """Starts nothing: tests say how a run ends."""

    def start(self, *_):
        return None


class World:
    """A warden with a ledger and a shelf of its own; ``keys`` are those in the keyring."""

    def __init__(self, base):
        self.now = time.time()
        self.path = base / "ledger.db"
        self.ledger = Ledger(self.path)
        self.shelf = Shelf(base / "tasks", Launcher())
        self.keys = {ALICE: ""}
        self.firewall = mock.Mock(news="", leases=list)
        self.operators = mock.Mock(verify=lambda *_: ALICE, states=lambda: self.keys)
        self.host_key = mock.Mock(
            unseal=lambda raw: raw,
            addressed=lambda to: self.host_key if to == openpgp.short(HOST) else None,
            seal_receipt=lambda raw, _: raw,
        )
        self.start()

    def start(self, rules=RULES):
        self.warden = Warden(
            policy=rules,
            host_key=self.host_key,
            operators=self.operators,
            ledger=self.ledger,
            firewall=self.firewall,
            shelf=self.shelf,
            clock=lambda: self.now,
        )

    def ask(self, do=Action.OPEN, what=(), *, ahead=0, source=SOURCE, **more):
        """Send a knock; return what is answered, a list that is empty while nothing is."""
        to, t = openpgp.short(HOST), int(self.now) + ahead
        request = Request(to=to, do=do, t=t, what=what, **more)
        return self.send(Bundle(request.encode(), 0, (), b"signature").encode(), source)

    def send(self, message, source=SOURCE):
        answers = []
        told = lambda raw: answers.append(Receipt.decode(raw) if raw else None)  # noqa: E731
        self.warden.answer(Knock(1, source, message), told)
        return answers

    def full(self):
        """Fill the ledger's disk, as far as SQLite can see, to the last row."""
        pages = self.ledger._db.execute("PRAGMA page_count").fetchone()[0]
        self.ledger._db.execute(f"PRAGMA max_page_count={pages}")
        for size in (1000, 100, 10, 0):
            with contextlib.suppress(AgentError):
                while True:
                    self.ledger.note("x", filler="x" * size)

    def events(self):
        return [entry.content["event"] for entry in read_audit(self.path)]


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    yield made
    made.ledger.close()


def failing(error):
    return mock.Mock(side_effect=error)


def test_a_disk_that_fills_up_after_the_claim_costs_that_knock_alone(world, monkeypatch):
    full = AgentError("ledger.db", "the ledger can't be written: disk is full")
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "lease", failing(full))
        [receipt] = world.ask()
    assert (receipt.code, receipt.ok) == (Code.FAILED, False)
    assert not world.firewall.open.called, "what can't be recorded isn't done"
    assert world.ask()[0].code is Code.OPENED


@pytest.mark.parametrize("why", ["was ended by signal 9", "gave no answer within 10 s"])
def test_gnupg_that_fails_to_list_keys_costs_that_status_alone(world, why):
    world.operators.states = failing(NoGpgError("gpg", why))
    [receipt] = world.ask(Action.STATUS)
    assert receipt.code is Code.FAILED
    assert why in receipt.detail
    world.operators.states = lambda: world.keys
    assert world.ask(Action.STATUS)[0].code is Code.STATUS


def test_an_agent_starts_on_a_full_disk_and_says_what_it_could_not_record(world, caplog):
    world.ledger.claim(b"1" * 16, int(world.now), "alice", SOURCE, b"")
    world.full()
    world.warden.recover()
    assert "requests without an outcome not recorded" in caplog.text
    assert world.ask() == [None]


# --- tasks ----------------------------------------------------------------------------------


def run_label(world):
    [run] = [run for run in world.shelf.recent("alice") if run.end is None]
    return run.label


def test_an_error_while_one_is_answered_takes_no_answer_from_others(world, monkeypatch):
    answers = [world.ask(Action.RUN, ("nap",)) for _ in range(3)]
    for run in world.shelf.recent("alice"):
        write_end(world.shelf.directory, run.label, {"exit": 0})
    plain, tries = Shelf.head, iter([0])

    def head(self, *what):
        for _ in tries:  # the first time only
            raise OSError(errno.EMFILE, "too many open files")
        return plain(self, *what)

    monkeypatch.setattr(Shelf, "head", head)
    assert world.warden.step(), "the first has to wait"
    assert [len(each) for each in answers] == [0, 1, 1]
    assert not world.warden.step()
    assert [each[0].exit for each in answers] == [0, 0, 0]


def test_what_can_never_be_told_is_silence_when_its_time_is_over(world, monkeypatch):
    monkeypatch.setattr(Shelf, "head", failing(OSError(errno.EIO, "input/output error")))
    answers = world.ask(Action.RUN, ("nap",))
    write_end(world.shelf.directory, run_label(world), {"exit": 0})
    assert world.warden.step()
    world.warden.finish()
    assert answers == [None]


def test_who_waits_is_answered_before_anything_is_pruned(world, monkeypatch):
    monkeypatch.setattr("tariq.agent.shelf.KEEP", 1)
    answers = [world.ask(Action.RUN, ("nap",)) for _ in range(3)]
    for run in world.shelf.recent("alice"):
        write_end(world.shelf.directory, run.label, {"exit": 3})
    world.warden.step()
    assert [each[0].exit for each in answers] == [3, 3, 3]
    assert len(list(world.shelf.directory.glob("*.json"))) == 1


@pytest.mark.parametrize(("days", "recorded"), [(399, ["ended"]), (401, [])])
def test_an_end_whose_row_may_have_left_is_not_recorded_as_new(world, days, recorded):
    """Found on the shelf at a start; rows leave after 400 days."""
    who = {"user": "root", "group": None, "cwd": "/", "operator": "alice", "source": SOURCE}
    then = int(time.time()) - days * DAY
    run = Run("0123abcd", "nap", [], seconds=1, output=1, t=then, **who)
    world.shelf.start(run)
    write_end(world.shelf.directory, run.label, {"t": then, "exit": 0})
    world.shelf.step()
    world.warden.recover()
    assert world.events() == recorded


# --- keys that are no longer trusted ----------------------------------------------------------


class Kernel:
    """Leases, by address; ``broken`` says which can't be ended, or with which connections."""

    def __init__(self, *addresses):
        self.leases, self.cut, self.broken = set(addresses), set(), set()

    def close(self, leases, *, cut=False):
        for lease in leases:
            if lease.address in self.broken:
                raise FirewallError("nftables", "refused")
            self.leases.discard(lease.address)
            if cut and "conntrack" in self.broken:
                raise FirewallError("conntrack", "not found on this machine")
            if cut:
                self.cut.add(lease.address)


@pytest.fixture
def three(world):
    """Three leases by a key that then loses its trust."""
    addresses = ("192.0.2.1", "192.0.2.2", "192.0.2.3")
    for address in addresses:
        world.ledger.lease("REVOKED", address, ("tcp", 22), int(world.now) + 3600)
    kernel = Kernel(*addresses)
    world.firewall.close = kernel.close
    return kernel


def test_all_leases_of_a_key_end_even_where_no_connection_can_be_cut(world, three):
    three.broken = {"conntrack"}
    world.warden.recover()
    assert not three.leases


def test_a_lease_that_can_not_be_ended_keeps_no_other_and_is_tried_again(world, three, monkeypatch):
    three.broken = {"192.0.2.1"}
    world.warden.recover()
    assert three.leases == {"192.0.2.1"}
    assert three.cut == {"192.0.2.2", "192.0.2.3"}
    three.broken = set()
    world.warden.tick()
    assert three.leases == {"192.0.2.1"}, "not each second"
    later = time.monotonic() + wardens._AGAIN
    monkeypatch.setattr(wardens, "time", SimpleNamespace(monotonic=lambda: later))
    world.warden.tick()
    assert not three.leases
    assert len(three.cut) == 3
    assert not world.ledger.leases_of_strangers({ALICE}, int(world.now)), "done with"


def test_a_keyring_that_can_not_be_read_at_first_is_asked_again(world, three, monkeypatch):
    world.operators.states = failing(NoGpgError("gpg", "gave no answer"))
    world.warden.recover()
    world.operators.states = lambda: world.keys
    later = time.monotonic() + wardens._AGAIN
    monkeypatch.setattr(wardens, "time", SimpleNamespace(monotonic=lambda: later))
    world.warden.tick()
    assert not three.leases


# --- what an operator may cost -------------------------------------------------------------------


def test_an_operator_has_so_many_leases_at_a_time_and_may_prolong_them(world, monkeypatch):
    assert wardens.MOST_LEASES == 256, "as docs/policy.md says"
    monkeypatch.setattr(wardens, "MOST_LEASES", 3)
    assert world.ask(what=("ssh", "web"), seconds=60)[0].ok
    assert world.ask(what=("ssh",), source="192.0.2.2", seconds=60)[0].ok
    [refused] = world.ask(what=("ssh",), source="192.0.2.3", seconds=60)
    assert (refused.code, refused.detail) == (Code.BUSY, "3 leases of yours are open")
    assert world.firewall.open.call_count == 2
    assert world.ask(what=("web", "ssh"), seconds=60)[0].ok, "no more of them"
    world.now += 61
    assert world.ask(what=("ssh",), source="192.0.2.3", seconds=60)[0].ok


def test_a_request_from_years_ahead_is_silence_and_is_not_kept(world):
    assert world.ask(ahead=1800)[0].code is Code.SKEW
    assert world.ask(ahead=1801) == [None]
    assert world.ask(ahead=365 * DAY) == [None]
    assert world.ledger._db.execute("SELECT count(*) FROM used").fetchone() == (1,)
    assert world.events() == ["accepted", "answered", "refused", "refused"]


# --- receipts ---------------------------------------------------------------------------------


def test_a_receipt_s_time_and_its_lease_s_end_are_of_one_clock_reading(world):
    ticking = iter(range(int(world.now), int(world.now) + 100))
    world.warden._clock = lambda: next(ticking)
    [receipt] = world.ask(seconds=60, ahead=5)
    assert receipt.leases["ssh"] - receipt.t == 60


def test_a_refusal_that_names_many_networks_can_still_be_read(world):
    networks = tuple(ipaddress.ip_network(f"10.{n}.0.0/16") for n in range(40))
    alice = Operator(ALICE, Grant(("all",), (), Limits(networks)))
    world.start(replace(RULES, operators={"alice": alice}))
    [receipt] = world.ask(what=("ssh",))
    assert receipt.code is Code.DENIED
    assert receipt.detail.startswith("alice: 192.0.2.1 is in none of 10.0.0.0/16")
