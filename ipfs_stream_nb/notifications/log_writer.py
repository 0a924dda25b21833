"""The thread that writes the log of events: it commits what waits together, trims, and begins anew where the log is lost."""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

from ipfs_stream_nb.errors import DiskFullError, IPFSStreamError
from ipfs_stream_nb.notifications.events import Event, Record
from ipfs_stream_nb.notifications.log_file import Damaged, Limits, LogFile
from ipfs_stream_nb.notifications.log_places import Place, explain, open_log, passing, setback

BATCH_EVENTS: Final = 2000
"""Events committed together, at most."""
BATCH_BYTES: Final = 4 << 20
"""Bytes of them, at most, but for one event."""
TRIM_EVENTS: Final = 5000
"""The log is trimmed after so many events, or this part of a smaller limit:"""
TRIM_PART: Final = 4
TRIM_BYTES: Final = 16 << 20
"""The same for bytes."""
TRIM_SECONDS: Final = 60.0
"""And as often where little is written."""

_LOG: Final = logging.getLogger(__name__)


@dataclass(slots=True)
class Pending:
    """An event that waits to be committed."""

    event: Event
    future: asyncio.Future[int]


@dataclass(slots=True)
class Call:
    """Something else that is to be done by the thread, in its turn."""

    run: Callable[[], None]
    future: asyncio.Future[None]


class Listener(Protocol):
    """Who is told, on the event loop, what the thread has done."""

    @property
    def wants_records(self) -> bool:
        """Whether `committed` needs them. Read in the thread."""

    def began(self, log: LogFile, first: int, last: int) -> None:
        """A log is open: the first, another one after that was lost, or the same one again."""

    def committed(self, batch: list[Pending], first: int, records: list[Record] | None) -> None:
        """They are in the log, with ids from `first` on."""

    def failed(self, batch: list[Pending], error: IPFSStreamError) -> None:
        """They are not in the log."""

    def trimmed(self, first: int) -> None:
        """The log begins with the id `first` now."""


