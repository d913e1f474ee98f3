"""The ledger: which request ids were used, on disk, before anything is done.

SQLite in WAL mode with ``synchronous=FULL``: a commit that returned has reached the
disk, so a replay is refused after a crash or a power cut too. What can't be
recorded isn't done: ``claim`` raises, and the warden stays silent.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from tariq.errors import AgentError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS used (
    id BLOB PRIMARY KEY,        -- the signed request id
    t INTEGER NOT NULL,         -- the request's own time, Unix seconds
    operator TEXT NOT NULL,
    source TEXT NOT NULL,       -- the address that the packet came from
    request BLOB NOT NULL,
    receipt BLOB                -- what was answered; NULL: claimed, outcome not recorded
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS used_by_time ON used (t);
CREATE TABLE IF NOT EXISTS floor (one INTEGER PRIMARY KEY CHECK (one = 1), t INTEGER NOT NULL);
INSERT OR IGNORE INTO floor VALUES (1, -1);
"""


class Ledger:
    """Request ids until they are too old to be accepted anyhow."""

    def __init__(self, path: Path) -> None:
        try:
            self._db = sqlite3.connect(path, isolation_level=None, timeout=5)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as why:
            hint = "free the disk, or move the file away"
            raise AgentError(str(path), f"the ledger can't be opened: {why}", hint) from why
        self._path = path

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def claim(self, id_: bytes, t: int, operator: str, source: str, request: bytes) -> bool:
        """Record that a request is about to be acted on; False if it was before.

        Ids that were forgotten leave a floor behind: a request of the floor's time or
        earlier counts as used, so a clock that jumps back can't revive a replay.
        """
        with self._failures():
            if t <= self._db.execute("SELECT t FROM floor").fetchone()[0]:
                return False
            row = (id_, t, operator, source, request)
            taken = self._db.execute(
                "INSERT OR IGNORE INTO used (id, t, operator, source, request) VALUES (?,?,?,?,?)",
                row,
            )
            return taken.rowcount == 1

    def settle(self, id_: bytes, receipt: bytes) -> None:
        """Record what was answered."""
        with self._failures():
            self._db.execute("UPDATE used SET receipt=? WHERE id=?", (receipt, id_))

    def forget_before(self, t: int) -> None:
        """Forget the requests that were made before ``t``, and raise the floor to them."""
        with self._failures():
            self._db.execute("BEGIN IMMEDIATE")
            oldest = "SELECT max(t) FROM used WHERE t < ?"
            self._db.execute(
                f"UPDATE floor SET t = max(t, coalesce(({oldest}), t))",  # noqa: S608
                (t,),
            )
            self._db.execute("DELETE FROM used WHERE t < ?", (t,))
            self._db.execute("COMMIT")

    def _failures(self) -> _Failures:
        return _Failures(self._db, self._path)


class _Failures:
    """Turn SQLite's errors into AgentError, and leave no transaction open."""

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        self._db, self._path = db, path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, why: BaseException | None, trace: object) -> None:
        if not isinstance(why, sqlite3.Error):
            return
        if self._db.in_transaction:
            self._db.rollback()
        hint = "free the disk; nothing was done"
        raise AgentError(str(self._path), f"the ledger can't be written: {why}", hint) from why
