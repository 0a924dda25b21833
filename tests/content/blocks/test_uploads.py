"""The records of uploads that outlive their processes, and the blocks that go with them."""

from __future__ import annotations

import contextlib
import random
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import small_disks
from ipfs_stream_nb.content.blocks import BlockStore, gc
from ipfs_stream_nb.content.blocks import uploads as module
from ipfs_stream_nb.content.blocks.uploads import UploadRecord
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.importer import Child, import_bytes
from ipfs_stream_nb.errors import BusyError, DiskFullError, NotFoundError, QuotaExceededError
from store_trees import SMALL, add, keys_of, stored_keys, tree

MIB = 1 << 20
CIDS = st.binary(max_size=4).map(CID.of)
SIZES = st.integers(0, 1 << 60)
CHILDREN = st.builds(Child, CIDS, SIZES, SIZES)
RECORDS = st.builds(
    UploadRecord,
    id=st.binary(min_size=16, max_size=16),
    name=st.text(),
    mime_type=st.text(max_size=9),
    size=st.none() | SIZES,
    profile=st.text(max_size=9),
    durable=SIZES,
    levels=st.lists(st.lists(CHILDREN, max_size=3).map(tuple), max_size=3).map(tuple),
    tail=st.binary(max_size=50),
    generation=SIZES,
    updated=st.floats(0, 1e12),
    result=st.none() | st.tuples(CIDS, SIZES, SIZES),
)


@given(RECORDS)
def test_a_record_is_what_was_packed(record):
    """Every field comes back; without the large ones where those are not wanted."""
    raw = memoryview(record.pack())
    assert UploadRecord.unpack(record.id, raw) == record
    assert UploadRecord.unpack(record.id, raw, whole=False) == replace(record, levels=((),), tail=b"")


def record_of(number=1, **facts):
    """A new one."""
    return UploadRecord(number.to_bytes(16, "big"), "a", "", None, "unixfs-v1-2025", **facts)


def notes(store):
    """The keys of the notes of transfers."""
    env = store._env
    with env.read() as txn:
        return [bytes(key) for key in txn.cursor(env.db.transfers).iternext(values=False)]


def test_whoever_was_replaced_changes_nothing(store):
    """A writer of an older generation stores neither blocks nor its record, and finishes nothing."""
    made = tree(1)
    old = record_of()
    store.uploads.begin(old, 5)
    new = store.uploads.resume(old.id)
    assert new.generation == old.generation + 1
    finished = replace(old, result=(made.root, made.file_size, made.dag_size))
    for call in (
        lambda: store.uploads.checkpoint(replace(old, durable=5), made.blocks),
        lambda: store.uploads.checkpoint(replace(old, durable=5), []),
        lambda: store.uploads.finish(finished, pin=False),
    ):
        with pytest.raises(BusyError, match="another connection"):
            call()
    assert stored_keys(store) == set()
    assert store.uploads.resume(old.id).durable == 0
    store.uploads.checkpoint(replace(new, generation=3, durable=7, tail=b"tail"), made.blocks)
    assert store.uploads.resume(old.id).tail == b"tail"


def test_a_record_and_its_blocks_are_one_commit(path):
    """Where the blocks do not fit, the record stays what it was."""
    made = tree(1)
    with BlockStore.open(path, min_free=0, quota=2000) as store:
        record = record_of()
        store.uploads.begin(record, 5)
        with pytest.raises(QuotaExceededError):
            store.uploads.checkpoint(replace(record, durable=10_000), made.blocks)
        assert store.uploads.resume(record.id).durable == 0
        assert notes(store) == []


def test_blocks_outlive_the_process_and_no_longer_than_the_record(path):
    """Reopening and collecting leave the blocks of an upload; once it is discarded they are gone, at once."""
    made = tree(1)
    record = record_of()
    with BlockStore.open(path, min_free=0) as store:
        store.uploads.begin(record, 5)
        store.uploads.checkpoint(record, made.blocks[:9])
        store.uploads.checkpoint(record, made.blocks[9:])
    for _ in range(2):
        with BlockStore.open(path, min_free=0) as store:
            assert store.gc().blocks == 0
            assert stored_keys(store) == keys_of(made)
            assert len(notes(store)) == 2
    with BlockStore.open(path, min_free=0) as store:
        assert store.uploads.discard(record.id)
        assert not store.uploads.discard(record.id)
        assert (stored_keys(store), notes(store), store.stat().size) == (set(), [], 0)


