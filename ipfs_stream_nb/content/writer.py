"""Files and trees on their way in: cut into leaves, hashed on all cores, committed in batches, in bounded memory."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from ipfs_stream_nb.content.blocks import BlockStore, Transfer
from ipfs_stream_nb.content.cid import CID, BytesLike
from ipfs_stream_nb.content.importer import Block, DagBuilder, Levels, Profile, encode_leaf
from ipfs_stream_nb.content.node import Added
from ipfs_stream_nb.content.observing import Observers
from ipfs_stream_nb.content.store_source import StoreThreads
from ipfs_stream_nb.errors import BadRequestError

BATCH_BYTES: Final = 8 * 1024 * 1024
"""Blocks committed at once. One batch is gathered while the one before it is written, of which the store holds a
second copy meanwhile: with smaller ones a disk that is slow to sync holds everything up."""
LEAVES_AHEAD: Final = 3
"""Leaves being hashed at once for one file."""

T = TypeVar("T")

LeafJob = Callable[[], Block]


class Buffers:
    """Chunk buffers that are used again: fresh memory for each chunk costs more time than its hash leaves."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._free: deque[bytearray] = deque()

    def take(self, length: int | None = None) -> memoryview:
        """Room for a chunk, or for the `length` bytes of a short one. Thread-safe, as `give` is.

        A short chunk gets memory of its own size: thousands of small files wait in one batch.
        """
        length = self.size if length is None else length
        if length < self.size // 2:
            return memoryview(bytearray(length))
        try:
            return memoryview(self._free.pop())[:length]
        except IndexError:
            return memoryview(bytearray(self.size))[:length]

    def give(self, data: BytesLike) -> None:
        """Have back the buffer behind a view; whatever else comes is let go."""
        if isinstance(data, memoryview) and isinstance(data.obj, bytearray) and len(data.obj) == self.size:
            self._free.append(data.obj)


class BatchSink:
    """Gathers blocks into batches, and has them committed on a thread, one batch behind the other."""

    def __init__(self, executor: StoreThreads, profile: Profile) -> None:
        self.executor = executor
        self.profile = profile
        self.buffers = Buffers(profile.chunk_size)
        self._batch: list[Block] = []
        self._batch_bytes = 0
        self._commit: asyncio.Future[None] | None = None

    async def put(self, block: Block) -> None:
        """Take one block."""
        self._batch.append(block)
        self._batch_bytes += len(block.data)

    @property
    def is_due(self) -> bool:
        """Whether a batch is gathered."""
        return self._batch_bytes >= BATCH_BYTES

    async def start_commit(self, store: Callable[[list[Block]], object]) -> None:
        """Have `store` write what was gathered, once the batch before is written."""
        await self.wait()
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        loop = asyncio.get_running_loop()
        self._commit = loop.run_in_executor(self.executor.commits, self._store, store, batch)

    def _store(self, store: Callable[[list[Block]], object], batch: list[Block]) -> None:
        store(batch)
        for block in batch:
            self.buffers.give(block.data)

    async def wait(self) -> None:
        """Wait for the batch that is being written. Raises what became of it."""
        commit, self._commit = self._commit, None
        if commit is not None:
            await asyncio.shield(commit)

    async def drop(self) -> None:
        """Wait for the batch that is being written, whatever becomes of it, and forget the rest."""
        self._batch = []
        commit, self._commit = self._commit, None
        if commit is not None:
            await asyncio.wait([commit])
            commit.exception()

    async def in_thread(self, call: Callable[[], T]) -> T:
        """Do something with the store; it ends, also where this wait is cancelled."""
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self.executor, call))

    def encode(self, chunk: BytesLike) -> Block:
        """Make a leaf of a chunk, which is this sink's from here on. For threads."""
        block = encode_leaf(chunk, self.profile)
        if block.data is not chunk:
            self.buffers.give(chunk)
        return block


class BlockSink(BatchSink):
    """Commits its batches to one transfer."""

    def __init__(self, transfer: Transfer, executor: StoreThreads, profile: Profile) -> None:
        super().__init__(executor, profile)
        self.transfer = transfer

    async def put(self, block: Block) -> None:
        """Take one block; waits where the batch before is still being written."""
        await super().put(block)
        if self.is_due:
            await self.start_commit(self.transfer.put)

    async def flush(self) -> None:
        """Commit what was taken; it is durable on return."""
        if self._batch:
            await self.start_commit(self.transfer.put)
        await self.wait()

    async def finish(self, root: CID, *, pin: bool, name: str) -> bool:
        """Commit everything, end the transfer, and pin its root if asked: durable on return. Whether that is a new pin."""
        await self.flush()
        return await self.in_thread(partial(self._end, root, pin=pin, name=name))

    def _end(self, root: CID, *, pin: bool, name: str) -> bool:
        new = pin and not self.transfer.is_pinned(root)
        self.transfer.commit(root, pin=pin, name=name)
        return new

    async def abort(self) -> None:
        """Wait for a commit that is under way, forget the rest and end the transfer. Idempotent."""
        await self.drop()
        await self.in_thread(self.transfer.abort)


