"""The connection to NATS: made anew for ever when it is lost, by nats-py, which is imported once it is needed.

Each connection is a client of its own. nats-py can reconnect by itself, but then sends first what it had not written before the
loss, ahead of what was lost on its way, and gives up on some errors; a feed needs the order and a connection.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from ipfs_stream_nb.errors import StoreError
from ipfs_stream_nb.notifications.jetstream_wire import AwayError, Message

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.subscription import Subscription

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 10.0
"""Seconds between two attempts to connect; they double from the one to the other, with up to a half more by chance."""
PING_SECONDS: Final = 10
"""Seconds between two pings; a server that leaves two without an answer is taken for lost."""
MAX_COMPLAINTS: Final = 16
"""What went wrong with one connection, of which so many are looked at."""
SCHEMES: Final = ("nats", "tls", "ws", "wss")

log = logging.getLogger(__name__)


class LostError(Exception):
    """The connection was lost before there was an answer."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where NATS is and who is to connect: no part of it but `shown` is for people's eyes."""

    servers: Sequence[str]
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    credentials: Path | None = None
    """A file as `nsc generate creds` writes it."""

    @property
    def shown(self) -> str:
        """The servers without what they hold of credentials."""
        return ", ".join(_shown(server) for server in self.servers)

    def check(self) -> None:
        """Raises StoreError for what is no address of a server."""
        if not self.servers:
            raise StoreError("no address of a NATS server is given: it is such as nats://localhost:4222")
        for server in self.servers:
            _shown(server)

    def check_credentials(self) -> None:
        """Raises StoreError for a file that nats-py could not use. Blocks."""
        if self.credentials is None:
            return
        try:
            text = self.credentials.read_bytes()
        except OSError as error:
            raise StoreError(
                f"the NATS credentials file {self.credentials} cannot be read: {error.strerror}"
            ) from None
        if b"BEGIN NATS USER JWT" not in text or b"BEGIN USER NKEY SEED" not in text:
            raise StoreError(
                f"{self.credentials} is no NATS credentials file: it holds a user's JWT and seed, as `nsc generate creds` "
                "writes them"
            )


def _shown(server: str) -> str:
    try:
        parts = urlsplit(server)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in SCHEMES:
        raise StoreError(
            "the address of the NATS server is none: it is such as nats://localhost:4222, or begins with tls://, ws:// or wss://"
        )
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{f':{port}' if port else ''}"


@dataclass(slots=True)
class _Connection:
    """One client, from its connect to its loss."""

    client: Client
    inbox: str
    answers: dict[str, asyncio.Future[Message]] = field(default_factory=dict)
    down: asyncio.Event = field(default_factory=asyncio.Event)


