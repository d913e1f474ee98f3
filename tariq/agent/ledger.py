"""The ledger: which request ids were used, on disk, before anything is done; and what was.

The table ``used`` forgets ids that are too old to be accepted. The table ``audit`` is only
ever added to: each row's hash is the SHA-256 of the hash before it and of the row, so that a
row that was changed, taken out or moved no longer fits (``tariq agent audit --verify``). Old
rows leave from its start, behind an anchor that the chain itself names. Rows that are
cut off at the end can't be missed from within: the log has the hash of each.

SQLite in WAL mode with ``synchronous=FULL``: a commit that returned has reached the
disk, so a replay is refused after a crash or a power cut too. What can't be
recorded isn't done: ``claim`` raises, and the warden stays silent.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tariq.errors import AgentError, AuditError, MessageError
from tariq.message import Receipt, Request, label

KEEP = 1000
"""Rows of the audit trail that stay, however old they are."""
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
CREATE TABLE IF NOT EXISTS audit (
    seq INTEGER PRIMARY KEY,    -- 1, 2, 3 and so on, without gaps
    row TEXT NOT NULL,          -- canonical JSON, which has seq too
    hash BLOB NOT NULL          -- SHA-256 of the hash before and of row
);
CREATE INDEX IF NOT EXISTS audit_by_id ON audit (row ->> 'id');
CREATE TABLE IF NOT EXISTS anchor (   -- the last row that left
    one INTEGER PRIMARY KEY CHECK (one = 1), seq INTEGER NOT NULL, hash BLOB NOT NULL
);
INSERT OR IGNORE INTO anchor VALUES (1, 0, zeroblob(32));
CREATE TABLE IF NOT EXISTS leased (   -- whose leases are: the kernel knows only addresses
    key TEXT NOT NULL,          -- the fingerprint that opened it
    source TEXT NOT NULL,
    protocol TEXT NOT NULL,
    port INTEGER NOT NULL,
    until INTEGER NOT NULL,     -- Unix seconds
    PRIMARY KEY (key, source, protocol, port)
) WITHOUT ROWID;
"""
_SKEW = b'"code":"skew"'
"""In an encoded receipt: this one says so, as in a text of it quotation marks are escaped."""
_KEEP = 86_400
"""Seconds that it is remembered whose a lease was: longer than a clock is ever wrong."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the audit trail; ``hash`` in hex."""

    seq: int
    content: dict[str, Any]
    hash: str


