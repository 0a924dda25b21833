"""Where a tree's blocks came from."""

from __future__ import annotations

import time

import pytest

from ipfs_stream_nb.content.blocks import BlockStore, cache
from ipfs_stream_nb.content.node import Origin, Origins
from ipfs_stream_nb.errors import CorruptContentError
from store_trees import add, damage, tree

NEAR, FAR = "Kubo at http://127.0.0.1:5001", "https://gateway.example"


def size(blocks) -> int:
    """Bytes of some blocks."""
    return sum(len(block.data) for block in blocks)


def test_blocks_and_bytes_by_source(store) -> None:
    """The largest source first, with the time of its last block; what is own has no time; gaps are counted."""
    made = tree(1)
    near, far, own = made.blocks[:3], made.blocks[5:], made.blocks[3:4]
    before = time.time()
    store.cache(near, NEAR)
    store.cache(far, FAR)
    store.put(*own[0])
    found = store.origins(made.root)
    assert [(origin.source, origin.blocks, origin.bytes) for origin in found.origins] == [
        (FAR, len(far), size(far)),
        (NEAR, 3, size(near)),
        ("added here", 1, size(own)),
    ]
    assert found.origins[2].last is None
    assert before <= found.origins[1].last <= found.origins[0].last <= time.time()
    assert found.missing == 1
    assert found.root == made.root


def test_a_root_that_is_not_here(store) -> None:
    """It is the one that is missing."""
    root = tree(1).root
    assert store.origins(root) == Origins(root, (), 1)


def test_provenance_lasts_as_long_as_the_block(store) -> None:
    """Pinned and added again it is still from its source; collected and added it is from here."""
    made = tree(1)
    store.cache(made.blocks, FAR)
    store.cache(made.blocks, NEAR)
    add(store, made)
    assert [origin.source for origin in store.origins(made.root).origins] == [FAR]
    store.remove(made.root)
    add(store, made)
    assert [origin.source for origin in store.origins(made.root).origins] == ["added here"]


def test_a_transfer_names_its_source(store) -> None:
    """What is fetched in order to be pinned never was in the cache, and is known to be from there."""
    made, own = tree(1), tree(1).blocks[0]
    store.put(*own)
    with store.transfer() as transfer:
        transfer.put(made.blocks, source=FAR)
        transfer.commit(made.root)
    assert store.stat().cache_blocks == 0
    assert {origin.source: origin.blocks for origin in store.origins(made.root).origins} == {
        FAR: len(made.blocks) - 1,
        "added here": 1,
    }


def test_names_of_sources_are_bounded(store, monkeypatch) -> None:
    """In number and in length; what is over is one source, and names may be of any letters."""
    monkeypatch.setattr(cache, "MAX_SOURCES", 2)
    for seed, name in enumerate(["ä" * 1000, "b", "c", "", "b"]):
        assert store.cache(tree(seed, 500).blocks, name)
    names = [store.origins(tree(seed, 500).root).origins[0].source for seed in range(5)]
    assert names == ["ä" * 250, "b", "other sources", "other sources", "b"]


def test_damage_is_told(path) -> None:
    """Nobody knows what is below a damaged node."""
    made = tree(1)
    with BlockStore.open(path, min_free=0) as store:
        store.cache(made.blocks, FAR)
    damage(path, bytes(made.blocks[-1].data))
    with BlockStore.open(path, min_free=0) as store, pytest.raises(CorruptContentError):
        store.origins(made.root)


def test_origins_are_a_table() -> None:
    """One row for each source, and one for what is not here, escaped."""
    root = tree(1).root
    html = Origins(root, (Origin("<b>", 2, 2048, 1e9), Origin("added here", 1, 5)), 3)._repr_html_()
    assert "&lt;b&gt;</td><td>2</td><td>2.0 KiB</td><td>2001-09-0" in html
    assert "added here</td><td>1</td><td>5 bytes</td><td></td>" in html
    assert "not here</td><td>3</td>" in html
    assert str(root) in html
    assert "not here" not in Origins(root, (), 0)._repr_html_()
