"""What a trial remembers; what it does to a host is in tests/fleet.

There is no systemd to ask here, so a set says what it would: which timers run. Where the order of
things matters, a host in a few lines does what systemd and the firewall would.
"""

import contextlib
import dataclasses
import json
import os
from types import SimpleNamespace

import pytest

from tariq.agent import trial
from tariq.agent.identity import Places
from tariq.errors import AgentError

TIMER = "tariq-trial-11.timer"


@pytest.fixture
def timers(monkeypatch):
    found = {TIMER}
    monkeypatch.setattr(trial, "_succeeds", lambda verb, unit: unit in found)
    return found


@pytest.fixture
def places(tmp_path, timers):
    found = Places(tmp_path / "etc", tmp_path / "state", tmp_path / "run")
    found.operators.mkdir(parents=True)
    found.policy.write_text("version: 1\n")
    (found.host_key / "private-keys-v1.d").mkdir(parents=True)
    return found


def running(places, **changes):
    now = trial._now()
    found = trial.Trial(
        token="11",
        state="running",
        digest=trial.digest(places),
        until=now + 60,
        guarded=now,
    )
    found = dataclasses.replace(found, **changes)
    places.trial.write_text(json.dumps(dataclasses.asdict(found)))


@pytest.mark.parametrize("content", ["", "[]", '{"token": 1}', "\xff"])
def test_what_cant_be_read_was_never_confirmed(places, content):
    assert trial.status(places) == trial.Status("needed", "never confirmed")
    places.trial.write_text(content, "latin-1")
    assert trial.status(places) == trial.Status("needed", "never confirmed")


def test_a_change_by_hand_is_warned_of_until_it_is_confirmed(places):
    assert trial.warning(places) == "", "never on trial: nothing would hold a start back"
    running(places, state="confirmed")
    assert trial.warning(places) == ""
    places.policy.write_text("version: 1\n\n")
    assert "comes up open" in trial.warning(places)
    running(places)
    assert trial.warning(places) == "", "it is being tried"


def test_a_trial_runs_as_long_as_its_timer(places, timers):
    running(places)
    assert trial.status(places).state == "running"
    running(places, state="ended")
    assert "without being confirmed" in trial.status(places).reason
    running(places)
    timers.clear()  # as a restart of the host does
    assert "without being confirmed" in trial.status(places).reason


def test_whatever_the_agent_depends_on_needs_another_trial(places):
    known = {trial.digest(places)}
    (places.operators / "alice.asc").write_text("key\n")
    known.add(trial.digest(places))
    places.policy.write_text("version: 1\n\n")
    known.add(trial.digest(places))
    (places.host_key / "private-keys-v1.d" / "AB.key").write_text("")
    known.add(trial.digest(places))
    assert len(known) == 4
    running(places, state="confirmed", digest=min(known - {trial.digest(places)}))
    assert "has changed" in trial.status(places).reason


@pytest.mark.parametrize(
    ("changes", "token", "reason"),
    [
        ({}, "22", "not running"),
        ({"state": "ended"}, "11", "not running"),
        ({"token": "33"}, "33", "not running"),
        ({"digest": "another"}, "11", "has changed"),
        ({}, "11", "no ssh connection|older than the guard"),
    ],
)
def test_no_other_trial_and_nothing_unproved_is_confirmed(places, changes, token, reason):
    """This very test may have come in by ssh, but not after the guard went up."""
    running(places, **{"guarded": trial._now(), **changes})
    with pytest.raises(AgentError, match=reason):
        trial.confirm(places, token)


def test_only_the_trial_that_is_meant_is_ended(places):
    running(places)
    assert not trial.end(places, "22")
    assert trial.status(places).state == "running"


# --- what comes between -----------------------------------------------------------------------

UNITS = {trial.AGENT, "tariq-guard.service"}


class Killed(BaseException):
    """What nothing may catch."""


class Host:
    """What systemd and the firewall do when they are told, and what is up then."""

    def __init__(self, places):
        self.places = places
        self.up, self.guarded = set(), False
        self.enabled, self.timers = set(), set()
        self.restarted = False
        """The host, and none of the units was up since."""
        self.fails = ()
        """Verbs that systemctl says no to."""
        self.meanwhile = lambda: None
        """What somebody else does just before a step of ours."""

    def run(self, *command):
        self.meanwhile()
        verb, *names = command[1:]
        if command[0] == "systemd-run":
            self.timers.add(verb.removeprefix("--unit=") + ".timer")
        elif verb in self.fails:
            raise AgentError(verb, "failed")
        elif verb == "start":
            self.up |= set(names)
            self.guarded = True
        elif verb == "stop":
            self.up -= set(names)
            self.timers -= set(names)
        elif verb == "disable":
            self.enabled -= set(names)
        elif verb == "enable":
            self.enabled |= set(names)

    def take_down(self, _unguarded):
        self.meanwhile()
        self.guarded = False

    def ask(self, verb, *_):
        self.meanwhile()
        if verb == "show":
            return "0\n\n0\n" if self.restarted else "4711\n\n0\n"
        return "".join(f"{name} loaded\n" for name in self.timers) if verb == "list-units" else ""

    def at_step(self, number, what):
        """Let somebody else do that between two steps of ours."""
        steps = iter(range(99))

        def meanwhile():
            if next(steps) == number:
                self.meanwhile = lambda: None
                with contextlib.suppress(AgentError):
                    what()

        self.meanwhile = meanwhile

    def let_timers_run_out(self):
        self.meanwhile = lambda: None
        for name in list(self.timers):
            trial.end(self.places, name.removeprefix("tariq-trial-").removesuffix(".timer"))
            self.timers.discard(name)

    @property
    def is_open(self):
        return not (self.guarded or self.up or self.enabled)


