"""`/ws/upload`: a file on its way from a client, in frames of any size."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from ipfs_stream_nb.content.blocks.pins import MAX_NAME
from ipfs_stream_nb.content.node import Node
from ipfs_stream_nb.content.upload_handler import UNNAMED, IPFSUploadHandler
from ipfs_stream_nb.errors import (
    BadRequestError,
    RetrievalTimeoutError,
    TooLargeError,
)
from ipfs_stream_nb.transports.connection import (
    Connection,
    ConnectionClosedError,
    integer,
    read_json,
    refuse,
    shown,
    text,
)
from ipfs_stream_nb.transports.watching import NOBODY, Watcher

T = TypeVar("T")

PROGRESS_SECONDS: Final = 0.1
"""Seconds between two progress messages of an upload, at the least."""
IDLE_CHECKPOINT: Final = 0.5
"""Seconds without a frame after which what came is made durable."""
MAX_NAME_CHARACTERS: Final = min(1024, MAX_NAME)
MAX_MIME: Final = 256
MAX_PROFILE: Final = 64
_DUE: Final = 'the metadata, such as {"filename": "clip.mp4", "size": 1048576}'


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """What a client may do."""

    max_size: int
    """Bytes of one file."""
    idle_timeout: float
    """Seconds without a frame after which the connection is closed; the upload can be resumed."""


def open_upload(ipfs_api: Node, facts: dict[str, Any], limits: UploadLimits) -> IPFSUploadHandler:
    """The handler for an upload's metadata. Raises BadRequestError, TooLargeError."""
    size = integer(facts, "size")
    if size is not None and size > limits.max_size:
        raise TooLargeError(f"the file has {size} bytes; at most {limits.max_size} are taken")
    upload_id = facts.get("upload_id")
    if upload_id is not None and not isinstance(upload_id, str):
        raise BadRequestError(f"upload_id is text, not {shown(upload_id)}")
    return IPFSUploadHandler(
        ipfs_api,
        filename=text(facts, "filename", MAX_NAME_CHARACTERS) or UNNAMED,
        total_bytes=size,
        mime_type=text(facts, "mime_type", MAX_MIME),
        profile=text(facts, "cid_profile", MAX_PROFILE) or None,
        upload_id=upload_id,
    )


def check_room(handler: IPFSUploadHandler, more: int, limits: UploadLimits) -> None:
    """Raise TooLargeError where a file would pass the limit."""
    if handler.bytes_processed + more > limits.max_size:
        raise TooLargeError(f"the file has over {limits.max_size} bytes, the most that are taken")


async def patiently(
    coming: Callable[[], Coroutine[Any, Any, T]], limit: float, checkpoint: Callable[[], Awaitable[None]]
) -> T:
    """What `coming` gives; `checkpoint` is done where that takes IDLE_CHECKPOINT.

    Raises RetrievalTimeoutError where it takes `limit` seconds.
    """
    try:
        async with asyncio.timeout(min(IDLE_CHECKPOINT, limit)):
            return await coming()
    except TimeoutError:
        await checkpoint()
    try:
        async with asyncio.timeout(limit):
            return await coming()
    except TimeoutError:
        raise RetrievalTimeoutError(
            f"nothing came for {limit:g} s; resume the upload with its upload_id"
        ) from None


