"""CAR export: the blocks of a path, or of a byte range of its file, depth first (trustless gateway specification)."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Final

from ipfs_stream_nb.content import car
from ipfs_stream_nb.content.cid import CID, DAG_CBOR, DAG_PB, RAW
from ipfs_stream_nb.content.hamt import ROOT, HashPrefix, read_shard
from ipfs_stream_nb.content.links import links_of
from ipfs_stream_nb.content.node import DagScope, Path
from ipfs_stream_nb.content.reader import Branch, DagNode, DagReader, expand
from ipfs_stream_nb.content.resolver import Resolved, parse_path, resolve
from ipfs_stream_nb.content.unixfs import UnixFSType
from ipfs_stream_nb.errors import TooLargeError

MAX_BLOCKS: Final = 4_000_000
"""Blocks of one CAR, sent and still to be sent: remembering them takes some 300 bytes a block."""

Wanted = Branch | HashPrefix | None
"""The part of a file that is wanted of a block, or a shard's place in its directory."""
_Key = tuple[
    int, bytes, int, int
]  # a visit: codec, multihash, and the range of bytes where only one is wanted


class _Plan:
    """The blocks that are still to be visited, in the order of a walk depth first, and those that were.

    The same bytes may be met again under another codec, or with another part of them wanted: they are visited
    again then, and sent once. Of all ways to a visit the next one counts, so each is planned once, and the
    memory is that of the distinct blocks, however often they link to each other.
    """

    def __init__(self, root: CID, scope: DagScope, way: tuple[CID, ...], last: tuple[CID, Wanted]) -> None:
        self._root = root
        self._scope = scope
        self._way = deque(way)
        self._sent: set[bytes] = set()
        self._visited: set[_Key] = set()
        self._todo: dict[_Key, tuple[CID, Wanted]] = {_key(*last): last}
        """The last one is the next."""

    def next(self) -> tuple[CID, Wanted, bool] | None:
        """The next visit, and whether to go on below it: one to a block that was not sent, or has links."""
        if self._way:
            return self._way.popleft(), None, False
        while self._todo:
            key, (cid, wanted) = self._todo.popitem()
            self._visited.add(key)
            follow = self._scope != "block" and cid.codec in {DAG_PB, DAG_CBOR}
            if follow or self._is_unsent(cid):
                return cid, wanted, follow
        return None

    def section(self, cid: CID, block: bytes) -> bytes:
        """The block as it stands in the CAR; empty where it was sent, or is its own CID."""
        if not self._is_unsent(cid):
            return b""
        self._sent.add(cid.multihash)
        return car.encode_section_prefix(cid, len(block)) + block

    def _is_unsent(self, cid: CID) -> bool:
        return not cid.is_identity and cid.multihash not in self._sent

    def descend(self, cid: CID, wanted: Wanted, block: bytes) -> None:
        """Plan what is below a block, before everything else. Raises TooLargeError over MAX_BLOCKS."""
        first: dict[_Key, tuple[CID, Wanted]] = {}
        for step in _below(cid, block, self._scope, wanted):
            first.setdefault(_key(*step), step)
        for key in reversed(first):
            if key not in self._visited:
                self._todo.pop(key, None)
                self._todo[key] = first[key]
        if len(self._visited) + len(self._todo) > MAX_BLOCKS:
            raise TooLargeError(f"a CAR holds at most {MAX_BLOCKS:,} blocks; export parts of {self._root}")


def _key(cid: CID, wanted: Wanted) -> _Key:
    lo, hi = (wanted.lo, wanted.hi) if isinstance(wanted, Branch) else (0, -1)
    return cid.codec, cid.multihash, lo, hi


async def export_car(
    reader: DagReader,
    path: Path,
    *,
    scope: DagScope = "all",
    entity_bytes: tuple[int, int | None] | None = None,
    lease: Callable[[CID], AbstractContextManager[object]],
) -> AsyncGenerator[bytes, None]:
    """A CARv1 whose one root is the path's root: the blocks on the way, then what `scope` asks for, each once.

    `scope`: "block" the path's last block alone; "entity" the file, or the blocks of the directory itself; "all"
    everything below. `entity_bytes` (with "entity", for files): only the blocks of bytes `from` to `to`, both
    counted in, None for the end, negative from the end. Other codecs than UnixFS have no entity but the block.
    Raises what resolving the path raises, before a byte.
    """
    root, _ = parse_path(path)
    with lease(root):
        way, last = await _start(reader, path, scope, entity_bytes)
        ahead = car.encode_header([root])  # sent with the first block: where that is missing, nothing is sent
        plan = _Plan(root, scope, way, last)
        while (step := plan.next()) is not None:
            cid, wanted, follow = step
            block = await reader.source.get(cid)
            if section := plan.section(cid, block):
                yield ahead + section
                ahead = b""
            if follow:
                await reader.parse(partial(plan.descend, cid, wanted), block)
        if ahead:
            yield ahead


async def _start(
    reader: DagReader, path: Path, scope: DagScope, entity_bytes: tuple[int, int | None] | None
) -> tuple[tuple[CID, ...], tuple[CID, Wanted]]:
    """The blocks on the way to the path's last one, and that one. A bare root may be of any codec and shape: it
    is resolved only where its bytes or its entries are asked for."""
    root, names = parse_path(path)
    if not names and (scope != "entity" or root.codec not in {RAW, DAG_PB}):
        return (), (root, None)
    found = await resolve(reader, path)
    return found.blocks[:-1], await _wanted(reader, found, scope, entity_bytes)


async def _wanted(
    reader: DagReader, found: Resolved, scope: DagScope, entity_bytes: tuple[int, int | None] | None
) -> tuple[CID, Wanted]:
    """The path's last block, with the bytes that are wanted of it if it is a file."""
    if scope != "entity":
        return found.cid, None
    if found.kind != "file":
        return found.cid, ROOT
    size = await reader.file_size(found.cid)
    first, stop = _span(size, entity_bytes)
    return found.cid, Branch(found.cid, size, first, stop, 0)


def _span(size: int, entity_bytes: tuple[int, int | None] | None) -> tuple[int, int]:
    """The half-open range that `entity-bytes` means in a file of `size` bytes; empty where it lies outside."""
    if entity_bytes is None:
        return 0, size
    first, last = entity_bytes
    start = max(0, size + first) if first < 0 else first
    stop = size if last is None else min(size, (size + last if last < 0 else last) + 1)
    return (start, stop) if start < stop else (0, 0)


def _below(cid: CID, block: bytes, scope: DagScope, wanted: Wanted) -> list[tuple[CID, Wanted]]:
    """The blocks to send after this one."""
    if scope == "all":
        return [(child, None) for child in dict.fromkeys(links_of(cid, block))]
    if cid.codec != DAG_PB or wanted is None:
        return []
    node = DagNode.decode(block)
    if isinstance(wanted, Branch):
        return [(child.cid, child) for child in expand(wanted, node)[1]]
    if node.unixfs.type == UnixFSType.HAMT_SHARD:
        return [(child.cid, child.prefix) for child in read_shard(node.unixfs, wanted).children]
    return []
