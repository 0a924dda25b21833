"""Blocks on their way in, added or fetched: one commit for each batch, under quotas and a low-disk limit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ipfs_stream_nb.content.blocks import cache
from ipfs_stream_nb.content.blocks.environment import Environment
from ipfs_stream_nb.content.blocks.records import CacheState, State, pack_batch, sequence_key
from ipfs_stream_nb.content.cid import CID, BytesLike
from ipfs_stream_nb.content.dag_pb import MAX_BLOCK
from ipfs_stream_nb.errors import CorruptContentError, DiskFullError, QuotaExceededError, TooLargeError

if TYPE_CHECKING:
    from ipfs_stream_nb.content.blocks.records import Txn

Blocks = dict[bytes, BytesLike]
"""Blocks by key."""

_OVERHEAD: Final = 8192
"""Bytes that a block takes in the file beyond its own, at most: its first page's header, and its key's share."""
_RECORD: Final = 4096
"""Bytes that the records of where it came from take, at most."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a store may fill."""

    quota: int | None
    """Bytes of all blocks together."""
    min_free: int
    """Bytes that stay free on the disk."""
    cache_quota: int | None
    """Bytes of the blocks that may be evicted."""


def insert(
    env: Environment,
    limits: Limits,
    blocks: Iterable[tuple[CID, BytesLike]],
    *,
    verify: bool,
    owner: bytes | None = None,
    also: Callable[[Txn], None] | None = None,
    source: str | None = None,
) -> int:
    """Store blocks in one commit, durable on return. Gives the sequence number of the batch.

    `owner`: the transfer or upload whose batch it is; `also` is done in the same commit, first.

    What is in the cache already is taken out of it, and the cache makes room for the rest. `source` is where they
    came from, if not from the users of this store. Raises CorruptContentError (with `verify`) and TooLargeError for
    a block that can't be taken, QuotaExceededError, DiskFullError and StoreError; nothing is stored then.
    """
    cids, batch = _gather(blocks, verify=verify)
    coming, bad = _compare(env, cids)
    damaged = {key: batch[key] for key in bad}
    used: list[bytes] = []

    def change(txn: Txn) -> int | None:
        if also is not None:
            also(txn)
        state, cached = State.load(txn, env.db.meta), CacheState.load(txn, env.db.meta)
        cache.keep(env, txn, cached, batch)
        new = _missing(env, txn, batch)
        lacking = _over(limits.quota, state.bytes, _size(new))
        if lacking > cached.bytes:
            raise _quota_exceeded(env, limits, state, _size(new))
        if lacking:
            used.extend(env.uses.take())
            cache.mark_used(env, txn, cached, used)
            has_room = cache.evict(env, txn, state, cached, lacking)
        else:
            has_room = True
        if has_room:
            _write(env, txn, state, new, damaged)
            if source is not None:
                cache.enter(env, txn, cached, new, source, evictable=False)
            if owner is not None:
                notes = pack_batch(owner, cids)
                txn.put(sequence_key(state.protected), notes, db=env.db.transfers)
        state.save(txn, env.db.meta)
        cached.save(txn, env.db.meta)
        return state.protected if has_room else None

    expected = sum(len(batch[key]) + _OVERHEAD for key in coming)
    sequence = cache.update(env, change, expected, limits.min_free)
    env.integrity.add(coming + bad)
    return sequence


