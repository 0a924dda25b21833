"""WebSockets: Jupyter's authentication, authorizer and origin check before the upgrade, then the library's conversations."""

from __future__ import annotations

import asyncio
import json
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from inspect import isawaitable
from typing import Any, Final

from jupyter_server.base.websocket import WebSocketMixin
from tornado.iostream import StreamClosedError
from tornado.websocket import WebSocketClosedError, WebSocketHandler, WebSocketProtocol, WebSocketProtocol13

from ipfs_stream_nb.content.cid import CID, BytesLike
from ipfs_stream_nb.errors import BadCIDError, BadRequestError, IPFSStreamError, UnauthorizedError
from ipfs_stream_nb.security.access import Action
from ipfs_stream_nb.transports.bidirectional import BidirectionalConversation, BidirectionalLimits
from ipfs_stream_nb.transports.connection import NORMAL, ConnectionClosedError, refuse
from ipfs_stream_nb.transports.stream import stream_content
from ipfs_stream_nb.transports.upload import UploadConversation, UploadLimits
from ipfs_stream_nb_server import frames
from ipfs_stream_nb_server.handlers.base import CROSS_ORIGIN, RESOURCE, IPFSHandler, access
from ipfs_stream_nb_server.handlers.parts import part_argument
from ipfs_stream_nb_server.limits import PING_SECONDS, Slots
from ipfs_stream_nb_server.lingering import LingeringProtocol

SLOW_SECONDS: Final = 0.02
"""A client that does not take a message within this time is slow: nothing more is held for it than that message."""
INCOMING: Final = 2
"""Messages of a client that wait to be taken: the socket is not read meanwhile."""


class SocketConnection:
    """`transports.Connection` over one Tornado handler."""

    def __init__(self, handler: SocketHandler, stall_timeout: float) -> None:
        self._handler = handler
        self._stall_timeout = stall_timeout
        self._incoming: asyncio.Queue[str | bytes | None] = asyncio.Queue(INCOMING)
        self._sending = asyncio.Lock()
        self._writing: asyncio.Future[None] | None = None
        """A write that has not left this process: also one whose sender was cancelled."""
        self._deadline = 0.0
        self.gone = False
        self._closing = False
        self._deaf = False

    async def put(self, message: str | bytes) -> None:
        """A message has come; returns when there is room for the next."""
        if not self._deaf:
            await self._incoming.put(message)

    def stop_taking(self) -> None:
        """Drop what comes from here on, so that the client's side of the closing handshake is read."""
        self._deaf = True
        while not self._incoming.empty():
            self._incoming.get_nowait()

    def lost(self) -> None:
        """The client has gone."""
        self.gone = True
        with suppress(asyncio.QueueFull):
            self._incoming.put_nowait(None)

    async def send_json(self, message: dict[str, Any]) -> None:
        """Send a text message."""
        await self._send(json.dumps(message), binary=False)

    async def send_all(self, messages: Sequence[BytesLike]) -> int:
        """Send each as a binary message, many in one write: a write for each frame is what costs the time."""
        taken = 0
        try:
            async with asyncio.timeout(SLOW_SECONDS):
                await self._sending.acquire()
        except TimeoutError:  # somebody else's message is on its way all the time
            return taken
        try:
            while taken < len(messages) and await self._soon_written():
                left = messages[taken:]
                taken += self._begin(partial(self._handler.write_frames, left))
            return taken
        finally:
            self._sending.release()

    async def _soon_written(self) -> bool:
        """Whether the last write leaves this process within SLOW_SECONDS."""
        if self._writing is not None and not self._writing.done():
            await asyncio.wait([self._writing], timeout=SLOW_SECONDS)
            if not self._writing.done():
                return False
        await self._written()
        return True

    async def drained(self) -> None:
        """Wait until all that was sent has left this process."""
        async with self._sending:
            await self._written()

    async def _send(self, message: str | bytes, *, binary: bool) -> None:
        async with self._sending:
            await self._written()
            self._begin(partial(self._handler.write_one, message, binary=binary))
            await self._written()

    def _begin(self, write: Callable[[], tuple[int, asyncio.Future[None]]]) -> int:
        """Write; how many messages that took."""
        if self.gone or self._closing:
            raise ConnectionClosedError
        try:
            count, self._writing = write()
        except (WebSocketClosedError, StreamClosedError):
            self.lost()
            raise ConnectionClosedError from None
        self._deadline = asyncio.get_running_loop().time() + self._stall_timeout
        return count

    async def _written(self) -> None:
        """Wait until the last write has left this process: what is cancelled is written all the same, and counts."""
        writing = self._writing
        if writing is None:
            return
        try:
            async with asyncio.timeout_at(self._deadline):
                await asyncio.shield(writing)
        except (WebSocketClosedError, StreamClosedError):
            self.lost()
            raise ConnectionClosedError from None
        except TimeoutError:
            self._handler.stalled()
            self.lost()
            raise ConnectionClosedError from None
        self._writing = None

    async def receive(self) -> str | bytes:
        """The next message."""
        if self.gone and self._incoming.empty():
            raise ConnectionClosedError
        message = await self._incoming.get()
        if message is None:
            raise ConnectionClosedError
        return message

    async def close(self, code: int = NORMAL, reason: str = "") -> None:
        """Begin the closing handshake."""
        if not self.gone and not self._closing:
            self._closing = True
            self._handler.close(code, reason)

    def failed(self, error: Exception) -> None:
        """Log it, and have the node looked at where its store failed."""
        self._handler.note_failure(error)
        if not isinstance(error, IPFSStreamError):
            self._handler.log.error("%s failed", self._handler.request.path, exc_info=error)
            self._handler.note_bug(error)


