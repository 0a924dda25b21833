"""Answers on their way to a client: awaited piece by piece, ended when the client leaves or stands still."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final, cast

from tornado.iostream import StreamClosedError

from ipfs_stream_nb.content.stored import StoredRange
from ipfs_stream_nb.errors import IPFSStreamError, RetrievalTimeoutError
from ipfs_stream_nb_server.handlers.base import IPFSHandler
from ipfs_stream_nb_server.handlers.http import ClientStalledError
from ipfs_stream_nb_server.limits import STEPS_PER_TURN
from ipfs_stream_nb_server.sending import Piece, ReadAhead, Sender
from ipfs_stream_nb_server.wire import json_line

JOIN_BYTES: Final = 128 << 10
"""A first piece up to this size leaves with the headers in one write; larger ones would be copied for it."""


class StreamingHandler(IPFSHandler):
    """Answers that take work: bounded in number, given up with their clients; bodies from async generators."""

    reads_ahead = True
    """Whether pieces are gathered while those before are sent; what is told as it happens is not."""
    _worker: asyncio.Task[Any] | None = None
    _deadline: asyncio.Timeout
    _left = False
    _joined = 0
    """Bytes of the body that left with the headers."""
    _sender: Sender | None = None

    @property
    def bytes_sent(self) -> int:
        """Bytes of the body that have left this process."""
        return self._joined + (0 if self._sender is None else self._sender.bytes_sent)

    @asynccontextmanager
    async def serving(self, answer_within: float | None = None) -> AsyncIterator[None]:
        """Hold one of the server's slots while an answer is made and sent; when the client leaves, both end.

        `answer_within`: seconds in which the answer must begin. Raises BusyError, RetrievalTimeoutError.
        """
        with self.context.streams.slot(self.user):
            worker = self._worker = asyncio.current_task()
            assert worker is not None  # noqa: S101  # a handler's method runs in one
            if self._left:
                worker.cancel()
            try:
                async with asyncio.timeout(answer_within) as self._deadline:
                    yield
            except StreamClosedError:
                self.abort()
            except ClientStalledError:
                self.log.info("%s: closed, its client stands still", self._request_summary())
                self.abort()
            except TimeoutError:
                if not self._deadline.expired():
                    raise
                limit = f"no answer could be made within {answer_within:g} s, this server's answer_timeout"
                raise RetrievalTimeoutError(limit + self._asked()) from None
            except asyncio.CancelledError:
                if not self._left:
                    raise
                worker.uncancel()
                self.abort()
            finally:
                self._worker = None

    def _asked(self) -> str:
        """Who may have kept an answer waiting, and how they are."""
        retriever = getattr(self._node, "retriever", None)
        sources = [] if retriever is None else retriever.describe()
        shown = ", ".join(f"{source['name']} ({source['state']})" for source in sources)
        return f"; what is not here is looked for at {shown}" if shown else ""

    async def send_stream(self, pieces: AsyncGenerator[Piece, None]) -> None:
        """Send the pieces and finish, inside of `serving`; the headers must be set.

        The first piece is had before the headers go out, so that an error in it still becomes an answer. An
        error after that breaks the connection. The generator is closed whatever happens.
        """
        async with aclosing(pieces):
            await self._send(pieces)

    async def _send(self, pieces: AsyncGenerator[Piece, None]) -> None:
        first = await anext(pieces, b"")
        if isinstance(first, StoredRange):
            first = await first.read() if len(first) <= JOIN_BYTES else await first.checked()
        self._deadline.reschedule(None)
        if not self.reads_ahead:
            await self._send_each(first, pieces)
            return
        if isinstance(first, bytes) and len(first) <= JOIN_BYTES:
            self.write(first)
            self._joined = len(first)
            if self._headers.get("Content-Length") == str(len(first)):
                self.finish()  # the whole body, in one write with its headers
                return
            first = b""
        await self.patiently(self.flush())
        sender = self._sender = Sender(self.request.connection, self.patiently)
        ahead = ReadAhead(pieces)
        try:
            await sender.send([first])
            while batch := await ahead.next():
                await sender.send(batch)
        finally:
            sender.close()
            await ahead.close()
        self.finish()

    async def _send_each(self, first: Piece, rest: AsyncGenerator[Piece, None]) -> None:
        """Send pieces that are small, one by one: the next is made when this one has left."""
        self.write(cast("bytes", first))
        await self.patiently(self.flush())
        async for piece in rest:
            self.write(cast("bytes", piece))
            await self.patiently(self.flush())
        self.finish()

    async def patiently(self, sent: asyncio.Future[None]) -> None:
        """Wait until a write has left this process. Raises ClientStalledError."""
        if sent.done():
            sent.result()
            return
        try:
            async with asyncio.timeout(self.context.limits.stall_timeout):
                await sent
        except TimeoutError:
            raise ClientStalledError from None

    def on_connection_close(self) -> None:
        """Called by Tornado when the client leaves: what is being made for it is given up."""
        super().on_connection_close()
        self._left = True
        if self._worker is not None:
            self._worker.cancel()

    async def send_lines(self, values: AsyncGenerator[object, None]) -> None:
        """Send values as lines of JSON. An error after the first line becomes the last line."""
        self.start_lines()
        await self.send_stream(self._lines(values))

    async def _lines(self, values: AsyncGenerator[object, None]) -> AsyncGenerator[bytes, None]:
        sent = 0
        async with aclosing(values):
            try:
                async for value in values:
                    yield json_line(value)
                    sent += 1
                    if not sent % STEPS_PER_TURN:
                        await asyncio.sleep(0)
            except IPFSStreamError as error:
                if not sent:
                    raise
                self.note_failure(error)
                yield json_line(error.to_json())
