"""The guard over time, against a clock and a kernel that can be told what to do.

A host that sleeps, and the last second of a lease, can't be had for real.
"""

import contextlib
import itertools

import pytest

from tariq.agent import firewall
from tariq.agent.firewall import iptables
from tariq.agent.firewall.base import ENDLESS, Guard, Lease
from tariq.agent.firewall.keeper import Keeper, in_charge
from tariq.agent.policy import Service
from tariq.errors import FirewallError

SSH, WEB = Service("tcp", 22), Service("tcp", 443)
ME = "192.0.2.9"


class Kernel:
    """A backend whose timers run only when it is told so."""

    name, every = "told", 1.0

    def __init__(self):
        self.held, self.guarded, self.broken = {}, False, False
        self.besides = []
        """Other backends of the same host."""
        self.meanwhile = lambda: None
        """What somebody else does just before a step of ours."""

    def guard(self, wanted):
        self.meanwhile()
        if self.broken:
            raise FirewallError("told", "broken")
        self.guarded = True

    def unguard(self):
        self.meanwhile()
        self.flush()

    def intact(self):
        self.meanwhile()
        return self.guarded

    def open(self, leases):
        self.meanwhile()
        if not self.guarded:
            raise FirewallError("told", "no set")
        self.held |= {(each.address, each.service): each for each in leases}

    def close(self, leases, *, cut=False):
        for each in leases:
            self.held.pop((each.address, each.service), None)

    def leases(self):
        self.meanwhile()
        return list(self.held.values())

    def flush(self):
        self.held, self.guarded = {}, False


@pytest.fixture
def kernel():
    return Kernel()


@pytest.fixture
def clock():
    return [1000.0]


@pytest.fixture
def keeper(kernel, clock, tmp_path):
    keeper = Keeper(
        kernel, Guard(62201, (SSH, WEB)), unguarded=tmp_path / "unguarded", clock=lambda: clock[0]
    )
    keeper.start()
    return keeper


def test_a_lease_is_put_back_for_what_is_left_of_it(kernel, keeper, clock):
    keeper.open([Lease(ME, SSH, 60), Lease(ME, WEB, 10)])
    clock[0] += 9.5
    kernel.flush()
    keeper.check()
    assert kernel.leases() == [Lease(ME, SSH, 50)], "never longer, and not for a last half second"
    assert "put back; leases restored: 1" in keeper.news


def test_a_closed_lease_is_never_put_back(kernel, keeper, clock):
    keeper.open([Lease(ME, SSH, 60)])
    keeper.close([Lease(ME, SSH, 0)])
    kernel.flush()
    clock[0] += 1
    keeper.check()
    assert kernel.guarded
    assert not kernel.leases()


def test_a_lease_that_slept_over_its_end_is_ended(kernel, keeper, clock):
    """The host slept: its kernel's timer stood still."""
    keeper.open([Lease(ME, SSH, 60)])
    clock[0] += 59
    keeper.check()
    assert kernel.leases()
    clock[0] += 3
    keeper.check()
    assert not kernel.leases()


def test_what_an_earlier_agent_granted_is_put_back_too(kernel, clock):
    kernel.guarded = True
    kernel.open([Lease(ME, SSH, 30)])
    keeper = Keeper(kernel, Guard(62201, (SSH,)), clock=lambda: clock[0])
    keeper.start()
    kernel.flush()
    clock[0] += 10
    keeper.check()
    assert kernel.leases() == [Lease(ME, SSH, 20)]


def test_a_knock_just_after_a_flush_finds_the_guard_put_back(kernel, keeper):
    keeper.open([Lease(ME, WEB, 60)])
    kernel.flush()
    keeper.open([Lease(ME, SSH, 60)])
    assert {each.service for each in kernel.leases()} == {SSH, WEB}


def test_what_can_not_be_put_back_is_told_of_once_and_tried_again(kernel, keeper, clock, caplog):
    kernel.flush()
    kernel.broken = True
    for _ in range(3):
        clock[0] += 1
        keeper.check()
    assert "can't be put back: told: broken" in keeper.news
    assert len(caplog.records) == 1
    with pytest.raises(FirewallError):
        keeper.open([Lease(ME, SSH, 60)])
    kernel.broken = False
    clock[0] += 1
    keeper.check()
    assert kernel.guarded
    assert "the guard was gone, put back" in keeper.news


