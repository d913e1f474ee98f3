"""Send junk at a knock port as fast as one core can; print packets sent and seconds.

    junk.py KIND SOURCE DESTINATION PORT SECONDS KNOCK_FILE

Kinds: ``marked-like`` (right port, size and PNG head, random nonce and mark),
``replays`` (copies of the knock in the file), ``syns`` (no payload). Meant for network
namespaces of a test's own; bounded by SECONDS, 60 at most.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

from scapy.layers.inet import IP, TCP
from scapy.packet import Raw

from tariq.picture import png

_SOL_PACKET, _QDISC_BYPASS = 263, 20


def packets(kind: str, source: str, destination: str, port: int, knock: bytes) -> list[bytes]:
    """Return some hundred different packets to send over and over."""
    made = []
    for number in range(256):
        payload = knock
        if kind == "marked-like":
            payload = png.with_unique_id(knock, os.urandom(16).hex())
        syn = IP(src=source, dst=destination) / TCP(
            sport=20_000 + number, dport=port, flags="S", seq=number
        )
        made.append(bytes(syn / Raw(payload) if kind != "syns" else syn))
    return made


def main(kind: str, source: str, destination: str, port: str, seconds: str, file: str) -> None:
    """Send for a while."""
    made = packets(kind, source, destination, int(port), Path(file).read_bytes())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # resolves the neighbour
        probe.sendto(b"", (destination, 9))
    time.sleep(0.3)
    [interface] = [name for _, name in socket.if_nameindex() if name != "lo"]
    lines = Path("/proc/net/arp").read_text().splitlines()
    mac = next(line.split()[3] for line in lines if line.startswith(f"{destination} "))
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0) as sock:
        sock.setsockopt(_SOL_PACKET, _QDISC_BYPASS, 1)
        to = (interface, 0x0800, 0, 0, bytes.fromhex(mac.replace(":", "")))
        sent, started = 0, time.monotonic()
        end = started + min(float(seconds), 60.0)
        while time.monotonic() < end:
            for packet in made:
                try:
                    sock.sendto(packet, to)
                except OSError:  # the queue is full
                    continue
                sent += 1
        print(sent, round(time.monotonic() - started, 2))


if __name__ == "__main__":
    main(*sys.argv[1:])