class Ledger:
    """Ids, and the audit trail. ``on_entry`` is told of each row that is on disk."""

    def __init__(self, path: Path, on_entry: Callable[[Entry], None] = lambda _: None) -> None:
        self._on_entry = on_entry
        self._fresh: list[Entry] = []
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
        with self._transaction():
            if t <= self._db.execute("SELECT t FROM floor").fetchone()[0]:
                return False
            row = (id_, t, operator, source, request)
            taken = self._db.execute(
                "INSERT OR IGNORE INTO used (id, t, operator, source, request) VALUES (?,?,?,?,?)",
                row,
            )
            if taken.rowcount == 1:
                about = _about(request)
                self._append("accepted", id=label(id_), operator=operator, source=source, **about)
            return taken.rowcount == 1

    def settle(self, id_: bytes, receipt: bytes) -> None:
        """Record what was answered."""
        with self._transaction():
            self._db.execute("UPDATE used SET receipt=? WHERE id=?", (receipt, id_))
            row = self._db.execute("SELECT operator, source, request FROM used WHERE id=?", (id_,))
            operator, source, request = row.fetchone() or ("", "", b"")
            about = {**_about(request), **_told(receipt)}
            self._append("answered", id=label(id_), operator=operator, source=source, **about)

    def note(self, event: str, **content: object) -> None:
        """Record something that is no request, such as the end of a task."""
        with self._transaction():
            self._append(event, **content)

    def close_open(self) -> int:
        """Record that nobody knows what came of requests that were claimed and never answered.

        For the start of an agent, as the one before it died in between; returns how many.
        """
        with self._transaction():
            open_ = self._db.execute(
                "SELECT id, operator, source, request FROM used WHERE receipt IS NULL"
            ).fetchall()
            for id_, operator, source, request in open_:
                about = {**_about(request), "detail": "claimed, outcome unknown"}
                self._append("unknown", id=label(id_), operator=operator, source=source, **about)
                self._db.execute("UPDATE used SET receipt=x'' WHERE id=?", (id_,))
            return len(open_)

    def _append(self, event: str, **content: object) -> None:
        """Add a row to the chain, within a transaction."""
        seq, before = self._head()
        row = _canonical({"seq": seq + 1, "t": int(time.time()), "event": event, **content})
        digest = hashlib.sha256(before + row.encode()).digest()
        self._db.execute("INSERT INTO audit VALUES (?,?,?)", (seq + 1, row, digest))
        self._fresh.append(Entry(seq + 1, json.loads(row), digest.hex()))

    def has(self, event: str, id_: str) -> bool:
        """Tell whether the trail has a row of that event and label."""
        wanted = "SELECT 1 FROM audit WHERE row ->> 'event' = ? AND row ->> 'id' = ? LIMIT 1"
        return self._db.execute(wanted, (event, id_)).fetchone() is not None

    def _head(self) -> tuple[int, bytes]:
        last = "SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1"
        found = self._db.execute(last).fetchone()
        found = found or self._db.execute("SELECT seq, hash FROM anchor").fetchone()
        return int(found[0]), bytes(found[1])

    def trim_audit(self, t: int) -> int:
        """Let rows older than ``t`` leave, and say so in the chain; return how many left.

        Never the last ``KEEP``: a clock that jumps ahead mustn't empty the trail.
        """
        with self._transaction():
            head = self._head()[0]
            fresh = "SELECT seq FROM audit WHERE row ->> 't' >= ? ORDER BY seq LIMIT 1"
            found = self._db.execute(fresh, (t,)).fetchone()
            last = min(found[0] - 1 if found else head, head - KEEP)
            if last <= self._db.execute("SELECT seq FROM anchor").fetchone()[0]:
                return 0
            self._append("trimmed", upto=last)
            self._db.execute(
                "UPDATE anchor SET (seq, hash) = (SELECT seq, hash FROM audit WHERE seq = ?)",
                (last,),
            )
            return self._db.execute("DELETE FROM audit WHERE seq <= ?", (last,)).rowcount

    def forget_before(self, t: int) -> None:
        """Forget requests that were made before ``t``: those up to the floor, which rises first.

        Only what may have been acted on raises it. A request that was answered ``skew`` has
        whatever time its client's clock showed: a floor there would refuse everybody until then.
        """
        with self._transaction():
            newest = "SELECT max(t) FROM used WHERE t < ? AND NOT instr(coalesce(receipt, x''), ?)"
            self._db.execute(
                f"UPDATE floor SET t = max(t, coalesce(({newest}), t))",  # noqa: S608
                (t, _SKEW),
            )
            self._db.execute("DELETE FROM used WHERE t <= (SELECT t FROM floor)")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing; SQLite's errors become AgentError."""
        self._fresh = []
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except sqlite3.Error as why:
            hint = "free the disk; nothing was done"
            raise AgentError(str(self._path), f"the ledger can't be written: {why}", hint) from why
        finally:
            if self._db.in_transaction:
                self._db.rollback()
        for entry in self._fresh:
            self._on_entry(entry)

    def lease(self, key: str, source: str, service: tuple[str, int], until: int) -> None:
        """Record whose lease is about to be opened."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO leased VALUES (?,?,?,?,?) ON CONFLICT DO UPDATE SET"
                " until = excluded.until",
                (key, source, *service, until),
            )

    def ended(self, source: str, service: tuple[str, int], now: int) -> None:
        """Record that a lease is about to be ended, whoever holds it."""
        with self._transaction():
            self._db.execute(
                "UPDATE leased SET until = min(until, ?)"
                " WHERE source = ? AND protocol = ? AND port = ?",
                (now, source, *service),
            )

    def running(self, now: int, key: str | None = None) -> set[tuple[str, str, int]]:
        """Return source, protocol and port of leases whose time isn't over: a key's, or all."""
        with self._transaction():
            wanted = "SELECT source, protocol, port FROM leased WHERE until > ?"
            found = self._db.execute(f"{wanted} AND key = coalesce(?, key)", (now, key))
            return set(found)

    def forget_leases(self, now: int) -> None:
        """Forget whose leases were whose time has long been over."""
        with self._transaction():
            self._db.execute("DELETE FROM leased WHERE until < ?", (now - _KEEP,))

    def leases_of_strangers(
        self, trusted: Collection[str], now: int
    ) -> dict[tuple[str, str, int], bool]:
        """Return source, protocol and port of leases that no trusted key holds as well.

        True: no trusted key has lately opened the same, so connections there are strangers' too.
        """
        with self._transaction():
            rows = self._db.execute("SELECT key, source, protocol, port, until FROM leased")
            running: set[tuple[str, str, int]] = set()
            ours: set[tuple[str, str, int]] = set()
            theirs: set[tuple[str, str, int]] = set()
            for key, source, protocol, port, until in rows:
                (ours if key in trusted else theirs).add((source, protocol, port))
                if key in trusted and until > now:
                    running.add((source, protocol, port))
            return {lease: lease not in ours for lease in theirs - running}

    def forget_strangers(self, trusted: Collection[str]) -> None:
        """Forget whose leases were opened by keys that aren't trusted."""
        with self._transaction():
            for (key,) in self._db.execute("SELECT DISTINCT key FROM leased").fetchall():
                if key not in trusted:
                    self._db.execute("DELETE FROM leased WHERE key = ?", (key,))


