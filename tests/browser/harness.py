"""A page with the player's ES module and a stand-in for the notebook around it, served with media that can go wrong.

The module is real, and so are browser, HTTP and media; the kernel's end of the wire is in the hands of the test.
"""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler, StaticFileHandler

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
                (f"{BASE}(player.js|player.css)", StaticFileHandler, {"path": str(STATIC)}),
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
