"""What has been: the latest events in memory, all of them in the log."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Any, Final

from ipfs_stream_nb.notifications.engine import Engine
from ipfs_stream_nb.notifications.events import Record
from ipfs_stream_nb.notifications.rights import Principal, may_see

PAGE: Final = 200
"""Records that are read from the log at once."""
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
        """The oldest ones behind an id, a page of them, and none behind `head`."""
        return [record for record in await self._read(id) if record.id <= self.head]

    async def _read(self, after: int) -> list[Record]:
        if self.recent and self.recent[0].id <= after + 1 <= self.recent[-1].id:
            skipped = after + 1 - self.recent[0].id
            return list(islice(self.recent, skipped, skipped + PAGE))
        return await self._engine.read(after, PAGE)

    async def latest(
        self, limit: int, wanted: str | None, principal: Principal | None, since: int | None
    ) -> list[Record]:
        """The newest `limit` that somebody may see, of one type where `wanted` names it; with `since` the oldest
        behind that id. As many as there is room for, in order of their ids."""

        def fits(record: Record) -> bool:
            return wanted in (None, record.notification_type) and may_see(
                principal, record.notification_type, record.owner
            )

        found: list[Record] = []
        looked = 0
        if since is not None:
            while len(found) < limit and looked < SEARCHED and (page := await self._read(since)):
                found.extend(filter(fits, page))
                looked += len(page)
                since = page[-1].id
            return _cut(found[:limit], newest=False)
        before = (await self._engine.bounds()).last + 1  # which may not have been sent on yet
        while len(found) < limit and looked < SEARCHED and (page := await self._back(before)):
            found[:0] = filter(fits, page)
            looked += len(page)
            before = page[0].id
        return _cut(found[-limit:] if limit else [], newest=True)

    async def _back(self, before: int) -> list[Record]:
        if self.recent and self.recent[0].id < before <= self.recent[-1].id + 1:
            return list(islice(self.recent, before - self.recent[0].id))
        return await self._engine.read_back(before, PAGE)

    def reset(self, first: int) -> dict[str, Any]:
        """The message that a cursor is older than the log, or is another log's."""
        return {"type": "reset", "epoch": self.epoch, "first": first}


def _cut(records: list[Record], *, newest: bool) -> list[Record]:
    """As many of the newest, or of the first ones, as one answer has room for."""
    kept: list[Record] = []
    size = 0
    for record in reversed(records) if newest else records:
        size += len(record.body)
        if kept and size > MAX_BYTES:
            break
        kept.append(record)
    return kept[::-1] if newest else kept
