"""Files out of DAGs: which blocks hold which bytes, loaded a few ahead, each checked against what its parent says.

A file's tree is walked from the top, and only the branches that overlap the wanted range are loaded, so a seek
costs one block a level. Nothing that a block declares is believed: a child must be as long as its parent says.
What a read decodes is bounded by what it delivers, so that no tree can be made to cost more than it is worth.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Final, Protocol, Self, TypeVar

from cachetools import LRUCache

from ipfs_stream_nb.content import unixfs
from ipfs_stream_nb.content.cid import CID, DAG_PB, RAW
from ipfs_stream_nb.content.dag_pb import MAX_BLOCK, MAX_LINKS, PBLink
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
NODE_BUDGET: Final = 64 * 1024 * 1024
"""Bytes of inner nodes that a read goes through before it has delivered anything: 16 of the largest blocks."""
NODE_BYTES_PER_BYTE: Final = 256
"""Bytes of inner nodes for each delivered byte; a tree of 1-byte leaves, two to a node, needs some 200."""
MAX_PENDING: Final = 4 * MAX_LINKS
"""Branches that one read may have before it, some 150 bytes each; 1 PiB in 256 KiB blocks needs under 1000."""
_YIELD_STEPS: Final = 128  # nodes from the cache need no waiting, and must not keep the event loop either
_LINK_BYTES: Final = 170  # what a decoded link takes in memory, roughly


L = TypeVar("L")
T = TypeVar("T")


GetBlock = Callable[[CID, int, int], Awaitable[bytes]]
"""A slice of a block, as BlockSource.get gives it."""


class BlockSource(Protocol):
    """Where verified blocks come from."""

    def get(self, cid: CID, start: int = 0, stop: int | None = None) -> Awaitable[bytes]:
        """A block, or a slice of it, cut where the block ends."""

    def size(self, cid: CID) -> Awaitable[int]:
        """A block's length. Raises NotFoundError."""


@dataclass(frozen=True, slots=True)
class DagNode:
    """A decoded dag-pb block; `starts[i]` is the offset of child i in the node's bytes, the last one its end.

    A file's children of no bytes are left out: nobody reads them, and there may be tens of thousands.
    """

    unixfs: UnixFSNode
    starts: tuple[int, ...]
    weight: int
    """Bytes of the block."""
    below: int
    """Bytes of all blocks below it, as its links state them (Tsize)."""

    @classmethod
    def decode(cls, block: bytes) -> Self:
        """Read a dag-pb block that holds UnixFS. Raises CorruptContentError."""
        node = unixfs.decode(block)
        below = sum(link.tsize for link in node.links)
        if 0 in node.block_sizes:
            full = [pair for pair in zip(node.links, node.block_sizes, strict=True) if pair[1]]
            links, sizes = zip(*full, strict=True) if full else ((), ())
            node = replace(node, links=links, block_sizes=sizes)
        starts = tuple(accumulate(node.block_sizes, initial=len(node.data)))
        return cls(node, starts, len(block), below)

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
    enveloped: bool = False
    """Whether it is dag-pb and looks like a leaf, by what its parent says of it: most older files have such leaves."""


def fixed_window() -> int:
    """How many blocks are loaded at once where they are on this machine."""
    return READ_AHEAD_BLOCKS


