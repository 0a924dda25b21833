"""`/ws/stream` and `/sse/stream`: a file on its way to a client."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Final, Self

from ipfs_stream_nb.content.node import Node
from ipfs_stream_nb.content.stream import CHUNK_SIZE, IPFSContentStream
from ipfs_stream_nb.errors import BadRequestError, IPFSStreamError, IsDirectoryError, RetrievalError
from ipfs_stream_nb.transports.connection import Connection, ConnectionClosedError, error_message, refuse
from ipfs_stream_nb.transports.watching import NOBODY, Watcher

PROGRESS_SECONDS: Final = 0.25
"""Seconds between two progress messages of a download, at the least."""
SLOW_BYTES: Final = 4 * CHUNK_SIZE
"""Bytes that are read at once for a client that is slow, or that nothing is known of yet."""
FETCHED_BYTES: Final = 1 << 20
"""The same where it may have to be fetched."""
QUICK_BYTES: Final = 4 << 20
"""Bytes that a client takes without a pause before it counts as quick: more than a system's socket buffers hold."""
SSE_CHUNK: Final = 49_152
"""Bytes of a chunk event: a multiple of 3, so that the base64 of all chunks together is the base64 of all of it."""
RETRY_MS: Final = 1000
"""Milliseconds after which an EventSource that lost its connection comes again."""
KEEP_ALIVE_SECONDS: Final = 15.0
"""Seconds of silence after which a comment is sent."""


@dataclass(frozen=True, slots=True)
class Part:
    """What is asked for of a file. Bytes."""

    offset: int = 0
    length: int | None = None


class Download:
    """One file, or a part of it, from a node: its metadata, and how far it is."""

    def __init__(self, stream: IPFSContentStream, metadata: dict[str, Any], part: Part) -> None:
        self.stream = stream
        self.offset = part.offset
        self.size = int(metadata["size"])
        left = self.size - part.offset
        self.length = left if part.length is None else min(left, part.length)
        self.metadata = {
            "type": "metadata",
            **metadata,
            "offset": self.offset,
            "length": self.length,
            "chunk_size": CHUNK_SIZE,
            "timestamp": time.time(),
        }
        self.bytes_sent = 0
        """Bytes of the file; those of what is written around them do not count."""
        self._began = self._told = time.monotonic()

    @classmethod
    async def open(cls, stream: IPFSContentStream, part: Part) -> Download:
        """Look the file up. Raises IsDirectoryError, BadRequestError for an offset behind its end, NotFoundError."""
        metadata = await stream.get_metadata()
        if metadata["kind"] != "file":
            raise IsDirectoryError(f"{stream.cid} is a {metadata['kind']}; name a file in it")
        if part.offset > metadata["size"]:
            raise BadRequestError(
                f"offset {part.offset} is behind the end: the file has {metadata['size']} bytes"
            )
        return cls(stream, metadata, part)

    def batches(self, offset: int, length: int) -> AsyncGenerator[list[memoryview], None]:
        """Some of its bytes in chunks of CHUNK_SIZE, as many at once as are there."""
        return self.stream.iter_batches(CHUNK_SIZE, offset, length)

    def progress(self) -> dict[str, Any] | None:
        """A progress message, where one is due: bytes_sent, total_bytes, percent, rate (bytes a second)."""
        now = time.monotonic()
        if now - self._told < PROGRESS_SECONDS:
            return None
        self._told = now
        return {
            "type": "progress",
            "bytes_sent": self.bytes_sent,
            "total_bytes": self.length,
            "percent": round(100.0 * self.bytes_sent / self.length, 2),
            "rate": round(self.bytes_sent / (now - self._began)),
        }


Take = Callable[[list[memoryview]], Awaitable[int]]
"""Sends chunks: how many of their bytes it took, which may be all, some or none."""


