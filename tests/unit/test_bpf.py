"""The kernel's filter, run by an interpreter of classic BPF (networking/filter.rst)."""
# ruff: noqa: B023 - the interpreter's lambdas run at once

import os
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tariq import picture
from tariq.picture import Direction, png, proof
from tariq.transport import bpf

PORT, KEY, NOW = 62201, bytes(range(32)), 1_800_000_000.0
AF_INET, AF_INET6 = 2, 10
WORD = 0xFFFFFFFF


def run(program: bytes, packet: bytes, packet_type: int = 0) -> int:
    """Interpret classic BPF as the kernel does; a load past the end drops."""
    ops = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    a = x = pc = 0
    memory = [0] * 16

    def load(at, size):
        if at == 0xFFFFF004:
            return packet_type
        if at + size > len(packet):
            raise IndexError
        return int.from_bytes(packet[at : at + size], "big")

    try:
        while True:
            code, jt, jf, k = ops[pc]
            pc += 1
            kind, mode, size = code & 7, code & 0xE0, {0: 4, 8: 2, 16: 1}.get(code & 0x18)
            if kind == 0:
                a = {
                    0x00: lambda: k,
                    0x80: lambda: len(packet),
                    0x60: lambda: memory[k],
                    0x20: lambda: load(k, size),
                    0x40: lambda: load(x + k, size),
                }[mode]()
            elif kind == 1:
                x = {
                    0x00: lambda: k,
                    0x60: lambda: memory[k],
                    0xA0: lambda: (load(k, 1) & 0xF) * 4,
                }[mode]()
            elif kind == 2:
                memory[k] = a
            elif kind == 4:
                other = x if code & 8 else k
                a = {
                    0x00: lambda: a + other,
                    0x10: lambda: a - other,
                    0x20: lambda: a * other,
                    0x40: lambda: a | other,
                    0x50: lambda: a & other,
                    0xA0: lambda: a ^ other,
                    0x60: lambda: a << other,
                    0x70: lambda: a >> other,
                }[code & 0xF0]() & WORD
            elif kind == 5:
                other = x if code & 8 else k
                test = {0x00: None, 0x10: a == other, 0x30: a >= other, 0x40: bool(a & other)}
                found = test[code & 0xF0]
                pc += k if found is None else (jt if found else jf)
            elif kind == 6:
                return k
            else:
                x = a
    except IndexError:
        return 0


