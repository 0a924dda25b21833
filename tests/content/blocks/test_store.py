"""What goes into a store comes out of it, and nothing else does."""

from __future__ import annotations

import hashlib
import random
import threading

import pytest

from ipfs_stream_nb.content.blocks import BlockStore, environment, integrity
from ipfs_stream_nb.content.blocks.records import State
from ipfs_stream_nb.content.cid import CID, DAG_PB, IDENTITY
from ipfs_stream_nb.content.dag_pb import MAX_BLOCK
from ipfs_stream_nb.errors import (
    BadRequestError,
    CorruptContentError,
    DiskFullError,
    NotFoundError,
    QuotaExceededError,
    StoreError,
    TooLargeError,
)
from store_trees import add, damage, keys_of, reachable, stored_keys, tree

DATA = random.Random(1).randbytes(100_000)


@pytest.mark.parametrize("data", [b"", b"x", b"y" * 2000, DATA, bytes(MAX_BLOCK)], ids=len)
def test_a_block_comes_out_as_it_went_in(store, data) -> None:
    """Blocks of any size, whole and in slices, by CIDs of either version."""
    cid = CID.of(data, DAG_PB, 0)
    store.put(cid, data)
    assert store.get(cid) == store.get(cid.v1()) == store.get(CID.of(data)) == data
    for start, stop in [(0, 0), (1, 5), (-3, None), (50_000, 60_000), (10**9, None)]:
        assert store.get(cid, start, stop) == data[start:stop]
    assert store.size(cid) == len(data)
    assert store.has(cid)


def test_views_and_other_hashes(store) -> None:
    """Any bytes-like object and any supported hash function will do."""
    cid = CID(1, 0x55, 0x13, hashlib.sha512(DATA).digest())
    store.put(cid, memoryview(bytearray(DATA)))
    assert store.get(cid) == DATA


def test_identity_blocks_are_always_there(store) -> None:
    """A CID that holds its own block needs no store."""
    cid = CID(1, 0x55, IDENTITY, b"inline")
    store.put(cid, b"inline")
    assert store.get(cid, 1, 3) == b"nl"
    assert store.has(cid)
    assert store.size(cid) == 6
    assert store.stat().blocks == 0
    with pytest.raises(CorruptContentError):
        store.put(cid, b"another")


def test_a_missing_block(store) -> None:
    """What is not there is said to be not there."""
    cid = CID.of(DATA)
    assert not store.has(cid)
    assert store.size(cid) is None
    with pytest.raises(NotFoundError, match=str(cid)):
        store.get(cid)


def test_what_cannot_be_put(store) -> None:
    """Bytes that are not what the CID names, and blocks over the limit."""
    with pytest.raises(CorruptContentError):
        store.put(CID.of(b"one"), b"two")
    big = bytes(MAX_BLOCK + 1)
    with pytest.raises(TooLargeError, match="4,194,305"):
        store.put(CID.of(big), big)
    with store.transfer() as transfer, pytest.raises(CorruptContentError):
        transfer.put([(CID.of(b"good"), b"good"), (CID.of(b"one"), b"two")], verify=True)
    assert store.stat().blocks == 0


def test_a_damaged_block_is_found_on_its_first_read(path) -> None:
    """A flipped bit is never handed out, not in a slice either, and adding the content again mends it."""
    with BlockStore.open(path, min_free=0) as store:
        store.put(CID.of(DATA), DATA)
    damage(path, DATA)
    with BlockStore.open(path, min_free=0) as store:
        cid = CID.of(DATA)
        with pytest.raises(CorruptContentError, match=str(cid)):
            store.get(cid, 0, 10)
        with pytest.raises(CorruptContentError, match=str(cid)):
            store.get(cid)
        assert not store.has(cid)
        store.put(cid, DATA)
        assert store.get(cid) == DATA
        assert store.verify().bad == ()
        assert store.stat().size == len(DATA)


def test_adding_again_mends_what_was_not_read_yet(path) -> None:
    """A block that is acknowledged is sound, also where damaged bytes lay under its key before."""
    with BlockStore.open(path, min_free=0) as store:
        store.put(CID.of(DATA), DATA)
    damage(path, DATA)
    with BlockStore.open(path, min_free=0) as store:
        store.put(CID.of(DATA), DATA)
        assert store.get(CID.of(DATA)) == DATA


def test_verify_names_the_damaged(path) -> None:
    """Every block is hashed, the damaged one is reported, and progress ends at the true total."""
    with BlockStore.open(path, min_free=0) as store:
        store.put(CID.of(DATA), DATA)
        add(store, tree(1))
    damage(path, DATA)
    seen = []
    with BlockStore.open(path, min_free=0) as store:
        result = store.verify(seen.append)
        assert result.bad == (CID.of(DATA),)
        assert result.blocks == store.stat().blocks == seen[-1].blocks == seen[-1].total_blocks
        assert result.bytes == store.stat().size == seen[-1].bytes == seen[-1].total_bytes