class DagReader:
    """Reads nodes and files from a block source; safe for any number of readers on one event loop.

    Large nodes are decoded on `executor` (None: the event loop's own), one at a time: more would not be faster,
    and would take its threads from those who read.
    """

    def __init__(self, source: BlockSource, executor: Executor | None = None) -> None:
        self.source = source
        self._executor = executor
        self._decoding = asyncio.Semaphore()
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
        if len(block) <= DECODE_ON_LOOP_BYTES:
            return self._keep(cid, DagNode.decode(block))
        async with self._decoding:
            cached = self._nodes.get(cid)  # whoever was before may have wanted the same one
            return cached or self._keep(cid, await self._on_thread(DagNode.decode, block))

    def _keep(self, cid: CID, node: DagNode) -> DagNode:
        if node.unixfs.links:
            self._nodes[cid] = node
        return node

    async def parse(self, work: Callable[[bytes], T], block: bytes) -> T:
        """What `work` makes of a block: at once for a small one, on a thread for a large one."""
        if len(block) <= DECODE_ON_LOOP_BYTES:
            return work(block)
        async with self._decoding:
            return await self._on_thread(work, block)

    async def _on_thread(self, work: Callable[[bytes], T], block: bytes) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, block)

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
        return own + (await self.node(cid)).below

    def read(
        self, cid: CID, size: int, offset: int, stop: int, *, budget: int = NODE_BUDGET
    ) -> AsyncGenerator[bytes, None]:
        """Bytes `offset` to `stop` of the file under `cid`, which must be `size` bytes long, in order.

        Blocks are loaded READ_AHEAD_BLOCKS at a time. Raises CorruptContentError where a block is not as long
        as its parent says, what the source raises for a block that it does not have, and TooLargeError for a
        tree that is too deep, too wide, or has more than `budget` bytes of inner nodes around too few of content.
        """
        return self.walk(cid, size, offset, stop, self.leaf, budget=budget)

    async def walk(
        self,
        cid: CID,
        size: int,
        offset: int,
        stop: int,
        leaf: Callable[[Branch], Awaitable[L | DagNode]],
        *,
        budget: int = NODE_BUDGET,
        window: Callable[[], int] = fixed_window,
    ) -> AsyncGenerator[bytes | L, None]:
        """As `read`, with what `leaf` makes of each raw block in place of its bytes, `window()` of them at once."""
        todo = [Branch(cid, size, offset, min(stop, size), 0)] if offset < min(stop, size) else []
        loads: dict[Branch, asyncio.Future[L | DagNode]] = {}
        steps = 0
        try:
            while todo:
                steps += 1
                if not steps % _YIELD_STEPS:
                    await asyncio.sleep(0)
                if len(todo) > 1:  # one alone needs no task of its own
                    for ahead in todo[-window() :]:
                        if ahead not in loads:
                            loads[ahead] = asyncio.ensure_future(self._load(ahead, leaf))
                branch = todo.pop()
                load = loads.pop(branch, None)
                loaded = await (self._load(branch, leaf) if load is None else load)
                found: bytes | L
                if isinstance(loaded, DagNode):
                    found, children = expand(branch, loaded)
                    todo.extend(reversed(children))
                    budget += NODE_BYTES_PER_BYTE * len(found) - loaded.weight
                    _check_cost(cid, budget, len(todo))
                else:
                    found = loaded
                    budget += NODE_BYTES_PER_BYTE * (branch.hi - branch.lo)
                for piece in _pieces(found):
                    yield piece
        finally:
            if loads:
                for load in loads.values():
                    load.cancel()
                await asyncio.gather(*loads.values(), return_exceptions=True)

    async def _load(self, branch: Branch, leaf: Callable[[Branch], Awaitable[L | DagNode]]) -> L | DagNode:
        if branch.cid.codec != RAW and not branch.enveloped:
            return await self.child(branch.cid)
        try:
            return await leaf(branch)
        except NotFoundError as error:
            raise RetrievalError(f"a part of the content is missing: {error}") from error

    async def leaf(self, branch: Branch, get: GetBlock | None = None) -> bytes | DagNode:
        """The wanted bytes of a leaf, had by `get` (default: from the source); the node of what turns out to be none.

        Raises CorruptContentError.
        """
        get = get or self.source.get
        if branch.enveloped:
            cached = self._nodes.get(branch.cid)
            if cached is not None:
                return cached
            block = await get(branch.cid, 0, MAX_BLOCK)
            span = unixfs.leaf_span(block)
            if span is None:
                return self._keep(branch.cid, await self.parse(DagNode.decode, block))
            size, data = span[1] - span[0], block[span[0] + branch.lo : span[0] + branch.hi]
            wrong = size != branch.size
        else:
            # where the slice ends with the block, one byte more is asked for: it must not be there
            at_end = branch.hi == branch.size
            data = await get(branch.cid, branch.lo, branch.hi + at_end)
            wrong = len(data) != branch.hi - branch.lo
        if wrong:
            raise CorruptContentError(
                f"block {branch.cid} does not hold {branch.size} bytes, as its parent says"
            )
        return data


def _pieces(found: bytes | L) -> Iterable[bytes | L]:
    if not isinstance(found, bytes) or 0 < len(found) <= PIECE_BYTES:
        return (found,)
    return (found[at : at + PIECE_BYTES] for at in range(0, len(found), PIECE_BYTES))


def _check_cost(cid: CID, budget: int, pending: int) -> None:
    """Raise TooLargeError for a tree that costs much more than it holds."""
    if budget < 0:
        raise TooLargeError(
            f"the tree of {cid} has too few bytes of content among its inner nodes: over {NODE_BYTES_PER_BYTE} bytes"
            " of nodes for each"
        )
    if pending > MAX_PENDING:
        raise TooLargeError(
            f"the tree of {cid} is too wide: over {MAX_PENDING:,} branches to be read at once"
        )


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
            _looks_like_leaf(node.unixfs.links[index], starts[index + 1] - starts[index]),
        )
        for index in range(first, last)
    ]
    return inline[branch.lo : branch.hi], children


def _looks_like_leaf(link: PBLink, size: int) -> bool:
    return link.cid.codec == DAG_PB and 0 <= link.tsize - size < unixfs.ENVELOPE_BYTES
