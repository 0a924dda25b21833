"""Packets of one rendition, kept for the readers that are near each other, and made as they are needed.

Packets stand in chunks that begin with a key frame (of sound: at a whole second) and say where the next one begins, so that
one reader's chunks go on into another's. At the end of each row of chunks a run makes more, while a reader needs it.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from bisect import bisect_right, insort
from collections.abc import AsyncGenerator, Callable
from typing import Final

from ipfs_stream_nb.errors import IPFSStreamError
from ipfs_stream_nb.media.encoded import Aim, EncodedPacket
from ipfs_stream_nb.media.worker.chunks import ROUNDING, Chunk
from ipfs_stream_nb.media.worker.limits import WorkerLimits
from ipfs_stream_nb.media.worker.order import Order
from ipfs_stream_nb.media.worker.process import Tap
from ipfs_stream_nb.media.worker.taps import Taps

CELL_SECONDS: Final = 1.0
"""A chunk begins with the first key frame of each such stretch of the timeline, wherever one came from."""
SPLIT_BYTES: Final = 4 * 2**20
"""A chunk that grows over this ends without a key frame."""
NEAR_SECONDS: Final = 1.0
"""A position so little ahead of what is made is waited for."""
STIR_SECONDS: Final = 0.1
"""A reader says how far it is in such steps."""
FIRST_BYTES: Final = 2**20
"""Bytes that are asked for at once."""
LIVE_AHEAD_SECONDS: Final = 0.05
"""Seconds that are made ready ahead of a reader where it is encoded just in time: a change is seen so much later."""
LIVE_JOIN_SECONDS: Final = 0.5
"""Who comes into the middle of that gets a picture of his own, unless a key frame is so near: a slow link has no room for
what was before."""


class Reader:
    """Somebody who reads on from a position."""

    def __init__(self, shelf: Shelf, position: float, aim: Aim | None = None) -> None:
        self._shelf, self._time = shelf, position
        self.aim = aim
        """What the network of whoever reads carries."""
        self._stirred = -math.inf
        self._waiting: asyncio.Future[None] | None = None
        self._run: Run | None = None
        self._closed = False

    def close(self) -> None:
        """End it: what iterates gets no more."""
        self._closed = True
        self.wake()

    def wake(self) -> None:
        """There is something new."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def packets(self) -> AsyncGenerator[EncodedPacket, None]:
        """The packets from the position on. Raises what making them raised."""
        chunk, place = self._shelf.find(self._time)
        self._shelf.enter(chunk)
        self._shelf.readers += 1
        try:
            while not self._closed:
                if place < len(chunk.packets):
                    packet = chunk.packets[place]
                    place += 1
                    self._time = packet.time
                    if packet.time - self._stirred >= self._shelf.stir_seconds:
                        self._stirred = packet.time
                        self._ask(self._shelf.stir(chunk, place, self._time))
                    yield packet
                elif chunk.end is None:
                    await self._wait(chunk, place)
                elif chunk.end == math.inf:
                    return
                else:
                    following = self._shelf.following(chunk)
                    self._shelf.enter(following)
                    self._shelf.leave(chunk)
                    chunk, place = following, 0
        finally:
            self._shelf.readers -= 1
            self._shelf.leave(chunk)
            self._ask(None)

    async def _wait(self, chunk: Chunk, place: int) -> None:
        self._waiting = asyncio.get_running_loop().create_future()
        run = chunk.run
        assert run is not None  # noqa: S101 - a chunk that is not whole has one
        run.waiting.add(self)
        try:
            self._ask(self._shelf.stir(chunk, place, self._time))
            if run.error is None:
                await self._waiting
        finally:
            self._waiting = None
            run.waiting.discard(self)
        if run.error is not None and place >= len(chunk.packets) and chunk.end is None:
            raise run.error

    def _ask(self, run: Run | None) -> None:
        """Need this run from now on, and no other."""
        if run is not self._run:
            if self._run is not None:
                self._run.leave(self)
            if run is not None:
                run.asking.add(self)
            self._run = run