def insert_fetched(
    env: Environment, limits: Limits, blocks: Iterable[tuple[CID, BytesLike]], source: str
) -> bool:
    """Store blocks in one commit as ones that may be evicted; the caller has verified them.

    What is here already stays what it is, and counts as used; what is known to be damaged is mended. The least
    recently used go where there is no room. False where there is none even so: nothing is stored then.
    Raises TooLargeError and StoreError.
    """
    if limits.cache_quota == 0:
        return False
    _, batch = _gather(blocks, verify=False)
    if not batch:
        return True
    used: list[bytes] = []
    written: list[bytes] = []

    def change(txn: Txn) -> bool | None:
        state, cached = State.load(txn, env.db.meta), CacheState.load(txn, env.db.meta)
        used.extend(env.uses.take())
        cache.mark_used(env, txn, cached, used)
        spared = cache.mark_used(env, txn, cached, batch)  # the last in line, so that they are left
        new = _missing(env, txn, batch)
        new_bytes = _size(new)
        lacking = max(
            _over(limits.quota, state.bytes, new_bytes), _over(limits.cache_quota, cached.bytes, new_bytes)
        )
        fits = not new or lacking <= cached.bytes - spared
        has_room = fits and (not new or cache.evict(env, txn, state, cached, lacking))
        if has_room:
            damaged = {key: data for key, data in batch.items() if env.integrity.is_bad(key)}
            written[:] = {**new, **damaged}
            _write(env, txn, state, new, damaged)
            cache.enter(env, txn, cached, new, source, evictable=True)
        state.save(txn, env.db.meta)
        cached.save(txn, env.db.meta)
        return has_room if has_room or not fits else None

    # twice as much, since of what is free in the file not all is side by side as LMDB needs it
    expected = 2 * sum(len(data) + _OVERHEAD + _RECORD for data in batch.values())
    try:
        stored = cache.update(env, change, expected, limits.min_free)
    except DiskFullError:
        return False
    if stored:
        env.integrity.add(written)
    return stored


def _gather(blocks: Iterable[tuple[CID, BytesLike]], *, verify: bool) -> tuple[list[CID], Blocks]:
    """The CIDs to store, and the blocks by key, in the order of keys."""
    cids = []
    batch: Blocks = {}
    for cid, data in blocks:
        if len(data) > MAX_BLOCK:
            raise TooLargeError(
                f"block {cid} has {len(data):,} bytes, and a store takes {MAX_BLOCK:,} at most"
            )
        if verify:
            cid.verify(data)
        if not cid.is_identity:
            cids.append(cid)
            batch[cid.multihash] = data
    return cids, dict(sorted(batch.items()))


def _missing(env: Environment, txn: Txn, batch: Blocks) -> Blocks:
    """Those of a batch that are not there."""
    return {key: data for key, data in batch.items() if txn.get(key, db=env.db.blocks) is None}


def _write(env: Environment, txn: Txn, state: State, new: Blocks, damaged: Blocks) -> None:
    for key, data in new.items():
        txn.put(key, data, db=env.db.blocks)
    grown = sum(_mend(env, txn, key, data) for key, data in damaged.items() if key not in new)
    state.blocks += len(new)
    state.bytes += _size(new) + grown
    state.protected += 1


def _size(blocks: Blocks) -> int:
    return sum(map(len, blocks.values()))


def _compare(env: Environment, cids: Sequence[CID]) -> tuple[list[bytes], list[bytes]]:
    """The keys that are not there, and those whose stored bytes turn out to be damaged.

    What is there and was not hashed since opening is hashed now: to acknowledge a block is to vouch for it.
    """
    coming, damaged = [], []
    with env.read() as txn:
        for cid in cids:
            key = cid.multihash
            block = txn.get(key, db=env.db.blocks)
            if block is None:
                coming.append(key)
            elif not env.integrity.is_sound(key):
                try:
                    env.integrity.check(cid, block)
                except CorruptContentError:
                    damaged.append(key)
    return coming, damaged


def _mend(env: Environment, txn: Txn, key: bytes, data: BytesLike) -> int:
    """Write a damaged block anew; gives the change in size."""
    old = txn.get(key, b"", db=env.db.blocks)
    grown = len(data) - len(old)
    txn.put(key, data, db=env.db.blocks)
    return grown


def _over(quota: int | None, size: int, new_bytes: int) -> int:
    """By how many bytes a quota would be passed; what adds nothing passes none."""
    return 0 if quota is None or not new_bytes else max(0, size + new_bytes - quota)


def _quota_exceeded(env: Environment, limits: Limits, state: State, new_bytes: int) -> QuotaExceededError:
    return QuotaExceededError(
        f"the block store at {env.folder} holds {state.bytes:,} bytes of blocks, and {new_bytes:,} more would "
        f"pass its quota of {limits.quota:,}: unpin what is not needed and collect garbage, or raise the quota"
    )
