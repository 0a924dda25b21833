"""The clients' methods for live events: `notifications`, `notification_history` and `emit`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ipfs_stream_nb.clients.http import ServerHTTP
from ipfs_stream_nb.clients.notifications import NotificationClient
from ipfs_stream_nb.clients.notifications_link import State
from ipfs_stream_nb.clients.notifications_positions import Since
from ipfs_stream_nb.clients.results import hinted_methods
from ipfs_stream_nb.clients.transfer_stream import OpenStreams, Run
from ipfs_stream_nb.content.node import Node
from ipfs_stream_nb.errors import BadRequestError

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
    ) -> NotificationClient:
        """Live events: `async with client.notifications(["content_added"]) as feed: async for event in feed`.

        Each that matches comes once, in order, also across lost connections and restarts of the server. `types`,
        `filters` and `since` are those of `NotificationClient.subscribe`; `feed.subscribe` adds others.

        Raises, on entry or with the first event, UnauthorizedError, and RetrievalError where no server answers.
        """
        self.node  # noqa: B018  # raises where the client is closed
        return self._streams.add(NotificationClient.over(self._http, types, filters, since))

    async def notification_history(
        self, limit: int = 50, notification_type: str | None = None, since: Since | None = None
    ) -> list[dict[str, Any]]:
        """The newest events of the log, at most `limit`, oldest first; with `since` the oldest behind that one."""
        self.node  # noqa: B018  # raises where the client is closed
        async with NotificationClient.over(self._http) as feed:
            return await feed.get_history(limit, notification_type, since)

    async def emit(
        self,
        data: Mapping[str, Any],
        notification_type: str = "custom_event",
        source: str | None = None,
    ) -> int:
        """Send an event of your own to whoever listens; gives its id once it is committed to the log.

        `data` is a JSON object. Raises BadRequestError, TooLargeError (over 64 KiB), UnauthorizedError for types that
        only the server, or an admin, may send.
        """
        self.node  # noqa: B018  # raises where the client is closed
        if not isinstance(data, Mapping):
            raise BadRequestError(f"an event's data is a dictionary, not a {type(data).__name__}")
        body: dict[str, Any] = {"notification_type": notification_type, "data": dict(data)}
        if source is not None:
            body["source"] = source
        answer = await self._http.json("POST", "ipfs-stream/events", json_body=body)
        return int(answer["id"])


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
        """Seconds that the server takes to answer."""
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
        """Up to where nothing is missing of what was handed out: give it as `since`, also in another process."""
        return self._feed.cursor

    @property
    def missed(self) -> int:
        """How many events are lost at the most that the log did not have any more; others' are among them."""
        return self._feed.missed


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
    ) -> BlockingNotifications:
        """Live events: `with client.notifications(["content_added"]) as feed: for event in feed`.

        Each that matches comes once, in order, also across lost connections and restarts of the server. `types`,
        `filters` and `since` are those of `NotificationClient.subscribe`; `feed.get(timeout=5)` waits so long for one.

        Raises, on entry or with the first event, UnauthorizedError, and RetrievalError where no server answers.
        """
        session = self._session
        return BlockingNotifications(session.loop.run, session.client.notifications(types, filters, since))

    def notification_history(
        self, limit: int = 50, notification_type: str | None = None, since: Since | None = None
    ) -> list[dict[str, Any]]:
        """The newest events of the log, at most `limit`, oldest first; with `since` the oldest behind that one."""
        return self._run(NotificationMethods.notification_history, limit, notification_type, since)

    def emit(
        self,
        data: Mapping[str, Any],
        notification_type: str = "custom_event",
        source: str | None = None,
    ) -> int:
        """Send an event of your own to whoever listens; gives its id once it is committed to the log.

        `data` is a JSON object. Raises BadRequestError, TooLargeError (over 64 KiB), UnauthorizedError for types that
        only the server, or an admin, may send.
        """
        return self._run(NotificationMethods.emit, data, notification_type, source)
