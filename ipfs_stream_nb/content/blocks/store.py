"""The block store: content-addressed blocks in one LMDB file, shared by the processes of a machine."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from ipfs_stream_nb.content.blocks import cache, gc, maintenance, pins, sharing
from ipfs_stream_nb.content.blocks.environment import Environment
from ipfs_stream_nb.content.blocks.inserts import Limits, insert, insert_fetched
from ipfs_stream_nb.content.blocks.integrity import corrupt
from ipfs_stream_nb.content.blocks.maintenance import VerifyResult
from ipfs_stream_nb.content.blocks.origins import origin_of, origins
from ipfs_stream_nb.content.blocks.transfers import Transfer
from ipfs_stream_nb.content.blocks.uploads import StoredUploads
from ipfs_stream_nb.content.blocks.walk import Progress
from ipfs_stream_nb.content.cid import CID, BytesLike
from ipfs_stream_nb.content.node import GCResult, Origin, Origins, Pin, RepoStat
from ipfs_stream_nb.errors import BadRequestError, IPFSStreamError, NotFoundError, StoreError

T = TypeVar("T")

MIN_FREE: Final = 256 * 1024 * 1024
"""Bytes that stay free on the disk unless said otherwise."""
DEFAULT_CACHE_QUOTA: Final = 10 * 1024**3
"""Bytes of fetched blocks that are kept unless said otherwise."""


class BlockStore:
    """Blocks by the multihash of their CID, with pins. Synchronous and thread-safe; any number of processes.

    Every method raises StoreError where the store fails or is closed, beside what is named there. Identity CIDs
    hold their block themselves: they are always there and never stored.
    """

    def __init__(self, env: Environment, limits: Limits) -> None:
        self._shared = env
        self._limits = limits
        self._closed = False
        self.uploads = StoredUploads(lambda: self._env, limits)
        """Uploads that outlive their process."""
        self.path: Path = env.folder
        self.store_id: str = env.store_id
        """A random text made with the store: tells whether two paths lead to the same one."""

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        quota: int | None = None,
        min_free: int = MIN_FREE,
        cache_quota: int | None = DEFAULT_CACHE_QUOTA,
        create: bool = True,
    ) -> Self:
        """Open the store in the directory `path`, made if it is not there and `create` is true.

        `quota`: bytes of blocks that it may hold; `min_free`: bytes that must stay free on its disk; `cache_quota`:
        bytes of the blocks that may be evicted (None: as far as the store's own limits go; 0: none are kept). They
        count for what is put through this object. A store made before there was a cache gets its databases now.
        Raises StoreError for a store that is damaged, of a newer format or not one of ours, and for a place where
        it can't live; BusyError while another process compacts it.
        """
        if quota is not None and quota < 0:
            raise BadRequestError(f"a quota is a number of bytes, 0 or more, not {quota}")
        if min_free < 0:
            raise BadRequestError(f"min_free is a number of bytes, 0 or more, not {min_free}")
        if cache_quota is not None and cache_quota < 0:
            raise BadRequestError(f"cache_quota is a number of bytes, 0 or more, not {cache_quota}")
        return cls(sharing.acquire(path, create=create), Limits(quota, min_free, cache_quota))

    @property
    def min_free(self) -> int:
        """Bytes that stay free on the disk."""
        return self._limits.min_free

    @property
    def _env(self) -> Environment:
        if self._closed:
            raise StoreError(f"the block store at {self.path} is closed")
        return self._shared

    def get(self, cid: CID, start: int = 0, stop: int | None = None) -> bytes:
        """A copy of the block's bytes from `start` to `stop`, as a slice takes them. Raises as `peek` does."""
        return self.peek(cid, lambda block: bytes(block[start:stop]))

    def peek(self, cid: CID, use: Callable[[memoryview], T]) -> T:
        """What `use` makes of the block where it lies in the map. It must be quick, and not keep the view.

        The first time that this process reads the block, all of it is hashed, which lets other threads run while
        the disk is waited for. Raises NotFoundError, and CorruptContentError where the stored bytes are not those
        that the CID names.
        """
        if cid.is_identity:
            return use(memoryview(cid.digest))
        env, key = self._env, cid.multihash
        if env.integrity.is_bad(key):
            raise corrupt(cid)
        with env.read() as txn:
            block = txn.get(key, db=env.db.blocks)
            if block is None:
                raise NotFoundError(f"block {cid} is not in this store")
            if not env.integrity.is_sound(key):
                env.integrity.check(cid, block)
            return use(block)

    def peek_now(self, cid: CID, use: Callable[[memoryview], T | None]) -> T | None:
        """As `peek`, where nobody has to be waited for; None otherwise, and where the block was not hashed yet.

        For an event loop that wants a little of a block: `use` gives None where the bytes are not in memory.
        """
        env, key = self._env, cid.multihash
        if not env.integrity.is_sound(key):
            return None
        with env.read_now() as txn:
            block = None if txn is None else txn.get(key, db=env.db.blocks)
            return None if block is None else use(block)

    def is_verified(self, cid: CID) -> bool:
        """Whether the block was hashed since the store was opened, and was right. Takes no time."""
        return cid.is_identity or self._env.integrity.is_sound(cid.multihash)

    def has(self, cid: CID) -> bool:
        """Whether the block is there, and not known to be damaged."""
        return self.size(cid) is not None

    def size(self, cid: CID) -> int | None:
        """The block's length in bytes; None where it is not there, or known to be damaged."""
        if cid.is_identity:
            return len(cid.digest)
        env, key = self._env, cid.multihash
        if env.integrity.is_bad(key):
            return None
        with env.read() as txn:
            block = txn.get(key, db=env.db.blocks)
            return None if block is None else len(block)

    def put(self, cid: CID, data: BytesLike, *, verify: bool = True) -> None:
        """Store one block, unpinned: garbage collection may take it at once. Durable on return.

        Raises CorruptContentError (with `verify`), TooLargeError, QuotaExceededError and DiskFullError.
        """
        insert(self._env, self._limits, [(cid, data)], verify=verify)

    def cache(self, blocks: Iterable[tuple[CID, BytesLike]], source: str) -> bool:
        """Store blocks that came from `source`, verified by the caller, in one commit, as ones that may be evicted.

        What is here already stays what it is, and counts as used. The least recently used are evicted so that the
        cache stays under its quota, the store under its own and the disk over `min_free`; never one that was added,
        that is pinned, or that a transfer holds. False where there is no room even so, and nothing is stored; a
        reader may find an evicted block missing, also while it has a lease. Raises TooLargeError.
        """
        return insert_fetched(self._env, self._limits, blocks, source)

    def touch(self, cids: Iterable[CID]) -> None:
        """Note that these were used, in memory; written with the next `cache`, by whoever evicts here, or at close.

        At most `cache.MAX_TOUCHED` are remembered. Never raises, also when the store is closed.
        """
        if self._shared.pid == os.getpid():  # a forked child must not wait for a lock that its parent held
            self._shared.uses.add(cid.multihash for cid in cids)

    def origins(self, root: CID) -> Origins:
        """Where the blocks below `root` came from, and how many are not here (the root may be one of these).

        Raises CorruptContentError where a block with links is damaged, TooLargeError as `pin`.
        """
        return origins(self._env, root)

    def origin_of(self, cid: CID) -> Origin | None:
        """Where one block came from; None where it is not here."""
        return origin_of(self._env, cid)

    def transfer(self) -> Transfer:
        """Begin an add: see Transfer."""
        return Transfer(self._env, self._limits)

    def reading(self, root: CID) -> contextlib.AbstractContextManager[None]:
        """A context in which no process collects what is below `root`: for as long as somebody reads it."""
        return pins.reading(self._env, root)

    def pin(self, cid: CID, name: str = "", progress: Progress | None = None) -> Pin:
        """Keep a root and everything below it, once all of it is found, and found undamaged.

        What of it was in the cache is taken out as soon as all is found, so that nothing of it is evicted while the
        rest is hashed; where no pin follows it is left to garbage collection.

        `progress` gets no totals while the tree is walked, then the true ones while its blocks are hashed (those
        that were not hashed since opening). Raises NotFoundError where the root is not here, RetrievalError
        naming the first block that is missing below it, CorruptContentError, and TooLargeError for trees over
        `walk.MAX_BLOCKS` or `walk.MAX_DEPTH`.
        """
        return pins.pin(self._env, cid, name, progress)

    def unpin(self, cid: CID) -> None:
        """Let garbage collection have it. Raises NotFoundError where there is no such pin."""
        pins.unpin(self._env, cid)

    def pins(self) -> list[Pin]:
        """All pins, oldest first."""
        return pins.pins(self._env)

    def is_pinned(self, cid: CID) -> bool:
        """Whether the CID, of either version, is itself a pinned root."""
        return pins.is_pinned(self._env, cid)

    def gc(self, progress: Progress | None = None) -> GCResult:
        """Delete every block that no pin, no running transfer and no reader needs, the cache's too.

        `progress` gets the blocks and bytes deleted so far. Raises BusyError while
        another process collects, and CorruptContentError where a pinned tree is damaged in a block that links
        to others: nobody knows then what it needs.
        """
        return gc.collect(self._env, progress)

    def remove(self, cid: CID) -> GCResult:
        """Unpin a root if it is pinned, and delete what only it needed. Raises NotFoundError, BusyError."""
        return gc.remove(self._env, cid)

    def compact(self) -> int:
        """Give the space of deleted blocks back to the disk; returns how many bytes.

        Raises BusyError while other processes have the store open, DiskFullError without room for the copy.
        """
        return maintenance.compact(self._env)

    def verify(self, progress: Progress | None = None) -> VerifyResult:
        """Hash every block. A damaged one is treated as missing, and mended when it is added again."""
        return maintenance.verify(self._env, progress)

    def stat(self) -> RepoStat:
        """The counters; at no cost that grows with the store."""
        env = self._env
        state, cached = env.counters()
        with env.gate.shared():
            env.check_usable()
            disk_size = env.check_in_place().st_blocks * 512
        return RepoStat(
            path=str(self.path),
            store_id=self.store_id,
            blocks=state.blocks,
            size=state.bytes,
            disk_size=disk_size,
            quota=self._limits.quota,
            disk_free=shutil.disk_usage(self.path).free,
            cache_blocks=cached.blocks,
            cache_size=cached.bytes,
            cache_quota=self._limits.cache_quota,
        )

    def close(self) -> None:
        """Let go of the store, once running calls have ended, and note what was used in it. Idempotent."""
        if not self._closed:
            self._closed = True
            with contextlib.suppress(IPFSStreamError):
                cache.write_uses(self._shared)
            sharing.release(self._shared)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def __repr__(self) -> str:
        return f"BlockStore({str(self.path)!r})"
