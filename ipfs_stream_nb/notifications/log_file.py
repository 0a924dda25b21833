"""The SQLite file of the log of events: its format, the check at opening, and what is done with it.

One thread writes and one reads, on a connection each. What raises is sqlite3's, or Damaged; see log_places.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from ipfs_stream_nb.notifications.engine import PAGE_BYTES
from ipfs_stream_nb.notifications.events import Event, Record

APPLICATION_ID: Final = 0x6970_6576
"""Marks our files among those of SQLite."""
VERSION: Final = 1
"""The format that is read and written here. A file of a higher one is set aside."""
SCHEMA: Final = (
    "CREATE TABLE log (epoch TEXT NOT NULL, trimmed INTEGER NOT NULL)",
    """CREATE TABLE events (
    id INTEGER PRIMARY KEY, type TEXT NOT NULL, owner TEXT, kind TEXT NOT NULL, time REAL NOT NULL, body BLOB NOT NULL
)""",
)
"""`log` has one row: the epoch, and the id up to which events were dropped. There is one table of events, ids dense."""

CHECKED_BYTES: Final = 64 << 20
"""The pages and ids of a file up to this size are all checked at opening (at most 0.1 s once it is cached). Of a larger one,
and of the events of each, only the two ends are looked at; what is damaged in between is found when it is read."""
CHECKED_ROWS: Final = 1000
"""Events at either end of a file that are read at opening, where they are no more than PAGE_BYTES."""
MAX_ID: Final = (1 << 53) - 1
"""The largest id that a log may begin with: the largest whole number that JavaScript tells from its neighbours."""
START_LOCK_SECONDS = 1.0
"""How long opening waits for another program that has locked the file."""
LOCK_SECONDS = 5.0
"""The same for everything later."""
WAL_BYTES: Final = 8 << 20
"""What is left of the write-ahead log when it was longer for a while. It is written back every 1,000 pages of 4 KiB."""
MIN_FREE: Final = 8 << 20
"""Bytes of the disk that events leave free: as much as trimming and writing back the write-ahead log can need."""
TRIM_ROWS: Final = 10_000
"""Events dropped in one transaction."""
TRIM_SHARE: Final = 16
"""This part of the events is dropped at a time while the file is too large."""
SPARE_PAGES: Final = 1024
"""Free pages (of 4 KiB) that are kept for the next events; more than that, and than a quarter of all, goes back
to the filesystem, as many again at each trimming."""

_ROWS: Final = (128, 16, 1)
# sqlite3 gives the interpreter's lock away for each row that it writes or reads, and on a busy event loop waits up to
# 5 ms to get it back. So many rows are written by one statement (below 999 parameters, SQLite's limit up to 3.31), and
# many are read as one text: fields between the control characters US and RS, neither of which JSON holds. How many of them
# have room is found by their lengths, for which SQLite does not read the bodies
_INSERT: Final = {n: f"INSERT INTO events VALUES {','.join(['(?,?,?,?,?,?)'] * n)}" for n in _ROWS}  # noqa: S608
_FIELDS: Final = (
    "id || char(31) || type || char(31) || CASE WHEN owner IS NULL THEN '' ELSE 'x' || hex(owner) END || char(31) || "
    "kind || char(31) || quote(time) || char(31) || body"  # quote() keeps all digits
)
_READ: Final = (
    f"SELECT (SELECT trimmed FROM log), CAST(group_concat({_FIELDS}, char(30)) AS BLOB) FROM "  # noqa: S608  # no input
    "(SELECT * FROM events WHERE id {side} :bound AND id {other} ("
    "SELECT {furthest}(id) FROM (SELECT id, size, sum(size) OVER (ORDER BY id {order}) AS sum FROM "
    "(SELECT id, length(body) AS size FROM events WHERE id {side} :bound ORDER BY id {order} LIMIT :limit)"
    ") WHERE sum <= :bytes OR sum = size) ORDER BY id)"
)
_FORWARD: Final = _READ.format(side=">", other="<=", furthest="max", order="ASC")
_BACK: Final = _READ.format(side="<", other=">=", furthest="min", order="DESC")
_CONTROL: Final = bytes(range(30))  # without those two
_LARGEST: Final = (1 << 63) - 1


class Damaged(Exception):  # noqa: N818  # a finding, which is dealt with here
    """The file is no log that can be used. The text says why, to go behind "it"."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a log keeps at most."""

    events: int
    age: float
    """Seconds."""
    bytes: int
    """Of the file, without what is free in it."""


