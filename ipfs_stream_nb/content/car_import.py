"""CAR import: a stream of CAR bytes to verified blocks in the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable

from ipfs_stream_nb.content.car import CarDecoder
from ipfs_stream_nb.content.cid import CID, BytesLike
from ipfs_stream_nb.content.importer import Block
from ipfs_stream_nb.content.node import ByteProgress
from ipfs_stream_nb.content.writer import BlockSink


async def import_blocks(
    source: AsyncIterable[BytesLike], sink: BlockSink, progress: ByteProgress | None
) -> tuple[tuple[CID, ...], int, int]:
    """Verify and store every block of a CAR, v1 or v2; its roots, and how many blocks and bytes there were.

    All of it is durable on return. Raises CorruptContentError for a block that is not the one it is said to be,
    and for what is no CAR or is cut short.
    """
    loop = asyncio.get_running_loop()
    decoder = CarDecoder()
    count = size = 0
    async for data in source:
        for cid, block in decoder.feed(data):
            await loop.run_in_executor(sink.executor, cid.verify, block)
            if not cid.is_identity:
                await sink.put(Block(cid, block))
            count += 1
            size += len(block)
        if progress is not None:
            progress(len(data))
    decoder.finish()
    await sink.flush()
    return tuple(decoder.roots), count, size
