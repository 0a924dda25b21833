"""A client that reaches its server over HTTP alone."""

from __future__ import annotations

from contextlib import asynccontextmanager

from ipfs_stream_nb.clients.content import AsyncClient
from ipfs_stream_nb.clients.remote import RemoteNode
from ipfs_stream_nb.clients.server import ServerInfo


@asynccontextmanager
async def connected(url, token):
    """A client behind HTTP."""
    info = ServerInfo.at(url, token)
    async with AsyncClient(RemoteNode(info), info) as client:
        yield client
