"""The dead-man trial: a guard that nobody confirms takes itself down.

``begin`` arms a timer of systemd's, and only then starts the agent. Whoever deploys it knocks,
comes in by a *new* connection and says ``confirm``; else the timer runs ``end``, which stops
the agent and opens the ports. The timer needs neither the agent nor the network nor who began.

No unit is enabled while a trial runs, and the timer is a transient one (systemd-run(1)): a host
that restarts meanwhile comes up with its ports open. Only ``confirm`` enables, and on a host that
restarts the units ask first (``check_start``) whether what is installed was confirmed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tariq.agent import firewall, policy_file, rotation
from tariq.agent.identity import Places
from tariq.errors import AgentError, TariqError

UNITS = Path("/etc/systemd/system")
AGENT, GUARD = "tariq-agent.service", "tariq-guard.service"
_TIMER = "tariq-trial"
_SHELLS = ("sshd", "dropbear")
"""How programs that serve ssh call themselves in /proc; OpenSSH 9.8 has sshd-session, too."""
_SYSTEMD_SECONDS = 100
"""More than a start of the agent may take (TimeoutStartSec in its unit)."""
_PATIENCE = 10.0
"""Seconds that an end waits for who else is at it; then it opens the ports without."""


@dataclass(frozen=True, slots=True)
class Trial:
    """The last trial. Times are in seconds of CLOCK_BOOTTIME; it runs while its timer does."""

    token: str
    state: str  # "running", "confirmed" or "ended"
    digest: str
    until: float
    guarded: float | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """Whether what is installed is in service: "confirmed", "running" (a trial) or "needed"."""

    state: str
    reason: str = ""


def begin(places: Places, seconds: int) -> str:
    """Arm the timer, start the agent afresh, and return the trial's token.

    Raise a TariqError if it doesn't start; its ports are open then. Confirmed before or not, an
    agent on trial is not enabled.
    """
    token = secrets.token_hex(8)
    try:
        with _lock(places):  # also while it starts: what is started has its timer
            trial = Trial(token, "running", digest(places), _now() + seconds)
            _arm(token, seconds)
            _save(places, trial)  # from here on the timers of earlier ones do nothing
            _disarm(keep=token)
            _start()
            firewall.clear_others(policy_file.load(places.policy).firewall)
            _save(places, dataclasses.replace(trial, guarded=_now()))
    except TariqError:
        with contextlib.suppress(TariqError):  # then the timer goes on trying
            end(places, token)
        raise
    return token


def confirm(places: Places, token: str, *, untried: bool = False) -> None:
    """Put what is on trial into service for good; raise AgentError if that isn't proved.

    The proof is the ssh connection that this very call came in by: it must have begun after the
    guard went up. ``untried`` does without.
    """
    with _lock(places):
        trial = _load(places)
        if trial is None or trial.token != token or not _runs(trial):
            raise AgentError("trial", "not running (any more)", "begin another")
        if trial.digest != digest(places):
            raise AgentError("trial", "what is installed has changed meanwhile", "begin another")
        if not untried:
            _check_connection(trial)
        if not _succeeds("is-active", AGENT):
            raise AgentError(AGENT, "not running", f"see journalctl -u {AGENT}")
        _systemctl("enable", *_units())
        _save(places, dataclasses.replace(trial, state="confirmed"))
        _disarm()


def end(places: Places, token: str | None = None) -> bool:
    """Stop the agent and open its ports, if the trial (that one, with a token) isn't confirmed.

    Return whether that was so. Where nothing can be remembered, or a ``begin`` hangs, the ports
    open all the same, and the error that is raised lets the timer come again.
    """
    try:
        with _lock(places, _PATIENCE):
            trial = _on_trial(places, token)
            if trial is None:
                return False
            _give_up(places)
            _save(places, dataclasses.replace(trial, state="ended"))
            _disarm()
    except AgentError:
        if _on_trial(places, token):
            _give_up(places)
        raise
    return True


def _on_trial(places: Places, token: str | None) -> Trial | None:
    trial = _load(places)
    meant = trial is not None and trial.state == "running" and token in (None, trial.token)
    return trial if meant else None


def _give_up(places: Places) -> None:
    """Disable, stop and open, in that order, and each whatever came of those before."""
    with contextlib.ExitStack() as steps:  # the last one first
        steps.callback(firewall.take_down, places.unguarded)
        if units := _units():
            steps.callback(_systemctl, "stop", *units)
            steps.callback(_systemctl, "disable", *units)


def status(places: Places) -> Status:
    """Tell whether what is installed now was confirmed and is in service."""
    trial = _load(places)
    if trial is not None and _runs(trial):
        return Status("running", f"for another {trial.until - _now():.0f} s")
    missing = _missing(places, trial)
    return Status("needed", missing) if missing else Status("confirmed")


def _unproved(places: Places, trial: Trial | None) -> str:
    if trial is None:
        return "never confirmed"
    if trial.state != "confirmed":
        return "the last trial ended without being confirmed"
    changed = trial.digest != digest(places)
    return "what is installed has changed since it was confirmed" if changed else ""


def warning(places: Places) -> str:
    """Return what to tell root of whose change by hand a start of the host won't be guarded."""
    trial = _load(places)
    if trial is None or trial.state != "confirmed" or trial.digest == digest(places):
        return ""
    return "changed since it was confirmed: a host that restarts comes up open; tariq agent trial"


