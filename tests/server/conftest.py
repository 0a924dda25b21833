"""A real Jupyter server with the extension, at a base URL that needs quoting, in the test's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import io
import random
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from jupyter_server.serverapp import ServerApp
from tornado.httpserver import HTTPServer
from traitlets.config import Config
from yarl import URL

from ipfs_stream_nb.content.node import Node
from ipfs_stream_nb_server.app import IPFSStreamExtension
from ipfs_stream_nb_server.context import ServerContext

BASE_URL = "/a%40b/"
NAME = "ipfs_stream_nb_server"


@dataclass
class Running:
    """A server to talk to; `http` sends Jupyter's token with everything unless told otherwise."""

    app: ServerApp
    http: aiohttp.ClientSession
    port: int
    token: str
    sessions: list[aiohttp.ClientSession] = field(default_factory=list)

    @property
    def extension(self) -> IPFSStreamExtension:
        """The extension in it."""
        return self.app.extension_manager.extension_points[NAME].app

    @property
    def context(self) -> ServerContext:
        """What its handlers share."""
        return self.extension.context

    async def node(self) -> Node:
        """Its node, opened."""
        return await self.context.nodes.get()

    def url(self, path: str) -> str:
        """The address of a path below the base URL."""
        return f"http://127.0.0.1:{self.port}{BASE_URL}{path}"

    def request(self, method: str, path: str, **kwargs: Any) -> Any:
        """Send with Jupyter's token in the header."""
        return self.http.request(method, URL(self.url(path), encoded=True), allow_redirects=False, **kwargs)

    def anonymous(self, method: str, path: str, **kwargs: Any) -> Any:
        """Send with no credential but those in `kwargs`."""
        headers = {"Authorization": None} | kwargs.pop("headers", {})
        session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
        self.sessions.append(session)
        shown = {name: value for name, value in headers.items() if value is not None}
        return session.request(
            method, URL(self.url(path), encoded=True), allow_redirects=False, headers=shown, **kwargs
        )

    async def json(self, method: str, path: str, status: int = 200, **kwargs: Any) -> Any:
        """The JSON of an answer with this status."""
        async with self.request(method, path, **kwargs) as answer:
            body = await answer.text()
            assert answer.status == status, body
            return await answer.json()

    async def add(self, data: bytes, **params: str) -> str:
        """POST a file; its CID."""
        return (await self.json("POST", "ipfs", 201, data=io.BytesIO(data), params=params))["cid"]


@contextlib.asynccontextmanager
async def running(config: dict[str, Any], tmp_path: Any) -> AsyncIterator[Running]:
    """Start a server with this configuration beside the defaults of the tests; stop it at the end."""
    token = secrets.token_hex(8)
    merged = Config(
        {
            "ServerApp": {"jpserver_extensions": {NAME: True}, "open_browser": False, "port": 0},
            "IdentityProvider": {"token": token},
            "IPFSStreamExtension": {"repo_path": str(tmp_path / "repo"), "min_free": 0},
        }
    )
    merged.merge(Config(config))
    root = tmp_path / "root"
    root.mkdir(exist_ok=True)
    ServerApp.clear_instance()
    app = ServerApp.instance(
        config=merged, base_url=BASE_URL, root_dir=str(root), allow_root=True, log_level="DEBUG"
    )
    app.init_signal = lambda: None
    app.initialize(argv=[], new_httpserver=False)
    app.log.propagate = True
    app.log.handlers = []
    server = HTTPServer(app.web_app)
    server.listen(0, "127.0.0.1")
    (listening,) = server._sockets.values()
    http = aiohttp.ClientSession(
        headers={"Authorization": f"token {token}"},
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    )
    served = Running(app, http, listening.getsockname()[1], token)
    try:
        yield served
    finally:
        await asyncio.gather(*(session.close() for session in [http, *served.sessions]))
        server.stop()
        await server.close_all_connections()
        await app._cleanup()
        ServerApp.clear_instance()


@pytest.fixture
def jupyter_folders(tmp_path, monkeypatch) -> None:
    """Jupyter finds nothing of the user's, and leaves nothing there."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("JUPYTER_NO_CONFIG", "1")
    for kind in ("CONFIG", "DATA", "RUNTIME"):
        monkeypatch.setenv(f"JUPYTER_{kind}_DIR", str(tmp_path / kind.lower()))


@pytest.fixture
def start_server(jupyter_folders) -> Callable[[dict[str, Any], Any], Any]:
    """`running`, for tests that stop a server and start the next one."""
    return running


@pytest.fixture
async def server(jupyter_folders, tmp_path, server_config) -> AsyncIterator[Running]:
    """The server that most tests use; a test parametrizes `server_config` for another one."""
    async with running(server_config, tmp_path) as served:
        yield served


@pytest.fixture
def server_config() -> dict[str, Any]:
    """Configuration beside the tests' own."""
    return {}


@pytest.fixture
async def large(server):
    """Random content of several blocks, and its CID."""
    data = random.Random(1).randbytes((9 << 20) + 12_345)
    return data, await server.add(data)
