"""How many real knocks come through while one core sends junk at the knock port.

    flood.py [--short] [--rates 10000,100000,0] [--only tariq|fwknopd]

Everything happens in network namespaces that are made here and removed. Junk goes from
one namespace, by one process pinned to one core, through veth pairs to the host; real knocks
go from another, one each half second, by the real client as an ordinary user. A knock
counts only if the client says yes *and* a connection to the port that it opened is made.
A rate of 0 is all that the core can send. The peers get the same on the same wires.
Needs root; the exit status is 0 only if every knock to tariq came through.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO / "tests"))

from lab import (  # noqa: E402
    PORT,
    AgentHost,
    Network,
    Operator,
    Recorder,
    Server,
    eventually,
    reachable_python,
    scratch,
)
from peers import Fwknop  # noqa: E402

SPACING = 0.5
KINDS = ("junk", "replays", "altered", "syns")
NONE = "none"
"""The control: knocks without a flood."""


class Tariq:
    """Tariq's agent, as the wire tests run it."""

    NAME = "tariq"
    PORT = PORT
    KINDS: ClassVar = {
        "junk": "marked-like",
        "replays": "replays",
        "altered": "altered",
        "syns": "syns",
    }

    def __init__(self, base: Path, net: Network) -> None:
        self.net = net
        python = reachable_python(base)
        self.server = Server(net.host, 22)
        self.alice = Operator(base, "alice", python)
        self.host = AgentHost(base, net.host, python)
        self.host.trust(self.alice)
        self.host.start()
        self.log = self.host.log
        self.cards = base / "cards"
        self.cards.mkdir()
        self.host.write_card(self.cards, [net.V4["host"]])
        onlooker = Recorder(net.host)
        assert self.knock()
        [seen] = [each for each in onlooker.segments() if each.dport == PORT and each.payload]
        onlooker.close()
        self.copy = base / "knock.bin"
        self.copy.write_bytes(seen.payload)

    @property
    def pids(self) -> list[int]:
        assert self.host.process is not None
        return [self.host.process.pid, self.host.sentry_pid()]

    def knock(self) -> bool:
        """Knock, and tell whether a connection is made."""
        words = ("knock", "web1", "--cards", str(self.cards), "--for", "3s")
        said = self.alice.tariq(*words, node=self.net.client, check=False)
        return said.returncode == 0 and self.net.client.connects(self.net.V4["host"], 22, 2.0)

    def close(self) -> None:
        self.host.close()
        self.alice.close()
        self.server.close()


@dataclass
class Row:
    """What one flood did to one daemon."""

    daemon: str
    kind: str
    sent: int
    per_second: int
    came_through: str
    milliseconds: int
    cpu: int
    memory: str
    lines: int
    dropped: str

    def show(self) -> str:
        return (
            f"{self.daemon:8} {self.kind:8} {self.per_second:9,} {self.came_through:>8} "
            f"{self.milliseconds:7} {self.cpu:6} {self.memory:>16} {self.lines:6} {self.dropped:>7}"
        )


HEAD = (
    f"{'daemon':8} {'junk':8} {'packets/s':>9} {'knocks':>8} {'ms':>7} {'cpu %':>6} "
    f"{'memory, kB':>16} {'lines':>6} {'buffer':>7}"
)


def memory_of(pids: list[int]) -> int:
    """Return resident memory in kB."""
    texts = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    return sum(int(text.split("VmRSS:")[1].split()[0]) for text in texts)


def cpu_of(pids: list[int]) -> float:
    """Return processor seconds used so far, by the processes themselves (proc_pid_stat(5))."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in pids]
    return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")


def dropped(net: Network) -> int:
    """Return what packet sockets of the host have dropped for want of room (ss(8), skmem).

    The rings that libpcap maps don't count here, so this says nothing of its users.
    """
    listed = net.host.run("ss", "-0", "-H", "-m").stdout
    return sum(int(count) for count in re.findall(r"skmem:\([^)]*,d(\d+)\)", listed))


def arrived(net: Network) -> int:
    """Return how many packets the host's interface has taken in."""
    return int(net.host.run("cat", "/sys/class/net/eth0/statistics/rx_packets").stdout)