def test_what_others_need_is_left(store):
    """Blocks that are pinned, in a transfer, in another upload or being read stay when an upload is discarded."""
    pinned, moving, other, read, own = (tree(number) for number in range(5))
    add(store, pinned)
    record, second = record_of(1), record_of(2)
    for one in (record, second):
        store.uploads.begin(one, 5)
    store.uploads.checkpoint(second, other.blocks)
    blocks = [block for made in (pinned, moving, other, read, own) for block in made.blocks]
    with store.transfer() as transfer, store.reading(read.root):
        transfer.put(moving.blocks)
        store.uploads.checkpoint(record, blocks)
        store.uploads.discard(record.id)
        assert stored_keys(store) == keys_of(pinned) | keys_of(moving) | keys_of(other) | keys_of(read)
    store.gc()
    assert stored_keys(store) == keys_of(pinned) | keys_of(other)


def test_finishing_keeps_the_result_alone(store):
    """The notes go in the commit that pins the root; what is not below it is garbage; without a pin all of it is."""
    for number, pin in enumerate([True, False], 1):
        made, rest = tree(number), tree(number + 100)
        record = record_of(number, tail=b"tail")
        store.uploads.begin(record, 5)
        store.uploads.checkpoint(record, made.blocks + rest.blocks)
        result = (made.root, made.file_size, made.dag_size)
        store.uploads.finish(replace(record, result=result), pin=pin)
        found = store.uploads.resume(record.id)
        assert (found.result, found.tail, found.levels) == (result, b"", ())
        assert store.is_pinned(made.root) is pin
        assert notes(store) == []
    store.gc()
    assert stored_keys(store) == keys_of(tree(1))


def test_expiry_leaves_what_was_resumed_meanwhile(store, monkeypatch):
    """An upload that is resumed between the look at its age and its removal stays."""
    old, live = record_of(1, updated=time.time() - 100), record_of(2, updated=time.time() - 100)
    for record in (old, live):
        store.uploads.begin(record, 5)
    listed = store.uploads.all

    def resumed_meanwhile():
        found = listed()
        store.uploads.resume(live.id)
        return found

    monkeypatch.setattr(store.uploads, "all", resumed_meanwhile)
    assert store.uploads.expire(50) == 1
    assert [record.id for record in listed()] == [live.id]


def test_only_unfinished_ones_count(store):
    """The limit is on those that are begun and not finished."""
    made = import_bytes(b"x", SMALL)
    for number in range(3):
        record = record_of(number)
        store.uploads.begin(record, 1)
        store.uploads.checkpoint(record, made.blocks)
        store.uploads.finish(replace(record, result=(made.root, 1, 1)), pin=False)
    store.uploads.begin(record_of(7), 1)
    with pytest.raises(BusyError, match="1 uploads are not finished"):
        store.uploads.begin(record_of(8), 1)


@pytest.mark.parametrize("busy", [True, False])
def test_discarding_beside_a_collection(store, monkeypatch, busy):
    """It waits for a collection that runs, which has marked the blocks as needed; one that takes too long has the
    next one take them."""
    made = tree(1)
    record = record_of()
    store.uploads.begin(record, 5)
    store.uploads.checkpoint(record, made.blocks)
    monkeypatch.setattr(module, "OPEN_WAIT", 0.05)
    with gc.one_at_a_time(store._env, wait=0) if busy else contextlib.nullcontext():
        assert store.uploads.discard(record.id)
    assert stored_keys(store) == (keys_of(made) if busy else set())
    store.gc()
    assert stored_keys(store) == set()


def test_unknown_ones(store):
    """What is not there is not found, whatever is to be done with it."""
    for call in (
        lambda: store.uploads.resume(b"x" * 16),
        lambda: store.uploads.checkpoint(record_of(), []),
        lambda: store.uploads.finish(record_of(result=(tree(1).root, 1, 1)), pin=False),
    ):
        with pytest.raises(NotFoundError):
            call()
    assert not store.uploads.discard(b"x" * 16)
    assert store.uploads.all() == []


def test_a_full_disk_leaves_the_record_of_before(tmp_path):
    """A commit that finds no room stores nothing of its batch, and the record names what is there."""
    with (
        small_disks.small_disk(tmp_path / "disk") as disk,
        BlockStore.open(disk / "store", min_free=0) as store,
    ):
        record = record_of()
        store.uploads.begin(record, 5)
        stored = []
        with pytest.raises(DiskFullError):
            for number in range(100):
                data = random.Random(number).randbytes(MIB)
                tail = bytes(300_000)
                record = replace(record, durable=(number + 1) * MIB + len(tail), tail=tail)
                store.uploads.checkpoint(record, [(CID.of(data), data)])
                stored.append(CID.of(data))
        assert len(stored) > 5
        found = store.uploads.resume(record.id)
        assert found.durable == len(stored) * MIB + 300_000
        assert stored_keys(store) == {cid.multihash for cid in stored}
        assert store.uploads.discard(record.id)
        assert stored_keys(store) == set()
