"""Whoever may have a block: a Kubo daemon or a trustless gateway, and in what ways one can fail."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal, Protocol

from ipfs_stream_nb.content.car import CarBlock
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.errors import IPFSStreamError, RefusedError, RetrievalError, RetrievalTimeoutError

_log = logging.getLogger("ipfs_stream_nb.retrieval")

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
        left alone for a while, RetrievalTimeoutError where it looked for it for as long as it may, and RetrievalError
        for everything else that may pass.
        """

    async def get_held(self, cid: CID) -> bytes | None:
        """The block where the provider holds it itself; None where it would have to look elsewhere for it."""

    def run(self, cid: CID, start: int, stop: int) -> AsyncGenerator[CarBlock, None] | None:
        """Blocks that hold bytes `start` to `stop` of the file under `cid`, depth first; None where it can't.

        Raises as `get` does, at the first block or later.
        """

    async def close(self) -> None:
        """Release its connections. Idempotent."""


class FoundNowhereError(RetrievalError):
    """It looked elsewhere, and nobody gave it the block (HTTP 504)."""


class StalledError(RetrievalTimeoutError):
    """It began to answer, and stopped."""


class TooSlowError(StalledError):
    """It began to answer, and has not come to an end in time."""


def is_about_content(error: IPFSStreamError) -> bool:
    """Whether a failure tells of what was asked for, and little of whoever was asked: the next block may do well."""
    late = isinstance(error, RetrievalTimeoutError) and not isinstance(error, StalledError)
    return late or isinstance(error, FoundNowhereError | RefusedError)


def is_worth_another_try(error: IPFSStreamError) -> bool:
    """Whether the same question may soon have another answer. After the whole of a time-out it has not."""
    return not isinstance(error, RetrievalTimeoutError) or type(error) is StalledError


def as_ours(error: Exception, name: str) -> IPFSStreamError:
    """An error of this package. Any other one is logged: what is wrong with one source must not end the others."""
    if isinstance(error, IPFSStreamError):
        return error
    _log.error("%s failed as nobody thought it would", name, exc_info=error)
    return RetrievalError(f"it failed as nobody thought it would ({type(error).__name__}); the log has more")


@asynccontextmanager
async def within(seconds: float, what: str) -> AsyncIterator[None]:
    """Raise TooSlowError where the body of the `with` takes longer, however steadily something comes."""
    try:
        async with asyncio.timeout(seconds) as deadline:
            yield
    except TimeoutError:
        if not deadline.expired():
            raise
        raise TooSlowError(f"{what} was not there after {seconds:g} s") from None
