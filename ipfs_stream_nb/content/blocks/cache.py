"""Blocks that came from elsewhere: where from, and which of them may be evicted, least recently used first.

A block that was fetched has a record in `fetched` for as long as it is here. As long as it may be evicted it also
stands in `uses`, in the order of use, and `CacheState` counts it. Whatever adds or pins it takes it out there: it is
a block like any other then, kept until garbage is collected, and known to be from its source.

Any process evicts, in the write transaction in which it needs the room. What is read meanwhile is not spared: a
reader is done with the bytes it has, or finds the block missing and fetches it again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, TypeVar

from ipfs_stream_nb.content.blocks.records import CacheState, Fetched, State, sequence_key
from ipfs_stream_nb.errors import DiskFullError

if TYPE_CHECKING:
    from ipfs_stream_nb.content.blocks.environment import Environment
    from ipfs_stream_nb.content.blocks.records import Txn
    from ipfs_stream_nb.content.cid import BytesLike

T = TypeVar("T")

MAX_TOUCHED: Final = 65_536
"""Keys remembered as used and not written yet, some 8 MB. The oldest is forgotten."""
EVICTED_AT_ONCE: Final = 256
"""Blocks evicted in one transaction: others wait some ten milliseconds for it."""
MAX_SOURCES: Final = 65_535
"""Sources that are told apart in one store; those that come later are one, `OTHERS`."""
MAX_SOURCE_NAME: Final = 500
"""Bytes of a source's name; the rest is cut off (LMDB's keys have 511 at most)."""
HERE: Final = "added here"
"""The source of what was added or imported by the users of this store."""
OTHERS: Final = "other sources"

_SHARE: Final = 16
"""What part of the cache is evicted at once where the disk is full: LMDB needs a block's pages side by side."""
_OTHERS: Final = 0
_SOURCE_BYTES: Final = 4


class Uses:
    """Which blocks this process used, until that is written: in memory, bounded, thread-safe."""

    def __init__(self) -> None:
        self._keys: dict[bytes, None] = {}
        self._lock = threading.Lock()

    def add(self, keys: Iterable[bytes]) -> None:
        """Take these as the latest."""
        with self._lock:
            for key in keys:
                self._keys.pop(key, None)
                self._keys[key] = None
            while len(self._keys) > MAX_TOUCHED:
                del self._keys[next(iter(self._keys))]

    def take(self) -> list[bytes]:
        """All of them in the order of use, to be written. Where that fails they are lost, which does no harm."""
        with self._lock:
            keys, self._keys = self._keys, {}
        return list(keys)


def enter(
    env: Environment,
    txn: Txn,
    cached: CacheState,
    new: dict[bytes, BytesLike],
    source: str,
    *,
    evictable: bool,
) -> None:
    """Record blocks that were just written."""
    now, number = time.time(), _source_number(env, txn, source)
    for key, data in new.items():
        forget(env, txn, cached, key)  # there is nothing, unless a version collected it that knew no cache
        use = 0
        if evictable:
            cached.uses += 1
            cached.blocks += 1
            cached.bytes += len(data)
            use = cached.uses
        _write(env, txn, key, Fetched(use, len(data), number, now))


def mark_used(env: Environment, txn: Txn, cached: CacheState, keys: Iterable[bytes]) -> int:
    """Make these the last to be evicted, those of them that can be; gives how many bytes they have."""
    size = 0
    for key in keys:
        found = _evictable(env, txn, key)
        if found is not None:
            txn.delete(sequence_key(found.use), db=env.db.uses)
            cached.uses += 1
            _write(env, txn, key, Fetched(cached.uses, found.size, found.source, found.time))
            size += found.size
    return size


def keep(env: Environment, txn: Txn, cached: CacheState, keys: Iterable[bytes]) -> None:
    """Take these out of what may be evicted; where they came from stays known."""
    if not cached.blocks:
        return
    for key in keys:
        found = _evictable(env, txn, key)
        if found is not None:
            _leave(env, txn, cached, found)
            _write(env, txn, key, Fetched(0, found.size, found.source, found.time))


def forget(env: Environment, txn: Txn, cached: CacheState, key: bytes) -> None:
    """Drop the record of a block that is deleted."""
    raw = txn.get(key, db=env.db.fetched)
    if raw is not None:
        found = Fetched.unpack(raw)
        if found.use:
            _leave(env, txn, cached, found)
        txn.delete(key, db=env.db.fetched)


