"""`AsyncClient`: everything a notebook does with content, awaited. `Client` (sync) is the same, blocking."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Self, TypeVar, cast, overload
from urllib.parse import quote

from ipfs_stream_nb.clients.http import ServerHTTP
from ipfs_stream_nb.clients.loop import run_in
from ipfs_stream_nb.clients.naming import Content, path_of
from ipfs_stream_nb.clients.progress import Progress
from ipfs_stream_nb.clients.reading import MAX_GATHERED, counted, file_at, gather, too_large, whole, write_to
from ipfs_stream_nb.clients.remote import RemoteNode
from ipfs_stream_nb.clients.results import Entries, Pins, hinted_methods
from ipfs_stream_nb.clients.server import ServerInfo
from ipfs_stream_nb.clients.sources import bytes_of, check_name, open_source
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.file import ContentFile
from ipfs_stream_nb.content.node import Added, CarInfo, GCResult, Node, Pin, PinProgress, RepoStat, Stat
from ipfs_stream_nb.content.resolver import parse_path
from ipfs_stream_nb.display import facts_html
from ipfs_stream_nb.errors import BadRequestError

if TYPE_CHECKING:
    from PIL.Image import Image

    from ipfs_stream_nb.clients.sync import Client
    from ipfs_stream_nb.media.audio import Audio
    from ipfs_stream_nb.media.frames import Frame, Frames
    from ipfs_stream_nb.media.info import MediaInfo
    from ipfs_stream_nb.media.picture import Size
    from ipfs_stream_nb.widgets.player import Player

T = TypeVar("T")

SAFE_IN_URL: Final = "/~!$&'()*+,;=:@"
"""Characters of a URL's path that need no escaping (RFC 3986, pchar)."""


