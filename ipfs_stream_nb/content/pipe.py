"""`IPFSResourceManager` and its pipes: content on its way from a fetcher to a slower reader (item 164)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import aclosing
from types import TracebackType
from typing import Final, Self

from ipfs_stream_nb.content.cid import BytesLike
from ipfs_stream_nb.content.node import Node, Path
from ipfs_stream_nb.content.stream import IPFSContentStream
from ipfs_stream_nb.errors import BadRequestError, RetrievalError

MAX_BUFFER: Final = 5 * 1024 * 1024
CHUNK_SIZE: Final = 32 * 1024
SMALL_PIECE: Final = 4096
"""Bytes under which a written piece is copied together with those beside it."""


class PipeClosedError(Exception):
    """The reader has gone: there is nobody to write for."""


class Pipe:
    """Bytes from one writer to one reader: `write` waits while `max_buffer` bytes are unread.

    The reader gets chunks of `chunk_size`, the last one short; the writer's end and its error reach the reader
    behind what was written before.
    """

    def __init__(self, max_buffer: int = MAX_BUFFER, chunk_size: int = CHUNK_SIZE) -> None:
        """Sizes in bytes. Raises BadRequestError unless 1 ≤ chunk_size ≤ max_buffer."""
        if not 1 <= chunk_size <= max_buffer:
            raise BadRequestError(
                f"chunk_size is 1 byte to max_buffer, not {chunk_size} of a buffer of {max_buffer}"
            )
        self.max_buffer = max_buffer
        self.chunk_size = chunk_size
        self._chunks: deque[memoryview | bytearray] = deque()
        self._at = 0
        """How much of the first chunk is read."""
        self._buffered = 0
        self._room, self._data = asyncio.Event(), asyncio.Event()
        self._ended = False
        self._closed = False
        self._error: Exception | None = None

    @property
    def buffered(self) -> int:
        """Bytes that are written and not read."""
        return self._buffered

    async def write(self, data: BytesLike) -> None:
        """Hand over bytes, which are not to be changed afterwards. Raises PipeClosedError once the reader has gone."""
        view = memoryview(data).cast("B")
        while view:
            while not self._closed and self._buffered >= self.max_buffer:
                self._room.clear()
                await self._room.wait()
            if self._closed:
                raise PipeClosedError("the reader has gone")
            if self._ended:
                raise BadRequestError("this pipe has ended; make another")
            # as much as fits: a reader may be waiting for a whole chunk, which room for this one's end would not make
            part = view[: min(self.chunk_size, self.max_buffer - self._buffered)]
            view = view[len(part) :]
            self._append(part)
            self._buffered += len(part)
            self._data.set()

    def _append(self, part: memoryview) -> None:
        """Keep a piece; small ones are gathered, since each by itself takes some hundred bytes."""
        last = self._chunks[-1] if self._chunks else None
        if isinstance(last, bytearray) and len(last) + len(part) <= self.chunk_size:
            last += part
        else:
            self._chunks.append(bytearray(part) if len(part) < SMALL_PIECE else part)

    def end(self, error: Exception | None = None) -> None:
        """Say that there is no more; `error` is raised where the reader comes to it. The first end holds."""
        if not self._ended:
            self._ended, self._error = True, error
            self._data.set()

    async def read(self) -> bytes:
        """The next `chunk_size` bytes, fewer at the end, b"" behind it. Raises the writer's error."""
        while not (self._closed or self._ended or self._buffered >= self.chunk_size):
            self._data.clear()
            await self._data.wait()
        return self._next()

    async def read_some(self) -> bytes:
        """As `read`, with what there is as soon as there is any: 1 byte to `chunk_size` of them."""
        while not (self._closed or self._ended or self._buffered):
            self._data.clear()
            await self._data.wait()
        return self._next()

    def _next(self) -> bytes:
        if self._closed:
            raise BadRequestError("this pipe is closed")
        if not self._buffered and self._error is not None:
            raise self._error
        chunk = self._take(min(self.chunk_size, self._buffered))
        self._room.set()
        return chunk

    def _take(self, size: int) -> bytes:
        parts = []
        while size:
            part = self._chunks[0][self._at : self._at + size]
            self._at += len(part)
            if self._at == len(self._chunks[0]):
                self._chunks.popleft()
                self._at = 0
            parts.append(part)
            size -= len(part)
            self._buffered -= len(part)
        return b"".join(parts)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Chunks up to the end; leaving early closes the pipe."""
        try:
            while chunk := await self.read():
                yield chunk
        finally:
            self.close()

    def close(self) -> None:
        """The reader has gone: what is unread is dropped, and a writer that waits is told. Idempotent."""
        self._closed = True
        self._chunks.clear()
        self._buffered = self._at = 0
        self._room.set()
        self._data.set()


class IPFSResourceManager:
    """Pipes and their fetchers, all released at the end of a `with` or `async with` block.

    `async with` waits until the fetchers have ended; `with`, the guide's form, cancels them.
    """

    def __init__(self, ipfs_api: Node | None = None) -> None:
        """`ipfs_api`: what `fetch_content_to_pipe` reads from."""
        self.ipfs_api = ipfs_api
        self._pipes: list[Pipe] = []
        self._fetchers: set[asyncio.Task[None]] = set()

    def create_pipe(self, max_buffer: int = MAX_BUFFER, chunk_size: int = CHUNK_SIZE) -> Pipe:
        """A pipe that ends with this block. Sizes in bytes. Raises BadRequestError."""
        pipe = Pipe(max_buffer, chunk_size)
        self._pipes.append(pipe)
        return pipe

    def fetch(self, cid: Path, pipe: Pipe) -> asyncio.Task[None]:
        """Begin `fetch_content_to_pipe` beside the reader; it is cancelled where the block ends before it."""
        task = asyncio.create_task(self.fetch_content_to_pipe(cid, pipe), name=f"fetch {cid}")
        self._fetchers.add(task)
        task.add_done_callback(self._fetchers.discard)
        return task

    async def fetch_content_to_pipe(self, cid: Path, pipe: Pipe) -> None:
        """Write all of a file into a pipe, and its end; an error reaches the reader, and is not raised here."""
        try:
            if self.ipfs_api is None:
                raise BadRequestError("IPFSResourceManager(ipfs_api) needs a node to fetch from")  # noqa: TRY301
            async with (
                IPFSContentStream(self.ipfs_api, cid) as stream,
                aclosing(stream.iter_chunks(pipe.chunk_size)) as chunks,
            ):
                async for chunk in chunks:
                    await pipe.write(chunk)
        except PipeClosedError:
            return
        except asyncio.CancelledError:
            pipe.end(RetrievalError(f"the fetch of {cid} was cancelled"))
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, it is the reader's
            pipe.end(error)
        else:
            pipe.end()

    def release(self) -> None:
        """Close the pipes and cancel the fetchers. Idempotent."""
        pipes, self._pipes = self._pipes, []
        for pipe in pipes:
            pipe.close()
        for task in self._fetchers:
            task.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        fetchers = list(self._fetchers)
        self.release()
        if fetchers:
            await asyncio.wait(fetchers)
