"""`DirectNode`: a server's own store, opened in this process, with the server behind it for everything else.

What is in the store is read from it, with no request. What is not, the server fetches, as its operator has set it,
and keeps for all who share the store.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from ipfs_stream_nb.clients.http import ServerHTTP
from ipfs_stream_nb.clients.remote import RemoteNode
from ipfs_stream_nb.content.blocks import BlockStore
from ipfs_stream_nb.content.car import CarDecoder
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.content.node import Origins, Path, Pin
from ipfs_stream_nb.content.observing import PinWatch
from ipfs_stream_nb.content.retrieval.retriever import Fetched, Retriever
from ipfs_stream_nb.content.retrieval.settings import RetrievalSettings
from ipfs_stream_nb.errors import NotFoundError, RetrievalError, StoreError


class ServerRetriever(Retriever):
    """Asks the server alone. It has tried what there is to try, so that its errors are taken as they are."""

    def __init__(self, server: RemoteNode) -> None:
        super().__init__((), RetrievalSettings((), ()))
        self._server = server

    async def _fetch(self, cid: CID) -> Fetched:
        return Fetched(cid, await self._server.block_get(cid), self._server.http.server.url)

    async def run(
        self, cid: CID, start: int, stop: int, *, provider: str | None = None
    ) -> AsyncGenerator[Fetched, None]:
        """Verified blocks of bytes `start` to `stop` of the file under `cid`. Raises what the server does."""
        decoder = CarDecoder()
        car = self._server.export_car(cid, scope="entity", entity_bytes=(start, stop - 1))
        async with aclosing(car):
            async for piece in car:
                for block in decoder.feed(piece):
                    await self._verify(block.cid, block.data)
                    yield Fetched(block.cid, block.data, provider or self._server.http.server.url)


class DirectNode(EmbeddedNode):
    """The node interface over the store of a server that reads from others too."""

    def __init__(self, store: BlockStore, server: RemoteNode) -> None:
        """`store` is the server's own; the node closes both."""
        super().__init__(store, ServerRetriever(server), keep=False)
        self._server = server

    @property
    def http(self) -> ServerHTTP:
        """The connection to the server."""
        return self._server.http

    async def fixed(self, path: Path) -> Path:
        """The path below a CID that a path below an IPNS name stands for, as the server resolves it."""
        return await self._server.fixed(path)

    async def _pin(self, cid: CID, name: str, watch: PinWatch) -> Pin:
        """Where not all of it is here, the server fetches and pins it, and tells of that itself."""
        try:
            return await EmbeddedNode._pin(self.offline(), cid, name, watch)  # noqa: SLF001  # a copy of this one
        except StoreError:
            raise
        except (NotFoundError, RetrievalError):
            watch.leave()
            return await self._server.pin(cid, name=name, progress=watch)

    async def sources(self, cid: CID) -> Origins:
        """Where the blocks below `cid` came from: the server knows of those that it is about to write, too."""
        return await self._server.sources(cid)

    async def close(self) -> None:
        """Close the store, and the connection to the server. Idempotent."""
        try:
            await super().close()
        finally:
            await self._server.close()