def test_the_memory_of_verified_blocks_is_bounded(store, monkeypatch) -> None:
    """The oldest is forgotten and read with a hash again."""
    monkeypatch.setattr(integrity, "MAX_SOUND", 2)
    cids = [CID.of(bytes([n])) for n in range(4)]
    for n, cid in enumerate(cids):
        store.put(cid, bytes([n]))
    sound = store._env.integrity
    assert [sound.is_sound(cid.multihash) for cid in cids] == [False, False, True, True]
    assert store.get(cids[0]) == b"\0"
    assert sound.is_sound(cids[0].multihash)


def test_the_quota(path) -> None:
    """A batch that would pass it is refused whole, with the figures; what is there already costs nothing."""
    with BlockStore.open(path, quota=25_000, min_free=0) as store:
        made = tree(1)
        add(store, made)
        size = store.stat().size
        with pytest.raises(QuotaExceededError, match=f"{size:,}.*25,000"):
            add(store, tree(2, 20_000))
        assert store.stat().size == size
        assert stored_keys(store) == keys_of(made)
        add(store, made)
        assert store.stat().quota == 25_000


def test_the_low_disk_limit(path) -> None:
    """A store never takes the last of a disk, and says how much there is."""
    with BlockStore.open(path, min_free=1 << 60) as store:
        with pytest.raises(DiskFullError, match=r"nearly full.*1,152,921,504,606,846,976"):
            store.put(CID.of(bytes(4_000_000)), bytes(4_000_000))
        assert store.stat().blocks == 0


def test_bad_limits(path) -> None:
    """Negative limits are refused."""
    with pytest.raises(BadRequestError, match="quota"):
        BlockStore.open(path, quota=-1)
    with pytest.raises(BadRequestError, match="min_free"):
        BlockStore.open(path, min_free=-1)


def test_counters_are_exact(store) -> None:
    """Blocks and bytes in `stat` are those in the file, also after blocks were put twice."""
    made = tree(3)
    add(store, made)
    store.put(*made.blocks[0])
    store.put(*made.blocks[0])
    stat = store.stat()
    assert stat.blocks == len(keys_of(made)) == len(stored_keys(store))
    assert stat.size == sum(len(block.data) for block in made.blocks)
    assert stat.disk_size >= stat.size
    assert stat.store_id == store.store_id
    assert len(store.store_id) == 32


def test_a_store_is_shared_within_a_process(path) -> None:
    """It may be opened many times, by other paths too, and each is closed for itself."""
    first = BlockStore.open(path, min_free=0)
    path.with_name("link").symlink_to(path)
    second = BlockStore.open(path.with_name("link"), min_free=0)
    first.put(CID.of(DATA), DATA)
    first.close()
    first.close()
    assert second.get(CID.of(DATA)) == DATA
    for call in (first.stat, first.pins, first.gc, lambda: first.get(CID.of(DATA))):
        with pytest.raises(StoreError, match="closed"):
            call()
    second.close()
    with BlockStore.open(path) as third:
        assert third.get(CID.of(DATA)) == DATA


def test_closing_waits_for_readers(path) -> None:
    """A read that runs ends well before the store goes away under it."""
    store = BlockStore.open(path, min_free=0)
    store.put(CID.of(DATA), DATA)
    order = []
    env = store._env
    with env.read():
        closing = threading.Thread(target=lambda: (store.close(), order.append("closed")))
        closing.start()
        closing.join(0.1)
        order.append("read")
    closing.join()
    assert order == ["read", "closed"]


def test_the_map_grows(path, monkeypatch) -> None:
    """A store takes more than its map was made for, while other threads read."""
    monkeypatch.setattr(environment, "MIN_MAP", 1 << 20)
    with BlockStore.open(path, min_free=0) as store:
        store.put(CID.of(DATA), DATA)
        stop = threading.Event()
        failures = []

        def read() -> None:
            while not stop.is_set():
                if store.get(CID.of(DATA)) != DATA:
                    failures.append("wrong bytes")

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        roots = [add(store, tree(seed, 1_000_000)) for seed in range(8)]
        stop.set()
        for thread in threads:
            thread.join()
        assert not failures
        assert store._env.lmdb.info()["map_size"] >= 8 << 20
        reachable(store, roots)


def test_commits_are_durable(store) -> None:
    """LMDB syncs data and meta page at each commit, and writes through the file: a map fails by SIGBUS on a full disk."""
    flags = store._env.lmdb.flags()
    assert (flags["sync"], flags["metasync"], flags["writemap"], flags["lock"]) == (True, True, False, True)


def test_a_long_read_does_not_stop_others(store) -> None:
    """Readers and a writer go on beside a read transaction that lasts."""
    with store._env.read() as txn:
        done = threading.Thread(target=lambda: store.put(CID.of(DATA), DATA))
        done.start()
        done.join(10)
        assert not done.is_alive()
        assert State.load(txn, store._env.db.meta).blocks == 0
    assert store.get(CID.of(DATA)) == DATA
