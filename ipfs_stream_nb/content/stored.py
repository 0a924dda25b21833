"""Bytes that stay in the store until they are sent: from its map into a socket, with no copy in between.

A server that sends a large file spends most of its time moving bytes. Here the kernel takes them out of the
mapped store itself, on a thread, so that neither memory nor the event loop has anything to do with them.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Final, Self

from ipfs_stream_nb.content.blocks import BlockStore
from ipfs_stream_nb.content.blocks.residency import is_resident
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.errors import CorruptContentError

LINGER_MS: Final = 1
"""Milliseconds that a thread waits for a socket to have room again."""


@dataclass(frozen=True, slots=True)
class StoredRange:
    """Bytes `start` to `stop` of a block that must have `size` bytes. Its length is that of the range."""

    store: BlockStore
    executor: Executor
    cid: CID
    size: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    async def checked(self) -> Self:
        """Itself, once the block is found to be there, undamaged and of its size."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self.executor, self.store.peek, self.cid, self._check_size)
        return self

    async def read(self) -> bytes:
        """A copy of the bytes, made at once where they are in memory, and on a thread where not."""
        data = self.store.peek_now(self.cid, self._copy_resident)
        if data is not None:
            return data
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.executor, self.store.peek, self.cid, self._copy)

    def send(self, sock: socket.socket) -> int:
        """Hand the bytes to a socket that does not block: how many it took. To be called on a thread."""

        def out(block: memoryview) -> int:
            self._check_size(block)
            return sock.send(block[self.start : self.stop])

        try:
            return self.store.peek(self.cid, out)
        except BlockingIOError:
            return 0

    def _check_size(self, block: memoryview) -> None:
        if len(block) != self.size:
            raise CorruptContentError(f"block {self.cid} is not {self.size} bytes long, as its parent says")

    def _copy(self, block: memoryview) -> bytes:
        self._check_size(block)
        return bytes(block[self.start : self.stop])

    def _copy_resident(self, block: memoryview) -> bytes | None:
        part = block[self.start : self.stop]
        return self._copy(block) if is_resident(part) else None


async def send_ranges(
    sock: socket.socket, ranges: Sequence[StoredRange], *, linger: bool = False
) -> list[StoredRange]:
    """Hand ranges to a socket that does not block, on a thread, until it is full: what it did not take.

    With `linger` the thread waits LINGER_MS for room before it gives up, again and again: for a client that
    reads as fast as this, coming back to a thread costs more than what is sent in between. Raises what reading
    a block does, and OSError of the socket.
    """
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(ranges[0].executor, _send, sock, ranges, linger)


def _send(sock: socket.socket, ranges: Sequence[StoredRange], linger: bool) -> list[StoredRange]:
    for index, whole in enumerate(ranges):
        found = whole
        while (sent := found.send(sock)) < len(found):
            found = replace(found, start=found.start + sent)
            if not (linger and _has_room(sock)):
                return [found, *ranges[index + 1 :]]
    return []


def _has_room(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return bool(poll.poll(LINGER_MS))