class SocketHandler(WebSocketMixin, IPFSHandler, WebSocketHandler):
    """One conversation on a socket of its own, which ends with it."""

    cancel_on_close = False
    """Whether nothing is left to do once the client has gone."""
    moves_content = True
    """Whether it needs a node, and room for batches in its socket."""
    _connection: SocketConnection | None = None
    _talk: asyncio.Task[None] | None = None

    ping_interval = PING_SECONDS  # Jupyter's own is in ms, which Tornado takes for seconds
    ping_timeout = (
        0  # a client that is reading a long queue answers late; who stands still meets stall_timeout
    )

    def slots(self) -> Slots:
        """The server's slots that it takes one of."""
        return self.context.streams

    def connection(self) -> SocketConnection:
        """What the conversation is given."""
        return SocketConnection(self, self.context.limits.stall_timeout)

    @abstractmethod
    async def talk(self, connection: SocketConnection) -> None:
        """The conversation."""

    @access(Action.READ)
    async def get(self, *args: str) -> None:
        """Upgrade, once there is a slot: a refusal before is an HTTP answer."""
        self._check_upgrade()
        self._held = ExitStack()
        self._held.enter_context(self.slots().slot(self.user))
        try:
            if self.moves_content:
                await self.node()
            await WebSocketHandler.get(self, *args)
        except BaseException:
            self._held.close()
            raise
        if self._talk is None:  # Tornado refused the handshake
            self._held.close()

    def _check_upgrade(self) -> None:
        """Refuse in JSON what Tornado would refuse in plain text. Raises BadRequestError, UnauthorizedError."""
        headers = self.request.headers
        wanted = {word.strip().lower() for word in headers.get("Connection", "").split(",")}
        if headers.get("Upgrade", "").lower() != "websocket" or "upgrade" not in wanted:
            raise BadRequestError(
                "this path speaks WebSocket: send `Connection: Upgrade`, `Upgrade: websocket`"
            )
        if not self.check_origin():
            raise UnauthorizedError(CROSS_ORIGIN)

    def skip_check_origin(self) -> bool:
        """A token is sent on purpose, one of ours too: no page elsewhere can hold one that it was not given."""
        return self.token_authenticated or bool(super().skip_check_origin())

    def open(self, *_args: str, **_kwargs: str) -> None:
        """Called by Tornado when the socket is open."""
        if self.moves_content and self.ws_connection is not None and self.ws_connection.stream is not None:
            frames.widen(self.ws_connection.stream)
        self._connection = self.connection()
        self._talk = asyncio.create_task(
            self._converse(self._connection), name=f"talk on {self.request.path}"
        )
        self.context.watch(self._talk)

    async def _converse(self, connection: SocketConnection) -> None:
        with self._held:
            try:
                await self.talk(connection)
            except ConnectionClosedError:
                pass
            except Exception as error:  # noqa: BLE001  # logged there
                await refuse(connection, error)
            finally:
                await connection.close()
                connection.stop_taking()

    async def on_message(self, message: str | bytes) -> None:
        """Called by Tornado, which reads on once this returns."""
        if self._connection is not None and not self._connection.gone:
            await self._connection.put(message)

    def on_close(self) -> None:
        """The client has gone, or both sides have closed: what is still going on for it ends."""
        if self._connection is not None:
            self._connection.lost()
        if self._talk is not None and self.cancel_on_close:
            self._talk.cancel()

    def write_one(self, message: str | bytes, *, binary: bool) -> tuple[int, asyncio.Future[None]]:
        """Write a message, in the form of `write_frames`."""
        return 1, asyncio.ensure_future(self.write_message(message, binary=binary))

    def write_frames(self, messages: Sequence[BytesLike]) -> tuple[int, asyncio.Future[None]]:
        """Write some as binary messages: see frames.write. No extension is ever agreed on that would change them."""
        stream = None if self.ws_connection is None else self.ws_connection.stream
        if stream is None or self.ws_connection is None or self.ws_connection.is_closing():
            raise WebSocketClosedError
        return frames.write(stream, messages)

    def get_websocket_protocol(self) -> WebSocketProtocol | None:
        """Called by Tornado for the handshake: its protocol, which closes so that a client sees the reason."""
        agreed = super().get_websocket_protocol()
        if not isinstance(agreed, WebSocketProtocol13):
            return agreed
        return LingeringProtocol(self, mask_outgoing=False, params=agreed.params)

    def stalled(self) -> None:
        """The client takes nothing: end the connection at once."""
        self.log.info("%s: closed, its client stands still", self.request.path)
        if self.ws_connection is not None and self.ws_connection.stream is not None:
            self.ws_connection.stream.close()

    @property
    def max_message_size(self) -> int:
        """Bytes of one message, by the operator's setting."""
        return self.context.limits.max_message_size

    async def may(self, action: Action, cid: CID | None) -> None:
        """Raise UnauthorizedError unless the authorizer and the policy let the user do that."""
        verb = "read" if action is Action.READ else "write"
        allowed = self.authorizer.is_authorized(self, self.current_user, verb, RESOURCE)
        if isawaitable(allowed):
            allowed = await allowed
        if not allowed:
            raise UnauthorizedError(f"this server's authorizer does not let you {verb} {RESOURCE}")
        await self.context.policy.require(self.user, action, cid)


