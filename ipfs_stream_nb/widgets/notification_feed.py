"""The notification feed: what happens in IPFS, live in the notebook, and callbacks for it in the kernel."""

from __future__ import annotations

import inspect
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

import traitlets as t
from IPython import get_ipython

from ipfs_stream_nb.clients.results import hinted
from ipfs_stream_nb.display import a_kind, table_html, time_text
from ipfs_stream_nb.errors import BadRequestError, IPFSStreamError
from ipfs_stream_nb.security.access import Action
from ipfs_stream_nb.widgets.feed_events import (
    ALL,
    EventCallback,
    Listener,
    Subscription,
    Types,
    read_types,
    table,
)
from ipfs_stream_nb.widgets.modules import join_modules, themed
from ipfs_stream_nb.widgets.strict import StrictWidget

if TYPE_CHECKING:
    from pandas import DataFrame

    from ipfs_stream_nb.clients.content import AsyncClient
    from ipfs_stream_nb.clients.sync import Client

Callback = TypeVar("Callback", bound=EventCallback)

MAX_LIMIT: Final = 10_000
"""Events that a page keeps, at the most."""
MIN_HEIGHT: Final = 60
MAX_HEIGHT: Final = 4000
"""Pixels of the list."""
SHOWN: Final = 20
"""Events of the table that stands for a feed where no widget runs."""

_STATIC: Final = Path(__file__).parent / "static"
_SINCE: Final = re.compile(r"[A-Za-z0-9._]{1,100}-[0-9]{1,19}")


_open: Final[weakref.WeakSet[NotificationFeed]] = weakref.WeakSet()


class BadValueError(BadRequestError, t.TraitError):
    """A value that a feed does not take, told in one line."""


class _Whole(t.Int[int, int]):
    """A whole number within bounds."""

    def validate(self, _obj: Any, value: Any) -> int:
        if type(value) is not int or not self.min <= value <= self.max:
            shown = repr(value)[:80]
            raise t.TraitError(f"{self.name}={shown}: expected a whole number, {self.min} to {self.max}")
        return value


