"""`AsyncClient`: everything a notebook does with content, awaited. `Client` (sync) is the same, blocking."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Self, overload
from urllib.parse import quote

from ipfs_stream_nb.clients.direct import DirectNode
from ipfs_stream_nb.clients.http import ServerHTTP
from ipfs_stream_nb.clients.loop import run_in
from ipfs_stream_nb.clients.media import MediaMethods
from ipfs_stream_nb.clients.naming import Content, path_of
from ipfs_stream_nb.clients.notifications_methods import NotificationMethods
from ipfs_stream_nb.clients.processing import ProcessingMethods
from ipfs_stream_nb.clients.progress import Progress
from ipfs_stream_nb.clients.reading import (
    MAX_GATHERED,
    at,
    counted,
    file_at,
    gather,
    too_large,
    whole,
    write_to,
)
from ipfs_stream_nb.clients.remote import RemoteNode
from ipfs_stream_nb.clients.reporting import Reports
from ipfs_stream_nb.clients.results import Entries, Pins, Removed, hinted_methods
from ipfs_stream_nb.clients.server import ServerInfo
from ipfs_stream_nb.clients.sources import bytes_of, check_name, open_source
from ipfs_stream_nb.clients.transfer_stream import OpenStreams
from ipfs_stream_nb.clients.transfers import TransferMethods
from ipfs_stream_nb.clients.webrtc_methods import WebRTCMethods
from ipfs_stream_nb.clients.widgets import WidgetMethods
from ipfs_stream_nb.content.car import encode_v2_prefix
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.file import ContentFile
from ipfs_stream_nb.content.node import (
    Added,
    CarInfo,
    GCResult,
    Node,
    Origins,
    Path,
    Pin,
    PinProgress,
    RepoStat,
    Stat,
)
from ipfs_stream_nb.content.resolver import parse_path
from ipfs_stream_nb.display import facts_html
from ipfs_stream_nb.errors import BadRequestError, BusyError
from ipfs_stream_nb.notifications.retrievals import Sent

if TYPE_CHECKING:
    from ipfs_stream_nb.clients.sync import Client

GC_WAIT: Final = 60.0
"""Seconds that `gc` waits for another process to end its collection."""
GC_RETRY: Final = 0.25
"""Seconds between two looks whether it has ended."""
SAFE_IN_URL: Final = "/~!$&'()*+,;=:@"
"""Characters of a URL's path that need no escaping (RFC 3986, pchar)."""


