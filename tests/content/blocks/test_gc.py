"""Garbage collection takes what nobody needs, and nothing else, whoever else is at work."""

from __future__ import annotations

import threading

import pytest

from ipfs_stream_nb.content import dag_pb
from ipfs_stream_nb.content.blocks import BlockStore, gc
from ipfs_stream_nb.content.cid import CID, DAG_PB
from ipfs_stream_nb.content.dag_pb import PBLink, PBNode
from ipfs_stream_nb.errors import BusyError, CorruptContentError, NotFoundError
from store_trees import add, damage, keys_of, kill, reachable, start, stop, stored_keys, tree


def test_only_what_is_pinned_stays(store) -> None:
    """Counts, bytes and what is left are all as they should be."""
    kept, gone = tree(1), tree(2, 50_000)
    add(store, kept)
    add(store, gone, pin=False)
    seen = []
    result = store.gc(seen.append)
    assert stored_keys(store) == keys_of(kept)
    assert (result.blocks, result.kept_blocks) == (len(keys_of(gone)), len(keys_of(kept)))
    assert result.bytes == sum(len(block.data) for block in gone.blocks)
    assert (seen[-1].blocks, seen[-1].bytes) == (result.blocks, result.bytes)
    assert store.stat().blocks == len(keys_of(kept))
    assert store.gc().blocks == 0


def test_many_batches(store, monkeypatch) -> None:
    """Large collections are cut into batches, and keys are read a few at a time."""
    monkeypatch.setattr(gc, "BATCH", 7)
    monkeypatch.setattr(gc, "_KEYS_AT_ONCE", 5)
    kept = add(store, tree(1))
    add(store, tree(2, 100_000), pin=False)
    store.gc()
    assert stored_keys(store) == reachable(store, [kept])


def test_remove_takes_what_only_that_root_needed(store) -> None:
    """Blocks shared with another pin stay, other garbage is not touched, and the pin is gone."""
    one, two, orphan = tree(1), tree(2), tree(3)
    for made in (one, two):
        add(store, made)
    add(store, orphan, pin=False)
    block = dag_pb.encode(
        PBNode(tuple(PBLink(made.root, name, 0) for name, made in (("a", one), ("b", two))), b"")
    )
    both = CID.of(block, DAG_PB)
    store.put(both, block)
    store.pin(both)
    assert store.remove(one.root).blocks == 0
    result = store.remove(both)
    assert result.blocks == 1 + len(keys_of(one))
    assert stored_keys(store) == keys_of(two) | keys_of(orphan)
    assert [pin.cid for pin in store.pins()] == [two.root]
    with pytest.raises(NotFoundError, match=str(both)):
        store.remove(both)
    store.remove(orphan.root)
    assert stored_keys(store) == keys_of(two)


def test_a_running_transfer_is_left_alone(store) -> None:
    """Its blocks stay, those that were there before as orphans too, and what they link to."""
    made, orphan = tree(1), tree(2)
    add(store, orphan, pin=False)
    with store.transfer() as transfer, store.transfer() as other:
        transfer.put(made.blocks[:5])
        transfer.put([orphan.blocks[-1]])
        other.put([orphan.blocks[0]])
        assert store.gc().blocks == 0
        transfer.abort()
        store.gc()
        assert stored_keys(store) == {orphan.blocks[0].cid.multihash}
    assert store.gc().kept_blocks == 0


def test_a_root_that_is_read_is_left_alone(store) -> None:
    """As long as any of its readers is there."""
    made = tree(1)
    add(store, made, pin=False)
    with store.reading(made.root):
        with store.reading(made.root):
            assert store.gc().blocks == 0
        assert store.gc().blocks == 0
    assert store.gc().blocks == len(keys_of(made))


def test_what_arrives_below_a_marked_gap(store, monkeypatch) -> None:
    """A tree that is completed and pinned between marking and sweeping is kept whole."""
    made, garbage = tree(1), tree(2)
    late = made.blocks[2]
    add(store, garbage, pin=False)
    transfer = store.transfer()
    transfer.put([block for block in made.blocks if block.cid != late.cid])
    sweep_batch = gc._sweep_batch

    def complete_first(env, marks, batch):
        store.put(*late)
        transfer.commit(made.root)
        return sweep_batch(env, marks, [*batch, late.cid.multihash])

    monkeypatch.setattr(gc, "_sweep_batch", complete_first)
    store.gc()
    assert stored_keys(store) == keys_of(made)


