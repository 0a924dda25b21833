"""A file on its way from the server, over as many connections as it takes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar
from weakref import WeakSet

from ipfs_stream_nb.clients.http import ServerHTTP
from ipfs_stream_nb.clients.naming import Content
from ipfs_stream_nb.clients.reading import at, file_at, whole
from ipfs_stream_nb.clients.transfer_socket import DroppedError, Patience, Socket, read_message
from ipfs_stream_nb.content.node import Node, Path
from ipfs_stream_nb.content.resolver import parse_path
from ipfs_stream_nb.errors import BadRequestError, BusyError, IsDirectoryError, RetrievalError

T = TypeVar("T")
Run = Callable[[Callable[[], Coroutine[Any, Any, Any]]], Any]
"""Has a coroutine run on the client's loop, and waits for it."""


@dataclass
class Part:
    """What is wanted of a file, and how much of it has come. Bytes."""

    offset: int
    length: int | None
    received: int = 0
    metadata: dict[str, Any] | None = None
    complete: bool = False

    @classmethod
    def of(cls, offset: object, length: object) -> Part:
        """Check the numbers. Raises BadRequestError."""
        first = whole("offset", offset)
        most = None if length is None else whole("length", length)
        for name, value in (("offset", first), ("length", most)):
            if value is not None and value < 0:
                raise BadRequestError(f"{name}={value}: a number of bytes is 0 or more")
        return cls(first, most)

    @property
    def left(self) -> int | None:
        """Bytes that are still to come; None where that is to the end."""
        return None if self.length is None else self.length - self.received

    def begin(self, metadata: dict[str, Any]) -> None:
        """Take the first message of a connection."""
        if metadata.get("type") != "metadata" or metadata.get("offset") != self.offset + self.received:
            raise RetrievalError("the server did not begin with the metadata of what was asked for")
        if self.metadata is None:
            self.metadata = metadata
            self.length = int(metadata["length"])

    def take(self, chunk: bytes) -> bytes:
        """Count bytes. Raises RetrievalError for more than there are."""
        self.received += len(chunk)
        if self.length is not None and self.received > self.length:
            raise RetrievalError(f"the server sent over {self.length} bytes, which is all there are")
        return chunk

    def end(self) -> None:
        """Take `complete`. Raises RetrievalError where bytes are missing."""
        if self.received != self.length:
            raise RetrievalError(f"the server ended after {self.received} of {self.length} bytes")
        self.complete = True


class ContentStream(AsyncIterator[bytes]):
    """Chunks of a file: `async for chunk in client.stream(cid)`.

    Also an async context manager, which knows the metadata on entry and ends the transfer on exit; leaving the loop
    early ends it too.
    """

    def __init__(self, chunks: AsyncGenerator[bytes, None], part: Part) -> None:
        self._chunks = chunks
        self._part = part
        self._first: bytes | None = None
        self._closed = self._abandoned = False

    @property
    def metadata(self) -> dict[str, Any] | None:
        """The server's: cid, path, size, mime_type, offset, length (bytes), …; None until the first chunk, or entry."""
        return self._part.metadata

    @property
    def position(self) -> int:
        """The offset in the file of the first byte that has not come yet."""
        return self._part.offset + self._part.received

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while not self._closed:
            try:
                chunk = await anext(self._chunks)
            except StopAsyncIteration:
                break
            if chunk:
                return chunk
        if not self._closed or self._abandoned:
            self.check_whole()
        raise StopAsyncIteration

    def check_whole(self) -> None:
        """Raise BadRequestError where the stream was left early, so that its end does not look like the file's."""
        if not self._part.complete:
            why = "was closed with what it came over" if self._abandoned else "was broken off"
            raise BadRequestError(f"this stream {why}; begin another at offset={self.position}")

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

    async def open(self) -> None:
        """Have the metadata come."""
        if self._part.metadata is None and not self._closed:
            await anext(self._chunks)  # the generator's first item says that they are here

    async def aclose(self) -> None:
        """End the transfer. Idempotent."""
        self._closed = True
        await self._chunks.aclose()

    async def abandon(self) -> None:
        """End it because what it comes over ends: whoever reads on is told."""
        self._abandoned = not self._closed
        await self.aclose()


