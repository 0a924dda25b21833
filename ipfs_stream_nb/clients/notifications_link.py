"""A subscriber's connection to a server, made again for as long as it is wanted: commands, their answers, events."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, Literal

from ipfs_stream_nb.clients.http import CONNECT_TIMEOUT, MAX_JSON, ServerHTTP
from ipfs_stream_nb.clients.notifications_inbox import Inbox
from ipfs_stream_nb.clients.notifications_positions import GapError, Positions
from ipfs_stream_nb.clients.transfer_socket import DroppedError, Patience, Socket, both_ways, parse_message
from ipfs_stream_nb.errors import (
    BadRequestError,
    IPFSStreamError,
    RetrievalError,
    RetrievalTimeoutError,
    TooLargeError,
    UnauthorizedError,
    error_from_json,
)

ANSWER_SECONDS: Final = 60.0
"""Seconds that a command waits for its answer, a server that is away included."""
MAX_COMMAND: Final = 64_000
"""Characters of a command: a server takes 65,536, which leaves room for what subscribing again adds."""
STEADY_SECONDS: Final = 10.0
"""Seconds after which a connection counts as a good one, though it brought no event."""
POLICY: Final = 1008
"""The code with which a server ends the connection of whoever has no right to it any more."""

CONFIRMED: Final = "subscription_confirmed"
EVENTS: Final = frozenset({"notification", "system_notification"})
GAPS: Final = frozenset({"lagged", "reset"})

State = Literal["new", "connecting", "connected", "closed"]

log = logging.getLogger(__name__)


class _Command:
    """Something that was asked for, and waits for its answer."""

    def __init__(
        self,
        message: dict[str, Any],
        answer: str,
        then: Callable[[dict[str, Any]], None],
        *,
        again: bool = False,
    ) -> None:
        """`answer`: the `type` of what answers it; `then`: called with that at its place among the events; `again`: it
        goes on with what an earlier connection had, and nobody waits for it."""
        self.message = message
        self.answer = answer
        self.then = then
        self.again = again
        self.future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    @property
    def waits(self) -> bool:
        """Whether somebody waits for it."""
        return not self.again and not self.future.done()

    @property
    def asked(self) -> tuple[str, int] | None:
        """The cursor of a new subscription."""
        message = self.message
        new = message["action"] == "subscribe" and "since" in message and not self.again
        return (message["epoch"], message["since"]) if new else None


class EventLink:
    """Commands go in by `ask`, events come out of `inbox`, each once; `positions` knows how far they are."""

    def __init__(self, give_up_after: float = math.inf) -> None:
        """`give_up_after`: seconds without a server after which it ends with an error."""
        self._give_up_after = give_up_after
        self.state: State = "new"
        self.error: IPFSStreamError | None = None
        """What ended it, if not `close`."""
        self.positions = Positions()
        self.inbox = Inbox()
        self.missed: int | None = 0
        self.resets = self.lagged = 0
        self._http: ServerHTTP | None = None
        self._waiting: deque[_Command] = deque()
        self._sent: deque[_Command] = deque()
        """In the order in which they were sent, which is that of the answers; also those that nobody waits for any more,
        whose answers may still come."""
        self._asked = asyncio.Event()
        self._spilled = False
        """Whether events of this connection were let go for which there was no room: another one brings them."""
        self._keeping: asyncio.Task[None] | None = None
        self._first: Socket | None = None

    async def open(self, find: Callable[[], Awaitable[ServerHTTP]]) -> None:
        """Connect, to what `find` gives. Raises what a refusal names, and RetrievalError where that cannot be done."""
        self._to("connecting")
        try:
            self._http = await find()
            socket, resume = await self._open()
        except BaseException as error:
            self._to("new")
            if isinstance(error, DroppedError):
                raise RetrievalError(str(error)) from None
            raise
        if self.state == "closed":  # by somebody else meanwhile
            await socket.abort()
            raise self.over()
        self._to("connected")
        self._first = socket
        self._keeping = asyncio.create_task(self._keep(socket, resume), name="notifications")

    def _to(self, state: State) -> None:
        if self.state != "closed":
            self.state = state

    async def close(self) -> None:
        """End it, and its connection. Idempotent."""
        self.end(None)
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        if self._first is not None:  # whose task may have been cancelled before it began
            await self._first.abort()

    def end(self, error: IPFSStreamError | None) -> None:
        """Nothing more comes; what waits to be read is read still where there was an error. Idempotent."""
        if self.state == "closed":
            return
        self.state, self.error = "closed", error
        self.inbox.end(at_once=error is None)
        for command in (*self._sent, *self._waiting):
            if command.waits:
                command.future.set_exception(self.over())
        self._sent.clear()
        self._waiting.clear()

    def over(self) -> IPFSStreamError:
        """The error for whoever uses it once it has ended."""
        if self.error is not None:
            return type(self.error)(str(self.error))
        return BadRequestError("this notification client is closed; make another")

    async def ask(
        self,
        message: dict[str, Any],
        answer: str,
        then: Callable[[dict[str, Any]], None] = lambda _: None,
        *,
        seconds: float | None = None,
    ) -> dict[str, Any]:
        """Send a command; gives what answers it, within ANSWER_SECONDS or `seconds`. Raises the error that the server
        answers with, or what ended this; TooLargeError, RetrievalTimeoutError."""
        seconds = ANSWER_SECONDS if seconds is None else seconds
        if self.state == "closed":
            raise self.over()
        if self.state == "new":
            raise BadRequestError("this notification client is not connected: await client.connect() first")
        size = len(json.dumps(message))
        if size > MAX_COMMAND:
            raise TooLargeError(
                f"{message['action']} has {size} characters of JSON; at most {MAX_COMMAND} are taken"
            )
        command = _Command(message, answer, then)
        self._waiting.append(command)
        self._asked.set()
        self.inbox.nudge()
        try:
            async with asyncio.timeout(seconds):
                return await command.future
        except TimeoutError as error:
            if isinstance(error, IPFSStreamError):
                raise
            raise RetrievalTimeoutError(
                f"the server gave no answer to {message['action']!r} in {seconds:g} s"
            ) from None
        finally:
            with suppress(ValueError):  # it was sent
                self._waiting.remove(command)

    @property
    def quiet(self) -> bool:
        """Whether nothing is subscribed to, or about to be, and nothing waits to be read: nothing would come."""
        pending = any(command.answer == CONFIRMED for command in (*self._waiting, *self._sent))
        return not (self.positions.wants or pending or self.inbox.filled) and self.state != "closed"

    async def _open(self) -> tuple[Socket, list[dict[str, Any]]]:
        """A connection, and the commands with which it goes on. Raises DroppedError and what a refusal names."""
        if self._http is None:
            raise self.over()
        socket = await Socket.open(self._http, "ws", "notifications", max_message=MAX_JSON)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                welcome = await socket.receive_json()
            return socket, self.positions.welcome(welcome)
        except BaseException as error:
            await socket.abort()
            if isinstance(error, TimeoutError) and not isinstance(error, IPFSStreamError):
                raise DroppedError(
                    f"{self._http.server.url} sent no welcome in {CONNECT_TIMEOUT:g} s"
                ) from None
            raise

    async def _keep(self, socket: Socket, resume: list[dict[str, Any]]) -> None:
        """Read for as long as the client is open; a connection that is lost is made again."""
        patience = Patience(endless=True)
        try:
            while True:
                begun = time.monotonic()
                lost = await self._read_on(socket, resume, patience)
                if lost.code == POLICY:
                    raise UnauthorizedError(str(lost))  # noqa: TRY301  # as what the other calls raise
                if time.monotonic() - begun > STEADY_SECONDS:
                    patience.progressed()
                socket, resume = await self._open_again(lost, patience)
        except IPFSStreamError as error:
            self.end(error)
        except Exception as error:  # whoever waits must be told, whatever it was
            log.exception("the feed of notifications ended")
            self.end(RetrievalError(f"the feed ended by a fault of this client: {error!r}"))

    async def _open_again(
        self, error: DroppedError | IPFSStreamError, patience: Patience
    ) -> tuple[Socket, list[dict[str, Any]]]:
        lost = time.monotonic()
        while True:
            if time.monotonic() - lost >= self._give_up_after:
                raise RetrievalError(f"{error}; that was so for {self._give_up_after:g} s")
            await patience.wait(error)
            try:
                return await self._open()
            except (UnauthorizedError, BadRequestError):
                raise
            except (DroppedError, IPFSStreamError) as failed:
                error = failed

    async def _read_on(
        self, socket: Socket, resume: list[dict[str, Any]], patience: Patience
    ) -> DroppedError:
        """Use one connection; gives what it ended with."""
        self._waiting.extendleft(command for command in reversed(self._sent) if not command.again)
        self._sent.clear()
        self._spilled = False
        self._waiting.extendleft(
            _Command(message, CONFIRMED, self._resumed, again=True) for message in reversed(resume)
        )
        self._to("connected")
        try:
            return await both_ways(self._read(socket, patience), self._write(socket))
        except (DroppedError, GapError) as error:
            return error if isinstance(error, DroppedError) else DroppedError(str(error))
        finally:
            self._to("connecting")
            await socket.abort()

    async def _write(self, socket: Socket) -> None:
        """Send the commands as they come."""
        while True:
            while self._waiting:
                command = self._waiting.popleft()
                if not command.future.done():
                    self._sent.append(command)
                    await socket.send_json(command.message)
            self._asked.clear()
            await self._asked.wait()

    async def _read(self, socket: Socket, patience: Patience) -> DroppedError:
        while True:
            text = await socket.receive()
            try:
                await self._take(parse_message(text), len(text), patience)
            except (RetrievalError, ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
                return _not_understood(text)
            if self._spilled and not self._is_asked():
                await self.inbox.room(self._is_asked)
                if not self.inbox.full:
                    return DroppedError("what came was not read in time")

    def _is_asked(self) -> bool:
        """Whether a command waits for its answer, which may be behind many events."""
        return any(command.waits for command in (*self._waiting, *self._sent))

    async def _take(self, message: dict[str, Any], size: int, patience: Patience) -> None:
        kind = message.get("type")
        if kind in EVENTS or kind in GAPS:
            if not self._spilled:
                await self.inbox.room(self._is_asked)
                # an answer cannot wait for the reader, who may be the one that asked: what it comes behind is let
                # go, and asked for again as soon as there is room
                self._spilled = self.inbox.full
            if self._spilled:
                return
            if kind in GAPS:
                self._note(message, size)
            elif self.positions.take(message):
                patience.progressed()
                self.inbox.put(message, self.positions.cursor, size)
        elif kind == "error":
            self._refused(message)
        else:
            command = self._answered(lambda command: command.answer == kind)
            if command is not None:  # else it is a ping, or something newer than this client
                command.then(message)
                if command.waits:
                    command.future.set_result(message)

    def _note(self, gap: dict[str, Any], size: int) -> None:
        """The server has gone on somewhere else than expected, or was faster than this client."""
        if gap["type"] == "reset":
            lost = self.positions.reset(gap, self._sent[0].asked if self._sent else None)
            if not lost:
                return  # another subscription of this connection was told already
            known = [count for count in lost if count is not None]
            self.resets += 1
            missed = max(known) if len(known) == len(lost) else None
            self.missed = None if missed is None or self.missed is None else self.missed + missed
            gap = gap | {"missed": missed}
        else:
            self.lagged += 1
        self.inbox.put(gap, None, size)

    def _answered(self, fits: Callable[[_Command], bool]) -> _Command | None:
        """The command that an answer is for: the oldest that it fits. What is older gets none any more."""
        command = next(filter(fits, self._sent), None)
        if command is None:
            return None
        while (passed := self._sent.popleft()) is not command:
            if passed.waits:
                passed.future.set_exception(
                    RetrievalError(f"the server passed over {passed.message['action']!r}")
                )
        return command

    def _refused(self, error: dict[str, Any]) -> None:
        action = error.get("action")  # which what it could not read has not
        command = self._answered(lambda command: action in (None, command.message["action"]))
        if command is None:
            log.warning("the server says: %s", error.get("error"))
        elif command.again:
            log.warning("the server does not go on with %s: %s", command.message, error.get("error"))
        elif command.waits:
            command.future.set_exception(error_from_json(error))

    def _resumed(self, confirmation: dict[str, Any]) -> None:
        """A subscription of an earlier connection goes on."""
        self.positions.resumed(confirmation)
        gone = confirmation.get("unauthorized_types")
        if gone:
            log.warning("%s may not be seen any more: %s", ", ".join(map(str, gone)), self)


def _not_understood(message: object) -> DroppedError:
    return DroppedError(f"the server sent {str(message)[:80]!r}, which this client does not understand")
