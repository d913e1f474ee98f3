"""A receipt is as full as one packet takes, and never fuller."""

import os
import time
from dataclasses import replace

import pytest

from tariq import picture
from tariq.message import Code, Receipt, State, TaskRun
from tariq.picture import Direction

BARE = Receipt(
    re=bytes(16),
    t=1_800_000_000,
    ok=True,
    code=Code.RAN,
    seen="192.0.2.1",
    policy=7,
    exit=0,
    task="0123abcd",
    state=State.ENDED,
    size=5000,
    sum=bytes(16),
)


@pytest.mark.parametrize("text", ["a", "\n", "\0", '"', "ä", "€", "😀", "a\n€\0"])
def test_output_fills_the_room_and_no_more(text):
    room = 320
    made = replace(BARE, out=text * 500).fitted(room)
    assert room - 8 < len(made.encode()) <= room
    assert (text * 500).startswith(made.out)
    assert Receipt.decode(made.encode()) == made


def test_runs_go_first_then_output_then_the_detail():
    runs = tuple(TaskRun(f"{n:08x}", "deploy", State.ENDED, 0) for n in range(8))
    full = replace(BARE, tasks=runs, out="x" * 100, detail="why")
    made = full.fitted(len(full.encode()) - 1)
    assert (len(made.tasks), made.out, made.detail) == (7, full.out, "why")
    made = full.fitted(len(BARE.encode()) + 30)
    assert not made.tasks
    assert made.detail == "why"
    assert made.out.startswith("x")


def test_whatever_has_the_capacity_s_size_fits_one_packet():
    """As many pictures as make the largest of them: they vary by some 50 bytes."""
    key = os.urandom(32)
    for _ in range(300):
        message = os.urandom(picture.CAPACITY)
        picture.wrap(message, key, Direction.TO_CLIENT, time.time())
