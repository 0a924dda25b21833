"""`Client`: the blocking client for notebooks and scripts. All logic is AsyncClient's, on a loop in a thread."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Generator, Iterable
from typing import TYPE_CHECKING, Any, BinaryIO, Concatenate, ParamSpec, Self, TypeVar, overload

from ipfs_stream_nb.clients.charts import ChartMethods
from ipfs_stream_nb.clients.content import AsyncClient
from ipfs_stream_nb.clients.loop import LoopThread
from ipfs_stream_nb.clients.naming import Content, path_of
from ipfs_stream_nb.clients.notifications_methods import BlockingNotificationMethods
from ipfs_stream_nb.clients.processing import BlockingProcessingMethods
from ipfs_stream_nb.clients.progress import Progress
from ipfs_stream_nb.clients.results import Entries, Pins, Removed, hinted_methods
from ipfs_stream_nb.clients.server import ServerInfo
from ipfs_stream_nb.clients.shared import Lease
from ipfs_stream_nb.clients.transfers import BlockingTransferMethods
from ipfs_stream_nb.clients.webrtc_methods import BlockingWebRTCMethods
from ipfs_stream_nb.content.file import ContentFile
from ipfs_stream_nb.content.node import Added, CarInfo, GCResult, Origins, Pin, RepoStat, Stat
from ipfs_stream_nb.display import facts_html
from ipfs_stream_nb.errors import BadRequestError

if TYPE_CHECKING:
    from PIL.Image import Image

    from ipfs_stream_nb.media.audio import Audio
    from ipfs_stream_nb.media.frames import Frame, Frames
    from ipfs_stream_nb.media.info import MediaInfo
    from ipfs_stream_nb.media.picture import Size
    from ipfs_stream_nb.widgets.notification_feed import NotificationFeed
    from ipfs_stream_nb.widgets.player import Player
    from ipfs_stream_nb.widgets.uploader import Uploader

P = ParamSpec("P")
T = TypeVar("T")


class Session:
    """An AsyncClient on a loop of its own, shared by the clients that connect with the same arguments."""

    def __init__(self, opener: Callable[[], Awaitable[AsyncClient]]) -> None:
        self.loop = LoopThread("ipfs_stream_nb")
        try:
            self.client = self.loop.run(lambda: _awaited(opener()))
        except BaseException:
            self.loop.stop()
            raise

    def close(self) -> None:
        """End it for all. Idempotent."""
        if self.loop.alive:
            try:
                self.loop.run(self.client.close)
            finally:
                self.loop.stop()


async def _awaited(opened: Awaitable[T]) -> T:
    return await opened


@hinted_methods
class Client(
    BlockingProcessingMethods,
    BlockingTransferMethods,
    BlockingNotificationMethods,
    BlockingWebRTCMethods,
    ChartMethods,
):
    """Content by CID, blocking. Made by `connect()`; a context manager; safe to use from several threads.

    Wherever content is named, a CID, its text, `<cid>/name…`, `/ipfs/…`, `ipfs://…`, a gateway's URL (of
    which only CID and path are taken) and the results of this client do alike. Everything foreseeable that goes wrong is an IPFSStreamError.
    """

    def __init__(self, lease: Lease[Session]) -> None:
        self._lease: Lease[Session] | None = lease

    def _run(
        self, method: Callable[Concatenate[AsyncClient, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        session = self._session
        progress = None
        if "progress" in kwargs:
            progress = Progress(kwargs["progress"], inline=False)
            kwargs["progress"] = progress
        try:
            return session.loop.run(lambda: _awaited(method(session.client, *args, **kwargs)), progress)
        finally:
            if progress is not None:
                progress.end()

    @property
    def _session(self) -> Session:
        if self._lease is None:
            raise BadRequestError("this client is closed; connect() gives another")
        return self._lease.value

    @property
    def server(self) -> ServerInfo:
        """The server that this client talks to."""
        return self._session.client.server

    def __repr__(self) -> str:
        return f"<Client: {'closed' if self._lease is None else self._session.client.describe()}>"

    def _repr_html_(self) -> str:
        if self._lease is None:
            return facts_html("ipfs_stream_nb client", [("state", "closed")])
        return self._session.client._repr_html_()  # the same client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the connection, which ends with the last client on it. Idempotent."""
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.release()

    # -- adding

    def add(
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
        return self._run(
            AsyncClient.add, source, name=name, pin=pin, profile=profile, hidden=hidden, progress=progress
        )

    def import_car(self, source: Any, *, pin: bool = True, progress: Any = None) -> CarInfo:
        """Store the blocks of a CAR (version 1 or 2), each of them verified, and pin its roots.

        `source` is a path, bytes, an open binary file or an iterable of bytes. Raises CorruptContentError.
        """
        return self._run(AsyncClient.import_car, source, pin=pin, progress=progress)

    # -- reading

    def stat(self, content: Content) -> Stat:
        """What it is: file, directory or symlink, size in bytes, MIME type. Raises NotFoundError."""
        return self._run(AsyncClient.stat, content)

    def sources(self, content: Content) -> Origins:
        """Where the blocks of content came from: which gateway or Kubo node gave how many, or that they were added here.

        Blocks that were not read yet are counted as not here; nothing is fetched for this but what a path needs.
        """
        return self._run(AsyncClient.sources, content)

    def ls(self, content: Content, *, kinds: bool = False) -> Entries:
        """The entries of a directory; `kinds` looks up whether each is a file or a directory, a block for each."""
        return self._run(AsyncClient.ls, content, kinds=kinds)

    def cat(self, content: Content, offset: int = 0, length: int | None = None) -> bytes:
        """A file's bytes from `offset`, at most `length`. Raises TooLargeError over 512 MiB: use `open`."""
        return self._run(AsyncClient.cat, content, offset, length)

    def open(self, content: Content) -> ContentFile:
        """A seekable binary file that reads only what is asked for. Raises IsDirectoryError, NotFoundError."""
        return self._run(AsyncClient.open, content)

    @overload
    def export_car(
        self, content: Content, dest: None = None, *, version: int = 1, progress: Any = None
    ) -> bytes: ...
    @overload
    def export_car(
        self,
        content: Content,
        dest: str | os.PathLike[str] | BinaryIO,
        *,
        version: int = 1,
        progress: Any = None,
    ) -> int: ...
    def export_car(
        self,
        content: Content,
        dest: str | os.PathLike[str] | BinaryIO | None = None,
        *,
        version: int = 1,
        progress: Any = None,
    ) -> bytes | int:
        """A CAR with everything below `content`: as bytes, or into a path or binary file, giving its length.

        `version` is 1, or 2 (without an index). A path is only replaced by a CAR that is whole. Raises RetrievalError where a block is missing, and
        TooLargeError for over 512 MiB without a `dest`.
        """
        export = AsyncClient._export_car  # noqa: SLF001  # has no overloads
        return self._run(export, content, dest, version=version, progress=progress)

    # -- keeping

    def pin(self, content: Content, *, name: str = "", progress: Any = None) -> Pin:
        """Keep content and everything below it. Raises RetrievalError naming the first block that is missing."""
        return self._run(AsyncClient.pin, content, name=name, progress=progress)

    def unpin(self, content: Content) -> None:
        """Let garbage collection have it. Raises NotFoundError where it is not pinned."""
        self._run(AsyncClient.unpin, content)

    def pins(self) -> Pins:
        """All pins, oldest first."""
        return self._run(AsyncClient.pins)

    def remove(self, content: Content) -> Removed:
        """Unpin content and take away those of its blocks that nothing else needs; the result tells what is kept."""
        return self._run(AsyncClient.remove, content)

    def gc(self) -> GCResult:
        """Take away every block that no pin and no running transfer needs.

        Where another process collects already, its end is waited for. Raises BusyError after a minute of it.
        """
        return self._run(AsyncClient.gc)

    def repo_stat(self) -> RepoStat:
        """The size and place of the store."""
        return self._run(AsyncClient.repo_stat)

    # -- media: decoded in the caller's own thread, so that Ctrl-C ends it at once

    def info(self, content: Content) -> MediaInfo:
        """What a media file holds: format, duration in s, streams with codecs, sizes, rates and rotation."""
        from ipfs_stream_nb.media.info import probe  # noqa: PLC0415  # PyAV takes 0.2 s to import

        with self.open(content) as file:
            return probe(file)

    def frames(
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

        with self.open(content) as file:
            return frames(file, start, stop, every=every, count=count, size=size)

    def iter_frames(
        self,
        content: Content,
        start: float | None = None,
        stop: float | None = None,
        *,
        every: float | None = None,
        count: int | None = None,
        size: Size = None,
    ) -> Generator[Frame, None, None]:
        """The same frames one by one, decoded as they are asked for."""
        from ipfs_stream_nb.media.frames import iter_frames  # noqa: PLC0415  # PyAV takes 0.2 s to import

        with self.open(content) as file:
            yield from iter_frames(file, start, stop, every=every, count=count, size=size)

    def audio(self, content: Content, start: float | None = None, stop: float | None = None) -> Audio:
        """Sound from `start` to `stop` (s): samples (n, channels) float32 with their rate in Hz."""
        from ipfs_stream_nb.media.audio import audio  # noqa: PLC0415  # PyAV takes 0.2 s to import

        with self.open(content) as file:
            return audio(file, start, stop)

    def contact_sheet(
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

        with self.open(content) as file:
            return contact_sheet(
                file, columns=columns, rows=rows, count=count, width=width, timestamps=timestamps
            )

    # -- the browser

    def url(self, content: Content, action: str = "read") -> str:
        """An absolute URL for media elements, good for some minutes: it holds a token for this content alone."""
        return self._run(AsyncClient.url, content, action)

    def play(
        self,
        content: Content,
        *,
        current_time: float = 0.0,
        muted: bool = False,
        volume: float = 1.0,
        playback_rate: float = 1.0,
        loop: bool = False,
        autoplay: bool = False,
        controls: bool = True,
        width: int | str = 640,
        transport: str = "http",
        quality: str = "auto",
    ) -> Player:
        """A widget that plays video, audio or an image.

        `current_time`: seconds from which it plays; `volume`: 0 to 1; `playback_rate`: 0.0625 to 16, 1 being normal;
        `autoplay`: at once (browsers mostly ask for `muted` too); `controls`: with the browser's buttons; `width`:
        pixels, or a CSS length such as "100%". All of these can be set on the widget later on. `transport`: "http",
        "webrtc" (live, re-encoded where needed), or "auto": WebRTC, and HTTP where that brings no media; with a `quality`.

        Raises NotFoundError, IsDirectoryError, and TraitError for a value that is out of range.
        """
        from ipfs_stream_nb.widgets.player import Player  # noqa: PLC0415  # only a notebook has widgets

        return Player(
            self,
            self._session.loop.run(lambda: self._session.client.node.fixed(path_of(content))),
            current_time=current_time,
            muted=muted,
            volume=volume,
            playback_rate=playback_rate,
            loop=loop,
            autoplay=autoplay,
            controls=controls,
            width=width,
            transport=transport,
            quality=quality,
        )

    def uploader(
        self, *, multiple: bool = True, pin: bool = True, profile: str | None = None, accept: str = ""
    ) -> Uploader:
        """A widget that takes files and folders from the browser: `uploader.cids` has what came, `on_complete` tells.

        `multiple`: several files, and folders; `pin`, `profile`: as in `add`; `accept`: what is taken, such as
        "image/*,.mp4". All of them can be set on the widget later on. Raises TraitError for a value that is not taken.
        """
        from ipfs_stream_nb.widgets.uploader import Uploader  # noqa: PLC0415  # only a notebook has widgets

        return Uploader(self, multiple=multiple, pin=pin, profile=profile, accept=accept)

    def notification_feed(
        self,
        types: str | Iterable[str] = ("all_events",),
        filters: dict[str, Any] | None = None,
        *,
        since: int | str | None = None,
        height: int = 320,
        limit: int = 100,
    ) -> NotificationFeed:
        """A widget with a live list of notifications: `feed.events` has them as a table, `feed.on` calls for each.

        `types`, `filters`: which, as for `notifications`; `since`: an event's id, or a cursor, behind which it begins;
        `height`: of the list in pixels; `limit`: how many a page keeps.
        Raises BadRequestError for what is no type or filter, UnauthorizedError, and TraitError for a number out of range.
        """
        from ipfs_stream_nb.widgets.feed_events import Subscription  # noqa: PLC0415  # only a notebook has widgets
        from ipfs_stream_nb.widgets.notification_feed import NotificationFeed  # noqa: PLC0415

        wanted = self._run(Subscription.begin, types, filters, since)
        return NotificationFeed(self, wanted, height=height, limit=limit)

    def health(self) -> dict[str, Any]:
        """What the server says about itself: version, node, limits, what it is doing."""
        return self._run(AsyncClient.health)
