"""Requests, receipts and batches: what is read is exactly what may be written."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tariq.errors import MessageError
from tariq.message import (
    MAX_BATCH,
    Action,
    Batch,
    Bundle,
    Code,
    Receipt,
    Request,
    State,
    TaskRun,
)

NAMES = st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,31}", fullmatch=True)
REQUESTS = st.builds(
    Request,
    to=st.binary(min_size=16, max_size=16),
    do=st.sampled_from(Action),
    t=st.integers(0, 1 << 40),
    what=st.lists(NAMES, max_size=4).map(tuple),
    args=st.dictionaries(NAMES, st.text(max_size=20), max_size=3),
    seconds=st.none() | st.integers(1, 86_400),
    src=st.none() | st.ip_addresses().map(str),
    id=st.binary(min_size=16, max_size=16),
)
RECEIPTS = st.builds(
    Receipt,
    re=st.binary(min_size=16, max_size=16),
    t=st.integers(0, 1 << 40),
    ok=st.booleans(),
    code=st.sampled_from(Code),
    seen=st.ip_addresses().map(str),
    policy=st.integers(1, 1 << 31),
    leases=st.dictionaries(NAMES, st.integers(0, 1 << 40), max_size=4),
    exit=st.none() | st.integers(-255, 255),
    out=st.none() | st.text(max_size=50),
    task=st.none() | st.from_regex(r"[0-9a-f]{8}", fullmatch=True),
    state=st.none() | st.sampled_from(State),
    size=st.none() | st.integers(0, 1 << 40),
    sum=st.none() | st.binary(min_size=16, max_size=16),
    tasks=st.lists(
        st.builds(
            TaskRun,
            st.from_regex(r"[0-9a-f]{8}", fullmatch=True),
            NAMES,
            st.sampled_from(State),
            st.none() | st.integers(-255, 255),
        ),
        max_size=3,
    ).map(tuple),
    detail=st.text(max_size=50).map(lambda text: "".join(filter(str.isprintable, text))),
)


@given(REQUESTS)
def test_a_request_comes_back_as_it_was(request_):
    assert Request.decode(request_.encode()) == request_


@given(RECEIPTS)
def test_a_receipt_comes_back_as_it_was(receipt):
    assert Receipt.decode(receipt.encode()) == receipt


def test_a_request_is_about_as_small_as_the_design_says():
    size = len(
        Request(to=bytes(16), do=Action.OPEN, t=1_800_000_000, what=("ssh",), seconds=30).encode()
    )
    assert size < 130


GOOD = {
    "v": 1,
    "id": "AAECAwQFBgcICQoLDA0ODw",
    "t": 1_800_000_000,
    "to": "AAECAwQFBgcICQoLDA0ODw",
    "do": "open",
}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xff\xfe",
        json.dumps(GOOD | {"extra": 1}).encode(),
        json.dumps({k: v for k, v in GOOD.items() if k != "to"}).encode(),
        json.dumps(GOOD | {"v": 2}).encode(),
        json.dumps(GOOD | {"v": True}).encode(),
        json.dumps(GOOD | {"t": 1.5}).encode(),
        json.dumps(GOOD | {"t": -1}).encode(),
        json.dumps(GOOD | {"t": "1"}).encode(),
        json.dumps(GOOD | {"t": float("nan")}).encode(),
        json.dumps(GOOD | {"t": 10**30}).encode(),
        json.dumps(GOOD | {"id": "short"}).encode(),
        json.dumps(GOOD | {"id": "AAECAwQFBgcICQoLDA0OD+"}).encode(),
        json.dumps(GOOD | {"id": "AAECAwQFBgcICQoLDA0ODx"}).encode(),  # spare bits set
        json.dumps(GOOD | {"do": "reboot"}).encode(),
        json.dumps(GOOD | {"do": ["open"]}).encode(),
        json.dumps(GOOD | {"what": "ssh"}).encode(),
        json.dumps(GOOD | {"what": ["SSH"]}).encode(),
        json.dumps(GOOD | {"what": ["a b"]}).encode(),
        json.dumps(GOOD | {"what": ["ssh\n"]}).encode(),
        json.dumps(GOOD | {"for": 0}).encode(),
        json.dumps(GOOD | {"for": True}).encode(),
        json.dumps(GOOD | {"src": "localhost"}).encode(),
        json.dumps(GOOD | {"args": {"a": 1}}).encode(),
        json.dumps(GOOD)[:-1].encode() + b',"t":1}',
        b"[" * 1000,
        json.dumps(GOOD | {"args": {"a": "x" * 2000}}).encode(),
    ],
)
def test_anything_else_is_refused(raw):
    assert Request.decode(json.dumps(GOOD).encode())
    with pytest.raises(MessageError):
        Request.decode(raw)


@given(st.binary(max_size=300))
def test_noise_is_refused_and_never_breaks_the_reader(raw):
    for reader in (Request.decode, Receipt.decode, Bundle.decode):
        try:
            reader(raw)
        except MessageError:
            continue


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=MAX_BATCH))
def test_every_bundle_of_a_batch_leads_to_the_signed_root(requests):
    batch = Batch.of(requests)
    for index, request in enumerate(requests):
        bundle = Bundle.decode(batch.bundle(index, b"signature").encode())
        assert bundle.request == request
        assert bundle.signature == b"signature"
        assert bundle.signed == batch.to_sign


def test_one_host_has_no_path_and_sixty_four_have_six_steps():
    assert Batch.of([b"r"]).bundle(0, b"s").path == ()
    assert len(Batch.of([b"r%d" % i for i in range(64)]).bundle(63, b"s").path) == 6
    with pytest.raises(ValueError, match="64"):
        Batch.of([b"r"] * 65)


def test_a_bundle_of_another_request_or_place_leads_elsewhere():
    batch = Batch.of([b"one", b"two", b"three"])
    good = batch.bundle(1, b"s")
    for swapped in (
        Bundle(b"four", good.index, good.path, b"s"),
        Bundle(good.request, 0, good.path, b"s"),
        Bundle(good.request, good.index, good.path[::-1], b"s"),
        Bundle(good.request, 0, (), b"s"),
    ):
        assert swapped.signed != batch.to_sign


def test_a_node_can_not_pass_as_a_request():
    """The inner node's preimage, presented as a leaf, hashes to something else."""
    batch = Batch.of([b"one", b"two"])
    left, right = batch.levels[0]
    assert Bundle(left + right, 0, (), b"s").signed != batch.to_sign


