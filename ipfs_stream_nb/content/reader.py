"""Files out of DAGs: which blocks hold which bytes, loaded a few ahead, each checked against what its parent says.

A file's tree is walked from the top, and only the branches that overlap the wanted range are loaded, so a seek
costs one block a level. Nothing that a block declares is believed: a child must be as long as its parent says.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Protocol, Self, TypeVar

from cachetools import LRUCache

from ipfs_stream_nb.content import unixfs
from ipfs_stream_nb.content.cid import CID, DAG_PB, RAW
from ipfs_stream_nb.content.unixfs import UnixFSNode, UnixFSType
from ipfs_stream_nb.errors import (
    CorruptContentError,
    NotFoundError,
    RetrievalError,
    TooLargeError,
    UnsupportedMediaError,
)

READ_AHEAD_BLOCKS: Final = 4
"""Blocks of one stream that are being loaded at once: with 1 MiB blocks, 4 MiB of memory for each reader."""
NODE_CACHE_BYTES: Final = 32 * 1024 * 1024
"""Decoded inner nodes kept per reader: the way to any byte of some 200 GiB of 1 MiB blocks."""
MAX_DEPTH: Final = 64
"""Levels of a file's tree; 1 PiB in 256 KiB blocks with 174 links has 5."""
DECODE_ON_LOOP_BYTES: Final = 16 * 1024
"""Larger nodes are decoded on a thread, so that none holds up the event loop."""
PIECE_BYTES: Final = 1024 * 1024
"""The largest piece that a read hands out."""
_LINK_BYTES: Final = 170  # what a decoded link takes in memory, roughly


L = TypeVar("L")


class BlockSource(Protocol):
    """Where verified blocks come from."""

    def get(self, cid: CID, start: int = 0, stop: int | None = None) -> Awaitable[bytes]:
        """A block, or a slice of it, cut where the block ends."""

    def size(self, cid: CID) -> Awaitable[int]:
        """A block's length. Raises NotFoundError."""


@dataclass(frozen=True, slots=True)
class DagNode:
    """A decoded dag-pb block; `starts[i]` is the offset of child i in the node's bytes, the last one its end."""

    unixfs: UnixFSNode
    starts: tuple[int, ...]

    @classmethod
    def decode(cls, block: bytes) -> Self:
        """Read a dag-pb block that holds UnixFS. Raises CorruptContentError."""
        node = unixfs.decode(block)
        return cls(node, tuple(accumulate(node.block_sizes, initial=len(node.data))))

    @property
    def is_file(self) -> bool:
        """Whether its bytes are a file's."""
        return self.unixfs.type in {UnixFSType.FILE, UnixFSType.RAW}

    @property
    def is_directory(self) -> bool:
        """Whether it has names: a plain directory or a shard of a large one."""
        return self.unixfs.type in {UnixFSType.DIRECTORY, UnixFSType.HAMT_SHARD}


@dataclass(slots=True, eq=False)
class Branch:
    """A part of the tree that is still to be read: bytes `lo` to `hi` of the `size` that `cid` must have."""

    cid: CID
    size: int
    lo: int
    hi: int
    depth: int


