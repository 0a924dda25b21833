"""Read-ahead made for media: next to nothing before the first frame or after a seek, more as playback goes on.

A player reads a file's head, then its index, which may be at the end, then somewhere in the middle: whoever reads
far ahead from each of these places delays the first frame and fetches what nobody wants. Somebody who has read on
for some MiB will go on, though, and is then served by one long answer in place of many requests.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from cachetools import LRUCache

from ipfs_stream_nb.content.cid import CID, RAW
from ipfs_stream_nb.content.links import links_of
from ipfs_stream_nb.content.reader import Branch, DagNode, DagReader
from ipfs_stream_nb.content.retrieval.provider import as_ours
from ipfs_stream_nb.content.retrieval.source import FetchingSource
from ipfs_stream_nb.errors import IPFSStreamError, RetrievalError

if TYPE_CHECKING:
    from ipfs_stream_nb.content.retrieval.retriever import Fetched

KIB: Final = 1024
MIB: Final = 1024 * KIB
WINDOW: Final = ((8 * MIB, 8), (2 * MIB, 4), (512 * KIB, 2), (0, 1))
"""How many blocks are fetched at once after so many bytes in a row."""
SMALL_RANGE: Final = MIB
"""A range that was asked for with its end, and has no more bytes than this, is fetched SMALL_WINDOW blocks at once:
all of it is wanted."""
SMALL_WINDOW: Final = 4
RUN_AFTER: Final = 4 * MIB
"""After so many bytes in a row the next ones are asked for as one run (a CAR), where the provider has those."""
RUN_BYTES: Final = 64 * MIB
"""Bytes of the file that one run asks for."""
RUN_AHEAD: Final = 8 * MIB
"""How far a run may be ahead of its reader; it then waits, and its provider with it."""
RUN_ATTEMPTS: Final = 3
"""Runs that may break off in one read, until it goes on block by block."""
RUN_AGAIN: Final = 64 * MIB
"""After a run that a reader waited for in vain, the next one begins so many bytes later."""
SECTION_BYTES: Final = 64
"""What a block of a run counts for beside its own bytes: the smallest ones are work, too."""
REPEATS: Final = 64
"""Blocks that a run may send again, though it was asked for each of them once."""
BLOCKS_PER_TURN: Final = 16
"""Blocks of a run after which the event loop gets its turn."""
AHEAD_AFTER: Final = 2 * MIB
"""A reader that takes a file in many short ranges, as PyAV does, has the next ones fetched after so many bytes."""
AHEAD_BYTES: Final = 8 * MIB
"""At most so many of them: half of what it has read in a row."""
PLACES: Final = 256
"""Places in files where somebody stopped reading that are remembered."""

_log = logging.getLogger("ipfs_stream_nb.retrieval")


@dataclass(slots=True)
class _Place:
    """Where a read ended, and what is known of the reader by then."""

    run_bytes: int = 0
    """Bytes that were read in a row up to there."""
    ahead_to: int = 0
    """Up to where it is being fetched already."""
    prefetch: asyncio.Task[bool] | None = None
    """Gives whether anything had to be fetched."""


class ReadAhead:
    """The places in files where readers are, and what is being fetched ahead of them."""

    def __init__(self, source: FetchingSource, reader: DagReader) -> None:
        self.source = source
        self.reader = reader
        self._places: LRUCache[tuple[CID, int], _Place] = LRUCache(PLACES)
        self._latest: LRUCache[CID, _Place] = LRUCache(PLACES)
        self._tasks: set[asyncio.Task[bool]] = set()

    def begin(self, cid: CID, size: int, offset: int, stop: int, *, open_ended: bool) -> Reading:
        """Somebody reads bytes `offset` to `stop`: going on from a place that is known, or after a seek."""
        place = self._places.pop((cid, offset), None)
        if place is None:
            place = _Place()
            latest = self._latest.pop(cid, None)
            if latest is not None and latest.prefetch is not None:
                latest.prefetch.cancel()
        return Reading(self, cid, size, place, offset=offset, stop=stop, open_ended=open_ended)

    def ended(self, cid: CID, size: int, position: int, place: _Place, *, fetched: bool) -> None:
        """A read came to its end: remember the place, and fetch on from there."""
        self._places[cid, position] = self._latest[cid] = place
        last = place.prefetch
        if last is not None and (not last.done() or last.cancelled()):
            return
        wanted = min(AHEAD_BYTES, place.run_bytes // 2)
        start, stop = max(position, place.ahead_to), min(size, position + wanted)
        going_on = fetched or (last is not None and last.exception() is None and last.result())
        if going_on and place.run_bytes >= AHEAD_AFTER and stop - start >= min(wanted // 2, size - start) > 0:
            place.ahead_to = stop
            work = self._prefetch(cid, size, start, stop)
            place.prefetch = asyncio.create_task(work, name=f"read ahead in {cid}")
            self._tasks.add(place.prefetch)
            place.prefetch.add_done_callback(self._tasks.discard)

    async def _prefetch(self, cid: CID, size: int, start: int, stop: int) -> bool:
        fetched = False

        async def leaf(branch: Branch) -> bytes:
            nonlocal fetched
            if not await self.source.has(branch.cid):
                fetched = True
                await self.source.fetch(branch.cid)
            return b""

        walk = self.reader.walk(cid, size, start, stop, leaf, window=lambda: SMALL_WINDOW)
        with suppress(IPFSStreamError):  # whoever reads on meets it again
            async with aclosing(walk):
                async for _ in walk:
                    pass
        return fetched

    async def close(self) -> None:
        """End what is being fetched. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Reading:
    """One read of a file; a context manager around a walk that takes `window` and `leaf` from here."""

    def __init__(
        self,
        ahead: ReadAhead,
        cid: CID,
        size: int,
        place: _Place,
        *,
        offset: int,
        stop: int,
        open_ended: bool,
    ) -> None:
        self.cid = cid
        self.position = offset
        """Where the reader is in the file."""
        self.provider: str | None = None
        """Who gave the last block; None where it was here."""
        self._ahead = ahead
        self._size = size
        self._place = place
        self._stop = stop
        self._small = not open_ended and stop - offset <= SMALL_RANGE
        self._run: _Run | None = None
        self._runs_left = RUN_ATTEMPTS
        self._run_from = 0
        self._leaf_bytes = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._run is not None:
            await self._run.close()
        if self.position >= self._stop:
            fetched = self.provider is not None
            self._ahead.ended(self.cid, self._size, self.position, self._place, fetched=fetched)

    def window(self) -> int:
        """How many blocks may be under way."""
        if self._small:
            return SMALL_WINDOW
        return next(blocks for after, blocks in WINDOW if self._place.run_bytes >= after)

    async def leaf(self, branch: Branch) -> bytes | DagNode:
        """The wanted bytes of a leaf (see DagReader.leaf)."""
        self._leaf_bytes = branch.size
        return await self._ahead.reader.leaf(branch, self._get)

    async def _get(self, cid: CID, start: int, stop: int) -> bytes:
        source = self._ahead.source
        data = await source.get_local(cid, start, stop)
        if data is not None:
            self.provider = None
        elif self._run is not None and await self._run.arrival(cid):
            data = await source.get_local(cid, start, stop)
        if data is None:
            fetched = await source.fetch(cid)
            self.provider = fetched.provider
            data = fetched.data[start:stop]
        return data

    async def delivered(self, size: int) -> None:
        """The reader has taken so many bytes more."""
        self.position += size
        self._place.run_bytes += size
        if self._run is not None:
            self._run.advance(self.position)
            if self._run.failed:
                self._runs_left -= 1
            if self._run.in_vain:
                self._run_from = self.position + RUN_AGAIN
            if self._run.failed or self.position >= self._run.stop:
                await self._run.close()
                self._run = None
        if self._run is None and self.provider and self._may_run():
            start = self.position + self.window() * self._leaf_bytes  # the blocks before it are under way
            if self._stop - start >= RUN_AFTER:
                stop = min(self._stop, start + RUN_BYTES)
                self._run = _Run(self._ahead.source, self.cid, start, stop, self.provider)

    def _may_run(self) -> bool:
        return self._runs_left > 0 and self._place.run_bytes >= RUN_AFTER and self.position >= self._run_from


