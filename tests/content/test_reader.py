"""Files out of DAGs."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dag_source import DictSource
from ipfs_stream_nb.content import reader as reader_module
from ipfs_stream_nb.content import unixfs
from ipfs_stream_nb.content.cid import CID, DAG_CBOR, DAG_PB
from ipfs_stream_nb.content.dag_pb import PBLink
from ipfs_stream_nb.content.importer import Block, Profile, import_bytes
from ipfs_stream_nb.content.reader import (
    DECODE_ON_LOOP_BYTES,
    MAX_DEPTH,
    READ_AHEAD_BLOCKS,
    DagNode,
    DagReader,
)
from ipfs_stream_nb.content.unixfs import UnixFSNode, UnixFSType
from ipfs_stream_nb.errors import CorruptContentError, RetrievalError, TooLargeError, UnsupportedMediaError

TINY = Profile("tiny", chunk_size=4, max_links=3)
TINY_PB = Profile("tiny-pb", 0, 4, 3, raw_leaves=False)


def pattern(size: int) -> bytes:
    return bytes(i % 251 for i in range(size))


async def read(reader: DagReader, cid: CID, offset: int = 0, stop: int | None = None) -> bytes:
    size = await reader.file_size(cid)
    async with aclosing(reader.read(cid, size, offset, size if stop is None else stop)) as pieces:
        return b"".join([piece async for piece in pieces])


def node_block(node: UnixFSNode) -> Block:
    data = unixfs.encode(node)
    return Block(CID.of(data, DAG_PB), data)


def file_of(*children: tuple[Block, int], size: int | None = None) -> Block:
    """A file node whose children have these declared sizes."""
    sizes = tuple(declared for _, declared in children)
    return node_block(
        UnixFSNode(
            UnixFSType.FILE,
            file_size=sum(sizes) if size is None else size,
            block_sizes=sizes,
            links=tuple(PBLink(block.cid, "", 0) for block, _ in children),
        )
    )


@pytest.mark.parametrize("profile", [TINY, TINY_PB], ids=["raw leaves", "dag-pb leaves"])
@given(size=st.integers(0, 400), data=st.data())
def test_any_range_of_any_tree(profile, size, data):
    """Every range of a deep tree gives the bytes that went in."""
    content = pattern(size)
    imported = import_bytes(content, profile)
    reader = DagReader(DictSource(imported.blocks))
    offset = data.draw(st.integers(0, size + 5))
    stop = data.draw(st.integers(0, size + 5))
    assert asyncio.run(read(reader, imported.root, offset, stop)) == content[offset:stop]


async def test_a_seek_loads_one_branch():
    """Reading one byte in the middle loads one block a level, and one byte of the leaf."""
    content = pattern(4 * 3**4)
    imported = import_bytes(content, TINY)
    source = DictSource(imported.blocks)
    assert await read(DagReader(source), imported.root, 161, 162) == content[161:162]
    assert len(source.gets) == 5


async def test_read_ahead_is_bounded():
    """A reader that stops after the first piece has had no more than READ_AHEAD_BLOCKS leaves loaded."""
    imported = import_bytes(pattern(4 * 100), Profile("wide", chunk_size=4, max_links=174))
    source = DictSource(imported.blocks)
    reader = DagReader(source)
    async with aclosing(reader.read(imported.root, 400, 0, 400)) as pieces:
        assert await anext(pieces) == pattern(4)
    assert len(source.gets) <= 1 + READ_AHEAD_BLOCKS


async def test_leaving_early_ends_the_loads():
    """Loads that are under way when a reader leaves are cancelled, not forgotten."""
    imported = import_bytes(pattern(40), Profile("wide", chunk_size=4, max_links=174))
    started, cancelled = [], []

    class Stuck(DictSource):
        async def get(self, cid, start=0, stop=None):
            if cid != imported.root and cid != imported.blocks[0].cid:
                started.append(cid)
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    cancelled.append(cid)
                    raise
            return await super().get(cid, start, stop)

    reader = DagReader(Stuck(imported.blocks))
    async with aclosing(reader.read(imported.root, 40, 0, 40)) as pieces:
        await anext(pieces)
        await asyncio.sleep(0)
    assert started
    assert cancelled == started


async def test_a_missing_leaf_is_named():
    """What the source says of a block that it lacks reaches the reader, after the bytes before it."""
    imported = import_bytes(pattern(40), Profile("wide", chunk_size=4, max_links=174))
    source = DictSource(imported.blocks)
    gone = imported.blocks[3].cid
    del source.blocks[gone]
    got = []
    with pytest.raises(RetrievalError, match=str(gone)):
        async for piece in DagReader(source).read(imported.root, 40, 0, 40):
            got.append(piece)
    assert b"".join(got) == pattern(12)


@pytest.mark.parametrize(("declared", "real"), [(4, 3), (4, 5)], ids=["shorter", "longer"])
async def test_a_leaf_of_another_length_than_declared(declared, real):
    """A leaf that is shorter or longer than its parent says is corrupt content, not wrong bytes."""
    leaf = Block(CID.of(b"x" * real), b"x" * real)
    root = file_of((leaf, declared))
    with pytest.raises(CorruptContentError, match=str(leaf.cid)):
        await read(DagReader(DictSource([leaf, root])), root.cid)


async def test_an_inner_node_of_another_length_than_declared():
    """An inner node that holds another number of bytes than its parent says is corrupt content."""
    leaf = Block(CID.of(b"abcd"), b"abcd")
    inner = file_of((leaf, 4))
    root = file_of((inner, 5))
    with pytest.raises(CorruptContentError, match="5"):
        await read(DagReader(DictSource([leaf, inner, root])), root.cid)


async def test_a_directory_inside_a_file():
    """A file's tree holds files only."""
    directory = node_block(UnixFSNode(UnixFSType.DIRECTORY))
    root = file_of((directory, 3))
    with pytest.raises(CorruptContentError, match="directory"):
        await read(DagReader(DictSource([directory, root])), root.cid)


