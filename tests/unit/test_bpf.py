"""The kernel's filter, run by an interpreter of classic BPF (networking/filter.rst)."""

import os
import random

import pytest
from bpf_machine import PORT, run, syn
from hypothesis import given
from hypothesis import strategies as st

from tariq import picture
from tariq.picture import Direction, png, proof
from tariq.transport import bpf

KEY, NOW = bytes(range(32)), 1_800_000_000.0
AF_INET, AF_INET6 = 2, 10


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


@pytest.mark.parametrize(("nonce", "mark", "passes"), [
    (bytes(range(4)), "2a6e4689", True),
    (bytes(range(4)), "2a6e4688", False),
    (bytes(range(1, 5)), "2a6e4689", False),
])  # fmt: skip
def test_the_program_computes_the_published_vector(nonce, mark, passes):
    """The one of four bytes of the reference implementation's, key 00…07."""
    blank = picture.wrap(b"words", KEY, Direction.TO_HOST, NOW)
    rules = bpf.knocks(AF_INET, PORT, [bytes(range(8))])
    made = png.with_unique_id(blank, nonce.hex() + mark + "0" * 16)
    assert bool(run(rules, syn(made))) == passes


@BOTH
def test_blocked_nonces_are_dropped_and_others_are_not(knock, version):
    family = AF_INET if version == 4 else AF_INET6
    keys = proof.mark_keys(KEY, Direction.TO_HOST, NOW)
    others = [os.urandom(4) for _ in range(bpf.MAX_BLOCKED - 1)]
    nonce = proof.nonce_of(knock)
    assert run(bpf.knocks(family, PORT, keys, others), syn(knock, version))
    assert not run(bpf.knocks(family, PORT, keys, [*others, nonce]), syn(knock, version))
    assert not run(bpf.knocks(family, PORT, keys, [nonce, *others]), syn(knock, version))
    assert run(bpf.unkeyed(family, PORT, others), syn(knock, version))
    assert not run(bpf.unkeyed(family, PORT, [*others, nonce]), syn(knock, version))


@BOTH
def test_what_is_no_knock_is_dropped(knock, version):
    rules = program(version)
    assert run(rules, syn(knock, version))
    assert run(rules, syn(knock, version, flags=2 | 0xC0)), "ECN's bits are no matter"
    assert not run(rules, syn(knock, version), packet_type=3), "for another machine"
    assert not run(rules, syn(knock, version, port=PORT + 1))
    assert not run(rules, syn(b"", version))
    assert not run(rules, syn(knock[:100], version))
    assert run(rules, syn(knock.ljust(png.MAX_SIZE, b"x"), version))
    assert not run(rules, syn(knock.ljust(png.MAX_SIZE + 1, b"x"), version)), "no packet of ours"
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