def flood(target: Tariq | Fwknop, kind: str, rate: int, knocks: int) -> Row:
    """Flood one daemon while it is knocked."""
    net, pids = target.net, target.pids
    lines = len(target.log.read_bytes().splitlines())
    memory, lost, came = memory_of(pids), dropped(net), arrived(net)
    with subprocess.Popen(
        sender(target, kind, rate, SPACING * knocks + 3), stdout=subprocess.PIPE, text=True
    ) as junk:
        eventually(lambda: kind == NONE or arrived(net) > came + 500, 20)
        cpu, started = cpu_of(pids), time.monotonic()
        times = spaced(target, knocks)
        cpu, took = cpu_of(pids) - cpu, time.monotonic() - started
        sent, seconds = junk.communicate(timeout=60)[0].split()
    good = [each for each in times if each]
    return Row(
        daemon=target.NAME,
        kind=kind,
        sent=int(sent),
        per_second=round(int(sent) / float(seconds)),
        came_through=f"{len(good)}/{knocks}",
        milliseconds=round(1000 * statistics.median(good)) if good else 0,
        cpu=round(100 * cpu / took),
        memory=f"{memory:,} {memory_of(pids) - memory:+,}",
        lines=len(target.log.read_bytes().splitlines()) - lines,
        dropped=f"{dropped(net) - lost:,}" if isinstance(target, Tariq) else "-",
    )


def sender(target: Tariq | Fwknop, kind: str, rate: int, seconds: float) -> list[str]:
    """Return the command that floods a target."""
    if kind == NONE:
        return ["echo", "0", "1"]
    net = target.net
    words = (target.KINDS[kind], net.V4["stranger"], net.V4["host"], str(target.PORT))
    return net.stranger.command(
        *("taskset", "-c", str(max(os.sched_getaffinity(0)))),
        *(sys.executable, str(REPO / "bench" / "junk.py"), *words),
        *(str(seconds), str(target.copy), str(rate)),
    )


def spaced(target: Tariq | Fwknop, knocks: int) -> list[float]:
    """Knock every half second; return seconds until each was in, 0 for one that wasn't."""

    def one(number: int) -> float:
        time.sleep(SPACING * number)
        started = time.monotonic()
        return time.monotonic() - started if target.knock() else 0.0

    with ThreadPoolExecutor(knocks) as pool:
        return list(pool.map(one, range(knocks)))


def run_one(maker: type[Tariq] | type[Fwknop], rates: list[int], knocks: int) -> list[Row]:
    """Run all floods against one daemon."""
    rows = []
    with scratch() as base:
        net = Network()
        # the switch is the sender's cost, not the host's: let it do no more than switch
        off = "net.bridge.bridge-nf-call-iptables=0"
        net.switch.run("sysctl", "-w", off, check=False)
        target = maker(base, net)
        try:
            for rate, kind in [(0, NONE), *((rate, kind) for rate in rates for kind in KINDS)]:
                eventually(target.knock, 60)  # until it's over the flood before
                rows.append(flood(target, kind, rate, knocks))
                print(rows[-1].show(), flush=True)
            if isinstance(target, Tariq):
                print(told(target, sum(row.sent for row in rows)))
        finally:
            target.close()
            net.delete()
    return rows


def told(target: Tariq, sent: int) -> str:
    """Return what the sentry itself reports of all floods; waits for its last report."""
    reports = re.compile(rb"sentry: packets: (.*)")
    before = len(reports.findall(target.log.read_bytes()))
    assert target.knock(), "something to report"
    eventually(lambda: len(reports.findall(target.log.read_bytes())) > before, 90)
    counts: Counter[str] = Counter()
    for line in reports.findall(target.log.read_bytes()):
        for count, name in re.findall(r"(\d+) ([^,]+)", line.decode()):
            counts[name] += int(count)
    totals = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"of {sent:,} packets of junk and all knocks, the sentry's own report: {totals}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="6 knocks, and only at full rate")
    parser.add_argument("--rates", default="", help="packets a second, by commas; 0: all it can")
    parser.add_argument("--only", choices=("tariq", "fwknopd"))
    wanted = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("flood bench: namespaces need root; sudo make bench")
    knocks = 6 if wanted.short else 20
    default = "0" if wanted.short else "10000,100000,0"
    rates = [int(rate) for rate in (wanted.rates or default).split(",")]
    print(HEAD)
    rows = run_one(Tariq, rates, knocks) if wanted.only != Fwknop.NAME else []
    if wanted.only != Tariq.NAME:
        if hint := Fwknop.missing():
            print(f"fwknopd is not here: {hint}")
        else:
            run_one(Fwknop, rates, knocks)
    return 0 if all(row.came_through == f"{knocks}/{knocks}" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
