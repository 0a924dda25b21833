"""`IPFSUploadHandler`: the guide's receiver of one file (items 18 to 27)."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from ipfs_stream_nb.content.cid import BytesLike
from ipfs_stream_nb.content.node import FileWriter, Node
from ipfs_stream_nb.content.stream import check_node
from ipfs_stream_nb.content.uploads import Uploads, UploadWriter
from ipfs_stream_nb.errors import BadRequestError

UNNAMED: Final = "unnamed"
"""The guide's name for a file that has none: its pin gets no name."""


class IPFSUploadHandler:
    """Takes a file in chunks of any size and ends in its CID, which is the one of `ipfs add`.

    Over a node of this machine the upload is resumable: its `upload_id` opens it again, in this process or in another
    one, at the last durable byte. Over a node behind a server it is an ordinary add; the upload over a WebSocket
    is `client.upload`.
    """

    def __init__(
        self,
        ipfs_api: Node,
        *,
        filename: str = UNNAMED,
        total_bytes: int | None = None,
        mime_type: str = "",
        profile: str | None = None,
        upload_id: str | None = None,
    ) -> None:
        """`total_bytes`: the file's length, where it is known; more is refused, and less is not finalized.

        `upload_id`: of an upload that is to be gone on with; its own facts hold then, and a `profile` must be its own.
        Raises BadRequestError for an `ipfs_api` that is no node, and for a length that is none.
        """
        check_node(ipfs_api)
        if total_bytes is not None and (not isinstance(total_bytes, int) or total_bytes < 0):
            raise BadRequestError(f"total_bytes is a whole number of 0 or more, not {total_bytes!r}")
        self.ipfs_api = ipfs_api
        self.filename = filename
        self.upload_id = upload_id
        self._mime_type = mime_type
        self._profile = profile
        self._total = total_bytes
        self._writer: FileWriter | None = None
        self._starting = asyncio.Lock()

    async def start(self) -> int:
        """Open the upload; gives the offset from which bytes are wanted. Called by `add_chunk` where it was not.

        Raises NotFoundError for an upload that is not there (any more), BadRequestError, BusyError.
        """
        async with self._starting:
            return self.bytes_processed if self._writer is not None else await self._start()

    async def _start(self) -> int:
        uploads = getattr(self.ipfs_api, "uploads", None)
        if isinstance(uploads, Uploads):
            if self.upload_id is None:
                writer = await uploads.begin(
                    name="" if self.filename == UNNAMED else self.filename,
                    mime_type=self._mime_type,
                    size=self._total,
                    profile=self._profile,
                )
            else:
                writer = await uploads.resume(self.upload_id, profile=self._profile)
            self.upload_id, self.filename, self._total = writer.id, writer.name or UNNAMED, writer.total_bytes
            self._writer = writer
            return writer.durable
        if self.upload_id is not None:
            raise BadRequestError("this node's uploads cannot be resumed; begin a new one")
        self._writer = self.ipfs_api.writer(profile=self._profile)
        return 0

    @property
    def bytes_processed(self) -> int:
        """Bytes taken since the upload's beginning, before a resumption too."""
        done = self._resumable and self._resumable.finished
        return done.size if done else 0 if self._writer is None else self._writer.bytes_written

    @property
    def total_bytes(self) -> int | None:
        """The declared length; None where there is none."""
        return self._total

    @property
    def percent_complete(self) -> float | None:
        """0 to 100; None where the length is not known."""
        if self._total is None:
            return None
        return 100.0 * self.bytes_processed / self._total if self._total else 100.0

    @property
    def durable(self) -> int:
        """Bytes that survive a kill -9."""
        return 0 if self._resumable is None else self._resumable.durable

    @property
    def _resumable(self) -> UploadWriter | None:
        return self._writer if isinstance(self._writer, UploadWriter) else None

    async def add_chunk(self, chunk: BytesLike) -> None:
        """Take the next bytes; returns when there is room for more. Raises QuotaExceededError, BadRequestError."""
        if not isinstance(chunk, bytes | bytearray | memoryview):
            raise BadRequestError(f"a chunk is bytes, not {type(chunk).__name__}")
        await self.start()
        assert self._writer is not None  # noqa: S101  # start made it
        await self._writer.write(chunk)

    async def checkpoint(self) -> None:
        """Make what was taken durable, where the upload is resumable."""
        if self._resumable is not None and self._resumable.finished is None:
            await self._resumable.checkpoint()

    def get_progress(self) -> dict[str, Any]:
        """The protocol's progress message: bytes_processed, total_bytes, percent, durable, upload_id."""
        percent = self.percent_complete
        return {
            "type": "progress",
            "upload_id": self.upload_id,
            "bytes_processed": self.bytes_processed,
            "total_bytes": self.total_bytes,
            "percent": None if percent is None else round(percent, 2),
            "durable": self.durable,
        }

    async def finalize(self, *, pin: bool = True) -> dict[str, Any]:
        """Commit what is left: {"cid", "size", "dag_size"} (bytes, the last with all blocks); it survives a kill -9 from here on."""
        await self.start()
        assert self._writer is not None  # noqa: S101  # start made it
        added = await self._writer.finish(pin=pin, name="" if self.filename == UNNAMED else self.filename)
        return {"cid": str(added.cid), "size": added.size, "dag_size": added.dag_size}

    async def suspend(self) -> None:
        """Leave the upload so that it can be resumed; where it cannot be, give it up. Idempotent."""
        if self._resumable is not None:
            await self._resumable.suspend()
        else:
            await self.abort()

    async def abort(self) -> None:
        """Give the upload up, with all that came of it. Idempotent."""
        if self._writer is not None:
            await self._writer.abort()
