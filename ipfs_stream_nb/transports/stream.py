"""`/ws/stream` and `/sse/stream`: a file on its way to a client."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Final, Self

from ipfs_stream_nb.content.node import Node
from ipfs_stream_nb.content.stream import CHUNK_SIZE, IPFSContentStream
from ipfs_stream_nb.errors import BadRequestError, IPFSStreamError, IsDirectoryError
from ipfs_stream_nb.transports.connection import Connection, ConnectionClosedError, error_message, refuse

PROGRESS_SECONDS: Final = 0.25
"""Seconds between two progress messages of a download, at the least."""
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
        left = int(metadata["size"]) - part.offset
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

    def chunks(self, size: int = CHUNK_SIZE) -> AsyncGenerator[bytes, None]:
        """The wanted bytes."""
        return self.stream.iter_chunks(size, self.offset, self.length)

    def batches(self) -> AsyncGenerator[list[memoryview], None]:
        """The wanted bytes in chunks of CHUNK_SIZE, as many at once as are there."""
        return self.stream.iter_batches(CHUNK_SIZE, self.offset, self.length)

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


class OneAhead:
    """Has one thing done while the next is made; at the end of the block it is waited for, or cancelled."""

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    async def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Have it done once what was begun before is done. Raises what that raised."""
        try:
            await self.wait()
        except BaseException:
            work.close()
            raise
        self._task = asyncio.create_task(work, name="send ahead")

    async def wait(self) -> None:
        """Wait for what was begun. Raises what it raised."""
        task, self._task = self._task, None
        if task is not None:
            try:
                await task
            except asyncio.CancelledError:
                task.cancel()
                raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()


async def stream_content(
    connection: Connection,
    ipfs_api: Node,
    path: str,
    part: Part,
    *,
    progress: bool = True,
    sha256: bool = False,
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
            digest = hashlib.sha256() if sha256 else None
            async with aclosing(download.batches()) as batches, OneAhead() as sending:
                async for batch in batches:
                    await sending.begin(connection.send_all(batch))
                    download.bytes_sent += sum(map(len, batch))
                    if digest is not None:
                        for chunk in batch:
                            digest.update(chunk)
                    told = download.progress() if progress else None
                    if told is not None:
                        await sending.begin(connection.send_json(told))
                await sending.wait()
        complete: dict[str, Any] = {"type": "complete", "bytes_sent": download.bytes_sent}
        if digest is not None:
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


async def sse_events(ipfs_api: Node, path: str, part: Part) -> AsyncGenerator[str, None]:
    """`GET /sse/stream`: the events `metadata`, `chunk` (base64), `complete` or `error`, each with its id.

    The id is the offset of the first byte behind what came so far, so that `Last-Event-ID` is the `offset` of a
    resumption. Raises the errors of looking the file up before the first event.
    """
    async with IPFSContentStream(ipfs_api, path) as stream:
        download = await Download.open(stream, part)
        yield f"retry: {RETRY_MS}\n" + event("metadata", json.dumps(download.metadata), download.offset)
        try:
            async with aclosing(download.chunks(SSE_CHUNK)) as chunks:
                async for chunk in chunks:
                    download.bytes_sent += len(chunk)
                    text = base64.b64encode(chunk).decode()
                    yield event("chunk", text, download.offset + download.bytes_sent)
        except IPFSStreamError as error:
            yield event("error", json.dumps(error_message(error)))
            return
        done = {"success": True, "bytes_sent": download.bytes_sent}
        yield event("complete", json.dumps(done), download.offset + download.bytes_sent)


def event(name: str, data: str, identifier: object = None) -> str:
    """One server-sent event (HTML Living Standard, section 9.2); `data` is one line."""
    head = "" if identifier is None else f"id: {identifier}\n"
    return f"{head}event: {name}\ndata: {data}\n\n"


async def with_keep_alive(events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """The same events, with a comment where none comes for KEEP_ALIVE_SECONDS: proxies cut what is silent."""
    async with aclosing(events):
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