def _missing(places: Places, trial: Trial | None) -> str:
    if reason := _unproved(places, trial):
        return reason
    if not _succeeds("is-active", AGENT):
        return f"{AGENT} is not running"
    return "a unit is not enabled" if "disabled" in _ask("is-enabled", *_units()).split() else ""


def check_start(places: Places) -> None:
    """Raise AgentError if a host that has just started must not be guarded by what is installed.

    A deployment that was cut off may have left it, tried by nobody and with no timer. Once the host
    was guarded, nothing is held back, whoever changed what: closed ports need an agent.
    """
    trial = _load(places)
    reason = _unproved(places, trial)
    if reason and _has_just_started(trial):
        hint = "deploy again, or try it: 'tariq agent trial begin'"
        raise AgentError("not started, and the ports are open", reason, hint)


def _has_just_started(trial: Trial | None) -> bool:
    """Tell whether this host was never guarded since it started; False if systemd won't say."""
    with contextlib.suppress(AgentError):
        if not (trial and _runs(trial)):
            told = _ask("show", "-P", "ActiveEnterTimestampMonotonic", AGENT, GUARD).split()
            return bool(told) and set(told) == {"0"}
    return False


def digest(places: Places) -> str:
    """Return a digest of all that an agent's start depends on: release, units, policy, keys.

    Of the host's own secret key only the name counts, as GnuPG may write its file anew.
    """
    found = [path for path in sorted(places.etc.rglob("*")) if path.is_file()]
    found += [path for path in sorted(UNITS.glob("tariq-*")) if path.is_file()]
    found += sorted(UNITS.glob("tariq-*.d/*.conf"))
    names = sorted(path.name for path in (places.host_key / "private-keys-v1.d").glob("*"))
    whole = hashlib.sha256(repr([str(Path(sys.prefix).resolve()), names]).encode())
    for path in found:
        whole.update(repr([str(path), path.read_bytes()]).encode())
    return whole.hexdigest()


# --- the connection that is the proof ---------------------------------------------------------


def _check_connection(trial: Trial) -> None:
    """Raise AgentError unless this process came in by ssh after the guard was up."""
    began = _connection_began()
    if began is None:
        hint = "confirm by way of ssh, or do without proof: --untried"
        raise AgentError("trial", "this is no ssh connection", hint)
    if trial.guarded is None or began <= trial.guarded:
        hint = "open a new one (ssh -o ControlPath=none), and confirm by it"
        raise AgentError("trial", "this ssh connection is older than the guard", hint)


