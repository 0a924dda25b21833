"""Who uses which worker: one for each content that is being played, a spare one, and no more than there may be."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any, Final, cast

from ipfs_stream_nb.content.node import Node, Path
from ipfs_stream_nb.errors import (
    BadRequestError,
    BusyError,
    IPFSStreamError,
    IsDirectoryError,
    RetrievalError,
    UnsupportedMediaError,
)
from ipfs_stream_nb.media.encoded import MAX_BITRATE, Aim, EncodedInfo, EncodedPacket, Rendition, TrackKind
from ipfs_stream_nb.media.worker.limits import DEFAULT_WORKER_LIMITS, WorkerLimits
from ipfs_stream_nb.media.worker.order import Order
from ipfs_stream_nb.media.worker.process import ReadAt, Worker
from ipfs_stream_nb.media.worker.shelf import Reader, Shelf
from ipfs_stream_nb.media.worker.taps import Taps

MAX_RENDITIONS: Final = 6
"""Renditions of a content's video at once."""
SPARE_DELAY: Final = 1.0
"""Seconds after an opening until the next spare worker starts, so that it does not delay the first picture."""
MIN_HEIGHT, MIN_BITRATE = 16, 10_000

_Key = tuple[int, str]


class WorkerPool:
    """Opens contents in workers. Belongs to one event loop."""

    def __init__(self, limits: WorkerLimits = DEFAULT_WORKER_LIMITS) -> None:
        self.limits = limits
        self._spare: asyncio.Task[Worker] | None = None
        self._shared: dict[_Key, _Shared] = {}
        self.opened: set[_Shared] = set()
        """Those in use, also after they have failed and made room for others."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    async def warm(self) -> None:
        """Wait until a spare worker stands ready. Raises RetrievalError where none can be started."""
        self._make_spare()
        await asyncio.shield(cast("asyncio.Task[Worker]", self._spare))

    async def open(self, node: Node, path: Path) -> WorkerSource:
        """Open a media file. Whoever opens the same content at the same time shares its worker.

        Raises BusyError, IsDirectoryError, what `node.stat` raises, UnsupportedMediaError for what is not media,
        CorruptContentError for damaged media and for what its worker failed on, RetrievalError.
        """
        fixed = await node.fixed(path)
        stat = await node.stat(fixed)
        if stat.kind == "directory":
            raise IsDirectoryError(f"{path} is a directory: expected a video or audio file.")
        if stat.kind != "file" or not stat.size:
            raise UnsupportedMediaError(
                f"{path} is {'empty' if not stat.size else 'no file'}: expected media."
            )
        if self._closed:
            raise RetrievalError("The media workers are closed.")
        key = (id(node), str(stat.cid))
        shared = self._shared.get(key)
        if shared is None:
            await self._make_room()
            shared = self._shared.get(key)  # somebody else may have been quicker
        if shared is None:
            shared = self._shared[key] = _Shared(self, key, partial(node.read, fixed), stat.size)
        return await shared.join()

    async def close(self) -> None:
        """End all workers and their readers. Idempotent."""
        self._closed = True
        for shared in list(self.opened):
            await shared.close()
        if self._spare is not None:
            spare, self._spare = self._spare, None
            await _end_spare(spare)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def take(self) -> Worker:
        """A worker that is ready."""
        while True:
            self._make_spare()
            spare, self._spare = cast("asyncio.Task[Worker]", self._spare), None
            try:
                worker = await asyncio.shield(spare)
            except asyncio.CancelledError:
                self.spawn(_end_spare(spare))
                raise
            if worker.error is None:
                break
            await worker.close()  # it ended while it stood by
        if self.limits.spare and not self._closed:
            self.spawn(self._spare_later())
        return worker

    def forget(self, key: _Key, shared: _Shared) -> None:
        """A content is closed, or its worker has ended: who opens it next gets another one."""
        if self._shared.get(key) is shared:
            del self._shared[key]

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task that is ended with the pool."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _make_spare(self) -> None:
        if self._closed:
            raise RetrievalError("The media workers are closed.")
        if self._spare is None:
            self._spare = asyncio.create_task(_started(self.limits))
            self._spare.add_done_callback(self._spare_started)

    def _spare_started(self, spare: asyncio.Task[Worker]) -> None:
        if spare is self._spare and not spare.cancelled() and spare.exception() is not None:
            self._spare = None  # who needs one tries again, and is told

    async def _spare_later(self) -> None:
        await asyncio.sleep(SPARE_DELAY)
        self._make_spare()

    async def _make_room(self) -> None:
        """Close a worker that nobody uses where there are too many. Raises BusyError."""
        while len(self._shared) >= self.limits.workers:
            idle = next((one for one in self._shared.values() if not one.users), None)
            if idle is None:
                raise BusyError(
                    f"{self.limits.workers} contents are being played, the limit: try again later.",
                    retry_after=self.limits.linger_seconds,
                )
            await idle.close()


async def _started(limits: WorkerLimits) -> Worker:
    worker = await Worker.start(limits)
    try:
        await worker.ready()
    except BaseException:
        await worker.close()
        raise
    return worker


async def _end_spare(spare: asyncio.Task[Worker]) -> None:
    spare.cancel()
    try:
        worker = await spare
    except (asyncio.CancelledError, IPFSStreamError):
        return
    await worker.close()


class _Shared:
    """One content in its worker, for all who have opened it."""

    def __init__(self, pool: WorkerPool, key: _Key, read_at: ReadAt, size: int) -> None:
        self.users: set[WorkerSource] = set()
        self._joining = 0
        self._pool, self._key = pool, key
        self._worker: Worker | None = None
        self._taps: Taps | None = None
        self._shelves: dict[tuple[TrackKind, int | None, int | None, bool], Shelf] = {}
        self._closing: asyncio.Task[None] | None = None
        self._lingering: asyncio.Task[Any] | None = None
        self._opening = asyncio.create_task(self._open(read_at, size))
        pool.opened.add(self)

    async def join(self) -> WorkerSource:
        """One more user."""
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        self._joining += 1
        try:
            info = await asyncio.shield(self._opening)
        except BaseException:
            self._joining -= 1
            if not self._joining and not self.users:
                await self.close()
            raise
        self._joining -= 1
        source = WorkerSource(self, info)
        self.users.add(source)
        return source

    def leave(self, source: WorkerSource) -> None:
        """One user less."""
        self.users.discard(source)
        if not self.users and not self._joining and self._closing is None and self._lingering is None:
            self._lingering = self._pool.spawn(self._linger())

    @property
    def damaged(self) -> int:
        """Packets and frames of the file that could not be decoded."""
        return sum(shelf.damaged for shelf in self._shelves.values())

    @property
    def pid(self) -> int | None:
        """Of the worker."""
        return self._worker.pid if self._worker is not None else None

    async def shelf(self, kind: TrackKind, height: int | None, bitrate: int | None, *, live: bool) -> Shelf:
        """The packets of a rendition; `live`: encoded just in time. Raises BusyError where too many are being read, and what ended the worker."""
        if self._worker is None or self._taps is None or self._closing is not None:
            raise RetrievalError("The source is closed.")
        if self._worker.error is not None:
            raise self._worker.error
        key = (kind, height, bitrate, live)
        shelf = self._shelves.pop(key, None)
        if shelf is None:
            videos = [one for one in self._shelves if one[0] == "video"]
            if kind == "video" and len(videos) >= MAX_RENDITIONS:
                idle = next((one for one in videos if not self._shelves[one].readers), None)
                if idle is None:
                    raise BusyError(
                        f"{MAX_RENDITIONS} renditions of this content are being played, the limit."
                    )
                await self._shelves.pop(idle).close()
            aim = Aim(bitrate or MAX_BITRATE) if live else None
            order = partial(_at, Order(kind, 0.0, False, height, bitrate, aim))
            shelf = Shelf(order, self._taps, self._pool.limits, live=live)
        self._shelves[key] = shelf  # last of all: the most recently used
        return shelf

    async def close(self) -> None:
        """End the worker and all readers."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _open(self, read_at: ReadAt, size: int) -> EncodedInfo:
        self._worker = await self._pool.take()
        self._taps = Taps(self._worker, self._pool.limits.cursors)
        self._pool.spawn(self._bury(self._worker))
        return await self._worker.open(read_at, size)

    async def _bury(self, worker: Worker) -> None:
        await worker.ended.wait()
        self._pool.forget(self._key, self)
        await worker.close()

    async def _linger(self) -> None:
        await asyncio.sleep(self._pool.limits.linger_seconds)
        if not self.users and not self._joining:
            self._lingering = None
            await self.close()

    async def _close(self) -> None:
        self._pool.forget(self._key, self)
        for source in list(self.users):
            source.end()
        self._opening.cancel()
        await asyncio.gather(self._opening, return_exceptions=True)
        if self._lingering is not None:
            self._lingering.cancel()
        for shelf in self._shelves.values():
            await shelf.close()
        if self._worker is not None:
            await self._worker.close()
        self._pool.opened.discard(self)


