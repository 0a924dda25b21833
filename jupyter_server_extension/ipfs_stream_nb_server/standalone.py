"""The extension's routes without a Jupyter server: a Tornado application of its own, on loopback, in a thread.

`connect()` starts one where there is no Jupyter server around (scripts, nbval, VS Code). Authentication is
Jupyter's own machinery with a random token, so that the same code decides in both.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from http import HTTPStatus
from typing import Any, Final, Self

from jupyter_server.auth import AllowAllAuthorizer, IdentityProvider
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from ipfs_stream_nb.content.blocks.filesystems import default_repo
from ipfs_stream_nb.content.node import Node
from ipfs_stream_nb.content.nodes import NodeSettings, open_node
from ipfs_stream_nb.security.tokens import MIN_SECRET, TokenSigner
from ipfs_stream_nb_server.context import NodeHolder, ServerContext
from ipfs_stream_nb_server.feed import Feed, FeedSettings
from ipfs_stream_nb_server.routes import routes

ADDRESS: Final = "127.0.0.1"
START_TIMEOUT: Final = 30.0
"""Seconds to wait for the thread to listen, or to end."""

_log = logging.getLogger("ipfs_stream_nb.server")


class StandaloneServer:
    """Serves a node on a free loopback port from `start()` to `stop()`; also a context manager.

    It has an event loop of its own, so it works beside one that runs already, as in a notebook's kernel. Its
    thread does not keep the process alive.
    """

    def __init__(self, open_node: Callable[[], Awaitable[Node]] | None = None) -> None:
        """`open_node` is awaited on the server's own loop; default: the node that the environment describes."""
        self._open_node = open_node or _default_node
        self.token = secrets.token_urlsafe(32)
        self.url = ""
        """Ends with a slash; empty until `start()`."""
        self._thread: threading.Thread | None = None
        self._running: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def start(self) -> Self:
        """Listen; returns when requests are taken. Raises OSError where no port can be had."""
        if self._thread is None:
            listening: Future[int] = Future()
            self._thread = threading.Thread(
                target=self._run, args=(listening,), name="ipfs-stream-server", daemon=True
            )
            self._thread.start()
            try:
                self.url = f"http://{ADDRESS}:{listening.result(START_TIMEOUT)}/"
            except BaseException:
                self.stop()
                raise
        return self

    def stop(self) -> None:
        """Close connections and the node, and wait for the thread to end. Idempotent."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        if self._running is not None:
            loop, stopping = self._running
            self._running = None
            loop.call_soon_threadsafe(stopping.set)
        thread.join(START_TIMEOUT)
        self.url = ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def _run(self, listening: Future[int]) -> None:
        try:
            asyncio.run(self._serve(listening))
        except Exception as error:  # noqa: BLE001  # whoever waits in start() is told
            if listening.done():
                _log.exception("The standalone IPFS server ended")
            else:
                listening.set_exception(error)

    async def _serve(self, listening: Future[int]) -> None:
        stopping = asyncio.Event()
        signer = TokenSigner(secrets.token_bytes(MIN_SECRET))
        feed = Feed(FeedSettings(default_repo()), _log)
        context = ServerContext(NodeHolder(self._open_node, _log), signer, feed, log=_log)
        server = HTTPServer(Application(routes(context), **self._settings()))
        sockets = bind_sockets(0, ADDRESS)
        server.add_sockets(sockets)
        context.start()
        self._running = (asyncio.get_running_loop(), stopping)
        listening.set_result(sockets[0].getsockname()[1])
        try:
            await stopping.wait()
        finally:
            server.stop()
            await server.close_all_connections()
            await context.close()

    def _settings(self) -> dict[str, Any]:
        """What Jupyter's handlers look up in their application."""
        identity = IdentityProvider(token=self.token)
        return {
            "base_url": "/",
            "cookie_secret": secrets.token_bytes(32),
            "xsrf_cookies": True,
            "allow_unauthenticated_access": False,
            "allow_remote_access": False,  # other Host headers are refused: no DNS rebinding
            "local_hostnames": ["localhost"],
            "identity_provider": identity,
            "authorizer": AllowAllAuthorizer(identity_provider=identity),
            "log_function": _log_request,
        }


async def _default_node() -> Node:
    return await open_node(NodeSettings())


def _log_request(handler: RequestHandler) -> None:
    """A notebook shows its kernel's warnings, so only what is our own fault is one: the rest is in the error."""
    level = logging.WARNING if handler.get_status() == HTTPStatus.INTERNAL_SERVER_ERROR else logging.DEBUG
    request = handler.request
    _log.log(level, "%d %s %s", handler.get_status(), request.method, request.uri)
