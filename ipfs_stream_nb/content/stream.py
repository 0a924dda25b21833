"""`IPFSContentStream`: the guide's reader of one CID (items 9 to 17)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final, Self

from ipfs_stream_nb.content.node import Node, Path
from ipfs_stream_nb.errors import BadRequestError

CHUNK_SIZE: Final = 65_536
MAX_CHUNK_SIZE: Final = 16 * 1024 * 1024


def check_node(ipfs_api: object) -> None:
    """Raise BadRequestError for what is no node: an address of a daemon, or a client, in its place."""
    if not callable(getattr(ipfs_api, "get_metadata", None)):
        raise BadRequestError(
            f"ipfs_api is a node, such as `await ipfs.open_node()` or the `node` of an AsyncClient, not "
            f"{type(ipfs_api).__name__}"
        )


class IPFSContentStream:
    """One file of a node, read in chunks. An async context manager; `close()` ends a read that is under way."""

    def __init__(self, ipfs_api: Node, cid: Path) -> None:
        """`cid` is a CID or `<cid>/path`; it is looked at when the stream is first used.

        Raises BadRequestError for an `ipfs_api` that is no node.
        """
        check_node(ipfs_api)
        self.ipfs_api = ipfs_api
        self.cid = cid
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def get_metadata(self) -> dict[str, Any]:
        """cid, path, kind, size, mime_type, content_type, content_length, filename (where there is one)."""
        return await self.ipfs_api.get_metadata(self.cid)

    async def iter_chunks(
        self, chunk_size: int = CHUNK_SIZE, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """The bytes from `offset`, at most `length`, in chunks of exactly `chunk_size`, the last one short.

        Raises BadRequestError for sizes that make no sense, and what the node raises: NotFoundError,
        IsDirectoryError, CorruptContentError, RetrievalError.
        """
        async with aclosing(self.iter_batches(chunk_size, offset, length)) as batches:
            async for batch in batches:
                for chunk in batch:
                    if self._closed:
                        raise BadRequestError("the stream was closed while it was being read")
                    yield bytes(chunk)

    async def iter_batches(
        self, chunk_size: int = CHUNK_SIZE, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[list[memoryview], None]:
        """The same chunks, as many at once as are there, where they lie. Raises as `iter_chunks` does."""
        if not 1 <= chunk_size <= MAX_CHUNK_SIZE:
            raise BadRequestError(f"chunk_size is between 1 and {MAX_CHUNK_SIZE} bytes, not {chunk_size}")
        if self._closed:
            raise BadRequestError("this stream is closed; make another")
        rest = b""
        async with aclosing(self._pieces(offset, length)) as pieces:
            async for piece in pieces:
                if self._closed:
                    raise BadRequestError("the stream was closed while it was being read")
                data = memoryview(rest + piece if rest else piece)
                whole = len(data) - len(data) % chunk_size
                if whole:
                    yield [data[at : at + chunk_size] for at in range(0, whole, chunk_size)]
                rest = bytes(data[whole:])
        if rest:
            yield [memoryview(rest)]

    def _pieces(self, offset: int, length: int | None) -> AsyncGenerator[bytes, None]:
        """The bytes from `offset`, at most `length`, as they come."""
        return self.ipfs_api.cat(self.cid, offset, length)

    async def close(self) -> None:
        """End the stream: a read that is under way raises at its next chunk. Idempotent."""
        self._closed = True
