"""Adds and imports under way: their blocks are kept from garbage collection until they are pinned or given up."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ipfs_stream_nb.content.blocks import cache, pins
from ipfs_stream_nb.content.blocks.environment import Environment
from ipfs_stream_nb.content.blocks.inserts import Limits, insert
from ipfs_stream_nb.content.blocks.records import CacheState, State, pack_batch, sequence_key
from ipfs_stream_nb.content.cid import CID, BytesLike
from ipfs_stream_nb.content.node import Pin
from ipfs_stream_nb.errors import BadRequestError, IPFSStreamError

if TYPE_CHECKING:
    from ipfs_stream_nb.content.blocks.records import Txn


class Transfer:
    """A context manager for a number of batches; leaving it without a `commit` gives the transfer up.

    Every batch is noted in the commit that stores it, so garbage collection in any process leaves its blocks,
    those that were in the store before included, and whatever they link to. The notes of a process that died
    are dropped at the next opening or collection. Thread-safe; the calls follow each other.
    """

    def __init__(self, env: Environment, limits: Limits) -> None:
        self._env = env
        self._limits = limits
        self._sequences: list[int] = []
        self._done = False
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give up what was not committed."""
        with contextlib.suppress(IPFSStreamError) if kind else contextlib.nullcontext():
            self.abort()

    def put(
        self, blocks: Sequence[tuple[CID, BytesLike]], *, verify: bool = False, source: str | None = None
    ) -> None:
        """Store blocks in one commit: durable on return.

        The caller has just made each CID from the data, or asks for `verify`; `source` names where they came from,
        if from elsewhere. Batches of 8 to 32 MiB are fastest; LMDB holds a second copy of the batch meanwhile. Raises CorruptContentError (with `verify`),
        TooLargeError, QuotaExceededError, DiskFullError and StoreError; nothing of the batch is stored then.
        """
        with self._lock:
            self._check_open()
            if blocks:
                sequence = insert(
                    self._env,
                    self._limits,
                    blocks,
                    verify=verify,
                    owner=self._env.lease.owner,
                    source=source,
                )
                self._sequences.append(sequence)

    def keep(self, cids: Iterable[CID]) -> list[CID]:
        """Have blocks that are here already be part of the transfer, as if they had been put again.

        They are not evicted from here on, nor collected. Gives those that are not here. One commit: some thousand
        CIDs at a time are best.
        """
        env = self._env
        wanted = [cid for cid in cids if not cid.is_identity]

        def change(txn: Txn) -> tuple[int, list[CID]]:
            state, cached = State.load(txn, env.db.meta), CacheState.load(txn, env.db.meta)
            here = [cid for cid in wanted if txn.get(cid.multihash, db=env.db.blocks) is not None]
            cache.keep(env, txn, cached, (cid.multihash for cid in here))
            state.protected += 1
            notes = pack_batch(env.lease.owner, here)
            txn.put(sequence_key(state.protected), notes, db=env.db.transfers)
            state.save(txn, env.db.meta)
            cached.save(txn, env.db.meta)
            found = set(here)
            return state.protected, [cid for cid in wanted if cid not in found]

        with self._lock:
            self._check_open()
            sequence, missing = env.update(change)
            self._sequences.append(sequence)
        return missing

    def is_pinned(self, root: CID) -> bool:
        """Whether the CID is itself a pinned root."""
        return pins.is_pinned(self._env, root)

    def commit(self, root: CID | None = None, *, pin: bool = True, name: str = "") -> Pin | None:
        """End the transfer, pinning `root` in the same commit unless `pin` is false or there is no root.

        Raises NotFoundError where the root is not here, and RetrievalError naming the first block that is missing
        below it; the transfer stays open.
        """
        pins.check_name(name)
        with self._lock:
            self._check_open()
            made = None
            if root is None or not pin:
                self._forget()
            else:
                made = self._pin(root, name)
            self._done = True
            return made

    def _pin(self, root: CID, name: str) -> Pin:
        env = self._env

        def change(txn: Txn) -> Pin:
            self._delete_notes(txn)
            return pins.record(env, txn, root, name)

        with pins.reading(env, root):
            pins.take_tree(env, root)
            return env.update(change)

    def abort(self) -> None:
        """End the transfer; its blocks are left to garbage collection. Idempotent."""
        with self._lock:
            if not self._done:
                self._done = True
                self._forget()

    def _forget(self) -> None:
        if self._sequences and not self._env.closed:  # with the store closed, they are those of the dead
            self._env.update(self._delete_notes)

    def _delete_notes(self, txn: Txn) -> None:
        for sequence in self._sequences:
            txn.delete(sequence_key(sequence), db=self._env.db.transfers)

    def _check_open(self) -> None:
        if self._done:
            raise BadRequestError("this transfer is finished; begin another one")
