"""Whole trees from providers, for pinning: first what links to others, so that the rest is known, then the leaves."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Final, NamedTuple, TypeVar

from ipfs_stream_nb.content import dag_pb, unixfs
from ipfs_stream_nb.content.blocks import BlockStore, Transfer
from ipfs_stream_nb.content.blocks.walk import MAX_BLOCKS
from ipfs_stream_nb.content.cid import CID, DAG_CBOR, DAG_PB
from ipfs_stream_nb.content.links import links_of
from ipfs_stream_nb.content.node import PinProgress
from ipfs_stream_nb.content.reader import DECODE_ON_LOOP_BYTES, BlockSource
from ipfs_stream_nb.content.retrieval.source import BATCH_BYTES, FetchingSource
from ipfs_stream_nb.content.store_source import StoreThreads
from ipfs_stream_nb.content.unixfs import UnixFSType
from ipfs_stream_nb.errors import CorruptContentError, NotFoundError, RetrievalError, TooLargeError

T = TypeVar("T")

AT_ONCE: Final = 8
"""Blocks that are fetched at once."""
KEPT_AT_ONCE: Final = 1024
"""Leaves that are looked for in the store at once."""


class DagSize(NamedTuple):
    """All blocks of a tree, each counted once."""

    blocks: int
    bytes: int


async def dag_totals(source: BlockSource, root: CID) -> DagSize:
    """What a tree has in all, as its inner blocks tell: those are read, and leaves are not.

    Raises what reading a block does, and TooLargeError for a tree over `walk.MAX_BLOCKS`.
    """
    met = {root.multihash}
    blocks = size = 0
    level = [root]

    async def visit(cid: CID) -> None:
        nonlocal blocks, size
        block = await source.get(cid)
        blocks, size = blocks + 1, size + len(block)
        for link in await asyncio.to_thread(_links_with_leaves, cid, block):
            if link.cid.multihash in met or link.cid.is_identity:
                continue
            met.add(link.cid.multihash)
            if link.size is None:
                below.append(link.cid)
            else:
                blocks, size = blocks + 1, size + link.size
        if len(met) > MAX_BLOCKS:
            raise TooLargeError(f"the tree under {root} has over {MAX_BLOCKS:,} blocks")

    while level:
        below: list[CID] = []
        await each(level, visit)
        level = below
    return DagSize(blocks, size)


def _links_with_leaves(cid: CID, block: bytes) -> list[_Link]:
    """The links, with the sizes of those that lead to leaves: dag-pb ones are told by what their parent says."""
    links = _sized_links(cid, block)
    if cid.codec != DAG_PB or all(link.size is not None for link in links):
        return links
    try:
        node = unixfs.decode(block)
    except CorruptContentError:
        return links
    if node.type != UnixFSType.FILE:
        return links
    return [
        _Link(link.cid, link.tsize if 0 <= link.tsize - size < unixfs.ENVELOPE_BYTES else None)
        if link.cid.codec == DAG_PB
        else _Link(link.cid, link.tsize)
        for link, size in zip(node.links, node.block_sizes, strict=True)
    ]


class _Link(NamedTuple):
    cid: CID
    size: int | None
    """Bytes of a raw leaf, as the link to it states them; None where only fetching tells."""


class DagFetch:
    """One tree on its way into the store. `run` it once; what it holds is kept from garbage collection meanwhile."""

    def __init__(
        self,
        source: FetchingSource,
        store: BlockStore,
        executor: StoreThreads,
        progress: Callable[[PinProgress], None] | None,
    ) -> None:
        self._source = source
        self._store = store
        self._executor = executor
        self._progress = progress
        self._blocks = self._bytes = 0
        self._total: tuple[int, int] | None = None
        self._batches: defaultdict[str, list[tuple[CID, bytes]]] = defaultdict(list)
        self._batch_bytes = 0

    async def run(self, root: CID, then: Callable[[], Awaitable[T]]) -> T:
        """Fetch what is missing below `root`, and give what `then` does while all of it is kept.

        Raises NotFoundError where nobody has the root, RetrievalError naming a block that cannot be had, and
        TooLargeError for a tree over `walk.MAX_BLOCKS`.
        """
        transfer = self._store.transfer()
        try:
            leaves = await self._fetch_inner(root, transfer)
            sizes = [leaf.size for leaf in leaves]
            if None not in sizes:
                below = sum(size or 0 for size in sizes)
                self._total = (self._blocks + len(leaves), self._bytes + below)
            for at in range(0, len(leaves), KEPT_AT_ONCE):
                some = leaves[at : at + KEPT_AT_ONCE]
                missing = await self._keep(transfer, [leaf.cid for leaf in some])
                for leaf in some:
                    if leaf.cid not in missing:
                        self._count(leaf.size or 0)
                await each(missing, partial(self._fetch, transfer))
            await self._write(transfer)
            return await then()
        finally:
            await asyncio.shield(self._end(transfer))

    async def _end(self, transfer: Transfer) -> None:
        """Write what was fetched, so that another try goes on from there, and let go of it."""
        try:
            await self._write(transfer)
        finally:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._executor.commits, transfer.abort)

    async def _fetch_inner(self, root: CID, transfer: Transfer) -> list[_Link]:
        """Fetch what may have links, level by level; gives the leaves."""
        met = {root.multihash}
        leaves: list[_Link] = []
        level: list[CID] = []
        links = [_Link(root, None)]

        async def visit(cid: CID) -> None:
            for link in await self._links(cid, await self._block(transfer, cid)):
                key = link.cid.multihash
                if key not in met and not link.cid.is_identity:
                    met.add(key)
                    links.append(link)
            if len(met) > MAX_BLOCKS:
                raise TooLargeError(f"the tree under {root} has over {MAX_BLOCKS:,} blocks")

        while links:
            level = [link.cid for link in links if link.cid.codec in {DAG_PB, DAG_CBOR}]
            leaves += [link for link in links if link.cid.codec not in {DAG_PB, DAG_CBOR}]
            links = []
            await self._keep(transfer, level)
            await each(level, visit)
        return leaves

    async def _links(self, cid: CID, block: bytes) -> list[_Link]:
        if len(block) <= DECODE_ON_LOOP_BYTES:
            return _sized_links(cid, block)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, _sized_links, cid, block)

    async def _keep(self, transfer: Transfer, cids: list[CID]) -> set[CID]:
        """Keep those that are here from eviction until the end; gives the others."""
        loop = asyncio.get_running_loop()
        return set(await loop.run_in_executor(self._executor.commits, transfer.keep, cids))

    async def _block(self, transfer: Transfer, cid: CID) -> bytes:
        """A block from here or from a provider."""
        data = await self._source.get_local(cid)
        if data is None:
            return await self._fetch(transfer, cid)
        self._count(len(data))
        return data

    async def _fetch(self, transfer: Transfer, cid: CID) -> bytes:
        """A block from a provider, on its way into the store."""
        try:
            fetched = await self._source.retriever.get(cid)
        except NotFoundError as error:
            if not self._blocks:
                raise
            raise RetrievalError(f"a part of the content is missing: {error}") from error
        self._batches[fetched.provider].append((cid, fetched.data))
        self._batch_bytes += len(fetched.data)
        if self._batch_bytes >= BATCH_BYTES:
            await self._write(transfer)
        self._count(len(fetched.data))
        return fetched.data

    def _count(self, size: int) -> None:
        self._blocks += 1
        self._bytes += size
        if self._progress is not None:
            self._progress(PinProgress(self._blocks, self._bytes, *(self._total or (None, None))))

    async def _write(self, transfer: Transfer) -> None:
        batches, self._batches, self._batch_bytes = self._batches, defaultdict(list), 0
        loop = asyncio.get_running_loop()
        for provider, blocks in batches.items():
            put = partial(transfer.put, blocks, source=provider)
            await loop.run_in_executor(self._executor.commits, put)


def _sized_links(cid: CID, block: bytes) -> list[_Link]:
    if cid.codec == DAG_PB:
        return [
            _Link(link.cid, None if link.cid.codec == DAG_PB else link.tsize)
            for link in dag_pb.split(block)[0]
        ]
    return [_Link(link, None) for link in links_of(cid, block)]


async def each(items: Iterable[T], work: Callable[[T], Awaitable[object]]) -> None:
    """Do `work` for each item, AT_ONCE at a time; the first error ends it."""
    todo = iter(items)

    async def worker() -> None:
        for item in todo:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(worker())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
