"""The clients' methods that speak WebSocket: `stream`, `upload` and `bidirectional`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, Self, TypeVar

from ipfs_stream_nb.clients.http import ServerHTTP
from ipfs_stream_nb.clients.naming import Content, path_of
from ipfs_stream_nb.clients.progress import Progress
from ipfs_stream_nb.clients.results import hinted_methods
from ipfs_stream_nb.clients.transfer_link import Link
from ipfs_stream_nb.clients.transfer_source import open_replay
from ipfs_stream_nb.clients.transfer_stream import (
    BlockingStream,
    ContentStream,
    OpenStreams,
    Part,
    download,
)
from ipfs_stream_nb.clients.transfer_upload import FRAME, Upload
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.node import Added, Node
from ipfs_stream_nb.errors import BadRequestError

if TYPE_CHECKING:
    from ipfs_stream_nb.clients.sync import Session

P = ParamSpec("P")
T = TypeVar("T")


class _Run(Protocol):
    """`LoopThread.run`."""

    def __call__(self, call: Callable[[], Coroutine[Any, Any, T]], progress: Progress | None = None) -> T: ...


@hinted_methods
class TransferMethods(ABC):
    """The methods of AsyncClient that speak WebSocket."""

    _http: ServerHTTP
    _streams: OpenStreams

    @property
    @abstractmethod
    def node(self) -> Node:
        """The node interface below this client."""

    def stream(self, content: Content, offset: int = 0, length: int | None = None) -> ContentStream:
        """A file's bytes from `offset`, at most `length`, over a WebSocket: `async for chunk in client.stream(cid)`.

        A slow consumer makes the server wait. Where the connection drops, another one goes on at the same byte; the
        loop ends only once all bytes are there. `async with client.stream(cid) as chunks` knows `chunks.metadata`
        before the first chunk.

        Raises BadCIDError, NotFoundError, IsDirectoryError, UnauthorizedError, and RetrievalError where the server
        cannot fetch it, or was away for longer than half a minute.
        """
        path_of(content)
        part = Part.of(offset, length)
        return self._streams.add(ContentStream(download(self._http, self.node, content, part), part))

    async def upload(
        self,
        source: Any,
        *,
        name: str | None = None,
        pin: bool = True,
        profile: str | None = None,
        upload_id: str | None = None,
        frame_size: int = FRAME,
        on_upload_id: Callable[[str], object] | None = None,
        progress: Any = None,
    ) -> Added:
        """Add one file over a WebSocket, as an upload that survives; gives the CID that `client.add` gives.

        `source`, `name`, `pin`, `profile` and `progress` are those of `client.add`, but for directories. Where the
        connection drops, or the server is started again, the upload goes on at the last byte that is safe there. What
        is not a path, bytes or a seekable file is kept up to that byte, 32 MiB of it at the most. `frame_size`: bytes
        of one message; fewer where the server takes no such messages.

        `upload_id`, which an error of this method names, goes on with an upload of an earlier process: the source must
        be the same. `on_upload_id` is called with it at the beginning, on the event loop, so that it outlives a crash.

        Raises NotFoundError (the upload too, a day after its last byte), BadRequestError,
        UnauthorizedError, QuotaExceededError, TooLargeError, BusyError where another client goes on with the upload, and
        RetrievalError where the server was away for longer than half a minute.
        """
        upload = Upload(
            self._http,
            pin=pin,
            profile=profile,
            upload_id=upload_id,
            frame_size=frame_size,
            on_upload_id=on_upload_id,
        )
        return await self._upload(source, upload, name=name, progress=progress)

    async def _upload(self, source: Any, upload: Upload, *, name: str | None, progress: Any) -> Added:
        self.node  # noqa: B018  # raises where the client is closed
        with Progress.of(progress) as shown:
            replay = await open_replay(source, name)
            try:
                shown.begin(f"upload {replay.label}", replay.size)
                return await upload.run(replay, shown)
            finally:
                await replay.close()

    def bidirectional(self) -> Link:
        """One socket for many gets, adds and pins at once: `async with client.bidirectional() as link:`.

        `link.get(cid)` is an async iterator, `await link.add(source)` gives the CID, `await link.pin(cid)` keeps
        content. Raises UnauthorizedError, BusyError, and RetrievalError where the server does not answer.
        """
        return Link(self._http, self.node)


@hinted_methods
class BlockingLink:
    """One socket for any number of gets, adds and pins at once, from any threads: `with client.bidirectional() as link:`.

    A get that nobody reads on holds up nothing else. Leaving the block cancels what still runs. Where the connection
    is lost, all that run raise RetrievalError.
    """

    def __init__(self, run: _Run, link: Link) -> None:
        self._run = run
        self._link = link

    def __enter__(self) -> Self:
        self._run(self._link.__aenter__)
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what runs, and end the connection. Idempotent."""
        with suppress(BadRequestError):  # the client was closed, which ended it
            self._run(self._link.aclose)

    def get(self, content: Content, offset: int = 0, length: int | None = None) -> BlockingStream:
        """A file's bytes from `offset`, at most `length`: `for chunk in link.get(cid)`.

        Nothing is fetched before the first chunk is asked for, and at most a MiB beyond what was taken. Raises
        NotFoundError, IsDirectoryError, BadRequestError, RetrievalError, and RetrievalTimeoutError where nothing
        was taken for as long as the server waits.
        """
        return BlockingStream(self._run, self._link.get(content, offset, length))

    def add(
        self, source: Any, *, name: str | None = None, profile: str | None = None, progress: Any = None
    ) -> Added:
        """Add one file, pin it and give its CID, which is the one that `ipfs add` gives with the same profile.

        `source`, `name`, `profile` and `progress` are those of `client.add`, but for directories. Raises
        NotFoundError, BadRequestError, QuotaExceededError, TooLargeError, and RetrievalError where the connection is
        lost: it names the upload_id by which `client.upload` goes on.
        """
        shown = Progress(progress, inline=False)
        try:
            return self._run(
                lambda: self._link.add(source, name=name, profile=profile, progress=shown), shown
            )
        finally:
            shown.end()

    def pin(self, content: Content) -> CID:
        """Keep content and everything below it; gives its CID. Raises NotFoundError, RetrievalError."""
        return self._run(lambda: self._link.pin(content))