def is_settled(env: Environment, txn: Txn, key: bytes) -> bool:
    """Whether the block is here, and cannot be evicted."""
    return txn.get(key, db=env.db.blocks) is not None and _evictable(env, txn, key) is None


def evict(env: Environment, txn: Txn, state: State, cached: CacheState, wanted: int) -> bool:
    """Delete the least recently used until `wanted` bytes are gone: at most EVICTED_AT_ONCE blocks.

    False where that was not enough. The caller has counted in what this process used, and saves the counters.
    """
    with txn.cursor(env.db.uses) as cursor:
        for _ in range(EVICTED_AT_ONCE):
            if wanted <= 0 or not cursor.first():
                break
            key = bytes(cursor.value())
            block = txn.get(key, db=env.db.blocks)
            if block is not None:  # it is None where a version collected it that knew no cache
                wanted -= len(block)
                state.blocks -= 1
                state.bytes -= len(block)
                txn.delete(key, db=env.db.blocks)
            forget(env, txn, cached, key)
            cached.evictions += 1
    return wanted <= 0


def update(env: Environment, change: Callable[[Txn], T | None], new_bytes: int, min_free: int) -> T:
    """`Environment.update` again and again until `change` gives something, evicting where the disk is full.

    `change` gives None where it had to evict more than it may at once. Raises what `Environment.update` does:
    DiskFullError where nothing is left to evict.
    """
    while True:
        try:
            result = env.update(change, new_bytes, min_free)
        except DiskFullError:
            if not _evict_for_disk(env):
                raise
        else:
            if result is not None:
                return result


def _evict_for_disk(env: Environment) -> bool:
    """Have more free pages in the file, side by side for the most part. False where nothing could be evicted."""
    if not env.counters()[1].blocks:
        return False
    used = env.uses.take()

    def change(txn: Txn) -> bool:
        state, cached = State.load(txn, env.db.meta), CacheState.load(txn, env.db.meta)
        before = cached.evictions
        mark_used(env, txn, cached, used)
        evict(env, txn, state, cached, 1 + cached.bytes // _SHARE)
        state.save(txn, env.db.meta)
        cached.save(txn, env.db.meta)
        return cached.evictions > before

    evicted = env.update(change)
    if evicted:
        env.reuse_freed()
    return evicted


def write_uses(env: Environment) -> None:
    """Write which blocks this process used, where there are any that may be evicted. Raises as every write does."""
    env.check_usable()  # a forked child must not wait for a lock that its parent held
    used = env.uses.take()
    if not used or not env.counters()[1].blocks:
        return

    def change(txn: Txn) -> None:
        cached = CacheState.load(txn, env.db.meta)
        if mark_used(env, txn, cached, used):
            cached.save(txn, env.db.meta)

    env.update(change)


def _source_number(env: Environment, txn: Txn, name: str) -> int:
    """The number of a source, which it gets when it is met for the first time."""
    key = name.encode(errors="replace")[:MAX_SOURCE_NAME]
    raw = txn.get(key, db=env.db.sources) if key else b"\0"
    if raw is not None:
        return int.from_bytes(raw, "big")
    number = txn.stat(env.db.sources)["entries"] + 1
    if number > MAX_SOURCES:
        return _OTHERS
    txn.put(key, number.to_bytes(_SOURCE_BYTES, "big"), db=env.db.sources)
    return int(number)


def source_names(env: Environment, txn: Txn) -> dict[int, str]:
    """All sources by their number."""
    names = {
        int.from_bytes(number, "big"): bytes(name).decode(errors="ignore")
        for name, number in txn.cursor(env.db.sources)
    }
    return names | {_OTHERS: OTHERS}


def _evictable(env: Environment, txn: Txn, key: bytes) -> Fetched | None:
    raw = txn.get(key, db=env.db.fetched)
    found = None if raw is None else Fetched.unpack(raw)
    return found if found is not None and found.use else None


def _write(env: Environment, txn: Txn, key: bytes, fetched: Fetched) -> None:
    txn.put(key, fetched.pack(), db=env.db.fetched)
    if fetched.use:
        txn.put(sequence_key(fetched.use), key, db=env.db.uses, append=True)


def _leave(env: Environment, txn: Txn, cached: CacheState, found: Fetched) -> None:
    txn.delete(sequence_key(found.use), db=env.db.uses)
    cached.blocks -= 1
    cached.bytes -= found.size
