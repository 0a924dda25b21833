"""What the kernel hears of a feed's events: kept for a table, and given to the user's callbacks in a thread of theirs."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final

from ipfs_stream_nb.clients.notifications import NotificationClient
from ipfs_stream_nb.clients.notifications_positions import Since, read_since
from ipfs_stream_nb.display import a_kind
from ipfs_stream_nb.errors import BadRequestError, IPFSStreamError, UnauthorizedError
from ipfs_stream_nb.notifications.events import NotificationType, no_type
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
MAX_ERROR: Final = 300
"""Characters of what a callback raised that a feed shows."""
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

    def keeps(self, event: dict[str, Any]) -> bool:
        """Whether an event is one for the table. What the log does not keep, such as metrics once a second, is for who
        asked for its type by name."""
        return "id" in event or event["notification_type"] in self.types

    def wants(self, event: dict[str, Any]) -> bool:
        """Whether an event of the history is one of the feed's."""
        return covers(self.types, event) and self.filters.passes(event)

    @classmethod
    async def begin(
        cls, client: AsyncClient, types: Types, filters: dict[str, Any] | None, since: Since | None = None
    ) -> Subscription:
        """From here on, or from behind `since`: an event's id, or a cursor. Raises BadRequestError for types, filters and
        a cursor that are none, UnauthorizedError where none of the types may be seen."""
        names, parsed = read_types(types), parse_filters(filters)
        if since is not None:
            read_since(since, "")
        client.node  # noqa: B018  # raises where the client is closed
        async with NotificationClient.over(client._http) as notifications:  # noqa: SLF001  # ours
            answer = await notifications.subscribe(names, parsed.to_json())
        if not answer["success"]:
            raise UnauthorizedError(f"you may not see notifications of the types {', '.join(names)}")
        hidden = () if ALL in names else tuple(answer["unauthorized_types"])
        seen = tuple(name for name in names if name not in hidden)
        epoch, begins = read_since(answer["since"] if since is None else since, answer["epoch"])
        return cls(seen, parsed, f"{epoch}-{begins}", hidden)


def read_types(types: Types) -> tuple[str, ...]:
    """The names of notification types, one or several, each once. Raises BadRequestError."""
    try:
        names = [types] if isinstance(types, str) else list(types)
    except TypeError:
        raise BadRequestError(f"types are names such as 'content_added', not {a_kind(types)}") from None
    for name in names:
        if name not in _NAMES:
            raise BadRequestError(no_type(name))
    if not names:
        raise BadRequestError("types is empty; 'all_events' stands for all of them")
    return tuple(dict.fromkeys(NotificationType(name).value for name in names))


def covers(types: tuple[str, ...], event: dict[str, Any]) -> bool:
    """Whether an event is of one of the types."""
    return ALL in types or str(event.get("notification_type")) in types


@dataclass(eq=False, slots=True)
class _Callback:
    """A function of the user's."""

    call: EventCallback
    types: tuple[str, ...]
    context: contextvars.Context
    """Of who gave it: in a notebook, what it prints is shown below that cell, and not below whatever runs then."""
    failures: int = 0

    def replaces(self, old: _Callback) -> bool:
        """Whether this is the old one once more, most likely from a cell that was run again."""
        return set(old.types) == set(self.types) and _is_again(old.call, self.call)


def _is_again(old: EventCallback, new: EventCallback) -> bool:
    if old == new:
        return True
    if not (inspect.isfunction(old) and inspect.isfunction(new)):
        return False
    if (old.__module__, old.__qualname__) != (new.__module__, new.__qualname__):
        return False
    if "<" not in new.__qualname__:
        return True
    # lambdas and inner functions share a name: only those that do the same are the same
    bound = new.__closure__ or new.__defaults__ or new.__kwdefaults__
    return old.__code__ == new.__code__ and not bound


def _is_round(count: int) -> bool:
    """1, 10, 100, …: the counts of the same trouble that are worth a line."""
    return str(count).rstrip("0") == "1"


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
        self._callbacks: list[_Callback] = []
        self._due: deque[tuple[_Callback, dict[str, Any]]] = deque()
        self._left_out = 0
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
        epoch, since = read_since(notifications.cursor or self._wanted.since, "")
        if epoch != notifications._link.positions.epoch:  # noqa: SLF001  # ours
            since = 0  # another log, all of which comes
        with suppress(TimeoutError, IPFSStreamError):  # then the table has what came
            async with asyncio.timeout(CATCH_UP):
                while page := await notifications.get_history(PAGE, since=since):
                    mine = [event["id"] for event in page if self._wanted.wants(event)]
                    if mine:
                        await self._heard(mine[-1], notifications)
                    since = page[-1]["id"]

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
            if self._wanted.keeps(event):
                self._kept.append(event)
            for callback in self._callbacks:
                if covers(callback.types, event):
                    self._put(callback, event)

    # -- callbacks

    def add(self, call: EventCallback, types: tuple[str, ...]) -> None:
        """Call it with each event of these types, beginning with those that are kept; instead of the one that it replaces."""
        self.start()
        callback = _Callback(call, types, contextvars.copy_context())
        with self._changed:
            self._drop([one for one in self._callbacks if callback.replaces(one)])
            self._callbacks.append(callback)
            for event in self._kept:
                if covers(types, event):
                    self._put(callback, event)
            if self._thread is None:
                self._thread = threading.Thread(target=self._call_all, name="notification feed", daemon=True)
                self._thread.start()

    def remove(self, call: EventCallback) -> bool:
        """Call it no more; False where it is not there."""
        with self._changed:
            found = [one for one in self._callbacks if one.call == call]
            self._drop(found)
            return bool(found)

    def _drop(self, callbacks: list[_Callback]) -> None:
        self._callbacks = [one for one in self._callbacks if one not in callbacks]
        self._due = deque(one for one in self._due if one[0] not in callbacks)

    def _put(self, callback: _Callback, event: dict[str, Any]) -> None:
        if len(self._due) >= KEPT:
            self._due.popleft()
            self._left_out += 1
            if _is_round(self._left_out):
                text = "a feed's callbacks are over %d events behind: the oldest were left out, %d by now"
                _log.warning(text, KEPT, self._left_out)
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
                callback.context.run(callback.call, event)
            except Exception as error:  # noqa: BLE001  # a user's own, which is shown
                callback.context.run(self._failed, callback, event, error)

    def _failed(self, callback: _Callback, event: dict[str, Any], error: Exception) -> None:
        """Show it in the feed, and log it: the first with its traceback, then how many there are. Where nobody has set up
        logging, Python prints what is logged as an error, and a notebook would be full of it."""
        callback.failures += 1
        name = getattr(callback.call, "__name__", "the callback")
        text = str(error)
        short = text if len(text) <= MAX_ERROR else f"{text[:MAX_ERROR]}…"
        what = f"{name} raised {type(error).__name__} for {event.get('notification_type')}: {short}"
        before = callback.failures - 1
        self._tell(f"on: {what}" + (f" (… and {before:,} before)" if before else ""))
        if not before:
            trace = error.__traceback__
            users = trace and trace.tb_next  # without our own line
            _log.error("on: %s", what, exc_info=(type(error), error, users))
        else:
            level = logging.ERROR if _is_round(callback.failures) else logging.INFO
            _log.log(level, "on: %s (… and %d before)", what, before)

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