class LogWriter(threading.Thread):
    """Runs from `start` until `stop` or until it cannot open a log; `opened` and `ended` say when. `setbacks`: what went
    wrong with earlier logs, for the user."""

    def __init__(
        self,
        directory: Path,
        name: str,
        limits: Limits,
        synchronous: Literal["FULL", "NORMAL"],
        listener: Listener,
    ) -> None:
        super().__init__(name="ipfs_stream_nb log of events", daemon=True)
        self._directory, self._log_name, self._limits = directory, name, limits
        self._synchronous: Literal["FULL", "NORMAL"] = synchronous
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = self._loop.create_future()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self.setbacks: deque[str] = deque(maxlen=100)
        self.log: LogFile | None = None
        self._place: Place | None = None
        self._number = 0
        self._queue: queue.SimpleQueue[Pending | Call] = queue.SimpleQueue()
        self._next: deque[Pending | Call] = deque()
        self._running = True
        self._untrimmed_events = self._untrimmed_bytes = 0
        self._trim_at = 0.0

    def put(self, entry: Pending | Call) -> None:
        """Have it committed or done after all that was put before."""
        self._queue.put(entry)

    def call(self, run: Callable[[], None]) -> asyncio.Future[None]:
        """Have something done by the thread; called on the event loop."""
        future = self._loop.create_future()
        self.put(Call(run, future))
        return future

    def stop(self) -> None:
        """End the thread once all that was put before is done. Nothing may be put any more."""
        self.call(self._end)

    def _end(self) -> None:
        self._running = False

    def run(self) -> None:
        """The thread."""
        try:
            self._begin()
        except Exception as error:  # noqa: BLE001  # whatever it was, it is raised by `open`
            self._post(_fail, self.opened, error)
        else:
            self._post(_finish, self.opened)
            while self._running:
                self._step()
        self._close()
        self._post(_finish, self.ended)

    def _step(self) -> None:
        entry = self._take()
        if isinstance(entry, list):
            self._write(entry)
        elif entry is not None:
            try:
                entry.run()
            except Exception as error:  # noqa: BLE001  # it is raised to whoever asked
                self._post(_fail, entry.future, error)
            else:
                self._post(_finish, entry.future)
        limit = min(TRIM_EVENTS, self._limits.events // TRIM_PART + 1)
        if (
            self._untrimmed_events >= limit
            or self._untrimmed_bytes >= TRIM_BYTES
            or time.monotonic() >= self._trim_at
        ):
            try:
                self.trim()
            except Exception as error:  # noqa: BLE001  # the thread has to go on
                _LOG.warning("The log of events was not trimmed: %s", error)

    def _take(self) -> list[Pending] | Call | None:
        """What waits for a commit, or a call; None where nothing came until it is time to trim."""
        batch: list[Pending] = []
        size = 0
        while len(batch) < BATCH_EVENTS and size < BATCH_BYTES:
            try:
                entry = self._next.popleft() if self._next else self._wait(not batch)
            except queue.Empty:
                break
            if isinstance(entry, Call):
                if not batch:
                    return entry
                self._next.appendleft(entry)
                break
            batch.append(entry)
            size += len(entry.event.body)
        return batch or None

    def _wait(self, wait: bool) -> Pending | Call:
        return self._queue.get(wait, max(self._trim_at - time.monotonic(), 0.0) if wait else None)

    def _write(self, batch: list[Pending]) -> None:
        try:
            first = self._try(lambda log: log.append([pending.event for pending in batch]))
        except Exception as error:  # noqa: BLE001  # the thread has to go on
            if not isinstance(error, IPFSStreamError):
                _LOG.exception("Events could not be written to the log")
                error = explain(error, self._directory)
            # with what has come meanwhile: else each batch would wait in its turn for a log that is locked
            self._post(self._listener.failed, batch + self._all_waiting(), error)
            return
        self._untrimmed_events += len(batch)
        self._untrimmed_bytes += sum(len(pending.event.body) for pending in batch)
        records = None
        if self._listener.wants_records:
            records = [Record.of(pending.event, first + n) for n, pending in enumerate(batch)]
        self._post(self._listener.committed, batch, first, records)

    def _all_waiting(self) -> list[Pending]:
        """Everything that waits for a commit; calls are left."""
        while not self._queue.empty():
            self._next.append(self._queue.get())
        waiting = [entry for entry in self._next if isinstance(entry, Pending)]
        self._next = deque(entry for entry in self._next if isinstance(entry, Call))
        return waiting

    def trim(self) -> None:
        """Drop what is over the limits. Called in the thread. Raises StoreError, DiskFullError."""
        self._untrimmed_events = self._untrimmed_bytes = 0
        self._trim_at = time.monotonic() + TRIM_SECONDS
        first = self._try(self._trim)
        self._post(self._listener.trimmed, first)

    def _trim(self, log: LogFile) -> int:
        log.trim(self._limits)
        return log.first

    def suspect(self, log: LogFile | None, error: Exception) -> None:
        """Begin anew where a reader found `log` damaged and it still is the one that is open, or none is. Called in the
        thread. Raises StoreError, DiskFullError."""
        if log is not None and log is self.log and not passing(error, self._directory):
            self._set_aside(error)
        if self.log is None:
            self._begin()

    def _try(self, action: Callable[[LogFile], int]) -> int:
        """Do it with the log; once again where room could be made, or where the log was lost and another one begun."""
        for again in (True, False):
            log = self.log or self._begin()
            if log.only_reading and log.has_room():
                self._close()
                log = self._begin()
            try:
                return action(log)
            except (sqlite3.Error, OSError, Damaged) as error:
                if not passing(error, self._directory):
                    self._set_aside(error)
                    if again:
                        continue
                ours = explain(error, self._directory)
                if again and isinstance(ours, DiskFullError) and not log.only_reading:
                    self._make_room(log)
                    continue
                raise ours from error
        raise AssertionError("unreachable")

    def _make_room(self, log: LogFile) -> None:
        for step in (log.give_room, lambda: log.trim(self._limits), log.give_room):
            try:
                step()
            except (sqlite3.Error, OSError, Damaged):
                continue  # what is tried again then says what is wrong

    def _begin(self) -> LogFile:
        """Open a log, the same one as before if that is free. Raises StoreError, DiskFullError."""
        self._place, log = open_log(
            self._directory,
            self._log_name,
            synchronous=self._synchronous,
            report=self._report,
            prefer=self._number,
        )
        self._number = self._place.number
        self.log = log
        # nobody reads from it until they are told there, so that events of two epochs are not taken for one's
        self._post(self._listener.began, log, log.first, log.last)
        return log

    def _set_aside(self, error: Exception) -> None:
        """Close the log, and rename it if it still is ours. Raises StoreError."""
        place = self._place
        assert place is not None  # noqa: S101
        try:
            self._close_log()
            if place.held():
                self._report(setback(place, error, place.set_aside()))
            else:
                self._report(setback(place, error, None))
        except OSError as failure:
            raise explain(failure, self._directory) from error
        finally:
            self._close()

    def _report(self, text: str) -> None:
        _LOG.warning("%s", text)
        self.setbacks.append(text)

    def _close_log(self) -> None:
        if self.log is not None:
            log, self.log = self.log, None
            log.close()

    def _close(self) -> None:
        self._close_log()
        if self._place is not None:
            self._place.release()
            self._place = None

    def _post(self, callback: Callable[..., object], *values: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *values)
        except RuntimeError:  # the event loop was closed before the log was
            self._running = False


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _fail(future: asyncio.Future[None], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
