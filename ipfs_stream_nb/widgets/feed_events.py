"""What the kernel hears of a feed's events: kept for a table, and given to the user's callbacks in a thread of theirs."""

from __future__ import annotations

import asyncio
import difflib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final

from ipfs_stream_nb.clients.notifications import NotificationClient
from ipfs_stream_nb.display import a_kind
from ipfs_stream_nb.errors import BadRequestError, IPFSStreamError, UnauthorizedError
from ipfs_stream_nb.notifications.events import NotificationType
from ipfs_stream_nb.notifications.filters import Filters, parse_filters

if TYPE_CHECKING:
    from pandas import DataFrame

    from ipfs_stream_nb.clients.content import AsyncClient
    from ipfs_stream_nb.clients.sync import Client

KEPT: Final = 10_000
"""Events that are kept in the kernel, and calls that may wait for callbacks that are slow."""
CATCH_UP: Final = 5.0
"""Seconds that a table waits for events that the server has already."""
PAGE: Final = 1000
"""Events of the history that are looked at together."""
MAX_COLUMNS: Final = 200
"""Columns of a table for keys of the events' data; what has another key is in the column `more`."""
FIXED: Final = ("id", "time", "notification_type", "source")

ALL: Final = NotificationType.ALL_EVENTS.value
_NAMES: Final = tuple(kind.value for kind in NotificationType)

Types = str | Iterable[str]
EventCallback = Callable[[dict[str, Any]], object]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Subscription:
    """What a feed shows, and where it begins."""

    types: tuple[str, ...]
    filters: Filters
    since: str
    """ "epoch-id": the last event before it."""
    hidden: tuple[str, ...] = ()
    """Types that were asked for and may not be seen."""

    def wants(self, event: dict[str, Any]) -> bool:
        """Whether an event of the history is one of the feed's."""
        return covers(self.types, event) and self.filters.passes(event)

    @classmethod
    async def begin(cls, client: AsyncClient, types: Types, filters: dict[str, Any] | None) -> Subscription:
        """From here on. Raises BadRequestError for types and filters that are none, UnauthorizedError where none of the
        types may be seen."""
        names, parsed = read_types(types), parse_filters(filters)
        client.node  # noqa: B018  # raises where the client is closed
        async with NotificationClient.over(client._http) as notifications:  # noqa: SLF001  # ours
            answer = await notifications.subscribe(names, parsed.to_json())
        if not answer["success"]:
            raise UnauthorizedError(f"you may not see notifications of the types {', '.join(names)}")
        hidden = () if ALL in names else tuple(answer["unauthorized_types"])
        seen = tuple(name for name in names if name not in hidden)
        return cls(seen, parsed, f"{answer['epoch']}-{answer['since']}", hidden)


