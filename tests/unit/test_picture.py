"""Pictures: what goes in comes out, and nothing else is accepted."""

import io
import itertools
import os
import time
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tariq import picture
from tariq.errors import BudgetError, MessageError
from tariq.picture import Direction, lsb, png, proof, veil

KEY = bytes(range(32))
NOW = 1_800_000_000.0


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=1, max_size=590))
def test_bytes_come_back(message):
    payload = picture.wrap(message, KEY, Direction.TO_HOST, NOW, budget=5000)
    assert picture.unwrap(payload, KEY, Direction.TO_HOST, NOW) == message


@pytest.mark.parametrize(("size", "budget"), [(406, 1220), (440, 1220), (512, 1400), (342, 1220)])
def test_messages_of_the_usual_sizes_fit_one_packet(size, budget):
    """A one-host bundle, one with a path of six, and a receipt; twenty covers each."""
    for _ in range(20):
        assert picture.wrap(os.urandom(size), KEY, Direction.TO_HOST, NOW, budget)


@pytest.mark.parametrize("direction", Direction)
def test_all_messages_up_to_a_room_have_pictures_of_one_size(direction):
    """So that nobody reads from it what was asked, or whether it was granted."""

    def sizes(messages) -> set[bytes]:
        made = [picture.wrap(bytes(each), KEY, direction, NOW) for each in messages]
        return {each[16:24] for each in made}  # IHDR's width and height

    small, large = picture.ROOMS
    assert len(sizes(range(1, small + 1, 7))) == 1
    assert len(sizes(range(small + 1, large + 1, 7))) == 1


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("room", picture.ROOMS)
def test_what_repeats_from_picture_to_picture_is_what_the_threat_model_admits(room, direction):
    made = [picture.wrap(os.urandom(room - n % 60), KEY, direction, NOW) for n in range(200)]
    assert len({len(each) for each in made}) > 6, "sizes vary with the pictures"
    alike = {at for at in range(1000) if len({each[at] for each in made}) == 1}
    crc = set(range(png.EXIF_CRC_AT, png.EXIF_CRC_AT + 4))
    digits = set(range(png.UNIQUE_ID_AT, png.UNIQUE_ID_AT + png.UNIQUE_ID_DIGITS))
    before_the_data = set(range(png.EXIF_CRC_AT + 12)) - digits - crc
    assert alike - before_the_data <= {png.EXIF_CRC_AT + 12 + n for n in range(4)}, "zlib's head"
    at_the_end = {at for at in range(1, 1000) if len({each[-at] for each in made}) == 1}
    assert {at for at in at_the_end if at < 900} == set(range(1, 13)), "IEND"


def test_a_message_over_the_budget_is_an_error_that_names_the_sizes():
    with pytest.raises(BudgetError, match=r"900 bytes of OpenPGP .* over the 1400"):
        picture.wrap(bytes(900), KEY, Direction.TO_HOST, NOW)


@pytest.mark.parametrize(
    ("key", "direction", "later"),
    [
        (bytes(32), Direction.TO_HOST, 0),
        (KEY, Direction.TO_CLIENT, 0),
        (KEY, Direction.TO_HOST, 2 * proof.WINDOW),
        (KEY, Direction.TO_HOST, -2 * proof.WINDOW),
    ],
    ids=["another key", "another direction", "two windows late", "two windows early"],
)
def test_a_proof_holds_for_its_key_direction_and_time_only(key, direction, later):
    payload = picture.wrap(b"words", KEY, Direction.TO_HOST, NOW)
    assert picture.unwrap(payload, KEY, Direction.TO_HOST, NOW + proof.WINDOW) == b"words"
    assert picture.unwrap(payload, KEY, Direction.TO_HOST, NOW - proof.WINDOW) == b"words"
    with pytest.raises(MessageError):
        picture.unwrap(payload, key, direction, NOW + later)


def test_every_flipped_bit_and_every_cut_is_refused():
    payload = picture.wrap(b"words" * 10, KEY, Direction.TO_HOST, NOW)
    for bit in range(len(payload) * 8):
        broken = bytearray(payload)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(MessageError):
            proof.check(bytes(broken), KEY, Direction.TO_HOST, NOW)
    for length in range(len(payload)):
        with pytest.raises(MessageError):
            proof.check(payload[:length], KEY, Direction.TO_HOST, NOW)
    with pytest.raises(MessageError):
        proof.check(payload + b"\0", KEY, Direction.TO_HOST, NOW)


