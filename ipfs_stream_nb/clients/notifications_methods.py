"""The clients' methods for live events: `notifications`, `notification_history` and `emit`."""

from __future__ import annotations

import asyncio
import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ipfs_stream_nb.clients.http import ServerHTTP
from ipfs_stream_nb.clients.notifications import Handler, NotificationClient, check_handler
from ipfs_stream_nb.clients.notifications_json import plain
from ipfs_stream_nb.clients.notifications_link import State
from ipfs_stream_nb.clients.notifications_positions import Since
from ipfs_stream_nb.clients.results import hinted_methods
from ipfs_stream_nb.clients.transfer_stream import OpenStreams, Run
from ipfs_stream_nb.content.node import Node
from ipfs_stream_nb.display import a_kind
from ipfs_stream_nb.errors import BadRequestError, IPFSStreamError

if TYPE_CHECKING:
    from ipfs_stream_nb.clients.sync import Session

T = TypeVar("T")


@hinted_methods
class NotificationMethods(ABC):
    """The methods of AsyncClient for live events."""

    _http: ServerHTTP
    _streams: OpenStreams

    @property
    @abstractmethod
    def node(self) -> Node:
        """The node interface below this client."""

    def notifications(
        self,
        types: Iterable[str] = ("all_events",),
        filters: Mapping[str, Any] | None = None,
        since: Since | None = None,
        *,
        on_gap: Handler | None = None,
    ) -> NotificationClient:
        """Live events: `async with client.notifications(["content_added"]) as feed: async for event in feed`.

        Each that matches comes once, in order, also across lost connections and restarts of the server. `types`,
        `filters` and `since` are those of `NotificationClient.subscribe`, `on_gap(gap)` that of NotificationClient;
        `feed.subscribe` adds others.

        Raises, on entry or with the first event, BadRequestError, UnauthorizedError for types that you may not see, and
        RetrievalError where no server answers.
        """
        self.node  # noqa: B018  # raises where the client is closed
        return self._streams.add(NotificationClient.over(self._http, types, filters, since, on_gap))

    async def notification_history(
        self, limit: int = 50, notification_type: str | None = None, since: Since | None = None
    ) -> list[dict[str, Any]]:
        """The newest events of the log, at most `limit`, oldest first; with `since` the oldest behind that one.

        `notification_type` is one type. A `since` of another log is warned of: then these are the oldest of the log that
        there is.
        """
        self.node  # noqa: B018  # raises where the client is closed
        async with NotificationClient.over(self._http) as feed:
            return await feed.get_history(limit, notification_type, since)

    async def emit(
        self,
        data: Mapping[str, Any],
        notification_type: str = "custom_event",
        source: str | None = None,
        *,
        keep: bool = True,
        private: bool = False,
    ) -> int | None:
        """Send an event of your own to whoever listens; gives its id once it is committed to the log.

        `data` is a JSON object, in which numpy's numbers, dates, paths and CIDs are converted. `keep=False`: sent to
        whoever listens now, and not kept; gives None. `private`: for you alone, where the server knows its users.

        Raises BadRequestError, TooLargeError (over 64 KiB), UnauthorizedError for types that only the server, or an
        admin, may send.
        """
        self.node  # noqa: B018  # raises where the client is closed
        event = _event(data, notification_type, source, keep=keep, private=private)
        answer = await self._http.json("POST", "ipfs-stream/events", json_body=event)
        number: int | None = answer["id"]
        return number

    async def emit_many(
        self,
        data: Iterable[Mapping[str, Any]],
        notification_type: str = "custom_event",
        source: str | None = None,
        *,
        keep: bool = True,
        private: bool = False,
    ) -> list[int | None]:
        """`emit` for each of up to 256, in one request of up to 1 MB; gives their ids."""
        self.node  # noqa: B018  # raises where the client is closed
        if isinstance(data, Mapping | str | bytes) or not isinstance(data, Iterable):
            raise BadRequestError(f"emit_many takes a list of dictionaries, not {a_kind(data)}")
        events = [_event(each, notification_type, source, keep=keep, private=private) for each in data]
        answer = await self._http.json("POST", "ipfs-stream/events", json_body={"events": events})
        return list(answer["ids"])


