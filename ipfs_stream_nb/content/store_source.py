"""The block store as an asynchronous block source, and the threads that it is used on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ipfs_stream_nb.content.blocks import BlockStore
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.errors import NotFoundError, StoreError


class _Threads(ThreadPoolExecutor):
    """Threads that have a clear error for whoever comes after their end."""

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        """As every executor's. Raises StoreError once the node is closed."""
        try:
            return super().submit(*args, **kwargs)
        except RuntimeError as error:
            raise StoreError(f"the node is closed: {error}") from error


class StoreThreads(_Threads):
    """The threads of one node, and one thread for all its commits.

    A store has one writer at a time anyway; and LMDB holds a copy of each batch, whose memory every thread that
    ever committed one would keep.
    """

    def __init__(self, count: int) -> None:
        super().__init__(count, "ipfs-store")
        self.commits = _Threads(1, "ipfs-commit")

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End all of them."""
        super().shutdown(wait, cancel_futures=cancel_futures)
        self.commits.shutdown(wait, cancel_futures=cancel_futures)


class StoreSource:
    """Blocks from the store, on threads."""

    def __init__(self, store: BlockStore, executor: ThreadPoolExecutor) -> None:
        self._store = store
        self._executor = executor

    def get(self, cid: CID, start: int = 0, stop: int | None = None) -> Awaitable[bytes]:
        """A verified block, or a slice of it. Raises NotFoundError, CorruptContentError."""
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._executor, self._store.get, cid, start, stop)

    def size(self, cid: CID) -> Awaitable[int]:
        """A block's length in bytes. Raises NotFoundError."""
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._executor, self._size, cid)

    def _size(self, cid: CID) -> int:
        size = self._store.size(cid)
        if size is None:
            raise NotFoundError(f"this node does not have {cid}; add it, or import a CAR that holds it")
        return size