@given(st.binary(max_size=400))
def test_noise_has_no_proof(noise):
    for payload in (noise, png.SIGNATURE + noise):
        with pytest.raises(MessageError):
            proof.check(payload, KEY, Direction.TO_HOST, NOW)


@pytest.mark.parametrize(
    ("message", "digest"),
    [(b"", "a9359f5b"), (bytes(range(4)), "2a6e4689"), (bytes(range(8)), "d0b8848f")],
)
def test_the_mark_is_half_sip_hash(message, digest):
    """The reference implementation's vectors, key 00…07, 32 bits of output."""
    assert proof.half_sip_hash(bytes(range(8)), message).hex() == digest


def test_the_picture_is_an_ordinary_png_with_an_ordinary_unique_id():
    payload = picture.wrap(b"words", KEY, Direction.TO_HOST, NOW)
    with Image.open(io.BytesIO(payload)) as image:
        image.load()
        assert image.mode == "RGB"
        unique_id = image.getexif().get_ifd(0x8769)[0xA420]
    assert len(unique_id) == 32
    assert unique_id == png.unique_id(payload)


def test_no_two_pictures_are_alike():
    made = {picture.wrap(b"words", KEY, Direction.TO_HOST, NOW) for _ in range(50)}
    assert len(made) == 50


def _proven(image: Image.Image) -> bytes:
    return proof.stamp(png.write(image), KEY, Direction.TO_HOST, b"nonc", NOW)


def test_a_black_picture_is_refused_before_stegano_walks_off_it():
    """640 by 640 costs stegano 1.7 s; it is refused by its size, the small one by its length."""
    for side in (640, 40):
        payload = _proven(Image.new("RGB", (side, side)))
        started = time.process_time()
        with pytest.raises(MessageError):
            picture.unwrap(payload, KEY, Direction.TO_HOST, NOW)
        assert time.process_time() - started < 0.5


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "I;16", "LA"])
def test_other_modes_are_refused(mode):
    with pytest.raises(MessageError, match=r"rgb|checksum"):
        png.read(_proven(Image.new(mode, (20, 20))))


def _hidden(text: str) -> Image.Image:
    """Put ``text`` into low bits as stegano would, but without its length."""
    bits = "".join(f"{byte:08b}" for byte in text.encode())
    raw = bytearray(30 * 30 * 3)
    raw[: len(bits)] = bytes(int(bit) for bit in bits)
    return Image.frombytes("RGB", (30, 30), bytes(raw))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "abc",
        ":",
        "5",
        "999:abc",
        "٣:abc",
        "-1:a",
        "+3:abc",
        " 3:abc",
        "03:abc",
        "99999:a",
        "3;abc",
    ],
)
def test_text_without_an_honest_length_is_refused(text):
    assert lsb.reveal(_hidden("3:abc")) == "abc"
    with pytest.raises(MessageError):
        lsb.reveal(_hidden(text))


def test_text_that_is_not_base85_is_refused():
    image = veil.apply(
        lsb.hide(Image.new("RGB", (30, 30)), "~ ~ ~"), veil.key(KEY, Direction.TO_HOST, b"nonc")
    )
    with pytest.raises(MessageError, match="base85"):
        picture.unwrap(_proven(image), KEY, Direction.TO_HOST, NOW)


def _low_bits(payload: bytes) -> list[int]:
    with Image.open(io.BytesIO(payload)) as image:
        return [byte & 1 for byte in image.tobytes()]


@pytest.mark.parametrize("message", [bytes(300), b"\xff" * 300, b"words" * 60])
def test_the_low_bits_look_like_noise_whatever_is_hidden(message):
    """Chi-square of pairs of bits, and the number of runs, over whole planes.

    The bounds are those of one false alarm in a million; a plane with stegano's text
    in the clear, whose every eighth bit is zero, is far outside of both.
    """
    bits = []
    for _ in range(20):
        payload = picture.wrap(message, KEY, Direction.TO_HOST, NOW)
        bits += _low_bits(payload)
    assert _chi_square(bits) < 30.7  # three degrees of freedom
    assert abs(_runs(bits)) < 4.9  # standard deviations
    image = lsb.hide(Image.new("RGB", (60, 60)), "a" * 1300)
    naked = [byte & 1 for byte in image.tobytes()]
    assert _chi_square(naked) > 30.7, "the control"


def _chi_square(bits: list[int]) -> float:
    """Pairs of neighbouring bits against four equally likely ones."""
    counts = [0] * 4
    for first, second in zip(bits[::2], bits[1::2], strict=False):
        counts[first * 2 + second] += 1
    expected = sum(counts) / 4
    return sum((count - expected) ** 2 / expected for count in counts)


