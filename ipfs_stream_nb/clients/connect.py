"""`connect()`: to a server by URL, to the Jupyter server of this kernel, or to one embedded in this process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Generator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from ipfs_stream_nb.clients.content import AsyncClient
from ipfs_stream_nb.clients.embedded import open_standalone
from ipfs_stream_nb.clients.http import ServerHTTP
from ipfs_stream_nb.clients.remote import RemoteNode
from ipfs_stream_nb.clients.results import hinted
from ipfs_stream_nb.clients.server import ServerInfo, servers_of_kernel
from ipfs_stream_nb.clients.shared import Shared
from ipfs_stream_nb.clients.sync import Client, Session
from ipfs_stream_nb.content.blocks import BlockStore
from ipfs_stream_nb.content.blocks.filesystems import default_repo
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.content.node import Node
from ipfs_stream_nb.errors import BadRequestError, IPFSStreamError, RetrievalTimeoutError

HEALTH_TIMEOUT: Final = 5.0
"""Seconds that a server has to say that it is there; one that is busy starting its store takes one or two."""

StrPath = str | os.PathLike[str]


_sessions: Shared[Session] = Shared(Session.close)


def _client(url: str | None, token: str | None, repo: Path | None) -> Client:
    """A client on the connection that the same arguments have, opened for the first of them."""
    opener = partial(open_client, url, token, repo, partial(_client, url, token, repo))
    # the place of the default repo belongs to the key: it can change with the environment
    return Client(_sessions.take((url, token, repo, default_repo()), partial(Session, opener), _answers))


def _answers(session: Session) -> bool:
    """Whether its server is still there: one that was restarted has another token."""
    try:
        session.loop.run(session.client.health)
    except IPFSStreamError:
        return False
    return True


@hinted
def connect(url: str | None = None, token: str | None = None, *, repo: StrPath | None = None) -> Client:
    """Connect to content by CID, with nothing to configure.

    With `url` (and `token`): to that Jupyter server, or any other with the ipfs_stream_nb extension. Otherwise, in
    a notebook, to the Jupyter server that started this kernel, where it has the extension. Otherwise to a server
    embedded in this process, on loopback, over the store in the folder `repo` (default: see `default_repo`), which
    other processes may share. Giving `repo` asks for the latter. The client's repr says which of them it was.

    Called again with the same arguments it uses the same connection. Raises UnauthorizedError for a refused token,
    RetrievalError where nothing answers at `url`, StoreError where the store cannot be used.
    """
    return _client(url, token, _checked(url, token, repo))


class Connecting(Awaitable[AsyncClient]):
    """What `connect_async` returns: awaited it gives the client, entered by `async with` it closes it too."""

    def __init__(self, opener: Callable[[], Coroutine[Any, Any, AsyncClient]]) -> None:
        self._opener = opener
        self._client: AsyncClient | None = None

    def __await__(self) -> Generator[Any, Any, AsyncClient]:
        return self._opener().__await__()

    async def __aenter__(self) -> AsyncClient:
        self._client = await self
        return self._client

    async def __aexit__(self, *_exc: object) -> None:
        if self._client is not None:
            await self._client.close()


@hinted
def connect_async(
    url: str | None = None, token: str | None = None, *, repo: StrPath | None = None
) -> Connecting:
    """The same as `connect`, for code on an event loop: the client's methods are awaited.

    Either `client = await connect_async()`, or `async with connect_async() as client:`.
    """
    where = _checked(url, token, repo)
    return Connecting(partial(open_client, url, token, where, partial(_client, url, token, where)))


def _checked(url: str | None, token: str | None, repo: StrPath | None) -> Path | None:
    if url is not None and not isinstance(url, str):
        raise BadRequestError(f"the url is a text such as http://localhost:8888/, not a {type(url).__name__}")
    if url is None and token is not None:
        raise BadRequestError("a token goes with a url: connect(url, token=…)")
    if repo is None:
        return None
    if url is not None:
        raise BadRequestError("give a url or a repo: the server at a url has a store of its own")
    return Path(repo).expanduser().absolute()


async def open_client(
    url: str | None, token: str | None, repo: Path | None, blocking: Callable[[], Client]
) -> AsyncClient:
    """Decide which server it is, and open the nearest way to its store."""
    if url is not None:
        server = ServerInfo.at(url, token)
        own = next((own for own in servers_of_kernel() if own.url == server.url), None)
        if own is not None:
            server = replace(own, token=server.token or own.token)
        return await _client_of(server, blocking)
    tried: list[str] = []
    if repo is None:
        for server in servers_of_kernel():
            try:
                return await _client_of(server, blocking)
            except IPFSStreamError as error:
                tried.append(f"{server.found}: {error}")
    return await open_standalone(repo or default_repo(), blocking, tuple(tried))


async def _client_of(server: ServerInfo, blocking: Callable[[], Client]) -> AsyncClient:
    """A client of a server that answers, straight to its store where that is on this machine."""
    http = ServerHTTP(server)
    try:
        async with asyncio.timeout(HEALTH_TIMEOUT):
            health = await http.json("GET", "ipfs-stream/health")
    except TimeoutError as error:
        if isinstance(error, IPFSStreamError):
            raise
        raise RetrievalTimeoutError(f"{server.url} did not answer in {HEALTH_TIMEOUT:.0f} s") from None
    finally:
        await http.close()
    node: Node | None = await _same_store(health) if server.on_this_machine else None
    return AsyncClient(node or RemoteNode(server), server, blocking=blocking)


async def _same_store(health: dict[str, Any]) -> EmbeddedNode | None:
    """The server's own store, where this process can open it, it is the same one, and the server has no rules.

    A policy, an authorizer or an upload limit of the operator's holds for requests only: then this is None.
    """
    about = health.get("node", {})
    path, store_id, min_free = about.get("repo"), about.get("store_id"), about.get("min_free")
    if not path or not store_id or min_free is None or about.get("direct") is not True:
        return None
    opener = partial(BlockStore.open, path, create=False, quota=about.get("quota"), min_free=min_free)
    try:
        store = await asyncio.to_thread(opener)
    except (IPFSStreamError, OSError):
        return None
    if store.store_id == store_id:
        return EmbeddedNode(store)
    await asyncio.to_thread(store.close)
    return None
