"""What is sent at once: encoded messages that all subscribers share who want the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from ipfs_stream_nb.notifications.events import Record

MAX_PACK: Final = 128 << 10
"""Bytes of notifications that are sent at once, where there are several."""


def first_of(records: list[Record]) -> list[Record]:
    """As many of the first records as are sent at once: at least one, where there is one."""
    size = 0
    for count, record in enumerate(records):
        size += len(record.body)
        if size > MAX_PACK and count:
            return records[:count]
    return records


@dataclass(frozen=True, slots=True)
class Pack:
    """Messages in the order in which they are sent."""

    messages: Sequence[tuple[int, bytes]]
    """Each as JSON, with its id; 0 where it has none."""
    events: int
    """How many of them are notifications."""
    size: int
    """Bytes of them all."""
    prev: int = 0
    """The id of the last that has one; what came before where none has."""
    _forms: dict[Callable[[Pack], bytes], bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, records: Iterable[Record], prev: int) -> Pack:
        """Notifications for a subscriber that was sent the event `prev` before."""
        messages = []
        for record in records:
            messages.append((record.id, record.encode(prev)))
            prev = record.id or prev
        return cls(messages, len(messages), sum(len(text) for _, text in messages), prev)

    @classmethod
    def control(cls, message: dict[str, Any]) -> Pack:
        """A message that is no event."""
        text = json.dumps(message, separators=(",", ":")).encode()
        return cls([(0, text)], 0, len(text))

    def form(self, encode: Callable[[Pack], bytes]) -> bytes:
        """As the bytes of a protocol; made once for all subscribers of that protocol."""
        found = self._forms.get(encode)
        if found is None:
            found = self._forms[encode] = encode(self)
        return found


class Outlet(Protocol):
    """A subscriber's connection. It holds at most one pack of a client that does not read."""

    def offer(self, pack: Pack) -> bool:
        """Send it if the last one has left this process, which whoever gets False waits for by `drained`. Never waits.
        Raises ConnectionClosedError."""

    async def drained(self) -> None:
        """Wait until all that was sent has left this process. Raises ConnectionClosedError, also for a client that takes
        nothing for too long: its connection is ended then."""

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """End the connection. Idempotent."""
