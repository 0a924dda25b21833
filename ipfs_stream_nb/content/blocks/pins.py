"""Pins: roots that garbage collection keeps, with everything below them; and leases, for as long as one is read."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from ipfs_stream_nb.content.blocks import cache
from ipfs_stream_nb.content.blocks.environment import Environment
from ipfs_stream_nb.content.blocks.leases import FileLock
from ipfs_stream_nb.content.blocks.records import CacheState, PinRecord, State, pin_key, raw_cid
from ipfs_stream_nb.content.blocks.walk import REPORT_BLOCKS, Progress, Walk
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.node import Pin, PinProgress
from ipfs_stream_nb.errors import BadRequestError, NotFoundError, RetrievalError

if TYPE_CHECKING:
    from ipfs_stream_nb.content.blocks.records import Txn

MAX_NAME: Final = 4096
"""Characters of a pin's name."""
SWEEP_LOCK: Final = "sweep"
_TAKEN_AT_ONCE: Final = 16_384
"""Blocks taken out of the cache in one transaction: others wait some tenths of a second for it."""
_REPORT_BYTES: Final = 16 * 1024 * 1024


@contextlib.contextmanager
def reading(env: Environment, root: CID) -> Iterator[None]:
    """Keep what is below `root` from garbage collection by any process, from here to the end of the block.

    Entering waits for a batch of deletions that has begun, which may not have seen the lease: milliseconds,
    and only while garbage is being collected.
    """
    env.check_usable()
    env.lease.add(root)
    try:
        with FileLock(env.locks / SWEEP_LOCK, shared=True):
            pass
        yield
    finally:
        env.lease.drop(root)


def pin(env: Environment, cid: CID, name: str, progress: Progress | None) -> Pin:
    """Walk the tree, hash what was not hashed yet, and keep it."""
    check_name(name)
    with reading(env, cid):  # what is found below stays there until the pin is written
        walk = take_tree(env, cid, progress)
        _verify(env, walk, progress)
        return env.update(lambda txn: record(env, txn, cid, name))


def take_tree(env: Environment, root: CID, progress: Progress | None = None) -> Walk:
    """Find all of a tree, and take it out of what may be evicted: from here on it stays, also where no pin follows.

    To be called while the root is being read. Raises as `Walk.add` does; RetrievalError also for a block that was
    evicted in the moment since it was found.
    """
    before = env.counters()[1].evictions
    walk = Walk(env, limited=True, progress=progress)
    walk.add(root, whole=True)
    cached = env.counters()[1]
    if cached.blocks or cached.evictions != before:
        keys = iter(walk.codecs)
        while some := list(itertools.islice(keys, _TAKEN_AT_ONCE)):
            _take(env, walk, some)
    return walk


def _take(env: Environment, walk: Walk, keys: list[bytes]) -> None:
    with env.read() as txn:
        keys = [key for key in keys if not cache.is_settled(env, txn, key)]
    if not keys:
        return

    def change(txn: Txn) -> None:
        for key in keys:
            if txn.get(key, db=env.db.blocks) is None:
                raise _gone(key, walk.codecs[key])
        cached = CacheState.load(txn, env.db.meta)
        cache.keep(env, txn, cached, keys)
        cached.save(txn, env.db.meta)

    env.update(change)


def record(env: Environment, txn: Txn, cid: CID, name: str) -> Pin:
    """Write a pin. One that is there already keeps its time and place, and takes a new name that is not empty."""
    state = State.load(txn, env.db.meta)
    state.protected += 1
    state.pinned = state.protected
    old = txn.get(pin_key(cid), db=env.db.pins)
    if old is None:
        fresh = PinRecord(Pin(cid, name, created=time.time()), state.protected, state.protected)
    else:
        known = PinRecord.unpack(old)
        kept = Pin(cid, name or known.pin.name, created=known.pin.created)
        fresh = PinRecord(kept, known.order, state.protected)
    txn.put(pin_key(cid), fresh.pack(), db=env.db.pins)
    state.save(txn, env.db.meta)
    return fresh.pin


def unpin(env: Environment, cid: CID) -> None:
    """Take a pin away."""
    if not env.update(lambda txn: txn.delete(pin_key(cid), db=env.db.pins)):
        raise NotFoundError(f"{cid} is not pinned")


def pins(env: Environment) -> list[Pin]:
    """All pins, oldest first."""
    with env.read() as txn:
        records = [PinRecord.unpack(raw) for _, raw in txn.cursor(env.db.pins)]
    return [found.pin for found in sorted(records, key=lambda found: found.order)]


def is_pinned(env: Environment, cid: CID) -> bool:
    """Whether the CID is itself a pinned root."""
    with env.read() as txn:
        return txn.get(pin_key(cid), db=env.db.pins) is not None


def check_name(name: str) -> None:
    """Raise BadRequestError for what is no name of a pin."""
    if len(name) > MAX_NAME:
        raise BadRequestError(f"a pin's name has at most {MAX_NAME} characters, this one has {len(name)}")


def _verify(env: Environment, walk: Walk, progress: Progress | None) -> None:
    """Hash every block of a walk that was not hashed since opening, telling how far it is of a known total."""
    total_blocks, total_bytes = len(walk.codecs), walk.bytes
    done_bytes = reported = 0
    if progress is not None:
        progress(PinProgress(0, 0, total_blocks, total_bytes))
    for done, (key, codec) in enumerate(walk.codecs.items(), 1):
        done_bytes += _check(env, key, codec)
        if progress is None:
            continue
        if done % REPORT_BLOCKS == 0 or done == total_blocks or done_bytes - reported >= _REPORT_BYTES:
            reported = done_bytes
            progress(PinProgress(done, done_bytes, total_blocks, total_bytes))


def _check(env: Environment, key: bytes, codec: int) -> int:
    """Hash one block if need be; gives its size."""
    with env.read() as txn:
        block = txn.get(key, db=env.db.blocks)
        if block is None:
            raise _gone(key, codec)
        if not env.integrity.is_sound(key):
            env.integrity.check(_named(key, codec), block)
        return len(block)


def _gone(key: bytes, codec: int) -> RetrievalError:
    return RetrievalError(f"block {_named(key, codec)} was taken out of the store while it was being pinned")


def _named(key: bytes, codec: int) -> CID:
    raw = raw_cid(key)
    return CID(1, codec, raw.hash_code, raw.digest)
