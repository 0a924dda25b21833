"""What an event is: the guide's types, what an emitter gives, and what the log keeps of it."""

from __future__ import annotations

import difflib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Literal

from ipfs_stream_nb.errors import BadRequestError, TooLargeError

MAX_EVENT: Final = 64 << 10
"""Bytes of one event's JSON."""
MAX_DEPTH: Final = 64
"""Lists and objects in one another in an event's data: whoever parses it has a stack."""
MAX_SOURCE: Final = 200
"""Characters of an event's source."""
SOURCE: Final = "ipfs_stream_nb"
"""The source of what this package emits itself."""

Kind = Literal["notification", "system_notification"]


class NotificationType(StrEnum):
    """Types of events that can be sent or subscribed to (guide, "Notification Types"; items 74 to 93)."""

    CONTENT_ADDED = "content_added"
    CONTENT_RETRIEVED = "content_retrieved"
    CONTENT_REMOVED = "content_removed"
    PIN_ADDED = "pin_added"
    PIN_REMOVED = "pin_removed"
    PIN_PROGRESS = "pin_progress"
    PIN_STATUS_CHANGED = "pin_status_changed"
    WEBRTC_CONNECTION_CREATED = "webrtc_connection_created"
    WEBRTC_CONNECTION_ESTABLISHED = "webrtc_connection_established"
    WEBRTC_CONNECTION_CLOSED = "webrtc_connection_closed"
    WEBRTC_STREAM_STARTED = "webrtc_stream_started"
    WEBRTC_STREAM_ENDED = "webrtc_stream_ended"
    WEBRTC_QUALITY_CHANGED = "webrtc_quality_changed"
    WEBRTC_ERROR = "webrtc_error"
    SYSTEM_METRICS = "system_metrics"
    SYSTEM_WARNING = "system_warning"
    SYSTEM_ERROR = "system_error"
    SYSTEM_INFO = "system_info"
    CUSTOM_EVENT = "custom_event"
    ALL_EVENTS = "all_events"
    """To subscribe to all of them; no event is of this type."""


EVENT_TYPES: Final = tuple(t for t in NotificationType if t is not NotificationType.ALL_EVENTS)
"""The types that an event can have."""


@dataclass(frozen=True, slots=True)
class Event:
    """What an emitter gives. `data` is JSON; it is encoded once, when the event is made, so it may be changed later on.

    Raises BadRequestError for what is no event type or no JSON object, TooLargeError over MAX_EVENT.
    """

    notification_type: NotificationType
    data: Mapping[str, Any]
    source: str | None = None
    owner: str | None = None
    """The user whose event it is, whom alone it is shown to; None: whoever may see its type."""
    kind: Kind = "notification"
    """The wire's `type`: a system_notification goes to all who are connected."""
    timestamp: float = field(default_factory=time.time)
    """Seconds since the epoch."""
    body: bytes = field(init=False, repr=False)
    """The event's JSON object without its end: `id` and `prev` follow, which each subscriber has its own of."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "notification_type", event_type(self.notification_type))
        object.__setattr__(self, "body", self._encoded())

    def _encoded(self) -> bytes:
        if not isinstance(self.data, Mapping):
            raise BadRequestError(f"an event's data is a JSON object, not a {type(self.data).__name__}")
        if self.source is not None and not (isinstance(self.source, str) and len(self.source) <= MAX_SOURCE):
            raise BadRequestError(f"an event's source is text of at most {MAX_SOURCE} characters")
        if _depth(self.data) > MAX_DEPTH:
            raise BadRequestError(f"the event's data is nested more than {MAX_DEPTH} lists and objects deep")
        message = {
            "type": self.kind,
            "notification_type": self.notification_type.value,
            "data": dict(self.data),
            "timestamp": self.timestamp,
        }
        if self.source is not None:
            message["source"] = self.source
        try:
            body = json.dumps(message, allow_nan=False, separators=(",", ":")).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise BadRequestError(
                f"an event's data must be JSON (text, finite numbers, true, false, null, lists, objects): {error}"
            ) from None
        if len(body) > MAX_EVENT:
            raise TooLargeError(f"the event has {len(body)} bytes of JSON; at most {MAX_EVENT} are taken")
        return body[:-1]


def no_type(name: object, types: Iterable[str] = NotificationType) -> str:
    """What to say of what is none of the types, with the one that may have been meant."""
    known, shown = [str(kind) for kind in types], str(name)[:80]
    close = difflib.get_close_matches(shown, known, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"these are: {', '.join(known)}"
    return f"{shown!r} is no notification type; {hint}"


def _depth(value: object) -> int:
    """How many lists and objects are in one another, counted no further than it matters."""
    depth, layer = 0, [value]
    while layer and depth <= MAX_DEPTH:
        nested = [each for each in layer if isinstance(each, (Mapping, list, tuple))]
        layer = [inner for each in nested for inner in (each.values() if isinstance(each, Mapping) else each)]
        depth += bool(nested)
    return depth


def event_type(name: object) -> NotificationType:
    """The type that an event may have. Raises BadRequestError."""
    try:
        found = NotificationType(name)  # type: ignore[arg-type]
    except (ValueError, TypeError):
        raise BadRequestError(no_type(name, EVENT_TYPES)) from None
    if found is NotificationType.ALL_EVENTS:
        raise BadRequestError("all_events is for subscribing; an event has one of the other types")
    return found


@dataclass(frozen=True, slots=True)
class Record:
    """An event as it goes to subscribers: `body` as in Event."""

    id: int
    """Dense and rising in one epoch, from 1; 0 for what is not kept in the log."""
    notification_type: str
    owner: str | None
    kind: str
    timestamp: float
    body: bytes

    @classmethod
    def of(cls, event: Event, id: int = 0) -> Record:  # noqa: A002  # the protocol's word
        """The record of an event."""
        return cls(id, event.notification_type.value, event.owner, event.kind, event.timestamp, event.body)

    def message(self) -> dict[str, Any]:
        """The notification as a dictionary, parsed anew each time, with its `id` where it has one."""
        parsed: dict[str, Any] = json.loads(self.body + b"}")
        return parsed | ({"id": self.id} if self.id else {})

    def encode(self, prev: int) -> bytes:
        """The notification as a subscriber gets it that was sent the event `prev` before."""
        return b'%b,"id":%d,"prev":%d}' % (self.body, self.id, prev) if self.id else self.body + b"}"
