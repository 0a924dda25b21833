"""The data channel `ipfs-stream`: where playback is and how the connection does, beside the media."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiortc import RTCDataChannel

LABEL: Final = "ipfs-stream"
POSITION_EVERY: Final = 0.25
STATS_EVERY: Final = 1.0
"""Seconds between two messages."""
MAX_BUFFERED: Final = 64 << 10
"""Bytes on their way, beyond which messages are left out: the next ones say more."""
MAX_MARKS: Final = 64
"""Marks that wait for the channel; the oldest gives way."""


class Reporter:
    """Sends messages over a channel while a peer is connected: `playback` on each change and as long as it plays, `stats` once
    a second, `timestamps` as they come."""

    def __init__(
        self,
        channel: RTCDataChannel,
        playback: Callable[[], dict[str, Any]],
        stats: Callable[[], Awaitable[dict[str, Any]]],
    ) -> None:
        """`playback` and `stats` give the messages."""
        self._channel = channel
        self._playback = playback
        self._stats = stats
        self._changed = asyncio.Event()
        self._marks: deque[dict[str, Any]] = deque(maxlen=MAX_MARKS)
        channel.on("open", self._send_marks)

    def changed(self) -> None:
        """Have the next `playback` sent at once."""
        self._changed.set()

    def send(self, message: dict[str, Any]) -> None:
        """Send a message, where the channel is open and has room."""
        if self._is_ready():
            self._channel.send(json.dumps(message))

    def mark(self, message: dict[str, Any]) -> None:
        """Send a mark, once the channel is open and has room."""
        self._marks.append(message)
        self._send_marks()

    def _send_marks(self) -> None:
        while self._marks and self._is_ready():
            self._channel.send(json.dumps(self._marks.popleft()))

    def _is_ready(self) -> bool:
        channel = self._channel
        return (
            channel.readyState == "open"
            and channel.transport.transport.state == "connected"  # a channel outlives what it runs over
            and channel.bufferedAmount < MAX_BUFFERED
        )

    async def run(self) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        next_stats = loop.time()
        told: dict[str, Any] = {}
        while True:
            message = self._playback()
            if message["state"] == "playing" or message != told:
                self.send(message)
                told = message
            if loop.time() >= next_stats:
                next_stats += STATS_EVERY
                self.send(await self._stats())
            self._send_marks()
            self._changed.clear()
            timer = loop.call_later(POSITION_EVERY, self._changed.set)
            try:
                await self._changed.wait()
            finally:
                timer.cancel()