def test_while_root_wants_it_down_nothing_is_put_up(kernel, keeper, clock, tmp_path):
    (tmp_path / "unguarded").touch()
    kernel.flush()
    clock[0] += 1
    keeper.check()
    with pytest.raises(FirewallError, match="root ran"):
        keeper.open([Lease(ME, SSH, 60)])
    assert not kernel.guarded
    keeper.start()
    assert kernel.guarded
    assert not (tmp_path / "unguarded").exists()


def other_guard(keeper):
    keeper.replace(Guard(62201, (SSH,)))


def other_backend(keeper):
    old, new = keeper._firewall, Kernel()
    new.name, new.meanwhile = "other", old.meanwhile
    old.besides.append(new)
    keeper.replace(Guard(62201, (SSH,)), new, [old])


def a_knock(keeper):
    with contextlib.suppress(FirewallError):
        keeper.open([Lease(ME, SSH, 60)])


@pytest.mark.parametrize("work", [Keeper.start, Keeper.check, a_knock, other_guard, other_backend])
@pytest.mark.parametrize(
    ("told_at", "down_at"), list(itertools.combinations_with_replacement(range(6), 2))
)
def test_roots_word_holds_whenever_it_comes(
    keeper, kernel, clock, tmp_path, work, told_at, down_at
):
    """``unguard`` tells the agent, then takes the guard down; both between any steps of ours."""
    steps = iter(range(99))

    def meanwhile():
        step = next(steps)
        if step == told_at:
            (tmp_path / "unguarded").touch()
        if step == down_at:
            for each in (kernel, *kernel.besides):
                each.flush()

    clock[0] += 1
    kernel.flush()
    kernel.meanwhile = meanwhile
    with contextlib.suppress(FirewallError):
        work(keeper)
    for _ in range(12):  # what didn't come in between comes afterwards
        meanwhile()
    clock[0] += 1
    keeper.check()
    assert not any(each.guarded for each in (kernel, *kernel.besides))
    assert "root ran" in keeper.news


@pytest.mark.parametrize("down_at", range(6))
def test_an_unguard_that_is_over_before_a_start_is_is_not_forgotten(
    keeper, kernel, clock, tmp_path, monkeypatch, down_at
):
    """The whole of ``unguard``, as it is, between any two steps of a start beside an agent."""
    told = tmp_path / "unguarded"
    monkeypatch.setattr(firewall, "delete_inet_table", lambda _: kernel.flush())
    monkeypatch.setattr(firewall.iptables, "variants", list)
    steps = iter(range(99))

    def meanwhile():
        if next(steps) == down_at:
            firewall.take_down(told)

    kernel.meanwhile = meanwhile
    Keeper(kernel, Guard(62201, (SSH,)), unguarded=told, clock=lambda: clock[0]).start()
    for _ in range(9):
        meanwhile()
    clock[0] += 1
    keeper.check()
    assert not kernel.guarded
    assert "root ran" in keeper.news


def test_unguard_says_it_again_if_a_start_has_just_forgotten_it(kernel, tmp_path, monkeypatch):
    told = tmp_path / "unguarded"
    times = []

    def delete(_name):
        times.append(1)
        if len(times) == 1:  # the last step of an agent's start
            kernel.guarded = True
            told.unlink()
        else:
            kernel.flush()

    monkeypatch.setattr(firewall, "delete_inet_table", delete)
    monkeypatch.setattr(firewall.iptables, "variants", list)
    firewall.take_down(told)
    assert told.exists()
    assert not kernel.guarded


# --- another backend --------------------------------------------------------------------------


@pytest.fixture
def other(kernel):
    other = Kernel()
    other.name = "other"
    return other


def test_a_backend_that_is_named_while_the_guard_is_down_guards_when_it_is_up_again(
    kernel, keeper, other, clock, tmp_path
):
    told = tmp_path / "unguarded"
    told.touch()
    kernel.flush()
    keeper.replace(Guard(62201, (SSH,)), other, [kernel])
    assert in_charge(told) == "other"
    told.unlink()
    clock[0] += 1
    keeper.check()
    assert (kernel.guarded, other.guarded) == (False, True)


