"""The agent's process: what a reload, a sentry or the machine may do to it.

The sentry's end of the link is the test's.
"""

import asyncio
import contextlib
import logging
import os
import pwd
import re
import shutil
import socket
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hostile.corpus import KEYS, fingerprint

from tariq import openpgp
from tariq.agent import daemon, identity, link, sentry
from tariq.agent.daemon import Agent
from tariq.agent.identity import Places
from tariq.agent.metrics import Metrics
from tariq.agent.policy import Grant, Operator, Policy
from tariq.agent.sentinel import Sentinel
from tariq.errors import AgentError, PolicyError

ME = pwd.getpwuid(os.getuid()).pw_name
RULES = Policy(7, "web1", 62201, {}, {"bob": Operator(fingerprint("bob"), Grant())}, sentry_user=ME)


@pytest.fixture
def places():
    with tempfile.TemporaryDirectory(prefix="tariq-") as base:  # short: it has sockets
        made = Places(Path(base) / "etc", Path(base) / "state", Path(base) / "run")
        made.operators.mkdir(parents=True)
        made.run.mkdir()
        yield made


def agent(**parts) -> Agent:
    """Return an agent that has these parts alone."""
    made = Agent.__new__(Agent)
    vars(made).update(parts)
    return made


# --- a reload -------------------------------------------------------------------------------


class Adopting:
    """Whatever takes on a policy."""

    def adopt(self, rules, operators=None):
        self.rules, self.operators = rules, operators

    replace = adopt


