"""Links of several kinds between two namespaces, and packets that no client's kernel would send."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator

import pytest
from lab import Namespace, Network, eventually, run

HOST, CLIENT = "10.88.0.1", "10.88.0.2"
_TUNSETIFF, _TUNSETLINK = 0x400454CA, 0x400454CD  # linux/if_tun.h
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
ARPHRD_PPP = 512  # linux/if_arp.h


def address(node: Namespace, device: str, own: str, peer: str = "") -> None:
    """Give a device an address and set it up."""
    words = [own, "peer", peer] if peer else [f"{own}/24"]
    node.ip("addr", "add", *words, "dev", device)
    node.ip("link", "set", device, "up")


def veth(host: Namespace, client: Namespace, name: str) -> None:
    """Join two namespaces by an Ethernet cable."""
    client.ip("link", "add", name, "type", "veth", "peer", "name", name, "netns", host.name)
    address(client, name, CLIENT)
    address(host, name, HOST)


def bridge(host: Namespace, client: Namespace, name: str) -> None:
    """Let the host's address be that of a bridge with the cable as its port."""
    client.ip("link", "add", name, "type", "veth", "peer", "name", "port0", "netns", host.name)
    host.ip("link", "add", name, "type", "bridge")
    host.ip("link", "set", "port0", "master", name, "up")
    address(client, name, CLIENT)
    address(host, name, HOST)


def add(node: Namespace, *words: str) -> None:
    """Add a device of a kind that not every kernel has."""
    made = run("ip", "-n", node.name, "link", "add", *words, check=False)
    if "Unknown device type" in made.stderr or "Operation not supported" in made.stderr:
        kind = words[words.index("type") + 1]
        pytest.skip(f"cannot here: the kernel has no {kind} devices ('make kernel' brings one)")
    assert made.returncode == 0, made.stderr


def vlan(host: Namespace, client: Namespace, name: str) -> None:
    """Join two namespaces by VLAN 7 on the cable that they have."""
    for node, own in ((client, CLIENT), (host, HOST)):
        add(node, "link", "eth0", "name", name, "type", "vlan", "id", "7")
        address(node, name, own)


def stacked(host: Namespace, client: Namespace, name: str) -> None:
    """Join two namespaces by VLAN 7 within the provider's VLAN 8 (802.1ad)."""
    for node, own in ((client, CLIENT), (host, HOST)):
        outer = ("type", "vlan", "proto", "802.1ad", "id", "8")
        add(node, "link", "eth0", "name", "port0", *outer)
        node.ip("link", "set", "port0", "up")
        add(node, "link", "port0", "name", name, "type", "vlan", "id", "7")
        address(node, name, own)


def gre(host: Namespace, client: Namespace, name: str) -> None:
    """Join two namespaces by a GRE tunnel over the cable that they have."""
    ends = ((client, "client", "host", CLIENT), (host, "host", "client", HOST))
    for node, here, there, own in ends:
        between = ("local", Network.V4[here], "remote", Network.V4[there])
        add(node, "name", name, "type", "gre", *between)
        address(node, name, own)


def macvlan(host: Namespace, client: Namespace, name: str) -> None:
    """Join two namespaces by second hardware addresses on the cable that they have."""
    # Else the first one answers for the second's address, and the knock comes in by that.
    host.run("sysctl", "-qw", "net.ipv4.conf.eth0.arp_ignore=1")
    for node, own in ((client, CLIENT), (host, HOST)):
        node.ip("link", "add", "link", "eth0", "name", name, "type", "macvlan", "mode", "bridge")
        address(node, name, own)


class Tunnel:
    """A tun device in each namespace, with no link header, and a thread that relays packets."""

    def __init__(self, host: Namespace, client: Namespace, name: str, arphrd: int | None) -> None:
        self._ends = [self._open(node, name, arphrd) for node in (host, client)]
        address(host, name, HOST, CLIENT)
        address(client, name, CLIENT, HOST)
        self._stopping, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._relay, daemon=True)
        self._thread.start()

    @staticmethod
    def _open(node: Namespace, name: str, arphrd: int | None) -> int:
        with node.entered():
            end = os.open("/dev/net/tun", os.O_RDWR)
            fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN | _IFF_NO_PI))
        if arphrd is not None:
            fcntl.ioctl(end, _TUNSETLINK, arphrd)
        return end

    def _relay(self) -> None:
        while True:
            ready, _, _ = select.select([*self._ends, self._stopping], [], [])
            if self._stopping in ready:
                return
            for end in ready:
                other = self._ends[1 - self._ends.index(end)]
                with contextlib.suppress(OSError):  # one end is down
                    os.write(other, os.read(end, 65_535))

    def close(self) -> None:
        """Take both devices away."""
        os.write(self._stop, b"x")
        self._thread.join(5)
        for descriptor in (*self._ends, self._stopping, self._stop):
            os.close(descriptor)


_MAKERS = {
    "veth": veth,
    "bridge": bridge,
    "vlan": vlan,
    "stacked vlans": stacked,
    "macvlan": macvlan,
    "gre": gre,
}


@contextlib.contextmanager
def ppp(host: Namespace, client: Namespace, name: str) -> Iterator[None]:
    """Join two namespaces by the kernel's own PPP and two pppd(8), as over a serial line."""
    try:
        os.close(os.open("/dev/ppp", os.O_RDWR))
    except OSError:
        pytest.skip("cannot here: the kernel has no PPP ('make kernel' brings one)")
    ends = socket.socketpair()
    options = ["notty", "nodetach", "noauth", "nolock", "local", "nodefaultroute", "noipv6"]
    daemons = []
    try:
        for node, end, own in zip(
            (host, client), ends, (f"{HOST}:{CLIENT}", f"{CLIENT}:{HOST}"), strict=True
        ):
            command = node.command("pppd", *options, "ifname", name, own)
            daemons.append(
                subprocess.Popen(command, stdin=end, stdout=end, stderr=subprocess.DEVNULL)
            )
        for node, own in ((host, HOST), (client, CLIENT)):
            show = ("ip", "-n", node.name, "addr", "show", "dev", name)
            eventually(lambda show=show, own=own: own in run(*show, check=False).stdout, 20)
        yield
    finally:
        for daemon in daemons:
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(10)
        for end in ends:
            end.close()


@contextlib.contextmanager
def link(kind: str, host: Namespace, client: Namespace, name: str = "new0") -> Iterator[None]:
    """Join two namespaces by a link of that kind, for a while."""
    if kind == "ppp":
        with ppp(host, client, name):
            yield
        return
    if kind in ("tun", "tun as ppp"):
        arphrd = ARPHRD_PPP if kind == "tun as ppp" else None
        with contextlib.closing(Tunnel(host, client, name, arphrd)):
            yield
        return
    try:
        _MAKERS[kind](host, client, name)
        yield
    finally:
        for node in (host, client):
            for device in (name, "port0"):
                run("ip", "-n", node.name, "link", "del", device, check=False)
