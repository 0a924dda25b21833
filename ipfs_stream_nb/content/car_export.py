"""CAR export: the blocks of a path, or of a byte range of its file, depth first (trustless gateway specification)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager
from typing import Final

from ipfs_stream_nb.content import car
from ipfs_stream_nb.content.cid import CID, DAG_PB, RAW
from ipfs_stream_nb.content.hamt import ROOT, HashPrefix, read_shard
from ipfs_stream_nb.content.links import links_of
from ipfs_stream_nb.content.node import DagScope, Path
from ipfs_stream_nb.content.reader import Branch, DagNode, DagReader, expand
from ipfs_stream_nb.content.resolver import Resolved, parse_path, resolve
from ipfs_stream_nb.content.unixfs import UnixFSType
from ipfs_stream_nb.errors import TooLargeError

MAX_BLOCKS: Final = 4_000_000
"""Blocks of one CAR: each is sent once, and remembering which were takes some 100 bytes a block."""

Step = tuple[CID, Branch | HashPrefix | None]
"""A block still to be sent, with the part of a file that is wanted of it, or a shard's place in its directory."""


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
        todo: list[Step] = [last, *reversed([(cid, None) for cid in way])]
        on_the_way = len(way)
        sent: set[bytes] = set()
        while todo:
            cid, wanted = todo.pop()
            follow = on_the_way <= 0 and scope != "block"
            on_the_way -= 1
            if cid.is_identity or cid.multihash in sent:
                continue
            if len(sent) >= MAX_BLOCKS:
                raise TooLargeError(f"a CAR holds at most {MAX_BLOCKS:,} blocks; export parts of {root}")
            sent.add(cid.multihash)
            block = await reader.source.get(cid)
            yield ahead + car.encode_section_prefix(cid, len(block)) + block
            ahead = b""
            if follow:
                todo.extend(reversed(_below(cid, block, scope, wanted)))
        if ahead:
            yield ahead


async def _start(
    reader: DagReader, path: Path, scope: DagScope, entity_bytes: tuple[int, int | None] | None
) -> tuple[tuple[CID, ...], Step]:
    """The blocks on the way to the path's last one, and that one. A bare root may be of any codec and shape: it
    is resolved only where its bytes or its entries are asked for."""
    root, names = parse_path(path)
    if not names and (scope != "entity" or root.codec not in {RAW, DAG_PB}):
        return (), (root, None)
    found = await resolve(reader, path)
    return found.blocks[:-1], await _wanted(reader, found, scope, entity_bytes)


async def _wanted(
    reader: DagReader, found: Resolved, scope: DagScope, entity_bytes: tuple[int, int | None] | None
) -> Step:
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


def _below(cid: CID, block: bytes, scope: DagScope, wanted: Branch | HashPrefix | None) -> list[Step]:
    """The blocks to send after this one."""
    if scope == "all":
        return [(child, None) for child in links_of(cid, block)]
    if cid.codec != DAG_PB or wanted is None:
        return []
    node = DagNode.decode(block)
    if isinstance(wanted, Branch):
        return [(child.cid, child) for child in expand(wanted, node)[1]]
    if node.unixfs.type == UnixFSType.HAMT_SHARD:
        return [(child.cid, child.prefix) for child in read_shard(node.unixfs, wanted).children]
    return []