class StreamSocket(SocketHandler):
    """WS /ws/stream/{cid}[/path]. What is no CID is told over the socket: a browser shows no refused handshake."""

    names_cid = True
    cancel_on_close = True

    async def subject(self) -> CID | None:
        """The root that the policy is asked about."""
        try:
            return self.cid
        except BadCIDError:
            return None

    async def talk(self, connection: SocketConnection) -> None:
        """Send the file."""
        await stream_content(
            connection,
            await self.node(),
            self.path_args[0],
            part_argument(self),
            progress=self.flag("progress", True),
            sha256=self.flag("sha256", False),
            watcher=self.context.content_events.over("websocket"),
        )


class UploadSocket(SocketHandler):
    """WS /ws/upload."""

    verb = "write"

    def slots(self) -> Slots:
        """Those of uploads."""
        return self.context.adds

    def note_bug(self, error: Exception) -> None:
        """It is told as a failed upload."""

    @access(Action.ADD)
    async def get(self, *args: str) -> None:
        """Upgrade."""
        await SocketHandler.get(self, *args)

    async def talk(self, connection: SocketConnection) -> None:
        """Take one file."""
        limits = self.context.limits
        upload = UploadLimits(limits.max_add_size, limits.stall_timeout)
        watcher = self.context.content_events.over("websocket")
        await UploadConversation(connection, await self.node(), upload, watcher).run()


class BidirectionalSocket(SocketHandler):
    """WS /ws/bidirectional. The policy is asked about each command."""

    asks_later = True

    async def talk(self, connection: SocketConnection) -> None:
        """Serve commands."""
        limits = self.context.limits
        ours = BidirectionalLimits(
            UploadLimits(limits.max_add_size, limits.stall_timeout),
            limits.max_transfers,
            limits.stall_timeout,
            partial(self.context.adds.slot, self.user),
        )
        watcher = self.context.content_events.over("bidirectional")
        await BidirectionalConversation(connection, await self.node(), ours, self.may, watcher).run()
