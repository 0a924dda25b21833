"""`ResilienceContentStream`: the guide's reader that goes on where a source broke off (items 168 to 171)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.node import Node, Path
from ipfs_stream_nb.content.reader import DagReader
from ipfs_stream_nb.content.reading import ReadingNode
from ipfs_stream_nb.content.resolver import resolve
from ipfs_stream_nb.content.retrieval.gateway import TrustlessGateway
from ipfs_stream_nb.content.retrieval.retriever import Retriever
from ipfs_stream_nb.content.retrieval.settings import RetrievalSettings
from ipfs_stream_nb.content.stream import IPFSContentStream
from ipfs_stream_nb.errors import (
    BadRequestError,
    BusyError,
    CorruptContentError,
    IsDirectoryError,
    NotFoundError,
    RetrievalError,
    RetrievalTimeoutError,
)

RETRY_DELAY: Final = 0.5
"""Seconds before the first retry; the second waits twice, and all later ones three times as long."""

_PASSING: Final = (RetrievalError, RetrievalTimeoutError, BusyError, ConnectionError, TimeoutError)
_ELSEWHERE: Final = (NotFoundError, CorruptContentError)
"""What this node cannot mend by trying again, and another source may."""

_log = logging.getLogger("ipfs_stream_nb.retrieval")


class ResilienceContentStream(IPFSContentStream):
    """One file, read through failures: from the node, and from verified gateways where the node fails.

    A read that breaks off goes on at the very byte. Errors that trying again cannot mend (a bad CID, a directory, an
    entry that is not there) are raised at once.
    """

    def __init__(self, ipfs_api: Node, cid: Path, max_retries: int = 3, use_gateways: bool = True) -> None:
        """`max_retries`: failures of one source in a row, with no byte in between, until it is given up.

        The gateways are those of the node's settings, or of the environment (RetrievalSettings). The node behind
        a server reads through the operator's gateways itself, so that none are used from here.
        """
        super().__init__(ipfs_api, cid)
        if max_retries < 0:
            raise BadRequestError(f"max_retries is 0 or more, not {max_retries}")
        self.max_retries = max_retries
        self.use_gateways = use_gateways
        retriever = getattr(ipfs_api, "retriever", None)
        self._settings = retriever.settings if retriever else RetrievalSettings.from_environment()
        self.gateways: list[str] = (
            [] if getattr(ipfs_api, "kind", "") == "remote" else list(self._settings.gateways)
        )
        self.current_source = "local"
        """"local": the node; "gateway": gateways, since the node failed."""
        self.retry_count = 0
        """Failures of the current source since it last gave a byte."""

    async def _pieces(self, offset: int, length: int | None) -> AsyncGenerator[bytes, None]:
        """The bytes from `offset`, from whoever gives them."""
        while True:
            if self.current_source == "local":
                pieces = self.ipfs_api.cat(self.cid, offset, length)
            else:
                pieces = self._from_gateways(offset, length)
            try:
                async with aclosing(pieces):
                    async for piece in pieces:
                        self.retry_count = 0
                        offset += len(piece)
                        length = None if length is None else length - len(piece)
                        yield piece
                return
            except (*_PASSING, *_ELSEWHERE) as error:
                await self._recover(error)

    async def _recover(self, error: Exception) -> None:
        """Wait before the next attempt, or change to gateways; raises the error where there is nothing left."""
        self.retry_count += 1
        passing = isinstance(error, _PASSING)
        if passing and self.retry_count <= self.max_retries:
            _log.info("%s: %s; retry %d of %d", self.cid, error, self.retry_count, self.max_retries)
            await asyncio.sleep(RETRY_DELAY * min(self.retry_count, 3))
        elif self.current_source == "local" and self.use_gateways and self.gateways:
            _log.info("%s: %s; going on with gateways", self.cid, error)
            self.current_source = "gateway"
            self.retry_count = 0
        else:
            raise error

    async def _from_gateways(self, offset: int, length: int | None) -> AsyncGenerator[bytes, None]:
        gateways = [TrustlessGateway(url, self._settings) for url in self.gateways]
        retriever = Retriever(gateways, self._settings)
        api = self.ipfs_api
        source = api.through(retriever) if isinstance(api, ReadingNode) else _GatewaySource(retriever)
        try:
            reader = DagReader(source)
            found = await resolve(reader, self.cid, follow=True)
            if found.kind != "file":
                raise IsDirectoryError(f"{self.cid} is a {found.kind}; name a file in it")
            size = await reader.file_size(found.cid)
            stop = size if length is None else offset + length
            async with aclosing(reader.read(found.cid, size, offset, stop)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            await source.close()


class _GatewaySource:
    """Verified blocks straight from gateways."""

    def __init__(self, retriever: Retriever) -> None:
        self._retriever = retriever

    async def get(self, cid: CID, start: int = 0, stop: int | None = None) -> bytes:
        return (await self._retriever.get(cid)).data[start:stop]

    async def size(self, cid: CID) -> int:
        return len(await self.get(cid))

    async def close(self) -> None:
        await self._retriever.close()
