"""``tariq agent run``: the warden's process, and the sentry that it keeps alive."""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from types import FrameType

from tariq import openpgp
from tariq.agent import identity, link, policy_file
from tariq.agent.firewall import Nftables
from tariq.agent.identity import Places
from tariq.agent.ledger import Ledger
from tariq.agent.policy import Policy
from tariq.agent.warden import Warden
from tariq.errors import AgentError, MessageError, PolicyError
from tariq.transport import bpf, sockets

_READY_SECONDS = 20.0
_QUICK_DEATHS = 5
"""A sentry that dies so often without one ready sign is beyond restarting."""
log = logging.getLogger("tariq.agent")


class Sentinel:
    """The sentry's process and the warden's end of the link to it."""

    def __init__(self, rules: Policy, knock_key: bytes) -> None:
        self._setup = link.Setup(rules.port, knock_key.hex()).encode()
        self._user = rules.sentry_user
        families = [socket.AF_INET, *([socket.AF_INET6] if _has_ipv6() else [])]
        self._sockets = [
            sock
            for family in families
            for sock in (
                sockets.open_sniffer(family, bpf.unkeyed(family, rules.port)),
                sockets.open_sender(family),
            )
        ]
        self.process: subprocess.Popen[bytes] | None = None
        self.link: socket.socket | None = None
        self.stopping = False

    def start(self) -> None:
        """Start a sentry and wait for its ready sign; raise AgentError if none comes."""
        ours, theirs = link.pair()
        descriptors = [sock.fileno() for sock in (theirs, *self._sockets)]
        command = [sys.executable, "-I", "-m", "tariq.agent.sentry", *map(str, descriptors)]
        user = pwd.getpwnam(self._user)
        with theirs:
            self.process = subprocess.Popen(
                command,
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                user=user.pw_uid,
                group=user.pw_gid,
                extra_groups=[],
                cwd="/",
                env={"LC_ALL": "C.UTF-8", "HOME": "/nonexistent"},
            )
        self.link = ours
        ours.send(self._setup)
        ours.settimeout(_READY_SECONDS)
        ready = b""
        with contextlib.suppress(OSError):
            ready = ours.recv(link.MAX_FRAME)
        if ready != b"ready" and not self.stopping:
            self.stop()
            hint = "see the lines above; 'python3 -m tariq.agent.sentry' must be importable"
            raise AgentError("sentry", f"did not start as user {self._user}", hint)
        ours.settimeout(None)

    def interrupt(self, _: int, __: FrameType | None) -> None:
        """Handle SIGTERM: finish the knock at hand, then let ``knocks`` end."""
        self.stopping = True
        if self.link is not None:
            self.link.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        """End the sentry."""
        if self.link is not None:
            self.link.close()
            self.link = None
        if self.process is None:
            return
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def knocks(self) -> Iterator[tuple[link.Knock, socket.socket]]:
        """Yield what the sentry passes on, until it is gone."""
        while self.link is not None:
            try:
                frame = self.link.recv(link.MAX_FRAME)
            except OSError:
                return
            if not frame:
                return
            try:
                yield link.Knock.decode(frame), self.link
            except MessageError as why:
                log.warning("ignored: %s", why)


def run(places: Places) -> None:
    """Serve until SIGTERM; raise a TariqError if the agent can't start."""
    identity.need_root("tariq agent run")
    rules = policy_file.load(places.policy)
    _check_user(rules)
    knock_key = identity.knock_key(places)
    host_key = openpgp.HostKey.load(places.host_key)
    operators = openpgp.OperatorRing(places.keyring, sorted(places.operators.glob("*.asc")))
    _check_operators(rules, operators, places)
    ledger = Ledger(places.ledger)
    sentinel = Sentinel(rules, knock_key)
    firewall = Nftables()
    firewall.guard(rules.port, rules.services.values())
    warden = Warden(
        policy=rules, host_key=host_key, operators=operators, ledger=ledger, firewall=firewall
    )
    signal.signal(signal.SIGTERM, sentinel.interrupt)
    try:
        _serve(warden, sentinel, rules)
        log.info("stopped; guarded ports stay closed ('tariq agent unguard' opens them)")
    finally:
        sentinel.stop()
        ledger.close()
        openpgp.stop_agent(places.host_key)


def _serve(warden: Warden, sentinel: Sentinel, rules: Policy) -> None:
    deaths = 0
    while deaths < _QUICK_DEATHS and not sentinel.stopping:
        started = time.monotonic()
        sentinel.start()
        log.info("%s: guarding, policy %d, knock port %d", rules.host, rules.serial, rules.port)
        _notify("READY=1")
        for knock, answer_to in sentinel.knocks():
            if knock.number == link.REPORT:
                log.info("sentry: %s", knock.message.decode("ascii", "replace"))
                continue
            reply = link.Reply(knock.number, warden.answer(knock))
            with contextlib.suppress(BrokenPipeError):
                answer_to.send(reply.encode())
        sentinel.stop()
        if sentinel.stopping:
            return
        deaths = deaths + 1 if time.monotonic() - started < 60 else 1
        log.error("the sentry ended; starting another")
    raise AgentError("sentry", f"ended {deaths} times within a minute", "see the lines above")


def _check_user(rules: Policy) -> None:
    try:
        uid = pwd.getpwnam(rules.sentry_user).pw_uid
    except KeyError as why:
        hint = f"useradd --system {rules.sentry_user}"
        raise PolicyError(f"sentry_user {rules.sentry_user!r}", "no such user", hint) from why
    if uid == 0:
        raise PolicyError("sentry_user", "must not be root", "name an unprivileged user")


def _check_operators(rules: Policy, ring: openpgp.OperatorRing, places: Places) -> None:
    for name, operator in rules.operators.items():
        if operator.fingerprint not in ring:
            reason = f"no key {operator.fingerprint} among the files there"
            hint = f"put {name}'s public key there as {name}.asc"
            raise AgentError(str(places.operators), reason, hint)


def _has_ipv6() -> bool:
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW).close()
    except PermissionError:
        return True  # told later, with a reason
    except OSError:
        return False
    return True


def _notify(state: str) -> None:
    """Tell systemd (sd_notify(3)), if it started us and wants to know."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