def test_reloads_that_are_refused_leave_the_keyring_in_use_alone(places, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(daemon.policy_file, "load", lambda _: RULES)
    monkeypatch.setattr(daemon.policy_file, "describe", lambda _: "policy 7")
    monkeypatch.setattr(daemon, "_check_user", lambda _: None)
    shutil.copy(KEYS / "operators" / "bob.asc", places.operators)
    homes = [places.keyring, places.keyring.with_name("operators-2")]
    one, warden = agent(_places=places, _homes=homes, _rules=RULES), Adopting()
    vars(one).update(_warden=warden, _firewall=Adopting(), _sentinel=Adopting())
    one.reload()
    for _ in range(2):
        bad = places.operators / "a-bad.asc"
        bad.write_text("no key here\n")
        for _ in range(3):
            one.reload()
            assert "not reloaded, policy 7 goes on" in caplog.text
            assert list(warden.operators.states()) == [RULES.operators["bob"].fingerprint]
        bad.unlink()
        before = warden.operators
        one.reload()
        assert warden.operators is not before


# --- the loop ---------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError(24, "too many open files"), AgentError("x", "y")])
def test_one_look_that_fails_is_not_the_last(error):
    looks = iter([True, error, True, False])
    counted = []

    def step():
        counted.append(1)
        if isinstance(look := next(looks), Exception):
            raise look
        return look

    async def run():
        one = agent(_warden=SimpleNamespace(step=step), _stepping=None)
        for _ in range(2):
            one._step()
            async with asyncio.timeout(5):
                while one._stepping is not None:
                    await asyncio.sleep(0.01)

    asyncio.run(run())
    assert len(counted) == 4


def test_an_error_of_the_warden_s_costs_that_knock_alone():
    def answer(*_):
        raise PolicyError("x", "y")

    ours, theirs = link.pair()
    sentinel = Sentinel(RULES, [b"k" * 32])
    sentinel.link = ours
    warden = SimpleNamespace(answer=answer, silences=1, step=lambda: False)
    one = agent(_warden=warden, _sentinel=sentinel, _stepping=None)
    one._metrics = SimpleNamespace(silences=lambda _: None)

    async def run():
        one.on_frame(link.Knock(5, "192.0.2.1", b"x").encode())

    asyncio.run(run())
    with ours, theirs:
        assert link.Reply.decode(theirs.recv(100)) == link.Reply(5, b"")


def test_a_sentry_that_always_has_more_leaves_everything_else_its_turn():
    async def run():
        ours, theirs = link.pair()
        ours.setblocking(False)
        sentinel = Sentinel(RULES, [b"k" * 32])
        sentinel.link = ours
        turns, frames = [], 0
        asyncio.get_running_loop().call_later(0.01, turns.append, "a tick")
        theirs.send(b"x")
        with ours, theirs:
            async for _ in sentinel.frames():
                theirs.send(b"x")
                frames += 1
                if turns or frames == 20_000:
                    break
        return list(turns)

    assert asyncio.run(run())


# --- sentries that die ------------------------------------------------------------------------


def dial(path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made.settimeout(5)
    made.connect(str(path))
    return made


def serving(path) -> Agent:
    one = agent(_rules=RULES, _replaced=False, _sentinel=Sentinel(RULES, [b"k" * 32], path))
    one.frames = []
    one.on_frame = one.frames.append
    return one


def test_sentries_that_die_before_they_are_taken_are_followed_by_one_that_serves(places):
    one = serving(places.sentry_socket)
    for _ in range(3):
        dial(places.sentry_socket).close()

    async def run():
        task = asyncio.create_task(one._keep_sentry())
        with dial(places.sentry_socket) as living:
            assert b"knock_key" in await asyncio.to_thread(living.recv, 8192)
            living.send(b"ready")
            living.send(b"a knock")
            async with asyncio.timeout(5):
                while not one.frames:
                    await asyncio.sleep(0.01)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    asyncio.run(run())
    assert one.frames == [b"a knock"]


def test_five_sentries_that_die_end_the_agent(places):
    one = serving(places.sentry_socket)
    for _ in range(5):
        dial(places.sentry_socket).close()
    with pytest.raises(AgentError, match="ended 5 times within a minute; see 'journalctl -u"):
        asyncio.run(asyncio.wait_for(one._keep_sentry(), 5))


def test_another_port_while_a_sentry_is_not_ready_takes_the_next(places):
    one = serving(places.sentry_socket)

    async def run():
        task = asyncio.create_task(one._keep_sentry())
        for port in (62202, 62203):
            with dial(places.sentry_socket) as slow:
                await asyncio.to_thread(slow.recv, 8192)
                one._replaced = one._sentinel.adopt(replace(RULES, port=port))
                assert one._replaced
                assert await asyncio.to_thread(slow.recv, 8192) == b"", "it is sent away"
        with dial(places.sentry_socket) as living:
            told = link.Setup.decode(await asyncio.to_thread(living.recv, 8192))
            assert not task.done()
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return told.port

    assert asyncio.run(run()) == 62203


def test_a_late_answer_never_reaches_another_sentry(places):
    """Each counts its knocks from 1."""
    one, replies = serving(places.sentry_socket), []
    one._warden = SimpleNamespace(
        answer=lambda _, reply: replies.append(reply), silences=0, step=lambda: False
    )
    one._metrics, one._stepping = SimpleNamespace(silences=lambda _: None), None
    del one.on_frame

    async def run():
        task = asyncio.create_task(one._keep_sentry())
        for number in (1, 2):
            sentry_ = dial(places.sentry_socket)
            await asyncio.to_thread(sentry_.recv, 8192)
            sentry_.send(b"ready")
            sentry_.send(link.Knock(1, "192.0.2.1", b"x").encode())
            async with asyncio.timeout(5):
                while len(replies) < number:
                    await asyncio.sleep(0.01)
            if number == 1:
                sentry_.close()
        with sentry_:
            for reply, text in zip(replies, (b"for the dead", b"for the living"), strict=True):
                reply(text)
            got = await asyncio.to_thread(sentry_.recv, 8192)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return link.Reply.decode(got).message

    assert asyncio.run(run()) == b"for the living"


# --- what a sentry reports ----------------------------------------------------------------------


def report(one, text):
    one.on_frame(link.Knock(link.REPORT, "::", text).encode())


def test_a_report_is_believed_in_known_words_only_and_not_too_often(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    metrics = Metrics(tmp_path / "metrics.prom")
    one = agent(_metrics=metrics, _report_at=0.0)
    odd = b"packets: 3 looked at, 1 replayed\ntariq: forged, 2 \x1b[2J, 4 aaa, 9 over the limit"
    report(one, odd)
    assert caplog.messages == ["sentry: packets: 3 looked at, 9 over the limit"]
    for _ in range(3):
        report(one, b"packets: 1 looked at")
    assert len(caplog.messages) == 1
    metrics.write({})
    text = metrics._path.read_text()
    assert 'tariq_sentry_total{what="looked at"} 3' in text
    assert text.count("tariq_sentry_total{") == 2


def test_all_that_a_sentry_counts_is_known():
    home = Path(sentry.__file__).parents[1]
    parsers = [*(home / "picture").glob("*.py"), *(home / "transport").glob("*.py")]
    layers = set(re.findall(r'MessageError\("(\w+)"', "".join(map(Path.read_text, parsers))))
    names = set(re.findall(r'counts\["([^"]+)"\]', Path(sentry.__file__).read_text()))
    assert len(names) > 5
    assert len(layers) > 3
    assert names | {f"refused at the {layer}" for layer in layers} <= set(link.REPORTED)


# --- a host's own key -----------------------------------------------------------------------------


def test_init_that_was_cut_off_makes_a_key_the_next_time_and_one_only(places):
    openpgp._open_home(openpgp.private_dir(places.host_key)).list_keys()
    assert (places.host_key / "pubring.kbx").exists(), "GnuPG makes that before it makes a key"
    changed, made = identity.init(places)
    assert changed
    assert identity.init(places) == (False, made)
    openpgp.stop_agent(places.host_key)


def test_init_makes_no_second_key_where_gnupg_can_not_tell_of_the_first(places, monkeypatch):
    _, made = identity.init(places)
    folder = places.run / "bin"
    folder.mkdir()
    script = f'case "$*" in *--list-secret-keys*) exit 2;; esac; exec {shutil.which("gpg")} "$@"'
    (folder / "gpg").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "gpg").chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        with pytest.raises(AgentError, match="can't be listed"):
            identity.init(places)
    assert identity.init(places) == (False, made)
    openpgp.stop_agent(places.host_key)
