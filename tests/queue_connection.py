"""A `Connection` of two queues, with the client's end of it: conversations without a framework or a socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from ipfs_stream_nb.transports.connection import NORMAL, ConnectionClosedError

SECONDS = 10
"""After which a client that waits has failed."""


class QueueConnection:
    """What a conversation sees. `room`: messages that a client which does not read leaves unread before sending waits;
    `take`: how many of a number of frames go at once."""

    def __init__(self, room: int = 0, take: Callable[[int], int] | None = None) -> None:
        self._to_client: asyncio.Queue[Any] = asyncio.Queue(room)
        self._to_server: asyncio.Queue[Any] = asyncio.Queue()
        self.gone = asyncio.Event()
        self.failures: list[Exception] = []
        self._take = take or (lambda count: count)
        self.drains = 0
        self.closed: tuple[int, str] | None = None

    async def _send(self, message: Any) -> None:
        if self.gone.is_set() or self.closed:
            raise ConnectionClosedError
        putting = asyncio.ensure_future(self._to_client.put(message))
        leaving = asyncio.ensure_future(self.gone.wait())
        try:
            await asyncio.wait([putting, leaving], return_when=asyncio.FIRST_COMPLETED)
            if not putting.done():
                raise ConnectionClosedError
        finally:
            for task in (putting, leaving):
                task.cancel()

    async def send_json(self, message: dict[str, Any]) -> None:
        await self._send(json.loads(json.dumps(message)))

    async def send_all(self, messages: Any) -> int:
        """Some of them: a slow client's."""
        taken = self._take(len(messages))
        for message in messages[:taken]:
            await self._send(bytes(message))
        return taken

    async def drained(self) -> None:
        self.drains += 1

    async def receive(self) -> str | bytes:
        message = await self._to_server.get()
        if message is None:
            self._to_server.put_nowait(None)
            raise ConnectionClosedError
        return message

    async def close(self, code: int = NORMAL, reason: str = "") -> None:
        if self.closed is None:
            self.closed = (code, reason)
            await self._to_client.put(None)

    def failed(self, error: Exception) -> None:
        self.failures.append(error)

    # the client

    def say(self, *messages: str | bytes | dict[str, Any]) -> None:
        """Send: text and bytes as they are, dictionaries as JSON."""
        for message in messages:
            self._to_server.put_nowait(json.dumps(message) if isinstance(message, dict) else message)

    def leave(self) -> None:
        """Drop the connection."""
        self.gone.set()
        self._to_server.put_nowait(None)

    async def hear(self) -> Any:
        """The next message: a dictionary, bytes, or None once it is closed."""
        async with asyncio.timeout(SECONDS):
            return await self._to_client.get()

    async def hear_type(self, *kinds: str) -> dict[str, Any]:
        """The next JSON message of these types; progress and credit are passed over unless they are meant."""
        while True:
            message = await self.hear()
            assert isinstance(message, dict), f"{message!r:.200} came where {kinds} was due"
            if message["type"] in kinds:
                return message
            assert message["type"] in {"progress", "credit"}, message

    async def rest(self) -> list[Any]:
        """All that comes until it is closed."""
        found = []
        while (message := await self.hear()) is not None:
            found.append(message)
        return found

    def unread(self) -> list[Any]:
        """What has come, without waiting."""
        found = []
        with contextlib.suppress(asyncio.QueueEmpty):
            while True:
                found.append(self._to_client.get_nowait())
        return found


@contextlib.asynccontextmanager
async def talking(work: Awaitable[None], connection: QueueConnection) -> AsyncIterator[QueueConnection]:
    """A conversation beside the test; at the end it must have ended, or end when its client leaves, with all its
    tasks."""
    before = asyncio.all_tasks()
    task = asyncio.ensure_future(_quietly(work))
    try:
        yield connection
    except BaseException:
        task.cancel()
        raise
    finally:
        connection.leave()
        await asyncio.wait([task], timeout=SECONDS)
        assert task.done(), "the conversation went on without its client"
        if not task.cancelled():
            task.result()
    async with asyncio.timeout(SECONDS):
        while left := asyncio.all_tasks() - before:
            await asyncio.wait(left)


async def _quietly(work: Awaitable[None]) -> None:
    with contextlib.suppress(ConnectionClosedError):
        await work
