"""Fetched blocks are kept while there is room, and never at the cost of what was added or pinned."""

from __future__ import annotations

import contextlib
import random
import threading

import pytest

from ipfs_stream_nb.content.blocks import BlockStore, cache, gc, pins, walk
from ipfs_stream_nb.content.cid import CID, IDENTITY, RAW
from ipfs_stream_nb.content.dag_pb import MAX_BLOCK
from ipfs_stream_nb.errors import (
    BadRequestError,
    BusyError,
    CorruptContentError,
    DiskFullError,
    NotFoundError,
    QuotaExceededError,
    RetrievalError,
    TooLargeError,
)
from store_trees import add, cached_keys, damage, keys_of, kill, reachable, start, stop, stored_keys, tree

PEER = "https://gateway.example"


def block(seed: int, size: int = 1000) -> tuple[CID, bytes]:
    """A raw block of random bytes."""
    data = random.Random(seed).randbytes(size)
    return CID.of(data), data


def here(store: BlockStore, seeds: range) -> list[int]:
    """Which of these blocks the store has."""
    return [seed for seed in seeds if store.has(block(seed)[0])]


@pytest.fixture
def small(path):
    """A store whose cache takes ten blocks of a thousand bytes."""
    with BlockStore.open(path, min_free=0, cache_quota=10_000) as opened:
        yield opened


def test_fetched_blocks_are_kept(small) -> None:
    """They are read like any other, counted twice over, and known as hashed."""
    made = tree(1, 2_000)
    assert small.cache(made.blocks, PEER)
    assert reachable(small, [made.root]) == keys_of(made) == set(cached_keys(small))
    assert small.is_verified(made.root)
    stat = small.stat()
    assert (stat.cache_blocks, stat.cache_size) == (stat.blocks, stat.size)
    assert (stat.blocks, stat.cache_quota) == (len(keys_of(made)), 10_000)
    assert small.cache([], PEER)
    assert small.cache([(CID(1, RAW, IDENTITY, b"inline"), b"inline")], PEER)
    assert small.stat() == stat


def test_the_least_recently_used_go_first(small) -> None:
    """A touch, and being fetched again, make a block the last to go; the cache never passes its quota."""
    for seed in range(10):
        assert small.cache([block(seed)], PEER)
    small.touch([block(0)[0], block(2)[0]])
    assert small.cache([block(1), block(10), block(11)], PEER)
    assert here(small, range(12)) == [0, 1, 2, 5, 6, 7, 8, 9, 10, 11]
    assert small.stat().cache_size == 10_000
    assert cached_keys(small)[:1] == [block(5)[0].multihash]
    assert small.cache([block(seed) for seed in range(20, 27)], PEER)
    assert here(small, range(30)) == [1, 10, 11, *range(20, 27)]


def test_what_was_used_is_noted_at_close(path) -> None:
    """The order holds over a restart."""
    with BlockStore.open(path, min_free=0, cache_quota=10_000) as store:
        store.cache([block(seed) for seed in range(10)], PEER)
        first, second = cached_keys(store)[:2]
        store.touch([CID(1, RAW, 0x12, first[2:])])
    store.touch([block(0)[0]])  # no harm after the end either
    with BlockStore.open(path, min_free=0, cache_quota=10_000) as store:
        assert cached_keys(store)[0] == second
        assert cached_keys(store)[-1] == first


def test_the_memory_of_what_was_used_is_bounded(small, monkeypatch) -> None:
    """The oldest use is forgotten."""
    monkeypatch.setattr(cache, "MAX_TOUCHED", 2)
    small.touch([block(seed)[0] for seed in (1, 2, 1, 3)])
    assert small._env.uses.take() == [block(1)[0].multihash, block(3)[0].multihash]
    assert small._env.uses.take() == []


def test_what_does_not_fit_is_not_kept(path) -> None:
    """A batch over the quota, or any with a quota of 0, is left out whole, and costs nothing that was there."""
    with BlockStore.open(path, min_free=0, cache_quota=0) as store:
        assert not store.cache([block(1)], PEER)
        assert store.stat().blocks == 0
    with BlockStore.open(path, min_free=0, cache_quota=10_000) as store:
        assert store.cache([block(seed) for seed in range(5)], PEER)
        assert not store.cache([block(seed) for seed in range(3, 14)], PEER)
        assert here(store, range(20)) == [0, 1, 2, 3, 4]
        assert not store.cache([block(1), block(99, 9_001)], PEER)
        assert store.cache([block(1), block(99, 9_000)], PEER)
        assert here(store, range(20)) == [1]
        assert len(cached_keys(store)) == 2
        with pytest.raises(TooLargeError):
            store.cache([(CID.of(b""), bytes(MAX_BLOCK + 1))], PEER)
    with pytest.raises(BadRequestError, match="cache_quota"):
        BlockStore.open(path, cache_quota=-1)


