"""Who follows the log of events: what is committed goes to each at once, and is read again where one is slow."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final

from ipfs_stream_nb.errors import StoreError
from ipfs_stream_nb.notifications.events import Record

LIVE_EVENTS: Final = 4096
"""Events that wait for one subscriber; where it would be more, they are dropped, and read from the log later on."""
LIVE_BYTES: Final = 4 << 20
"""The same for their bytes."""

Read = Callable[[int], Awaitable[list[Record]]]
"""Reads a page after an id; it is empty where nothing comes after it."""


class Subscriber:
    """What waits for one who follows the log."""

    def __init__(self) -> None:
        self.batches: deque[list[Record]] = deque()
        self.wake = asyncio.Event()
        self.over: Exception | None = None
        """Why it ends. EOFError: the log was closed."""
        self._events = self._bytes = 0

    def offer(self, batch: list[Record], *, kept: bool) -> None:
        """Take a batch, or drop what waits, or the batch where the log does not keep it."""
        size = sum(len(record.body) for record in batch)
        if self._events + len(batch) > LIVE_EVENTS or self._bytes + size > LIVE_BYTES:
            if kept:
                self.batches.clear()
                self._events = self._bytes = 0
                self.wake.set()
            return
        self.batches.append(batch)
        self._events += len(batch)
        self._bytes += size
        self.wake.set()

    def take(self) -> list[Record]:
        """The first batch."""
        batch = self.batches.popleft()
        self._events -= len(batch)
        self._bytes -= sum(len(record.body) for record in batch)
        return batch


class Feed:
    """All who follow one log."""

    def __init__(self) -> None:
        self._subscribers: set[Subscriber] = set()
        self.last = 0
        """The newest id that is committed."""

    def __bool__(self) -> bool:
        return bool(self._subscribers)

    def committed(self, last: int, records: list[Record] | None) -> None:
        """The log goes on to the id `last`. Without records, they are read from it."""
        self.last = last
        for subscriber in self._subscribers:
            if records is None:
                subscriber.wake.set()
            else:
                subscriber.offer(records, kept=True)

    def announced(self, record: Record) -> None:
        """Send what the log does not keep."""
        for subscriber in self._subscribers:
            subscriber.offer([record], kept=False)

    def end(self, reason: Exception) -> None:
        """End all subscriptions."""
        for subscriber in self._subscribers:
            subscriber.over = reason
            subscriber.wake.set()

    async def follow(self, since: int, read: Read) -> AsyncGenerator[list[Record], None]:
        """All after the id `since`, as Engine.subscribe. Subscribed from the first batch that is asked for."""
        subscriber = Subscriber()
        self._subscribers.add(subscriber)
        try:
            while subscriber.over is None:
                batches, last = subscriber.batches, self.last
                if batches and batches[0][0].id <= since + 1:  # 0 is not kept, and need not wait for what is
                    batch = [record for record in subscriber.take() if record.id > since or not record.id]
                elif since < last:
                    batch = await self._read(subscriber, since, read)
                    since = since if batch else last  # all that was there has been trimmed
                else:
                    subscriber.wake.clear()
                    await subscriber.wake.wait()
                    continue
                if batch and subscriber.over is None:
                    since = max(since, batch[-1].id)
                    yield batch
            if not isinstance(subscriber.over, EOFError):
                raise subscriber.over
        finally:
            self._subscribers.discard(subscriber)

    async def _read(self, subscriber: Subscriber, since: int, read: Read) -> list[Record]:
        try:
            return await read(since)
        except StoreError:
            if subscriber.over is None:
                raise
            return []  # the log that it follows is no more
