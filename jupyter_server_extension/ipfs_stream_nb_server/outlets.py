"""Subscribers' connections: packs of notifications as WebSocket frames, or as server-sent events."""

from __future__ import annotations

import asyncio
import json
from functools import lru_cache
from typing import Any, Final

from tornado.iostream import StreamClosedError
from tornado.websocket import WebSocketClosedError

from ipfs_stream_nb.notifications.packs import Pack
from ipfs_stream_nb.transports.connection import NORMAL, ConnectionClosedError
from ipfs_stream_nb_server import frames
from ipfs_stream_nb_server.handlers.sockets import SocketConnection

_EVENT: Final = (b'{"type":"notification"', b'{"type":"system_notification"')


class PackConnection(SocketConnection):
    """A socket that takes packs: `transports.notifications.NotificationConnection`."""

    def offer(self, pack: Pack) -> bool:
        """Send it, if the last one has left this process."""
        if self.gone or self._closing:
            raise ConnectionClosedError
        if self._writing is not None:
            if not self._writing.done():
                return False
            if self._writing.exception() is not None:
                self.lost()
                raise ConnectionClosedError
        connection = self._handler.ws_connection
        stream = None if connection is None or connection.is_closing() else connection.stream
        if stream is None:
            self.lost()
            raise ConnectionClosedError
        try:
            self._writing = frames.write_whole(stream, pack.form(frames.text_frames))
        except (WebSocketClosedError, StreamClosedError):
            self.lost()
            raise ConnectionClosedError from None
        if self._writing is not None:
            self._deadline = asyncio.get_running_loop().time() + self._stall_timeout
        return True


class EventStream:
    """An answer of server-sent events: `notifications.packs.Outlet`."""

    def __init__(self, handler: Any, epoch: Any, stall_timeout: float) -> None:
        """`epoch`: gives the log's epoch, which stands in the events' ids."""
        self._handler = handler
        self._epoch = epoch
        self._stall_timeout = stall_timeout
        self._writing: asyncio.Future[None] | None = None
        self._deadline = 0.0
        self.ended = asyncio.Event()

    def offer(self, pack: Pack) -> bool:
        """Send it, if the last one has left this process."""
        if self.ended.is_set():
            raise ConnectionClosedError
        return self._write(pack.form(sse_encoder(self._epoch())))

    def keep_alive(self) -> None:
        """Send a comment, unless something is on its way anyhow."""
        if not self.ended.is_set():
            self._write(b": keep-alive\n\n")

    def _write(self, data: bytes) -> bool:
        if self._writing is not None and not self._writing.done():
            return False
        try:
            self._handler.write(data)
            self._writing = asyncio.ensure_future(self._handler.flush())
        except (StreamClosedError, RuntimeError):  # it was finished
            self.ended.set()
            raise ConnectionClosedError from None
        self._deadline = asyncio.get_running_loop().time() + self._stall_timeout
        return True

    async def drained(self) -> None:
        """Wait until all that was sent has left this process."""
        if self._writing is None:
            return
        try:
            async with asyncio.timeout_at(self._deadline):
                await asyncio.shield(self._writing)
        except (StreamClosedError, TimeoutError):
            self.ended.set()
            raise ConnectionClosedError from None

    async def close(self, code: int = NORMAL, reason: str = "") -> None:  # noqa: ARG002  # HTTP has neither
        """End the answer."""
        self.ended.set()


@lru_cache(maxsize=4)
def sse_encoder(epoch: str) -> Any:
    """Encodes packs as server-sent events, whose ids are `epoch-id`: the cursor at which a client comes again.

    Notifications are unnamed events, which `onmessage` gets; other messages are events of their type. Pings are comments.
    """

    def encode(pack: Pack) -> bytes:
        parts = []
        for number, text in pack.messages:
            if number:
                parts.append(b"id: %b-%d\ndata: %b\n\n" % (epoch.encode(), number, text))
            elif text.startswith(_EVENT):
                parts.append(b"data: %b\n\n" % text)
            else:
                parts.append(_control(epoch, text))
        return b"".join(parts)

    return encode


def _control(epoch: str, text: bytes) -> bytes:
    message = json.loads(text)
    if message["type"] == "ping":
        return b": ping\n\n"
    # so that a client which has seen no event yet comes again at the right place
    cursor = message.get("since")
    begin = b"" if cursor is None else b"id: %b-%d\n" % (epoch.encode(), cursor)
    return b"%bevent: %b\ndata: %b\n\n" % (begin, message["type"].encode(), text)
