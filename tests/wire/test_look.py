"""What an onlooker sees: nothing in the headers, noise in the pictures."""

import json
import socket
import struct
import time

from lab import PORT, Network, Recorder
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from tariq.picture import png


def syns(recorder, version):
    """Return captured SYNs to the knock port, dissected by scapy."""
    found = []
    while True:
        try:
            raw = recorder.sock.recv(65_535)
        except BlockingIOError:
            return found
        if raw[0] >> 4 == version:
            packet = (IP if version == 4 else IPv6)(raw)
            if TCP in packet and packet[TCP].dport == PORT and packet[TCP].flags == "S":
                found.append(packet)


def any_fast_open(world, version, data):
    """Let the same kernel send any program's Fast Open connection with as much data."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with world.net.client.socket(family) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, 34, 1)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.sendto(data, socket.MSG_FASTOPEN, (world.address(version), PORT))


def fields(packet) -> dict:
    """Return all header fields but those that differ from one connection to the next."""
    per_connection = {"id", "chksum", "sport", "seq", "fl"}
    ip = packet.copy()
    ip[TCP].remove_payload()
    layers = (ip, ip[TCP])
    found = {
        f"{layer.name}.{name}": value
        for layer in layers
        for name, value in layer.fields.items()
        if name not in per_connection
    }
    found["TCP.options"] = [
        name if name == "Timestamp" else (name, value) for name, value in ip[TCP].options
    ]
    return found


def test_the_syn_is_the_one_that_this_kernel_sends_for_anybody(world):
    for version in (4, 6):
        recorder = Recorder(world.net.host)
        world.knock(f"-{version}", "--for", "1s")
        [knock] = syns(recorder, version)
        any_fast_open(world, version, b"x" * len(knock[TCP].payload))
        time.sleep(0.2)
        [other] = syns(recorder, version)
        recorder.close()
        assert fields(knock) == fields(other)


def test_sizes_tell_neither_what_was_asked_nor_what_was_answered(world):
    """A picture's width and height are in clear text, right behind IHDR."""
    onlookers = Recorder(world.net.host), Recorder(world.net.client)
    codes = set()
    for words in (
        ("knock", "--open", "ssh"),
        ("knock", "--open", "ssh,web", "--for", "5s"),
        ("knock", "--open", "nothing-of-this-name"),
        ("status",),
        ("close",),
    ):
        told = world.knock("-4", "--json", *words[1:], verb=words[0], check=False).stdout
        [outcome] = json.loads(told)
        codes.add(outcome["receipt"]["code"])
    assert codes == {"opened", "unknown", "status", "closed"}, "the control: answers differ"
    for onlooker, to in zip(onlookers, (world.address(4), Network.V4["client"]), strict=True):
        seen = [each.payload for each in onlooker.segments(0.2) if each.dst == to]
        sizes = {each[16:24] for each in seen if each.startswith(png.SIGNATURE)}
        assert len(sizes) == 1
        onlooker.close()
