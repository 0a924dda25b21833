"""The methods of AsyncClient that give widgets, which work with its blocking twin: their callbacks are not awaited."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

from ipfs_stream_nb.clients.charts import ChartMethods
from ipfs_stream_nb.clients.naming import Content, path_of
from ipfs_stream_nb.clients.results import hinted_methods
from ipfs_stream_nb.content.node import Node
from ipfs_stream_nb.errors import BadRequestError

if TYPE_CHECKING:
    from ipfs_stream_nb.clients.content import AsyncClient
    from ipfs_stream_nb.clients.sync import Client
    from ipfs_stream_nb.widgets.notification_feed import NotificationFeed
    from ipfs_stream_nb.widgets.player import Player
    from ipfs_stream_nb.widgets.uploader import Uploader


@hinted_methods
class WidgetMethods(ChartMethods, ABC):
    """Widgets of an AsyncClient."""

    _blocking: Callable[[], Client] | None
    _twin: Client | None

    @property
    @abstractmethod
    def node(self) -> Node:
        """The node interface below this client."""

    async def _for_widgets(self) -> Client:
        """The blocking twin, made when it is first needed."""
        if self._blocking is None:
            raise BadRequestError("only a client of connect_async() has widgets")
        if self._twin is None:
            self._twin = await asyncio.to_thread(self._blocking)
        return self._twin

    async def play(
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
        "webrtc" (live, re-encoded where the browser needs it), or "auto": WebRTC, and HTTP where that brings no media.
        `quality` over WebRTC: "auto" or a level such as "low".

        Raises NotFoundError, IsDirectoryError, and TraitError for a value that is out of range.
        """
        from ipfs_stream_nb.widgets.player import Player  # noqa: PLC0415  # only a notebook has widgets

        path = await self.node.fixed(path_of(content))
        return Player(
            await self._for_widgets(),
            path,
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

    async def uploader(
        self, *, multiple: bool = True, pin: bool = True, profile: str | None = None, accept: str = ""
    ) -> Uploader:
        """A widget that takes files and folders from the browser: `uploader.cids` has what came, `on_complete` tells.

        `multiple`: several files, and folders; `pin`, `profile`: as in `add`; `accept`: what is taken, such as
        "image/*,.mp4". All of them can be set on the widget later on. Raises TraitError for a value that is not taken.
        """
        from ipfs_stream_nb.widgets.uploader import Uploader  # noqa: PLC0415  # only a notebook has widgets

        self.node  # noqa: B018  # raises where the client is closed
        return Uploader(await self._for_widgets(), multiple=multiple, pin=pin, profile=profile, accept=accept)

    async def notification_feed(
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

        wanted = await Subscription.begin(cast("AsyncClient", self), types, filters, since)
        return NotificationFeed(await self._for_widgets(), wanted, height=height, limit=limit)