class NotificationFeed(StrictWidget):
    """A live list of notifications. The page has them from the server directly, also while the kernel is busy.

    What came since it was made, in Python (a second connection, made when it is first asked for):
        events      a pandas DataFrame: id, time (UTC), notification_type, source, and the keys of the events' data;
                    without metrics and progress, unless the feed was made for their types by name
        on, off     have a function called with each event of some types
    Can be set:
        height      pixels of the list (320)
        limit       events that a page keeps (100), older ones are dropped and counted
    And fixed: types, filters, since (where the feed began, or was last cleared: a reloaded page shows what came after).

    It lives on, with its callbacks, until `close()`, also where no variable has it any more. A notebook's cell that is run
    again closes the feeds that it made the last time.
    """

    _esm = join_modules(_STATIC / "feed.js")
    _css = themed(_STATIC / "feed.css")

    types = t.List(t.Unicode(), read_only=True).tag(sync=True)
    filters = t.Dict(read_only=True).tag(sync=True)
    since = t.Unicode(help="epoch-id").tag(sync=True)
    height = _Whole(320, min=MIN_HEIGHT, max=MAX_HEIGHT).tag(sync=True)
    limit = _Whole(100, min=1, max=MAX_LIMIT).tag(sync=True)
    note = t.Unicode(read_only=True, help="what went wrong in the kernel").tag(sync=True)

    base_url = t.Unicode("/", read_only=True).tag(sync=True)
    same_origin = t.Bool(False, read_only=True).tag(sync=True)

    @hinted
    def __init__(self, client: Client, wanted: Subscription, *, height: int = 320, limit: int = 100) -> None:
        """`client.notification_feed` makes it. Raises BadValueError, a TraitError, for a height or a limit that is
        out of range."""
        server = client.server
        self._client = client
        self._listener = Listener(client, wanted, lambda text: self.set_trait("note", text))
        self.set_trait("types", list(wanted.types))
        self.set_trait("filters", wanted.filters.to_json())
        if wanted.hidden:
            self.set_trait("note", f"You may not see {', '.join(wanted.hidden)}.")
        self.set_trait("base_url", server.base_url)
        self.set_trait("same_origin", server.same_origin)
        super().__init__(since=wanted.since, height=height, limit=limit)
        self.on_msg(self._receive)
        self._made_by = _execution()
        for feed in [one for one in _open if self._made_again(one)]:
            feed.close()
        _open.add(self)

    def _made_again(self, old: NotificationFeed) -> bool:
        """Whether the cell that makes this feed made the old one when it was run before."""
        (cell, execution), (cell_before, before) = self._made_by, old._made_by
        return bool(cell) and cell == cell_before and execution != before

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a trait. Raises BadValueError."""
        try:
            super().__setattr__(name, value)
        except t.TraitError as error:
            raise BadValueError(str(error)) from None

    # ---- in the kernel

    @property
    def events(self) -> DataFrame:
        """What came since the feed was made, oldest first, the last 10,000 at the most.

        What the log does not keep (metrics, progress) is only there where the feed was made for its type by name, such as
        `notification_feed(["all_events", "system_metrics"])`: without an `id`, and from when `events` or `on` was first
        used. Keys of the events' data are columns; one that is called like another column is `data.<key>`.
        """
        return table(self._listener.caught_up())

    @overload
    def on(self, type: Types, callback: None = None) -> Callable[[Callback], Callback]: ...
    @overload
    def on(self, type: Types, callback: Callback) -> Callback: ...
    def on(self, type: Types, callback: Any = None) -> Any:  # noqa: A002  # the guide's word
        """Have `callback(event)` called with each event of a type, or of several; usable as a decorator.

        It begins with what is in `events`. Calls come one after the other from a thread of the feed's own, also while a
        cell runs, so that a callback may use the client, and take its time: what comes meanwhile waits. What it prints is
        shown below the cell that called `on`. What it raises is shown in the feed, and logged, with a traceback the first
        time.

        A cell may be run again: a function takes the place of one with the same name and module and the same types, and
        begins anew; a lambda or an inner function only that of one with the same code and nothing bound in it.

        Raises BadRequestError for a type that is none of the feed's, and for what cannot be called, or would have to be
        awaited.
        """
        types = self._own(type)
        if callback is None:
            return lambda callback: self.on(types, callback)
        if not callable(callback):
            raise BadRequestError(f"on needs a function that takes an event, not {a_kind(callback)}")
        if inspect.iscoroutinefunction(callback):
            raise BadRequestError(
                "on calls functions and awaits none; `async for` over client.notifications() does"
            )
        if self._closed:
            raise BadRequestError("on: this feed is closed; client.notification_feed() makes another")
        self._listener.add(callback, types)
        return callback

    def off(self, callback: EventCallback) -> None:
        """Call it no more, for none of its types. Raises BadRequestError where it is not there."""
        if not self._listener.remove(callback):
            raise BadRequestError("off: this callback is not there")

    def _own(self, types: Types) -> tuple[str, ...]:
        """Types as given to `on`, all of which the feed has."""
        names = read_types(types)
        missing = [name for name in names if name not in self.types]
        if missing and ALL not in self.types and names != (ALL,):
            raise BadRequestError(
                f"on: this feed has no {missing[0]} events, it was made for {', '.join(self.types)}"
            )
        return names

    def close(self) -> None:
        """End it, in every view and in the kernel: no callback is called any more. Idempotent."""
        if not self._closed:
            self._listener.close()
        super().close()

    # ---- what it looks like without a page

    def __repr__(self) -> str:
        what = "all events" if ALL in self.types else ", ".join(self.types)
        filters = f", where {', '.join(self.filters)} fit" if self.filters else ""
        return f"NotificationFeed({what}{filters}{', closed' * self._closed})"

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The widget, and a table of what the kernel heard last for where no widget runs: GitHub, a closed notebook."""
        bundle: tuple[dict[str, Any], dict[str, Any]] | None = super()._repr_mimebundle_(**kwargs)
        if bundle is not None:
            bundle[0]["text/html"] = self._table_html()
        return bundle

    def _table_html(self) -> str:
        latest = self._listener.latest(SHOWN)
        if not latest:
            return "<p>A live list of notifications. Run the cell to see it.</p>"
        rows = [
            (time_text(one["timestamp"]), one["notification_type"], _in_words(one["data"])) for one in latest
        ]
        return table_html(("time", "type", "data"), rows, "the latest notifications")

    # ---- what comes from the browser

    def _receive(
        self, _widget: NotificationFeed, message: dict[str, Any], _buffers: list[memoryview]
    ) -> None:
        match message:
            case {"event": "token", "request": str(request)}:
                try:
                    answer = self._token()
                except (IPFSStreamError, OSError) as error:
                    answer = {"error": str(error)}
                self.send({"request": request, **answer})

    def _token(self) -> dict[str, Any]:
        """A capability token to subscribe. It goes to the page that asked and nowhere else: traits are saved."""
        return self._client._run(_grant, self.types) | {"url": self._client.server.url}  # noqa: SLF001  # ours

    @t.validate("since")
    def _check_since(self, proposal: Any) -> str:
        """A page moves it when the feed is cleared."""
        since: str = proposal.value
        if not _SINCE.fullmatch(since):
            raise t.TraitError(f"since={since[:100]!r}: expected an epoch and an id, such as '8f3a-120'")
        return since


def _execution() -> tuple[str | None, str | None]:
    """The notebook's cell that runs, and which run of it this is; None where it is not known."""
    parent_of = getattr(get_ipython(), "get_parent", None)  # none outside of Jupyter
    parent = (parent_of() if parent_of else None) or {}
    return parent.get("metadata", {}).get("cellId"), parent.get("header", {}).get("msg_id")


def _in_words(data: dict[str, Any]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in data.items())


async def _grant(client: AsyncClient, types: list[str]) -> dict[str, Any]:
    request = {"action": Action.SUBSCRIBE.value} | ({} if ALL in types else {"notification_types": types})
    return await client._http.json("POST", "ipfs-stream/tokens", json_body=request)  # noqa: SLF001  # ours
