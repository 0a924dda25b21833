"""Blocks from the local store, and from providers where it does not have them; what was fetched is kept there."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

from ipfs_stream_nb.content.blocks import BlockStore
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.retrieval.provider import as_ours
from ipfs_stream_nb.content.store_source import StoreSource, StoreThreads
from ipfs_stream_nb.errors import CorruptContentError, NotFoundError

if TYPE_CHECKING:
    from ipfs_stream_nb.content.retrieval.retriever import Fetched, Retriever

RECENT_BYTES: Final = 16 * 1024 * 1024
"""Fetched blocks that are kept in memory, for whoever asked for them ahead."""
WAITING_BYTES: Final = 16 * 1024 * 1024
"""Fetched blocks that wait to be written; with so much of it, fetching waits for the disk."""
BATCH_BYTES: Final = 8 * 1024 * 1024
"""Fetched blocks that are written in one commit."""

_log = logging.getLogger("ipfs_stream_nb.retrieval")


class Keeper:
    """Fetched blocks: in memory for a while, and in the store's cache from soon after on.

    It is a cache: a block that cannot be written was still delivered, so that is only logged.
    """

    def __init__(self, store: BlockStore, executor: StoreThreads, *, write: bool) -> None:
        """Without `write` somebody else keeps them: the server that they came from, in this same store."""
        self._store = store
        self._executor = executor
        self._write = write
        self.write_held = True
        """Whether those are written, too, that a provider on this machine holds itself."""
        self._recent: OrderedDict[bytes, Fetched] = OrderedDict()
        self._recent_bytes = 0
        self._waiting: dict[bytes, Fetched] = {}
        self._waiting_bytes = 0
        self._writing: asyncio.Task[None] | None = None
        self._written = asyncio.Event()

    def get(self, cid: CID) -> bytes | None:
        """The block where it is still in memory."""
        key = cid.multihash
        kept = self._recent.get(key) or self._waiting.get(key)
        return None if kept is None else kept.data

    async def keep(self, block: Fetched) -> None:
        """Take a verified block; waits while too many wait to be written."""
        key = block.cid.multihash
        if key not in self._recent:
            self._recent[key] = block
            self._recent_bytes += len(block.data)
            while self._recent_bytes > RECENT_BYTES and len(self._recent) > 1:
                self._recent_bytes -= len(self._recent.popitem(last=False)[1].data)
        if not self._write or key in self._waiting or (block.held and not self.write_held):
            return
        self._waiting[key] = block
        self._waiting_bytes += len(block.data)
        self._start_writing()
        while self._waiting_bytes > WAITING_BYTES:
            self._start_writing()
            self._written.clear()
            await self._written.wait()

    def _start_writing(self) -> None:
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_all(), name="keep fetched blocks")

    async def _write_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch = self._next_batch()
            blocks = [(kept.cid, kept.data) for kept in batch]
            try:
                await loop.run_in_executor(
                    self._executor.commits, self._store.cache, blocks, batch[0].provider
                )
            except Exception as error:  # noqa: BLE001  # logged where it is none of ours
                _log.warning("fetched blocks could not be kept: %s", as_ours(error, "the store"))
            finally:  # whatever happens: readers wait for it
                for kept in batch:
                    del self._waiting[kept.cid.multihash]
                    self._waiting_bytes -= len(kept.data)
                self._written.set()

    def _next_batch(self) -> list[Fetched]:
        """Blocks of one provider, of at most BATCH_BYTES unless one alone has more."""
        batch: list[Fetched] = []
        size = 0
        for kept in self._waiting.values():
            if batch and (kept.provider != batch[0].provider or size + len(kept.data) > BATCH_BYTES):
                break
            batch.append(kept)
            size += len(kept.data)
        return batch

    def forget(self) -> None:
        """Drop what is in memory: blocks are being taken away."""
        self._recent.clear()
        self._recent_bytes = 0

    async def flush(self) -> None:
        """Wait until what was fetched so far is written."""
        if self._writing is not None:
            await asyncio.shield(self._writing)

    async def close(self) -> None:
        """Write what waits. Idempotent."""
        await self.flush()
        self.forget()


class Readable(Protocol):
    """A store that is only read."""

    def get(self, cid: CID, start: int = 0, stop: int | None = None) -> bytes:
        """A verified block, or a slice of it. Raises NotFoundError, CorruptContentError. For threads."""


class FetchingSource:
    """A BlockSource (see reader) over the local store and a Retriever."""

    def __init__(
        self, store: BlockStore, executor: StoreThreads, retriever: Retriever, *, keep: bool = True
    ) -> None:
        """Without `keep` what is fetched is not written to the store here."""
        self.retriever = retriever
        self.keeper = Keeper(store, executor, write=keep)
        self.beside: Readable | None = None
        """Another store on this machine, which is looked into after ours."""
        self._store = store
        self._executor = executor
        self._local = StoreSource(store, executor)

    async def get(self, cid: CID, start: int = 0, stop: int | None = None) -> bytes:
        """A verified block, or a slice of it. Raises NotFoundError, RetrievalError, RetrievalTimeoutError."""
        data = await self.get_local(cid, start, stop)
        return (await self.fetch(cid)).data[start:stop] if data is None else data

    async def get_local(self, cid: CID, start: int = 0, stop: int | None = None) -> bytes | None:
        """The same from the store or from memory; None where it is in neither, or damaged."""
        try:
            data = await self._local.get(cid, start, stop)
        except (NotFoundError, CorruptContentError):
            kept = self.keeper.get(cid)
            return await self._get_beside(cid, start, stop) if kept is None else kept[start:stop]
        self._store.touch((cid,))
        return data

    async def _get_beside(self, cid: CID, start: int, stop: int | None) -> bytes | None:
        if self.beside is None:
            return None
        loop = asyncio.get_running_loop()
        with suppress(NotFoundError, CorruptContentError):
            return await loop.run_in_executor(self._executor, self.beside.get, cid, start, stop)
        return None

    async def has(self, cid: CID) -> bool:
        """Whether the block is in the store or in memory."""
        if self.keeper.get(cid) is not None:
            return True
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._store.has, cid)

    async def fetch(self, cid: CID) -> Fetched:
        """A verified block from a provider."""
        fetched = await self.retriever.get(cid)
        await self.keeper.keep(fetched)
        return fetched

    async def size(self, cid: CID) -> int:
        """A block's length in bytes; where it is not here it is fetched."""
        try:
            return await self._local.size(cid)
        except NotFoundError:
            return len(await self.get(cid))

    async def close(self) -> None:
        """End what is being fetched, and write what was. Idempotent."""
        await self.retriever.close()
        await self.keeper.close()
