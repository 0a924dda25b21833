"""WebSockets to our own server: what they end with as this package's errors, and how often to come again."""

from __future__ import annotations

import asyncio
import inspect
import json
import random
import ssl
from collections.abc import Awaitable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ipfs_stream_nb.clients.http import CONNECT_TIMEOUT, Params, ServerHTTP
from ipfs_stream_nb.content.cid import BytesLike
from ipfs_stream_nb.errors import IPFSStreamError, RetrievalError, error_from_json

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection
    from websockets.exceptions import ConnectionClosed, InvalidStatus

MAX_MESSAGE: Final = 4 * 1024 * 1024
"""Bytes of one message that is taken from a server; ours sends 64 KiB."""
QUEUED_FRAMES: Final = 16
"""Frames that wait for the consumer; above that the socket is not read, so that the server waits."""
QUIET_SECONDS: Final = 40.0
"""Seconds of silence after which the server is pinged; after as many more it counts as gone."""
CLOSE_SECONDS: Final = 5.0
"""Seconds that the server has to end a connection with us."""
TRIES: Final = 10
"""Connections in a row that may bring nothing, before it is given up: over some 30 s."""
FIRST_DELAY: Final = 0.1
"""Seconds before the first of them, at the most; doubled with each."""
MAX_DELAY: Final = 10.0
"""Seconds between two of them, at the most."""
_GATEWAY: Final = frozenset(
    {HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT}
)

T = TypeVar("T")


class DroppedError(Exception):
    """A connection that has ended too early, or could not be made: coming again may help."""

    def __init__(self, text: str, *, absent: bool = False, code: int | None = None) -> None:
        """`absent`: nobody answers at that address at all; `code`: with which the server closed it."""
        super().__init__(text)
        self.absent = absent
        self.code = code


class Socket:
    """One connection. Whatever ends it too early is a DroppedError."""

    def __init__(self, http: ServerHTTP, connection: ClientConnection) -> None:
        self._url = http.server.url
        self._connection = connection

    @classmethod
    async def open(
        cls, http: ServerHTTP, *parts: str, params: Params | None = None, max_message: int = MAX_MESSAGE
    ) -> Socket:
        """Connect to a route below the base URL. Raises the error that a refusal names, and DroppedError."""
        # 80 ms that only who transfers pays
        from websockets.asyncio.client import connect  # noqa: PLC0415
        from websockets.exceptions import ConnectionClosed, InvalidHandshake  # noqa: PLC0415
        from websockets.exceptions import InvalidStatus as Status  # noqa: PLC0415

        server = http.server
        address = http.address(*parts, params=params)
        secure = address.scheme == "https"
        connecting = connect(
            str(address.with_scheme("wss" if secure else "ws")),
            additional_headers={"Authorization": f"token {server.token}"} if server.token else None,
            compression=None,  # what is streamed is mostly compressed already
            open_timeout=CONNECT_TIMEOUT,
            ping_interval=None,  # a consumer that is slow reads no pongs either: see receive
            close_timeout=CLOSE_SECONDS,
            max_size=max_message,
            max_queue=QUEUED_FRAMES,
            **_options(connect, secure=secure, local=server.on_this_machine),
        )
        connecting.process_redirect = lambda exc: exc  # type: ignore[method-assign]  # the token is for this server
        try:
            return cls(http, await connecting)
        except Status as refusal:
            raise await _refusal(http, refusal) from None
        except InvalidHandshake as error:
            if type(error).__name__ != "InvalidMessage":  # which websockets 14 has elsewhere
                raise RetrievalError(f"{server.url} does not speak WebSocket: {error}") from None
            raise DroppedError(f"{server.url} broke off while it was connected to") from None
        except (ConnectionClosed, EOFError):
            raise DroppedError(f"{server.url} broke off while it was connected to") from None
        except ssl.SSLCertVerificationError as error:
            raise RetrievalError(f"no trust in the server at {server.url}: {error.verify_message}") from None
        except TimeoutError:
            raise DroppedError(f"{server.url} did not answer in {CONNECT_TIMEOUT:g} s", absent=True) from None
        except OSError as error:
            absent = not isinstance(error, ConnectionResetError | BrokenPipeError)
            raise DroppedError(
                f"no server answers at {server.url}: {error.strerror or error}", absent=absent
            ) from None

    async def receive(self) -> str | bytes:
        """The next message; nothing is lost where the wait is cancelled. Raises DroppedError."""
        from websockets.exceptions import ConnectionClosed  # noqa: PLC0415  # imported by open

        asked, pong = False, None
        while True:
            try:
                async with asyncio.timeout(QUIET_SECONDS):
                    if asked:
                        pong = await self._connection.ping()
                    return await self._connection.recv()
            except ConnectionClosed as closed:
                raise self._dropped(closed) from None
            except TimeoutError:
                if asked and not (isinstance(pong, asyncio.Future) and pong.done()):
                    raise DroppedError(f"{self._url} was silent for {2 * QUIET_SECONDS:g} s") from None
                asked = True

    async def receive_json(self) -> dict[str, Any]:
        """The next message, which is to be a text. Raises the error that it tells, RetrievalError, DroppedError."""
        message = await self.receive()
        if isinstance(message, bytes):
            raise RetrievalError(f"{self._url} sent bytes where a message was due")
        return read_message(message)

    async def send(self, data: str | BytesLike) -> None:
        """Send a message; waits where the server is slower. Raises DroppedError."""
        from websockets.exceptions import ConnectionClosed  # noqa: PLC0415  # imported by open

        try:
            await self._connection.send(data)
        except ConnectionClosed as closed:
            raise self._dropped(closed) from None

    async def send_json(self, message: dict[str, Any]) -> None:
        """Send a text message. Raises DroppedError."""
        await self.send(json.dumps(message))

    async def close(self) -> None:
        """End it by the closing handshake. Idempotent."""
        await self._connection.close()

    async def abort(self) -> None:
        """End it at once: neither side keeps anything. Idempotent."""
        self._connection.transport.abort()
        await self._connection.wait_closed()

    def _dropped(self, closed: ConnectionClosed) -> DroppedError:
        told = closed.rcvd
        why = "without a word" if told is None else f"with {told.code} {told.reason}".rstrip()
        return DroppedError(
            f"the connection to {self._url} ended {why}", code=None if told is None else int(told.code)
        )