class Abandonable(Protocol):
    """What comes over something that may end before it."""

    async def abandon(self) -> None:
        """End it: whoever reads on is told."""


A = TypeVar("A", bound=Abandonable)


class OpenStreams:
    """Streams that are not read to their end: closed with what they come over, not by the end of the event loop."""

    def __init__(self) -> None:
        self._streams: WeakSet[Abandonable] = WeakSet()

    def add(self, stream: A) -> A:
        """Look after one."""
        self._streams.add(stream)
        return stream

    async def aclose(self) -> None:
        """Close them all; one that is being read at this moment ends by itself."""
        for stream in list(self._streams):
            with suppress(RuntimeError):
                await stream.abandon()


async def download(http: ServerHTTP, node: Node, content: Content, part: Part) -> AsyncGenerator[bytes, None]:
    """An empty chunk once there is metadata, then the bytes; comes again where a connection drops."""
    patience = Patience()
    async with at(node, content) as path:
        where = path
        while True:
            try:
                socket = await _connect(http, where, part)
            except (DroppedError, BusyError) as error:
                await patience.wait(error)
                continue
            try:
                part.begin(await socket.receive_json())
                patience.met()
                if not part.received:
                    yield b""
                while not part.complete:
                    message = await socket.receive()
                    if isinstance(message, bytes):
                        patience.progressed()
                        yield part.take(message)
                    elif read_message(message).get("type") == "complete":
                        part.end()
                await socket.close()
                return
            except IsDirectoryError:
                found, _ = await file_at(node, path)  # raises for a directory; a symlink is followed
                if found == where:
                    raise
                where = found
            except (DroppedError, BusyError) as error:
                await patience.wait(error)
            finally:
                await socket.abort()


async def _connect(http: ServerHTTP, path: Path, part: Part) -> Socket:
    cid, names = parse_path(path)
    params = {"offset": str(part.offset + part.received), "progress": "0"}
    if part.left is not None:
        params["length"] = str(part.left)
    return await Socket.open(http, "ws", "stream", str(cid), *names, params=params)


class BlockingStream(Iterator[bytes]):
    """Chunks of a file: `for chunk in client.stream(cid)`.

    Also a context manager, which knows the metadata on entry and ends the transfer on exit; leaving the loop early,
    or Ctrl-C, ends it too.
    """

    def __init__(self, run: Run, stream: ContentStream) -> None:
        self._run = run
        self._stream = stream
        self._chunks = _blocking(run, stream)
        self._closed = False

    @property
    def metadata(self) -> dict[str, Any] | None:
        """The server's: cid, path, size, mime_type, offset, length (bytes), …; None until the first chunk, or entry."""
        return self._stream.metadata

    @property
    def position(self) -> int:
        """The offset in the file of the first byte that has not come yet."""
        return self._stream.position

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._chunks)
        except StopIteration:
            if not self._closed:
                self._stream.check_whole()
            raise

    def __enter__(self) -> Self:
        self._run(self._stream.open)
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the transfer. Idempotent."""
        self._closed = True
        self._chunks.close()
        _close(self._run, self._stream)


def _blocking(run: Run, stream: ContentStream) -> Generator[bytes, None, None]:
    try:
        while (chunk := run(lambda: _next(stream))) is not None:
            yield chunk
    finally:
        _close(run, stream)


async def _next(stream: ContentStream) -> bytes | None:
    return await anext(stream, None)


def _close(run: Run, stream: ContentStream) -> None:
    """End a stream from any thread; where its loop has ended, that has ended it."""
    with suppress(BadRequestError):
        run(stream.aclose)
