"""Pinning on a Kubo daemon, with a total: the daemon tells how many blocks it went through, and never of how many."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing, suppress

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.kubo.rpc import KuboRPC
from ipfs_stream_nb.content.node import PinProgress
from ipfs_stream_nb.content.reader import BlockSource
from ipfs_stream_nb.content.retrieval.dag import DagSize, dag_totals
from ipfs_stream_nb.errors import IPFSStreamError


async def pin_with_total(
    rpc: KuboRPC,
    source: BlockSource,
    cid: CID,
    name: str,
    progress: Callable[[PinProgress], None] | None,
) -> None:
    """Pin a root; while the daemon does, the tree's inner blocks are read for its total.

    The bytes of the progress are the share of the blocks, since the daemon counts blocks alone; the last one says
    the total of both. Raises NotFoundError and RetrievalError where a part cannot be had.
    """
    counting = (
        asyncio.create_task(dag_totals(source, cid), name=f"count the blocks of {cid}") if progress else None
    )
    blocks = 0
    try:
        async with aclosing(rpc.pin_add(cid, name)) as steps:
            async for blocks in steps:
                if progress is not None and counting is not None:
                    progress(_progress(blocks, _known(counting)))
        if progress is not None and counting is not None:
            with suppress(IPFSStreamError):
                total = await counting
                progress(PinProgress(total.blocks, total.bytes, total.blocks, total.bytes))
    finally:
        if counting is not None:
            counting.cancel()
            await asyncio.wait([counting])


def _known(counting: asyncio.Task[DagSize]) -> DagSize | None:
    if not counting.done() or counting.cancelled() or counting.exception() is not None:
        return None
    return counting.result()


def _progress(blocks: int, total: DagSize | None) -> PinProgress:
    if total is None:
        return PinProgress(blocks, 0, None, None)
    done = min(blocks, total.blocks)
    return PinProgress(done, total.bytes * done // max(total.blocks, 1), total.blocks, total.bytes)