def read_types(types: Types) -> tuple[str, ...]:
    """The names of notification types, one or several, each once. Raises BadRequestError."""
    try:
        names = [types] if isinstance(types, str) else list(types)
    except TypeError:
        raise BadRequestError(f"types are names such as 'content_added', not {a_kind(types)}") from None
    for name in names:
        if name not in _NAMES:
            close = difflib.get_close_matches(str(name), _NAMES, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"these are: {', '.join(_NAMES)}"
            raise BadRequestError(f"{str(name)[:80]!r} is no notification type; {hint}")
    if not names:
        raise BadRequestError("types is empty; 'all_events' stands for all of them")
    return tuple(dict.fromkeys(NotificationType(name).value for name in names))


def covers(types: tuple[str, ...], event: dict[str, Any]) -> bool:
    """Whether an event is of one of the types."""
    return ALL in types or str(event.get("notification_type")) in types


class Listener:
    """A subscription of the kernel's own, on the client's event loop. Safe to use from several threads."""

    def __init__(self, client: Client, wanted: Subscription, tell: Callable[[str], None]) -> None:
        """`tell`: called with what a user has to know, in words."""
        self._client = client
        self._wanted = wanted
        self._tell = tell
        self._notifications: NotificationClient | None = None
        self._listening: asyncio.Task[None] | None = None
        self._starting = threading.Lock()
        self._changed = threading.Condition()
        self._kept: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._callbacks: list[tuple[EventCallback, tuple[str, ...]]] = []
        self._due: deque[tuple[EventCallback, dict[str, Any]]] = deque()
        self._thread: threading.Thread | None = None
        self._awaited: dict[asyncio.Future[None], int] = {}
        """Events that a table waits for."""
        self._closed = False

    def latest(self, count: int) -> list[dict[str, Any]]:
        """The newest events that came, the newest first; none is asked for."""
        with self._changed:
            return list(islice(reversed(self._kept), count))

    def caught_up(self) -> list[dict[str, Any]]:
        """All events that are kept, oldest first, with those that the server has by now."""
        if not self._closed:
            self.start()
            self._client._run(self._catch_up)  # noqa: SLF001  # ours
        with self._changed:
            return list(self._kept)

    # -- on the client's event loop

    def start(self) -> None:
        """Listen from here on, and to what came since the feed began. Once."""
        with self._starting:
            if self._notifications is None and not self._closed:
                self._client._run(self._begin)  # noqa: SLF001  # ours

    async def _begin(self, client: AsyncClient) -> None:
        wanted = self._wanted
        notifications = client.notifications(wanted.types, wanted.filters.to_json(), wanted.since)
        await notifications.connect()
        self._notifications = notifications
        self._listening = asyncio.create_task(self._listen(notifications), name="notification feed")

    async def _listen(self, notifications: NotificationClient) -> None:
        try:
            async for event in notifications:
                self._take(event)
        except IPFSStreamError as error:
            if not self._closed:
                self._tell(f"The kernel hears no events any more: {error}")

    async def _catch_up(self, _client: AsyncClient) -> None:
        """Wait until what the server has by now came here too."""
        notifications = self._notifications
        if notifications is None:
            return
        since = notifications.cursor or self._wanted.since
        with suppress(TimeoutError, IPFSStreamError):  # then the table has what came
            async with asyncio.timeout(CATCH_UP):
                while page := await notifications.get_history(PAGE, since=since):
                    mine = [event["id"] for event in page if self._wanted.wants(event)]
                    if mine:
                        await self._heard(mine[-1], notifications)
                    since = f"{since.rpartition('-')[0]}-{page[-1]['id']}"

    async def _heard(self, id: int, notifications: NotificationClient) -> None:  # noqa: A002  # the protocol's word
        """Wait for an event."""
        heard = asyncio.get_running_loop().create_future()
        self._awaited[heard] = id
        try:
            if (notifications.last_id or 0) < id:
                await heard
        finally:
            del self._awaited[heard]

    def _take(self, event: dict[str, Any]) -> None:
        for heard, id in self._awaited.items():  # noqa: A001
            if not heard.done() and id <= event.get("id", 0):
                heard.set_result(None)
        with self._changed:
            self._kept.append(event)
            for callback, types in self._callbacks:
                if covers(types, event):
                    self._put(callback, event)

    # -- callbacks

    def add(self, callback: EventCallback, types: tuple[str, ...]) -> None:
        """Call it with each event of these types, beginning with those that are kept."""
        self.start()
        with self._changed:
            self._callbacks.append((callback, types))
            for event in self._kept:
                if covers(types, event):
                    self._put(callback, event)
            if self._thread is None:
                self._thread = threading.Thread(target=self._call_all, name="notification feed", daemon=True)
                self._thread.start()

    def remove(self, callback: EventCallback) -> bool:
        """Call it no more; False where it is not there."""
        with self._changed:
            before = len(self._callbacks)
            self._callbacks = [one for one in self._callbacks if one[0] != callback]
            self._due = deque(one for one in self._due if one[0] != callback)
            return len(self._callbacks) < before

    def _put(self, callback: EventCallback, event: dict[str, Any]) -> None:
        if len(self._due) >= KEPT:
            self._due.popleft()
            _log.warning("a feed's callbacks are over %d events behind: the oldest were left out", KEPT)
        self._due.append((callback, event))
        self._changed.notify()

    def _call_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._due or self._closed)
                if self._closed:
                    return
                callback, event = self._due.popleft()
            try:
                callback(event)
            except Exception as error:  # noqa: BLE001  # a user's own, which is shown
                name = getattr(callback, "__name__", "the callback")
                kind = event.get("notification_type")
                _log.error("%s failed for a %s event", name, kind, exc_info=error)
                self._tell(f"on: {name} raised {type(error).__name__} for {kind}: {error}")

    def close(self) -> None:
        """Listen and call no more. A callback that runs is not waited for. Idempotent."""
        with self._changed:
            self._closed = True
            self._due.clear()
            self._changed.notify_all()
        with self._starting:
            notifications, self._notifications = self._notifications, None
        if notifications is not None:
            with suppress(IPFSStreamError):  # the client is closed, and this with it
                self._client._run(self._end, notifications)  # noqa: SLF001  # ours

    async def _end(self, _client: AsyncClient, notifications: NotificationClient) -> None:
        await notifications.close()
        if self._listening is not None:
            await asyncio.wait([self._listening])


def table(events: list[dict[str, Any]]) -> DataFrame:
    """Events as a table: id (None for what the log does not keep), time, type, source, and a column for each key of
    their data; one that is called like a column of the event's own is `data.<key>`."""
    import pandas as pd  # noqa: PLC0415  # half a second that only a table pays

    keys: dict[str, str] = {}
    taken = {*FIXED, "more"}
    for key in chain.from_iterable(event["data"] for event in events):
        if key not in keys and len(keys) < MAX_COLUMNS:
            keys[key] = key
            while keys[key] in taken:
                keys[key] = f"data.{keys[key]}"
            taken.add(keys[key])
    frame = pd.DataFrame(
        {
            "id": pd.array([event.get("id") for event in events], dtype="Int64"),
            "time": pd.to_datetime([event["timestamp"] for event in events], unit="s", utc=True),
            "notification_type": [event["notification_type"] for event in events],
            "source": [event.get("source") for event in events],
        }
    )
    columns = {name: pd.Series([event["data"].get(key) for event in events]) for key, name in keys.items()}
    more = [
        {key: value for key, value in event["data"].items() if key not in keys} or None for event in events
    ]
    if any(more):
        columns["more"] = pd.Series(more, dtype=object)
    return pd.concat([frame, pd.DataFrame(columns).convert_dtypes()], axis=1) if columns else frame