async def test_a_dag_bomb_costs_what_is_read_of_it():
    """Blocks that repeat into 2^60 bytes are read where one asks, without walking the whole."""
    leaf = Block(CID.of(b"ab"), b"ab")
    blocks, size, top = [leaf], 2, leaf
    for _ in range(20):
        top = file_of(*[(top, size)] * 8)
        blocks.append(top)
        size *= 8
    source = DictSource(blocks)
    assert await read(DagReader(source), top.cid, size - 3, size) == b"bab"
    assert len(source.gets) < 21 * (READ_AHEAD_BLOCKS + 1)


async def test_a_million_empty_children_are_skipped():
    """Children that hold nothing are not loaded, so a bomb of empty ones costs nothing."""
    empty = Block(CID.of(b""), b"")
    top = empty
    blocks = [empty]
    for _ in range(6):
        top = file_of(*[(top, 0)] * 10)
        blocks.append(top)
    source = DictSource(blocks)
    assert await read(DagReader(source), top.cid) == b""
    assert len(source.gets) <= 1


def test_empty_children_are_not_kept():
    """A decoded file node is as large as what can be read of it; its sizes count all that it links to."""
    leaf, empty = Block(CID.of(b"ab"), b"ab"), Block(CID.of(b""), b"")
    sizes = (0, 2, *[0] * 1000, 2)
    node = UnixFSNode(
        UnixFSType.FILE,
        file_size=4,
        block_sizes=sizes,
        links=tuple(PBLink((leaf if size else empty).cid, "", 3) for size in sizes),
    )
    block = node_block(node).data
    decoded = DagNode.decode(block)
    assert [link.cid for link in decoded.unixfs.links] == [leaf.cid] * 2
    assert decoded.starts == (0, 2, 4)
    assert decoded.below == 3 * len(sizes)
    assert decoded.weight == len(block)


def bomb(levels: int, width: int) -> tuple[list[Block], CID]:
    """Two to the `levels` bytes, each behind nodes of `width` links to nothing."""
    leaf, empty = Block(CID.of(b"z"), b"z"), Block(CID.of(b""), b"")
    blocks, size, top = [leaf, empty], 1, leaf
    for _ in range(levels):
        top = file_of(*[(top, size)] * 2, *[(empty, 0)] * width)
        blocks.append(top)
        size *= 2
    return blocks, top.cid


async def test_a_tree_that_costs_more_than_it_holds():
    """Nodes may be large, if there is content for it: a byte behind ever more of them is refused early."""
    blocks, root = bomb(12, 500)
    source = DictSource(blocks)
    got = []
    with pytest.raises(TooLargeError, match="too few bytes"):
        async for piece in DagReader(source).read(root, 2**12, 0, 2**12, budget=1_000_000):
            got.append(piece)
    assert 1 <= len(got) < 100
    assert len(source.gets) < 200


async def test_a_tree_of_tiny_leaves_costs_what_it_may():
    """A byte to a leaf and two children to a node is foolish, and still read to its end."""
    content = pattern(3000)
    imported = import_bytes(content, Profile("tiniest", chunk_size=1, max_links=2))
    reader = DagReader(DictSource(imported.blocks))
    async with aclosing(reader.read(imported.root, 3000, 0, 3000, budget=4096)) as pieces:
        assert b"".join([piece async for piece in pieces]) == content


async def test_a_tree_that_is_too_wide(monkeypatch):
    """What lies before a read is bounded: levels times links do not pile up."""
    monkeypatch.setattr(reader_module, "MAX_PENDING", 100)
    leaf = Block(CID.of(b"z"), b"z")
    blocks, size, top = [leaf], 1, leaf
    for _ in range(4):
        top = file_of((top, size), *[(leaf, 1)] * 40)
        blocks.append(top)
        size += 40
    with pytest.raises(TooLargeError, match="too wide"):
        await read(DagReader(DictSource(blocks)), top.cid)


async def test_large_nodes_are_decoded_once_on_the_given_threads():
    """Many who want the same large node wait for one decoding, on the executor of the node."""
    blocks, root = bomb(1, 2000)
    assert len(blocks[-1].data) > DECODE_ON_LOOP_BYTES
    with ThreadPoolExecutor(4, "given") as executor:
        reader, threads = DagReader(DictSource(blocks), executor), []

        def decode(block):
            threads.append(threading.current_thread().name)
            return DagNode.decode(block)

        first = await reader.parse(decode, blocks[-1].data)
        nodes = await asyncio.gather(*(reader.node(root) for _ in range(5)))
    assert first.starts == (0, 1, 2)
    assert threads[0].startswith("given")
    assert all(node is nodes[0] for node in nodes)


async def test_a_tree_that_is_too_deep():
    """A chain of nodes ends with a clear error."""
    top = Block(CID.of(b"a"), b"a")
    blocks = [top]
    for _ in range(MAX_DEPTH + 2):
        top = file_of((top, 1))
        blocks.append(top)
    with pytest.raises(TooLargeError, match="deeper"):
        await read(DagReader(DictSource(blocks)), top.cid)


async def test_other_codecs_are_not_files():
    """A dag-cbor block is named as such."""
    cid = CID.of(b"\xa0", DAG_CBOR)
    with pytest.raises(UnsupportedMediaError, match="dag-cbor"):
        await DagReader(DictSource([Block(cid, b"\xa0")])).file_size(cid)
