"""Where a tree's blocks are, of those that a Kubo daemon and our store have between them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ipfs_stream_nb.content.blocks import BlockStore
from ipfs_stream_nb.content.blocks.walk import MAX_BLOCKS
from ipfs_stream_nb.content.cid import CID, DAG_CBOR, DAG_PB
from ipfs_stream_nb.content.kubo.rpc import KuboRPC
from ipfs_stream_nb.content.links import links_of
from ipfs_stream_nb.content.node import Origin, Origins
from ipfs_stream_nb.content.retrieval.dag import each
from ipfs_stream_nb.errors import CorruptContentError, NotFoundError, TooLargeError


class DaemonOrigins:
    """One count; `run` it once. `store` is only looked into on threads."""

    def __init__(self, store: BlockStore, rpc: KuboRPC, held: Callable[[CID], bytes] | None) -> None:
        """`held` reads a block of the daemon's files (FlatFS.get); None: it is asked for each."""
        self._store = store
        self._rpc = rpc
        self._held = held
        self._sums: dict[str, Origin] = {}
        self._missing = 0

    async def run(self, root: CID) -> Origins:
        """Go through what is here and there. Raises TooLargeError for a tree over `walk.MAX_BLOCKS`."""
        met = {root.multihash}
        level = [root]

        async def visit(cid: CID) -> None:
            for link in await self._visit(cid):
                if link.multihash not in met and not link.is_identity:
                    met.add(link.multihash)
                    below.append(link)
            if len(met) > MAX_BLOCKS:
                raise TooLargeError(f"the tree under {root} has over {MAX_BLOCKS:,} blocks")

        while level:
            below: list[CID] = []
            await each(level, visit)
            level = below
        found = sorted(self._sums.values(), key=lambda origin: (-origin.bytes, origin.source))
        return Origins(root, tuple(found), self._missing)

    async def _visit(self, cid: CID) -> list[CID]:
        """Count one block, and give its links."""
        origin = await asyncio.to_thread(self._store.origin_of, cid)
        links = cid.codec in {DAG_PB, DAG_CBOR}
        block: bytes | None = None
        try:
            if origin is None:
                size, block = await self._of_daemon(cid, whole=links)
                origin = Origin(self._rpc.address.name, 1, size)
            elif links:
                block = await asyncio.to_thread(self._store.get, cid)
            self._add(origin)
            return [] if block is None else await asyncio.to_thread(links_of, cid, block)
        except (NotFoundError, CorruptContentError):
            self._missing += 1
            return []

    async def _of_daemon(self, cid: CID, *, whole: bool) -> tuple[int, bytes | None]:
        """A block's size, and the block where it is wanted. Raises NotFoundError where the daemon lacks it."""
        if self._held is not None:
            block = await asyncio.to_thread(self._held, cid)
        elif whole:
            block = await self._rpc.block_get(cid, offline=True)
            await asyncio.to_thread(cid.verify, block)
        else:
            return await self._rpc.block_size(cid), None
        return len(block), block if whole else None

    def _add(self, origin: Origin) -> None:
        known = self._sums.get(origin.source, Origin(origin.source, 0, 0))
        last = max(filter(None, (known.last, origin.last)), default=None)
        self._sums[origin.source] = Origin(
            origin.source, known.blocks + origin.blocks, known.bytes + origin.bytes, last
        )
