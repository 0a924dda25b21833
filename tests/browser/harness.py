"""A page with the player's ES module and a stand-in for the notebook around it, served with media that can go wrong.

The module is real, and so are browser, HTTP and media; the kernel's end of the wire is in the hands of the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler, StaticFileHandler

from listening import stop_accepting

STATIC = Path(__file__).parents[2] / "ipfs_stream_nb" / "widgets" / "static"
BASE = "/hub/a%40b/"


@dataclass
class Harness:
    """The server's knobs: what it asks for, and what it saw."""

    folder: Path
    origin: str = ""
    needs_token: bool = False
    tokens: set[str] = field(default_factory=set)
    fail_with: int = 0
    silent: bool = False
    delay: float = 0
    """Seconds before each answer."""
    seen: list[tuple[str, str, int]] = field(default_factory=list)
    """Range, query and status of each request for content."""
    open: int = 0
    """Content requests that are under way."""

    @property
    def url(self) -> str:
        return f"{self.origin}{BASE}"


class Page(RequestHandler):
    def get(self) -> None:
        page = (Path(__file__).parent / "harness.html").read_text()
        self.finish(page.replace("{{ base }}", BASE))


class Content(StaticFileHandler):
    """Files with ranges, behind the harness's knobs."""

    def initialize(self, harness: Harness) -> None:
        super().initialize(str(harness.folder))
        self.harness = harness

    async def prepare(self) -> None:
        self.harness.open += 1
        token = self.get_query_argument("token", "")
        await asyncio.sleep(3600 if self.harness.silent else self.harness.delay)
        if self.harness.fail_with:
            self.refuse(self.harness.fail_with, "The store is damaged: run client.verify().")
        elif self.harness.needs_token and token not in self.harness.tokens:
            self.refuse(403, "The token has run out.")

    def refuse(self, status: int, text: str) -> None:
        self.set_status(status)
        self.finish(json.dumps({"type": "error", "message": text}))

    def on_finish(self) -> None:
        self._left()
        self.harness.seen.append(
            (self.request.headers.get("Range", ""), self.request.query, self.get_status())
        )

    def on_connection_close(self) -> None:
        self._left()
        super().on_connection_close()

    def _left(self) -> None:
        if not getattr(self, "counted", False):
            self.counted = True
            self.harness.open -= 1

    def set_extra_headers(self, path: str) -> None:
        self.set_header("Cache-Control", "no-store")


def serve(folder: Path) -> tuple[Harness, Any]:
    """Start the server in a thread; gives the knobs and a function that stops it."""
    harness, started, stopping = Harness(folder), threading.Event(), []

    async def main() -> None:
        application = Application(
            [
                (f"{BASE}ipfs/(.*)", Content, {"harness": harness}),
                (rf"{BASE}([a-z-]+\.(?:js|css))", StaticFileHandler, {"path": str(STATIC)}),
                (BASE, Page),
            ],
            log_function=lambda _: None,
        )
        server, stop = HTTPServer(application), asyncio.Event()
        sockets = bind_sockets(0, "127.0.0.1")
        server.add_sockets(sockets)
        harness.origin = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
        stopping.append((asyncio.get_running_loop(), stop))
        started.set()
        await stop.wait()
        server.stop()
        await server.close_all_connections()

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    assert started.wait(10), "the harness did not start"

    def close() -> None:
        loop, stop = stopping[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)

    return harness, close


@dataclass
class Cut:
    """When a connection is cut: after so many bytes from the client, or from the server."""

    up: int | None = None
    down: int | None = None


class Relay:
    """A TCP relay before a server, in a thread, that cuts connections; `with Relay(url) as relay`, then `relay.url`."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._host, self._port, self._path = parts.hostname, parts.port, parts.path
        self.cuts: deque[Cut] = deque()
        """For the next connections, one each; when there are none, they are left alone."""
        self.only = b""
        """Cuts are for connections whose first bytes hold this."""
        self.rate = 0.0
        """Bytes a second that come through from each client; 0 is as fast as can be."""
        self.most: int | None = None
        """Bytes that come through from all clients; what is beyond that waits until it is more."""
        self.closed = False
        """Whether new connections are refused."""
        self.requests: list[str] = []
        """The first line of each request, also where a connection has several."""
        self.up = self.down = 0
        """Bytes that came through."""
        self._writers: set[asyncio.StreamWriter] = set()

    def __enter__(self) -> Self:
        started = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._main(started),), daemon=True)
        self._thread.start()
        assert started.wait(10), "the relay did not start"
        return self

    def __exit__(self, *_exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def cut(self) -> None:
        """Cut all connections that there are."""
        self._loop.call_soon_threadsafe(self._cut_all)

    def _cut_all(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _main(self, started: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1")
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{self._path}"
        started.set()
        await self._stop.wait()
        await stop_accepting(server)
        server.close()
        self.closed = True
        own = asyncio.current_task()
        while others := asyncio.all_tasks() - {own}:
            self._cut_all()
            await asyncio.wait(others, timeout=0.02)
        await asyncio.sleep(0)  # aborted transports are closed

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            self._note(head)
            if not self.closed:
                source, sink = await asyncio.open_connection(self._host, self._port)
                self._writers.add(sink)
                sink.write(head)
                cut = self.cuts.popleft() if self.cuts and self.only in head else Cut()
                await asyncio.gather(
                    self._pipe(reader, sink, cut.up, up=True), self._pipe(source, writer, cut.down, up=False)
                )
                self._writers.discard(sink)
        writer.transport.abort()
        self._writers.discard(writer)

    @property
    def _is_full(self) -> bool:
        return self.most is not None and self.up >= self.most

    def _note(self, data: bytes) -> None:
        self.requests += [line.decode() for line in re.findall(rb"^[A-Z]+ /\S+ HTTP/1\.1(?=\r\n)", data)]

    async def _pipe(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, limit: int | None, *, up: bool
    ) -> None:
        passed = 0
        with contextlib.suppress(ConnectionError):
            while data := await source.read(1 << 16):
                if limit is not None and passed + len(data) >= limit:
                    sink.write(data[: limit - passed])
                    await sink.drain()
                    await asyncio.sleep(0.02)  # what was sent arrives; only then is the connection gone
                    self._cut_all()
                    return
                while up and self._is_full and not sink.is_closing():  # noqa: ASYNC110 - another thread changes it
                    await asyncio.sleep(0.01)
                if up:
                    self._note(data)
                sink.write(data)
                passed += len(data)
                self.up += len(data) * up
                self.down += len(data) * (not up)
                await sink.drain()
                if up and self.rate:
                    await asyncio.sleep(len(data) / self.rate)
        sink.close()
