"""What has been: the latest events in memory, all of them in the log."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import Any, Final

from ipfs_stream_nb.notifications.engine import PAGE_BYTES, Engine
from ipfs_stream_nb.notifications.events import Record
from ipfs_stream_nb.notifications.packs import MAX_PACK, first_of
from ipfs_stream_nb.notifications.rights import Principal, may_see
from ipfs_stream_nb.notifications.selection import readable

PAGE: Final = 500
"""Records that are read from the log at once."""
ASKING: Final = 4
"""Answers that are made at once; others wait."""
SEARCHED: Final = 100_000
"""Records that are looked at for one answer, at the most."""
MAX_BYTES: Final = 1 << 20
"""Bytes of JSON of one answer, where it has more than one record."""


class History:
    """The log as subscribers see it: up to `head`, the id up to which events have been sent on."""

    def __init__(self, engine: Engine, size: int) -> None:
        self._engine = engine
        self.epoch = ""
        self.head = 0
        self.recent: deque[Record] = deque(maxlen=size)
        """The latest of them, without a gap."""
        self._asking = asyncio.Semaphore(ASKING)

    async def begin(self, *, head: int | None = None) -> None:
        """Take the log as it is now, or from an id on: at the start, and when it began anew."""
        self.recent.clear()
        bounds = await self._engine.bounds()
        self.epoch, self.head = bounds.epoch, bounds.last if head is None else head
        self.recent.extend(await self._engine.read_back(self.head + 1, self.recent.maxlen or 0))

    def append(self, records: list[Record]) -> None:
        """Enter the next ones of the log."""
        if self.recent and records[0].id != self.recent[-1].id + 1:
            self.recent.clear()
        self.recent.extend(records)
        self.head = records[-1].id

    async def after(self, id: int) -> list[Record]:  # noqa: A002  # the protocol's word
        """The oldest ones behind an id, as many as are sent at once, and none behind `head`."""
        records = await self._read(id, MAX_PACK)
        return [record for record in first_of(records) if record.id <= self.head]

    async def _read(self, after: int, max_bytes: int) -> list[Record]:
        if self.recent and self.recent[0].id <= after + 1 <= self.recent[-1].id:
            skipped = after + 1 - self.recent[0].id
            return list(islice(self.recent, skipped, skipped + PAGE))
        return await self._engine.read(after, PAGE, max_bytes)

    async def latest(
        self, limit: int, wanted: str | None, principal: Principal | None, since: int | None
    ) -> list[dict[str, Any]]:
        """The newest `limit` that somebody may see, of one type where `wanted` names it; with `since` the oldest
        behind that id. In order of their ids, and no more than there is room for in one answer."""
        async with self._asking:
            found = Found(limit, wanted, principal)
            looked = 0
            if since is not None:
                while not found.full and looked < SEARCHED and (page := await self._read(since, PAGE_BYTES)):
                    found.take(page)
                    looked += len(page)
                    since = page[-1].id
                return found.messages
            before = (await self._engine.bounds()).last + 1  # which may not have been sent on yet
            while not found.full and looked < SEARCHED and (page := await self._back(before)):
                found.take(reversed(page))
                looked += len(page)
                before = page[0].id
            return found.messages[::-1]

    async def _back(self, before: int) -> list[Record]:
        if self.recent and self.recent[0].id < before <= self.recent[-1].id + 1:
            return list(islice(self.recent, before - self.recent[0].id))
        return await self._engine.read_back(before, PAGE)

    def reset(self, first: int) -> dict[str, Any]:
        """The message that a cursor is older than the log, or is another log's."""
        return {"type": "reset", "epoch": self.epoch, "first": first}


class Found:
    """What a search has found, no more than is asked for or than one answer has room for."""

    def __init__(self, limit: int, wanted: str | None, principal: Principal | None) -> None:
        self._limit = limit
        self._wanted = wanted
        self._principal = principal
        self._size = 0
        self.messages: list[dict[str, Any]] = []
        self.full = limit == 0

    def take(self, records: Iterable[Record]) -> None:
        """Take those that fit."""
        for record in records:
            if self.full:
                return
            if self._wanted not in (None, record.notification_type) or not may_see(
                self._principal, record.notification_type, record.owner
            ):
                continue
            message = readable(record)
            if message is None:
                continue
            self._size += len(record.body)
            if self.messages and self._size > MAX_BYTES:
                self.full = True
                return
            self.messages.append(message)
            self.full = len(self.messages) == self._limit
