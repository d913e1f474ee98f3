"""OpenPGP packets that GnuPG would not write: for the generator of the corpus only.

GnuPG makes a message to a host's key and tells its session key; what is inside is then
replaced by any packets at all (RFC 4880: 4.2 headers, 5.9 literals, 5.13 and 5.14 the
encrypted data with its modification detection code).
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import zlib
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.modes import ECB

LITERAL, COMPRESSED, SEIPD, SED, MARKER = 11, 8, 18, 9, 10


def gpg(home: Path, *words: str, data: bytes = b"", check: bool = True, now: str = "") -> bytes:
    """Run GnuPG on a home; ``now`` is the time that it is told, such as 20200101T000000."""
    clock = ["--faked-system-time", f"{now}!"] if now else []
    command = ["gpg", "--homedir", str(home), "--batch", "--no-tty", "--quiet", *clock, *words]
    done = subprocess.run(command, input=data, capture_output=True, check=False, timeout=60)
    if check and done.returncode:
        raise RuntimeError(f"{words}: {done.stderr.decode(errors='replace')}")
    return done.stdout


def packet(tag: int, body: bytes) -> bytes:
    """Return a packet with a new-format header of five octets' length at most."""
    size = len(body)
    if size < 192:
        length = bytes([size])
    elif size < 8384:
        length = bytes([(size - 192 >> 8) + 192, size - 192 & 0xFF])
    else:
        length = b"\xff" + size.to_bytes(4, "big")
    return bytes([0xC0 | tag]) + length + body


def literal(data: bytes, kind: bytes = b"b", name: bytes = b"") -> bytes:
    """Return a literal data packet."""
    return packet(LITERAL, kind + bytes([len(name)]) + name + bytes(4) + data)


def packets(raw: bytes) -> list[bytes]:
    """Split a message into its packets (no partial lengths)."""
    found = []
    while raw:
        first = raw[0]
        if first & 0x40:
            size, head = raw[1], 2
            if 192 <= size < 224:
                size, head = (size - 192 << 8) + raw[2] + 192, 3
            elif size == 255:
                size, head = int.from_bytes(raw[2:6], "big"), 6
        else:
            octets = 1 << (first & 3)
            size, head = int.from_bytes(raw[1 : 1 + octets], "big"), 1 + octets
        found.append(raw[: head + size])
        raw = raw[head + size :]
    return found


class Sealer:
    """Encrypts any packets to the key of a GnuPG home, as GnuPG itself would a literal."""

    def __init__(self, home: Path, fingerprint: str) -> None:
        self.home, self.fingerprint = home, fingerprint

    def seal(self, inner: bytes, *, mdc: bool = True, damage: bool = False) -> bytes:
        """Return the session key's packet and ``inner`` encrypted under that session key."""
        options = ["--trust-model", "always", "--compress-algo", "none", "--cipher-algo", "AES256"]
        sealed = gpg(self.home, *options, "-R", self.fingerprint, "--encrypt", data=b"x")
        key = session_key(self.home, sealed)
        return packets(sealed)[0] + encrypted(key, inner, mdc=mdc, damage=damage)


def session_key(home: Path, sealed: bytes, *more: str) -> bytes:
    """Return the session key of an AES-256 message that the home's keys or a passphrase open."""
    words = ["--pinentry-mode", "loopback", *more, "--show-session-key", "--decrypt"]
    told = subprocess.run(
        ["gpg", "--homedir", str(home), "--batch", "--status-fd", "2", *words],
        input=sealed,
        capture_output=True,
        check=True,
        timeout=60,
    )
    found = re.search(rb"SESSION_KEY 9:([0-9A-F]{64})", told.stderr)
    assert found, told.stderr
    return bytes.fromhex(found[1].decode())


def encrypted(key: bytes, inner: bytes, *, mdc: bool = True, damage: bool = False) -> bytes:
    """Return ``inner`` in a packet with a modification detection code, or one of old without."""
    prefix = os.urandom(16)
    prefix += prefix[-2:]
    if not mdc:
        return packet(SED, _resync_cfb(key, prefix, inner))
    whole = prefix + inner + b"\xd3\x14"
    digest = bytearray(hashlib.sha1(whole).digest())
    digest[0] ^= damage
    return packet(SEIPD, b"\1" + _cfb(key, bytes(16), whole + digest))


def _cfb(key: bytes, iv: bytes, data: bytes) -> bytes:
    block = Cipher(algorithms.AES(key), ECB()).encryptor()
    out, register = b"", iv
    for at in range(0, len(data), 16):
        stream = block.update(register)
        piece = bytes(a ^ b for a, b in zip(data[at : at + 16], stream, strict=False))
        out, register = out + piece, piece
    return out


def _resync_cfb(key: bytes, prefix: bytes, data: bytes) -> bytes:
    """OpenPGP's own CFB of old (RFC 4880, 13.9): starts again after the prefix."""
    head = _cfb(key, bytes(16), prefix)
    return head + _cfb(key, head[2:18], data)


def compressed(inner: bytes) -> bytes:
    """Return a compressed data packet (RFC 4880, 5.6): ZIP."""
    deflate = zlib.compressobj(9, wbits=-15)
    return packet(COMPRESSED, b"\1" + deflate.compress(inner) + deflate.flush())
