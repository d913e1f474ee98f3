"""What a knock costs, as ratios within one run: to an interpreter's start, to fwknop's client.

    speed.py [--short] [--hosts 100]

First the client by itself: how long commands take that start an interpreter, start the
client, knock one host and wait for its signed receipt. Then one command for many hosts: two
agents answer under many names, with buckets large enough for that (an agent alone takes five
knocks a second), on the same cores as the client, so the time per host is an upper bound;
the client's own processor time per host is not. Needs root, for namespaces.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO / "tests"))

import yaml  # noqa: E402
from lab import (  # noqa: E402
    AgentHost,
    Namespace,
    Network,
    Operator,
    reachable_python,
    run,
    scratch,
)
from peers import Fwknop  # noqa: E402

_ROOMY = """\
import sys
from tariq.agent import sentinel
spawn = sentinel.subprocess.Popen
def roomy(command, **more):
    code = ("import sys, tariq.agent.sentry as sentry; from tariq.agent import sentry_start;"
            "sentry.RATE = sentry.BURST = 10_000.0; sentry_start.main(*sys.argv[1:])")
    if "tariq.agent.sentry_start" in command:
        command = [sys.executable, "-I", "-c", code, *command[4:]]
    return spawn(command, **more)
sentinel.subprocess.Popen = roomy
from tariq.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""Runs an agent whose sentry lets ten thousand knocks a second on to the warden."""

_SIGNED = """\
#!/bin/sh
case "$*" in *--detach-sign*) echo one >>{count} ;; esac
exec {gpg} "$@"
"""
"""Stands before gpg on the client's path and counts signatures."""


def median(what: Callable[[], object], times: int) -> float:
    """Return the median time of a call in milliseconds, after one that isn't counted."""
    what()
    took = []
    for _ in range(times):
        started = time.monotonic()
        what()
        took.append(1000 * (time.monotonic() - started))
    return statistics.median(took)


class Lab:
    """Two hosts with an agent each, and a client."""

    def __init__(self, base: Path) -> None:
        self.base, self.net, self.python = base, Network(), reachable_python(base)
        self.alice = Operator(base, "alice", self.python)
        self.hosts = [self._host("web1", self.net.host), self._host("web2", self.net.stranger)]

    def _host(self, name: str, node: Namespace) -> AgentHost:
        host = AgentHost(self.base, node, self.python, name)
        host.trust(self.alice)
        host.start(("-c", _ROOMY))
        assert host.process is not None
        for pid in (host.process.pid, host.sentry_pid()):  # a host has cores of its own
            os.setpriority(os.PRIO_PROCESS, pid, -10)
        return host

    def cards(self, count: int) -> Path:
        """Write cards of so many names, one half for each host."""
        folder = self.base / f"cards{count}"
        folder.mkdir(exist_ok=True)
        for number in range(count):
            at = ("host", "stranger")[number % 2]
            card = {**self.hosts[number % 2].card(), "name": f"host{number}"}
            card |= {"addresses": [self.net.V4[at]], "groups": ["all"]}
            (folder / f"host{number}.yml").write_text(yaml.safe_dump(card))
        return folder

    def knock(self, cards: Path, *words: str, **more):
        """Run the client as an ordinary user."""
        words = ("knock", *words, "--for", "1s", "--cards", str(cards))
        return self.alice.tariq(*words, node=self.net.client, check=False, timeout=300, **more)

    def close(self) -> None:
        for host in self.hosts:
            host.close()
        self.alice.close()
        self.net.delete()


def one_host(lab: Lab, times: int) -> float:
    """Print what commands take; return the seconds of one host's knock."""
    cards = lab.cards(1)
    rows = {
        "interpreter": lambda: run(lab.python, "-I", "-c", "pass"),
        "tariq --help": lambda: run(lab.python, "-m", "tariq", "--help", cwd="/"),
        "gpg --version": lambda: run("gpg", "--version"),
        "tariq knock, one host, to the receipt": lambda: lab.knock(cards, "host0"),
    }
    if Fwknop.missing():
        print(f"fwknop is not here: {Fwknop.missing()}")
    else:
        key = ["--key-rijndael", "abc", "--key-hmac", "def", "--use-hmac"]
        words = ["fwknop", "-A", "tcp/22", "-a", "10.77.0.2", "-D", "10.77.0.1", *key]
        env = {"HOME": str(lab.base), "PATH": os.environ["PATH"]}
        rows["fwknop, sent, no answer"] = lambda: lab.net.client.run(*words, env=env)
        rows["ip netns exec true (part of the last rows)"] = lambda: lab.net.client.run("true")
    found = {name: median(what, times) for name, what in rows.items()}
    for name, took in found.items():
        print(f"{name:44} {took:8.1f} ms {took / found['interpreter']:7.1f} x interpreter")
    return found["tariq knock, one host, to the receipt"] / 1000


def many_hosts(lab: Lab, count: int, one: float) -> bool:
    """Knock many names with one command; print time per host against one host's."""
    shim = lab.base / "shim"
    shim.mkdir(exist_ok=True)
    signatures = lab.base / "signatures"
    signatures.write_text("")
    signatures.chmod(0o666)
    gpg = shim / "gpg"
    gpg.write_text(_SIGNED.format(count=signatures, gpg=shutil.which("gpg")))
    gpg.chmod(0o755)
    cards = lab.cards(count)
    used, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    said = lab.knock(
        cards, "--group", "all", env={"PATH": f"{shim}:{os.environ['PATH']}", "HOME": "/nowhere"}
    )
    took, now = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    opened = said.stdout.count(" opened ")
    signed = len(signatures.read_text().splitlines())
    print(
        f"{count} hosts: {opened} opened in {took:.1f} s, {1000 * took / count:.0f} ms a host "
        f"({took / count / one:.2f} x one host), client cpu {1000 * cpu / count:.0f} ms a host, "
        f"{signed} signatures"
    )
    return opened == count and signed == -(-count // 64)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="fewer rounds")
    parser.add_argument("--hosts", type=int, default=100, help="1,000 at most")
    wanted = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("speed bench: namespaces need root; sudo make bench")
    with scratch() as base:
        lab = Lab(base)
        try:
            one = one_host(lab, 3 if wanted.short else 15)
            return 0 if many_hosts(lab, min(wanted.hosts, 1000), one) else 1
        finally:
            lab.close()


if __name__ == "__main__":
    sys.exit(main())