def _connection_began() -> float | None:
    """Return when the ssh server's process for this connection began (proc(5), starttime).

    A session that shares an older connection (ControlMaster) is a child of that one's process.
    """
    pid = os.getppid()
    while pid > 1:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
        values = rest.split()
        if name.startswith(_SHELLS):
            return int(values[19]) / os.sysconf("SC_CLK_TCK")
        pid = int(values[1])
    return None


# --- systemd ----------------------------------------------------------------------------------


def _arm(token: str, seconds: int) -> None:
    """Let systemd end this trial in so many seconds."""
    program = [sys.executable, "-I", "-m", "tariq", "agent", "trial", "end", token]
    retried = ["Restart=on-failure", "RestartSec=2", "StartLimitIntervalSec=0"]
    _run(
        "systemd-run",
        f"--unit={_timer(token)}",
        f"--on-active={seconds}s",
        "--timer-property=AccuracySec=100ms",
        *(f"--property={each}" for each in ["Type=oneshot", *retried]),
        *program,
    )


def _timer(token: str) -> str:
    return f"{_TIMER}-{token}"


def _disarm(keep: str = "") -> None:
    """Stop timers of trials. Never raises: one whose trial is over does nothing anyway."""
    with contextlib.suppress(AgentError):  # such as of one that ended by itself meanwhile
        listed = _ask("list-units", "--all", "--plain", "--no-legend", f"{_TIMER}-*.timer")
        names = [line.split()[0] for line in listed.splitlines()]
        if old := [name for name in names if name != f"{_timer(keep)}.timer"]:
            _systemctl("stop", *old)


def _start() -> None:
    """Start the agent afresh, with no unit enabled.

    All units are stopped, and the agent brings up those that it needs.
    """
    _systemctl("daemon-reload")
    _systemctl("disable", *_units())
    _systemctl("stop", *_units())
    _systemctl("start", AGENT)


def _units() -> list[str]:
    return [path.name for path in sorted(UNITS.glob("tariq-*")) if path.is_file()]


def _systemctl(*words: str) -> None:
    _run("systemctl", *words)


def _succeeds(*words: str) -> bool:
    return _call("systemctl", "--quiet", *words).returncode == 0


def _ask(*words: str) -> str:
    return _call("systemctl", *words).stdout


def _run(*command: str) -> None:
    """Run one of systemd's programs; raise AgentError with its own words."""
    done = _call(*command)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise AgentError(" ".join(command[:2]), lines[0], f"see journalctl -u {AGENT}")


def _call(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=_SYSTEMD_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as why:
        raise AgentError(" ".join(command[:2]), str(why), "a trial needs systemd") from why


# --- what is remembered -----------------------------------------------------------------------


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _runs(trial: Trial) -> bool:
    return trial.state == "running" and _succeeds("is-active", f"{_timer(trial.token)}.timer")


@contextlib.contextmanager
def _lock(places: Places, patience: float = 4 * _SYSTEMD_SECONDS) -> Iterator[None]:
    """Let nobody else change the state; raise AgentError if it can't be kept at all."""
    until = time.monotonic() + patience
    try:
        places.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (places.state / "trial.lock").open("w") as file:
            while not _is_ours(file):
                if time.monotonic() >= until:
                    raise AgentError("trial", "another command is at it", "try again")
                time.sleep(0.05)
            yield
    except OSError as why:
        raise AgentError(str(places.trial), (why.strerror or str(why)).lower()) from why


def _is_ours(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _save(places: Places, trial: Trial) -> None:
    rotation.write_secret(places.trial, json.dumps(dataclasses.asdict(trial)).encode())


def _load(places: Places) -> Trial | None:
    """Return the last trial; whatever can't be read was never confirmed."""
    try:
        return Trial(**json.loads(places.trial.read_text()))
    except (OSError, ValueError, TypeError):
        return None