class Link:
    """A connection to one of a site's servers, as long as it is open. Not for more than one event loop."""

    def __init__(self, site: Site, timeout: float) -> None:
        self.site = site
        self.on_up: Callable[[], None] = lambda: None
        self.on_ack: Callable[[int, Message], None] = lambda _number, _message: None
        self.on_down: set[Callable[[], None]] = set()
        """Called when a connection is lost, or closed."""
        self.closed = False
        self.said = ""
        """What the server, or the network, complained of last."""
        self._listening: dict[str, Callable[[Message], None]] = {}
        self._timeout = timeout
        self._connection: _Connection | None = None
        self._up = asyncio.Event()
        self._tokens = itertools.count(1)
        self._keeper: asyncio.Task[None] | None = None
        self._attempt: asyncio.Task[_Connection] | None = None

    # open and close

    async def open(self) -> None:
        """Connect. Raises StoreError where that cannot be done at once; later on it is tried for ever."""
        self.site.check()
        self._keeper = asyncio.create_task(
            self._keep(await self._connect()), name="keep the connection to NATS"
        )

    async def close(self) -> None:
        """Disconnect, with all that waits here failing. Idempotent."""
        self.closed = True
        connection = self._connection
        if connection is not None:
            self._lost(connection)
        self._up.set()
        if self._attempt is not None:
            self._attempt.cancel()
        if self._keeper is not None:
            await asyncio.wait([self._keeper])

    def listen(self, subject: str, heard: Callable[[Message], None]) -> None:
        """Be called with what comes on a subject, over all connections. To be said before `open`."""
        self._listening[subject] = heard

    # what goes over it

    @property
    def client(self) -> Client | None:
        """The client that is connected now."""
        return self._connection.client if self._connection is not None else None

    async def up(self) -> _Connection:
        """Wait for a connection. Raises StoreError once it is closed."""
        while self._connection is None:
            if self.closed:
                raise StoreError("the feed over NATS is closed")
            await self._up.wait()
        return self._connection

    async def request(self, subject: str, payload: bytes) -> Message:
        """The answer to a message, on the connection of this moment. Raises LostError."""
        connection = await self.up()
        token = f"r{next(self._tokens)}"
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        connection.answers[token] = future
        try:
            await self.send(subject, payload, reply=f"{connection.inbox}.{token}")
            return await future
        finally:
            del connection.answers[token]

    async def send(
        self, subject: str, payload: bytes = b"", *, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Send a message. Raises LostError, StoreError for what the server would not take."""
        from nats.errors import ConnectionClosedError, Error, OutboundBufferLimitError  # noqa: PLC0415  # an extra

        client = self.client
        if client is None:
            raise LostError
        try:
            await client.publish(subject, payload, reply, headers)
        except (ConnectionClosedError, OutboundBufferLimitError, OSError):
            raise LostError from None
        except Error as error:
            raise StoreError(f"the message cannot be sent over NATS: {error}") from None

    def ack_to(self, number: int) -> str:
        """Where a message's acknowledgement is to go, for `on_ack(number, …)`."""
        assert self._connection is not None  # noqa: S101  # said by whoever sends at once
        return f"{self._connection.inbox}.a{number}"

    async def subscribe(self, heard: Callable[[Message], None]) -> tuple[str, Subscription]:
        """A new inbox, for as long as this connection lasts. Raises LostError."""
        connection = await self.up()
        inbox = connection.client.new_inbox()
        return inbox, await _subscribe(connection.client, inbox, heard)

    # the connection

    async def _connect(self) -> _Connection:
        client_class = _client_class()
        await asyncio.to_thread(self.site.check_credentials)
        client = client_class()
        connection = _Connection(client, client.new_inbox())

        complaints: list[Exception] = []

        async def complained(error: Exception) -> None:
            complaints.append(error)
            self.said = str(error) or type(error).__name__
            del complaints[:-MAX_COMPLAINTS]

        async def went() -> None:
            self._lost(connection)

        options: dict[str, Any] = {
            "user": self.site.user,
            "password": self.site.password,
            "token": self.site.token,
            "user_credentials": str(self.site.credentials) if self.site.credentials else None,
            "reconnect_time_wait": 0.1,
        }
        try:
            async with asyncio.timeout(self._timeout):
                await client.connect(
                    list(self.site.servers),
                    error_cb=complained,
                    disconnected_cb=went,
                    closed_cb=went,
                    name="ipfs_stream_nb",
                    connect_timeout=max(1, int(self._timeout)),
                    max_reconnect_attempts=1,
                    ping_interval=PING_SECONDS,
                    **options,
                )
                await _subscribe(
                    client, f"{connection.inbox}.*", lambda message: self._answered(connection, message)
                )
                for subject, heard in self._listening.items():
                    await _subscribe(client, subject, heard)
        except Exception as error:  # noqa: BLE001  # nats-py, TLS and nkeys raise all kinds
            await _end(client)
            raise self._explained([*complaints, error]) from None
        except asyncio.CancelledError:
            await _end(client)
            raise
        if connection.down.is_set() or self.closed:
            await _end(client)
            raise self._explained([*complaints, ConnectionResetError("it was lost at once")])
        self._connection, self.said = connection, ""
        self._up.set()
        self.on_up()
        return connection

    def _explained(self, errors: Sequence[Exception]) -> StoreError:
        """Why there is no connection, and what to do: the last error says only that no server is left to try."""
        where, error = self.site.shown, errors[-1]
        right = "give the right user and password, token or credentials file"
        if any("authorization" in str(each).lower() for each in errors):
            return StoreError(f"the NATS server {where} does not take the credentials: {right}")
        if any(isinstance(each, ConnectionResetError | BrokenPipeError) for each in errors):
            return AwayError(
                f"the NATS server {where} ends the connection, as where it does not take the credentials: {right}"
            )
        if isinstance(error, ImportError):
            return StoreError("NATS credentials files need the package nkeys: pip install 'nats-py[nkeys]'")
        if isinstance(error, TimeoutError):
            reason = f"no answer within {self._timeout:g} s"
        else:
            reason = self.said or type(error).__name__
        return AwayError(
            f"no NATS server can be used at {where} ({reason}): start one with `nats-server -js`, or give its address"
        )

    def _lost(self, connection: _Connection) -> None:
        if connection.down.is_set():
            return
        connection.down.set()
        # what it has not written yet it must not write later on, nor fail over at its close
        connection.client._pending.clear()  # noqa: SLF001
        connection.client._pending_data_size = 0  # noqa: SLF001
        for future in connection.answers.values():
            if not future.done():
                future.set_exception(LostError())
        if self._connection is connection:
            self._connection = None
            self._up.clear()
            for tell in list(self.on_down):
                tell()

    async def _keep(self, connection: _Connection) -> None:
        while True:
            await connection.down.wait()
            await _end(connection.client)
            if self.closed:
                return
            log.info("The connection to NATS at %s is lost", self.site.shown)
            self._attempt = asyncio.create_task(self._connect_again(), name="connect to NATS again")
            try:
                connection = await self._attempt
            except (asyncio.CancelledError, StoreError):
                return  # it is closed
            log.info("The connection to NATS at %s is there again", self.site.shown)

    async def _connect_again(self) -> _Connection:
        pause, told = FIRST_PAUSE, ""
        while True:
            try:
                return await self._connect()
            except StoreError as error:
                if self.closed:
                    raise
                if str(error) != told:
                    told = str(error)
                    log.warning("The feed waits for NATS: %s", told)
            await asyncio.sleep(pause * random.uniform(1, 1.5))  # noqa: S311  # to come at different times, not a secret
            pause = min(2 * pause, LONGEST_PAUSE)

    def _answered(self, connection: _Connection, message: Message) -> None:
        token = message.subject.rpartition(".")[2]
        if token.startswith("a"):
            if not connection.down.is_set():
                self.on_ack(int(token[1:]), message)
            return
        future = connection.answers.get(token)
        if future is not None and not future.done():
            future.set_result(message)


def _client_class() -> type[Client]:
    try:
        from nats.aio.client import Client  # noqa: PLC0415  # an extra, and slow to import
    except ImportError:
        raise StoreError(
            "the feed over NATS needs nats-py: pip install 'ipfs_stream_nb[jetstream]'"
        ) from None
    return Client


async def _subscribe(client: Client, subject: str, heard: Callable[[Message], None]) -> Subscription:
    async def callback(message: Message) -> None:  # nats-py takes no other
        heard(message)

    return await client.subscribe(subject, cb=callback)


async def _end(client: Client) -> None:
    with suppress(Exception):  # whatever is wrong with a connection that is given up
        await client.close()
