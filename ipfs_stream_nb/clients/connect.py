"""`connect()`: to a server by URL, to the Jupyter server of this kernel, or to one embedded in this process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from ipfs_stream_nb.clients.content import AsyncClient
from ipfs_stream_nb.clients.direct import DirectNode
from ipfs_stream_nb.clients.embedded import start_standalone
from ipfs_stream_nb.clients.http import ServerHTTP
from ipfs_stream_nb.clients.remote import RemoteNode
from ipfs_stream_nb.clients.results import hinted
from ipfs_stream_nb.clients.server import ServerInfo, server_at, servers_of_kernel
from ipfs_stream_nb.clients.shared import Shared
from ipfs_stream_nb.clients.sync import Client, Session
from ipfs_stream_nb.content.blocks import BlockStore
from ipfs_stream_nb.content.blocks.filesystems import default_repo
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.content.node import Node
from ipfs_stream_nb.content.nodes import NODE_KINDS, NodeKind, NodeSettings, open_node
from ipfs_stream_nb.errors import BadRequestError, IPFSStreamError, RetrievalTimeoutError

HEALTH_TIMEOUT: Final = 5.0
"""Seconds that a server has to say that it is there; one that is busy starting its store takes one or two."""
START_TIMEOUT: Final = 30.0
"""The same for a server of our own, which may have a large store to open, or a Kubo daemon to wait for."""

StrPath = str | os.PathLike[str]


_sessions: Shared[Session] = Shared(Session.close)


@dataclass(frozen=True, slots=True)
class Wish:
    """What `connect` was asked for, once it is found to make sense."""

    url: str | None
    token: str | None
    repo: Path | None
    node: NodeKind
    default: Path
    """The place of the default repo: it can change with the environment, and then it is another connection."""


def _client(wish: Wish) -> Client:
    """A client on the connection that the same arguments have, opened for the first of them."""
    return Client(_sessions.take(wish, partial(Session, partial(open_client, wish)), _answers))


def _answers(session: Session) -> bool:
    """Whether its server is still there: one that was restarted has another token."""
    try:
        session.loop.run(session.client.health)
    except IPFSStreamError:
        return False
    return True


@hinted
def connect(
    url: str | None = None,
    token: str | None = None,
    *,
    repo: StrPath | None = None,
    node: NodeKind | None = None,
) -> Client:
    """Connect to content by CID, with nothing to configure.

    With `url` (and `token`): to that Jupyter server, or any other with the ipfs_stream_nb extension. Otherwise, in
    a notebook, to the Jupyter server that started this kernel, where it has the extension. Otherwise to a server
    embedded in this process, on loopback, over the store in the folder `repo` (default: see `default_repo`), which
    other processes may share. Giving `repo` asks for the latter. The client's repr says which of them it was.

    `node` says who holds what is added and pinned: "embedded" is the store in `repo`, "kubo" a Kubo daemon, found
    by $IPFS_API or in $IPFS_PATH; "auto", as without it, takes the server's own choice, or else the store, with a
    Kubo daemon asked for what is not there (see NodeSettings.kind). A Jupyter server with another kind of node is
    passed over.

    Called again with the same arguments it uses the same connection. Raises UnauthorizedError for a refused token,
    RetrievalError where nothing answers at `url` or no Kubo does, StoreError where the store cannot be used.
    """
    return _client(_checked(url, token, repo, node))


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
    url: str | None = None,
    token: str | None = None,
    *,
    repo: StrPath | None = None,
    node: NodeKind | None = None,
) -> Connecting:
    """The same as `connect`, for code on an event loop: the client's methods are awaited.

    Either `client = await connect_async()`, or `async with connect_async() as client:`.
    """
    return Connecting(partial(open_client, _checked(url, token, repo, node)))


def _checked(url: str | None, token: str | None, repo: StrPath | None, node: NodeKind | None) -> Wish:
    if url is None and token is not None:
        raise BadRequestError("a token goes with a url: connect(url, token=…)")
    if node is not None and node not in NODE_KINDS:
        raise BadRequestError(f"node is one of {', '.join(NODE_KINDS)}, not {node!r}")
    if url is not None and repo is not None:
        raise BadRequestError("give a url or a repo: the server at a url has a store of its own")
    if url is not None and node is not None:
        raise BadRequestError(
            "give a url or a node: which node the server at a url has, its operator decides (c.IPFSStreamExtension.node)"
        )
    where = None if repo is None else Path(repo).expanduser().absolute()
    return Wish(url, token, where, node or "auto", default_repo())


async def open_client(wish: Wish) -> AsyncClient:
    """Decide which server it is, and open the nearest way to its store."""
    if wish.url is not None:
        server = server_at(wish.url, wish.token)
        return _client_of(server, await _node_of(server), wish)
    tried: list[str] = []
    if wish.repo is None:
        for server in servers_of_kernel():
            try:
                return _client_of(server, await _node_of(server, wish.node), wish)
            except IPFSStreamError as error:
                tried.append(f"{server.found}: {error}")
    return await _open_standalone(wish, tuple(tried))


def _client_of(server: ServerInfo, node: Node, wish: Wish, **options: Any) -> AsyncClient:
    return AsyncClient(node, server, blocking=partial(_client, wish), **options)


async def _open_standalone(wish: Wish, tried: tuple[str, ...]) -> AsyncClient:
    """A client of the server embedded in this process. Raises StoreError, UnreachableError where no Kubo is."""
    settings = NodeSettings(kind=wish.node, repo=wish.repo or wish.default)
    # what is wrong with the store or the daemon is raised here, instead of being logged by the server
    probe = await open_node(settings)
    try:
        server, lease = await start_standalone(settings)
        try:
            node = await _node_of(server, patience=START_TIMEOUT)
        except BaseException:
            await asyncio.to_thread(lease.release)
            raise
    finally:
        await probe.close()
    on_close: Callable[[], Awaitable[None]] = partial(asyncio.to_thread, lease.release)
    return _client_of(server, node, wish, tried=tried, on_close=on_close)


async def _node_of(server: ServerInfo, kind: NodeKind = "auto", patience: float = HEALTH_TIMEOUT) -> Node:
    """The node of a server that answers, straight to its store where that is on this machine.

    Raises BadRequestError where it is of another kind, and whatever keeps the server from answering.
    """
    http = ServerHTTP(server)
    try:
        async with asyncio.timeout(patience):
            health = await http.json("GET", "ipfs-stream/health")
    except TimeoutError as error:
        if isinstance(error, IPFSStreamError):
            raise
        raise RetrievalTimeoutError(f"{server.url} did not answer in {patience:.0f} s") from None
    finally:
        await http.close()
    about = health.get("node", {})
    if kind not in {"auto", about.get("kind")}:
        raise BadRequestError(f"its node is {about.get('kind')!r}, and {kind!r} was asked for")
    remote = RemoteNode(server, fetches=bool(about.get("sources")))
    store = await _same_store(about) if server.on_this_machine else None
    if store is None:
        return remote
    return DirectNode(store, remote) if remote.fetches else EmbeddedNode(store)


async def _same_store(about: dict[str, Any]) -> BlockStore | None:
    """The server's own store, where this process can open it, it is the same one, and the server has no rules.

    A policy, an authorizer or an upload limit of the operator's holds for requests only: then this is None.
    """
    path, store_id, min_free = about.get("repo"), about.get("store_id"), about.get("min_free")
    if not path or not store_id or min_free is None or about.get("direct") is not True:
        return None
    opener = partial(
        BlockStore.open,
        path,
        create=False,
        quota=about.get("quota"),
        min_free=min_free,
        cache_quota=about.get("cache_quota"),
    )
    try:
        store = await asyncio.to_thread(opener)
    except (IPFSStreamError, OSError):
        return None
    if store.store_id == store_id:
        return store
    await asyncio.to_thread(store.close)
    return None