@pytest.mark.parametrize("broken", ["guard", "open"])
def test_a_backend_that_fails_half_way_leaves_the_old_guard_and_none_of_its_own(
    kernel, keeper, other, clock, tmp_path, monkeypatch, broken
):
    def fail(_):
        other.guarded = True
        raise FirewallError("other", "no ip6tables")

    keeper.open([Lease(ME, SSH, 60)])
    monkeypatch.setattr(other, broken, fail)
    with pytest.raises(FirewallError, match="ip6tables"):
        keeper.replace(Guard(62201, (SSH,)), other, [kernel])
    assert (kernel.guarded, other.guarded) == (True, False)
    assert kernel.leases()
    assert in_charge(tmp_path / "unguarded") == "told"


def test_only_a_process_that_runs_is_in_charge(kernel, keeper, clock, tmp_path):
    told = tmp_path / "unguarded"
    assert in_charge(told) == "told"
    second = Keeper(kernel, Guard(62201, (SSH,)), unguarded=told, clock=lambda: clock[0])
    second.start()  # as 'tariq agent guard' does beside an agent
    keeper._word.close()  # as its process's end does
    assert in_charge(told) == "", "its word is there, and nobody's"
    clock[0] += 1
    second.check()
    assert in_charge(told) == "told"


def test_what_another_program_opened_for_ever_is_told_of_and_is_no_lease(
    kernel, keeper, other, clock
):
    endless = Lease("192.0.2.66", SSH, ENDLESS)
    keeper.open([Lease(ME, SSH, 60)])
    kernel.held[endless.address, SSH] = endless
    for _ in range(2):
        clock[0] += 1
        keeper.check()
    assert "without an end, by another program: 1" in keeper.news
    assert keeper.leases() == [Lease(ME, SSH, 60)]
    keeper.replace(Guard(62201, (SSH,)), other, [kernel])
    assert other.leases() == [Lease(ME, SSH, 60)]


def test_a_lease_in_its_last_second_does_not_move(kernel, keeper, other):
    """Sets of iptables take 0 for: for ever."""
    kernel.held = {(ME, SSH): Lease(ME, SSH, 0), (ME, WEB): Lease(ME, WEB, 1)}
    keeper.replace(Guard(62201, (SSH,)), other, [kernel])
    assert other.leases() == [Lease(ME, WEB, 1)]


def test_a_kernel_that_takes_its_time_ends_no_lease_before_we_do(kernel, keeper, clock):
    def stall():
        clock[0] += 30
        kernel.meanwhile = lambda: None

    kernel.meanwhile = stall  # before or after its timer starts: who knows
    keeper.open([Lease(ME, SSH, 60)])
    kernel.held.clear()
    clock[0] += 31
    keeper.check()
    assert not keeper.news
    kernel.flush()
    clock[0] += 1
    keeper.check()
    assert not kernel.leases()


def test_a_knock_that_fails_half_way_ends_nothing_that_was_open_before(monkeypatch):
    """iptables' sets are not changed in one step; this one has no room for a third lease."""
    held = {}

    def ipset(command, text="", fine=None):
        if "save" in command:
            lines = [f"add {key} timeout {time}\n" for key, time in held.items()]
            return "".join(line for line in lines if command[-1] in line)
        for words in map(str.split, text.splitlines()):
            key = " ".join(words[1:3])
            if words[0] == "del":
                held.pop(key, None)
            elif key in held or len(held) < 2:
                held[key] = words[4]
            else:
                raise FirewallError("ipset", "hash is full, cannot add more elements")
        return ""

    monkeypatch.setattr(iptables, "call", ipset)
    monkeypatch.setattr(iptables, "find", lambda program, _: program)
    backend = iptables.Iptables()
    backend.open([Lease(ME, SSH, 60)])
    with pytest.raises(FirewallError, match="full"):
        backend.open([Lease(ME, SSH, 60), Lease(ME, WEB, 60), Lease(ME, Service("udp", 53), 60)])
    assert backend.leases() == [Lease(ME, SSH, 60)]
