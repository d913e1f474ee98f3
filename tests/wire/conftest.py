"""One network with one agent for a module of tests."""

from __future__ import annotations

import pytest
from lab import Recorder, made, reachable_python, scratch


@pytest.fixture(scope="module")
def python():
    with scratch() as base:
        yield reachable_python(base)


@pytest.fixture(scope="module")
def world(python):
    with made(python) as one:
        yield one


@pytest.fixture
def from_host(world):
    """What the host sends to the client's and the stranger's machines while a test runs."""
    recorders = [Recorder(world.net.client), Recorder(world.net.stranger)]

    def answers(seconds: float = 0.3):
        segments = [each for recorder in recorders for each in recorder.segments(seconds / 2)]
        return [each for each in segments if each.src in (world.address(4), world.address(6))]

    yield answers
    for recorder in recorders:
        recorder.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Show beside a failure what the agent said of it."""
    report = yield
    world = getattr(item, "funcargs", {}).get("world")
    if report.failed and world is not None and world.host.log.exists():
        report.sections.append(("the agent's log", world.host.log.read_text()[-4000:]))
    return report
