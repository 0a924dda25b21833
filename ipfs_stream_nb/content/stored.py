"""Bytes that stay in the store until they are sent: from its map into a socket, with no copy in between.

A server that sends a large file spends most of its time moving bytes. Here the kernel takes them out of the
mapped store itself, on a thread, so that neither memory nor the event loop has anything to do with them.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Final, Protocol, Self, TypeVar

from ipfs_stream_nb.content.blocks.residency import is_resident
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.unixfs import ENVELOPE_BYTES, leaf_span
from ipfs_stream_nb.errors import CorruptContentError

T = TypeVar("T")

LINGER_MS: Final = 1
"""Milliseconds that a thread waits for a socket to have room again."""


class Peekable(Protocol):
    """A store that lets its blocks be looked at where they lie: see BlockStore.peek and peek_now."""

    def peek(self, cid: CID, use: Callable[[memoryview], T], /) -> T:
        """What `use` makes of the verified block. Raises NotFoundError, CorruptContentError."""

    def peek_now(self, cid: CID, use: Callable[[memoryview], T | None], /) -> T | None:
        """The same where nobody has to be waited for; None otherwise."""


@dataclass(frozen=True, slots=True)
class StoredRange:
    """Bytes `start` to `stop` of a block that must have `size` bytes. Its length is that of the range."""

    store: Peekable
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

    async def unwrapped(self) -> Self | None:
        """The same bytes of the content of a dag-pb leaf, found in its block; None where it is no plain leaf.

        Raises what reading a block does.
        """
        near = self.store.peek_now(self.cid, self._unwrap_resident)
        if near is not None:
            return near
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.executor, self.store.peek, self.cid, self._unwrap)

    def _unwrap(self, block: memoryview) -> Self | None:
        span = leaf_span(block)
        if span is None:
            return None
        start, stop = span
        if stop - start != self.size:
            raise CorruptContentError(f"block {self.cid} does not hold {self.size} bytes, as its parent says")
        return replace(self, size=len(block), start=start + self.start, stop=start + self.stop)

    def _unwrap_resident(self, block: memoryview) -> Self | None:
        ends = (block[:ENVELOPE_BYTES], block[-ENVELOPE_BYTES:])
        return self._unwrap(block) if all(map(is_resident, ends)) else None

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
