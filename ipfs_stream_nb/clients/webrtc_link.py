"""One signaling connection to a server: what is asked for, what answers it, and messages for the streams made over it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

from ipfs_stream_nb.clients.http import CONNECT_TIMEOUT, READ_TIMEOUT, ServerHTTP
from ipfs_stream_nb.clients.transfer_socket import DroppedError, Socket, parse_message
from ipfs_stream_nb.errors import (
    BadRequestError,
    IPFSStreamError,
    RetrievalError,
    RetrievalTimeoutError,
    error_from_json,
)

ANSWER_SECONDS: Final = 30.0
"""Seconds that a command waits for its answer."""
OFFER_SECONDS: Final = READ_TIMEOUT
"""The same for an offer: the server looks into the content first, which may have to come from afar."""

T = TypeVar("T")
Message = dict[str, Any]

log = logging.getLogger(__name__)


class Receiver(Protocol):
    """A stream, as far as its messages are concerned."""

    def rename(self, pc_id: str) -> None:
        """Be known by this name from now on; told before its offer."""

    async def take(self, message: Message) -> None:
        """Take a message of its own; an offer is its first."""

    def fail(self, error: IPFSStreamError) -> bool:
        """Take an error that is no command's; False where it has no use for it."""

    def cut(self, error: IPFSStreamError) -> None:
        """The connection is gone."""


@dataclass(eq=False)
class _Asked:
    """A command that waits for its answer."""

    request: str
    answer: str
    pc_id: str | None
    future: asyncio.Future[Message] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Signaling:
    """Reads one socket to its end. What goes on after that is the client's business."""

    def __init__(self, socket: Socket, welcome: Message) -> None:
        self.welcome = welcome
        self.error: IPFSStreamError | None = None
        """What it ended with."""
        self._socket = socket
        self._asked: list[_Asked] = []
        self._streams: dict[str, Receiver] = {}
        """By pc_id."""
        self._turn = asyncio.Lock()
        """Held from a request until its offer comes, though nobody may want that any more: offers do not say what they
        answer, so that there is one at a time."""
        self._offering: tuple[Receiver, asyncio.Future[None]] | None = None
        self._reading = asyncio.create_task(self._read(), name="WebRTC signaling")

    @classmethod
    async def open(cls, http: ServerHTTP) -> Signaling:
        """Connect. Raises what a refusal names, and RetrievalError where that cannot be done."""
        try:
            socket = await Socket.open(http, "ws", "webrtc")
            try:
                welcome = await within(CONNECT_TIMEOUT, socket.receive_json(), "the server sent no welcome")
            except BaseException:
                await socket.abort()
                raise
        except DroppedError as error:
            raise RetrievalError(str(error)) from None
        return cls(socket, welcome)

    @property
    def lost(self) -> bool:
        """Whether it has ended."""
        return self._reading.done()

    async def close(self) -> None:
        """End it. Idempotent."""
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._socket.close()

    # -- what is asked

    async def send(self, message: Message) -> None:
        """Send a message. Raises RetrievalError where the connection is gone."""
        if self.error is not None:
            raise type(self.error)(str(self.error))
        try:
            await self._socket.send_json(message)
        except DroppedError as error:
            raise RetrievalError(str(error)) from None

    async def ask(self, message: Message, answer: str) -> Message:
        """Send a command and give what answers it. Raises the error that the server answers with."""
        asked = _Asked(message["type"], answer, message.get("pc_id"))
        self._asked.append(asked)
        try:
            await self.send(message)
            what = f"the server gave no answer to {message['type']!r}"
            return await within(ANSWER_SECONDS, asked.future, what)
        finally:
            self._asked.remove(asked)

    async def request(self, message: Message, stream: Receiver) -> None:
        """Ask for an offer; `stream` takes it, and all that comes for it. Raises what it is refused with."""
        offered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await within(OFFER_SECONDS, self._offer(message, stream, offered), "the server offered no media")

    async def _offer(self, message: Message, stream: Receiver, offered: asyncio.Future[None]) -> None:
        await self._turn.acquire()
        self._offering = (stream, offered)
        try:
            await self.send(message)
        except IPFSStreamError:
            self._answered()
            raise
        await offered

    def _answered(self) -> asyncio.Future[None] | None:
        """Let the next one ask; gives who waited."""
        offering, self._offering = self._offering, None
        if offering is None:
            return None
        self._turn.release()
        return offering[1]

    def forget(self, stream: Receiver) -> None:
        """Nothing more is wanted for a stream."""
        for pc_id in [known for known, one in self._streams.items() if one is stream]:
            del self._streams[pc_id]

    # -- what comes

    async def _read(self) -> None:
        try:
            while True:
                await self._take(parse_message(await self._socket.receive()))
        except DroppedError as error:
            self._end(RetrievalError(str(error)))
        except IPFSStreamError as error:
            self._end(error)
        finally:
            self._end(BadRequestError("the signaling connection was closed"))
            await self._socket.abort()

    def _end(self, error: IPFSStreamError) -> None:
        if self.error is None:
            self.error = error
            for asked in self._asked:
                _refuse(asked.future, error)
            if (offered := self._answered()) is not None:
                _refuse(offered, error)
            for stream in list(self._streams.values()):
                stream.cut(error)

    async def _take(self, message: Message) -> None:
        kind, pc_id = message.get("type"), message.get("pc_id")
        stream = self._streams.get(pc_id) if isinstance(pc_id, str) else None
        if kind == "offer":
            await self._offered(message)
        elif kind == "error":
            self._refused(message, stream)
        elif asked := next((one for one in self._asked if _answers(message, one)), None):
            asked.future.set_result(message)
        if stream is not None and kind != "offer":
            await stream.take(message)

    async def _offered(self, message: Message) -> None:
        pc_id = str(message.get("pc_id"))
        stream = self._streams.pop(str(message.get("replaces")), None)
        if stream is None and self._offering is not None:
            stream, offered = self._offering
            self._answered()
            if offered.done():  # nobody wants it any more
                stream = None
            else:
                offered.set_result(None)
        if stream is None:
            await self.send({"type": "close", "pc_id": pc_id})
            return
        stream.rename(pc_id)
        self._streams[pc_id] = stream
        await stream.take(message)

    def _refused(self, message: Message, stream: Receiver | None) -> None:
        """An error: of a request, which it names, or of what goes on by itself."""
        error, request, pc_id = error_from_json(message), message.get("request"), message.get("pc_id")
        if request == "offer_request":
            if (offered := self._answered()) is not None:
                _refuse(offered, error)
            return
        for asked in self._asked:
            if asked.request == request and asked.pc_id == pc_id and not asked.future.done():
                _refuse(asked.future, error)
                return
        if request == "candidate" or stream is None or not stream.fail(error):
            log.warning("the signaling server says: %s", error)


def _answers(message: Message, asked: _Asked) -> bool:
    return (
        asked.answer == message.get("type")
        and not asked.future.done()
        and (asked.pc_id is None or message.get("pc_id", asked.pc_id) == asked.pc_id)
    )


def _refuse(future: asyncio.Future[Any], error: IPFSStreamError) -> None:
    if not future.done():
        future.set_exception(type(error)(str(error)))
        future.exception()  # whoever waited for it may have left


async def within(seconds: float, waiting: Awaitable[T], what: str) -> T:
    """What is waited for. Raises RetrievalTimeoutError, which says `what` did not happen."""
    try:
        async with asyncio.timeout(seconds):
            return await waiting
    except TimeoutError as error:
        if isinstance(error, IPFSStreamError):
            raise
        raise RetrievalTimeoutError(f"{what} in {seconds:g} s") from None
