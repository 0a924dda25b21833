"""What the manager needs of a log of events. Two implementations: log.SQLiteEngine and jetstream.JetStreamEngine."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Final, Protocol

from ipfs_stream_nb.notifications.events import Event, Record

MAX_EVENTS: Final = 100_000
"""Events that a log keeps by default."""
MAX_AGE: Final = 7 * 86400.0
"""Seconds for which it keeps them."""
MAX_BYTES: Final = 256 << 20
"""Bytes that it takes."""
PAGE_BYTES: Final = 1 << 20
"""Bytes of events that are read at once."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a log holds."""

    epoch: str
    """Names this log: letters, digits and `.`, `_`; another one once ids begin anew. Ids of two epochs cannot be compared."""
    first: int
    """The oldest id that is there; `last + 1` where there is none."""
    last: int
    """The newest id, 0 before the first event."""


class EpochChangedError(Exception):
    """The log began anew: what was subscribed to is no more."""


class Engine(Protocol):
    """A log of events: what it says is published is committed. Methods raise StoreError where the log cannot be used.

    Safe for one event loop; nothing in it blocks the loop.
    """

    async def open(self) -> None:
        """Open or make the log. A log that is damaged is set aside, and another epoch begun."""

    async def close(self) -> None:
        """Commit what is being published, end all subscriptions, release everything. Idempotent."""

    async def publish(self, event: Event) -> int:
        """Its id, once it is committed. Concurrent calls are committed together, in the order of the calls.

        Raises StoreError where that cannot be done, BusyError where too much waits already."""

    async def announce(self, event: Event) -> None:
        """Send to who is subscribed now, without keeping it: it gets no id."""

    def subscribe(self, since: int) -> AsyncGenerator[list[Record], None]:
        """All events after the id `since`, in order and in batches, then what comes, none missing and none twice;
        what is announced meanwhile comes with id 0. Waits for ever. Where events after `since` are trimmed, it begins
        with the oldest there is. Raises EpochChangedError, StoreError."""

    async def read(self, after: int, limit: int, max_bytes: int = PAGE_BYTES) -> list[Record]:
        """The oldest events after the id `after`, at most `limit`, and where there are several no more than `max_bytes` of
        their bodies, in order; none where there are none."""

    async def read_back(self, before: int, limit: int, max_bytes: int = PAGE_BYTES) -> list[Record]:
        """The newest events below the id `before`, at most as many, in order of their ids."""

    async def trim(self) -> None:
        """Drop from its front what is over the limits of size and age."""

    async def bounds(self) -> Bounds:
        """What it holds."""

    def take_setbacks(self) -> list[str]:
        """What went wrong with the log since the last call, as texts for people: a damaged log that was set aside."""