class _Run:
    """One long answer: the blocks of bytes `start` to `stop` go to the keeper as they come."""

    def __init__(self, source: FetchingSource, cid: CID, start: int, stop: int, provider: str) -> None:
        self.stop = stop
        self.failed = False
        self.in_vain = False
        """Whether it failed because somebody waited for a block, and nothing came."""
        self._source = source
        self._start = start
        self._expected: dict[bytes, bool] = {}
        """The multihashes of all that may come, and whether it is still to come."""
        self._came = 0
        """Blocks that were new."""
        self._repeats = 0
        self._received = 0
        self._position = start
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._paused = False
        self._task = asyncio.create_task(self._receive(cid, provider), name=f"run of {cid}")

    async def _receive(self, cid: CID, provider: str) -> None:
        blocks = self._source.retriever.run(cid, self._start, self.stop, provider=provider)
        self._expected[cid.multihash] = True
        sections = 0
        try:
            async with aclosing(blocks):
                async for fetched in blocks:
                    sections += 1
                    if sections % BLOCKS_PER_TURN == 0:
                        await asyncio.sleep(0)
                    if self._is_new(fetched):
                        await self._take(fetched)
                        await self._wait_for_reader()
        except Exception as error:  # noqa: BLE001  # logged where it is none of ours
            _log.debug("the run of %s ended: %s", cid, as_ours(error, f"the run of {cid}"))
            self.failed = True  # the blocks that did not come are asked for one by one
        finally:
            self._paused = True
            self._tell()

    def _is_new(self, fetched: Fetched) -> bool:
        """Whether it is wanted and was not there before. Raises RetrievalError where the run is no good."""
        to_come = self._expected.get(fetched.cid.multihash)
        if to_come is None:  # what nobody asked for is not kept, right as it may be
            raise RetrievalError(f"{fetched.cid} was sent, and nobody asked for it")
        self._received += SECTION_BYTES
        self._repeats += not to_come
        if self._repeats > REPEATS:
            raise RetrievalError("the same blocks were sent again and again")
        return to_come

    async def _take(self, fetched: Fetched) -> None:
        self._expected[fetched.cid.multihash] = False
        for link in await _linked(fetched):
            self._expected.setdefault(link, True)
        await self._source.keeper.keep(fetched)
        self._received += len(fetched.data)
        self._came += 1
        self._tell()

    async def _wait_for_reader(self) -> None:
        while self._start + self._received - self._position > RUN_AHEAD:
            self._paused = True
            self._tell()
            self._room.clear()
            await self._room.wait()
        self._paused = False

    def advance(self, position: int) -> None:
        """The reader has come so far."""
        self._position = max(self._position, position)
        self._room.set()

    async def arrival(self, cid: CID) -> bool:
        """Wait for a block; False where it does not come with this run, or not soon."""
        before = self._came
        with suppress(TimeoutError):
            async with asyncio.timeout(self._source.retriever.settings.hedge_after):
                while self._source.keeper.get(cid) is None:
                    if self._paused or self.failed:
                        return False
                    await self._news.wait()
                return True
        if self._came == before:  # neither that block nor any other
            self.failed = self.in_vain = True
            self._tell()
        return False

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def close(self) -> None:
        """End it. Idempotent."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def _linked(block: Fetched) -> list[bytes]:
    """The multihashes that a block links to."""
    if block.cid.codec == RAW:
        return []
    links = await asyncio.to_thread(links_of, block.cid, block.data)
    return [link.multihash for link in links]