class Run:
    """Makes the packets of one row of chunks, as far as they are asked for."""

    def __init__(self, shelf: Shelf, order: Order) -> None:
        self.order = order
        """Where to go on if its tap was closed."""
        self.tail = Chunk(order.position, self)
        self.waiting: set[Reader] = set()
        """Those that wait for the next packet,"""
        self.asking: set[Reader] = set()
        """and all that need what it makes."""
        self.error: IPFSStreamError | None = None
        self.tap: Tap | None = None
        self.task: asyncio.Task[None] | None = None
        self.merged = False
        """Whether another run has made what would come next."""
        self._shelf = shelf
        self._until, self._budget = 0.0, 0

    def ask(self, until: float, budget: int) -> None:
        """Go on until a time, for at most so many bytes from now on."""
        self._until, self._budget = max(self._until, until), budget
        if self.task is None and self._wanted:
            self.task = asyncio.create_task(self._make())
            self.task.add_done_callback(self._made)  # it runs also after a cancellation before the first step

    def leave(self, reader: Reader) -> None:
        """One less needs it. What nobody needs is stopped, for it may be waiting for far bytes."""
        self.asking.discard(reader)
        if not self.asking and self.task is not None:
            self.task.cancel()

    def put(self, packets: list[EncodedPacket]) -> None:
        """Packets from the worker."""
        if not self.merged:
            for packet in packets:
                self._budget -= len(packet.data)
                if not self._shelf.put(self, packet):
                    self.merged = True
                    break
        self.wake()

    def wake(self) -> None:
        """Let the readers look."""
        for reader in self.waiting:
            reader.wake()

    @property
    def _aim(self) -> Aim | None:
        """What all who need it can receive."""
        aims = [reader.aim for reader in self.asking if reader.aim is not None]
        return min(aims, key=lambda aim: aim.bitrate, default=None)

    @property
    def _wanted(self) -> bool:
        return (
            not self.merged
            and self.error is None
            and self._budget > 0
            and (not self.tail.packets or self.tail.packets[-1].time < self._until)
        )

    async def _make(self) -> None:
        try:
            while self._wanted:
                tap = await self._shelf.taps.of(self)
                damaged = tap.damaged
                try:
                    more = await tap.more(self._until, max(1, min(self._budget, FIRST_BYTES)), self._aim)
                finally:
                    self._shelf.damaged += tap.damaged - damaged
                if not more and not self.merged:
                    self._shelf.end(self)
                    self.merged = True
                if self._shelf.taps.waiting:
                    break  # another one's turn; readers who still need more ask again
        except IPFSStreamError as error:
            self.error = error
            self._shelf.drop(self.tail)

    def _made(self, task: asyncio.Task[None]) -> None:
        self.task = None
        if self.merged or self.error is not None or task.cancelled():
            self._shelf.taps.close(self)
        self._shelf.taps.free()
        self.wake()


