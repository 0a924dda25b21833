"""Who opens encoded sources for tracks and peers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace

from ipfs_stream_nb.content.node import Node
from ipfs_stream_nb.media.encoded import Aim, EncodedInfo, EncodedPacket, EncodedSource, Rendition, TrackKind
from ipfs_stream_nb.media.worker.limits import DEFAULT_WORKER_LIMITS
from ipfs_stream_nb.media.worker.pool import WorkerPool

Opener = Callable[[Node, str], Awaitable[EncodedSource]]
"""Opens the media file at a path, for one user who closes it; those who open the same share what is behind it
(`WorkerPool.open`). Raises an IPFSStreamError."""


async def open_alone(node: Node, path: str) -> EncodedSource:
    """An Opener for a script that has no pool: a worker of its own, which ends with the source."""
    pool = WorkerPool(replace(DEFAULT_WORKER_LIMITS, spare=False))
    try:
        return _Alone(pool, await pool.open(node, path))
    except BaseException:
        await pool.close()
        raise


class _Alone:
    def __init__(self, pool: WorkerPool, source: EncodedSource) -> None:
        self._pool = pool
        self._source = source

    @property
    def info(self) -> EncodedInfo:
        """What it has."""
        return self._source.info

    def packets(
        self,
        kind: TrackKind,
        position: float = 0.0,
        rendition: Rendition | None = None,
        aim: Aim | None = None,
    ) -> AsyncGenerator[EncodedPacket, None]:
        """As EncodedSource.packets."""
        return self._source.packets(kind, position, rendition, aim)

    async def close(self) -> None:
        """End it and its worker. Idempotent."""
        await self._source.close()
        await self._pool.close()
