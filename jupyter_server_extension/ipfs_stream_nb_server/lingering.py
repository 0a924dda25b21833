"""Tornado's WebSocket protocol, with an end that a client sees."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Final

from tornado.iostream import StreamClosedError
from tornado.websocket import WebSocketProtocol13

from ipfs_stream_nb.transports.connection import TOO_BIG
from ipfs_stream_nb_server.limits import LINGER_BYTES, LINGER_SECONDS

QUIET_SECONDS: Final = 0.5
"""A client that sends nothing for so long has seen that the connection is closed."""
_PIECE: Final = 1 << 16


class LingeringProtocol(WebSocketProtocol13):
    """Reads on for a little while after it has refused a message that is too big.

    Tornado breaks the connection right behind the close frame. What the client is still sending then makes its system
    reset the connection, and it never sees the frame with code 1009 (as in RFC 9112, section 9.6).
    """

    _refused = False

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        """Begin the closing handshake."""
        if code == TOO_BIG and (reason or "").startswith(
            "message too big"
        ):  # Tornado's own, and its _abort follows
            self._refused = True
        super().close(code, reason)

    def _abort(self) -> None:
        if not self._refused:
            super()._abort()

    async def _receive_frame(self) -> None:
        await super()._receive_frame()
        if self._refused:
            await self._linger()
            self._refused = False
            self._abort()

    async def _linger(self) -> None:
        """Throw away what the client sends, until it has seen the close frame or given up."""
        stream: Any = self.stream
        with suppress(StreamClosedError, TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                left = LINGER_BYTES
                while left > 0:
                    try:
                        async with asyncio.timeout(QUIET_SECONDS):
                            left -= len(await stream.read_bytes(_PIECE, partial=True))
                    except TimeoutError:
                        if not stream.writing():
                            break