@hinted_methods
class AsyncClient(
    WidgetMethods, MediaMethods, ProcessingMethods, TransferMethods, NotificationMethods, WebRTCMethods
):
    """Content by CID on one event loop. Made by `await connect_async()`, or `async with connect_async() as client:`.

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
        self._http = node.http if isinstance(node, RemoteNode | DirectNode) else ServerHTTP(server)
        self._blocking = blocking
        self._twin: Client | None = None
        self._on_close = on_close
        self._streams = OpenStreams()
        self._reports = Reports(node, self._http)
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
            await self._streams.aclose()
            if self._twin is not None:
                await asyncio.to_thread(self._twin.close)
            await self._reports.close()
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
        async with at(self.node, content) as path:
            return await self.node.stat(path)

    async def sources(self, content: Content) -> Origins:
        """Where the blocks of content came from: which gateway or Kubo node gave how many, or that they were added here.

        Blocks that were not read yet are counted as not here; nothing is fetched for this but what a path needs.
        """
        async with at(self.node, content) as path:
            return await self.node.sources(await self._cid(path))

    async def ls(self, content: Content, *, kinds: bool = False) -> Entries:
        """The entries of a directory; `kinds` looks up whether each is a file or a directory, a block for each."""
        async with at(self.node, content) as path, aclosing(self.node.ls(path, kinds=kinds)) as entries:
            return Entries([entry async for entry in entries])

    async def cat(self, content: Content, offset: int = 0, length: int | None = None) -> bytes:
        """A file's bytes from `offset`, at most `length`. Raises TooLargeError over MAX_GATHERED bytes: use `open`."""
        node, instead = self.node, "read it in pieces from client.open(…)"
        offset, length = whole("offset", offset), None if length is None else whole("length", length)
        async with at(node, content) as path:
            if length is None or length > MAX_GATHERED:
                _, stat = await file_at(node, path)
                if min(stat.size - offset, length or stat.size) > MAX_GATHERED:
                    raise too_large(stat.size, instead)
            with self._reports.reading(sent := Sent(), path):
                async with aclosing(node.cat(path, offset, length)) as pieces:
                    data = await gather(pieces, instead)
                sent.bytes_sent = len(data)
            return data

    async def open(self, content: Content) -> ContentFile:
        """A seekable binary file that reads only what is asked for, to be used from another thread than the loop's.

        Raises IsDirectoryError, NotFoundError.
        """
        async with at(self.node, content) as path:
            where, stat = await file_at(self.node, path)

        def read_at(offset: int, length: int) -> bytes:
            return run_in(self._loop, lambda: self._read(where, offset, length, stat.size))

        return ContentFile(read_at, stat.size, label=str(where))

    async def _read(self, path: Path, offset: int, length: int, size: int) -> bytes:
        with self._reports.reading(sent := Sent(), path, size=size):
            data = await self.node.read(path, offset, length)
            sent.bytes_sent = len(data)
        return data

    @overload
    async def export_car(
        self, content: Content, dest: None = None, *, version: int = 1, progress: Any = None
    ) -> bytes: ...
    @overload
    async def export_car(
        self,
        content: Content,
        dest: str | os.PathLike[str] | BinaryIO,
        *,
        version: int = 1,
        progress: Any = None,
    ) -> int: ...
    async def export_car(
        self,
        content: Content,
        dest: str | os.PathLike[str] | BinaryIO | None = None,
        *,
        version: int = 1,
        progress: Any = None,
    ) -> bytes | int:
        """A CAR with everything below `content`: as bytes, or into a path or binary file, giving its length.

        `version` is 1, or 2 (without an index). A path is only replaced by a CAR that is whole. Raises RetrievalError where a block is missing, and
        TooLargeError for over MAX_GATHERED bytes without a `dest`.
        """
        return await self._export_car(content, dest, version=version, progress=progress)

    async def _export_car(
        self,
        content: Content,
        dest: str | os.PathLike[str] | BinaryIO | None,
        *,
        version: int,
        progress: Any,
    ) -> bytes | int:
        if version not in {1, 2}:
            raise BadRequestError(f"the version of a CAR is 1 or 2, not {version!r}")
        with Progress.of(progress) as shown:
            async with at(self.node, content) as path:
                shown.begin(f"export {path}", None)
                pieces = counted(self.node.export_car(path), shown.advance)
                with self._reports.reading(sent := Sent(), path, form="car"):
                    async with aclosing(pieces):
                        car = await _written(pieces, dest, version)
                    sent.bytes_sent = car if isinstance(car, int) else len(car)
                return car

    # -- keeping

    async def pin(self, content: Content, *, name: str = "", progress: Any = None) -> Pin:
        """Keep content and everything below it. Raises RetrievalError naming the first block that is missing."""
        check_name(name)
        async with at(self.node, content) as path:
            with Progress.of(progress) as shown:
                cid = await self._cid(path)
                shown.begin(f"pin {name or cid}", None)

                def report(state: PinProgress) -> None:
                    shown.reach(state.bytes, state.total_bytes)

                return await self.node.pin(cid, name=name, progress=report)

    async def unpin(self, content: Content) -> None:
        """Let garbage collection have it. Raises NotFoundError where it is not pinned."""
        async with at(self.node, content) as path:
            await self.node.unpin(await self._cid(path))

    async def pins(self) -> Pins:
        """All pins, oldest first."""
        return Pins(await self.node.pins())

    async def remove(self, content: Content) -> Removed:
        """Unpin content and take away those of its blocks that nothing else needs; the result tells what is kept."""
        async with at(self.node, content) as path:
            cid = await self._cid(path)
            gone = await self.node.remove(path)
            still_here = not cid.is_identity and await self.node.block_has(cid)
            return Removed(gone.blocks, gone.bytes, gone.kept_blocks, still_here)

    async def gc(self) -> GCResult:
        """Take away every block that no pin and no running transfer needs.

        Where another process collects already, its end is waited for. Raises BusyError after GC_WAIT seconds of it.
        """
        deadline = self._loop.time() + GC_WAIT
        while True:
            try:
                return await self.node.gc()
            except BusyError:
                if self._loop.time() >= deadline:
                    raise
            await asyncio.sleep(GC_RETRY)

    async def repo_stat(self) -> RepoStat:
        """The size and place of the store."""
        return await self.node.repo_stat()

    async def _cid(self, path: Path) -> CID:
        cid, names = parse_path(path)
        return (await self.node.stat(path)).cid if names else cid

    # -- the browser

    async def url(self, content: Content, action: str = "read") -> str:
        """An absolute URL for media elements, good for some minutes: it holds a token for this content alone."""
        cid, names = parse_path(await self.node.fixed(path_of(content)))
        body = {"action": action, "cid": str(cid)}
        grant = await self._http.json("POST", "ipfs-stream/tokens", json_body=body)
        path = quote("/".join([str(cid), *names]), safe=SAFE_IN_URL)
        return f"{self.server.url}ipfs/{path}?token={quote(str(grant['token']))}"

    async def health(self) -> dict[str, Any]:
        """What the server says about itself: version, node, limits, what it is doing."""
        self.node  # noqa: B018  # raises where the client is closed
        return await self._http.json("GET", "ipfs-stream/health")


async def _written(
    pieces: AsyncGenerator[bytes, None], dest: str | os.PathLike[str] | BinaryIO | None, version: int
) -> bytes | int:
    """A CAR of these pieces: itself, or its length in `dest`."""
    if dest is None:
        car = await gather(pieces, "give export_car a path to write to")
        return car if version == 1 else encode_v2_prefix(len(car)) + car
    if version == 1:
        return await write_to(dest, pieces)
    return await write_to(dest, pieces, encode_v2_prefix)