def test_a_damaged_pin_stops_collection(path) -> None:
    """Nobody knows what was below a damaged node, so nothing is deleted until the pin is gone or mended."""
    made = tree(1)
    with BlockStore.open(path, min_free=0) as store:
        add(store, made)
        add(store, tree(2), pin=False)
    inner = made.blocks[-2]
    damage(path, bytes(inner.data))
    with BlockStore.open(path, min_free=0) as store:
        before = stored_keys(store)
        with pytest.raises(CorruptContentError, match=str(inner.cid)):
            store.gc()
        assert stored_keys(store) == before
        store.put(*inner)
        store.gc()
        assert stored_keys(store) == keys_of(made)


def test_damaged_content_can_be_removed(path) -> None:
    """What it was is unpinned and goes, the rest of it with the next collection."""
    made = tree(1)
    with BlockStore.open(path, min_free=0) as store:
        add(store, made)
    damage(path, bytes(made.blocks[-2].data))
    with BlockStore.open(path, min_free=0) as store:
        store.remove(made.root)
        store.gc()
        assert stored_keys(store) == set()


def test_one_collection_at_a_time(store) -> None:
    """A second one is told to come later."""
    with gc.one_at_a_time(store._env, wait=0), pytest.raises(BusyError, match="collected"):
        store.gc()


def test_a_killed_process_leaves_no_transfer(path) -> None:
    """Its notes hold while it lives, and not longer; no restart is needed."""
    with BlockStore.open(path, min_free=0) as store:
        child = start("abandon", path, 1)
        child.stdout.readline()
        assert store.gc().blocks == 0
        kill(child)
        assert store.gc().blocks == len(keys_of(tree(1)))
        assert len(list((path / "locks").glob("owner-*"))) == 1


def test_a_killed_process_leaves_no_transfer_for_the_next(path) -> None:
    """Opening drops the notes of the dead."""
    child = start("abandon", path, 1)
    child.stdout.readline()
    kill(child)
    with BlockStore.open(path, min_free=0) as store, store._env.read() as txn:
        assert txn.stat(store._env.db.transfers)["entries"] == 0


def test_a_reader_in_another_process(path) -> None:
    """Its lease is seen, and ends with it."""
    made = tree(1)
    with BlockStore.open(path, min_free=0) as store:
        add(store, made, pin=False)
        child = start("lease", path, made.root)
        child.stdout.readline()
        assert store.gc().blocks == 0
        stop(child)
        assert store.gc().blocks == len(keys_of(made))


def test_collecting_while_another_process_adds(path) -> None:
    """Two processes add and pin while a third collects as fast as it can: all that was acknowledged is there."""
    with BlockStore.open(path, min_free=0) as store:
        collector = start("collects", path)
        collector.stdout.readline()  # it is at work
        adders = [start("adds", path, seed, 60) for seed in (10_000, 20_000)]
        roots = [CID.parse(line) for adder in adders for line in stop(adder)]
        assert len(roots) == 120
        # some of what they left was collected, at the latest now that they are done
        while not int(collector.stdout.readline()):
            pass
        stop(collector)
        found = reachable(store, roots)
        store.gc()
        assert stored_keys(store) == found
        assert store.verify().bad == ()


def test_collecting_while_threads_add(store) -> None:
    """The same in one process."""
    roots, done = [], threading.Event()

    def adds(seed: int) -> None:
        roots.extend(add(store, tree(seed + n)) for n in range(15))

    def collects() -> None:
        while not done.is_set():
            store.gc()

    threads = [threading.Thread(target=adds, args=(seed,)) for seed in (100, 200)]
    collector = threading.Thread(target=collects)
    for thread in [collector, *threads]:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    collector.join()
    assert len(roots) == 30
    found = reachable(store, roots)
    store.gc()
    assert stored_keys(store) == found
