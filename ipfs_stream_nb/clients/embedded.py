"""The embedded server: this package's own HTTP surface on loopback, in a thread of this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ipfs_stream_nb.clients.content import AsyncClient
from ipfs_stream_nb.clients.server import ServerInfo
from ipfs_stream_nb.clients.shared import Shared
from ipfs_stream_nb.content.embedded import EmbeddedNode

if TYPE_CHECKING:
    from ipfs_stream_nb.clients.sync import Client
    from ipfs_stream_nb_server.standalone import StandaloneServer


_servers: Shared[StandaloneServer] = Shared(lambda server: server.stop())


def _start(repo: Path) -> StandaloneServer:
    from ipfs_stream_nb_server.standalone import StandaloneServer  # noqa: PLC0415  # 0.2 s, and only needed here

    return StandaloneServer(partial(EmbeddedNode.open, repo)).start()


async def open_standalone(repo: Path, blocking: Callable[[], Client], tried: tuple[str, ...]) -> AsyncClient:
    """A client of the embedded server over the store at `repo`. Raises StoreError."""
    node = await EmbeddedNode.open(repo)
    try:
        lease = await asyncio.to_thread(_servers.take, repo, partial(_start, repo))
    except BaseException:
        await node.close()
        raise
    info = ServerInfo.at(lease.value.url, lease.value.token, found="embedded in this process", embedded=True)
    release = partial(asyncio.to_thread, lease.release)
    return AsyncClient(node, info, tried=tried, blocking=blocking, on_close=release)