def _options(connect: Any, *, secure: bool, local: bool) -> dict[str, Any]:
    """Trust and proxies as for the other requests: see ServerHTTP."""
    options: dict[str, Any] = {}
    if local and "proxy" in inspect.signature(connect.__init__).parameters:  # websockets 14 knows none
        options["proxy"] = None
    if local and secure:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        options["ssl"] = context
    return options


async def _refusal(http: ServerHTTP, refusal: InvalidStatus) -> IPFSStreamError | DroppedError:
    """The error for an answer that is no upgrade."""
    status = refusal.response.status_code
    try:
        body = json.loads(refusal.response.body or b"")
    except ValueError:
        body = None
    if isinstance(body, dict) and "code" in body and body["code"] != "unauthorized":
        return error_from_json(body)
    if status in _GATEWAY:
        return DroppedError(f"{http.server.url} answered HTTP {status}")
    await http.json("GET", "ipfs-stream/health")  # raises what is wrong with the server, or with the token
    if isinstance(body, dict) and "code" in body:
        return error_from_json(body)
    return RetrievalError(
        f"{http.server.url} answered HTTP {status} to a WebSocket; what stands between must let them through"
    )


def read_message(text: str | bytes) -> dict[str, Any]:
    """A server's text message. Raises the error that it tells, and RetrievalError for what is no message."""
    message = parse_message(text)
    if message.get("type") == "error":
        raise error_from_json(message)
    return message


def parse_message(text: str | bytes) -> dict[str, Any]:
    """A server's text message, whatever it tells. Raises RetrievalError for what is no message."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise RetrievalError(
            f"the server sent {str(text)[:80]!r}, which is no message of an ipfs_stream_nb server"
        )
    return message


class Patience:
    """Counts connections that brought nothing, and waits between them."""

    def __init__(self, *, endless: bool = False) -> None:
        """`endless`: none is the last."""
        self._endless = endless
        self._failed = 0
        self._met = False

    def met(self) -> None:
        """The server has answered."""
        self._met = True

    def progressed(self) -> None:
        """Something came of this one."""
        self._met, self._failed = True, 0

    async def wait(self, error: DroppedError | IPFSStreamError) -> int:
        """Wait before the next; gives how many brought nothing. Raises the error where there is to be none."""
        self._failed += 1
        given_up = self._failed > TRIES or (
            isinstance(error, DroppedError) and error.absent and not self._met
        )
        if given_up and not self._endless:
            if isinstance(error, DroppedError):
                again = f", {self._failed} times in a row" if self._failed > 1 else ""
                raise RetrievalError(f"{error}{again}") from None
            raise error
        longest = min(MAX_DELAY, FIRST_DELAY * 2 ** min(self._failed - 1, 30))  # 2.0**1024 is no number
        await asyncio.sleep(longest * random.uniform(0.5, 1.0))  # noqa: S311  # so that not all come at once
        return self._failed


async def both_ways(reading: Awaitable[T], writing: Awaitable[None]) -> T:
    """What `reading` gives, with `writing` beside it; what `writing` fails with by itself is raised."""
    reader = asyncio.ensure_future(reading)
    writer = asyncio.ensure_future(writing)
    try:
        await asyncio.wait([reader, writer], return_when=asyncio.FIRST_COMPLETED)
        if not reader.done():
            error = writer.exception()
            if error is not None and not isinstance(error, DroppedError):
                raise error
        return await reader  # where the connection ended, it knows best why
    finally:
        for task in (reader, writer):
            task.cancel()
        await asyncio.gather(reader, writer, return_exceptions=True)