class LogFile:
    """An open log. `append`, `trim` and `close` are the writing thread's, `read` is another's."""

    def __init__(
        self, path: Path, *, synchronous: Literal["FULL", "NORMAL"], only_reading: bool = False
    ) -> None:
        """Open it, or make it where the file is not there or empty. `only_reading`: open it on a full disk, where there is
        no room for the index (-shm) that two connections share. Raises Damaged, sqlite3.Error, OSError."""
        self.path = path
        self.only_reading = only_reading
        # SQLite gives its other files the same rights
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        path.chmod(0o600)
        self._reading = threading.Lock()
        self._reader: sqlite3.Connection | None = None
        self._db = _connect(path, START_LOCK_SECONDS)
        try:
            if only_reading:  # its one connection has the index in memory
                self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA fullfsync=ON")
            self._db.execute(f"PRAGMA synchronous={synchronous}")
            self._db.execute(f"PRAGMA journal_size_limit={WAL_BYTES}")
            if self._is_new():
                self._make()
            self._check_format()
            self.epoch, self.first, self.last = self._bounds()
            self._reader = self._db if only_reading else _connect(path, LOCK_SECONDS)
            self._check_events()
            self._db.execute(f"PRAGMA busy_timeout={int(LOCK_SECONDS * 1000)}")
            self._files = self._inodes()
        except BaseException:
            self.close()
            raise

    def _is_new(self) -> bool:
        # a process that dies before the first commit leaves a file with a header or less
        return (
            not self._one("PRAGMA application_id")[0]
            and not self._one("SELECT count(*) FROM sqlite_master")[0]
        )

    def _make(self) -> None:
        self._db.execute("PRAGMA auto_vacuum=INCREMENTAL")
        if self._one("PRAGMA journal_mode=WAL")[0] != "wal":
            raise Damaged("is on a filesystem that SQLite's write-ahead log does not work on")
        with self._transaction():
            for statement in SCHEMA:
                self._db.execute(statement)
            self._db.execute("INSERT INTO log VALUES (?, 0)", (secrets.token_hex(8),))
            self._db.execute(f"PRAGMA application_id={APPLICATION_ID}")
            self._db.execute(f"PRAGMA user_version={VERSION}")
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _check_format(self) -> None:
        if self._one("PRAGMA application_id")[0] != APPLICATION_ID:
            raise Damaged("is another program's database")
        version = self._one("PRAGMA user_version")[0]
        if version > VERSION:
            raise Damaged(f"has format {version}, and this version of ipfs_stream_nb writes format {VERSION}")
        if {sql for (sql,) in self._db.execute("SELECT sql FROM sqlite_master")} != set(SCHEMA):
            raise Damaged("has other tables than a log of events")
        if self._one("SELECT count(*) FROM log")[0] != 1:
            raise Damaged("has lost its epoch")
        if self._one("PRAGMA journal_mode=WAL")[0] != "wal":
            raise Damaged("cannot be used with a write-ahead log")

    def _bounds(self) -> tuple[str, int, int]:
        with self._transaction():  # nobody else has locked it, and the -wal file is there from here on
            epoch, trimmed = self._one("SELECT epoch, trimmed FROM log")
            last = self._one("SELECT ifnull(max(id), ?) FROM events", trimmed)[0]
        if not (isinstance(epoch, str) and epoch.isalnum() and isinstance(trimmed, int)):
            raise Damaged("has lost its epoch")
        if not 0 <= trimmed <= last <= MAX_ID:
            raise Damaged("has ids that no log comes to")
        return epoch, trimmed + 1, int(last)

    def _check_events(self) -> None:
        if self.path.stat().st_size <= CHECKED_BYTES:
            found = self._one("PRAGMA quick_check(1)")[0]
            if found != "ok":
                raise Damaged(f"is malformed ({' '.join(str(found).split())[:200]})")
            if self._one("SELECT count(*) FROM events")[0] != self.last + 1 - self.first:
                raise _gaps()
        self.read(0, CHECKED_ROWS)
        newest = self.read_back(self.last + 1, CHECKED_ROWS)
        # see _now
        self._seen = min(time.time(), newest[-1].timestamp) if newest else time.time()
        self._seen_at = time.monotonic()

    def append(self, events: Sequence[Event]) -> int:
        """Commit them under the next ids, and give the first of these."""
        if self.only_reading or not self.has_room():
            raise _no_space()
        first = at = self.last + 1
        rows = [
            (at + n, event.notification_type.value, event.owner, event.kind, event.timestamp, event.body)
            for n, event in enumerate(events)
        ]
        with self._transaction():
            if self._one("SELECT max(id) FROM events")[0] != (self.last if self.first <= self.last else None):
                raise _gaps()
            done = 0
            for count in _ROWS:
                while len(rows) - done >= count:
                    part = rows[done : done + count]
                    self._db.execute(_INSERT[count], [value for row in part for value in row])
                    done += count
        if self._inodes() != self._files:
            raise Damaged("was deleted or replaced while it was open")
        self.last += len(events)
        return first

    def has_room(self) -> bool:
        """Whether the disk has room for events."""
        disk = os.statvfs(self.path.parent)
        return disk.f_bavail * disk.f_frsize >= MIN_FREE

    def trim(self, limits: Limits) -> None:
        """Drop from the front what is over the limits. What is too old goes up to the first event that is not."""
        if self.only_reading:
            raise _no_space()
        self._drop(self.last + 1 - limits.events)
        young = self._db.execute(
            "SELECT id FROM events WHERE time >= ? ORDER BY id LIMIT 1", (self._now() - limits.age,)
        ).fetchone()
        self._drop(young[0] if young else self.last + 1)
        size = self._one("PRAGMA page_size")[0]
        while True:
            pages, free = self._one("PRAGMA page_count")[0], self._one("PRAGMA freelist_count")[0]
            if self.first > self.last or (pages - free) * size <= limits.bytes:
                break
            self._drop(self.first + 1 + (self.last - self.first) // TRIM_SHARE)
        spare = max(SPARE_PAGES, pages // 4)
        if free > spare:
            self._db.executescript(f"PRAGMA incremental_vacuum({min(free - spare, SPARE_PAGES)})")

    def _now(self) -> float:
        """The time by which events are old. A clock that is far ahead for a while must not empty the log: time goes on from
        the newest event that was there at opening, and no faster than twice the time that passes, up to the clock's."""
        return min(time.time(), self._seen + 2 * (time.monotonic() - self._seen_at))

    def _drop(self, end: int) -> None:
        """Drop the events below the id `end`."""
        while self.first < end:
            upto = min(end, self.first + TRIM_ROWS)
            with self._transaction():
                self._db.execute("DELETE FROM events WHERE id < ?", (upto,))
                self._db.execute("UPDATE log SET trimmed = ?", (upto - 1,))
            self.first = upto

    def give_room(self) -> None:
        """Write the write-ahead log back and empty it, so that its space can be used."""
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def read(self, after: int, limit: int, max_bytes: int = PAGE_BYTES) -> list[Record]:
        """The oldest after an id, at most `limit`, and of more than one at most `max_bytes` of their bodies. Raises Damaged,
        sqlite3.Error, and EOFError where it is closed."""
        after = min(max(after, 0), _LARGEST)
        last = self.last  # it is there, or trimmed; what is committed meanwhile may be there
        trimmed, records = self._page(_FORWARD, after, limit, max_bytes)
        start = max(after, trimmed) + 1
        if limit > 0 and (records[0].id != start if records else start <= last):
            raise _gaps()
        return records

    def read_back(self, before: int, limit: int, max_bytes: int = PAGE_BYTES) -> list[Record]:
        """The newest below an id, as `read`, in order of their ids."""
        before = min(max(before, 0), _LARGEST)
        end = min(before - 1, self.last)
        trimmed, records = self._page(_BACK, before, limit, max_bytes)
        if limit > 0 and (records[-1].id < end or records[0].id <= trimmed if records else trimmed < end):
            raise _gaps()
        return records

    def _page(self, query: str, bound: int, limit: int, max_bytes: int) -> tuple[int, list[Record]]:
        """The id up to which events were dropped, and what there is, without gaps."""
        values = {"bound": bound, "limit": max(limit, 0), "bytes": max_bytes}
        with self._reading:
            if self._reader is None:
                raise EOFError
            trimmed, text = self._reader.execute(query, values).fetchone()
        if text and len(text.translate(None, _CONTROL)) < len(text):
            raise _no_event()
        records = _records(text) if text else []
        if not isinstance(trimmed, int) or (records and records[-1].id - records[0].id + 1 != len(records)):
            raise _gaps()
        return trimmed, records

    def close(self) -> None:
        """Close it; whoever reads is waited for."""
        # the last connection to be closed removes -wal and -shm by their names: both before anybody makes new ones
        with self._reading:
            if self._reader is not None:
                self._reader.close()
                self._reader = None
        with contextlib.suppress(sqlite3.Error):
            self._db.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                with contextlib.suppress(sqlite3.Error):  # what was raised says more
                    self._db.execute("ROLLBACK")
            raise

    def _one(self, query: str, *values: object) -> tuple[Any, ...]:
        row = self._db.execute(query, values).fetchone()
        if row is None:
            raise Damaged("is malformed")
        return tuple(row)

    def _inodes(self) -> tuple[int, ...]:
        # SQLite would go on writing to deleted files; and opening one here would drop SQLite's locks on it
        found = []
        for suffix in ("", "-wal"):
            try:
                found.append(Path(f"{self.path}{suffix}").stat().st_ino)
            except FileNotFoundError:
                found.append(0)
        return tuple(found)


def _connect(path: Path, wait: float) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=wait,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=16,
    )


def _gaps() -> Damaged:
    return Damaged("has gaps in its ids")


def _no_event() -> Damaged:
    return Damaged("has an event that cannot be read")


def _no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _records(text: bytes) -> list[Record]:
    try:
        text.decode()
        return [
            Record(
                int(number),
                kind_of.decode(),
                bytes.fromhex(owner[1:].decode()).decode() if owner else None,
                kind.decode(),
                float(at),
                body,
            )
            for number, kind_of, owner, kind, at, body in (row.split(b"\x1f") for row in text.split(b"\x1e"))
        ]
    except ValueError:
        raise _no_event() from None
