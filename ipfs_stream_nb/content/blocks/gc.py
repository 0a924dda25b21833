"""Garbage collection: mark what pins, transfers and readers need, then delete the rest in small batches.

Marking sees the store through short read transactions, while other threads and processes add and pin. Each batch
of deletions is a write transaction, which keeps everybody else from adding or pinning; it first marks what came
since, told by `State.protected` and the lease files, so nothing is deleted that anybody was promised.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from ipfs_stream_nb.content.blocks import cache
from ipfs_stream_nb.content.blocks.environment import OPEN_WAIT, Environment
from ipfs_stream_nb.content.blocks.leases import FileLock, living, sweep_dead
from ipfs_stream_nb.content.blocks.pins import SWEEP_LOCK
from ipfs_stream_nb.content.blocks.records import (
    CacheState,
    PinRecord,
    State,
    batch_cids,
    pin_key,
    sequence_key,
)
from ipfs_stream_nb.content.blocks.walk import Progress, Walk
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.node import GCResult, PinProgress
from ipfs_stream_nb.errors import CorruptContentError, NotFoundError

if TYPE_CHECKING:
    from ipfs_stream_nb.content.blocks.records import Txn

BATCH: Final = 256
"""Blocks deleted in one transaction: others wait some ten milliseconds for it."""
GC_LOCK: Final = "gc"
_PAUSE: Final = 0.001
"""Seconds between two batches, for those who wait for a lock: neither LMDB's nor flock's is a fair one."""
_KEYS_AT_ONCE: Final = 4096


def collect(env: Environment, progress: Progress | None) -> GCResult:
    """Delete every block that nothing needs. Raises BusyError while another collection runs."""
    with one_at_a_time(env, wait=0):
        env.drop_dead_transfers()
        with env.door():
            sweep_dead(env.locks)
        return sweep(env, all_keys(env), progress)


def remove(env: Environment, root: CID) -> GCResult:
    """Unpin a root, and delete those of its blocks that nothing else needs."""
    with one_at_a_time(env, wait=OPEN_WAIT):
        tree = Walk(env)
        with contextlib.suppress(CorruptContentError):  # what is below a damaged block is left to `collect`
            tree.add(root, whole=False)
        unpinned = env.update(lambda txn: txn.delete(pin_key(root), db=env.db.pins))
        if not unpinned and not tree.codecs:
            raise NotFoundError(f"{root} is not in this store")
        return sweep(env, tree.codecs)


def one_at_a_time(env: Environment, *, wait: float) -> FileLock:
    """The lock that collection, removal and compaction exclude each other with."""
    busy = (
        f"garbage is being collected in the block store at {env.folder}, or it is compacted; try again later"
    )
    return FileLock(env.locks / GC_LOCK, wait=wait, busy=busy)


def all_keys(env: Environment) -> Iterator[bytes]:
    """The keys of all blocks, in order, read some thousands at a time."""
    last = b""
    while True:
        with env.read() as txn, txn.cursor(env.db.blocks) as cursor:
            # one more than the last: a key is never a prefix of another one
            found = cursor.set_range(last + b"\0") if last else cursor.first()
            some = cursor.iternext(values=False) if found else iter(())
            keys = [bytes(key) for key in itertools.islice(some, _KEYS_AT_ONCE)]
        if not keys:
            return
        yield from keys
        last = keys[-1]


class _Marks:
    """Everything that pins, transfers and readers need; `catch_up` adds what came since the last time."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._walk = Walk(env)
        self._protected = 0
        self._leased: set[CID] = set()

    def __contains__(self, key: bytes) -> bool:
        return key in self._walk.codecs

    def catch_up(self, txn: Txn | None = None) -> None:
        """Mark what is new, as seen from `txn`, or from transactions of its own."""
        leased = {root for roots in living(self._env.locks).values() for root in roots}
        if txn is None:
            with self._env.read() as view:
                roots, protected = self._new_roots(view)
        else:
            roots, protected = self._new_roots(txn)
        roots += leased - self._leased
        if roots or protected > self._protected:
            self._walk.add_arrived(txn)
        for root in roots:
            self._walk.add(root, whole=False, txn=txn)
        self._protected = protected
        self._leased |= leased

    def _new_roots(self, txn: Txn) -> tuple[list[CID], int]:
        state = State.load(txn, self._env.db.meta)
        roots: list[CID] = []
        if state.pinned > self._protected:
            records = (PinRecord.unpack(raw) for _, raw in txn.cursor(self._env.db.pins))
            roots += [found.pin.cid for found in records if found.sequence > self._protected]
        if state.protected > self._protected:
            cursor = txn.cursor(self._env.db.transfers)
            if cursor.set_range(sequence_key(self._protected + 1)):
                roots += [cid for _, raw in cursor.iternext() for cid in batch_cids(raw)]
        return roots, state.protected


def sweep(env: Environment, keys: Iterable[bytes], progress: Progress | None = None) -> GCResult:
    """Delete those of `keys` that nothing needs."""
    marks = _Marks(env)
    marks.catch_up()
    blocks = size = 0
    for batch in _batches(key for key in keys if key not in marks):
        marks.catch_up()  # most of what is new is marked here, with the store open to others
        gone_blocks, gone_bytes = _sweep_batch(env, marks, batch)
        blocks, size = blocks + gone_blocks, size + gone_bytes
        if progress is not None:
            progress(PinProgress(blocks, size, None, None))
        time.sleep(_PAUSE)
    if blocks:
        env.reuse_freed()
    return GCResult(blocks, size, env.state().blocks)


def _sweep_batch(env: Environment, marks: _Marks, batch: list[bytes]) -> tuple[int, int]:
    def change(txn: Txn) -> tuple[int, int]:
        marks.catch_up(txn)
        return _delete(env, txn, [key for key in batch if key not in marks])

    with FileLock(env.locks / SWEEP_LOCK):
        return env.update(change)


def _batches(keys: Iterable[bytes]) -> Iterator[list[bytes]]:
    iterator = iter(keys)
    while batch := list(itertools.islice(iterator, BATCH)):
        yield batch


def _delete(env: Environment, txn: Txn, keys: list[bytes]) -> tuple[int, int]:
    state, cached = State.load(txn, env.db.meta), CacheState.load(txn, env.db.meta)
    blocks = size = 0
    for key in keys:
        block = txn.get(key, db=env.db.blocks)
        if block is not None:
            blocks, size = blocks + 1, size + len(block)
            txn.delete(key, db=env.db.blocks)
            cache.forget(env, txn, cached, key)
    if blocks:
        state.blocks -= blocks
        state.bytes -= size
        state.save(txn, env.db.meta)
        cached.save(txn, env.db.meta)
    return blocks, size
