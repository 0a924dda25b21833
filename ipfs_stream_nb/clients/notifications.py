"""`NotificationClient`: live events of a server, each exactly once, over as many connections as it takes."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any, Final, Self

from ipfs_stream_nb.clients.http import ServerHTTP
from ipfs_stream_nb.clients.live import LiveClient
from ipfs_stream_nb.clients.notifications_json import plain
from ipfs_stream_nb.clients.notifications_link import CONFIRMED, GAPS, EventLink, State
from ipfs_stream_nb.clients.notifications_positions import (
    Since,
    read_filters,
    read_since,
    read_type,
    read_types,
    subscribe_command,
)
from ipfs_stream_nb.clients.results import hinted, hinted_methods
from ipfs_stream_nb.display import a_kind
from ipfs_stream_nb.errors import (
    BadRequestError,
    IPFSStreamError,
    RetrievalError,
    RetrievalTimeoutError,
    UnauthorizedError,
)
from ipfs_stream_nb.notifications.events import NotificationType, no_type

PING_SECONDS: Final = 5.0
"""Seconds that a ping waits for its answer, a server that is away included."""

Handler = Callable[[dict[str, Any]], object]
"""Called with an event, or a gap; may be a coroutine function."""

log = logging.getLogger(__name__)


@hinted_methods
class NotificationClient(LiveClient):
    """Live events: `async for event in client`, or a function that is called with each. None come before `subscribe`.

    Each event that matches comes once, and those with the same filters in the order of the log. Where the connection is
    lost, another one goes on where it was, for as long as the server is away; who reads slowly makes the server wait, and
    loses nothing but what the log does not keep (metrics, progress). What the log itself has lost in between is told by
    `on_gap` and `missed`.
    """

    @hinted
    def __init__(
        self,
        api_url: str | None = None,
        on_notification: Handler | None = None,
        *,
        token: str | None = None,
        on_gap: Handler | None = None,
        give_up_after: float | None = None,
    ) -> None:
        """`api_url`: a server, as for `connect`; without it the one that `connect` finds.

        `on_notification(event)` takes the events, one after the other, instead of `async for`; what it raises is logged.
        `on_gap(gap)` is told `{"type": "lagged", "from", "to"}`: this client was slow, and the server reads these ids
        from its log; and `{"type": "reset", "epoch", "first", "missed"}`: events are lost that the log does not have any
        more, at most `missed` of them (None: another log, so that nobody knows). `give_up_after`: seconds without a
        server after which it ends with an error; None is never.
        """
        check_handler("on_notification", on_notification)
        check_handler("on_gap", on_gap)
        check_seconds("give_up_after", give_up_after)
        super().__init__(api_url, token)
        self._on_notification = on_notification
        self._on_gap = on_gap
        self._link = EventLink(math.inf if give_up_after is None else give_up_after)
        self._first: dict[str, Any] | None = None
        self._dispatching: asyncio.Task[None] | None = None
        self.last_id: int | None = None
        """The id of the last event that was handed out."""
        self.cursor: str | None = None
        """Up to where nothing is missing of what was handed out, from the first subscription on: give it as `since`, also
        in another process."""

    @classmethod
    def over(
        cls,
        http: ServerHTTP,
        types: Iterable[str] | None = None,
        filters: Mapping[str, Any] | None = None,
        since: Since | None = None,
        on_gap: Handler | None = None,
    ) -> Self:
        """A client of a connection that there is; it subscribes as soon as it is entered, or read from."""
        client = cls(on_gap=on_gap)
        client._http = http
        if types is not None:
            client._first = {"notification_types": read_types(types), "filters": read_filters(filters)}
            if since is not None:
                read_since(since, "")
                client._first["since"] = since
        return client

    # -- what it is

    @property
    def state(self) -> State:
        """ "new", "connecting" (also while the server is away), "connected" or "closed"."""
        return self._link.state

    @property
    def connected(self) -> bool:
        """Whether the server is there at this moment."""
        return self._link.state == "connected"

    @property
    def error(self) -> IPFSStreamError | None:
        """What ended it, if not `close`."""
        return self._link.error

    @property
    def missed(self) -> int | None:
        """How many events are lost at the most that the log did not have any more, others' among them; None where nobody
        knows, since it is another log."""
        return self._link.missed

    @property
    def resets(self) -> int:
        """How often the log did not have what was next."""
        return self._link.resets

    @property
    def lagged(self) -> int:
        """How often this client was too slow, so that the server had to read its log again."""
        return self._link.lagged

    def __repr__(self) -> str:
        where = f" to {self._http.server.url}" if self._http is not None else ""
        return f"<NotificationClient{where}: {self.state}>"

    # -- its life

    async def connect(self) -> None:
        """Connect; nothing comes before `subscribe`. Where it is connected already, that is all.

        Raises RetrievalError where no server answers, UnauthorizedError, and NotFoundError for a server without the
        extension. A connection that is lost later on is made again without a word.
        """
        if self.state == "closed":
            raise self._link.over()
        if self.state != "new":
            return
        try:
            await self._link.open(self._find)
        except BaseException:
            await self._release()
            raise
        if self._on_notification is not None:
            self._dispatching = asyncio.create_task(self._dispatch(), name="on_notification")
        if self._first is not None:
            try:
                await self._begin(self._first)
            except BaseException:
                await self.close()
                raise

    async def _begin(self, wanted: dict[str, Any]) -> None:
        """Subscribe for whoever asked for a feed: one that brings nothing would be waited for in vain."""
        answer = await self.subscribe(**wanted)
        if answer.get("invalid_types"):
            raise BadRequestError(no_type(answer["invalid_types"][0]))
        hidden = [str(name) for name in answer.get("unauthorized_types") or ()]
        if not answer["success"] or (
            hidden and NotificationType.ALL_EVENTS not in wanted["notification_types"]
        ):
            raise UnauthorizedError(f"you may not see {', '.join(hidden or wanted['notification_types'])}")

    async def close(self) -> None:
        """End it: nothing comes any more. Idempotent."""
        await self._link.close()
        if self._dispatching and self._dispatching is not asyncio.current_task():  # who may close it, too
            self._dispatching.cancel()
            await asyncio.gather(self._dispatching, return_exceptions=True)
        await self._release()

    async def abandon(self) -> None:
        """End it because the client that it is of ends: whoever reads on is told."""
        self._link.end(BadRequestError("the client of these notifications was closed"))
        await self.close()

    # -- commands

    async def subscribe(
        self,
        notification_types: Iterable[str],
        filters: Mapping[str, Any] | None = None,
        since: Since | None = None,
    ) -> dict[str, Any]:
        """Have events of some types come, or of all by "all_events"; a type that is subscribed to gets the new filters.

        `filters`: what an event must have, such as `{"cid": …, "size": {"gt": 1000}}`. `since`: an event's id, or a
        `cursor`: what came after it comes first. Gives `success`, `subscribed_types`, `invalid_types`,
        `unauthorized_types`, `filters`, and `epoch` and `since`, behind which these events begin.

        Raises BadRequestError for filters that are none, TooLargeError for some 64,000 characters of them,
        RetrievalTimeoutError where the server is away for a minute.
        """
        wanted = read_filters(filters)
        cursor = None if since is None else read_since(since, self._link.positions.epoch)
        answer = await self._link.ask(
            subscribe_command(read_types(notification_types), wanted, cursor),
            CONFIRMED,
            lambda confirmation: self._subscribed(wanted, confirmation),
        )
        taken = answer.get("notification_types") or []
        return {"success": bool(taken), "subscribed_types": taken} | answer

    def _subscribed(self, filters: dict[str, Any], confirmation: dict[str, Any]) -> None:
        """Have the cursor begin where the subscription does, once what came before it is read."""
        self._link.positions.subscribed(filters, confirmation)
        cursor = self._link.positions.cursor
        if cursor is not None and not self._link.inbox.amend(cursor):
            self.cursor = cursor

    async def unsubscribe(self, notification_types: Iterable[str]) -> dict[str, Any]:
        """Have events of some types come no more; gives the server's confirmation."""
        command = {"action": "unsubscribe", "notification_types": read_types(notification_types)}
        return await self._link.ask(command, "unsubscription_confirmed", self._link.positions.unsubscribed)

    async def get_history(
        self, limit: int = 50, notification_type: str | None = None, since: Since | None = None
    ) -> list[dict[str, Any]]:
        """The newest events of the log, at most `limit`, oldest first; with `since` the oldest behind that one.

        A `since` of another log is warned of: then these are the oldest of the log that there is.
        """
        command: dict[str, Any] = {"action": "get_history", "limit": plain(limit, "limit")}
        if notification_type is not None:
            command["notification_type"] = read_type(notification_type)
        if since is not None:
            command["epoch"], command["since"] = read_since(since, self._link.positions.epoch)
        answer = await self._link.ask(command, "history")
        if since is not None and answer.get("epoch", command["epoch"]) != command["epoch"]:
            warnings.warn(
                f"since={since!r} is of another log than there is now, so this history begins with its first event",
                stacklevel=2,
            )
        return list(answer.get("events") or ())

    async def ping(self) -> float:
        """Seconds that the server takes to answer. Raises RetrievalError where it is away, RetrievalTimeoutError where it
        takes more than five."""
        begun = time.perf_counter()
        try:
            await self._link.ask({"action": "ping"}, "pong", seconds=PING_SECONDS)
        except RetrievalTimeoutError:
            if self.connected or self._http is None:
                raise
            raise RetrievalError(f"no server answers at {self._http.server.url}; it is waited for") from None
        return time.perf_counter() - begun

    # -- events

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> dict[str, Any]:
        event = await self._next_for_reader()
        if event is None:
            raise StopAsyncIteration
        return event

    async def get(self, timeout: float | None = None) -> dict[str, Any] | None:  # noqa: ASYNC109  # as queues have it
        """The next event; None where none came in `timeout` seconds. Raises what ended the client."""
        check_seconds("timeout", timeout)
        try:
            async with asyncio.timeout(timeout):
                event = await self._next_for_reader(patient=timeout is None)
        except TimeoutError as error:
            if isinstance(error, IPFSStreamError):
                raise
            return None
        if event is None:
            raise self._link.over()
        return event

    async def _next_for_reader(self, *, patient: bool = True) -> dict[str, Any] | None:
        if self._on_notification is not None:
            raise BadRequestError(
                "on_notification takes the events of this client: make another to loop over"
            )
        if self.state == "new":
            if self._first is None:
                raise BadRequestError(
                    "this notification client is not connected: await client.connect() first"
                )
            await self.connect()
        if patient and self._link.quiet:
            raise BadRequestError(
                "nothing is subscribed to: await client.subscribe(['all_events']) first, or wait by get(timeout=…) for"
                " what the server tells everybody"
            )
        return await self._next()

    async def _next(self) -> dict[str, Any] | None:
        """The next event, gaps on the way told; None after `close`. Raises what ended it otherwise."""
        while (item := await self._link.inbox.get()) is not None:
            message, cursor = item
            self.cursor = cursor or self.cursor
            if message["type"] in GAPS:
                await self._call(self._on_gap, message)
                continue
            if isinstance(message.get("id"), int):
                self.last_id = message["id"]
            return message
        if self.error is not None:
            raise self._link.over()
        return None

    async def _dispatch(self) -> None:
        """Hand the events to on_notification."""
        try:
            while (event := await self._next()) is not None:
                await self._call(self._on_notification, event)
        except IPFSStreamError as error:
            log.error("the notifications of %s have ended: %s", self, error)  # noqa: TRY400  # no bug of ours

    async def _call(self, handler: Handler | None, message: dict[str, Any]) -> None:
        try:
            result = handler(message) if handler is not None else None
            if inspect.isawaitable(result):
                await result
        except Exception:
            log.exception("what was to be told %r failed", message["type"])


def check_handler(name: str, handler: object) -> None:
    """Raise BadRequestError for what cannot be called."""
    if handler is not None and not callable(handler):
        raise BadRequestError(f"{name} is a function of one argument, not {a_kind(handler)}")


def check_seconds(name: str, seconds: object) -> None:
    """Raise BadRequestError for what is no time to wait."""
    if seconds is not None and not (isinstance(seconds, Real) and float(seconds) >= 0):
        raise BadRequestError(f"{name}={seconds!r}: it is a number of seconds, or None")