class Shelf:
    """The packets of one rendition."""

    def __init__(
        self, order: Callable[[float, bool], Order], taps: Taps, limits: WorkerLimits, *, live: bool = False
    ) -> None:
        """`order(position, after)`: what to ask the worker for; `live`: encoded just in time, as the readers' aims allow."""
        self.taps = taps
        self.live = live
        self.stir_seconds = 0.0 if live else STIR_SECONDS
        self._ahead_seconds = LIVE_AHEAD_SECONDS if live else limits.read_ahead_seconds
        self.readers = 0
        """Those that are reading."""
        self.damaged = 0
        """Packets and frames of the file that could not be decoded, each time it was tried."""
        self._order, self._limits = order, limits
        self._chunks: dict[float, Chunk] = {}
        self._starts: list[float] = []
        self._unborn: list[Chunk] = []
        self._clock = itertools.count(1)
        self._cost = 0

    def find(self, position: float) -> tuple[Chunk, int]:
        """The chunk and the place in it to begin at; of a new run if there is none."""
        at = bisect_right(self._starts, position + ROUNDING)
        for index in (at - 1, at):
            if 0 <= index < len(self._starts) and self._holds(
                chunk := self._chunks[self._starts[index]], position
            ):
                joinable = self._joinable(chunk, index)
                if joinable is not None:
                    place = joinable.place(position)
                    if not self.live or position - joinable.packets[place].time <= LIVE_JOIN_SECONDS:
                        return joinable, place
        for chunk in self._unborn:
            order = chunk.run and chunk.run.order
            if order and not order.after and 0 <= position - chunk.asked <= NEAR_SECONDS:
                return chunk, 0
        return self._begin(position, after=False), 0

    def enter(self, chunk: Chunk) -> None:
        """Somebody reads this now."""
        chunk.readers += 1
        chunk.used = next(self._clock)

    def following(self, chunk: Chunk) -> Chunk:
        """The chunk behind one that has ended."""
        known = self._chunks.get(chunk.end if chunk.end is not None else math.nan)
        if known is not None:
            return known
        last = chunk.packets[-1].time if chunk.packets else chunk.asked
        for unborn in self._unborn:
            if unborn.run and unborn.run.order.after and unborn.asked == last:
                return unborn
        return self._begin(last, after=True)

    def leave(self, chunk: Chunk) -> None:
        """Somebody has read it."""
        chunk.readers -= 1
        if chunk in self._unborn and not chunk.readers:
            self._unborn.remove(chunk)

    def stir(self, chunk: Chunk, place: int, time: float) -> Run | None:
        """A reader is at this place: have enough made ahead of it. The run that is to do so, if there is one."""
        until = time + self._ahead_seconds
        ahead = chunk.sizes[-1] - chunk.sizes[min(place, len(chunk.packets))]
        current: Chunk | None = chunk
        while current is not None and current.end is not None and current.end < until:
            current = self._chunks.get(current.end)
            ahead += current.sizes[-1] if current is not None else 0
        if current is not None and current.end is None and current.run is not None:
            current.run.ask(until, self._limits.read_ahead_bytes - ahead)
            return current.run
        return None

    def put(self, run: Run, packet: EncodedPacket) -> bool:
        """Add a packet of a run; False if another run has made it and what follows already."""
        tail = run.tail
        if not tail.packets:
            tail.add(packet)
            self._register(tail)
        else:
            new_cell = packet.keyframe and packet.time // CELL_SECONDS > tail.start // CELL_SECONDS
            if packet.time > tail.start and (new_cell or tail.sizes[-1] > SPLIT_BYTES):
                tail.end, tail.run = packet.time, None
                if packet.time in self._chunks:
                    return False
                run.tail = tail = Chunk(packet.time, run)
                tail.add(packet)
                self._register(tail)
            else:
                before = tail.cost
                tail.add(packet)
                self._cost += tail.cost - before if self._chunks.get(tail.start) is tail else 0
        run.order = self._order(packet.time, True)
        return True

    def end(self, run: Run) -> None:
        """There are no more packets."""
        run.tail.end, run.tail.run = math.inf, None
        if run.tail in self._unborn:
            self._unborn.remove(run.tail)

    def drop(self, chunk: Chunk) -> None:
        """Take a chunk away; who reads it keeps it."""
        if chunk in self._unborn:
            self._unborn.remove(chunk)
        if self._chunks.get(chunk.start) is chunk:
            del self._chunks[chunk.start]
            self._starts.remove(chunk.start)
            self._cost -= chunk.cost
        if chunk.run is not None and chunk.run.task is None:
            self.taps.close(chunk.run)

    async def close(self) -> None:
        """End all that is being made."""
        runs = {chunk.run for chunk in (*self._chunks.values(), *self._unborn) if chunk.run is not None}
        tasks = [run.task for run in runs if run.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._chunks.clear()
        self._starts.clear()
        self._unborn.clear()

    def _holds(self, chunk: Chunk, position: float) -> bool:
        if min(chunk.asked, chunk.start) > position + ROUNDING:
            return False
        if chunk.end is not None:
            return position < chunk.end
        return position <= chunk.packets[-1].time + NEAR_SECONDS

    def _joinable(self, chunk: Chunk, index: int) -> Chunk | None:
        """The chunk with the key frame that this one is decoded from, if it is there."""
        while not chunk.joinable:
            index -= 1
            if index < 0 or self._chunks[self._starts[index]].end != chunk.start:
                return None
            chunk = self._chunks[self._starts[index]]
        return chunk

    def _begin(self, position: float, *, after: bool) -> Chunk:
        chunk = Run(self, self._order(position, after)).tail
        self._unborn.append(chunk)
        return chunk

    def _register(self, chunk: Chunk) -> None:
        if chunk in self._unborn:
            self._unborn.remove(chunk)
        chunk.used = next(self._clock)
        old = self._chunks.get(chunk.start)
        if old is not None:
            self._cost -= old.cost
        else:
            insort(self._starts, chunk.start)
        self._chunks[chunk.start] = chunk
        self._cost += chunk.cost
        while self._cost > self._limits.cache_bytes:
            idle = [one for one in self._chunks.values() if not one.readers and one is not chunk]
            idle = [one for one in idle if one.run is None or one.run.task is None]
            if not idle:
                return
            self.drop(min(idle, key=lambda one: one.used))
