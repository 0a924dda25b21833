"""A Kubo daemon as a provider of blocks: what it holds at once, and what it finds on its network."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from contextlib import suppress

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.kubo.flatfs import FlatFS
from ipfs_stream_nb.content.kubo.rpc import BLOCK_TIMEOUT, KuboRPC
from ipfs_stream_nb.content.retrieval.provider import ProviderKind
from ipfs_stream_nb.errors import (
    CorruptContentError,
    IPFSStreamError,
    NotFoundError,
    RetrievalTimeoutError,
    UnreachableError,
)


class KuboProvider:
    """A Provider over the RPC, and over the daemon's block files where they are on this machine."""

    kind: ProviderKind = "kubo"

    def __init__(
        self, rpc: KuboRPC, executor: Executor | None = None, *, patience: float = BLOCK_TIMEOUT
    ) -> None:
        """Files are read on `executor`; None: the event loop's own. The provider closes `rpc`.

        `patience`: seconds that the daemon may look for a block.
        """
        self.name = rpc.address.name
        self.near = True
        self._rpc = rpc
        self._patience = patience
        self._executor = executor
        self._files: FlatFS | None = None
        self._looking: asyncio.Task[None] | None = None

    async def get(self, cid: CID) -> bytes:
        """The block, which the daemon may have to look for on its network. Raises as Provider.get does."""
        return await self._rpc.block_get(cid, patience=self._patience)

    async def get_held(self, cid: CID) -> bytes | None:
        """The block where the daemon holds it itself."""
        if self._rpc.near and self._looking is None:
            self._looking = asyncio.create_task(self._look(), name="look for Kubo's block files")
        if self._files is not None:
            loop = asyncio.get_running_loop()
            with suppress(NotFoundError, CorruptContentError):
                return await loop.run_in_executor(self._executor, self._files.get, cid)
        try:
            return await self._rpc.block_get(cid, offline=True, patience=0)
        except NotFoundError:
            return None
        except (
            RetrievalTimeoutError
        ) as error:  # what it holds is at hand, so it hangs, and is left alone for a while
            raise UnreachableError(str(error)) from error

    async def _look(self) -> None:
        try:
            self._files = await find_files(self._rpc)
        except IPFSStreamError:
            self._looking = None  # the next block is a new chance

    def run(self, _cid: CID, _start: int, _stop: int) -> None:
        """None: the RPC gives whole DAGs, or single blocks."""

    async def close(self) -> None:
        """Close the RPC. Idempotent."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
        await self._rpc.close()


async def find_files(rpc: KuboRPC) -> FlatFS | None:
    """The daemon's block files where it is on this machine, and they can be read; None otherwise."""
    if not rpc.near:
        return None
    peer_id, stat = await rpc.id(), await rpc.repo_stat()
    return await asyncio.to_thread(FlatFS.of_daemon, stat["RepoPath"], peer_id)