def _event(
    data: object, notification_type: object, source: object, *, keep: object, private: object
) -> dict[str, Any]:
    """The body of a request to send one event. Raises BadRequestError."""
    if not isinstance(data, Mapping):
        raise BadRequestError(f"an event's data is a dictionary, not {a_kind(data)}")
    for name, value in (("keep", keep), ("private", private)):
        if not isinstance(value, bool):
            raise BadRequestError(f"{name} is True or False, not {value!r}")
    event = {
        "notification_type": plain(notification_type, "notification_type"),
        "data": plain(data, "data"),
    }
    if source is not None:
        event["source"] = plain(source, "source")
    if not keep:
        event["keep"] = False
    if private:  # an older server does not know it
        event["private"] = True
    return event


class BlockingNotifications(Iterator[dict[str, Any]]):
    """Live events: `with client.notifications() as feed: for event in feed`, or `feed.get(timeout=5)`.

    Each that matches comes once, in order, also across lost connections and restarts of the server. Ctrl-C ends the
    wait, and nothing is lost by it.
    """

    def __init__(self, run: Run, feed: NotificationClient) -> None:
        self._run = run
        self._feed = feed

    def __enter__(self) -> Self:
        self._run(self._feed.__aenter__)
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> dict[str, Any]:
        event: dict[str, Any] | None = self._run(lambda: _next(self._feed))
        if event is None:
            raise StopIteration
        return event

    def __repr__(self) -> str:
        return repr(self._feed)

    def get(self, timeout: float | None = None) -> dict[str, Any] | None:
        """The next event; None where none came in `timeout` seconds. Raises what ended the feed."""
        event: dict[str, Any] | None = self._run(lambda: self._feed.get(timeout))
        return event

    def subscribe(
        self,
        notification_types: Iterable[str],
        filters: Mapping[str, Any] | None = None,
        since: Since | None = None,
    ) -> dict[str, Any]:
        """Have events of more types come, or with other filters: see `NotificationClient.subscribe`."""
        answer: dict[str, Any] = self._run(lambda: self._feed.subscribe(notification_types, filters, since))
        return answer

    def unsubscribe(self, notification_types: Iterable[str]) -> dict[str, Any]:
        """Have events of some types come no more; gives the server's confirmation."""
        answer: dict[str, Any] = self._run(lambda: self._feed.unsubscribe(notification_types))
        return answer

    def get_history(
        self, limit: int = 50, notification_type: str | None = None, since: Since | None = None
    ) -> list[dict[str, Any]]:
        """The newest events of the log, at most `limit`, oldest first; with `since` the oldest behind that one."""
        events: list[dict[str, Any]] = self._run(
            lambda: self._feed.get_history(limit, notification_type, since)
        )
        return events

    def ping(self) -> float:
        """Seconds that the server takes to answer. Raises RetrievalError where it is away, RetrievalTimeoutError where it
        takes more than five."""
        seconds: float = self._run(self._feed.ping)
        return seconds

    def close(self) -> None:
        """End it: nothing comes any more. Idempotent."""
        with suppress(BadRequestError):  # the client was closed, which ended it
            self._run(self._feed.close)

    @property
    def state(self) -> State:
        """ "new", "connecting" (also while the server is away), "connected" or "closed"."""
        return self._feed.state

    @property
    def connected(self) -> bool:
        """Whether the server is there at this moment."""
        return self._feed.connected

    @property
    def last_id(self) -> int | None:
        """The id of the last event that was handed out."""
        return self._feed.last_id

    @property
    def cursor(self) -> str | None:
        """Up to where nothing is missing of what was handed out, from the first subscription on: give it as `since`, also
        in another process."""
        return self._feed.cursor

    @property
    def error(self) -> IPFSStreamError | None:
        """What ended it, if not `close`."""
        return self._feed.error

    @property
    def missed(self) -> int | None:
        """How many events are lost at the most that the log did not have any more, others' among them; None where nobody
        knows, since it is another log."""
        return self._feed.missed

    @property
    def resets(self) -> int:
        """How often the log did not have what was next."""
        return self._feed.resets

    @property
    def lagged(self) -> int:
        """How often this client was too slow, so that the server had to read its log again."""
        return self._feed.lagged


