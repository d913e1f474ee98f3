"""The ledger: no id is used twice, whatever happens to clock, disk or process."""

import sqlite3

import pytest

from tariq.agent.ledger import Ledger
from tariq.errors import AgentError

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
