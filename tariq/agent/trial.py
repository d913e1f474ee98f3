"""The dead-man trial: a guard that nobody confirms takes itself down.

``begin`` arms a timer of systemd's, and only then starts the agent. Whoever deploys it knocks,
comes in by a *new* connection and says ``confirm``; else the timer runs ``end``, which stops
the agent and opens the ports. The timer needs neither the agent nor the network nor who began.

No unit is enabled while a trial runs, and the timer is a transient one (systemd-run(1)): a host
that restarts meanwhile comes up with its ports open. Only ``confirm`` enables.
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

from tariq.agent import firewall, policy_file
from tariq.agent.identity import Places
from tariq.errors import AgentError, PolicyError

UNITS = Path("/etc/systemd/system")
AGENT = "tariq-agent.service"
_TIMER = "tariq-trial"
_SHELLS = ("sshd", "dropbear")
"""How programs that serve ssh call themselves in /proc; OpenSSH 9.8 has sshd-session, too."""
_SYSTEMD_SECONDS = 100
"""More than a start of the agent may take (TimeoutStartSec in its unit)."""


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

    Raise AgentError if it doesn't start; its ports are open then. Confirmed before or not, an agent
    on trial is not enabled.
    """
    with _lock(places):
        trial = Trial(
            token=secrets.token_hex(8),
            state="running",
            digest=digest(places),
            until=_now() + seconds,
        )
        _save(places, trial)
        _arm(trial.token, seconds)
    try:
        _start()
        firewall.clear_others(policy_file.load(places.policy).firewall)
    except (AgentError, PolicyError):
        with contextlib.suppress(AgentError):  # then the timer goes on trying
            end(places, trial.token)
        raise
    with _lock(places):
        if _load(places) != trial:
            raise AgentError("trial", "ended while the agent started", "give it more --seconds")
        _save(places, dataclasses.replace(trial, guarded=_now()))
    return trial.token


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

    Return whether that was so. The order makes any part of it safe to repeat.
    """
    with _lock(places):
        trial = _load(places)
        if trial is None or trial.state != "running" or token not in (None, trial.token):
            return False
        if units := _units():
            _systemctl("disable", *units)
            _systemctl("stop", *units)
        firewall.take_down(places.unguarded)
        _save(places, dataclasses.replace(trial, state="ended"))
        _disarm()
    return True


def status(places: Places) -> Status:
    """Tell whether what is installed now was confirmed and is in service."""
    trial = _load(places)
    if trial is not None and _runs(trial):
        return Status("running", f"for another {trial.until - _now():.0f} s")
    missing = _missing(places, trial)
    return Status("needed", missing) if missing else Status("confirmed")


def _missing(places: Places, trial: Trial | None) -> str:
    if trial is None:
        return "never confirmed"
    if trial.state != "confirmed":
        return "the last trial ended without being confirmed"
    if trial.digest != digest(places):
        return "what is installed has changed since it was confirmed"
    if not _succeeds("is-active", AGENT):
        return f"{AGENT} is not running"
    return "a unit is not enabled" if "disabled" in _ask("is-enabled", *_units()).split() else ""


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
    """Let systemd end this trial in so many seconds, and forget those of earlier ones."""
    name = _timer(token)
    program = [sys.executable, "-I", "-m", "tariq", "agent", "trial", "end", token]
    retried = ["Restart=on-failure", "RestartSec=2", "StartLimitIntervalSec=0"]
    _run(
        "systemd-run",
        f"--unit={name}",
        f"--on-active={seconds}s",
        "--timer-property=AccuracySec=100ms",
        *(f"--property={each}" for each in ["Type=oneshot", *retried]),
        *program,
    )
    _disarm(keep=name)


def _timer(token: str) -> str:
    return f"{_TIMER}-{token}"


def _disarm(keep: str = "") -> None:
    """Stop timers of trials; one whose trial is over would do nothing anyway."""
    listed = _ask("list-units", "--all", "--plain", "--no-legend", f"{_TIMER}-*.timer")
    names = [line.split()[0] for line in listed.splitlines()]
    if old := [name for name in names if name != f"{keep}.timer"]:
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
    return subprocess.run(["systemctl", "--quiet", *words], check=False).returncode == 0


def _ask(*words: str) -> str:
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False)
    return done.stdout


def _run(*command: str) -> None:
    """Run one of systemd's programs; raise AgentError with its own words."""
    what = " ".join(command[:2])
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SYSTEMD_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as why:
        raise AgentError(what, str(why), "a trial needs systemd") from why
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise AgentError(what, lines[0], f"see journalctl -u {AGENT}")


# --- what is remembered -----------------------------------------------------------------------


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _runs(trial: Trial) -> bool:
    return trial.state == "running" and _succeeds("is-active", f"{_timer(trial.token)}.timer")


@contextlib.contextmanager
def _lock(places: Places) -> Iterator[None]:
    """Let nobody else change the state; raise AgentError if it can't be kept at all."""
    try:
        places.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (places.state / "trial.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except OSError as why:
        raise AgentError(str(places.trial), (why.strerror or str(why)).lower()) from why


def _save(places: Places, trial: Trial) -> None:
    """Write a file that is whole or as it was."""
    draft = places.trial.with_suffix(".new")
    with draft.open("w") as file:
        json.dump(dataclasses.asdict(trial), file)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(places.trial)


def _load(places: Places) -> Trial | None:
    """Return the last trial; whatever can't be read was never confirmed."""
    try:
        return Trial(**json.loads(places.trial.read_text()))
    except (OSError, ValueError, TypeError):
        return None
