"""Pins keep whole trees, and say what is missing."""

from __future__ import annotations

import pytest

from ipfs_stream_nb.content import dag_pb
from ipfs_stream_nb.content.blocks import BlockStore, walk
from ipfs_stream_nb.content.cid import CID, DAG_CBOR, DAG_PB, IDENTITY, RAW
from ipfs_stream_nb.content.dag_pb import PBLink, PBNode
from ipfs_stream_nb.content.importer import get_profile
from ipfs_stream_nb.errors import (
    BadRequestError,
    CorruptContentError,
    NotFoundError,
    RetrievalError,
    TooLargeError,
)
from store_trees import add, damage, keys_of, stored_keys, tree


def node(store, *children: CID, data: bytes = b"") -> CID:
    """Put a dag-pb block that links to these."""
    block = dag_pb.encode(PBNode(tuple(PBLink(child, "", 0) for child in children), data))
    cid = CID.of(block, DAG_PB)
    store.put(cid, block)
    return cid


def test_pins_are_listed_by_age(store) -> None:
    """Oldest first, with names and times; pinning again keeps the place and takes a new name."""
    roots = [add(store, tree(seed), name=f"file {seed}") for seed in (5, 3, 4)]
    times = [pin.created for pin in store.pins()]
    assert [(pin.cid, pin.name) for pin in store.pins()] == list(
        zip(roots, ["file 5", "file 3", "file 4"], strict=True)
    )
    assert times == sorted(times)
    assert times[0] > 1_600_000_000
    assert store.pin(roots[0], "renamed").created == times[0]
    store.pin(roots[1])
    assert [pin.name for pin in store.pins()] == ["renamed", "file 3", "file 4"]


def test_both_versions_of_a_cid_are_one_pin(store) -> None:
    """A pin made by a CIDv0 is taken back by its CIDv1."""
    made = tree(1, profile=get_profile("unixfs-v0-2015"))
    assert made.root.version == 0
    add(store, made)
    assert store.is_pinned(made.root.v1())
    assert store.pins()[0].cid == made.root
    store.unpin(made.root.v1())
    assert store.pins() == []
    with pytest.raises(NotFoundError, match="not pinned"):
        store.unpin(made.root)


def test_pins_survive_reopening(path) -> None:
    """They are in the file."""
    with BlockStore.open(path, min_free=0) as store:
        root = add(store, tree(1), name="ä" * 100)
        pin = store.pins()[0]
    with BlockStore.open(path, min_free=0) as store:
        assert store.pins() == [pin]
        assert store.is_pinned(root)


def test_a_tree_with_a_gap_is_not_pinned(store) -> None:
    """The first missing block is named, whether it has links or not; a root that is not here is not found."""
    made = tree(1)
    for missing in (made.blocks[4], made.blocks[-2], made.blocks[-1]):
        for block in made.blocks:
            if block.cid != missing.cid:
                store.put(*block)
        error = NotFoundError if missing.cid == made.root else RetrievalError
        with pytest.raises(error, match=str(missing.cid)):
            store.pin(made.root)
        with store.transfer() as transfer, pytest.raises(error, match=str(missing.cid)):
            transfer.commit(made.root)
        assert store.pins() == []
        store.gc()


def test_progress_has_true_totals(path) -> None:
    """Totals are unknown, then true, and the last report says that everything is done."""
    made = tree(1, 900_000)
    with BlockStore.open(path, min_free=0) as store:
        add(store, made, pin=False)
    seen = []
    with BlockStore.open(path, min_free=0) as store:
        store.pin(made.root, progress=seen.append)
        stat = store.stat()
    assert (seen[-1].blocks, seen[-1].bytes) == (stat.blocks, stat.size)
    assert {(p.total_blocks, p.total_bytes) for p in seen} == {(None, None), (stat.blocks, stat.size)}
    known = [p for p in seen if p.total_blocks]
    assert [p.blocks for p in known] == sorted(p.blocks for p in known)
    assert len(known) > 3