@hinted_methods
class BlockingTransferMethods(ABC):
    """The methods of Client that speak WebSocket."""

    @property
    @abstractmethod
    def _session(self) -> Session:
        """The client's connection."""

    @abstractmethod
    def _run(self, method: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        """Call a method of the AsyncClient on its loop, and wait."""

    def stream(self, content: Content, offset: int = 0, length: int | None = None) -> BlockingStream:
        """A file's bytes from `offset`, at most `length`, over a WebSocket: `for chunk in client.stream(cid)`.

        A slow consumer makes the server wait. Where the connection drops, another one goes on at the same byte; the
        loop ends only once all bytes are there. `with client.stream(cid) as chunks` knows `chunks.metadata` before
        the first chunk.

        Raises BadCIDError, NotFoundError, IsDirectoryError, UnauthorizedError, and RetrievalError where the server
        cannot fetch it, or was away for longer than half a minute.
        """
        session = self._session
        return BlockingStream(session.loop.run, session.client.stream(content, offset, length))

    def upload(
        self,
        source: Any,
        *,
        name: str | None = None,
        pin: bool = True,
        profile: str | None = None,
        upload_id: str | None = None,
        frame_size: int = FRAME,
        on_upload_id: Callable[[str], object] | None = None,
        progress: Any = None,
    ) -> Added:
        """Add one file over a WebSocket, as an upload that survives; gives the CID that `client.add` gives.

        `source`, `name`, `pin`, `profile` and `progress` are those of `client.add`, but for directories. Where the
        connection drops, or the server is started again, the upload goes on at the last byte that is safe there. What
        is not a path, bytes or a seekable file is kept up to that byte, 32 MiB of it at the most. `frame_size`: bytes
        of one message; fewer where the server takes no such messages.

        `upload_id`, which an error of this method names, as does Ctrl-C, goes on with an upload of an earlier process:
        the source must be the same. `on_upload_id` is called with it at the beginning, in another thread, so that it
        outlives a crash.

        Raises NotFoundError (the upload too, a day after its last byte), BadRequestError,
        UnauthorizedError, QuotaExceededError, TooLargeError, BusyError where another client goes on with the upload, and
        RetrievalError where the server was away for longer than half a minute.
        """
        http = self._session.client._http  # noqa: SLF001  # the same client
        upload = Upload(
            http,
            pin=pin,
            profile=profile,
            upload_id=upload_id,
            frame_size=frame_size,
            on_upload_id=on_upload_id,
        )
        method = TransferMethods._upload  # noqa: SLF001  # the same client
        try:
            return self._run(method, source, upload, name=name, progress=progress)
        except KeyboardInterrupt as stop:
            upload.note(stop)
            raise

    def bidirectional(self) -> BlockingLink:
        """One socket for many gets, adds and pins at once, from any threads: `with client.bidirectional() as link:`.

        `link.get(cid)` is an iterator of bytes, `link.add(source)` gives the CID, `link.pin(cid)` keeps content.
        Raises UnauthorizedError, BusyError, and RetrievalError where the server does not answer.
        """
        session = self._session
        return BlockingLink(session.loop.run, session.client.bidirectional())
