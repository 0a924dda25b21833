"""The log of events in a file: durable once it is acknowledged, in order, and read again by whoever was away."""

from __future__ import annotations

import asyncio
import functools
import os
import sqlite3
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Literal

from ipfs_stream_nb.errors import BadRequestError, BusyError, IPFSStreamError, StoreError
from ipfs_stream_nb.notifications.engine import (
    MAX_AGE,
    MAX_BYTES,
    MAX_EVENTS,
    PAGE_BYTES,
    Bounds,
    EpochChangedError,
)
from ipfs_stream_nb.notifications.events import Event, Record
from ipfs_stream_nb.notifications.log_feed import Feed
from ipfs_stream_nb.notifications.log_file import Damaged, Limits, LogFile
from ipfs_stream_nb.notifications.log_places import explain
from ipfs_stream_nb.notifications.log_writer import LogWriter, Pending

MIN_BYTES: Final = 1 << 20
"""The smallest `max_bytes`."""
MAX_WAITING: Final = 20_000
"""Events that wait to be committed, at most."""
MAX_WAITING_BYTES: Final = 32 << 20
"""The same for their bytes."""
PAGE_EVENTS: Final = 1000
"""Events that a subscriber gets at once of what is in the log."""


class SQLiteEngine:
    """An Engine over a file of SQLite in `directory`, which is made; several servers of one user may share it.

    `max_events`, `max_age` (seconds) and `max_bytes` (of the file) bound what is kept. They are looked at each minute and
    after some thousand events, so the log may be over them by as much; for as long as no server ran, events may stay beyond
    their age. `synchronous`: "FULL", what is acknowledged
    survives a loss of power; "NORMAL", only the end of the process. Raises BadRequestError.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        name: str = "notifications",
        max_events: int = MAX_EVENTS,
        max_age: float = MAX_AGE,
        max_bytes: int = MAX_BYTES,
        synchronous: Literal["FULL", "NORMAL"] = "FULL",
    ) -> None:
        if max_events < 1 or not max_age > 0:
            raise BadRequestError(
                f"a log of events keeps at least one event, for some time; not {max_events} for {max_age} s"
            )
        if max_bytes < MIN_BYTES:
            raise BadRequestError(f"a log of events needs {MIN_BYTES:,} bytes or more, not {max_bytes:,}")
        self._directory, self._name, self._synchronous = Path(directory), name, synchronous
        self._limits = Limits(max_events, max_age, max_bytes)
        self._door = asyncio.Lock()
        self._writer: LogWriter | None = None
        self._log: LogFile | None = None
        self._closing = False
        self._feed = Feed()
        self._bounds = Bounds("", 1, 0)
        self._waiting = self._waiting_bytes = 0
        self._setbacks: list[str] = []

    async def open(self) -> None:
        """Open or make the log; does nothing where it is open. Raises StoreError, DiskFullError."""
        async with self._door:
            if self._writer is not None:
                return
            writer = LogWriter(self._directory, self._name, self._limits, self._synchronous, self)
            self._closing = False
            self._readers = ThreadPoolExecutor(1, thread_name_prefix="ipfs_stream_nb log of events")
            writer.start()
            try:
                await asyncio.shield(writer.opened)
            except BaseException:
                writer.stop()
                await self._end(writer)
                raise
            self._writer = writer

    async def close(self) -> None:
        """Commit what waits, end all subscriptions and both threads. Idempotent."""
        if self._writer is not None and not self._closing:
            self._closing = True
            self._writer.stop()
        async with self._door:
            if self._writer is not None:
                await self._end(self._writer)
                self._writer = None

    async def _end(self, writer: LogWriter) -> None:
        self._end_feed(EOFError())
        await asyncio.shield(writer.ended)
        writer.join()  # it has nothing left to do, and so has the other
        self._readers.shutdown()
        self._setbacks += writer.setbacks
        self._log = None

    async def publish(self, event: Event) -> int:
        """Its id, once it is committed; where this is cancelled, it may be committed all the same.

        Raises StoreError, DiskFullError, BusyError where too much waits, BadRequestError for an owner that is no text."""
        writer = self._opened()
        size = len(event.body)
        if self._waiting >= MAX_WAITING or self._waiting_bytes + size > MAX_WAITING_BYTES:
            raise BusyError(
                f"{self._waiting:,} events ({self._waiting_bytes:,} bytes) wait to be written to the log already; at "
                f"most {MAX_WAITING:,} ({MAX_WAITING_BYTES:,} bytes) may: wait for some of them"
            )
        _check(event)
        self._waiting += 1
        self._waiting_bytes += size
        pending = Pending(event, asyncio.get_running_loop().create_future())
        writer.put(pending)
        return await pending.future

    async def announce(self, event: Event) -> None:
        """Send to who is subscribed now; who is too slow goes without it."""
        self._opened()
        self._feed.announced(Record.of(event))

    def subscribe(self, since: int) -> AsyncGenerator[list[Record], None]:
        """Engine.subscribe; it ends when the log is closed. Subscribed from the first batch that is asked for."""
        self._opened()
        return self._feed.follow(max(since, 0), self._read_page)

    async def read(self, after: int, limit: int, max_bytes: int = PAGE_BYTES) -> list[Record]:
        """Engine.read."""
        return await self._read(lambda log: log.read(after, limit, max_bytes))

    async def read_back(self, before: int, limit: int, max_bytes: int = PAGE_BYTES) -> list[Record]:
        """Engine.read_back."""
        return await self._read(lambda log: log.read_back(before, limit, max_bytes))

    async def _read_page(self, after: int) -> list[Record]:
        return await self.read(after, PAGE_EVENTS)

    async def _read(self, action: Callable[[LogFile], list[Record]], *, again: bool = True) -> list[Record]:
        writer, log = self._opened(), self._log
        failure: Exception = Damaged("was closed meanwhile")
        if log is not None:
            try:
                return await asyncio.get_running_loop().run_in_executor(self._readers, action, log)
            except EOFError:
                pass  # the writer has lost it, or is at its end
            except (sqlite3.Error, Damaged) as error:
                failure, again = error, False
        if not self._closing:
            # what comes of it is known before this fails: a subscriber's EpochChangedError above all
            await asyncio.shield(writer.call(functools.partial(writer.suspect, log, failure)))
        if again:  # another log is open by now
            return await self._read(action, again=False)
        raise explain(failure, self._directory) from failure

    async def trim(self) -> None:
        """Drop from its front what is over the limits. Raises StoreError, DiskFullError."""
        writer = self._opened()
        await asyncio.shield(writer.call(writer.trim))

    async def bounds(self) -> Bounds:
        """What it holds."""
        self._opened()
        return self._bounds

    def take_setbacks(self) -> list[str]:
        """What went wrong with earlier logs since this was last asked, in the user's words: each to be told once."""
        taken, self._setbacks = self._setbacks, []
        while self._writer is not None and self._writer.setbacks:
            taken.append(self._writer.setbacks.popleft())
        return taken

    def _opened(self) -> LogWriter:
        if self._writer is None or self._closing:
            raise StoreError("the log of events is not open")
        return self._writer

    # what the writer tells, on the event loop

    @property
    def wants_records(self) -> bool:
        """Whether somebody follows the log."""
        return bool(self._feed)

    def began(self, log: LogFile, first: int, last: int) -> None:
        """Another log is open, or the same one again; it is read from now on."""
        self._log = log
        if log.epoch != self._bounds.epoch or last < self._bounds.last:
            self._end_feed(EpochChangedError(f"the log of events began anew, as {log.epoch}"))
        self._bounds = Bounds(log.epoch, first, last)
        self._feed.committed(last, None)

    def _end_feed(self, reason: Exception) -> None:
        self._feed.end(reason)
        self._feed = Feed()

    def committed(self, batch: list[Pending], first: int, records: list[Record] | None) -> None:
        """Acknowledge events, and send them."""
        last = first + len(batch) - 1
        self._bounds = Bounds(self._bounds.epoch, self._bounds.first, last)
        self._feed.committed(last, records)
        for number, pending in enumerate(batch, first):
            self._waiting_bytes -= len(pending.event.body)
            if not pending.future.done():
                pending.future.set_result(number)
        self._waiting -= len(batch)

    def failed(self, batch: list[Pending], error: IPFSStreamError) -> None:
        """Tell who waits."""
        for pending in batch:
            self._waiting_bytes -= len(pending.event.body)
            if not pending.future.done():
                pending.future.set_exception(type(error)(str(error)))  # each raises one of its own
        self._waiting -= len(batch)

    def trimmed(self, first: int) -> None:
        """The log begins later now."""
        self._bounds = Bounds(self._bounds.epoch, first, self._bounds.last)


def _check(event: Event) -> None:
    """One event that SQLite would not take must not fail those that are committed with it."""
    try:
        if event.owner is not None:
            event.owner.encode()
        float(event.timestamp)
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise BadRequestError(
            f"an event's owner is text or None, and its timestamp a number of seconds, "
            f"not {event.owner!r:.100} and {event.timestamp!r:.100}"
        ) from None