def test_pinning_finds_damage(path) -> None:
    """A leaf with a flipped bit is found before it is promised."""
    made = tree(1)
    with BlockStore.open(path, min_free=0) as store:
        add(store, made, pin=False)
    damage(path, bytes(made.blocks[3].data))
    with BlockStore.open(path, min_free=0) as store, pytest.raises(CorruptContentError) as error:
        store.pin(made.root)
    assert str(made.blocks[3].cid) in str(error.value)


def test_shared_trees_are_walked_once(store) -> None:
    """A bomb of 60 levels with two links each to the next would have 2^60 paths."""
    cid = node(store, data=b"end")
    for _ in range(60):
        cid = node(store, cid, cid, data=b"x")
    seen = []
    store.pin(cid, progress=seen.append)
    assert seen[-1].total_blocks == 61
    assert store.gc().kept_blocks == 61


def test_limits_of_a_walk(store, monkeypatch) -> None:
    """Too deep and too large trees are refused with the limit, and garbage collection copes with them."""
    cid = node(store, data=b"end")
    for _ in range(30):
        cid = node(store, cid)
    monkeypatch.setattr(walk, "MAX_DEPTH", 20)
    with pytest.raises(TooLargeError, match="20 levels"):
        store.pin(cid)
    monkeypatch.setattr(walk, "MAX_DEPTH", 1000)
    monkeypatch.setattr(walk, "MAX_BLOCKS", 30)
    with pytest.raises(TooLargeError, match="30 blocks"):
        store.pin(cid)
    with store.reading(cid):
        assert store.gc().blocks == 0
    assert store.gc().blocks == 31


def test_bytes_that_are_raw_here_and_a_node_there(store) -> None:
    """A block that was met as raw is still followed where a link reads it as dag-pb."""
    leaf = node(store, data=b"leaf")
    inner = node(store, leaf)
    as_raw = CID(1, RAW, inner.hash_code, inner.digest)
    store.pin(node(store, as_raw, inner))
    assert store.gc().blocks == 0
    assert store.has(leaf)


def test_links_of_other_kinds(store) -> None:
    """DAG-CBOR is followed, identity CIDs with links inside are, and unknown codecs are leaves."""
    leaf = node(store, data=b"leaf")
    cbor = b"\x81\xd8\x2a\x58\x25\x00" + bytes(leaf)
    root = CID.of(cbor, DAG_CBOR)
    store.put(root, cbor)
    inline = CID(1, DAG_PB, IDENTITY, dag_pb.encode(PBNode((PBLink(root, "", 0),), None)))
    unknown = CID.of(b"bitcoin", 0xB0)
    store.put(unknown, b"bitcoin")
    store.pin(node(store, inline, unknown))
    assert store.gc().blocks == 0
    assert store.stat().blocks == 4


def test_a_block_that_is_not_of_its_codec(store) -> None:
    """It can't be pinned as a node; it can be held, and collected."""
    junk = CID.of(b"\xff\xff junk", DAG_PB)
    store.put(junk, b"\xff\xff junk")
    with pytest.raises(CorruptContentError):
        store.pin(junk)
    with store.reading(junk):
        assert store.gc().blocks == 0
    assert store.gc().blocks == 1


def test_names_have_a_limit(store) -> None:
    """A name that is no name is refused before anything is done."""
    made = tree(1)
    with pytest.raises(BadRequestError, match="4096"):
        add(store, made, name="x" * 5000)


def test_a_transfer_pins_in_its_last_commit(store) -> None:
    """After it the notes are gone, and the pin is there; without it nothing is pinned."""
    made, other = tree(1), tree(2)
    with store.transfer() as transfer:
        transfer.put(made.blocks)
        pin = transfer.commit(made.root, name="n")
        with pytest.raises(BadRequestError, match="finished"):
            transfer.put(made.blocks)
    assert pin == store.pins()[0]
    with pytest.raises(KeyError), store.transfer() as transfer:
        transfer.put(other.blocks)
        raise KeyError
    transfer.abort()
    assert store.gc().blocks == len(keys_of(other))
    assert stored_keys(store) == keys_of(made)
