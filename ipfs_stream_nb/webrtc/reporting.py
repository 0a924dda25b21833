"""The data channel `ipfs-stream`: where playback is and how the connection does, beside the media."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiortc import RTCDataChannel, RTCPeerConnection

LABEL: Final = "ipfs-stream"
FIRST_TIMEOUT: Final = 1.0
"""Seconds until what opens the channel is sent again, as RFC 9260 recommends (section 16); aiortc waits 3, by RFC 4960."""
POSITION_EVERY: Final = 0.25
STATS_EVERY: Final = 1.0
"""Seconds between two messages."""
MAX_BUFFERED: Final = 64 << 10
"""Bytes on their way, beyond which messages are left out: the next ones say more."""
QUALITY_EVERY: Final = 0.1
"""Seconds between two `quality` messages at the least, however often they are asked for."""
MAX_MESSAGE: Final = 1024
"""Bytes of a message from the viewer."""
MAX_MARKS: Final = 64
"""Marks that wait for the channel; the oldest gives way."""


def open_channel(pc: RTCPeerConnection) -> RTCDataChannel:
    """The channel, which opens with the connection."""
    channel = pc.createDataChannel(LABEL)
    channel.transport._rto = FIRST_TIMEOUT  # noqa: SLF001  # there is no setting for it
    return channel


class Reporter:
    """Sends messages over a channel while a peer is connected: `playback` on each change and as long as it plays, `stats` once
    a second, `timestamps` as they come."""

    def __init__(
        self,
        channel: RTCDataChannel,
        playback: Callable[[], dict[str, Any]],
        stats: Callable[[], Awaitable[dict[str, Any]]],
        quality: Callable[[], dict[str, Any] | None],
    ) -> None:
        """`playback`, `stats` and `quality` give the messages; None: there is nothing to tell."""
        self._channel = channel
        self._playback = playback
        self._stats = stats
        self._quality = quality
        self._watched = 0.0
        """Seconds between two `quality` messages; 0: nobody watches."""
        self._next_quality = 0.0
        """The loop's time of the next one."""
        self._changed = asyncio.Event()
        self._marks: deque[dict[str, Any]] = deque(maxlen=MAX_MARKS)
        channel.on("open", self._opened)
        channel.on("message", self._take)

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

    def _opened(self) -> None:
        self._send_marks()
        self._changed.set()

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

    def _take(self, data: str | bytes) -> None:
        """`{"type": "watch", "every": seconds}`: how often `quality` is to come; anything else is passed over."""
        try:
            message: Any = json.loads(data) if len(data) <= MAX_MESSAGE else None
            every = float(message["every"]) if message["type"] == "watch" else -1.0
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return
        if 0 <= every < float("inf"):
            self._watched = max(every, QUALITY_EVERY) if every else 0.0
            self._next_quality = 0.0
            self._changed.set()

    async def run(self) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        next_stats = loop.time()
        told: dict[str, Any] = {}
        next_position = loop.time()
        while True:
            message = self._playback()
            due = message["state"] == "playing" and loop.time() >= next_position
            changed = message["state"] != told.get("state")
            if (due or changed or (message["state"] != "playing" and message != told)) and self._is_ready():
                next_position = loop.time() + POSITION_EVERY
                self.send(message)
                told = message
            if loop.time() >= next_stats:
                next_stats += STATS_EVERY
                self.send(await self._stats())
            if self._watched and loop.time() >= self._next_quality:
                self._next_quality = max(self._next_quality + self._watched, loop.time())
                if (quality := self._quality()) is not None:
                    self.send(quality)
            self._send_marks()
            self._changed.clear()
            timer = loop.call_later(min(POSITION_EVERY, self._watched or POSITION_EVERY), self._changed.set)
            try:
                await self._changed.wait()
            finally:
                timer.cancel()
