"""Trustless gateways (https://specs.ipfs.tech/http-gateways/trustless-gateway/): blocks, and CARs of byte ranges.

Files are never asked for, and so neither are HTTP ranges, which gateways answer in many ways. What comes is hashed
by the Retriever, so that a wrong Content-Type or a page of HTML needs no thought of its own here.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Final

import aiohttp

from ipfs_stream_nb.content.car import CarBlock, CarDecoder
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.dag_pb import MAX_BLOCK
from ipfs_stream_nb.content.retrieval.http import HTTPSource
from ipfs_stream_nb.content.retrieval.provider import ProviderKind
from ipfs_stream_nb.content.retrieval.settings import RetrievalSettings
from ipfs_stream_nb.errors import (
    BusyError,
    CorruptContentError,
    IPFSStreamError,
    NotFoundError,
    RetrievalError,
    TooLargeError,
    error_from_json,
)

MAX_ERROR_BYTES: Final = 16 * 1024
"""Bytes of an answer that is an error: our own server says in it what is wrong."""
_RAW: Final = "application/vnd.ipld.raw"
_CAR: Final = "application/vnd.ipld.car; version=1; order=dfs; dups=n"


class TrustlessGateway(HTTPSource):
    """One gateway as a Provider. It belongs to the event loop that uses it."""

    def __init__(
        self,
        url: str,
        settings: RetrievalSettings,
        *,
        kind: ProviderKind = "gateway",
        headers: Mapping[str, str] | None = None,
        near: bool = False,
        name: str | None = None,
    ) -> None:
        """`url` is its base URL; `headers` go with each request to that very origin, and nowhere else."""
        super().__init__(url, settings, headers=headers)
        self.kind = kind
        self.near = near
        self.name = name or self.name

    async def get(self, cid: CID) -> bytes:
        """The block, not verified. Raises as Provider.get does."""
        return await self._block(cid, {})

    async def get_held(self, cid: CID) -> bytes | None:
        """The block where the gateway has it itself, and need not fetch it (RFC 9111, only-if-cached)."""
        try:
            return await self._block(cid, {"Cache-Control": "only-if-cached"})
        except NotFoundError:
            return None

    async def _block(self, cid: CID, headers: Mapping[str, str]) -> bytes:
        async with self.request(f"ipfs/{cid}", {"format": "raw"}, {"Accept": _RAW, **headers}) as response:
            return await self.read(response, MAX_BLOCK, "a block")

    async def run(self, cid: CID, start: int, stop: int) -> AsyncGenerator[CarBlock, None]:
        """The blocks of bytes `start` to `stop` of a file, as they arrive. Raises as Provider.get does."""
        params = {"format": "car", "dag-scope": "entity", "entity-bytes": f"{start}:{stop - 1}"}
        decoder = CarDecoder()
        request = self.request(f"ipfs/{cid}", params, {"Accept": _CAR})
        async with request as response, aclosing(self.pieces(response)) as pieces:
            async for piece in pieces:
                for block in _read_car(decoder, piece):
                    yield block
        _read_car(decoder, None)

    async def ipns_record(self, name: str) -> bytes:
        """The signed record of an IPNS name in base 36, not verified. Raises as Provider.get does."""
        return await self.record(f"ipns/{name}", {"format": "ipns-record"})

    async def error(self, response: aiohttp.ClientResponse) -> IPFSStreamError:
        """What an answer that is not 200 means; our own server says it."""
        told = await super().error(response)
        if self.kind != "server":
            return told
        try:
            body = json.loads(await self.read(response, MAX_ERROR_BYTES, "an error"))
        except (IPFSStreamError, ValueError, RecursionError):
            return told
        if not isinstance(body, dict) or "code" not in body:
            return told
        error = error_from_json(body)
        if isinstance(error, BusyError):
            error.retry_after = getattr(told, "retry_after", None)
        return NotFoundError(str(error)) if response.status == 412 else error


def _read_car(decoder: CarDecoder, piece: bytes | None) -> list[CarBlock]:
    """The next blocks, or the end for None. What is no CAR, or cut short, is no block with wrong bytes."""
    try:
        if piece is not None:
            return decoder.feed(piece)
        decoder.finish()
    except (CorruptContentError, TooLargeError) as error:
        raise RetrievalError(f"it sent a CAR that cannot be read: {error}") from error
    return []
