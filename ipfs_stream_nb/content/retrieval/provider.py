"""Whoever may have a block: a Kubo daemon or a trustless gateway."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Literal, Protocol

from ipfs_stream_nb.content.car import CarBlock
from ipfs_stream_nb.content.cid import CID

ProviderKind = Literal["kubo", "gateway"]


class Provider(Protocol):
    """One of them. What it gives is not believed: the Retriever hashes every block."""

    name: str
    """Shown to users and kept as a block's origin: "https://ipfs.io", "Kubo at http://127.0.0.1:5001"."""
    kind: ProviderKind
    near: bool
    """On this machine: asked first for what it holds itself, which costs next to nothing."""

    async def get(self, cid: CID) -> bytes:
        """The whole block, of at most MAX_BLOCK bytes.

        Raises NotFoundError where it does not have it (not to be asked again), BusyError where it wants to be
        left alone for a while, RetrievalTimeoutError, and RetrievalError for everything else that may pass.
        """

    async def get_held(self, cid: CID) -> bytes | None:
        """The block where the provider holds it itself; None where it would have to look elsewhere for it."""

    def run(self, cid: CID, start: int, stop: int) -> AsyncGenerator[CarBlock, None] | None:
        """Blocks that hold bytes `start` to `stop` of the file under `cid`, depth first; None where it can't.

        Raises as `get` does, at the first block or later.
        """

    async def close(self) -> None:
        """Release its connections. Idempotent."""
