"""Subscribers over any web framework's socket: one whose `send_text` or `send_json` is awaited."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final, cast

from ipfs_stream_nb.errors import BadRequestError
from ipfs_stream_nb.notifications.packs import Outlet, Pack
from ipfs_stream_nb.transports.connection import NORMAL, ConnectionClosedError

SECONDS: Final = 30.0
"""In which a client must take what it was sent."""


class PlainOutlet:
    """`packs.Outlet` over such a socket; one pack at a time is on its way, in a task of its own."""

    def __init__(self, websocket: Any) -> None:
        self._websocket = websocket
        self._sending: asyncio.Task[None] | None = None
        self._gone = False

    def offer(self, pack: Pack) -> bool:
        """Send it, if the last one is out."""
        if self._sending is not None:
            if not self._sending.done():
                return False
            self._check()
        if self._gone:
            raise ConnectionClosedError
        self._sending = asyncio.create_task(self._send(pack), name="send to a plain socket")
        return True

    async def _send(self, pack: Pack) -> None:
        send_text = getattr(self._websocket, "send_text", None)
        async with asyncio.timeout(SECONDS):
            for _, text in pack.messages:
                if send_text is not None:
                    await send_text(text.decode())
                else:
                    await self._websocket.send_json(json.loads(text))

    def _check(self) -> None:
        """Raise ConnectionClosedError where the last sending failed, for whatever reason: frameworks have their own."""
        sending, self._sending = self._sending, None
        if sending is not None and (sending.cancelled() or sending.exception() is not None):
            self._gone = True
            raise ConnectionClosedError

    async def drained(self) -> None:
        """Wait until the last one is out."""
        if self._sending is not None:
            await asyncio.wait([self._sending])
            self._check()

    async def close(self, code: int = NORMAL, reason: str = "") -> None:  # noqa: ARG002  # not all take a reason
        """End the connection, where its framework lets us."""
        self._gone = True
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.wait([self._sending])
        close = getattr(self._websocket, "close", None)
        if close is not None:
            await close(code)


def outlet_of(websocket: Any) -> Outlet:
    """What a manager sends to. Raises BadRequestError for what cannot be sent to."""
    if hasattr(websocket, "offer"):
        return cast("Outlet", websocket)
    if hasattr(websocket, "send_text") or hasattr(websocket, "send_json"):
        return PlainOutlet(websocket)
    raise BadRequestError(
        f"a connection has an async send_text or send_json, as Starlette's WebSocket has; a {type(websocket).__name__} has neither"
    )
