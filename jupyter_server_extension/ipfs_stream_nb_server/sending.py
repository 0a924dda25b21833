"""Content on its way into a client's socket: a little ahead of it, and from the store itself where that can be.

Tornado's stream takes bytes, and keeps what the socket does not take yet. Ranges of the block store go past it:
a thread hands them to the socket, which takes them out of the map, so that they are never copied here and the
event loop only waits until the socket has room again.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine
from ipaddress import ip_address
from itertools import groupby
from typing import Any, Final, cast

from tornado.iostream import IOStream, StreamClosedError

from ipfs_stream_nb.content.stored import StoredRange, send_ranges
from ipfs_stream_nb.content.uploads import to_the_end
from ipfs_stream_nb.errors import IPFSStreamError

AHEAD_STORED: Final = 8 << 20
"""Bytes that are looked up ahead of the socket where they stay in the store: what one visit to a thread may send."""
AHEAD_COPIED: Final = 1 << 20
"""Bytes that are held ahead of the socket where they are copies."""

QUICK_SECONDS: Final = 0.005
"""A client that makes room within this time is worth a thread that waits for it to do so again."""
LOOPBACK_BUFFER: Final = 256 << 10
"""Bytes of the socket's buffer for a client on this machine. What is under way then stays in the processor's cache,
and there is no distance that more of it would have to bridge; elsewhere the system finds the right size."""

Piece = bytes | StoredRange
Patience = Callable[[asyncio.Future[None]], Coroutine[Any, Any, None]]
"""Waits for a write, for as long as the client may take for it."""


def _own_socket(stream: IOStream) -> socket.socket:
    """A descriptor of our own: Tornado may close its own at any time, and its number be used again."""
    own: socket.socket = stream.socket.dup()
    if own.family in {socket.AF_INET, socket.AF_INET6}:
        with contextlib.suppress(OSError):  # it is gone; sending will say so
            if ip_address(own.getpeername()[0].partition("%")[0]).is_loopback:
                own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LOOPBACK_BUFFER)
    return own


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class ReadAhead:
    """Gathers pieces while those before are being sent; a task of its own, ended by `close`."""

    def __init__(self, pieces: AsyncGenerator[Piece, None]) -> None:
        self._pieces = pieces
        self._ready: list[Piece] = []
        self._held = 0.0
        """How full it is: 1 is as much as may be."""
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._task = asyncio.create_task(self._gather())
        self._task.add_done_callback(lambda _: self._changed.set())

    async def _gather(self) -> None:
        async for piece in self._pieces:
            self._ready.append(piece)
            self._held += len(piece) / (AHEAD_COPIED if isinstance(piece, bytes) else AHEAD_STORED)
            self._changed.set()
            if self._held >= 1:
                self._room.clear()
                await self._room.wait()

    async def next(self) -> list[Piece]:
        """What is there, and at least one piece; none at the end. Raises what the generator did."""
        await self._changed.wait()
        batch, self._ready, self._held = self._ready, [], 0.0
        self._room.set()
        if not batch:
            await self._task
        if not self._task.done():
            self._changed.clear()
        return batch

    async def close(self) -> None:
        """Stop gathering, so that the generator can be closed."""
        await to_the_end(self._stop())

    async def _stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.exception()


class Sender:
    """Writes pieces to one connection."""

    def __init__(self, connection: Any, patience: Patience) -> None:
        self._connection = connection
        self._patience = patience
        self._socket: Any = None
        self._is_quick = True
        self._visit: asyncio.Future[list[StoredRange]] | None = None
        self.bytes_sent = 0
        """Bytes that have left this process."""

    async def send(self, pieces: list[Piece]) -> None:
        """Write pieces; returns when all of them have left this process."""
        for copied, alike in groupby(pieces, lambda piece: isinstance(piece, bytes)):
            if copied:
                await self._write(b"".join(cast("list[bytes]", list(alike))))
            elif self._can_bypass():
                await self._send_stored(cast("list[StoredRange]", list(alike)))
            else:
                for piece in cast("list[StoredRange]", list(alike)):
                    await self._write(await piece.read())

    async def _write(self, data: bytes) -> None:
        await self._patience(self._connection.write(data))
        self.bytes_sent += len(data)

    def _can_bypass(self) -> bool:
        """Not through TLS, nor into chunks, nor on Windows' event loop, which does not watch for room to write."""
        return (
            type(self._connection.stream) is IOStream
            and self._connection._expected_content_remaining is not None  # noqa: SLF001
            and sys.platform != "win32"
        )

    async def _send_stored(self, ranges: list[StoredRange]) -> None:
        if self._connection.stream.closed():
            raise StreamClosedError
        if self._socket is None:
            self._socket = _own_socket(self._connection.stream)
        # Tornado checks at the end that as much was written as Content-Length says
        left = sum(map(len, ranges))
        self._connection._expected_content_remaining -= left  # noqa: SLF001
        try:
            while ranges:
                self._visit = asyncio.ensure_future(send_ranges(self._socket, ranges, linger=self._is_quick))
                ranges, before = await asyncio.shield(self._visit), left
                left = sum(map(len, ranges))
                self.bytes_sent += before - left
                if ranges:
                    await self._writable()
        except OSError as error:
            if isinstance(error, IPFSStreamError):
                raise
            raise StreamClosedError(real_error=error) from error

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        writable: asyncio.Future[None] = loop.create_future()
        loop.add_writer(self._socket, _settle, writable)
        start = loop.time()
        try:
            await self._patience(writable)
        finally:
            loop.remove_writer(self._socket)
        self._is_quick = loop.time() - start < QUICK_SECONDS

    def close(self) -> None:
        """Give the descriptor back, once no thread uses it."""
        if self._visit is not None:
            self._visit.add_done_callback(self._close)

    def _close(self, visit: asyncio.Future[list[StoredRange]]) -> None:
        self._socket.close()
        if not visit.cancelled():
            visit.exception()
