"""Where logs of events stand: a name for each server of a user, what is set aside, and whose fault a failure is.

notifications.sqlite, -wal, -shm       the log
notifications.lock                     locked (flock) by the process that has it open
notifications-1.sqlite, …              the log of a second server that uses the same directory
notifications.sqlite.damaged-<time>    what could not be used, with its -wal and -shm where they were there
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from ipfs_stream_nb.content.blocks.filesystems import is_remote
from ipfs_stream_nb.errors import DiskFullError, IPFSStreamError, StoreError
from ipfs_stream_nb.notifications.log_file import Damaged, LogFile

MAX_LOGS: Final = 32
"""Servers that can use one directory at once."""
MAX_ASIDE: Final = 3
"""Damaged logs that are kept, of each name; the oldest goes."""
PROBE_BYTES: Final = 64 << 10
"""What is written to see whether a failure is for want of room."""

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_SUFFIXES: Final = ("", "-wal", "-shm")


class Place:
    """A name in the directory, held by this process until `release` or its death. Raises BlockingIOError, OSError."""

    def __init__(self, directory: Path, name: str, number: int) -> None:
        self.number = number
        stem = f"{name}-{number}" if number else name
        self.path = directory / f"{stem}.sqlite"
        self._lock = directory / f"{stem}.lock"
        self._fd = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(self._fd)
            raise

    def held(self) -> bool:
        """Whether the lock file is still the one that is locked: not where the directory was deleted."""
        try:
            return self._lock.stat().st_ino == os.fstat(self._fd).st_ino
        except OSError:
            return False

    def set_aside(self) -> str | None:
        """Rename the log, which must be closed, out of the way, and give its new name; remove the oldest such. None where
        nothing is there."""
        if not self.path.exists():
            return None
        now = time.time_ns()
        stamp = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now // 10**9))}-{now % 10**9:09}"
        aside = f"{self.path}.damaged-{stamp}"
        for suffix in _SUFFIXES:
            with contextlib.suppress(FileNotFoundError):
                Path(f"{self.path}{suffix}").rename(f"{aside}{suffix}")
        found = self.path.parent.glob(f"{self.path.name}.damaged-*")
        kept = sorted(path for path in found if not path.name.endswith(_SUFFIXES[1:]))
        for old in kept[:-MAX_ASIDE]:
            for suffix in _SUFFIXES:
                Path(f"{old}{suffix}").unlink(missing_ok=True)
        return Path(aside).name

    def release(self) -> None:
        """Give it back: by name, since a forked child may have a copy of the descriptor, which would keep it."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        os.close(self._fd)


def open_log(
    directory: Path,
    name: str,
    *,
    synchronous: Literal["FULL", "NORMAL"],
    report: Callable[[str], None],
    prefer: int = 0,
) -> tuple[Place, LogFile]:
    """The first log of the directory that nobody has open, that of number `prefer` before all others. One that is damaged
    is set aside, and one that another program has locked is passed over; `report` is told. Raises StoreError, DiskFullError.
    """
    if is_remote(directory):
        raise StoreError(
            f"the log of notifications cannot live in {directory}, which is shared over a network or with a host: files "
            "cannot be locked safely there. Name a directory on a local disk (notifications_path)"
        )
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for number in sorted(range(MAX_LOGS), key=lambda number: number != prefer):
            try:
                place = Place(directory, name, number)
            except BlockingIOError:
                continue
            try:
                return place, _open_at(place, synchronous, report)
            except BaseException as error:
                place.release()
                if not isinstance(error, sqlite3.Error) or not _is_locked(error):
                    raise
                report(
                    f"the log of events {place.path} is locked by another program, so that another one is used"
                )
    except (sqlite3.Error, OSError, Damaged) as error:
        raise explain(error, directory) from error
    raise StoreError(
        f"{MAX_LOGS} servers have a log of events open in {directory} already: close one of them, or name another directory"
    )


def _open_at(place: Place, synchronous: Literal["FULL", "NORMAL"], report: Callable[[str], None]) -> LogFile:
    try:
        return LogFile(place.path, synchronous=synchronous)
    except (Damaged, sqlite3.Error) as error:
        if passing(error, place.path.parent):
            if _is_locked(error):
                raise
            return LogFile(place.path, synchronous=synchronous, only_reading=True)
        aside = place.set_aside()
        report(setback(place, error, aside))
    return LogFile(place.path, synchronous=synchronous)


def setback(place: Place, error: Exception, aside: str | None) -> str:
    """What to tell of a log that could not be used any more."""
    reason = f"it {error}" if isinstance(error, Damaged) else str(error)
    kept = f" What is left of it is kept as {aside}." if aside else ""
    return f"The log of events {place.path} could not be used ({reason}), and a new one was begun.{kept}"


def passing(error: Exception, directory: Path) -> bool:
    """Whether the log is whole: another program has locked it, or the disk is full."""
    return not isinstance(error, Damaged) and (_is_locked(error) or _is_full(error, directory))


def explain(error: Exception, directory: Path) -> IPFSStreamError:
    """The error for publishers and readers."""
    if _is_locked(error):
        return StoreError(
            f"the log of events in {directory} is locked by another program; close what has it open, and try again"
        )
    if _is_full(error, directory):
        return DiskFullError(
            f"there is no room for the log of events in {directory}: free some space on that disk"
        )
    if isinstance(error, OSError):
        return StoreError(
            f"the log of events cannot be kept in {directory} ({error.strerror or error}): "
            "name a directory that this user may write to"
        )
    reason = f"it {error}" if isinstance(error, Damaged) else error
    return StoreError(f"the log of events in {directory} cannot be used: {reason}")


def _is_locked(error: Exception) -> bool:
    return _code(error) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def _is_full(error: Exception, directory: Path) -> bool:
    if isinstance(error, OSError):
        return error.errno in _FULL
    # a quota, or a full disk under -shm, is an input/output error for SQLite, or a file that it cannot open
    return _code(error) == sqlite3.SQLITE_FULL or (
        _code(error) in {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN} and not _room(directory)
    )


def _code(error: Exception) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _room(directory: Path) -> bool:
    probe = directory / f".room-{os.getpid()}"
    try:
        with contextlib.suppress(FileNotFoundError), probe.open("wb") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno not in _FULL
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    return True