class Ahead:
    """The batches of a download, the next one read while the last is sent. A context manager."""

    def __init__(self, download: Download) -> None:
        self._download = download
        self._at, self._end = download.offset, download.offset + download.length
        # what is fetched comes in whole blocks
        self._step = FETCHED_BYTES if download.stream.ipfs_api.fetches else SLOW_BYTES
        self._batches: AsyncGenerator[list[memoryview], None] | None = None
        self._reading: asyncio.Task[list[memoryview]] | None = None

    async def send(self, take: Take, ready: Callable[[], Awaitable[None]]) -> None:
        """Send all of it. Where `take` takes less than a batch, nothing is held until `ready` says that it takes more:
        neither what was read ahead, nor what it did not take."""
        quick = 0
        while self._at < self._end:
            batch = await self._next(None if quick >= QUICK_BYTES else self._step)
            size = sum(map(len, batch))
            took = await take(batch)
            del batch
            self._at += took
            quick += took
            if took < size:
                quick = 0
                await self.close()
                await ready()

    async def _next(self, most: int | None) -> list[memoryview]:
        """The next batch; with `most`, of at most so many bytes, and nothing is read behind it."""
        if most is not None:
            async with aclosing(self._download.batches(self._at, min(most, self._end - self._at))) as batches:
                return [chunk async for batch in batches for chunk in batch]
        if self._batches is None:
            self._batches = self._download.batches(self._at, self._end - self._at)
        reading = self._reading or asyncio.ensure_future(anext(self._batches))
        self._reading = reading
        batch = await asyncio.shield(reading)
        self._reading = None
        if self._at + sum(map(len, batch)) < self._end:
            self._reading = asyncio.ensure_future(anext(self._batches))
        return batch

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of what was read. Idempotent."""
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()
            await asyncio.wait([reading])
            if not reading.cancelled():
                reading.exception()
        batches, self._batches = self._batches, None
        if batches is not None:
            await batches.aclose()


async def stream_content(
    connection: Connection,
    ipfs_api: Node,
    path: str,
    part: Part,
    *,
    progress: bool = True,
    sha256: bool = False,
    watcher: Watcher = NOBODY,
) -> None:
    """`WS /ws/stream`: metadata, binary frames of CHUNK_SIZE with progress between them, complete, close.

    What the client sends meanwhile is answered with an error, and changes nothing. Without `complete` the transfer
    was not whole, and is resumed by an offset. `sha256`: have the hash of what was sent in `complete`.
    """
    listening = asyncio.create_task(_refuse_messages(connection), name="listen to a download's client")
    try:
        async with IPFSContentStream(ipfs_api, path) as stream:
            download = await Download.open(stream, part)
            await connection.send_json(download.metadata)
            digest = hashlib.sha256()

            async def take(batch: list[memoryview]) -> int:
                chunks = batch[: await connection.send_all(batch)]
                for chunk in chunks if sha256 else ():
                    digest.update(chunk)
                took = sum(map(len, chunks))
                download.bytes_sent += took
                told = download.progress() if progress else None
                if told is not None:
                    await connection.send_json(told)
                return took

            with watcher.download(download, path, download.size):
                async with Ahead(download) as ahead:
                    await ahead.send(take, connection.drained)
        complete: dict[str, Any] = {"type": "complete", "bytes_sent": download.bytes_sent}
        if sha256:
            complete["sha256"] = digest.hexdigest()
        await connection.send_json(complete | {"timestamp": time.time()})
        await connection.close()
    except ConnectionClosedError:
        raise
    except Exception as error:  # noqa: BLE001  # told to the client, and noted by the connection
        await refuse(connection, error)
    finally:
        listening.cancel()
        await asyncio.wait([listening])


async def _refuse_messages(connection: Connection) -> None:
    with suppress(ConnectionClosedError):
        while True:
            await connection.receive()
            await connection.send_json(
                BadRequestError("this socket only sends; nothing is expected from the client").to_json()
            )


async def sse_events(
    ipfs_api: Node,
    path: str,
    part: Part,
    failed: Callable[[Exception], None] | None = None,
    watcher: Watcher = NOBODY,
) -> AsyncGenerator[str, None]:
    """`GET /sse/stream`: the events `metadata`, `chunk` (base64), `complete` or `error`, each with its id.

    The id is the offset of the first byte behind what came so far, so that `Last-Event-ID` is the `offset` of a
    resumption. Raises the errors of looking the file up before the first event; `failed` is told of those that
    become one.
    """
    async with IPFSContentStream(ipfs_api, path) as stream:
        download = await Download.open(stream, part)
        yield f"retry: {RETRY_MS}\n" + event("metadata", json.dumps(download.metadata), download.offset)
        try:
            with watcher.download(download, path, download.size):
                while download.bytes_sent < download.length:
                    # one by one, so that a client that does not read costs the memory of one event
                    at, left = download.offset + download.bytes_sent, download.length - download.bytes_sent
                    chunk = await ipfs_api.read(path, at, min(SSE_CHUNK, left))
                    if not chunk:
                        raise RetrievalError(f"{path} ended at {at}, before its end")
                    download.bytes_sent += len(chunk)
                    yield event("chunk", base64.b64encode(chunk).decode(), at + len(chunk))
        except IPFSStreamError as error:
            if failed is not None:
                failed(error)
            yield event("error", json.dumps(error_message(error)))
            return
        done = {"success": True, "bytes_sent": download.bytes_sent}
        yield event("complete", json.dumps(done), download.offset + download.bytes_sent)


def event(name: str, data: str, identifier: object = None) -> str:
    """One server-sent event (HTML Living Standard, section 9.2); `data` is one line."""
    head = "" if identifier is None else f"id: {identifier}\n"
    return f"{head}event: {name}\ndata: {data}\n\n"


async def with_keep_alive(events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """The same events, with a comment where none comes for KEEP_ALIVE_SECONDS: proxies cut what is silent.

    The first one is waited for: until it is there, what goes wrong can still become an answer of its own.
    """
    async with aclosing(events):
        first = await _next(events)
        if first is None:
            return
        yield first
        pending: asyncio.Task[str | None] | None = None
        try:
            while True:
                pending = pending or asyncio.create_task(_next(events))
                done, _ = await asyncio.wait([pending], timeout=KEEP_ALIVE_SECONDS)
                if not done:
                    yield ": still here\n\n"
                    continue
                found, pending = pending.result(), None
                if found is None:
                    return
                yield found
        finally:
            if pending is not None:
                pending.cancel()
                await asyncio.wait([pending])


async def _next(events: AsyncGenerator[str, None]) -> str | None:
    return await anext(events, None)
