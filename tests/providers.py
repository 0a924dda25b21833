"""A provider inside of this process: the real blocks of a second store, given out with faults if wanted."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from ipfs_stream_nb.content.car import CarBlock, CarDecoder
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.embedded import EmbeddedNode


class StoreProvider:
    """Gives the blocks of `node`, counted. `fault(cid, data)` may change them or raise."""

    kind = "gateway"
    near = False

    def __init__(
        self,
        node: EmbeddedNode,
        *,
        name: str = "store",
        runs: bool = False,
        fault: Callable[[CID, bytes], bytes] | None = None,
    ) -> None:
        self.node = node
        self.name = name
        self.runs = runs
        self.fault = fault
        self.asked: list[CID] = []
        self.bytes = 0
        self.run_ranges: list[tuple[int, int]] = []

    async def get(self, cid: CID) -> bytes:
        self.asked.append(cid)
        return self._given(cid, await self.node.block_get(cid))

    async def get_held(self, cid: CID) -> bytes | None:
        return await self.get(cid) if await self.node.block_has(cid) else None

    def run(self, cid: CID, start: int, stop: int) -> AsyncGenerator[CarBlock, None] | None:
        return self._run(cid, start, stop) if self.runs else None

    async def _run(self, cid: CID, start: int, stop: int) -> AsyncGenerator[CarBlock, None]:
        self.run_ranges.append((start, stop))
        decoder = CarDecoder()
        parts = self.node.export_car(cid, scope="entity", entity_bytes=(start, stop - 1))
        async with aclosing(parts):
            async for part in parts:
                for block in decoder.feed(part):
                    yield CarBlock(block.cid, self._given(block.cid, block.data))

    def _given(self, cid: CID, data: bytes) -> bytes:
        data = data if self.fault is None else self.fault(cid, data)
        self.bytes += len(data)
        return data

    async def close(self) -> None:
        pass