def _runs(bits: list[int]) -> float:
    """Wald and Wolfowitz: how far the number of runs is from that of noise, in deviations."""
    ones, total = sum(bits), len(bits)
    product = 2 * ones * (total - ones)
    mean = product / total + 1
    variance = (mean - 1) * (mean - 2) / (total - 1)
    runs = 1 + sum(first != second for first, second in itertools.pairwise(bits))
    return (runs - mean) / variance**0.5


def test_pixels_carry_only_what_stegano_needs():
    """A picture that is one pixel too small is refused by stegano itself."""
    text = "x" * 100
    pixels = lsb.pixels_for(text)
    assert lsb.hide(Image.new("RGB", (pixels, 1)), text)
    with pytest.raises(Exception, match="too long"):
        lsb.hide(Image.new("RGB", (pixels - 1, 1)), text)


def chunk(kind: bytes, body: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(kind + body) if crc is None else crc
    return len(body).to_bytes(4, "big") + kind + body + crc.to_bytes(4, "big")


def parts(payload: bytes) -> tuple[bytes, bytes, bytes]:
    """Return all before IDAT, IDAT's data, and IEND."""
    at = png.EXIF_CRC_AT + 4
    return payload[:at], payload[at + 8 : -16], payload[-12:]


PLAIN = _proven(Image.new("RGB", (20, 20)))
HEAD, DATA, END = parts(PLAIN)
ROWS = zlib.decompress(DATA)


def test_the_pieces_make_the_picture():
    assert HEAD + chunk(b"IDAT", DATA) + END == PLAIN
    assert png.read(HEAD + chunk(b"IDAT", zlib.compress(ROWS)) + END).size == (20, 20)


@pytest.mark.parametrize(
    "broken",
    [
        HEAD + chunk(b"IDAT", DATA) + chunk(b"tEXt", b"Comment\0hello") + END,
        HEAD + chunk(b"IDAT", DATA, crc=0) + END,
        HEAD + chunk(b"IDAT", DATA) + chunk(b"IEND", b"", crc=0),
        HEAD[:29] + bytes(4) + HEAD[33:] + chunk(b"IDAT", DATA) + END,
        HEAD + chunk(b"IDAT", DATA) + chunk(b"IEND", b"more"),
        HEAD + chunk(b"IDAT", DATA[:30]) + chunk(b"IDAT", DATA[30:]) + END,
        HEAD + chunk(b"IDAT", DATA) + chunk(b"IDAT", b"") + END,
        HEAD + chunk(b"IDAT", DATA + b"more") + END,
        HEAD + chunk(b"IDAT", zlib.compress(ROWS + b"more")) + END,
        HEAD + chunk(b"IDAT", zlib.compress(ROWS[:-1])) + END,
        HEAD + chunk(b"IDAT", DATA[:-4]) + END,
        HEAD + chunk(b"IDAT", zlib.compress(bytes(1_000_000))) + END,
        HEAD + chunk(b"IDAT", zlib.compress(b"\7" + ROWS[1:])) + END,
        HEAD + END,
        HEAD + chunk(b"IDAT", DATA),
        PLAIN + b"trailing data",
        PLAIN + END,
        png.SIGNATURE,
        b"",
    ],
    ids=[
        "another chunk",
        "checksum of IDAT",
        "checksum of IEND",
        "checksum of IHDR",
        "a full IEND",
        "IDAT in two",
        "an empty IDAT",
        "data after the stream",
        "data after the pixels",
        "a pixel short",
        "no checksum of the stream",
        "a bomb",
        "no such filter",
        "no IDAT",
        "no IEND",
        "trailing data",
        "two IEND",
        "a signature",
        "nothing",
    ],
)
def test_a_picture_of_any_other_layout_is_refused(broken):
    with pytest.raises(MessageError, match="picture"):
        png.read(broken)


def test_the_unique_id_has_no_company():
    """A proof covers the rest of eXIf; a holder of the card could still put anything there."""
    with pytest.raises(MessageError, match="content"):
        exif = PLAIN[png.EXIF_CHUNK_AT + 8 : png.EXIF_CRC_AT].replace(b"\xa4\x20", b"\xa4\x21")
        exif = exif.replace(b"\x20\xa4", b"\x21\xa4")
        png.read(PLAIN[: png.EXIF_CHUNK_AT] + chunk(b"eXIf", exif) + chunk(b"IDAT", DATA) + END)