def test_a_lower_quota_takes_effect(path, monkeypatch) -> None:
    """The next block that is fetched brings the cache down, some blocks in each commit."""
    monkeypatch.setattr(cache, "EVICTED_AT_ONCE", 7)
    with BlockStore.open(path, min_free=0, cache_quota=None) as store:
        store.cache([block(seed) for seed in range(100)], PEER)
    with BlockStore.open(path, min_free=0, cache_quota=3_000) as store:
        assert store.cache([block(100)], PEER)
        assert len(cached_keys(store)) == 3
        assert here(store, range(101))[-1] == 100


def test_own_blocks_stay_own(small) -> None:
    """What was added is not made evictable by being fetched."""
    made = tree(1, 3_000)
    add(small, made, pin=False)
    assert small.cache(made.blocks, PEER)
    assert cached_keys(small) == []
    assert small.cache([block(seed) for seed in range(10)], PEER)
    assert keys_of(made) <= stored_keys(small)


@pytest.mark.parametrize("how", ["put", "transfer", "keep", "add"])
def test_adding_takes_a_block_out_of_the_cache(small, how) -> None:
    """It is a block like any other then: not evicted, collected as others are."""
    made = tree(1, 2_000)
    small.cache(made.blocks, PEER)
    transfer = small.transfer()
    if how == "put":
        for cid, data in made.blocks:
            small.put(cid, data)
    elif how == "transfer":
        transfer.put(made.blocks)
    elif how == "keep":
        other = block(70)[0]
        transfer.put(made.blocks[-1:])
        assert transfer.keep([other, *(cid for cid, _ in made.blocks[:-1])]) == [other]
    else:
        add(small, made)
    assert cached_keys(small) == []
    for seed in range(20):
        assert small.cache([block(seed)], PEER)
    assert keys_of(made) <= stored_keys(small)
    if how in {"transfer", "keep"}:
        small.gc()
        assert stored_keys(small) == keys_of(made)
        transfer.abort()
    if how == "add":
        small.unpin(made.root)
    small.gc()
    assert stored_keys(small) == set()


def test_pinning_takes_a_tree_out_of_the_cache(small) -> None:
    """Whatever is fetched after it, and also once it is unpinned: from then on garbage collection decides."""
    made = tree(1, 4_000)
    small.cache(made.blocks, PEER)
    small.cache([block(99)], PEER)
    small.pin(made.root, "kept")
    assert cached_keys(small) == [block(99)[0].multihash]
    for seed in range(30):
        assert small.cache([block(seed)], PEER)
    assert reachable(small, [made.root]) == keys_of(made)
    small.unpin(made.root)
    for seed in range(30):
        assert small.cache([block(seed)], PEER)
    assert reachable(small, [made.root]) == keys_of(made)
    small.gc()
    assert stored_keys(small) == set()
    assert cached_keys(small) == []


def test_a_transfer_that_pins_takes_what_it_did_not_put(small) -> None:
    """A directory's own block is put, and the cached tree below it is kept with it."""
    made = tree(1, 4_000)
    small.cache(made.blocks[:-1], PEER)
    with small.transfer() as transfer:
        transfer.put(made.blocks[-1:])
        transfer.commit(made.root)
    assert cached_keys(small) == []
    assert small.gc().kept_blocks == len(keys_of(made))


def test_without_a_cache_a_pin_writes_once(store, monkeypatch) -> None:
    """Nothing is looked up or written where nothing was ever fetched."""
    monkeypatch.setattr(pins, "_take", None)
    monkeypatch.setattr(cache, "mark_used", None)
    monkeypatch.setattr(cache, "evict", None)
    made = tree(1)
    add(store, made, pin=False)
    before = store._env.lmdb.info()["last_txnid"]
    store.pin(made.root)
    assert store._env.lmdb.info()["last_txnid"] == before + 1
    store.touch([made.root])


@pytest.mark.parametrize("how", ["pin", "commit"])
@pytest.mark.parametrize("moment", ["a part, once found", "all, once found", "a part, when looked at"])
def test_an_eviction_between_finding_and_pinning(small, monkeypatch, moment, how) -> None:
    """The pin fails, naming the block; nothing is pinned, and it can be tried again."""
    made = tree(1, 4_000)
    small.cache(made.blocks, PEER)
    env = small._env

    def evict() -> None:
        if "all" in moment:
            with BlockStore.open(small.path, quota=20_500, min_free=0) as other:
                other.put(*block(1, 20_500))
            assert cached_keys(small) == []
        else:
            small.cache([block(seed) for seed in range(8)], PEER)

    class Walk(walk.Walk):
        def add(self, *arguments, **options) -> None:
            super().add(*arguments, **options)
            evict()

    def update(*arguments):
        patch.undo()
        evict()
        return env.update(*arguments)

    with monkeypatch.context() as patch, small.transfer() as transfer:
        if "found" in moment:
            patch.setattr(pins, "Walk", Walk)
        else:
            patch.setattr(env, "update", update)
        with pytest.raises(RetrievalError, match="taken out of the store while it was being pinned"):
            small.pin(made.root) if how == "pin" else transfer.commit(made.root)
    assert small.pins() == []
    small.gc()
    small.cache(made.blocks, PEER)
    small.pin(made.root)
    assert reachable(small, [made.root]) == keys_of(made)


