"""What stands in the messages of a feed over NATS: events, JetStream's acknowledgements, and its answers to requests."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final, NoReturn, Protocol

from ipfs_stream_nb.errors import StoreError
from ipfs_stream_nb.notifications.events import EVENT_TYPES, MAX_EVENT, Event, Record

OWNER: Final = "Ipfs-Stream-Nb-Owner"
"""The header that names an event's owner, as a JSON string in ASCII: a header holds no line breaks, and is trimmed."""
MESSAGE_ID: Final = "Nats-Msg-Id"
"""The header by which JetStream knows a message that it has already."""
SIZE: Final = "Nats-Msg-Size"
"""The header that says how large a message is which is delivered without its payload."""
STATUS: Final = "Status"
NO_RESPONDERS: Final = "503"
NO_STREAM: Final = 10059
"""JetStream's code for a stream that is not there."""

_TYPES: Final = frozenset(kind.value for kind in EVENT_TYPES)
_KINDS: Final = frozenset({"notification", "system_notification"})
_REQUIRED: Final = frozenset({"type", "notification_type", "data", "timestamp"})
_KEYS: Final = _REQUIRED | {"source"}
_NOTHING: Final = b'{"type":"notification","notification_type":"","data":{}'


class Message(Protocol):
    """Of nats-py's Msg what is used here."""

    subject: str
    reply: str
    data: bytes
    headers: dict[str, str] | None


class AwayError(StoreError):
    """Nobody answers at present: trying again may help."""


class RefusedByJetStreamError(StoreError):
    """JetStream answered that it will not. `err_code` is its own number for the reason."""

    def __init__(self, text: str, err_code: int) -> None:
        super().__init__(text)
        self.err_code = err_code


def encoded(event: Event) -> tuple[bytes, dict[str, str]]:
    """An event as payload and headers. The payload is its whole JSON, so that other programs can read it and write it."""
    return event.body + b"}", {} if event.owner is None else {OWNER: json.dumps(event.owner)}


def record_of(seq: int, data: bytes, headers: Mapping[str, str] | None) -> Record:
    """The event in a message; what is none, or only nearly one, becomes a record that nobody is shown: see nothing."""
    try:
        owner = json.loads(headers[OWNER]) if headers and OWNER in headers else None
        if len(data) > MAX_EVENT or b"\n" in data or b"\r" in data or not data.endswith(b"}"):
            return nothing(seq)
        message = json.loads(data.decode(), parse_constant=_no_number)
        if not (isinstance(message, dict) and _REQUIRED <= message.keys() <= _KEYS):
            return nothing(seq)
        kind, name, moment = message["type"], message["notification_type"], message["timestamp"]
        fine = (
            kind in _KINDS
            and name in _TYPES
            and isinstance(message["data"], dict)
            and isinstance(message.get("source", ""), str)
            and (owner is None or isinstance(owner, str))
            and isinstance(moment, (int, float))
            and not isinstance(moment, bool)
            and math.isfinite(moment)
        )
    except (ValueError, TypeError, OverflowError, RecursionError):
        return nothing(seq)
    return Record(seq, name, owner, kind, float(moment), data[:-1]) if fine else nothing(seq)


def size_of(seq: int, _data: bytes, headers: Mapping[str, str] | None) -> tuple[int, int]:
    """A message's id, and how many bytes its record's body has at most, where it is delivered without its payload."""
    return seq, max(int((headers or {}).get(SIZE, 0)) - 1, len(_NOTHING))


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def nothing(seq: int) -> Record:
    """Stands for what holds no event, so that ids have no gap. Its type is "": nobody can subscribe to that or may see it."""
    return Record(seq, "", None, "notification", 0.0, _NOTHING)


def place(reply: str) -> tuple[int, int]:
    """Where a delivered message stands in the stream and in the consumer: its reply is
    `$JS.ACK.stream.consumer.delivered.stream_seq.consumer_seq.…`, with a domain and an account behind ACK where the server
    puts them there. Raises ValueError for what is no such reply."""
    parts = reply.split(".")
    if parts[:2] != ["$JS", "ACK"] or len(parts) < 9:
        raise ValueError("not a message that JetStream delivered")
    at = 5 if len(parts) == 9 else 7
    return int(parts[at]), int(parts[at + 1])


def status_of(message: Message) -> str | None:
    """The status that a server sends in place of a message."""
    return message.headers.get(STATUS) if message.headers and not message.reply and not message.data else None


def answer_of(message: Message) -> dict[str, Any]:
    """JetStream's answer. Raises AwayError where it is not there, RefusedByJetStreamError where it says no."""
    if status_of(message) == NO_RESPONDERS:
        raise AwayError(
            "the NATS server runs without JetStream, or has no stream for the feed: start it with `nats-server -js`, and "
            "enable JetStream for the account"
        )
    try:
        answer = json.loads(message.data)
        error = answer.get("error")
    except (ValueError, AttributeError):
        raise StoreError("NATS answered with something that is not JetStream's") from None
    if error is None:
        return dict(answer)
    text, code = str(error.get("description", "no reason was given")), int(error.get("err_code", 0))
    raise RefusedByJetStreamError(f"JetStream refuses it: {text} (its error {code})", code)
