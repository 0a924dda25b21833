"""Servers for the tests of subscribers: one that can be told to misbehave, and the real one with a log that it keeps."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.notifications.log import SQLiteEngine
from ipfs_stream_nb_server import standalone
from ipfs_stream_nb_server.feed import FeedSettings
from ipfs_stream_nb_server.standalone import StandaloneServer

TYPES = ["content_added", "custom_event", "pin_added", "system_info", "all_events"]


@dataclass
class Log:
    """What is kept: events `first` to `last` of an epoch."""

    epoch: str = "e1"
    first: int = 1
    events: dict[int, dict[str, Any]] = field(default_factory=dict)
    last: int = 0
    forbidden: frozenset[str] = frozenset()
    """Types that nobody may see."""

    def add(self, kind: str = "custom_event", wire: str = "notification", **data: Any) -> int:
        """Append an event; its id."""
        self.last += 1
        self.events[self.last] = {"type": wire, "notification_type": kind, "data": data, "timestamp": 0.5}
        return self.last

    def trim(self, first: int) -> None:
        """Drop what is older."""
        self.first = first

    def begin_anew(self, epoch: str) -> None:
        """Another log."""
        self.epoch, self.first, self.last = epoch, 1, 0
        self.events.clear()

    @property
    def reset(self) -> dict[str, Any]:
        """The message that a cursor is none of this log's."""
        return {"type": "reset", "epoch": self.epoch, "first": self.first}


class Subscriber:
    """One connection's messages, without any I/O: `out` is what is to be sent, `pump` reads the log on."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.forbidden = log.forbidden
        self.epoch = log.epoch
        self.types: dict[str, dict[str, Any]] = {}
        self.after: dict[str, int] = {}
        self.tail = self.prev = log.last
        welcome = {
            "type": "welcome",
            "available_notifications": TYPES,
            "epoch": log.epoch,
            "last_id": log.last,
        }
        self.out: deque[dict[str, Any]] = deque([welcome])

    def command(self, message: dict[str, Any]) -> None:
        """Take a client's command."""
        match message["action"]:
            case "subscribe":
                self._subscribe(message)
            case "unsubscribe":
                for name in message["notification_types"]:
                    self.types.pop(name, None)
                self.out.append(
                    {"type": "unsubscription_confirmed", "notification_types": message["notification_types"]}
                )
            case "get_history":
                ids = range(max(self.log.first, self.log.last + 1 - message["limit"]), self.log.last + 1)
                events = [self._event(one) for one in ids]
                self.out.append({"type": "history", "events": events, "epoch": self.log.epoch})
            case "ping":
                self.out.append({"type": "pong"})

    def _subscribe(self, message: dict[str, Any]) -> None:
        if "unreadable" in message.get("filters", {}):
            self.out.append({"type": "error", "code": "too_large", "error": "too many characters"})
            return
        if "bad" in message.get("filters", {}):
            error = {"type": "error", "code": "bad_request", "error": "no filter", "action": "subscribe"}
            self.out.append(error)
            return
        since = message.get("since")
        if since is not None and (message.get("epoch") != self.log.epoch or since > self.log.last):
            self.out.append(self.log.reset)
            since = self.log.first - 1
        start = self.log.last if since is None else since
        if since is not None:
            if since < self.tail:
                self.after.update({name: max(self.after.get(name, 0), self.tail) for name in self.types})
                self.tail = since
            self.prev = since
        known = [name for name in message["notification_types"] if name in TYPES]
        if self.forbidden:
            known = TYPES[:-1] if "all_events" in known else known
        granted = [name for name in known if name not in self.forbidden]
        for name in TYPES[:-1] if "all_events" in granted else granted:
            self.types[name], self.after[name] = message.get("filters", {}), start
        self.out.append(
            {
                "type": "subscription_confirmed",
                "notification_types": granted,
                "filters": message.get("filters", {}),
                "invalid_types": [name for name in message["notification_types"] if name not in TYPES],
                "unauthorized_types": [name for name in known if name in self.forbidden],
                "epoch": self.log.epoch,
                "since": start,
            }
        )

    def pump(self) -> None:
        """Have what the log has ready to be sent."""
        if self.epoch != self.log.epoch:
            self.epoch, self.tail, self.prev = self.log.epoch, 0, 0
            self.after.clear()
            self.out.append(self.log.reset)
        if self.tail < self.log.first - 1:
            self.tail = self.prev = self.log.first - 1
            self.out.append(self.log.reset)
        while self.tail < self.log.last:
            self.tail += 1
            event = self.log.events[self.tail]
            if self._wants(event):
                self.out.append({**self._event(self.tail), "prev": self.prev})
                self.prev = self.tail

    def _wants(self, event: dict[str, Any]) -> bool:
        filters = self.types.get(event["notification_type"])
        if event["type"] == "notification" and filters is None:
            return False
        if self.tail <= self.after.get(event["notification_type"], 0):
            return False
        return all(event["data"].get(key) == value for key, value in (filters or {}).items())

    def _event(self, number: int) -> dict[str, Any]:
        return {**self.log.events[number], "id": number}


