"""Notifications: WS /ws/notifications, WS /ws/metrics, GET /sse/notifications, POST /ipfs-stream/events."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any, Final

from ipfs_stream_nb.errors import BadRequestError, UnauthorizedError
from ipfs_stream_nb.notifications.events import MAX_EVENT, Event, NotificationType, event_type
from ipfs_stream_nb.notifications.filters import parse_filters
from ipfs_stream_nb.notifications.rights import may_emit, may_subscribe, split_types
from ipfs_stream_nb.notifications.since import parse_since
from ipfs_stream_nb.security.access import Action
from ipfs_stream_nb.transports.connection import POLICY, ConnectionClosedError, check_unicode
from ipfs_stream_nb.transports.metrics import monitor_system_metrics
from ipfs_stream_nb.transports.notifications import NotificationConversation
from ipfs_stream_nb.transports.stream import KEEP_ALIVE_SECONDS, RETRY_MS
from ipfs_stream_nb_server.handlers.base import IPFSHandler, access
from ipfs_stream_nb_server.handlers.sockets import SocketConnection, SocketHandler
from ipfs_stream_nb_server.handlers.sse import EVENT_STREAM
from ipfs_stream_nb_server.limits import PING_SECONDS, Slots
from ipfs_stream_nb_server.outlets import EventStream, PackConnection

EXPIRED: Final = "the capability token has expired"
MAX_EVENTS: Final = 256
"""Events in one POST."""
FIELDS: Final = ("notification_type", "data", "source", "keep", "private")
"""Fields of one of them."""


class SubscriberSocket(SocketHandler):
    """A socket of somebody who listens: it has its own slots, and needs no node."""

    cancel_on_close = True
    moves_content = False
    ping_timeout = int(PING_SECONDS)
    """Seconds after which a peer that does not answer a ping counts as gone."""

    def slots(self) -> Slots:
        """Those of subscribers."""
        return self.context.subscribers

    @access(Action.SUBSCRIBE)
    async def get(self, *args: str) -> None:
        """Upgrade."""
        await SocketHandler.get(self, *args)


class NotificationSocket(SubscriberSocket):
    """WS /ws/notifications."""

    def connection(self) -> SocketConnection:
        """One that takes packs."""
        return PackConnection(self, self.context.limits.subscriber_timeout)

    async def talk(self, connection: SocketConnection) -> None:
        """Take commands and send events."""
        assert isinstance(connection, PackConnection)  # noqa: S101  # made above
        manager = await self.context.feed.ready()
        conversation = NotificationConversation(connection, manager, await self.principal())
        try:
            async with asyncio.timeout(self.seconds_left) as limit:
                await conversation.run()
        except TimeoutError:
            if not limit.expired():
                raise
            await connection.close(POLICY, EXPIRED)


class MetricsSocket(SubscriberSocket):
    """WS /ws/metrics."""

    async def talk(self, connection: SocketConnection) -> None:
        """Send the metrics."""
        if not may_subscribe(await self.principal(), NotificationType.SYSTEM_METRICS):
            raise UnauthorizedError("the system's metrics are for admins")
        self.context.feed.start()
        await monitor_system_metrics(connection, self.context.feed.collector)


class NotificationEventsHandler(IPFSHandler):
    """GET /sse/notifications?types=&filters=: the same events as over the socket; resumes at `Last-Event-ID`."""

    _stream: EventStream | None = None

    @access(Action.SUBSCRIBE)
    async def get(self) -> None:
        """Send the events, for ever."""
        principal = await self.principal()
        asked = self.get_query_argument("types", "").split(",")
        types = [name for part in asked if (name := part.strip())] or [NotificationType.ALL_EVENTS.value]
        choice = split_types(types, principal)
        if choice.invalid:
            raise BadRequestError(f"no notification types: {', '.join(choice.invalid)}")
        if not choice.granted:
            raise UnauthorizedError(f"you may not see {', '.join(choice.unauthorized)}")
        filters = self._filters()
        since = self.request.headers.get("Last-Event-ID") or self.get_query_argument("since", "") or None
        parse_since(since)
        with self.context.subscribers.slot(self.user):
            manager = await self.context.feed.ready()
            self.set_header("Content-Type", EVENT_STREAM)
            self.set_header("Cache-Control", "no-store")
            self.set_header("X-Accel-Buffering", "no")
            self.write(f"retry: {RETRY_MS}\n\n")
            self._stream = EventStream(self, lambda: manager.epoch, self.context.limits.subscriber_timeout)
            connection_id = await manager.connect(self._stream, user=principal)
            try:
                await manager.subscribe(connection_id, types, filters, since=since)
                await self._serve(self._stream)
            finally:
                await manager.disconnect(connection_id)
        self.abort()

    async def _serve(self, stream: EventStream) -> None:
        with suppress(ConnectionClosedError, TimeoutError):
            async with asyncio.timeout(self.seconds_left):
                while not stream.ended.is_set():
                    with suppress(TimeoutError):
                        async with asyncio.timeout(KEEP_ALIVE_SECONDS):
                            await stream.ended.wait()
                    stream.keep_alive()

    def _filters(self) -> dict[str, Any] | None:
        text = self.get_query_argument("filters", "")
        try:
            filters = json.loads(text) if text else None
        except (ValueError, RecursionError):
            raise BadRequestError(f"filters is not JSON: {text[:80]!r}") from None
        parse_filters(filters)
        return filters

    def on_connection_close(self) -> None:
        """The client has gone."""
        if self._stream is not None:
            self._stream.ended.set()
        super().on_connection_close()


class EventsHandler(IPFSHandler):
    """POST /ipfs-stream/events: events of a client's own, committed before the answer."""

    max_body = MAX_EVENTS * 4096 + MAX_EVENT

    @access(Action.EMIT)
    async def post(self) -> None:
        """Take `{"notification_type"?, "data", "source"?, "keep"?, "private"?}`, or `{"events": [...]}` of these."""
        body = self.json_body()
        many = "events" in body
        events = body["events"] if many else [body]
        if not isinstance(events, list) or len(events) > MAX_EVENTS or (many and len(body) > 1):
            raise BadRequestError(f"events is a list of at most {MAX_EVENTS} events, and stands alone")
        principal = await self.principal()
        checked = [self._checked(event) for event in events]
        for event, _ in checked:
            if not may_emit(principal, event.notification_type):
                raise UnauthorizedError(f"you may not send events of the type {event.notification_type}")
        manager = await self.context.feed.ready()
        ids = await manager.send(checked)
        self.send_json(
            {"ids": ids, "epoch": manager.epoch} if many else {"id": ids[0], "epoch": manager.epoch}
        )

    def _checked(self, event: object) -> tuple[Event, bool]:
        """An event, and whether it is to be kept."""
        if not isinstance(event, dict):
            raise BadRequestError("an event is a JSON object")
        unknown = event.keys() - set(FIELDS)
        if unknown:
            raise BadRequestError(f"unknown field {min(unknown)[:80]!r}; {', '.join(FIELDS)} are known")
        data, source = event.get("data"), event.get("source")
        keep, private = event.get("keep", True), event.get("private", False)
        if not isinstance(data, dict):
            raise BadRequestError("data is missing, or is no JSON object")
        if source is not None and not isinstance(source, str):
            raise BadRequestError("source is text")
        if not isinstance(keep, bool) or not isinstance(private, bool):
            raise BadRequestError("keep and private are true or false")
        check_unicode(source or "", "source")
        kind = event_type(event.get("notification_type", NotificationType.CUSTOM_EVENT))
        # what tells of content is its user's alone, as all that the server tells of it; a message is for everybody
        is_message = kind is NotificationType.CUSTOM_EVENT and not private
        return Event(kind, data, source, None if is_message else self.owner), keep
