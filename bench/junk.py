"""Send junk at a host from one core, as fast as it can or at a rate; print packets and seconds.

    junk.py KIND SOURCE DESTINATION PORT SECONDS KNOCK_FILE [PER_SECOND]

Kinds: ``marked-like`` (right port, size and PNG head, random nonce and mark), ``replays`` (copies
of the knock in the file), ``altered`` (copies that each end in another way), ``syns`` (no payload);
for peers that take UDP, ``spa-like`` (text of the same size as the file's, other letters),
``spa-replays`` and ``spa-altered``.
Meant for network namespaces of a test's own; bounded by SECONDS, 60 at most.

sendmmsg(2) hands the kernel a few hundred packets a call, so what is measured is the
kernel, not Python.
"""

from __future__ import annotations

import ctypes
import os
import random
import socket
import string
import sys
import time
from pathlib import Path

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from tariq.picture import png

DIFFERENT = 256
_END = 24
_SOL_PACKET, _QDISC_BYPASS = 263, 20  # linux/if_packet.h
_BASE64 = string.ascii_letters + string.digits + "+/"
_libc = ctypes.CDLL(None, use_errno=True)


class _Part(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_char_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):
    """struct mmsghdr, sendmmsg(2)."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("parts", ctypes.POINTER(_Part)),
        ("parts_length", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("sent", ctypes.c_uint),
    )


def packets(kind: str, source: str, destination: str, port: int, knock: bytes) -> list[Packet]:
    """Return some hundred different IP packets to send over and over."""
    made = []
    for number in range(DIFFERENT):
        ip, sport = IP(src=source, dst=destination), 20_000 + number
        if kind == "spa-replays":
            made.append(ip / UDP(sport=sport, dport=port) / Raw(knock))
        elif kind == "spa-altered":
            end = "".join(random.choices(_BASE64, k=_END)).encode()
            made.append(ip / UDP(sport=sport, dport=port) / Raw(knock[:-_END] + end))
        elif kind == "spa-like":
            text = "".join(random.choices(_BASE64, k=len(knock))).encode()
            made.append(ip / UDP(sport=sport, dport=port) / Raw(text))
        else:
            syn = ip / TCP(sport=sport, dport=port, flags="S", seq=number)
            made.append(syn / Raw(_payload(kind, knock)) if kind != "syns" else syn)
    return made


def _payload(kind: str, knock: bytes) -> bytes:
    if kind == "replays":
        return knock
    if kind == "altered":
        return knock[:-_END] + os.urandom(_END)
    return png.with_unique_id(knock, os.urandom(16).hex())


def _neighbour(destination: str) -> str:
    """Return the MAC address of a neighbour."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # resolves it
        probe.sendto(b"", (destination, 9))
    time.sleep(0.3)
    lines = Path("/proc/net/arp").read_text().splitlines()
    return next(line.split()[3] for line in lines if line.startswith(f"{destination} "))


def _messages(frames: list[bytes]) -> ctypes.Array[_Message]:
    messages = (_Message * len(frames))()
    for message, frame in zip(messages, frames, strict=True):
        message.parts = ctypes.pointer(_Part(frame, len(frame)))
        message.parts_length = 1
    return messages


def send(sock: socket.socket, frames: list[bytes], seconds: float, per_second: int) -> int:
    """Send for a while; return how many the kernel took. ``per_second`` 0: all that it takes."""
    messages = _messages(frames)
    sent, started = 0, time.monotonic()
    while (past := time.monotonic() - started) < seconds:
        count = len(frames)
        if per_second:
            count = min(count, int(past * per_second) - sent)
            if count <= 0:
                time.sleep(0.0005)
                continue
        taken = _libc.sendmmsg(sock.fileno(), messages, count, 0)
        sent += max(0, taken)  # -1: a queue is full
    return sent


def main(kind: str, source: str, destination: str, port: str, seconds: str, file: str, *rate: str):
    """Send for a while."""
    made = packets(kind, source, destination, int(port), Path(file).read_bytes())
    [interface] = [name for _, name in socket.if_nameindex() if name != "lo"]
    head = Ether(dst=_neighbour(destination), src=_address_of(interface))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.setsockopt(_SOL_PACKET, _QDISC_BYPASS, 1)
        sock.bind((interface, 0))
        started = time.monotonic()
        frames = [bytes(head / each) for each in made]
        per_second = int(rate[0]) if rate else 0
        sent = send(sock, frames, min(float(seconds), 60.0), per_second)
        print(sent, round(time.monotonic() - started, 2))


def _address_of(interface: str) -> str:
    return Path(f"/sys/class/net/{interface}/address").read_text().strip()


if __name__ == "__main__":
    main(*sys.argv[1:])
