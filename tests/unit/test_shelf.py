"""The shelf of runs: whose results are kept, and for how long."""

import errno
import time

import pytest

from tariq.agent import shelf as shelves
from tariq.agent.runner import write_end
from tariq.agent.shelf import Run, Shelf

LONG, KEEP = "ffffffff", 5


class Launcher:
    """Starts nothing: tests say how a run ends."""

    def start(self, *_):
        return None


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    monkeypatch.setattr(shelves, "KEEP", KEEP)
    return Shelf(tmp_path, Launcher())


def start(shelf, label, ago=0.0):
    """Start a run that began so many seconds ago (no more than a run may go without a lock)."""
    who = {"user": "root", "group": None, "cwd": "/", "operator": "alice", "source": "192.0.2.1"}
    shelf.start(Run(label, "x", [], seconds=7200, output=100, t=time.time() - ago, **who))


def end(shelf, label, after=0):
    """End a run, by a clock that shows so many seconds more than ours."""
    (shelf.directory / f"{label}.out").write_text("the result")
    write_end(shelf.directory, label, {"exit": 0, "t": int(time.time()) + after})


def step(shelf):
    ended = [run.label for run in shelf.step()]
    shelf.prune()
    return ended


def end_many(shelf, after=0):
    for number in range(KEEP):
        label = f"{number:08x}"
        start(shelf, label)
        end(shelf, label, after)
        assert step(shelf) == [label]


def test_the_result_of_a_long_run_stays_whatever_ended_meanwhile(shelf):
    start(shelf, LONG, ago=10)
    end_many(shelf)
    end(shelf, LONG)
    assert step(shelf) == [LONG]
    assert shelf.head(LONG, 99) == b"the result"
    assert not (shelf.directory / f"{0:08x}.out").exists(), "the one that ended first went"


def test_a_clock_that_is_set_back_takes_no_result_away(shelf):
    end_many(shelf, after=7200)
    start(shelf, LONG, ago=10)
    end(shelf, LONG)
    assert step(shelf) == [LONG]
    assert shelf.get(LONG).end, "who waits for it can be answered"
    start(shelf, "eeeeeeee")
    end(shelf, "eeeeeeee")
    assert step(shelf) == ["eeeeeeee"]
    assert shelf.head(LONG, 99) == b"the result"
    assert len(list(shelf.directory.glob("*.out"))) == KEEP


def test_an_agent_that_starts_again_goes_by_when_runs_ended(shelf):
    start(shelf, LONG, ago=10)
    end_many(shelf, after=-5)
    end(shelf, LONG)
    again = Shelf(shelf.directory, Launcher())
    again.prune()
    assert again.head(LONG, 99) == b"the result"


def test_a_run_that_could_not_be_started_is_told_of_as_any_other_end(shelf, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EAGAIN, "no more processes")

    monkeypatch.setattr(Launcher, "start", refuse)
    start(shelf, LONG)
    assert step(shelf) == [LONG]
    assert shelf.get(LONG).end.why == "can't be started: no more processes"
    assert step(shelf) == []
