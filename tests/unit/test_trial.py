"""What a trial remembers; what it does to a host is in tests/fleet.

There is no systemd to ask here, so a set says what it would: which timers run.
"""

import dataclasses
import json

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
