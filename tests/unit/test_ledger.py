"""The ledger: no id is used twice, whatever happens to clock, disk or process."""

import sqlite3
from dataclasses import replace

import pytest

from tariq.agent.ledger import Ledger, read_audit, verify_audit
from tariq.errors import AgentError, AuditError
from tariq.message import Action, Code, Receipt, Request, to_b64

A, B, C = b"a" * 16, b"b" * 16, b"c" * 16


@pytest.fixture
def ledger(tmp_path):
    made = Ledger(tmp_path / "ledger.db")
    yield made
    made.close()


def claim(ledger, id_, t):
    return ledger.claim(id_, t, "bob", "192.0.2.1", b"{}")


def test_an_id_is_claimed_once(ledger):
    assert claim(ledger, A, 1000)
    assert not claim(ledger, A, 1000)
    assert not claim(ledger, A, 1001)


def test_it_remembers_after_the_process_is_gone(ledger, tmp_path):
    assert claim(ledger, A, 1000)
    again = Ledger(tmp_path / "ledger.db")
    assert not claim(again, A, 1000)
    again.close()


def test_a_clock_that_jumps_back_revives_nothing(ledger):
    """Forgotten ids leave a floor: all of their time or before counts as used."""
    assert claim(ledger, A, 1000)
    ledger.forget_before(2000)
    assert not claim(ledger, A, 1000)
    assert not claim(ledger, B, 999)
    assert claim(ledger, C, 1001)
    ledger.forget_before(500)
    assert not claim(ledger, A, 1000)


def test_a_client_s_clock_that_is_ahead_locks_nobody_out(ledger):
    """Answered ``skew``, forgotten by a clock that jumps ahead once: others are still new."""
    assert claim(ledger, A, 9000)
    ledger.settle(A, replace(RECEIPT, code=Code.SKEW, ok=False, exit=None).encode())
    assert claim(ledger, B, 1000)
    ledger.forget_before(10_000)
    assert claim(ledger, C, 1001)
    assert not claim(ledger, B, 1000)
    assert not claim(ledger, A, 9000), "nor is that one ever forgotten before its time"


def test_what_a_receipt_quotes_is_not_its_code(ledger):
    assert claim(ledger, A, 9000)
    ledger.settle(A, replace(RECEIPT, detail='"code":"skew"').encode())
    ledger.forget_before(10_000)
    assert not claim(ledger, B, 9000)


def test_what_can_not_be_recorded_is_an_error(ledger, tmp_path):
    holder = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    ledger._db.execute("PRAGMA busy_timeout=50")
    with pytest.raises(AgentError, match="nothing was done"):
        claim(ledger, A, 1000)
    holder.execute("ROLLBACK")
    holder.close()
    assert claim(ledger, A, 1000)


def test_a_directory_that_is_not_there_is_an_error_that_names_it(tmp_path):
    with pytest.raises(AgentError, match=r"missing/ledger\.db"):
        Ledger(tmp_path / "missing" / "ledger.db")


# --- the audit trail ----------------------------------------------------------------------


REQUEST = Request(
    to=bytes(16), do=Action.RUN, t=1000, what=("deploy",), args={"version": "v1"}, id=A
)
RECEIPT = Receipt(re=A, t=1000, ok=True, code=Code.RAN, seen="192.0.2.1", policy=7, exit=0)


@pytest.fixture
def path(ledger, tmp_path):
    """A trail of some requests; returns where it is."""
    for n in range(5):
        id_ = bytes([n]) * 16
        ledger.claim(id_, 1000, "bob", "192.0.2.1", replace(REQUEST, id=id_).encode())
        ledger.settle(id_, replace(RECEIPT, re=id_).encode())
    return tmp_path / "ledger.db"


def test_the_trail_tells_who_asked_for_what_and_what_came_of_it(path):
    accepted, answered, *_ = (entry.content for entry in read_audit(path))
    assert accepted["event"] == "accepted"
    assert (accepted["operator"], accepted["source"]) == ("bob", "192.0.2.1")
    assert (accepted["do"], accepted["what"], accepted["args"]) == (
        "run",
        ["deploy"],
        {"version": "v1"},
    )
    assert (answered["event"], answered["code"], answered["exit"]) == ("answered", "ran", 0)
    assert answered["id"] == accepted["id"]
    assert verify_audit(path)[0] == 10
    text = str([entry.content for entry in read_audit(path)])
    assert not any(to_b64(bytes([n]) * 16) in text for n in range(5)), (
        "no request's id, under which its receipt was sealed"
    )


def test_a_request_takes_as_much_of_the_disk_as_the_page_on_the_trail_says(ledger, tmp_path):
    asked = Request(to=bytes(16), do=Action.OPEN, t=1000, what=("ssh",), seconds=60, id=A)
    told = replace(RECEIPT, code=Code.OPENED, exit=None, leases={"ssh": 1060})
    ledger._db.execute("PRAGMA synchronous=OFF")  # to be quick
    for n in range(500):
        id_ = n.to_bytes(16, "big")
        ledger.claim(id_, 1000, "alice", "203.0.113.7", replace(asked, id=id_).encode())
        ledger.settle(id_, replace(told, re=id_).encode())
        ledger.forget_before(1000)
    ledger._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = (tmp_path / "ledger.db").stat().st_size - 4096 * 12
    assert size / 500 == pytest.approx(700, rel=0.5)


