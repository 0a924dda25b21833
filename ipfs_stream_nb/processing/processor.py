"""`ContentProcessor` and `process_content`: the guide's processing of content with updates (item 160)."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import PurePath
from typing import Any, BinaryIO, Final

from ipfs_stream_nb.clients.naming import Content, path_of
from ipfs_stream_nb.clients.reading import at, file_at
from ipfs_stream_nb.content.file import ContentFile
from ipfs_stream_nb.content.node import Node, Stat
from ipfs_stream_nb.content.stream import check_node
from ipfs_stream_nb.errors import BadRequestError, IPFSStreamError
from ipfs_stream_nb.notifications.emitting import Emit
from ipfs_stream_nb.notifications.events import NotificationType
from ipfs_stream_nb.processing.job import Job, Outcome, Scratch
from ipfs_stream_nb.processing.kinds import kind_of

MAX_AT_ONCE: Final = max(2, os.cpu_count() or 1)
"""Contents that are processed at once in this process; others wait for their turn."""
PIECE_BYTES: Final = 1024 * 1024
"""Bytes of an output that are handed to the node at once."""
MAX_NAME: Final = 200
"""Characters of a name, and of what names content in an event."""
INTERNAL: Final = "an internal error"
"""What events tell of an error that is not made for users."""

Progress = dict[str, Any]
"""`percent` (None where the length is not known), `total_bytes` of the content, and by the kind of work
`bytes_processed` or `seconds`."""

_workers = ThreadPoolExecutor(MAX_AT_ONCE, thread_name_prefix="ipfs_stream_nb-process")


class ContentProcessor:
    """One piece of work on one content, done on a thread of this process.

    `async for progress in processor.process(cid)`, then `await processor.get_result()`. process_type is one of

    "probe"      what a media file holds: {"cid", "kind", "format", "duration": s, "size", "bit_rate", "streams": […]}
    "checksums"  {"cid", "sha256", "sha1", "md5", "blake2b", "crc32": hexadecimal, "size": bytes}
    "thumbnail"  a picture of a video or image, added to the node: {"cid", "width", "height", "time": s, "size"}.
                 Options: `time` (s; None: a tenth of its length), `width` (320), `format` ("jpeg" or "png"), `pin`
    "transcode"  WebM (VP8 and Opus), added to the node: {"cid", "duration": s, "width", "height", "video_codec",
                 "audio_codec", "damaged_frames", "size"}. Options: `height` (at most), `bitrate` (bit/s), `pin`
    """

    def __init__(self, ipfs_api: Node, process_type: str, **options: Any) -> None:
        """Raises BadRequestError for an `ipfs_api` that is no node, and for unknown types and options."""
        check_node(ipfs_api)
        self.ipfs_api = ipfs_api
        self.process_type = process_type
        self._kind = kind_of(process_type, options)
        self._changed = asyncio.Event()
        self._progress: Progress | None = None
        self._task: asyncio.Task[dict[str, Any]] | None = None

    async def process(self, cid: Content) -> AsyncGenerator[Progress, None]:
        """Do the work; gives progress, at most four times a second, and at the end with a `percent` of 100.

        The work does not wait for who reads its progress: a slow reader gets the newest. Leaving the loop early
        ends it, and nothing of it is left; so does a cancellation. A processor works once: for a second content
        make another. Raises BadRequestError, NotFoundError, IsDirectoryError, UnsupportedMediaError for what is no
        media, CorruptContentError, RetrievalError, DiskFullError, QuotaExceededError.
        """
        if self._task is not None:
            raise BadRequestError("this processor has been used; make another ContentProcessor")
        self._task = task = asyncio.create_task(self._run(cid))
        task.add_done_callback(_look)
        task.add_done_callback(lambda _: self._changed.set())
        try:
            ended = False
            while not ended:
                await self._changed.wait()
                self._changed.clear()
                ended = task.done()
                progress, self._progress = self._progress, None
                if progress is not None:
                    yield progress
            await task
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def get_result(self) -> dict[str, Any]:
        """The result, waited for where the work is under way; the shapes are the class's.

        Raises what the work failed of, and BadRequestError where it was not begun or was stopped.
        """
        if self._task is None:
            raise BadRequestError(
                "there is no result before the work: async for progress in processor.process(cid)"
            )
        await asyncio.wait([self._task])
        if self._task.cancelled():
            raise BadRequestError("the work was stopped before its end, so that there is no result")
        return self._task.result()

    def _tell(self, progress: Progress) -> None:
        self._progress = progress
        self._changed.set()

    async def _run(self, cid: Content) -> dict[str, Any]:
        job = Job(self._tell)
        async with at(self.ipfs_api, cid) as path:
            where, stat = await file_at(self.ipfs_api, path)
        job.size = stat.size

        def read_at(offset: int, length: int) -> bytes:
            return job.call(lambda: self.ipfs_api.read(where, offset, length))

        def work() -> Outcome:
            job.check()
            with ContentFile(read_at, stat.size, label=str(where)) as file:
                return self._kind.work(file, job)

        worker = _workers.submit(work)
        working = asyncio.wrap_future(worker)
        working.add_done_callback(_look)
        try:
            outcome = await asyncio.shield(working)
            result = {"cid": str(stat.cid), **outcome.result}
            if outcome.output is not None:
                result |= await self._add(outcome, outcome.output, stat)
        finally:
            job.stop()
            worker.cancel()  # where it waits for its turn
            await asyncio.wait([working])
            await asyncio.to_thread(job.close)
        job.finished()
        return result

    async def _add(self, outcome: Outcome, output: BinaryIO | Scratch, stat: Stat) -> dict[str, Any]:
        """Put the output into the node."""

        async def pieces() -> AsyncGenerator[bytes, None]:
            await asyncio.to_thread(output.seek, 0)
            while piece := await asyncio.to_thread(output.read, PIECE_BYTES):
                yield piece

        name = "".join(char for char in PurePath(stat.name).stem if char.isprintable())[:MAX_NAME]
        async with aclosing(pieces()) as stream:
            added = await self.ipfs_api.add(
                stream, pin=outcome.pin, name=(name or str(stat.cid)) + outcome.ending
            )
        return {"cid": str(added.cid), "size": added.size}


async def process_content(
    ipfs_api: Node,
    cid: Content,
    task_id: str | None,
    process_type: str,
    emit: Emit,
    *,
    owner: str | None = None,
    on_progress: Callable[[Progress], object] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Process content as ContentProcessor does, with an event for each step; gives the result.

    The events are the guide's, with `message`, `task_id` (made up where it is None), `cid` and `status`: system_info
    "starting", "processing" with `progress` (which the log does not keep), "completed" with `result`, or "cancelled";
    system_error "failed" with `error`. One of the last three always ends them. They are `owner`'s alone, if one is
    given. `on_progress` is called on the event loop.

    Raises what ContentProcessor raises.
    """
    common = {"task_id": uuid.uuid4().hex if task_id is None else task_id, "cid": _shown(cid)}
    shown_type = str(process_type)[:MAX_NAME]

    def tell(status: str, message: str, *, keep: bool = True, **more: Any) -> None:
        kind = NotificationType.SYSTEM_ERROR if status == "failed" else NotificationType.SYSTEM_INFO
        emit(kind, {"message": message, **common, "status": status, **more}, owner=owner, keep=keep)

    tell("starting", f"Starting {shown_type} processing for {common['cid']}")
    try:
        processor = ContentProcessor(ipfs_api, process_type, **options)
        async with aclosing(processor.process(cid)) as updates:
            async for progress in updates:
                tell("processing", f"{shown_type} processing in progress", keep=False, progress=progress)
                if on_progress is not None:
                    on_progress(progress)
        result = await processor.get_result()
    except asyncio.CancelledError:
        tell("cancelled", f"{shown_type} processing cancelled")
        raise
    except Exception as error:
        told = isinstance(error, IPFSStreamError) and error.code != "internal"
        tell("failed", f"{shown_type} processing failed", error=str(error) if told else INTERNAL)
        raise
    tell("completed", f"{shown_type} processing completed", result=result)
    return result


def _look(future: asyncio.Future[Any]) -> None:
    """Have asyncio not complain of a failure that nobody asks for: whoever does gets it all the same."""
    if not future.cancelled():
        future.exception()


def _shown(cid: object) -> str:
    """What names the content in events, also where it names none."""
    try:
        return str(path_of(cid))[:MAX_NAME]  # type: ignore[arg-type]  # this is what it finds out
    except IPFSStreamError:
        return str(cid)[:MAX_NAME]
