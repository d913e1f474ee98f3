"""``tariq agent run``: the warden's process, and the sentry that it keeps alive.

One asyncio loop, and everything in it is a short call: a frame from the sentry, a tick
about once a second, a signal. Replies may be sent later than the knock that asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pwd
import signal
import socket
import time
from functools import partial
from pathlib import Path

from tariq import openpgp
from tariq.agent import identity, journal, link, policy_file
from tariq.agent.firewall import Guard, Keeper, choose
from tariq.agent.identity import Places
from tariq.agent.ledger import Entry, Ledger
from tariq.agent.metrics import Metrics
from tariq.agent.policy import DAY, Policy
from tariq.agent.sentinel import Sentinel
from tariq.agent.shelf import Shelf
from tariq.agent.warden import Warden
from tariq.errors import AgentError, MessageError, PolicyError, TariqError

_TICK_SECONDS = 1.0
_STEP_SECONDS = 0.02
"""How often runs are looked at while somebody waits for one."""
_REPORT_SECONDS = 30.0
"""A sentry reports once a minute; one that was taken over may not fill the log."""
_QUICK_DEATHS = 5
"""A sentry that dies so often, each time within a minute, is beyond restarting."""
log = logging.getLogger("tariq.agent")


def run(places: Places, sentry_socket: Path | None = None) -> None:
    """Serve until SIGTERM; raise a TariqError if the agent can't start.

    With ``sentry_socket`` the sentry is expected there; without, one is started.
    """
    identity.need_root("tariq agent run")
    agent = Agent(places, sentry_socket)
    try:
        asyncio.run(agent.serve())
        log.info("stopped; guarded ports stay closed ('tariq agent unguard' opens them)")
    finally:
        agent.close()


class Agent:
    """All that one agent holds. Raises a TariqError if something of it can't be used."""

    def __init__(self, places: Places, sentry_socket: Path | None = None) -> None:
        self._places = places
        self._rules = policy_file.load(places.policy)
        _check_user(self._rules)
        knock_keys = identity.knock_keys(places)
        host_key = identity.host_key(places)
        self._homes = [places.keyring, places.keyring.with_name("operators-2")]
        operators = self._read_operators(self._rules)
        self._homes.reverse()
        self._metrics = Metrics(places.metrics)
        self._ledger = Ledger(places.ledger, self._on_entry)
        self._sentinel = Sentinel(self._rules, knock_keys, sentry_socket)
        backend, others = choose(self._rules.firewall)
        self._firewall = Keeper(
            backend, Guard.of(self._rules), others=others, unguarded=places.unguarded
        )
        self._firewall.start()
        log.info("firewall: %s", backend.name)
        self._warden = Warden(
            policy=self._rules,
            host_key=host_key,
            operators=operators,
            ledger=self._ledger,
            firewall=self._firewall,
            shelf=Shelf(places.tasks),
        )
        self._warden.recover()
        self._stepping: asyncio.TimerHandle | None = None
        self._replaced = False
        self._trim_at = self._report_at = 0.0

    def _on_entry(self, entry: Entry) -> None:
        journal.write(entry)
        self._metrics.on_entry(entry)

    def close(self) -> None:
        """End the sentry and what GnuPG left running; the guard stays."""
        self._sentinel.stop()
        self._ledger.close()
        openpgp.stop_agent(self._places.host_key)

    async def serve(self) -> None:
        """Serve until SIGTERM; raise AgentError when sentries keep dying."""
        loop = asyncio.get_running_loop()
        serving = asyncio.create_task(self._keep_sentry())
        ticking = asyncio.create_task(self._keep_ticking())
        loop.add_signal_handler(signal.SIGTERM, serving.cancel)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        try:
            await asyncio.wait({serving, ticking}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._warden.finish()
            ticking.cancel()
        for task in (serving, ticking):
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _keep_sentry(self) -> None:
        deaths = 0
        while deaths < _QUICK_DEATHS:
            started = time.monotonic()
            if await self._sentinel.start():
                await self._serve_sentry()
            self._sentinel.stop()
            if self._replaced:
                self._replaced = False
                continue
            deaths = deaths + 1 if time.monotonic() - started < 60 else 1
            log.error("the sentry ended; starting another")
        reason = f"ended {deaths} times within a minute"
        raise AgentError("sentry", reason, self._sentinel.hint)

    async def _serve_sentry(self) -> None:
        rules = self._rules
        log.info("%s: guarding, policy %d, knock port %d", rules.host, rules.serial, rules.port)
        _notify("READY=1")
        async for frame in self._sentinel.frames():
            self.on_frame(frame)

    def on_frame(self, frame: bytes) -> None:
        """Answer a knock that the sentry passed on, or log its report."""
        try:
            knock = link.Knock.decode(frame)
        except MessageError as why:
            log.warning("ignored: %s", why)
            return
        if knock.number == link.REPORT:
            self._on_report(knock.message)
            return
        reply = partial(self._reply, self._sentinel.link, knock.number)
        try:
            self._warden.answer(knock, reply)
        except (TariqError, OSError) as why:  # whatever fails costs this knock, no more
            log.error("silence for %s: %s", knock.source, why)  # noqa: TRY400
            reply(b"")
        self._metrics.silences(self._warden.silences)
        if self._stepping is None:
            self._step()

    def _on_report(self, message: bytes) -> None:
        """Log and count what the sentry says that it did: known words, and not too often."""
        if time.monotonic() < self._report_at:
            return
        self._report_at = time.monotonic() + _REPORT_SECONDS
        counts = link.read_report(message)
        self._metrics.on_report(counts)
        line = ", ".join(f"{count} {what}" for what, count in counts.items())
        log.info("sentry: packets: %s", line)

    def _step(self) -> None:
        """Look after runs, and soon again for as long as somebody waits for one."""
        self._stepping = None
        try:
            again = self._warden.step()
        except (TariqError, OSError) as why:  # the next tick tries again
            log.error("%s", why)  # noqa: TRY400 - the reason is enough
            return
        if again:
            self._stepping = asyncio.get_running_loop().call_later(_STEP_SECONDS, self._step)

    def _reply(self, to: socket.socket | None, number: int, message: bytes) -> None:
        self._sentinel.send(link.Reply(number, message), to)

    async def _keep_ticking(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            try:
                self.on_tick()
            except (TariqError, OSError) as why:
                log.error("%s", why)  # noqa: TRY400 - the reason is enough

    def on_tick(self) -> None:
        """Do what has to be done about once a second, knocks or not."""
        self._warden.tick()
        self._firewall.check()
        gauges = {
            "tariq_policy_serial": self._rules.serial,
            "tariq_runs_running": self._warden.running,
        }
        self._metrics.write(gauges)
        if time.monotonic() >= self._trim_at:
            self._trim_at, now = time.monotonic() + DAY, int(time.time())
            self._ledger.forget_leases(now)
            self._ledger.trim_audit(now - self._rules.audit_days * DAY)

    def reload(self) -> None:
        """Take on policy and operators' keys as they are on disk now: all of it, or nothing."""
        try:
            rules = policy_file.load(self._places.policy)
            _check_user(rules)
            operators = self._read_operators(rules)
            new = () if rules.firewall == self._rules.firewall else choose(rules.firewall)
            self._firewall.replace(Guard.of(rules), *new)
        except (TariqError, OSError) as why:
            log.error("not reloaded, policy %d goes on: %s", self._rules.serial, why)  # noqa: TRY400
            return
        self._rules = rules
        self._homes.reverse()
        self._warden.adopt(rules, operators)
        self._replaced = self._sentinel.adopt(rules)
        log.info("reloaded: %s", policy_file.describe(rules))

    def _read_operators(self, rules: Policy) -> openpgp.OperatorRing:
        """Return a keyring made anew, in the first of two homes: the second is in use."""
        files = sorted(self._places.operators.glob("*.asc"))
        operators = openpgp.OperatorRing(self._homes[0], files)
        _check_operators(rules, operators, self._places)
        return operators


def _check_user(rules: Policy) -> None:
    try:
        pwd.getpwnam(rules.sentry_user)
    except KeyError as why:
        hint = f"useradd --system {rules.sentry_user}"
        raise PolicyError(f"sentry_user {rules.sentry_user!r}", "no such user", hint) from why


def _check_operators(rules: Policy, ring: openpgp.OperatorRing, places: Places) -> None:
    for name, operator in rules.operators.items():
        if operator.fingerprint not in ring:
            reason = f"no key {operator.fingerprint} among the files there"
            hint = f"put {name}'s public key there as {name}.asc"
            raise AgentError(str(places.operators), reason, hint)


def _notify(state: str) -> None:
    """Tell systemd (sd_notify(3)), if it started us and wants to know."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
