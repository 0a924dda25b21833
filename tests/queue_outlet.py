"""A `QueueConnection` that takes packs of notifications too, and may have a client that reads slowly."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from ipfs_stream_nb.notifications.packs import Pack
from ipfs_stream_nb.transports.connection import ConnectionClosedError
from queue_connection import QueueConnection


class QueueOutlet(QueueConnection):
    """`room`: messages that a client leaves unread before nothing more is taken; 0: no limit."""

    def __init__(self, room: int = 0) -> None:
        super().__init__()
        self._room = room
        self._moved = asyncio.Event()

    def offer(self, pack: Pack) -> bool:
        if self.gone.is_set() or self.closed:
            raise ConnectionClosedError
        if self._room and self._to_client.qsize() >= self._room:
            return False
        for number, text in pack.messages:
            message = json.loads(text)
            assert message.get("id", 0) == number
            self._to_client.put_nowait(message)
        return True

    async def drained(self) -> None:
        while self._room and self._to_client.qsize() >= self._room and not self.gone.is_set():
            self._moved.clear()
            await self._moved.wait()
        if self.gone.is_set() or self.closed:
            raise ConnectionClosedError

    def leave(self) -> None:
        super().leave()
        self._moved.set()

    async def hear(self) -> Any:
        message = await super().hear()
        self._moved.set()
        return message

    async def until(self, kind: str) -> dict[str, Any]:
        """The next message of this type; others are passed over."""
        while True:
            message = await self.hear()
            assert message is not None, f"it was closed where {kind} was due"
            if message["type"] == kind:
                return message

    async def events(self, count: int) -> list[dict[str, Any]]:
        """So many notifications; what else comes is passed over."""
        found = []
        while len(found) < count:
            message = await self.hear()
            if message["type"] in ("notification", "system_notification"):
                found.append(message)
        return found
