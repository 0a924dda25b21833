"""The embedded server: this package's own HTTP surface on loopback, in a thread of this process."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from ipfs_stream_nb.clients.server import ServerInfo
from ipfs_stream_nb.clients.shared import Lease, Shared
from ipfs_stream_nb.content.nodes import NodeSettings, open_node

if TYPE_CHECKING:
    from ipfs_stream_nb_server.standalone import StandaloneServer


_servers: Shared[StandaloneServer] = Shared(lambda server: server.stop())


def _start(settings: NodeSettings) -> StandaloneServer:
    from ipfs_stream_nb_server.standalone import StandaloneServer  # noqa: PLC0415  # 0.2 s, and only needed here

    return StandaloneServer(partial(open_node, settings)).start()


async def start_standalone(settings: NodeSettings) -> tuple[ServerInfo, Lease[StandaloneServer]]:
    """The embedded server with such a node, and a hold on it."""
    lease = await asyncio.to_thread(_servers.take, settings, partial(_start, settings))
    server = lease.value
    found = "embedded in this process"
    if settings.kind == "kubo":
        found += "; adds and pins are the Kubo daemon's"
    return ServerInfo.at(server.url, server.token, found=found, embedded=True), lease