class FileImport:
    """One file: leaves in order to the DAG builder, hashed a few ahead of it."""

    def __init__(self, sink: BatchSink, levels: Levels = ((),)) -> None:
        """`levels`: those of a builder, whose file is continued."""
        self._sink = sink
        self.builder = DagBuilder(sink.profile, levels)
        self._leaves: deque[tuple[asyncio.Future[Block], int]] = deque()

    async def leaf(self, job: LeafJob, file_bytes: int) -> None:
        """Have `job` make the next leaf on a thread; waits where LEAVES_AHEAD are being made."""
        if len(self._leaves) >= LEAVES_AHEAD:
            await self._take()
        loop = asyncio.get_running_loop()
        self._leaves.append((loop.run_in_executor(self._sink.executor, job), file_bytes))

    async def _take(self) -> None:
        future, file_bytes = self._leaves[0]
        block = await asyncio.shield(future)  # abort() waits for it where this wait is cancelled
        self._leaves.popleft()
        await self._sink.put(block)
        for node in self.builder.add_leaf(block.cid, file_bytes, len(block.data)):
            await self._sink.put(node)

    async def drain(self) -> None:
        """Wait until the builder has all leaves, and the sink their blocks."""
        while self._leaves:
            await self._take()

    async def finish(self) -> tuple[CID, int, int]:
        """The root, the file's bytes and the DAG's bytes, once every block is with the sink."""
        await self.drain()
        blocks, root, size, dag_size = self.builder.finish()
        for block in blocks:
            await self._sink.put(block)
        return root, size, dag_size

    async def abort(self) -> None:
        """Wait for leaves that are being made (their threads read from the file) and drop them."""
        futures = [future for future, _ in self._leaves]
        self._leaves.clear()
        await asyncio.shield(asyncio.gather(*futures, return_exceptions=True))


class LeafCutter:
    """Cuts frames of any size into the profile's leaves."""

    def __init__(self, sink: BatchSink, file: FileImport | None = None) -> None:
        """`file`: what takes the leaves, where it is not to be made here."""
        self.bytes_written = 0
        self._sink = sink
        self._file = file or FileImport(sink)
        self._chunk: memoryview | None = None
        self._filled = 0

    async def write(self, data: BytesLike) -> None:
        """Take the next bytes; returns when there is room for more."""
        view = memoryview(data).cast("B")
        self.bytes_written += len(view)
        size = self._sink.profile.chunk_size
        at = 0
        while at < len(view):
            part = view[at : at + size - self._filled]
            at += len(part)
            if len(part) == size and isinstance(data, bytes):
                await self._leaf(part)  # immutable, so no copy is needed
                continue
            if self._chunk is None:
                self._chunk = self._sink.buffers.take()
            self._chunk[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            if self._filled == size:
                await self._flush()

    @property
    def rest(self) -> memoryview:
        """The bytes behind the last whole leaf."""
        return memoryview(b"") if self._chunk is None else self._chunk[: self._filled]

    async def _flush(self) -> None:
        if self._chunk is None:
            return
        whole, self._chunk = self._chunk, None
        chunk, self._filled = whole[: self._filled], 0
        if len(chunk) < len(whole) // 2:
            chunk = memoryview(bytes(chunk))
            self._sink.buffers.give(whole)
        await self._leaf(chunk)

    async def _leaf(self, chunk: memoryview) -> None:
        await self._file.leaf(partial(self._sink.encode, chunk), len(chunk))

    async def root(self) -> tuple[CID, int, int]:
        """The root, the file's bytes and the DAG's bytes, once the last leaf is cut."""
        await self._flush()
        return await self._file.finish()

    async def abort(self) -> None:
        """Let go of leaves that are being made."""
        await self._file.abort()


class StoreFileWriter:
    """`FileWriter` over the block store: see node.FileWriter. Its file is one transfer."""

    def __init__(
        self,
        store: BlockStore,
        executor: StoreThreads,
        profile: Profile,
        observers: Observers | None = None,
    ) -> None:
        """`observers` are told of the file once it is here."""
        self._observers = observers
        self._sink = BlockSink(store.transfer(), executor, profile)
        self._cutter = LeafCutter(self._sink)
        self._open = True

    @property
    def bytes_written(self) -> int:
        """Bytes taken so far."""
        return self._cutter.bytes_written

    async def write(self, data: BytesLike) -> None:
        """Take the next bytes, in frames of any size."""
        check_open(self._open)
        await self._cutter.write(data)

    async def finish(self, *, pin: bool = True, name: str = "") -> Added:
        """Commit what is left, and the pin with it."""
        check_open(self._open)
        root, size, dag_size = await self._cutter.root()
        new = await self._sink.finish(root, pin=pin, name=name)
        self._open = False
        added = Added(root, size, dag_size, name)
        if self._observers is not None:
            self._observers.added(added, "file", pinned=new)
        return added

    async def abort(self) -> None:
        """Forget the file. Idempotent."""
        if self._open:
            self._open = False
            await self._cutter.abort()
            await self._sink.abort()


def check_open(is_open: bool) -> None:
    if not is_open:
        raise BadRequestError("this writer is finished; begin another for the next file")