def syn(
    payload: bytes,
    version: int = 4,
    flags: int = 2,
    port: int = PORT,
    options: bytes = b"",
    extensions: bytes = b"",
    first: int = 6,
    fragment: int = 0,
) -> bytes:
    tcp = struct.pack("!HHIIBBHHH", 40_000, port, 1, 0, 0xA0, flags, 64_240, 0, 0) + bytes(20)
    body = tcp + payload
    if version == 4:
        head = 20 + len(options)
        ip = struct.pack("!BBHHHBBH", 0x40 | head // 4, 0, head + len(body), 0, fragment, 64, 6, 0)
        return ip + bytes(8) + options + body
    return (
        struct.pack("!IHBB", 6 << 28, len(extensions + body), first, 64)
        + bytes(32)
        + extensions
        + body
    )


def program(version: int, now: float = NOW) -> bytes:
    keys = proof.mark_keys(KEY, Direction.TO_HOST, now)
    return bpf.knocks(AF_INET if version == 4 else AF_INET6, PORT, keys)


@pytest.fixture(scope="module")
def knock():
    return picture.wrap(os.urandom(399), KEY, Direction.TO_HOST, NOW)


BOTH = pytest.mark.parametrize("version", [4, 6])


@BOTH
def test_a_knock_passes_in_its_windows_and_not_beyond(knock, version):
    for windows, passes in ((-2, 0), (-1, 1), (0, 1), (1, 1), (2, 0)):
        rules = program(version, NOW + windows * proof.WINDOW)
        assert bool(run(rules, syn(knock, version))) == bool(passes), windows


@BOTH
def test_it_fits_the_kernel(version):
    assert len(program(version)) // 8 <= bpf.MAX_INSTRUCTIONS


@BOTH
def test_every_flipped_bit_of_nonce_or_mark_is_dropped(knock, version):
    rules = program(version)
    for bit in range(16 * 8):
        broken = bytearray(knock)
        broken[png.UNIQUE_ID_AT + bit // 8] ^= 1 << bit % 8
        if bit % 8 in (4, 5, 7):  # the same value from what is no hex digit: the sentry refuses it
            continue
        assert not run(rules, syn(bytes(broken), version)), bit


def test_a_thousand_nonces_are_all_recognized():
    """The control against ``proof.half_sip_hash``, for letters and digits everywhere."""
    rules = program(4)
    blank = picture.wrap(b"words", KEY, Direction.TO_HOST, NOW)
    key = proof.mark_keys(KEY, Direction.TO_HOST, NOW)[0]
    rng = random.Random(1)
    for _ in range(60):
        nonce = rng.randbytes(4)
        digits = nonce.hex() + proof.half_sip_hash(key, nonce).hex() + "0" * 16
        assert run(rules, syn(png.with_unique_id(blank, digits)))
        wrong = nonce.hex() + rng.randbytes(4).hex() + "0" * 16
        assert not run(rules, syn(png.with_unique_id(blank, wrong)))


@BOTH
def test_blocked_nonces_are_dropped_and_others_are_not(knock, version):
    family = AF_INET if version == 4 else AF_INET6
    keys = proof.mark_keys(KEY, Direction.TO_HOST, NOW)
    others = [os.urandom(4) for _ in range(bpf.MAX_BLOCKED - 1)]
    nonce = proof.nonce_of(knock)
    assert run(bpf.knocks(family, PORT, keys, others), syn(knock, version))
    assert not run(bpf.knocks(family, PORT, keys, [*others, nonce]), syn(knock, version))
    assert not run(bpf.knocks(family, PORT, keys, [nonce, *others]), syn(knock, version))


@BOTH
def test_what_is_no_knock_is_dropped(knock, version):
    rules = program(version)
    assert run(rules, syn(knock, version))
    assert run(rules, syn(knock, version, flags=2 | 0xC0)), "ECN's bits are no matter"
    assert not run(rules, syn(knock, version), packet_type=3), "for another machine"
    assert not run(rules, syn(knock, version, port=PORT + 1))
    assert not run(rules, syn(b"", version))
    assert not run(rules, syn(knock[:100], version))
    for flags in (0, 1, 4, 0x10, 0x12, 0x18, 3, 6):
        assert not run(rules, syn(knock, version, flags=flags))


def test_options_and_extension_headers_are_stepped_over_and_fragments_dropped(knock):
    assert run(program(4), syn(knock, 4, options=bytes([1] * 8)))
    assert not run(program(4), syn(knock, 4, fragment=0x2000))
    assert not run(program(4), syn(knock, 4, fragment=5))
    assert run(program(4), syn(knock, 4, fragment=0x4000)), "don't-fragment is no fragment"

    def header(following, units=0):
        return bytes([following, units]) + bytes(6 + 8 * units)

    rules = program(6)
    assert run(rules, syn(knock, 6, first=0, extensions=header(6)))
    assert run(rules, syn(knock, 6, first=0, extensions=header(43) + header(60, 2) + header(6)))
    assert not run(rules, syn(knock, 6, first=44, extensions=header(6))), "a fragment"
    assert not run(rules, syn(knock, 6, first=0, extensions=header(0) * 4 + header(6)))


@given(st.binary(max_size=120))
def test_noise_is_dropped(noise):
    for version in (4, 6):
        assert run(program(version), noise) == 0
        assert run(program(version), syn(noise, version)) == 0
