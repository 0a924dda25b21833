"""Events of a client, sent to its server: of content where it reads and writes the store itself, and of its own work."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

from ipfs_stream_nb.clients.http import ServerHTTP
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.content.node import Node, Path
from ipfs_stream_nb.notifications.content_events import ContentEvents
from ipfs_stream_nb.notifications.events import NotificationType
from ipfs_stream_nb.transports.watching import Transfer

_log = logging.getLogger("ipfs_stream_nb.reporting")

MAX_WAITING: Final = 1024
"""Events that wait to be sent; what comes while there are so many is dropped."""
BATCH_EVENTS: Final = 256
"""Events in one request, the most that a server takes."""
BATCH_BYTES: Final = 256 << 10
"""Bytes of JSON in one request."""
MAX_EVENT_BYTES: Final = 16 << 10
"""Bytes of JSON of one event; a longer one is dropped."""
GATHER_SECONDS: Final = 0.05
"""Seconds in which further events may join one that is about to be sent."""
SEND_TIMEOUT: Final = 5.0
"""Seconds that the server has to take a batch."""
AWAY_SECONDS: Final = 5.0
"""Seconds after a failure in which nothing is tried; what comes meanwhile waits."""
CLOSE_SECONDS: Final = 1.0
"""Seconds that closing waits for what is left to be sent."""


class EventReporter:
    """Sends events to a server's `ipfs-stream/events`, in batches, by a task of its own. For one event loop.

    The work that emits neither waits nor fails: where the server is away, or does not take them, events are dropped,
    and counted.
    """

    def __init__(self, http: ServerHTTP) -> None:
        self._http = http
        self._waiting: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.dropped = 0
        """Events that were lost."""

    def emit(
        self,
        notification_type: NotificationType,
        data: Mapping[str, Any],
        *,
        source: str | None = None,
        owner: str | None = None,  # noqa: ARG002  # whose they are, the server knows by the token
        keep: bool = True,
    ) -> None:
        """An `Emit`."""
        event: dict[str, Any] = {"notification_type": notification_type.value, "data": dict(data)}
        if source is not None:
            event["source"] = source
        if not keep:
            event["keep"] = False
        text = json.dumps(event).encode()
        if self._closing.is_set() or len(self._waiting) >= MAX_WAITING or len(text) > MAX_EVENT_BYTES:
            self.dropped += 1
            return
        self._waiting.append(text)
        self._wake.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="report events to the server")

    async def _run(self) -> None:
        while self._waiting or not self._closing.is_set():
            await self._wake.wait()
            await self._pause(GATHER_SECONDS)
            if not await self._send(self._batch()):
                await self._pause(AWAY_SECONDS)
            if not self._waiting and not self._closing.is_set():
                self._wake.clear()

    async def _pause(self, seconds: float) -> None:
        """Wait, unless it is time to close."""
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            pass

    def _batch(self) -> list[bytes]:
        batch: list[bytes] = []
        size = 0
        while self._waiting and len(batch) < BATCH_EVENTS and size + len(self._waiting[0]) <= BATCH_BYTES:
            batch.append(self._waiting.popleft())
            size += len(batch[-1])
        return batch

    async def _send(self, batch: list[bytes]) -> bool:
        """Whether the server took it, or there was nothing to take."""
        if not batch:
            return True
        body = b'{"events":[%b]}' % b",".join(batch)
        headers = {"Content-Type": "application/json"}
        try:
            async with asyncio.timeout(SEND_TIMEOUT):
                await self._http.json("POST", "ipfs-stream/events", data=body, headers=headers)
        except BaseException as error:
            self.dropped += len(batch)
            _log.debug("%d events were not taken: %r", len(batch), error)
            if not isinstance(error, Exception):
                raise
            return False
        return True

    async def close(self) -> None:
        """Send what is left, for CLOSE_SECONDS at the most. Idempotent."""
        self._closing.set()
        self._wake.set()
        task, self._task = self._task, None
        if task is not None:
            await asyncio.wait([task], timeout=CLOSE_SECONDS)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()
        self.dropped += len(self._waiting)
        self._waiting.clear()


class Reports:
    """What a client tells its server of: of its content only where that does not go through the server anyway."""

    def __init__(self, node: Node, http: ServerHTTP) -> None:
        self.reporter = EventReporter(http)
        self._events: ContentEvents | None = None
        if isinstance(node, EmbeddedNode):
            self._events = ContentEvents(self.reporter.emit)
            node.observers.append(self._events.observe)

    def reading(
        self, transfer: Transfer, path: Path, *, size: int | None = None, form: str = ""
    ) -> AbstractContextManager[object]:
        """Around a read: see Retrievals.sending."""
        if self._events is None:
            return nullcontext()
        return self._events.retrievals.sending(transfer, path, "direct", size=size, form=form)

    async def close(self) -> None:
        """Send what is left, in a second or not at all. Idempotent."""
        if self._events is not None:
            self._events.close()
        await self.reporter.close()