class FeedServer:
    """`async with FeedServer() as server`: a real socket at `server.url`."""

    def __init__(self) -> None:
        self.log = Log()
        self.port = 0
        self.commands: list[dict[str, Any]] = []
        """What clients have sent."""
        self.subscribers: dict[ServerConnection, Subscriber] = {}
        self.greeting: str | None = None
        """What is sent in place of a welcome."""
        self.connections = 0
        """How many there have been."""
        self.met = asyncio.Event()
        """Set with each connection."""
        self._server: Any = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen, at the port that it had before."""
        self._server = await serve(self._talk, "127.0.0.1", self.port, compression=None)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"

    async def stop(self) -> None:
        """Be away."""
        if self._server is not None:
            self.drop()
            self._server.close(close_connections=False)
            await self._server.wait_closed()
            self._server = None

    def drop(self) -> None:
        """Cut all connections."""
        for connection in list(self.subscribers):
            connection.transport.abort()

    async def publish(self, kind: str = "custom_event", wire: str = "notification", **data: Any) -> int:
        """Append an event and send it to whoever listens."""
        number = self.log.add(kind, wire, **data)
        await self.flush()
        return number

    async def flush(self) -> None:
        """Send what waits, and what of the log is not sent."""
        for connection in list(self.subscribers):
            await self._send(connection)

    async def say(self, message: dict[str, Any] | str) -> None:
        """Send something to all as it is."""
        text = message if isinstance(message, str) else json.dumps(message)
        for connection in list(self.subscribers):
            await connection.send(text)

    async def close_all(self, code: int, reason: str = "") -> None:
        """End all connections with a code."""
        for connection in list(self.subscribers):
            await connection.close(code, reason)

    async def _talk(self, connection: ServerConnection) -> None:
        if self.greeting is not None:
            await connection.send(self.greeting)
            return
        subscriber = self.subscribers[connection] = Subscriber(self.log)
        self.connections += 1
        self.met.set()
        try:
            with contextlib.suppress(ConnectionClosed):
                await self._send(connection)
                async for text in connection:
                    command = json.loads(text)
                    self.commands.append(command)
                    subscriber.command(command)
                    await self._send(connection)
        finally:
            del self.subscribers[connection]

    async def _send(self, connection: ServerConnection) -> None:
        subscriber = self.subscribers[connection]
        subscriber.pump()
        with contextlib.suppress(ConnectionClosed):
            while subscriber.out:
                await connection.send(json.dumps(subscriber.out.popleft()))


class KeptServer(StandaloneServer):
    """The real server whose log outlives it, as that of a Jupyter server does; with a token of the test's choice."""

    def __init__(self, folder: Path, token: str) -> None:
        super().__init__(partial(EmbeddedNode.open, folder / "repo"))
        self.token = token
        self._log_folder = folder / "log"

    async def _serve(self, listening: Future[int]) -> None:
        kept = partial(FeedSettings, engine=SQLiteEngine(self._log_folder))
        with patch.object(standalone, "FeedSettings", kept):  # such a server has no setting for it
            await super()._serve(listening)