def _at(order: Order, position: float, after: bool) -> Order:
    return replace(order, position=position, after=after)


class WorkerSource:
    """A content that is open in a worker: an `encoded.EncodedSource`."""

    def __init__(self, shared: _Shared, info: EncodedInfo) -> None:
        self._shared, self._info = shared, info
        self._readers: set[Reader] = set()
        self._closed = False

    @property
    def info(self) -> EncodedInfo:
        """What it has."""
        return self._info

    @property
    def damaged(self) -> int:
        """Packets and frames of the file that could not be decoded and were left out, for all who play it."""
        return self._shared.damaged

    @property
    def worker_pid(self) -> int | None:
        """The process that works on it."""
        return self._shared.pid

    async def packets(
        self,
        kind: TrackKind,
        position: float = 0.0,
        rendition: Rendition | None = None,
        aim: Aim | None = None,
    ) -> AsyncGenerator[EncodedPacket, None]:
        """As EncodedSource.packets. Video that is transcoded begins with the frame that is on at `position`; what is passed
        through with the key frame before it, or with one of another reader not long before it."""
        if not (math.isfinite(position) and position >= 0):
            raise BadRequestError(f"position={position!r}: expected seconds, from 0.")
        if self._closed:
            raise RetrievalError("The source is closed.")
        live = aim is not None and kind == "video"
        shelf = await self._shared.shelf(kind, *self._wanted(kind, rendition), live=live)
        reader = Reader(shelf, position, aim)
        self._readers.add(reader)
        try:
            async with aclosing(reader.packets()) as packets:
                async for packet in packets:
                    yield packet
        finally:
            self._readers.discard(reader)

    async def close(self) -> None:
        """End it and all its readers. Idempotent; the worker stays for some seconds, for who comes next."""
        self.end()
        self._shared.leave(self)

    def end(self) -> None:
        """End all readers."""
        self._closed = True
        for reader in list(self._readers):
            reader.close()

    def _wanted(self, kind: TrackKind, rendition: Rendition | None) -> tuple[int | None, int | None]:
        """Height and bit rate, None where the source's own will do."""
        track = {"video": self._info.video, "audio": self._info.audio}.get(kind)
        if track is None:
            raise BadRequestError(f"The content has no {kind!s}.")
        if kind == "audio" or rendition is None:
            return None, None
        height, bitrate = rendition.height, rendition.bitrate
        if height is not None and height < MIN_HEIGHT:
            raise BadRequestError(f"height={height}: expected lines, from {MIN_HEIGHT}.")
        if bitrate is not None and bitrate < MIN_BITRATE:
            raise BadRequestError(f"bitrate={bitrate}: expected bit/s, from {MIN_BITRATE}.")
        return None if height is None or height >= track.height else height // 2 * 2, bitrate