class UploadConversation:
    """`WS /ws/upload`, for one connection."""

    def __init__(
        self, connection: Connection, ipfs_api: Node, limits: UploadLimits, watcher: Watcher = NOBODY
    ) -> None:
        """`watcher` is told of the upload."""
        self._watch = watcher.upload()
        self._connection = connection
        self._api = ipfs_api
        self._limits = limits
        self._handler: IPFSUploadHandler | None = None
        self._pin = True
        self._told = time.monotonic()
        self._told_at = (-1, -1)
        """What the last progress message said: bytes and durable bytes."""

    async def run(self) -> None:
        """Take one file. A connection that ends before the file is whole leaves the upload to be resumed."""
        try:
            while not await self._step():
                pass
        except ConnectionClosedError:
            raise
        except Exception as error:  # noqa: BLE001  # told to the client, and noted by the connection
            if self._handler is not None:
                self._watch.failed(error)
            await refuse(self._connection, error, **self._with_id({}))
        finally:
            if self._handler is not None:
                await self._handler.suspend()

    def _with_id(self, message: dict[str, Any]) -> dict[str, Any]:
        known = self._handler and self._handler.upload_id
        return message | ({"upload_id": known} if known else {})

    async def _step(self) -> bool:
        """Take one message; whether the conversation is over. What is wrong with the message alone is answered."""
        message = await self._next()
        try:
            if isinstance(message, bytes):
                return await self._binary(message)
            return await self._text(message)
        except BadRequestError as error:
            await self._connection.send_json(self._with_id(error.to_json()))
            return False

    async def _next(self) -> str | bytes:
        """The next message; while none comes, what came is made durable."""

        async def checkpoint() -> None:
            if self._handler is not None:
                await self._handler.checkpoint()
                await self._tell(due=True)

        return await patiently(self._connection.receive, self._limits.idle_timeout, checkpoint)

    async def _text(self, message: str) -> bool:
        facts = read_json(message, _DUE if self._handler is None else 'binary frames or {"type": "complete"}')
        kind = facts.get("type", facts.get("command"))
        if self._handler is None:
            if kind not in (None, "metadata"):
                raise BadRequestError(f"{shown(kind)} came where {_DUE} was due")
            await self._begin(facts)
            return False
        if kind == "complete":
            return await self._finish()
        if kind == "cancel":
            await self._handler.abort()
            await self._connection.send_json(
                {"type": "cancelled", "upload_id": self._handler.upload_id, "timestamp": time.time()}
            )
            await self._connection.close()
            return True
        raise BadRequestError(
            f"{shown(kind)} is no message of an upload: binary frames, complete and cancel are"
        )

    async def _begin(self, facts: dict[str, Any]) -> None:
        pin = facts.get("pin", True)
        if not isinstance(pin, bool):
            raise BadRequestError(f"pin is true or false, not {shown(pin)}")
        handler = open_upload(self._api, facts, self._limits)
        offset = await handler.start()
        self._handler, self._pin = handler, pin
        await self._connection.send_json(
            {"type": "ready", "upload_id": handler.upload_id, "offset": handler.bytes_processed or offset}
        )

    async def _binary(self, data: bytes) -> bool:
        handler = self._handler
        if handler is None:
            raise BadRequestError(f"a binary message of {len(data)} bytes came where {_DUE} was due")
        if not data:
            return await self._finish()
        try:
            check_room(handler, len(data), self._limits)
        except TooLargeError:
            await handler.abort()
            raise
        await handler.add_chunk(data)
        await self._tell(due=time.monotonic() - self._told >= PROGRESS_SECONDS)
        return False

    async def _tell(self, *, due: bool) -> None:
        """Send progress where it is due, and says something new."""
        handler = self._handler
        if handler is None or not due:
            return
        now_at = (handler.bytes_processed, handler.durable)
        self._told = time.monotonic()
        if now_at != self._told_at:
            self._told_at = now_at
            self._watch.progress(progress := handler.get_progress())
            with suppress(ConnectionClosedError):  # what came before the client left is still taken
                await self._connection.send_json(progress)

    async def _finish(self) -> bool:
        assert self._handler is not None  # noqa: S101  # asked before
        result = await self._handler.finalize(pin=self._pin)
        last = self._handler.get_progress() | {"percent": 100.0, "durable": result["size"]}
        self._watch.progress(last)
        await self._connection.send_json(last)
        await self._connection.send_json(
            {
                "type": "result",
                "success": True,
                **result,
                "upload_id": self._handler.upload_id,
                "timestamp": time.time(),
            }
        )
        await self._connection.close()
        return True