@pytest.fixture
def host(places, timers, monkeypatch, tmp_path):
    """A host whose agent was confirmed."""
    host = Host(places)
    host.timers = timers
    timers.clear()
    host.up, host.enabled, host.guarded = {trial.AGENT}, set(UNITS), True
    running(places, state="confirmed")
    units = tmp_path / "units"
    units.mkdir()
    for name in UNITS:
        (units / name).write_text("")
    monkeypatch.setattr(trial, "UNITS", units)
    monkeypatch.setattr(trial, "_PATIENCE", 0)
    monkeypatch.setattr(trial, "_run", host.run)
    monkeypatch.setattr(trial, "_ask", host.ask)
    monkeypatch.setattr(trial, "_succeeds", lambda _, unit: unit in host.timers | host.up)
    monkeypatch.setattr(trial.policy_file, "load", lambda _: SimpleNamespace(firewall="auto"))
    monkeypatch.setattr(trial.firewall, "take_down", host.take_down)
    monkeypatch.setattr(trial.firewall, "clear_others", lambda _: host.meanwhile())
    return host


STEPS = range(9)
"""More than ``begin`` has."""


def test_the_control_a_trial_that_nobody_disturbs(host):
    token = trial.begin(host.places, 60)
    assert host.guarded
    assert host.timers == {f"tariq-trial-{token}.timer"}
    trial.confirm(host.places, token, untried=True)
    assert (host.enabled, host.timers) == (UNITS, set())
    host.let_timers_run_out()
    assert trial.status(host.places).state == "confirmed"


@pytest.mark.parametrize("step", STEPS)
def test_an_end_holds_whenever_it_comes(host, step):
    """By hand, or by the timer, while the agent starts: what is up afterwards has its timer."""
    host.at_step(step, lambda: trial.end(host.places))
    with contextlib.suppress(AgentError):
        trial.begin(host.places, 60)
    assert host.is_open or trial.status(host.places).state == "running"
    host.let_timers_run_out()
    assert host.is_open
    assert trial.status(host.places).state == "needed"


@pytest.mark.parametrize("step", STEPS)
def test_a_begin_that_is_killed_leaves_nothing_up_for_good(host, step):
    """It comes into the trial of another one."""
    trial.begin(host.places, 60)

    def kill():
        raise Killed

    host.at_step(step, kill)
    with contextlib.suppress(Killed):
        trial.begin(host.places, 60)
    host.let_timers_run_out()
    assert host.is_open


def test_the_ports_open_even_if_a_begin_hangs(host):
    """It waits for an agent that never gets ready, say; the timer doesn't."""
    token = trial.begin(host.places, 60)
    with trial._lock(host.places), pytest.raises(AgentError, match="another command"):
        trial.end(host.places, token)
    assert host.is_open
    host.let_timers_run_out()
    assert trial.status(host.places).state == "needed"


@pytest.mark.parametrize("verb", ["disable", "stop"])
def test_the_ports_open_even_if_systemd_says_no(host, verb):
    token = trial.begin(host.places, 60)
    host.fails = [verb]
    with pytest.raises(AgentError, match=verb):
        trial.end(host.places, token)
    assert not host.guarded
    host.fails = []
    host.let_timers_run_out()
    assert host.is_open
    assert trial.status(host.places).state == "needed"


def test_the_ports_open_even_if_nothing_can_be_remembered(host):
    """As on a disk that has become read-only; the timer tries again until it is remembered."""
    token = trial.begin(host.places, 60)
    lock = host.places.state / "trial.lock"
    lock.unlink()
    lock.mkdir()
    for other in ("22", token):
        with pytest.raises(AgentError):
            trial.end(host.places, other)
        assert host.is_open == (other == token)
    lock.rmdir()
    host.let_timers_run_out()
    assert trial.status(host.places).state == "needed"


def test_a_timer_that_has_just_gone_is_no_reason_to_fail(host):
    token = trial.begin(host.places, 60)
    host.fails = ["stop"]
    trial.confirm(host.places, token, untried=True)
    assert trial.status(host.places).state == "confirmed"


def may_start(host):
    try:
        trial.check_start(host.places)
    except AgentError as why:
        assert "ports are open" in why.thing
        return False
    return True


@pytest.mark.parametrize("change", [None, "policy", "unit"])
def test_a_host_that_restarts_starts_only_what_was_confirmed(host, change):
    """A deployment was cut off between its files and its trial."""
    trial.confirm(host.places, trial.begin(host.places, 60), untried=True)
    if change == "policy":
        host.places.policy.write_text("version: 2\n")
    elif change == "unit":
        (trial.UNITS / trial.AGENT).write_text("[Unit]\n")
    assert may_start(host), "a restart by hand, or after a crash"
    host.restarted = True
    assert may_start(host) == (change is None)


def test_what_is_on_trial_may_start_until_the_host_restarts(host):
    trial.begin(host.places, 60)
    host.restarted = True
    assert may_start(host), "a first deployment"
    host.timers.clear()
    assert not may_start(host)


def test_what_is_remembered_outlives_a_loss_of_power(places, monkeypatch):
    """As far as that can be had here: content, then name, are asked onto the disk."""
    asked = []

    def fsync(handle):
        asked.append((os.readlink(f"/proc/self/fd/{handle}"), places.trial.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    trial._save(places, trial.Trial("11", "ended", "", 0.0))
    draft = str(places.trial.with_suffix(".new"))
    assert asked == [(draft, False), (str(places.trial.parent), True)]
