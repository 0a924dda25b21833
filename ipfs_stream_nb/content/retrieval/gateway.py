"""Trustless gateways (https://specs.ipfs.tech/http-gateways/trustless-gateway/): blocks, and CARs of byte ranges.

Files are never asked for, and so neither are HTTP ranges, which gateways answer in many ways. What comes is hashed
by the Retriever, so that a wrong Content-Type or a page of HTML needs no thought of its own here.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Final

from ipfs_stream_nb.content.car import CarBlock, CarDecoder
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.dag_pb import MAX_BLOCK
from ipfs_stream_nb.content.retrieval.http import HTTPSource
from ipfs_stream_nb.content.retrieval.provider import ProviderKind
from ipfs_stream_nb.errors import CorruptContentError, RetrievalError, TooLargeError

FEED_BYTES: Final = 32 * 1024
"""Bytes of a CAR that are taken apart at once: it may consist of the smallest sections, some two thousand in so many
bytes, and nothing else runs meanwhile."""
_RAW: Final = "application/vnd.ipld.raw"
_CAR: Final = "application/vnd.ipld.car; version=1; order=dfs; dups=n"


class TrustlessGateway(HTTPSource):
    """One gateway as a Provider. It belongs to the event loop that uses it."""

    kind: ProviderKind = "gateway"
    near = False

    async def get(self, cid: CID) -> bytes:
        """The block, not verified. Raises as Provider.get does."""
        async with self.request(f"ipfs/{cid}", {"format": "raw"}, {"Accept": _RAW}) as response:
            return await self.read(response, MAX_BLOCK, "a block", seconds=self.settings.block_timeout)

    async def get_held(self, _cid: CID) -> None:
        """None: what a gateway has at hand nobody knows."""

    async def run(self, cid: CID, start: int, stop: int) -> AsyncGenerator[CarBlock, None]:
        """The blocks of bytes `start` to `stop` of a file, as they arrive. Raises as Provider.get does."""
        params = {"format": "car", "dag-scope": "entity", "entity-bytes": f"{start}:{stop - 1}"}
        decoder = CarDecoder()
        request = self.request(f"ipfs/{cid}", params, {"Accept": _CAR})
        async with request as response, aclosing(self.pieces(response)) as pieces:
            async for piece in pieces:
                for part in _slices(piece):
                    for block in _read_car(decoder, part):
                        yield block
        _read_car(decoder, None)

    async def ipns_record(self, name: str) -> bytes:
        """The signed record of an IPNS name in base 36, not verified. Raises as Provider.get does."""
        return await self.record(f"ipns/{name}", {"format": "ipns-record"})


def _slices(piece: bytes) -> Iterator[memoryview]:
    view = memoryview(piece)
    return (view[at : at + FEED_BYTES] for at in range(0, len(view), FEED_BYTES))


def _read_car(decoder: CarDecoder, piece: memoryview | None) -> list[CarBlock]:
    """The next blocks, or the end for None. What is no CAR, or cut short, is no block with wrong bytes."""
    try:
        if piece is not None:
            return decoder.feed(piece)
        decoder.finish()
    except (CorruptContentError, TooLargeError) as error:
        raise RetrievalError(f"it sent a CAR that cannot be read: {error}") from error
    return []
