"""Print what each check of a knock costs, in the order in which they are made.

    python bench/checks.py [--json]

Needs no root and sends nothing: the kernel's filter runs on a pair of unix sockets (sk_filter() in
net/unix/af_unix.c), whose every datagram it drops or passes as it would a packet. The microseconds
are this machine's; the ratios tell whether the cheap come before the dear.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from tariq import openpgp, picture
from tariq.agent.sentry import Bucket
from tariq.message import Batch
from tariq.picture import Direction, lsb, png, proof, veil
from tariq.transport import bpf, sockets, wire

PORT, KEY, NOW = 62201, os.urandom(32), time.time()
ROUNDS = 60
"""Short ones, of which some fit between what else the machine does."""
_PASS = struct.pack("=HBBI", 0x06, 0, 0, 0xFFFF)
"""BPF_RET."""
ORDER = (
    "kernel: another port",
    "kernel: no payload",
    "kernel: our picture without the mark",
    "kernel: marked",
    "parse",
    "tag",
    "tag, wrong",
    "memory",
    "bucket",
    "layout",
    "pillow",
    "stegano",
    "gnupg",
)


def best(work: Callable[[], object], times: int, rounds: int | None = None) -> float:
    """Return microseconds for one call: the best of some rounds, so that others don't count."""
    took = []
    for _ in range(rounds or ROUNDS):
        started = time.perf_counter()
        for _ in range(times):
            work()
        took.append((time.perf_counter() - started) / times)
    return min(took) * 1e6


def packet(payload: bytes, port: int = PORT) -> bytes:
    """Return a SYN from the network header on; checksums are the kernel's business."""
    tcp = struct.pack("!HHIIBBHHH", 40_000, port, 1, 0, 0x50, wire.SYN, 64_240, 0, 0) + payload
    ip = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0, b"\x0a\0\0\1", b"\x0a\0\0\2"
    )
    return ip + tcp


def filtered(program: bytes, data: bytes, passes: bool = False) -> float:
    """Return what a program costs on one packet, beyond one that does the same at once."""
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    plain = _PASS if passes else sockets.DEAF

    def work() -> None:
        sender.send(data)
        if passes:
            receiver.recv(1)

    def cost(attached: bytes) -> float:
        sockets.attach(receiver, attached)
        return best(work, 300, rounds=1)

    with sender, receiver:
        receiver.settimeout(5)  # bounded, should a program not do what is said here
        pairs = [(cost(program), cost(plain)) for _ in range(10 * ROUNDS)]
    return max(0.0, min(each for each, _ in pairs) - min(each for _, each in pairs))


def kernel(knock: bytes) -> dict[str, float]:
    """Measure the filter that the sentry attaches, on what it sees."""
    program = bpf.knocks(socket.AF_INET, PORT, proof.mark_keys(KEY, Direction.TO_HOST, NOW))
    junk = png.with_unique_id(knock, os.urandom(16).hex())
    return {
        "kernel: another port": filtered(program, packet(knock, PORT + 1)),
        "kernel: no payload": filtered(program, packet(b"")),
        "kernel: our picture without the mark": filtered(program, packet(junk)),
        "kernel: marked": filtered(program, packet(knock), passes=True),
    }


def refused(altered: bytes) -> None:
    """Let the proof refuse a copy of a real knock that was changed."""
    with contextlib.suppress(proof.AlteredError):
        proof.check(altered, KEY, Direction.TO_HOST, NOW)


def process(knock: bytes) -> dict[str, float]:
    """Measure the sentry's own checks on one good knock."""
    raw, tag = packet(knock), proof.tag_of(knock)
    altered = knock[:-1] + bytes([knock[-1] ^ 1])
    seen = OrderedDict((os.urandom(8).hex(), 0.0) for _ in range(9_000))
    bucket = Bucket(1e9, 1e9, time.monotonic)
    image = veil.apply(png.read(knock), veil.key(KEY, Direction.TO_HOST, proof.nonce_of(knock)))
    layout = best(lambda: png._check_layout(knock), 20)  # a step of ``read``
    return {
        "parse": best(lambda: wire.parse(raw), 200),
        "tag": best(lambda: proof.check(knock, KEY, Direction.TO_HOST, NOW), 50),
        "tag, wrong": best(lambda: refused(altered), 50),
        "memory": best(lambda: tag in seen, 10_000),
        "bucket": best(bucket.take, 2_000),
        "layout": layout,
        "pillow": best(lambda: png.read(knock), 10) - layout,
        "stegano": best(lambda: lsb.reveal(image.copy()), 1),
    }


def gnupg(sealed: bytes, bundle: bytes, batch: Batch, parts: tuple[openpgp.HostKey, Path]) -> float:
    """Measure decryption and the check of the signature, together."""
    host, ring_file = parts
    with tempfile.TemporaryDirectory(prefix="tq") as home:
        ring = openpgp.OperatorRing(Path(home) / "ring", [ring_file])
        signature = bundle

        def work() -> None:
            host.unseal(sealed)
            ring.verify(batch.to_sign, signature)

        return best(work, 1, rounds=10)


def measure() -> dict[str, float]:
    """Return microseconds by check."""
    with tempfile.TemporaryDirectory(prefix="tq") as base:
        host = openpgp.HostKey.make(Path(base) / "host", "bench")
        operator = openpgp.OperatorKey.make(Path(base) / "operator", "bench", passphrase=False)
        try:
            public = Path(base) / "operator.asc"
            public.write_text(operator.export())
            batch = Batch.of([b"x" * 125])
            signature = operator.sign(batch.to_sign)
            with openpgp.CardRing() as ring:
                ring.add(host.fingerprint, host.export())
                sealed = ring.seal(host.fingerprint, batch.bundle(0, signature).encode())
            knock = picture.wrap(sealed, KEY, Direction.TO_HOST, NOW)
            costs = kernel(knock) | process(knock)
            costs["gnupg"] = gnupg(sealed, signature, batch, (host, public))
        finally:
            for home in ("host", "operator"):
                openpgp.stop_agent(Path(base) / home)
    return costs


def main(words: list[str]) -> None:
    """Print a table, or JSON."""
    costs = measure()
    if words == ["--json"]:
        print(json.dumps({name: round(costs[name], 3) for name in ORDER}))
        return
    unit = costs["kernel: our picture without the mark"]
    print("| check | microseconds | to the kernel's whole check |\n| --- | ---: | ---: |")
    for name in ORDER:
        ratio = costs[name] / unit
        print(
            f"| {name} | {costs[name]:.2f} | {ratio:.2f} |"
            if ratio < 10
            else f"| {name} | {costs[name]:.0f} | {ratio:.0f} |"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