def _canonical(content: dict[str, object]) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _about(request: bytes) -> dict[str, object]:
    """Return what an audit row says of a request. Not its id: receipts are sealed under that."""
    try:
        asked = Request.decode(request)
    except MessageError:
        return {}
    known: dict[str, object] = {"do": asked.do.value, "what": list(asked.what)}
    known |= {"args": dict(asked.args), "for": asked.seconds, "src": asked.src}
    return {name: value for name, value in known.items() if value}


def _told(receipt: bytes) -> dict[str, object]:
    """Return what an audit row says of a receipt."""
    try:
        made = Receipt.decode(receipt)
    except MessageError:
        return {}
    known = {
        "ok": made.ok,
        "code": made.code.value,
        "leases": dict(made.leases) or None,
        "state": made.state and made.state.value,
        "exit": made.exit,
        "detail": made.detail or None,
        "policy": made.policy,
    }
    return {name: value for name, value in known.items() if value is not None}


# --- reading the trail, with or without an agent -----------------------------------------------


def read_audit(path: Path, since: int = 0) -> Iterator[Entry]:
    """Yield the rows that are no older than ``since``; raise AuditError if there is no ledger."""
    with _reading(path) as db:
        for seq, row, digest in db.execute("SELECT seq, row, hash FROM audit ORDER BY seq"):
            content = _content(row, seq)
            if content.get("t", 0) >= since:
                yield Entry(seq, content, bytes(digest).hex())


def verify_audit(path: Path) -> tuple[int, str]:
    """Return how many rows fit the chain, and its last hash; raise AuditError where one doesn't."""
    with _reading(path) as db:
        at, before = db.execute("SELECT seq, hash FROM anchor").fetchone()
        trimmed, count = 0, 0
        for seq, row, digest in db.execute("SELECT seq, row, hash FROM audit ORDER BY seq"):
            content = _content(row, seq)
            fits = seq == at + 1 == content.get("seq")
            if not fits or hashlib.sha256(before + row.encode()).digest() != digest:
                raise AuditError(f"row {seq}", "doesn't fit the one before it", _TAMPERED)
            at, before, count = seq, bytes(digest), count + 1
            trimmed = content.get("upto", trimmed) if content["event"] == "trimmed" else trimmed
        first = db.execute("SELECT seq FROM anchor").fetchone()[0]
        if first != trimmed:
            raise AuditError(f"row {first + 1}", "rows before it are missing", _TAMPERED)
        return count, bytes(before).hex()


_TAMPERED = "the trail was changed: compare it with the hashes in the log"


def _content(row: str, seq: int) -> dict[str, Any]:
    try:
        content = json.loads(row)
    except ValueError:
        content = None
    if not isinstance(content, dict) or "event" not in content:
        raise AuditError(f"row {seq}", "isn't what an agent writes", _TAMPERED)
    return content


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            db.execute("BEGIN")
            yield db
    except sqlite3.Error as why:
        hint = "has an agent run here? it must be root who asks"
        raise AuditError(str(path), f"can't be read: {why}", hint) from why
