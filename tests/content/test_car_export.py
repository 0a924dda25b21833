"""CARs of DAGs that share blocks, in every way that they can."""

from __future__ import annotations

import tracemalloc
from contextlib import nullcontext

import pytest

from dag_source import DictSource
from ipfs_stream_nb.content import car_export, unixfs
from ipfs_stream_nb.content.car import CarDecoder
from ipfs_stream_nb.content.car_export import export_car
from ipfs_stream_nb.content.cid import CID, DAG_PB
from ipfs_stream_nb.content.dag_pb import PBLink, PBNode, encode
from ipfs_stream_nb.content.importer import Block
from ipfs_stream_nb.content.reader import DagReader
from ipfs_stream_nb.content.unixfs import UnixFSNode, UnixFSType
from ipfs_stream_nb.errors import NotFoundError, TooLargeError


def raw(data: bytes) -> Block:
    return Block(CID.of(data), data)


def node_of(*children: CID) -> Block:
    """A dag-pb node that links to these, and is no UnixFS."""
    data = encode(PBNode(tuple(PBLink(cid, "", 0) for cid in children)))
    return Block(CID.of(data, DAG_PB), data)


def file_of(*children: tuple[Block, int]) -> Block:
    sizes = tuple(size for _, size in children)
    links = tuple(PBLink(block.cid, "", 0) for block, _ in children)
    data = unixfs.encode(UnixFSNode(UnixFSType.FILE, file_size=sum(sizes), block_sizes=sizes, links=links))
    return Block(CID.of(data, DAG_PB), data)


async def exported(source: DictSource, root: CID, **options) -> list[CID]:
    """The CIDs of the CAR, in order; what they hold is compared with the source."""
    decoder, cids = CarDecoder(), []
    async for piece in export_car(DagReader(source), root, lease=lambda _: nullcontext(), **options):
        for cid, block in decoder.feed(piece):
            assert source.blocks.get(cid, block) == block
            cids.append(cid)
    decoder.finish()
    assert decoder.roots == [root] or tuple(decoder.roots) == (root,)
    return cids


LEAVES = [raw(bytes([65 + index]) * 100) for index in range(4)]
INNER = file_of(*((leaf, 100) for leaf in LEAVES))
REPEATED = file_of(*[(INNER, 400)] * 3)


@pytest.mark.parametrize(
    ("entity_bytes", "leaves"),
    [((350, 450), [3, 0]), ((350, None), [3, 0, 1, 2]), ((150, 160), [1]), ((399, 800), [3, 0, 1, 2])],
)
async def test_a_node_that_is_wanted_twice_in_different_parts(entity_bytes, leaves):
    """A node that stands twice in a file is gone into for each part that is wanted of it, and sent once."""
    source = DictSource([REPEATED, INNER, *LEAVES])
    cids = await exported(source, REPEATED.cid, scope="entity", entity_bytes=entity_bytes)
    assert cids == [REPEATED.cid, INNER.cid, *(LEAVES[index].cid for index in leaves)]


@pytest.mark.parametrize("raw_first", [True, False])
async def test_the_same_bytes_as_raw_and_as_dag_pb(raw_first):
    """Bytes that are linked as raw and as dag-pb are sent once, and what is below them too."""
    leaf = raw(b"kid")
    inner = node_of(leaf.cid)
    alias = CID.of(inner.data)
    root = node_of(*([alias, inner.cid] if raw_first else [inner.cid, alias]))
    source = DictSource([root, inner, leaf, Block(alias, inner.data)])
    assert await exported(source, root.cid) == [root.cid, alias if raw_first else inner.cid, leaf.cid]


async def test_what_an_identity_links_to():
    """A node inside a CID is not sent, and what it links to is."""
    leaf = raw(b"kid")
    root = node_of(CID(1, DAG_PB, 0, bytes(node_of(leaf.cid).data)))

    class Inlined(DictSource):
        async def get(self, cid, start=0, stop=None):
            return cid.digest if cid.is_identity else await super().get(cid, start, stop)

    assert await exported(Inlined([root, leaf]), root.cid) == [root.cid, leaf.cid]


async def test_depth_first():
    """Blocks come in the order of a walk depth first, each where it is met first."""
    a, b, c = raw(b"a"), raw(b"b"), raw(b"c")
    low = node_of(b.cid, c.cid)
    high = node_of(a.cid, low.cid, a.cid)
    root = node_of(high.cid, c.cid, b.cid, low.cid)
    order = [root, high, a, low, b, c]
    assert await exported(DictSource(order), root.cid) == [block.cid for block in order]


async def test_a_bomb_of_links_is_walked_once():
    """Levels of nodes with thousands of links to the next cost a visit a node, and no memory for the links."""
    leaf, links = raw(b"x"), 2000
    blocks = [leaf]
    for _ in range(40):
        blocks.append(node_of(*[blocks[-1].cid] * links))
    source = DictSource(blocks)
    tracemalloc.start()
    try:
        cids = await exported(source, blocks[-1].cid)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert cids == [block.cid for block in reversed(blocks)]
    assert len(source.gets) == len(blocks)
    assert peak < 8 * 1024 * 1024


async def test_links_of_all_levels_do_not_pile_up(monkeypatch):
    """Leaves that every level links to are planned once: the limit counts blocks, not links."""
    leaves = [raw(b"%d" % index) for index in range(50)]
    blocks = [*leaves]
    for _ in range(20):
        blocks.append(node_of(blocks[-1].cid, *(leaf.cid for leaf in leaves)))
    monkeypatch.setattr(car_export, "MAX_BLOCKS", len(blocks))
    assert len(await exported(DictSource(blocks), blocks[-1].cid)) == len(blocks)
    monkeypatch.setattr(car_export, "MAX_BLOCKS", len(blocks) - 1)
    with pytest.raises(TooLargeError, match="parts of"):
        await exported(DictSource(blocks), blocks[-1].cid)


async def test_a_repeated_file_bomb_in_parts():
    """2^60 bytes out of 20 blocks: a part costs the blocks that it touches, and two ways down."""
    leaf = raw(b"ab")
    blocks, size, top = [leaf], 2, leaf
    for _ in range(19):
        top = file_of(*[(top, size)] * 8)
        blocks.append(top)
        size *= 8
    source = DictSource(blocks)
    cids = await exported(source, top.cid, scope="entity", entity_bytes=(3, size - 3))
    assert set(cids) == {block.cid for block in blocks}
    assert len(cids) == len(blocks)
    assert len(source.gets) < 4 * len(blocks)


async def test_nothing_is_sent_of_what_is_not_here():
    """Where the root is missing there is an error and not a byte."""
    pieces = export_car(DagReader(DictSource()), CID.of(b"x", DAG_PB), lease=lambda _: nullcontext())
    with pytest.raises(NotFoundError):
        await anext(pieces)
