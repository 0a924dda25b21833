"""What is kept: /ipfs-stream/pins and /ipfs-stream/gc."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

from ipfs_stream_nb.content.node import Node, PinProgress
from ipfs_stream_nb.security.access import Action
from ipfs_stream_nb_server.handlers.base import IPFSHandler, access
from ipfs_stream_nb_server.handlers.streaming import StreamingHandler
from ipfs_stream_nb_server.limits import PROGRESS_INTERVAL
from ipfs_stream_nb_server.wire import json_text, wire


class PinsHandler(IPFSHandler):
    """GET /ipfs-stream/pins."""

    @access(Action.LIST)
    async def get(self) -> None:
        """Answer with all pins, oldest first."""
        self.send_json_text(await json_text({"pins": await (await self.node()).pins()}))


class PinHandler(StreamingHandler):
    """PUT and DELETE /ipfs-stream/pins/{cid}."""

    names_cid = True

    @access(Action.PIN)
    async def put(self, _cid: str) -> None:
        """Pin a root; lines of progress, and the pin as the last one."""
        name = self.name_argument()
        async with self.serving():
            await self.send_lines(self._pin(await self.node(), name))

    async def _pin(self, node: Node, name: str) -> AsyncGenerator[object, None]:
        latest: deque[PinProgress] = deque(maxlen=1)
        pinning = asyncio.create_task(node.pin(self.cid, name=name, progress=latest.append))
        try:
            while not pinning.done():
                await asyncio.wait([pinning], timeout=PROGRESS_INTERVAL)
                if latest:
                    yield {"type": "progress"} | wire(latest.pop())
            yield {"type": "result"} | wire(await pinning)
        finally:
            pinning.cancel()
            await asyncio.wait([pinning])

    @access(Action.UNPIN)
    async def delete(self, _cid: str) -> None:
        """Let go of a pin."""
        await (await self.node()).unpin(self.cid)
        self.send_json({"cid": str(self.cid), "unpinned": True})


class GCHandler(IPFSHandler):
    """POST /ipfs-stream/gc."""

    @access(Action.GC)
    async def post(self) -> None:
        """Take away what no pin and no running transfer needs."""
        self.send_json(wire(await (await self.node()).gc()))
