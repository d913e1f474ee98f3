"""The peers that the benches compare with, run as their packages configure them.

Nothing is installed here: a peer that is missing says which packages to install.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
import time
from pathlib import Path
from typing import ClassVar

from lab import Network, Server, eventually, run

FIRST_PORT = 2001
GUARDED = f"{FIRST_PORT}:9999"
TRIES, SECONDS_PER_TRY = 3, 0.7
"""As tariq's own client: a peer's client gets as many tries, though it has none by itself."""


class Fwknop:
    """fwknopd of Debian, its defaults, Rijndael and HMAC keys, its iptables backend."""

    NAME = "fwknopd"
    PORT = 62201
    KINDS: ClassVar = {
        "junk": "spa-like",
        "replays": "spa-replays",
        "altered": "spa-altered",
        "syns": "syns",
    }

    @staticmethod
    def missing() -> str:
        """Return what to do to have it, or nothing."""
        there = shutil.which("fwknopd") and shutil.which("fwknop") and shutil.which("iptables")
        return "" if there else "apt-get install fwknop-server fwknop-client iptables"

    def __init__(self, base: Path, net: Network) -> None:
        self.net, self.base = net, base / "fwknop"
        self.base.mkdir()
        words = run("fwknop", "--key-gen").stdout.split()
        self.keys = {name.rstrip(":"): word for name, word in itertools.pairwise(words)}
        self.ports = itertools.count(FIRST_PORT)
        self.servers: list[Server] = []
        net.host.run("iptables", "-A", "INPUT", "-p", "tcp", "--dport", GUARDED, "-j", "DROP")
        self.log = self.base / "log"
        self.daemon = self._start()
        self.copy = self.base / "knock.bin"
        assert self.knock("-B", str(self.copy)), self.log.read_text()

    def _start(self) -> subprocess.Popen[bytes]:
        config, access = self.base / "fwknopd.conf", self.base / "access.conf"
        config.write_text(f"PCAP_INTF eth0;\nFWKNOP_RUN_DIR {self.base};\n")
        access.write_text(
            f"SOURCE ANY\nKEY_BASE64 {self.keys['KEY_BASE64']}\n"
            f"HMAC_KEY_BASE64 {self.keys['HMAC_KEY_BASE64']}\nFW_ACCESS_TIMEOUT 30\n"
        )
        for file in (config, access):
            file.chmod(0o600)
        words = ["fwknopd", "-f", "-c", str(config), "-a", str(access)]
        with self.log.open("ab") as log:
            daemon = subprocess.Popen(self.net.host.command(*words), stdout=log, stderr=log)
        eventually(lambda: b"main event loop" in self.log.read_bytes(), 10)
        return daemon

    @property
    def pids(self) -> list[int]:
        return [self.daemon.pid]  # ip netns exec becomes the daemon

    def knock(self, *words: str) -> bool:
        """Knock for a port that was never open before; tell whether a connection is made."""
        port, address = next(self.ports), self.net.V4["host"]
        self.servers.append(Server(self.net.host, port))
        keys = ["--key-base64-rijndael", self.keys["KEY_BASE64"], "--use-hmac"]
        keys += ["--key-base64-hmac", self.keys["HMAC_KEY_BASE64"]]
        for _ in range(TRIES):
            started = time.monotonic()
            self.net.client.run(
                *("fwknop", "-A", f"tcp/{port}", "-a", self.net.V4["client"], "-D", address),
                *(*keys, *words),
                env={"HOME": str(self.base), "PATH": "/usr/bin:/bin"},
            )
            while time.monotonic() < started + SECONDS_PER_TRY:
                if self.net.client.connects(address, port, 0.1):
                    return True
        return False

    def close(self) -> None:
        self.daemon.terminate()
        self.daemon.wait(10)
        for server in self.servers:
            server.close()