class DagReader:
    """Reads nodes and files from a block source; safe for any number of readers on one event loop."""

    def __init__(self, source: BlockSource) -> None:
        self.source = source
        self._nodes: LRUCache[CID, DagNode] = LRUCache(
            NODE_CACHE_BYTES, getsizeof=lambda node: 512 + _LINK_BYTES * len(node.unixfs.links)
        )

    async def node(self, cid: CID) -> DagNode:
        """The decoded dag-pb block. Raises UnsupportedMediaError for other codecs, CorruptContentError."""
        cached = self._nodes.get(cid)
        if cached is not None:
            return cached
        if cid.codec != DAG_PB:
            raise UnsupportedMediaError(
                f"{cid} is a {cid.codec_name} block, and files and directories are dag-pb or raw;"
                " ask for its bytes with format=raw"
            )
        block = await self.source.get(cid)
        if len(block) > DECODE_ON_LOOP_BYTES:
            node = await asyncio.to_thread(DagNode.decode, block)
        else:
            node = DagNode.decode(block)
        if node.unixfs.links:
            self._nodes[cid] = node
        return node

    def forget(self) -> None:
        """Drop the kept nodes: blocks are being taken away."""
        self._nodes.clear()

    async def child(self, cid: CID) -> DagNode:
        """As `node`, for a block that a known one links to: RetrievalError where it is missing."""
        try:
            return await self.node(cid)
        except NotFoundError as error:
            raise RetrievalError(f"a part of the content is missing: {error}") from error

    async def file_size(self, cid: CID) -> int:
        """The length of the file under a root that is raw or a file node."""
        if cid.codec == RAW:
            return await self.source.size(cid)
        return (await self.node(cid)).starts[-1]

    async def dag_size(self, cid: CID) -> int:
        """The bytes of all blocks below `cid` as its links state them (Tsize), its own included."""
        own = 0 if cid.is_identity else await self.source.size(cid)
        if cid.codec != DAG_PB:
            return own
        return own + sum(link.tsize or 0 for link in (await self.node(cid)).unixfs.links)

    def read(self, cid: CID, size: int, offset: int, stop: int) -> AsyncGenerator[bytes, None]:
        """Bytes `offset` to `stop` of the file under `cid`, which must be `size` bytes long, in order.

        Blocks are loaded READ_AHEAD_BLOCKS at a time. Raises CorruptContentError where a block is not as long
        as its parent says, and what the source raises for a block that it does not have.
        """
        return self.walk(cid, size, offset, stop, self._leaf)

    async def walk(
        self, cid: CID, size: int, offset: int, stop: int, leaf: Callable[[Branch], Awaitable[L]]
    ) -> AsyncGenerator[bytes | L, None]:
        """As `read`, with what `leaf` makes of each raw block in place of its bytes."""
        todo = [Branch(cid, size, offset, min(stop, size), 0)] if offset < min(stop, size) else []
        loads: dict[Branch, asyncio.Future[DagNode | L]] = {}
        try:
            while todo:
                if len(todo) > 1:  # one alone needs no task of its own
                    for ahead in todo[-READ_AHEAD_BLOCKS:]:
                        if ahead not in loads:
                            loads[ahead] = asyncio.ensure_future(self._load(ahead, leaf))
                branch = todo.pop()
                load = loads.pop(branch, None)
                loaded = await (self._load(branch, leaf) if load is None else load)
                if not isinstance(loaded, (DagNode, bytes)):
                    yield loaded
                    continue
                inline, children = expand(branch, loaded) if isinstance(loaded, DagNode) else (loaded, [])
                todo.extend(reversed(children))
                for at in range(0, len(inline), PIECE_BYTES):
                    yield inline if len(inline) <= PIECE_BYTES else inline[at : at + PIECE_BYTES]
        finally:
            if loads:
                for load in loads.values():
                    load.cancel()
                await asyncio.gather(*loads.values(), return_exceptions=True)

    async def _load(self, branch: Branch, leaf: Callable[[Branch], Awaitable[L]]) -> DagNode | L:
        if branch.cid.codec != RAW:
            return await self.child(branch.cid)
        try:
            return await leaf(branch)
        except NotFoundError as error:
            raise RetrievalError(f"a part of the content is missing: {error}") from error

    async def _leaf(self, branch: Branch) -> bytes:
        # where the slice ends with the block, one byte more is asked for: it must not be there
        at_end = branch.hi == branch.size
        data = await self.source.get(branch.cid, branch.lo, branch.hi + at_end)
        if len(data) != branch.hi - branch.lo:
            raise CorruptContentError(
                f"block {branch.cid} is not {branch.size} bytes long, as its parent says"
            )
        return data


def expand(branch: Branch, node: DagNode) -> tuple[bytes, list[Branch]]:
    """The wanted bytes that stand in the node itself, and its children that hold the rest."""
    if not node.is_file:
        raise CorruptContentError(
            f"{branch.cid} stands in a file's tree and is a {node.unixfs.type.name.lower()}"
        )
    starts = node.starts
    if starts[-1] != branch.size:
        raise CorruptContentError(
            f"{branch.cid} holds {starts[-1]} bytes of a file where its parent says {branch.size}"
        )
    if branch.depth >= MAX_DEPTH:
        raise TooLargeError(f"the file's tree is deeper than {MAX_DEPTH} levels at {branch.cid}")
    if branch.lo >= branch.hi:
        return b"", []
    inline = node.unixfs.data
    first = max(bisect_right(starts, branch.lo) - 1, 0)
    last = min(bisect_left(starts, branch.hi), len(starts) - 1)
    children = [
        Branch(
            node.unixfs.links[index].cid,
            starts[index + 1] - starts[index],
            max(branch.lo - starts[index], 0),
            min(branch.hi, starts[index + 1]) - starts[index],
            branch.depth + 1,
        )
        for index in range(first, last)
        if starts[index + 1] > starts[index]
    ]
    return inline[branch.lo : branch.hi], children
