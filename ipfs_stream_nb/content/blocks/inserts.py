"""Blocks on their way in: one commit for each batch, under a quota and a low-disk limit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ipfs_stream_nb.content.blocks.environment import Environment
from ipfs_stream_nb.content.blocks.records import State, pack_batch, sequence_key
from ipfs_stream_nb.content.cid import CID, BytesLike
from ipfs_stream_nb.content.dag_pb import MAX_BLOCK
from ipfs_stream_nb.errors import CorruptContentError, QuotaExceededError, TooLargeError

if TYPE_CHECKING:
    from ipfs_stream_nb.content.blocks.records import Txn

_OVERHEAD: Final = 8192
"""Bytes that a block takes in the file beyond its own, at most: its first page's header, and its key's share."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a store may fill."""

    quota: int | None
    """Bytes of all blocks together."""
    min_free: int
    """Bytes that stay free on the disk."""


def insert(
    env: Environment,
    limits: Limits,
    blocks: Iterable[tuple[CID, BytesLike]],
    *,
    verify: bool,
    transfer: bool = False,
) -> int:
    """Store blocks in one commit, durable on return. Gives the sequence number of the batch if `transfer`.

    Raises CorruptContentError (with `verify`) and TooLargeError for a block that can't be taken,
    QuotaExceededError, DiskFullError and StoreError; nothing is stored then.
    """
    cids = []
    batch: dict[bytes, BytesLike] = {}
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
    coming, damaged = _compare(env, cids)

    def change(txn: Txn) -> int:
        state = State.load(txn, env.db.meta)
        new = [key for key in sorted(batch) if txn.get(key, db=env.db.blocks) is None]
        new_bytes = sum(len(batch[key]) for key in new)
        _check_quota(env, limits, state, new_bytes)
        for key in new:
            txn.put(key, batch[key], db=env.db.blocks)
        for key in set(damaged).difference(new):
            new_bytes += _mend(env, txn, key, batch[key])
        state.blocks += len(new)
        state.bytes += new_bytes
        if transfer:
            state.protected += 1
            txn.put(sequence_key(state.protected), pack_batch(env.lease.owner, cids), db=env.db.transfers)
        state.save(txn, env.db.meta)
        return state.protected

    expected = sum(len(batch[key]) + _OVERHEAD for key in coming)
    sequence = env.update(change, expected, limits.min_free)
    env.integrity.add(coming + damaged)
    return sequence


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


def _check_quota(env: Environment, limits: Limits, state: State, new_bytes: int) -> None:
    if limits.quota is not None and new_bytes and state.bytes + new_bytes > limits.quota:
        raise QuotaExceededError(
            f"the block store at {env.folder} holds {state.bytes:,} bytes of blocks, and {new_bytes:,} more would "
            f"pass its quota of {limits.quota:,}: unpin what is not needed and collect garbage, or raise the quota"
        )
