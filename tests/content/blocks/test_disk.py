"""A disk that fills up: a clear error, everything from before intact, and on it goes when there is room again."""

from __future__ import annotations

import random

import pytest

from ipfs_stream_nb.content.blocks import BlockStore
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.errors import DiskFullError
from store_trees import add, keys_of, reachable, start, stop, stored_keys, tree


def fill(store: BlockStore) -> tuple[list[CID], str]:
    """Add 1 MiB blocks until there is no room; what was acknowledged, and the error."""
    cids = []
    with pytest.raises(DiskFullError) as error:
        for number in range(100):
            data = random.Random(number).randbytes(1 << 20)
            store.put(CID.of(data), data)
            cids.append(CID.of(data))
    return cids, str(error.value)


def test_a_disk_that_fills_up(small_disk) -> None:
    """Batches fail whole, reads and collection go on, what collection freed is used again, and it survives reopening."""
    (small_disk / "ballast").write_bytes(bytes(2 << 20))
    with BlockStore.open(small_disk / "store", min_free=0) as store:
        kept = tree(1, 200_000)
        add(store, kept)
        cids, text = fill(store)
        assert len(cids) >= 8
        assert "bytes are free" in text
        for cid in cids:
            cid.verify(store.get(cid))
        with store.transfer() as transfer, pytest.raises(DiskFullError):
            transfer.put(tree(2, 4_000_000).blocks)
        (small_disk / "ballast").unlink()
        more, _ = fill(store)
        assert more[: len(cids)] == cids
        assert len(more) > len(cids)
    with BlockStore.open(small_disk / "store", min_free=0) as store:
        assert store.verify().bad == ()
        for cid in more:
            store.get(cid)
        assert store.gc().blocks == len(more)
        assert stored_keys(store) == keys_of(kept)
        for _ in range(2):  # LMDB uses freed pages again once the transaction that freed them is past
            assert len(fill(store)[0]) >= len(more) - 2
            store.gc()
        assert reachable(store, [kept.root]) == keys_of(kept)


def test_a_commit_that_fails_on_a_full_disk(small_disk) -> None:
    """Free space in pieces too small to use makes the file grow against expectation, until the disk refuses."""
    with BlockStore.open(small_disk / "store", min_free=0) as store:
        pieces = [random.Random(number).randbytes(200_000) for number in range(64)]
        for number, piece in enumerate(pieces):
            store.put(CID.of(piece), piece)
            if number % 2:
                store.pin(CID.of(piece))
        store.gc()
        (small_disk / "ballast").write_bytes(bytes(store.stat().disk_free - 100_000))
        cids, text = fill(store)
        assert "No space left on device" in text or "Input/output error" in text
        for cid in cids:
            cid.verify(store.get(cid))
        assert store.verify().bad == ()
        assert [store.get(CID.of(piece)) == piece for piece in pieces[1::2]] == [True] * 32
        store.gc()
        assert store.stat().blocks == 32
        small = [piece[:190_000] for piece in pieces[::2]]
        with store.transfer() as transfer:
            transfer.put([(CID.of(piece), piece) for piece in small[:8]])
            assert store.gc().blocks == 0


def test_the_low_disk_limit_holds(small_disk) -> None:
    """The store stops while the disk has that much left."""
    with BlockStore.open(small_disk / "store", min_free=4 << 20) as store:
        cids, text = fill(store)
        assert "nearly full" in text
        assert store.stat().disk_free >= 4 << 20
        assert len(cids) >= 6


def test_compacting_needs_room(small_disk) -> None:
    """Without it, it says so and changes nothing; with it, the disk gets its space back."""
    with BlockStore.open(small_disk / "store", min_free=0) as store:
        fill(store)
        with pytest.raises(DiskFullError, match="compacting"):
            store.compact()
        assert store.verify().bad == ()
        store.gc()
        before = store.stat()
        assert store.compact() > 10 << 20
        assert store.stat().disk_size < 1 << 20
        assert store.stat().disk_free > before.disk_free + (10 << 20)


def test_a_limit_on_the_size_of_files(path) -> None:
    """RLIMIT_FSIZE is the same kind of end, told as clearly."""
    lines = stop(start("fill", path, 20 << 20))
    assert lines[0].startswith("DiskFullError no room under the block store")
    assert "File too large" in lines[0]
    read, freed = map(int, lines[1].split())
    assert read == freed >= 15 << 20
