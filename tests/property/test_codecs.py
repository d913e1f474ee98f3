"""Whatever goes through a codec comes back as it was; whatever else comes in is refused."""

import contextlib
import ipaddress
import zlib

import pytest
import yaml
from hypothesis import assume, example, given
from hypothesis import strategies as st
from PIL import Image
from scapy.layers.inet import IP, TCP, IPOption
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop
from scapy.packet import Raw

from tariq import picture
from tariq.agent import link, policy_file
from tariq.client import card
from tariq.errors import CardError, MessageError, PolicyError
from tariq.message import Bundle, Receipt, Request
from tariq.picture import Direction, lsb, png, proof, veil
from tariq.transport import wire

KEY, NOW = bytes(range(32)), 1_800_000_000.0
WAYS = st.sampled_from(Direction)
SIDES = st.integers(1, 40)
ADDRESSES = st.ip_addresses().map(str)
PORTS = st.integers(0, 65_535)
WORDS = st.integers(0, 0xFFFFFFFF)


@st.composite
def images(draw):
    width, height = draw(SIDES), draw(SIDES)
    seed = draw(st.binary(min_size=1, max_size=64))
    raw = (seed * (width * height * 3 // len(seed) + 1))[: width * height * 3]
    return Image.frombytes("RGB", (width, height), raw)


# --- pictures --------------------------------------------------------------------------------


@given(images(), WAYS, st.binary(min_size=4, max_size=4))
def test_a_veil_lifts_and_touches_low_bits_only(image, way, nonce):
    seed = veil.key(KEY, way, nonce)
    veiled = veil.apply(image, seed)
    assert veil.apply(veiled, seed).tobytes() == image.tobytes()
    pairs = zip(image.tobytes(), veiled.tobytes(), strict=True)
    assert all(before >> 1 == after >> 1 for before, after in pairs)


@given(st.text(st.characters(codec="ascii", min_codepoint=1), max_size=200))
def test_text_comes_out_as_it_was_hidden(text):
    pixels = lsb.pixels_for(text)
    assume(text)
    assert lsb.reveal(lsb.hide(Image.new("RGB", (pixels, 1)), text)) == text


@given(images())
def test_any_picture_gives_a_text_no_longer_than_itself_or_is_refused(image):
    with contextlib.suppress(MessageError):
        assert len(lsb.reveal(image)) * 8 < image.width * image.height * 3


@given(images())
def test_pixels_come_back(image):
    assume(image.width * image.height <= png.MAX_PIXELS)
    assert png.read(png.write(image)).tobytes() == image.tobytes()


@given(images(), st.data())
def test_a_picture_with_one_other_byte_is_refused(image, data):
    payload = png.write(image)
    at = data.draw(st.integers(0, len(payload) - 1))
    other = data.draw(st.integers(1, 255))
    broken = payload[:at] + bytes([payload[at] ^ other]) + payload[at + 1 :]
    with pytest.raises(MessageError):
        png.read(broken)


@given(st.binary(max_size=1500))
def test_a_stream_of_anything_is_pixels_or_refused(rows):
    """The chunks are good and what they hold is not."""
    plain = png.write(Image.new("RGB", (20, 20)))
    head = plain[: png.EXIF_CRC_AT + 4]
    for stream in (rows, zlib.compress(rows)):
        body = b"IDAT" + stream
        crc = zlib.crc32(body).to_bytes(4, "big")
        made = head + len(stream).to_bytes(4, "big") + body + crc + plain[-12:]
        with contextlib.suppress(MessageError):
            assert png.read(made).size == (20, 20)
            assert len(rows) == 20 * 61


@given(images(), WAYS, st.binary(min_size=4, max_size=4), st.floats(0, 4e9), st.data())
def test_a_proof_holds_until_a_byte_changes(image, way, nonce, now, data):
    payload = proof.stamp(png.write(image), KEY, way, nonce, now)
    assert proof.check(payload, KEY, way, now) == nonce
    assert proof.nonce_of(payload) == nonce
    at = data.draw(st.integers(0, len(payload) - 1))
    broken = (
        payload[:at] + bytes([payload[at] ^ data.draw(st.integers(1, 255))]) + payload[at + 1 :]
    )
    with pytest.raises(MessageError):
        proof.check(broken, KEY, way, now)


@given(st.binary(max_size=500), WAYS)
def test_a_message_comes_back_in_its_own_direction_only(message, way):
    assume(message)
    payload = picture.wrap(message, KEY, way, NOW, budget=5000)
    assert picture.unwrap(payload, KEY, way, NOW) == message
    with pytest.raises(MessageError):
        picture.unwrap(payload, KEY, Direction(3 - way), NOW)


# --- packets and frames -----------------------------------------------------------------------


def _a_host_s(address) -> bool:
    if address.version == 6:
        return not (address.is_multicast or address.is_unspecified)
    return 0 < address.packed[0] < 224


@st.composite
def segments(draw):
    """Return a packet that scapy made, and what must be read from it."""
    four = draw(st.booleans())
    addresses = st.ip_addresses(v=4 if four else 6)
    src, dst = str(draw(addresses.filter(_a_host_s))), str(draw(addresses))
    tcp = TCP(
        sport=draw(PORTS),
        dport=draw(PORTS),
        seq=draw(WORDS),
        ack=draw(WORDS),
        flags=draw(st.integers(0, 255)),
        options=draw(st.sampled_from([[], [("MSS", 1460)], [("SAckOK", b""), ("WScale", 7)]])),
    )
    payload = draw(st.binary(max_size=60))
    if four:
        options = [IPOption(b"\x94\x04\0\0")] * draw(st.integers(0, 5))  # router alert, RFC 2113
        packet = IP(src=src, dst=dst, options=options) / tcp
    else:
        packet = IPv6(src=src, dst=dst)
        for extension in draw(st.lists(st.sampled_from([0, 1]), max_size=3)):
            packet /= (IPv6ExtHdrHopByHop, IPv6ExtHdrDestOpt)[extension]()
        packet /= tcp
    expected = (src, dst, tcp.sport, tcp.dport, tcp.seq, tcp.ack, int(tcp.flags) & 0x3F, payload)
    return bytes(packet / Raw(payload)), expected


@given(segments(), st.binary(max_size=8))
def test_a_segment_is_read_as_scapy_wrote_it(made, padding):
    """Ethernet pads short frames: what is behind the packet's end is none of it."""
    packet, expected = made
    read = wire.parse(packet + padding)
    src, dst = (str(ipaddress.ip_address(each)) for each in (read.src, read.dst))
    assert (src, dst, *expected[2:]) == expected
    assert (read.sport, read.dport, read.seq, read.ack, read.flags, read.payload) == expected[2:]


@given(st.integers(0, 0xFFFFFFFF), ADDRESSES, st.binary(min_size=1, max_size=100))
def test_a_knock_passes_between_the_processes_as_it_was(number, source, message):
    knock = link.Knock(number, source, message)
    read = link.Knock.decode(knock.encode())
    assert (read.number, read.message) == (number, message)
    mapped = getattr(ipaddress.ip_address(source), "ipv4_mapped", None)
    assert read.source == str(mapped or source)


@given(st.integers(0, 0xFFFFFFFF), st.binary(max_size=100))
def test_a_reply_passes_between_the_processes_as_it_was(number, message):
    reply = link.Reply(number, message)
    assert link.Reply.decode(reply.encode()) == reply


@given(st.binary(max_size=60))
def test_any_frame_is_a_knock_or_refused(raw):
    with contextlib.suppress(MessageError):
        assert link.Knock.decode(raw).encode()[20:] == raw[20:]


# --- messages ---------------------------------------------------------------------------------


@given(st.binary(max_size=400))
@example(b"\1\0\0\0\0\1{s")
def test_a_bundle_has_one_spelling(raw):
    for start in (b"", b"\1\0\0\0\0\7", b"\1\2\0\1\0\7"):
        with contextlib.suppress(MessageError):
            assert Bundle.decode(start + raw).encode() == start + raw


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = ("v", "id", "t", "to", "do", "what", "args", "for", "src")
NAMES += ("re", "ok", "code", "seen", "policy", "leases", "out")
FIELDS = st.dictionaries(
    st.sampled_from(NAMES),
    JSON
    | st.just("AAECAwQFBgcICQoLDA0ODw")
    | st.just(1)
    | st.sampled_from(["open", "opened", "::1"]),
    max_size=12,
)


@given(FIELDS)
def test_json_of_any_shape_is_refused_or_written_again_as_it_was_meant(fields):
    import json

    raw = json.dumps(fields).encode()
    for kind in (Request, Receipt):
        with contextlib.suppress(MessageError):
            read = kind.decode(raw)
            assert kind.decode(read.encode()) == read


# --- YAML that people write ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("yaml")


YAML = st.text(max_size=80) | JSON.map(lambda value: yaml.safe_dump(value, allow_unicode=True))


@given(YAML)
@example("a: &a [*a]")
@example("? {}\n: 1")
@example("!!python/object/apply:os.system [true]")
def test_any_text_is_a_card_or_a_clear_error(directory, text):
    (directory / "web1.yml").write_text(text, "utf-8", errors="replace")
    with contextlib.suppress(CardError):
        card.load([(directory, "web1")])


@given(YAML)
@example("services: {ssh: {protocol: tcp, port: 22}}\nservices: {}")
def test_any_text_is_a_policy_or_a_clear_error(directory, text):
    path = directory / "agent.yml"
    path.write_text(text, "utf-8", errors="replace")
    with contextlib.suppress(PolicyError):
        policy_file.check(path)