def test_nothing_is_evicted_from_a_tree_that_is_being_hashed(small, monkeypatch) -> None:
    """Once it was found whole it is out of the cache, however long hashing takes; a failed pin leaves it collectable."""
    made = tree(1, 4_000)
    small.cache(made.blocks, PEER)
    verify = pins._verify

    def fetched_meanwhile(*arguments) -> None:
        for seed in range(30):
            assert small.cache([block(seed)], PEER)
        verify(*arguments)

    monkeypatch.setattr(pins, "_verify", fetched_meanwhile)
    small.pin(made.root)
    assert reachable(small, [made.root]) == keys_of(made)


def test_an_add_evicts_what_it_needs(path) -> None:
    """Under a quota for the whole store the cache gives way, the least recently used first, and no more of it."""
    with BlockStore.open(path, quota=20_000, min_free=0) as store:
        assert store.cache([block(seed) for seed in range(18)], PEER)
        store.touch([block(0)[0]])
        store.put(*block(100, 5_000))
        assert len(here(store, range(18))) == 15
        assert store.has(block(0)[0])
        with pytest.raises(QuotaExceededError, match="20,000"), store.transfer() as transfer:
            transfer.put([block(200, 15_001)])
        assert len(here(store, range(18))) == 15
        with store.transfer() as transfer:
            transfer.put([block(200, 15_000)])
        assert cached_keys(store) == []
        assert not store.cache([block(1)], PEER)
        assert store.stat().size == 20_000


def test_an_add_evicts_in_batches(path, monkeypatch) -> None:
    """Also where more has to go than one commit takes, and a block of the add itself is in the cache."""
    monkeypatch.setattr(cache, "EVICTED_AT_ONCE", 5)
    with BlockStore.open(path, quota=60_000, min_free=0) as store:
        assert store.cache([block(seed) for seed in range(58)], PEER)
        store.touch([block(1)[0]])
        with store.transfer() as transfer:
            transfer.put([block(0), block(200, 50_000)])
        assert len(cached_keys(store)) == 9
        assert here(store, range(2)) == [0, 1]


def test_a_nearly_full_disk(small_disk) -> None:
    """The cache uses its own room again, gives way to adds, and leaves the disk what has to stay free."""
    with BlockStore.open(small_disk / "store", min_free=4 << 20) as store:
        for seed in range(60):
            assert store.cache([block(seed, 500_000)], PEER)
        assert 8 <= len(cached_keys(store)) < 20
        assert store.has(block(59)[0]) is False
        assert store.has(block(59, 500_000)[0])
        assert store.stat().disk_free >= 4 << 20
        assert not store.cache([block(seed, 500_000) for seed in range(100, 130)], PEER)
        for seed in range(7):
            store.put(*block(1000 + seed, 500_000))
        with pytest.raises(DiskFullError, match="nearly full"):
            for seed in range(100):
                store.put(*block(2000 + seed, 500_000))
        assert cached_keys(store) == []
        assert not store.cache([block(1, 500_000)], PEER)
        assert store.verify().bad == ()
        assert store.stat().disk_free >= 4 << 20


def test_a_disk_without_limit(small_disk) -> None:
    """With nothing to stay free, blocks of mixed sizes come and go on a full disk, and all that is there is sound."""
    chooser = random.Random(4)
    with BlockStore.open(small_disk / "store", min_free=0) as store:
        kept = [store.cache([block(seed, chooser.randrange(300_000))], PEER) for seed in range(300)]
        assert sum(kept) > 290
        assert len(cached_keys(store)) > 10
        assert store.verify().bad == ()
    with BlockStore.open(small_disk / "store", min_free=0) as store:
        assert store.verify().bad == ()
        assert len(cached_keys(store)) == store.stat().blocks


