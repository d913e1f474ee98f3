"""One network with one agent for a module of tests."""

from __future__ import annotations

import copy

import pytest
from lab import CLOSED, Recorder, made, reachable_python, scratch

from tariq.message import Action

FAILED = pytest.StashKey[bool]()


@pytest.fixture(scope="module")
def python():
    with scratch() as base:
        yield reachable_python(base)


@pytest.fixture(scope="module")
def world(python):
    with made(python) as one:
        yield one


@pytest.fixture(autouse=True)
def restored(request):
    """A test that fails takes no other along: the next one finds policy and agent as it did."""
    if "world" not in request.fixturenames:
        yield
        return
    host = request.getfixturevalue("world").host
    before = copy.deepcopy(host.policy)
    yield
    if request.node.stash.get(FAILED, False):
        host.policy.clear()
        host.policy.update(before)
        host.kill()
        host.unguard()
        host.start()


@pytest.fixture
def from_host(world):
    """What the host sends to the client's and the stranger's machines while a test runs.

    A good knock comes last, and what it is answered is left out: whatever was sent before it would
    have been answered by then.
    """
    recorders = [Recorder(world.net.client), Recorder(world.net.stranger)]

    def answers():
        fences = [
            world.answered(world.bob.payload(world.host, do=Action.STATUS, what=()), version)
            for version in (4, 6)
        ]
        sent = [each for recorder in recorders for each in recorder.segments(0.1)]
        fenced = {each.dport for each in sent if each.payload in fences}
        hosts = (world.address(4), world.address(6))
        return [
            each
            for each in sent
            # a closed port's refusal is the control of World.reachable
            if each.src in hosts and each.dport not in fenced and each.sport != CLOSED
        ]

    yield answers
    for recorder in recorders:
        recorder.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Show beside a failure what the agent said of it."""
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    world = getattr(item, "funcargs", {}).get("world")
    if report.failed and world is not None and world.host.log.exists():
        report.sections.append(("the agent's log", world.host.log.read_text()[-4000:]))
    return report
