"""The clients' method that works on content: probe, checksums, thumbnail, transcode."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from ipfs_stream_nb.clients.naming import Content
from ipfs_stream_nb.clients.progress import Progress
from ipfs_stream_nb.clients.reporting import Reports
from ipfs_stream_nb.clients.results import hinted_methods
from ipfs_stream_nb.content.node import Node
from ipfs_stream_nb.processing.processor import process_content

T = TypeVar("T")


@hinted_methods
class ProcessingMethods(ABC):
    """The method of AsyncClient that works on content."""

    _reports: Reports

    @property
    @abstractmethod
    def node(self) -> Node:
        """The node interface below this client."""

    async def process(
        self,
        content: Content,
        process_type: str,
        *,
        task_id: str | None = None,
        progress: Any = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Work on content, in this process, on a thread; gives a dictionary. `process_type` is one of

        "probe"      what a media file holds: "kind", "format", "duration" (s), "size", "bit_rate", "streams"
        "checksums"  "sha256", "sha1", "md5", "blake2b" and "crc32" of a file's bytes in hexadecimal, "size"
        "thumbnail"  adds a picture of a video or image: "cid", "width", "height", "time" (s), "size".
                     Options: `time` (s), `width` (pixels), `format` ("jpeg" or "png"), `pin`
        "transcode"  adds it as WebM (VP8 and Opus): "cid", "duration" (s), "width", "height", "video_codec",
                     "audio_codec", "damaged_frames", "size". Options: `height` (at most), `bitrate` (bit/s), `pin`

        Each step is told to who listens to notifications: system_info with a status of starting, processing, completed
        or cancelled, system_error with failed, under `task_id`, which is made up where it is None. `progress`: as in
        `add`.

        Raises BadRequestError for unknown types and options, NotFoundError, IsDirectoryError, UnsupportedMediaError,
        CorruptContentError, RetrievalError, DiskFullError and QuotaExceededError.
        """
        emit = self._reports.reporter.emit
        with Progress.of(progress) as shown:

            def show(state: dict[str, Any]) -> None:
                size = state["total_bytes"]
                shown.begin(process_type, size)
                shown.reach(round(size * (state["percent"] or 0.0) / 100), size)

            return await process_content(
                self.node, content, task_id, process_type, emit, on_progress=show, **options
            )


@hinted_methods
class BlockingProcessingMethods(ABC):
    """The method of Client that works on content."""

    @abstractmethod
    def _run(self, method: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        """Call a method of the AsyncClient on its loop, and wait."""

    def process(
        self,
        content: Content,
        process_type: str,
        *,
        task_id: str | None = None,
        progress: Any = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Work on content, in this process, on a thread; gives a dictionary. `process_type` is one of

        "probe"      what a media file holds: "kind", "format", "duration" (s), "size", "bit_rate", "streams"
        "checksums"  "sha256", "sha1", "md5", "blake2b" and "crc32" of a file's bytes in hexadecimal, "size"
        "thumbnail"  adds a picture of a video or image: "cid", "width", "height", "time" (s), "size".
                     Options: `time` (s), `width` (pixels), `format` ("jpeg" or "png"), `pin`
        "transcode"  adds it as WebM (VP8 and Opus): "cid", "duration" (s), "width", "height", "video_codec",
                     "audio_codec", "damaged_frames", "size". Options: `height` (at most), `bitrate` (bit/s), `pin`

        Each step is told to who listens to notifications: system_info with a status of starting, processing, completed
        or cancelled, system_error with failed, under `task_id`, which is made up where it is None. `progress`: as in
        `add`.

        Raises BadRequestError for unknown types and options, NotFoundError, IsDirectoryError, UnsupportedMediaError,
        CorruptContentError, RetrievalError, DiskFullError and QuotaExceededError.
        """
        run = ProcessingMethods.process
        return self._run(run, content, process_type, task_id=task_id, progress=progress, **options)
