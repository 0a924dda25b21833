"""What a conversation needs of the socket below it, and what all conversations do alike."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

from ipfs_stream_nb.content.cid import CID, BytesLike
from ipfs_stream_nb.errors import (
    BadRequestError,
    IPFSStreamError,
    TooLargeError,
    UnauthorizedError,
    error_json,
)
from ipfs_stream_nb.security.access import Action

MAX_TEXT: Final = 64 << 10
"""Characters of a text message."""

PATH_CHARACTERS: Final = 8192

NORMAL: Final = 1000
POLICY: Final = 1008
TOO_BIG: Final = 1009
INTERNAL: Final = 1011
"""Close codes (RFC 6455, section 7.4.1)."""
MAX_REASON: Final = 120
"""Bytes of a close reason: a control frame has 125."""

Authorize = Callable[[Action, CID | None], Awaitable[None]]
"""Raises UnauthorizedError where the user may not do that."""


class ConnectionClosedError(Exception):
    """The other side has gone, or stands still for too long."""


class Connection(Protocol):
    """A socket of messages. Sending waits until there is room, so that a slow reader holds up its own sender alone."""

    async def send_json(self, message: dict[str, Any]) -> None:
        """Send a text message. Raises ConnectionClosedError."""

    async def send_all(self, messages: Sequence[BytesLike]) -> int:
        """Send each as a binary message of its own; how many, of a slow client's only some, of which the last may be on
        its way still: the rest is for the caller to let go of until `drained`. Raises ConnectionClosedError."""

    async def drained(self) -> None:
        """Wait until all that was sent has left this process. Raises ConnectionClosedError."""

    async def receive(self) -> str | bytes:
        """The next message. Raises ConnectionClosedError; nothing is lost where the wait is cancelled."""

    async def close(self, code: int = NORMAL, reason: str = "") -> None:
        """Begin the closing handshake. Idempotent."""

    def failed(self, error: Exception) -> None:
        """Be told of what a transfer failed with; what is no IPFSStreamError is logged there."""


async def refuse(connection: Connection, error: Exception, **fields: Any) -> None:
    """End a connection with an error: its message, then the close code that goes with it."""
    connection.failed(error)
    with suppress(ConnectionClosedError):
        await connection.send_json(error_message(error) | fields)
        await connection.close(close_code(error), close_reason(error))


def read_json(text: str | bytes, what: str) -> dict[str, Any]:
    """A text message as a JSON object. Raises BadRequestError; `what` was due."""
    if isinstance(text, bytes):
        raise BadRequestError(f"a binary message of {len(text)} bytes came where {what} was due, a JSON text")
    if len(text) > MAX_TEXT:
        raise TooLargeError(f"the message has {len(text)} characters; at most {MAX_TEXT} are taken")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise BadRequestError(f"the message is not JSON: {text[:80]!r}; {what} was due") from None
    if not isinstance(value, dict):
        raise BadRequestError(f"a message is a JSON object, not {text[:80]!r}; {what} was due")
    return value


def error_message(error: Exception) -> dict[str, Any]:
    """The protocol's error message; an internal error's own text stays with us."""
    if isinstance(error, IPFSStreamError) and error.code != "internal":
        return error.to_json()
    return error_json("internal", "an internal error; the server's log has the details")


def close_code(error: Exception) -> int:
    """The close code that goes with an error which ends a connection."""
    if isinstance(error, TooLargeError) or getattr(error, "code", "") == "quota_exceeded":
        return TOO_BIG
    if isinstance(error, UnauthorizedError) or (isinstance(error, IPFSStreamError) and error.status < 500):
        return POLICY
    return INTERNAL


def close_reason(error: Exception) -> str:
    """An error's text as a close reason, cut to what a frame takes."""
    text = str(error_message(error)["error"])
    return text.encode()[:MAX_REASON].decode(errors="ignore")


def integer(message: dict[str, Any], name: str, *, default: int | None = None) -> int | None:
    """A field that is a whole number of 0 or more. Raises BadRequestError."""
    value = message.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise BadRequestError(f"{name} is a whole number of 0 or more, not {shown(value)}")
    return value


def text(message: dict[str, Any], name: str, most: int, *, default: str = "") -> str:
    """A field that is text of at most `most` characters, without control characters. Raises BadRequestError."""
    value = message.get(name)
    if value is None:
        return default
    if not isinstance(value, str):
        raise BadRequestError(f"{name} is text, not {shown(value)}")
    if len(value) > most:
        raise BadRequestError(f"{name} has {len(value)} characters; at most {most} are taken")
    if any(ord(character) < 32 or 0x7F <= ord(character) < 0xA0 for character in value):
        raise BadRequestError(f"{name} has control characters: {value[:80]!r}")
    check_unicode(value, name)
    return value


def content_path(message: dict[str, Any]) -> str:
    """The `path` or `cid` that a message names. Raises BadRequestError."""
    path = message.get("path", message.get("cid"))
    if not isinstance(path, str) or not path:
        raise BadRequestError("path or cid is missing, or is not text")
    if len(path) > PATH_CHARACTERS:
        raise BadRequestError(f"the path has {len(path)} characters; at most {PATH_CHARACTERS} are taken")
    check_unicode(path, "the path")
    return path


def check_unicode(value: str, name: str) -> None:
    """Raise BadRequestError for half a surrogate pair, which JSON can spell and UTF-8 cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRequestError(f"{name} has half a surrogate pair: {value[:80]!r}") from None


def shown(value: object) -> str:
    """A value of a message as an error names it. Lists and objects may be deep, and are only named."""
    return f"a {type(value).__name__}" if isinstance(value, (list, dict)) else repr(str(value)[:80])