def test_a_cut_bundle_is_refused_at_every_length():
    whole = Batch.of([b"one", b"two", b"three"]).bundle(2, b"s").encode()
    for length in range(len(whole)):
        with pytest.raises(MessageError):
            Bundle.decode(whole[:length])


RECEIPT = {
    "v": 1,
    "re": "AAECAwQFBgcICQoLDA0ODw",
    "t": 1_800_000_000,
    "ok": False,
    "code": "failed",
    "seen": "192.0.2.1",
    "policy": 1,
}


@pytest.mark.parametrize(
    "change",
    [
        {"detail": "\x1b[31mall is well"},
        {"detail": "two\nlines"},
        {"detail": "half \ud83d"},
        {"out": "half \ud83d"},
        {"seen": "fe80::1%\x1b[31m"},
    ],
    ids=["terminal code", "two lines", "half a character", "half of output", "zone"],
)
def test_a_host_that_lies_can_not_write_to_the_terminal(change):
    """What a table shows is one printable line, whatever a host signs."""
    assert Receipt.decode(json.dumps(RECEIPT).encode())
    with pytest.raises(MessageError):
        Receipt.decode(json.dumps(RECEIPT | change).encode())


def test_what_a_host_says_by_mistake_is_made_printable():
    receipt = Receipt(b"r" * 16, 1, False, Code.FAILED, "192.0.2.1", 1, detail="a\nb\tc")
    assert Receipt.decode(receipt.encode()).detail == "a b c"