async def _next(feed: NotificationClient) -> dict[str, Any] | None:
    return await anext(feed, None)


@hinted_methods
class BlockingNotificationMethods(ABC):
    """The methods of Client for live events."""

    @property
    @abstractmethod
    def _session(self) -> Session:
        """The client's connection."""

    @abstractmethod
    def _run(self, method: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        """Call a method of the AsyncClient on its loop, and wait."""

    def notifications(
        self,
        types: Iterable[str] = ("all_events",),
        filters: Mapping[str, Any] | None = None,
        since: Since | None = None,
        *,
        on_gap: Handler | None = None,
    ) -> BlockingNotifications:
        """Live events: `with client.notifications(["content_added"]) as feed: for event in feed`.

        Each that matches comes once, in order, also across lost connections and restarts of the server. `types`,
        `filters` and `since` are those of `NotificationClient.subscribe`; `feed.get(timeout=5)` waits so long for one.
        `on_gap(gap)` is told of what the log has lost, as that of NotificationClient, in a thread of its own while the
        next event is waited for; `feed.missed` counts it.

        Raises, on entry or with the first event, BadRequestError, UnauthorizedError for types that you may not see, and
        RetrievalError where no server answers.
        """
        session = self._session
        feed = session.client.notifications(types, filters, since, on_gap=_in_a_thread(on_gap))
        return BlockingNotifications(session.loop.run, feed)

    def notification_history(
        self, limit: int = 50, notification_type: str | None = None, since: Since | None = None
    ) -> list[dict[str, Any]]:
        """The newest events of the log, at most `limit`, oldest first; with `since` the oldest behind that one.

        `notification_type` is one type. A `since` of another log is warned of: then these are the oldest of the log that
        there is.
        """
        return self._run(NotificationMethods.notification_history, limit, notification_type, since)

    def emit(
        self,
        data: Mapping[str, Any],
        notification_type: str = "custom_event",
        source: str | None = None,
        *,
        keep: bool = True,
        private: bool = False,
    ) -> int | None:
        """Send an event of your own to whoever listens; gives its id once it is committed to the log.

        `data` is a JSON object, in which numpy's numbers, dates, paths and CIDs are converted. `keep=False`: sent to
        whoever listens now, and not kept; gives None. `private`: for you alone, where the server knows its users.

        Raises BadRequestError, TooLargeError (over 64 KiB), UnauthorizedError for types that only the server, or an
        admin, may send.
        """
        return self._run(
            NotificationMethods.emit, data, notification_type, source, keep=keep, private=private
        )

    def emit_many(
        self,
        data: Iterable[Mapping[str, Any]],
        notification_type: str = "custom_event",
        source: str | None = None,
        *,
        keep: bool = True,
        private: bool = False,
    ) -> list[int | None]:
        """`emit` for each of up to 256, in one request of up to 1 MB; gives their ids."""
        return self._run(
            NotificationMethods.emit_many, data, notification_type, source, keep=keep, private=private
        )


def _in_a_thread(on_gap: Handler | None) -> Handler | None:
    """A function of the user's called beside the client's event loop, which it may use."""
    check_handler("on_gap", on_gap)
    if on_gap is None:
        return None
    if inspect.iscoroutinefunction(on_gap):
        raise BadRequestError("on_gap of a blocking client is a function, not a coroutine function")
    return lambda gap: asyncio.to_thread(on_gap, gap)
