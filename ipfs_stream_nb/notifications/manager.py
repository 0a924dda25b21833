"""The guide's NotificationManager: who is connected, what they want, and the way of events to them."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from tempfile import mkdtemp
from typing import Any, Final

from ipfs_stream_nb.errors import BadRequestError, NotFoundError, StoreError
from ipfs_stream_nb.notifications.emission import Emission, send
from ipfs_stream_nb.notifications.emitting import emit_error
from ipfs_stream_nb.notifications.engine import Engine
from ipfs_stream_nb.notifications.events import (
    SOURCE,
    Event,
    Kind,
    NotificationType,
    Record,
    event_type,
)
from ipfs_stream_nb.notifications.fanout import FanOut
from ipfs_stream_nb.notifications.filters import parse_filters
from ipfs_stream_nb.notifications.history import History
from ipfs_stream_nb.notifications.log import SQLiteEngine
from ipfs_stream_nb.notifications.packs import Pack
from ipfs_stream_nb.notifications.plain_outlet import outlet_of
from ipfs_stream_nb.notifications.rights import EVERYTHING, Principal, split_types
from ipfs_stream_nb.notifications.since import Cursor, parse_since
from ipfs_stream_nb.notifications.subscriber import Subscriber

MAX_HISTORY: Final = 1000
"""Events that one get_history gives; more than that come by `since`."""
PING_SECONDS: Final = 30.0
"""Seconds between two pings (guide, item 162)."""


class NotificationManager:
    """Subscriptions, and events on their way: committed to the log first, then sent (guide, items 94 to 106).

    Everybody sees everything here; `AuthorizedNotificationManager` asks for rights. All methods are for one event loop.
    Between `open` and `close` what is in the engine's log is sent on, whoever published it.
    """

    def __init__(self, engine: Engine | None = None, *, max_history_size: int = 1000) -> None:
        """`engine`: the log, which this opens and closes, by default one that lasts until `close`; `max_history_size`: how
        many of its events are in memory too."""
        self._remove: Callable[[], object] = lambda: None
        if engine is None:
            folder = mkdtemp(prefix="ipfs_stream_nb-")
            self._remove = weakref.finalize(self, _remove, folder, os.getpid())
            engine = SQLiteEngine(folder)
        self._engine = engine
        self.max_history_size = max_history_size
        self._history = History(engine, max_history_size)
        self._emission = Emission(engine)
        self.active_connections: dict[str, Subscriber] = {}
        """By connection id."""
        self.subscriptions: dict[str, set[str]] = {}
        """Connection ids by notification type."""
        self.listeners: list[Callable[[Record], None]] = []
        """Called with each event of the log as it is sent on, on the event loop; they must neither wait nor raise."""
        self._fan_out = FanOut(
            engine, self._history, self.active_connections, self.listeners, self._tell_setbacks
        )
        self._connections_total = self._sent_before = self._lagged_before = 0
        self._tasks: list[asyncio.Task[None]] = []

    # its life

    async def open(self) -> None:
        """Open the log and begin to send. Raises StoreError."""
        await self._engine.open()
        await self._history.begin()
        self._emission.start()
        self._tell_setbacks()
        self._tasks = [
            asyncio.create_task(self._fan_out.run(), name="send notifications on"),
            asyncio.create_task(self._ping(), name="ping subscribers"),
        ]

    async def close(self) -> None:
        """Commit what was emitted, end all connections, close the log. Idempotent."""
        await self._emission.close()
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for subscriber in list(self.active_connections.values()):
            await self.disconnect(subscriber.id)
            await subscriber.outlet.close(1001, "the server ends")
        await self._engine.close()
        await asyncio.to_thread(self._remove)

    @property
    def event_history(self) -> deque[Record]:
        """The latest events of the log (guide, item 96)."""
        return self._history.recent

    @property
    def epoch(self) -> str:
        """The log's epoch."""
        return self._history.epoch

    @property
    def last_id(self) -> int:
        """The id of the last event that was sent on."""
        return self._history.head

    # connections

    async def connect(self, websocket: Any, connection_id: str | None = None) -> str:
        """Register a connection, welcome it, and give its id. It gets events once it subscribes.

        `websocket` has an async `send_text` or `send_json`, as Starlette's and FastAPI's have, or is a packs.Outlet. Whoever
        reads it calls the other methods, and `disconnect` at its end.
        """
        return self._connect(websocket, connection_id, EVERYTHING)

    def _connect(self, websocket: Any, connection_id: str | None, principal: Principal | None) -> str:
        outlet = outlet_of(websocket)
        if not self._tasks:
            raise BadRequestError(
                "the manager is not open: `await manager.open()` first, and `close()` at the end"
            )
        connection_id = connection_id or uuid.uuid4().hex
        if connection_id in self.active_connections:
            raise BadRequestError(f"there is a connection {connection_id!r} already")
        subscriber = Subscriber(connection_id, outlet, principal, self._history, self._forget)
        self.active_connections[connection_id] = subscriber
        self._connections_total += 1
        subscriber.say(
            {
                "type": "welcome",
                "message": "IPFS notification server connected",
                "connection_id": connection_id,
                "available_notifications": [kind.value for kind in NotificationType],
                "epoch": self.epoch,
                "last_id": self.last_id,
                "timestamp": time.time(),
            }
        )
        return connection_id

    async def disconnect(self, connection_id: str) -> None:
        """Forget a connection and its subscriptions; the socket is the caller's to close. Idempotent."""
        subscriber = self.active_connections.get(connection_id)
        if subscriber is not None:
            self._forget(subscriber)
            await subscriber.close()

    def _forget(self, subscriber: Subscriber) -> None:
        if self.active_connections.pop(subscriber.id, None) is not None:
            self._sent_before += subscriber.sent
            self._lagged_before += subscriber.lagged
            for connections in self.subscriptions.values():
                connections.discard(subscriber.id)

    def subscriber(self, connection_id: str) -> Subscriber:
        """A connection. Raises NotFoundError."""
        found = self.active_connections.get(connection_id)
        if found is None:
            raise NotFoundError(f"there is no connection {connection_id!r}")
        return found

    # subscriptions

    async def subscribe(
        self,
        connection_id: str,
        notification_types: list[str],
        filters: dict[str, Any] | None = None,
        *,
        since: object = None,
        epoch: object = None,
    ) -> dict[str, Any]:
        """Subscribe to types, with filters that count for these types alone; a later call for a type replaces what was.

        `since`: an id, whose epoch is `epoch` where that is given, or both in one text `epoch-id`: what came after it is
        sent first. Tells the client with `subscription_confirmed`, before any event of these types, and gives
        {success, subscribed_types, invalid_types, unauthorized_types, filters, epoch, since}.

        Raises BadRequestError for types that are no list, for filters and for `since`; NotFoundError for no connection.
        """
        subscriber = self.subscriber(connection_id)
        choice = split_types(notification_types, subscriber.principal)
        parsed = parse_filters(filters)
        start = await self._start(subscriber, parse_since(since, epoch))
        types = tuple(kind.value for kind in choice.types)
        begins = subscriber.want(types, parsed, start)
        for kind in types:
            self.subscriptions.setdefault(kind, set()).add(connection_id)
        result: dict[str, Any] = {
            "filters": parsed.to_json(),
            "invalid_types": list(choice.invalid),
            "unauthorized_types": list(choice.unauthorized),
            "epoch": self.epoch,
            "since": begins,
        }
        subscriber.say(
            {
                "type": "subscription_confirmed",
                "notification_types": list(choice.granted),
                **result,
                "timestamp": time.time(),
            }
        )
        subscriber.wake()
        return {"success": True, "subscribed_types": list(choice.granted), **result}

    async def _start(self, subscriber: Subscriber, cursor: Cursor | None) -> int | None:
        """The id that a cursor stands for. One of another log, or of more than is left of this one, is told by `reset`, and
        stands for the log's beginning: all that there is may be news."""
        if cursor is None:
            return None
        bounds = await self._engine.bounds()
        if cursor.epoch in (None, self.epoch) and cursor.id <= bounds.last:
            return cursor.id
        subscriber.say(self._history.reset(bounds.first))
        return bounds.first - 1

    async def unsubscribe(self, connection_id: str, notification_types: list[str]) -> dict[str, Any]:
        """Unsubscribe from types, from some of those that all_events stood for too. Tells the client with
        `unsubscription_confirmed`, and gives {success, unsubscribed_types, invalid_types}."""
        subscriber = self.subscriber(connection_id)
        choice = split_types(notification_types, EVERYTHING)
        types = tuple(kind.value for kind in choice.types)
        subscriber.unwant(types)
        for kind in types:
            self.subscriptions.get(kind, set()).discard(connection_id)
        told = {"notification_types": list(choice.granted), "invalid_types": list(choice.invalid)}
        subscriber.say({"type": "unsubscription_confirmed", **told, "timestamp": time.time()})
        return {
            "success": True,
            "unsubscribed_types": list(choice.granted),
            "invalid_types": list(choice.invalid),
        }

    # events

    def emit(
        self,
        notification_type: NotificationType,
        data: Mapping[str, Any],
        *,
        source: str | None = SOURCE,
        owner: str | None = None,
        keep: bool = True,
    ) -> None:
        """Have an event sent, at once and without ever failing: see emitting.Emit. What cannot be committed is logged, and
        counted in `notifications_lost`."""
        self._emission.put(notification_type, data, source=source, owner=owner, keep=keep)

    async def emit_event(
        self,
        notification_type: NotificationType,
        data: Mapping[str, Any],
        source: str | None = SOURCE,
        *,
        owner: str | None = None,
        keep: bool = True,
    ) -> None:
        """The guide's name for `emit` (item 114)."""
        self.emit(notification_type, data, source=source, owner=owner, keep=keep)

    async def notify(
        self,
        notification_type: NotificationType,
        data: Mapping[str, Any],
        source: str | None = None,
        *,
        owner: str | None = None,
    ) -> int:
        """Send an event to whoever is subscribed to it, and give its id once it is committed.

        Raises BadRequestError for what is no event, TooLargeError, BusyError where too much waits to be committed, and
        StoreError.
        """
        return await self._publish(notification_type, data, source, owner, "notification")

    async def notify_all(
        self,
        notification_type: NotificationType,
        data: Mapping[str, Any],
        source: str | None = None,
        *,
        owner: str | None = None,
    ) -> int:
        """The same to all who are connected and may see it, whatever they are subscribed to."""
        return await self._publish(notification_type, data, source, owner, "system_notification")

    async def _publish(
        self,
        notification_type: NotificationType,
        data: Mapping[str, Any],
        source: str | None,
        owner: str | None,
        kind: Kind,
    ) -> int:
        return await self._engine.publish(Event(notification_type, data, source, owner, kind))

    async def send(self, events: Iterable[tuple[Event, bool]]) -> list[int | None]:
        """`notify` for events that are made already, each with whether the log is to keep it; one that it does not keep has
        no id. Raises the first error, once all were tried."""
        done = await send(self._engine, events)
        for result in done:
            if isinstance(result, BaseException):
                raise result
        return [result for result in done if not isinstance(result, BaseException)]

    # what there is

    async def get_history(
        self,
        limit: int | None = 50,
        notification_type: str | None = None,
        *,
        since: object = None,
        epoch: object = None,
    ) -> list[dict[str, Any]]:
        """The latest `limit` events, newest last, of one type where it is given; with `since` the first ones after it.

        `limit` is cut to 0 … MAX_HISTORY, and what is given to history.MAX_BYTES. Raises BadRequestError for a limit that is no number, and for a type or a cursor
        that is none; a cursor of another epoch begins at the log's first event.
        """
        return await self._get_history(EVERYTHING, limit, notification_type, since, epoch)

    async def _get_history(
        self, principal: Principal | None, limit: object, kind: object, since: object, epoch: object
    ) -> list[dict[str, Any]]:
        limit = 50 if limit is None else limit
        if isinstance(limit, bool) or not isinstance(limit, int):
            raise BadRequestError(f"limit is a whole number, not a {type(limit).__name__}")
        wanted = None if kind in (None, NotificationType.ALL_EVENTS) else event_type(kind).value
        cursor = parse_since(since, epoch)
        after = None if cursor is None else cursor.id
        if cursor is not None and cursor.epoch not in (None, self.epoch):
            after = 0
        limit = max(0, min(limit, MAX_HISTORY))
        return await self._history.latest(limit, wanted, principal, after)

    def get_connection_info(self, connection_id: str) -> dict[str, Any]:
        """What is known of a connection. Raises NotFoundError."""
        found = self.subscriber(connection_id)
        return {
            "connection_id": found.id,
            "connected_at": found.connected_at,
            "subscriptions": sorted(found.filters),
            "filters": {kind: found.filters[kind].to_json() for kind in sorted(found.filters)},
            "user": found.principal.id if found.principal is not None else None,
            "notifications_sent": found.sent,
            "notifications_dropped": found.dropped,
            "lagged": found.lagged,
            "last_id": found.tail,
        }

    def get_metrics(self) -> dict[str, Any]:
        """The guide's counts (item 98), and ours: what was lost, and how often somebody was too slow."""
        connected = self.active_connections.values()
        return {
            "connections_total": self._connections_total,
            "active_connections": len(connected),
            "notifications_sent": self._sent_before + sum(found.sent for found in connected),
            "subscriptions_by_type": {kind: len(ids) for kind, ids in self.subscriptions.items() if ids},
            "notifications_lost": self._emission.lost,
            "lagged_total": self._lagged_before + sum(found.lagged for found in connected),
            "epoch": self.epoch,
            "last_id": self.last_id,
        }

    @property
    def metrics(self) -> dict[str, Any]:
        """`get_metrics()` under the guide's name."""
        return self.get_metrics()

    def _tell_setbacks(self) -> None:
        for text in self._engine.take_setbacks():
            emit_error(self.emit, "notifications", StoreError(text))

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(PING_SECONDS)
            pack = Pack.control({"type": "ping", "timestamp": time.time()})
            for subscriber in list(self.active_connections.values()):
                subscriber.pass_on(pack)


def _remove(folder: str, process: int) -> None:
    """Remove a log's directory, unless this is a fork of the process whose it is."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