@pytest.mark.parametrize(
    ("how", "where"),
    [
        ("UPDATE audit SET row = replace(row, 'bob', 'eve') WHERE seq = 4", "row 4"),
        ("UPDATE audit SET row = replace(row, 'bob', 'eve') WHERE seq = 10", "row 10"),
        ("DELETE FROM audit WHERE seq = 4", "row 5"),
        ("DELETE FROM audit WHERE seq <= 4", "row 5"),
        (
            "UPDATE audit SET seq = -1 WHERE seq = 4; UPDATE audit SET seq = 4 WHERE seq = 6;"
            "UPDATE audit SET seq = 6 WHERE seq = -1",
            "row 4",
        ),
        ("UPDATE audit SET hash = zeroblob(32) WHERE seq = 4", "row 4"),
        (
            "UPDATE anchor SET (seq, hash) = (SELECT seq, hash FROM audit WHERE seq = 4);"
            "DELETE FROM audit WHERE seq <= 4",
            "row 5",
        ),
        ("UPDATE audit SET row = '{}' WHERE seq = 4", "row 4"),
    ],
)
def test_a_row_that_was_changed_taken_out_or_moved_is_found(path, how, where):
    db = sqlite3.connect(path)
    db.executescript(how)
    db.commit()
    db.close()
    with pytest.raises(AuditError, match=rf"^{where}: "):
        verify_audit(path)


def test_a_trail_that_was_cut_at_its_end_looks_whole_but_its_last_hash_is_in_the_log(path):
    """What can't be seen from within, as docs/audit.md says."""
    _, head = verify_audit(path)
    db = sqlite3.connect(path)
    db.execute("DELETE FROM audit WHERE seq > 8")
    db.commit()
    db.close()
    count, now = verify_audit(path)
    assert count == 8
    assert now != head


def test_rows_that_are_old_leave_and_the_chain_still_verifies(ledger, path, monkeypatch):
    monkeypatch.setattr("tariq.agent.ledger.KEEP", 3)
    assert ledger.trim_audit(0) == 0
    assert ledger.trim_audit(1 << 40) == 7
    assert verify_audit(path)[0] == 4
    assert ledger.trim_audit(1 << 40) == 1
    assert verify_audit(path)[0] == 4
    ledger.note("ended", id="0123abcd")
    assert [entry.content["event"] for entry in read_audit(path)][-1] == "ended"
    assert verify_audit(path)[0] == 5


def test_forgotten_ids_leave_the_trail_alone(ledger, path):
    ledger.forget_before(1 << 39)
    assert verify_audit(path)[0] == 10


def test_what_was_claimed_and_never_answered_is_recorded_as_unknown_once(ledger, path):
    ledger.claim(C, 1000, "bob", "192.0.2.1", replace(REQUEST, id=C).encode())
    again = Ledger(path)
    assert again.close_open() == 1
    assert again.close_open() == 0
    again.close()
    last = list(read_audit(path))[-1].content
    assert (last["event"], last["detail"]) == ("unknown", "claimed, outcome unknown")
    assert last["what"] == ["deploy"]
    assert not ledger.claim(C, 1000, "bob", "192.0.2.1", b"{}")


def test_whose_a_lease_was_is_remembered_for_a_day(ledger):
    ledger.lease("KEY", "192.0.2.1", ("tcp", 22), 1000)
    ledger.lease("KEY", "192.0.2.2", ("tcp", 22), 2000)
    assert ledger.running(1000, "KEY") == {("192.0.2.2", "tcp", 22)}
    ledger.forget_leases(1000 + 86_400)
    assert len(ledger.leases_of_strangers((), 1000)) == 2
    ledger.forget_leases(1001 + 86_400)
    assert set(ledger.leases_of_strangers((), 1000)) == {("192.0.2.2", "tcp", 22)}


def test_a_row_is_told_of_only_once_it_is_on_disk(tmp_path):
    told = []
    ledger = Ledger(tmp_path / "other.db", told.append)
    claim(ledger, A, 1000)
    [entry] = told
    assert entry.hash == verify_audit(tmp_path / "other.db")[1]
    holder = sqlite3.connect(tmp_path / "other.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    ledger._db.execute("PRAGMA busy_timeout=50")
    with pytest.raises(AgentError):
        claim(ledger, B, 1000)
    assert told == [entry]
    holder.execute("ROLLBACK")
    holder.close()
    ledger.close()


def test_a_lease_runs_until_it_is_over_replaced_by_a_shorter_one_or_ended(ledger):
    key, me, ssh, web = "A" * 40, "192.0.2.1", ("tcp", 22), ("tcp", 443)
    for service in (ssh, web):
        ledger.lease(key, me, service, 100)
    assert ledger.running(99) == {(me, *ssh), (me, *web)}
    assert ledger.running(100) == set()
    ledger.ended(me, ssh, 50)
    assert ledger.running(50) == {(me, *web)}
    ledger.lease(key, me, web, 70)
    assert ledger.running(70) == set()