def test_a_damaged_block_is_mended(path) -> None:
    """Where a read found damage, fetching it again writes it anew, be it cached or pinned."""
    made = tree(1, 300_000)
    one = block(1, 100_000)
    with BlockStore.open(path, min_free=0) as store:
        add(store, made)
        store.cache([one], PEER)
    damage(path, one[1])
    damage(path, bytes(made.blocks[3].data))
    with BlockStore.open(path, min_free=0) as store:
        for cid, data in (one, made.blocks[3]):
            with pytest.raises(CorruptContentError):
                store.get(cid)
            assert store.cache([(cid, data)], PEER)
            assert store.get(cid) == data
        assert cached_keys(store) == [one[0].multihash]
        assert store.verify().bad == ()


def test_collection_takes_the_cache_too(store) -> None:
    """Unless a pin, a transfer or a reader needs it; `remove` takes only its tree; the records go with the blocks."""
    read, held, gone, removed = (tree(seed) for seed in range(4))
    for made in (read, held, gone, removed):
        store.cache(made.blocks, PEER)
    store.remove(removed.root)
    assert set(cached_keys(store)) == keys_of(read) | keys_of(held) | keys_of(gone)
    with store.reading(read.root), store.transfer() as transfer:
        transfer.put(held.blocks[-1:])
        assert store.gc().blocks == len(keys_of(gone))
        assert set(cached_keys(store)) == keys_of(read) | (keys_of(held) - {held.root.multihash})
    store.gc()
    assert stored_keys(store) == set()
    assert cached_keys(store) == []


def test_a_gap_that_is_fetched_while_garbage_is_collected(store, monkeypatch) -> None:
    """A reader fetches a block that was missing when its tree was marked, and pins: nothing of it is swept."""
    made, garbage = tree(1), tree(2)
    late = made.blocks[2]
    add(store, garbage, pin=False)
    store.cache([found for found in made.blocks if found.cid != late.cid], PEER)
    sweep_batch = gc._sweep_batch
    verify = pins._verify

    def fetch_first(env, marks, batch):
        store.cache([late], PEER)

        def swept_meanwhile(*arguments) -> None:
            verify(*arguments)
            sweep_batch(env, marks, [*batch, late.cid.multihash])

        monkeypatch.setattr(pins, "_verify", swept_meanwhile)
        store.pin(made.root)
        return sweep_batch(env, marks, [])

    monkeypatch.setattr(gc, "_sweep_batch", fetch_first)
    with store.reading(made.root):
        store.gc()
    assert stored_keys(store) == keys_of(made)
    assert cached_keys(store) == []


def test_an_evicted_block_is_missing_for_its_reader(small) -> None:
    """Bytes that are being looked at stay readable; the next read does not find them."""
    cid, data = block(1)
    small.cache([(cid, data)], PEER)

    def evict_and_look(view: memoryview) -> bytes:
        evicting = threading.Thread(target=small.cache, args=([block(seed) for seed in range(10, 20)], PEER))
        evicting.start()
        evicting.join()
        return bytes(view)

    with small.reading(cid):
        assert small.peek(cid, evict_and_look) == data
        with pytest.raises(NotFoundError):
            small.get(cid)


def test_one_process_evicts_while_another_pins(path) -> None:
    """Every pin that was acknowledged is whole, whatever is fetched meanwhile; some pins fail, and say why."""
    with BlockStore.open(path, min_free=0, cache_quota=40_000) as store:
        child = start("fetches", path, 40_000)
        child.stdout.readline()
        roots, failed = [], 0
        for seed in range(150):
            made = tree(10_000 + seed)
            store.cache(made.blocks, PEER)
            try:
                roots.append(store.pin(made.root).cid)
            except (RetrievalError, NotFoundError):
                failed += 1
        stop(child)
        assert len(roots) > 20
        reachable(store, roots)
        assert store.stat().cache_size <= 40_000
        cached_keys(store)
        store.gc()
        assert stored_keys(store) == reachable(store, roots)


def test_a_killed_cache_is_whole(path) -> None:
    """Records, blocks and counters agree after a kill -9 in the middle of fetching, evicting and pinning."""
    for _ in range(5):
        child = start("fetches", path, 40_000)
        for _ in range(5):
            child.stdout.readline()
        kill(child)
        with BlockStore.open(path, min_free=0) as store:
            assert cached_keys(store)
            assert store.stat().cache_size <= 40_000
            assert store.verify().bad == ()


def test_threads_share_a_cache(small) -> None:
    """Fetching, adding, touching, pinning and collecting at once leave everything in agreement."""
    roots: list[CID] = []

    def work(number: int) -> None:
        chooser = random.Random(number)
        for turn in range(25):
            made = tree(1000 * number + turn, 2_000)
            small.cache(made.blocks, f"{PEER}/{number}")
            small.touch([made.root])
            if chooser.random() < 0.3:
                roots.append(add(small, made))
            elif chooser.random() < 0.1:
                with contextlib.suppress(BusyError):
                    small.gc()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert roots
    reachable(small, roots)
    cached_keys(small)