@hinted_methods
class AsyncClient:
    """Content by CID on one event loop. Made by `await connect_async()`; an async context manager.

    Wherever content is named, a CID, its text, `<cid>/name…`, `/ipfs/…`, `ipfs://…`, a gateway's URL (of
    which only CID and path are taken) and the results of this client do alike. Everything foreseeable that goes wrong is an IPFSStreamError.
    """

    def __init__(
        self,
        node: Node,
        server: ServerInfo,
        *,
        tried: tuple[str, ...] = (),
        blocking: Callable[[], Client] | None = None,
        on_close: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`tried`: why no other server was taken; `blocking` makes the blocking client of the same connection."""
        self.server = server
        self.tried = tried
        self._node: Node | None = node
        self._http = node.http if isinstance(node, RemoteNode) else ServerHTTP(server)
        self._blocking = blocking
        self._twin: Client | None = None
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._store = str(getattr(getattr(node, "store", None), "path", ""))

    @property
    def node(self) -> Node:
        """The node interface below this client. Raises BadRequestError once the client is closed."""
        if self._node is None:
            raise BadRequestError("this client is closed; connect() gives another")
        return self._node

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.describe()}>"

    def describe(self) -> str:
        """One line: which server and why, and where the store is."""
        if self._node is None:
            return "closed"
        server = self.server.found if self.server.embedded else f"{self.server.url}, {self.server.found}"
        return f"{server}; store {self._shown_store()}"

    def _shown_store(self) -> str:
        if not self._store:
            return "behind the server, over HTTP"
        home = os.path.expanduser("~")  # noqa: PTH111  # a Path has no way back to a tilde
        below = self._store.startswith(home + os.sep)
        shown = f"~{self._store[len(home) :]}" if below else self._store
        return f"{shown}, read directly"

    def _repr_html_(self) -> str:
        if self._node is None:
            return facts_html("ipfs_stream_nb client", [("state", "closed")])
        facts = [("server", self.server.url), ("found", self.server.found), ("store", self._shown_store())]
        return facts_html("ipfs_stream_nb client", [*facts, ("not taken", "; ".join(self.tried))])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Release the store and the connection; what is used after is a BadRequestError. Idempotent."""
        node, self._node = self._node, None
        if node is not None:
            if self._twin is not None:
                await asyncio.to_thread(self._twin.close)
            await node.close()
            await self._http.close()
            if self._on_close is not None:
                await self._on_close()

    # -- adding

    async def add(
        self,
        source: Any,
        *,
        name: str | None = None,
        pin: bool = True,
        profile: str | None = None,
        hidden: bool = False,
        progress: Any = None,
    ) -> Added:
        """Add content and give its CID, which is the one that `ipfs add` gives with the same profile.

        `source` is the path of a file or directory (str or Path), bytes, an open binary file, an iterable of
        bytes (async ones too), a numpy array (as a .npy file, or as the image format that `name` ends with) or a
        PIL image (PNG, or by `name`). `name` is kept with the pin and defaults to the file's. `profile`:
        "unixfs-v1-2025" (default), "unixfs-v0-2015" or "ipfs-v1". `hidden`: with names that start with a dot.
        `progress`: None shows a bar when it takes long, True at once, False never; or a tqdm bar or an fsspec
        Callback.

        Raises NotFoundError, BadRequestError, QuotaExceededError and DiskFullError.
        """
        node = self.node
        with Progress.of(progress) as shown:
            taken = await asyncio.to_thread(open_source, source, name, hidden=hidden, sized=shown.wanted)
            shown.begin(f"add {taken.label}", taken.size)
            if taken.path is not None:
                return await node.add_path(
                    taken.path,
                    profile=profile,
                    pin=pin,
                    name=taken.name,
                    hidden=hidden,
                    progress=shown.advance,
                )
            async with aclosing(bytes_of(taken)) as stream:
                return await node.add(
                    stream, profile=profile, pin=pin, name=taken.name, progress=shown.advance
                )

    async def import_car(self, source: Any, *, pin: bool = True, progress: Any = None) -> CarInfo:
        """Store the blocks of a CAR (version 1 or 2), each of them verified, and pin its roots.

        `source` is a path, bytes, an open binary file or an iterable of bytes. Raises CorruptContentError.
        """
        node = self.node
        with Progress.of(progress) as shown:
            taken = await asyncio.to_thread(
                open_source, source, None, hidden=False, sized=True, instead="; give the path of a CAR file"
            )
            if taken.size == 0:
                raise BadRequestError(f"{taken.label}: it is empty, and a CAR holds at least a header")
            shown.begin(f"import {taken.label}", taken.size)
            async with aclosing(bytes_of(taken)) as stream:
                return await node.import_car(stream, pin=pin, progress=shown.advance)

    # -- reading

    async def stat(self, content: Content) -> Stat:
        """What it is: file, directory or symlink, size in bytes, MIME type. Raises NotFoundError."""
        return await self.node.stat(path_of(content))

    async def ls(self, content: Content, *, kinds: bool = False) -> Entries:
        """The entries of a directory; `kinds` looks up whether each is a file or a directory, a block for each."""
        async with aclosing(self.node.ls(path_of(content), kinds=kinds)) as entries:
            return Entries([entry async for entry in entries])

    async def cat(self, content: Content, offset: int = 0, length: int | None = None) -> bytes:
        """A file's bytes from `offset`, at most `length`. Raises TooLargeError over MAX_GATHERED bytes: use `open`."""
        node, path = self.node, path_of(content)
        offset, length = whole("offset", offset), None if length is None else whole("length", length)
        if length is None or length > MAX_GATHERED:
            _, stat = await file_at(node, path)
            if min(stat.size - offset, length or stat.size) > MAX_GATHERED:
                raise too_large(stat.size, "read it in pieces from client.open(…)")
        async with aclosing(node.cat(path, offset, length)) as pieces:
            return await gather(pieces, "read it in pieces from client.open(…)")

    async def open(self, content: Content) -> ContentFile:
        """A seekable binary file that reads only what is asked for, to be used from another thread than the loop's.

        Raises IsDirectoryError, NotFoundError.
        """
        path, stat = await file_at(self.node, path_of(content))

        def read_at(offset: int, length: int) -> bytes:
            return run_in(self._loop, lambda: self.node.read(path, offset, length))

        return ContentFile(read_at, stat.size, label=str(path))

    @overload
    async def export_car(self, content: Content, dest: None = None, *, progress: Any = None) -> bytes: ...
    @overload
    async def export_car(
        self, content: Content, dest: str | os.PathLike[str] | BinaryIO, *, progress: Any = None
    ) -> int: ...
    async def export_car(
        self, content: Content, dest: str | os.PathLike[str] | BinaryIO | None = None, *, progress: Any = None
    ) -> bytes | int:
        """A CARv1 with everything below `content`: as bytes, or into a path or binary file, giving its length.

        A path is only replaced by a CAR that is whole. Raises RetrievalError where a block is missing, and
        TooLargeError for over MAX_GATHERED bytes without a `dest`.
        """
        return await self._export_car(content, dest, progress=progress)

    async def _export_car(
        self, content: Content, dest: str | os.PathLike[str] | BinaryIO | None, *, progress: Any
    ) -> bytes | int:
        path = path_of(content)
        with Progress.of(progress) as shown:
            shown.begin(f"export {path}", None)
            async with aclosing(counted(self.node.export_car(path), shown.advance)) as pieces:
                if dest is None:
                    return await gather(pieces, "give export_car a path to write to")
                return await write_to(dest, pieces)

    # -- keeping

    async def pin(self, content: Content, *, name: str = "", progress: Any = None) -> Pin:
        """Keep content and everything below it. Raises RetrievalError naming the first block that is missing."""
        check_name(name)
        with Progress.of(progress) as shown:
            cid = await self._cid(content)
            shown.begin(f"pin {name or cid}", None)

            def report(state: PinProgress) -> None:
                shown.reach(state.bytes, state.total_bytes)

            return await self.node.pin(cid, name=name, progress=report)

    async def unpin(self, content: Content) -> None:
        """Let garbage collection have it. Raises NotFoundError where it is not pinned."""
        await self.node.unpin(await self._cid(content))

    async def pins(self) -> Pins:
        """All pins, oldest first."""
        return Pins(await self.node.pins())

    async def remove(self, content: Content) -> GCResult:
        """Unpin content and take away those of its blocks that nothing else needs."""
        return await self.node.remove(path_of(content))

    async def gc(self) -> GCResult:
        """Take away every block that no pin and no running transfer needs."""
        return await self.node.gc()

    async def repo_stat(self) -> RepoStat:
        """The size and place of the store."""
        return await self.node.repo_stat()

    async def _cid(self, content: Content) -> CID:
        cid, names = parse_path(path_of(content))
        return (await self.node.stat(path_of(content))).cid if names else cid

    # -- media

    async def info(self, content: Content) -> MediaInfo:
        """What a media file holds: format, duration in s, streams with codecs, sizes, rates and rotation."""
        from ipfs_stream_nb.media.info import probe  # noqa: PLC0415  # PyAV takes 0.2 s to import

        return await self._media(content, probe)

    async def frames(
        self,
        content: Content,
        start: float | None = None,
        stop: float | None = None,
        *,
        every: float | None = None,
        count: int | None = None,
        size: Size = None,
    ) -> Frames:
        """Frames of a video from `start` to `stop` (s): an array (n, height, width, 3) uint8 with their times (s).

        `every`: one each so many seconds; `count`: that many at even distances; `size`: a width, or a (width, height)
        that they fit into. Raises UnsupportedMediaError, TooLargeError; `iter_frames` needs memory for one frame only.
        """
        from ipfs_stream_nb.media.frames import frames  # noqa: PLC0415  # PyAV takes 0.2 s to import

        return await self._media(content, frames, start, stop, every=every, count=count, size=size)

    async def iter_frames(
        self,
        content: Content,
        start: float | None = None,
        stop: float | None = None,
        *,
        every: float | None = None,
        count: int | None = None,
        size: Size = None,
    ) -> AsyncGenerator[Frame, None]:
        """The same frames one by one, decoded as they are asked for."""
        from ipfs_stream_nb.media.frames import iter_frames  # noqa: PLC0415  # PyAV takes 0.2 s to import

        file = await self.open(content)
        with file:
            frames = iter_frames(file, start, stop, every=every, count=count, size=size)
            decoded = cast("Generator[Frame, None, None]", frames)
            try:
                while (frame := await asyncio.to_thread(next, decoded, None)) is not None:
                    yield frame
            finally:
                await asyncio.to_thread(decoded.close)

    async def audio(self, content: Content, start: float | None = None, stop: float | None = None) -> Audio:
        """Sound from `start` to `stop` (s): samples (n, channels) float32 with their rate in Hz."""
        from ipfs_stream_nb.media.audio import audio  # noqa: PLC0415  # PyAV takes 0.2 s to import

        return await self._media(content, audio, start, stop)

    async def contact_sheet(
        self,
        content: Content,
        *,
        columns: int = 4,
        rows: int | None = None,
        count: int = 12,
        width: int = 960,
        timestamps: bool = True,
    ) -> Image:
        """Frames from all over a video in one picture, `width` pixels wide, each with its time."""
        from ipfs_stream_nb.media.sheet import contact_sheet  # noqa: PLC0415  # PyAV takes 0.2 s to import

        return await self._media(
            content,
            contact_sheet,
            columns=columns,
            rows=rows,
            count=count,
            width=width,
            timestamps=timestamps,
        )

    async def _media(self, content: Content, call: Callable[..., T], *args: Any, **options: Any) -> T:
        """Call a function of a file object on a thread; a cancelled call ends at its next read."""
        file = await self.open(content)
        try:
            return await asyncio.to_thread(call, file, *args, **options)
        finally:
            file.close()

    # -- the browser

    async def url(self, content: Content, action: str = "read") -> str:
        """An absolute URL for media elements, good for some minutes: it holds a token for this content alone."""
        cid, names = parse_path(path_of(content))
        body = {"action": action, "cid": str(cid)}
        self.node  # noqa: B018  # raises where the client is closed
        grant = await self._http.json("POST", "ipfs-stream/tokens", json_body=body)
        path = quote("/".join([str(cid), *names]), safe=SAFE_IN_URL)
        return f"{self.server.url}ipfs/{path}?token={quote(str(grant['token']))}"

    async def play(self, content: Content, **options: Any) -> Player:
        """A widget that plays video, audio or an image; see widgets.player.Player for its options."""
        from ipfs_stream_nb.widgets.player import Player  # noqa: PLC0415  # only a notebook has widgets

        if self._blocking is None:
            raise BadRequestError("only a client of connect_async() can play")
        self.node  # noqa: B018  # raises where the client is closed
        if self._twin is None:
            self._twin = await asyncio.to_thread(self._blocking)
        return Player(self._twin, path_of(content), **options)

    async def health(self) -> dict[str, Any]:
        """What the server says about itself: version, node, limits, what it is doing."""
        self.node  # noqa: B018  # raises where the client is closed
        return await self._http.json("GET", "ipfs-stream/health")
