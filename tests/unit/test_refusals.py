"""Refused knocks in the audit trail: each of a few, and the number of the rest."""

from tariq.agent.refusals import SINGLE, Refusals


def test_the_first_of_a_minute_have_rows_and_the_others_are_counted_in_one():
    assert SINGLE == 6, "as docs/audit.md says"
    rows, now = [], [0.0]
    refusals = Refusals(lambda event, **content: rows.append((event, content)), lambda: now[0])
    for _ in range(SINGLE + 3):
        refusals.add("192.0.2.1", "signature", "none")
    refusals.add("192.0.2.2", "json", "malformed")
    assert len(rows) == SINGLE
    assert rows[0] == (
        "refused",
        {"source": "192.0.2.1", "layer": "signature", "detail": "none"},
    )
    now[0] = 59.0
    refusals.step()
    assert len(rows) == SINGLE, "the minute isn't over"
    now[0] = 61.0
    refusals.step()
    told = {"layers": {"signature": 3, "json": 1}, "detail": "4 more within a minute"}
    assert rows[SINGLE:] == [("refused", told)]
    refusals.step()
    refusals.add("192.0.2.3", "host", "it is for another one")
    assert len(rows) == SINGLE + 2, "another minute, another row"


def test_an_agent_that_ends_leaves_no_count_behind():
    rows = []
    refusals = Refusals(lambda event, **content: rows.append((event, content)), lambda: 0.0)
    for _ in range(SINGLE + 1):
        refusals.add("192.0.2.1", "signature", "none")
    refusals.step(now=True)
    assert rows[-1][1]["layers"] == {"signature": 1}
