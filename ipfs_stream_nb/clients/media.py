"""What the async client reads out of media: decoded on threads, from a file that reads only what is asked for."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Generator
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ipfs_stream_nb.clients.naming import Content
from ipfs_stream_nb.clients.results import hinted_methods
from ipfs_stream_nb.content.file import ContentFile

if TYPE_CHECKING:
    from PIL.Image import Image

    from ipfs_stream_nb.media.audio import Audio
    from ipfs_stream_nb.media.frames import Frame, Frames
    from ipfs_stream_nb.media.info import MediaInfo
    from ipfs_stream_nb.media.picture import Size

T = TypeVar("T")


@hinted_methods
class MediaMethods(ABC):
    """The methods of AsyncClient that decode."""

    @abstractmethod
    async def open(self, content: Content) -> ContentFile:
        """A seekable binary file, to be used from another thread than the loop's."""

    async def info(self, content: Content) -> MediaInfo:
        """What a media file holds: format, duration in s, streams with codecs, sizes, rates and rotation."""
        from ipfs_stream_nb.media.info import probe  # noqa: PLC0415  # PyAV takes 0.2 s to import

        return await self._media(content, probe)

    async def frames(
        self,
        content: Content,
        start: float | None = None,
        stop: float | None = None,
        *,
        every: float | None = None,
        count: int | None = None,
        size: Size = None,
    ) -> Frames:
        """Frames of a video from `start` to `stop` (s): an array (n, height, width, 3) uint8 with their times (s).

        `every`: one each so many seconds; `count`: that many at even distances; `size`: a width, or a (width, height)
        that they fit into. Raises UnsupportedMediaError, TooLargeError; `iter_frames` needs memory for one frame only.
        """
        from ipfs_stream_nb.media.frames import frames  # noqa: PLC0415  # PyAV takes 0.2 s to import

        return await self._media(content, frames, start, stop, every=every, count=count, size=size)

    async def iter_frames(
        self,
        content: Content,
        start: float | None = None,
        stop: float | None = None,
        *,
        every: float | None = None,
        count: int | None = None,
        size: Size = None,
    ) -> AsyncGenerator[Frame, None]:
        """The same frames one by one, decoded as they are asked for."""
        from ipfs_stream_nb.media.frames import iter_frames  # noqa: PLC0415  # PyAV takes 0.2 s to import

        file = await self.open(content)
        with file:
            frames = iter_frames(file, start, stop, every=every, count=count, size=size)
            decoded = cast("Generator[Frame, None, None]", frames)
            try:
                while (frame := await asyncio.to_thread(next, decoded, None)) is not None:
                    yield frame
            finally:
                await asyncio.to_thread(decoded.close)

    async def audio(self, content: Content, start: float | None = None, stop: float | None = None) -> Audio:
        """Sound from `start` to `stop` (s): samples (n, channels) float32 with their rate in Hz."""
        from ipfs_stream_nb.media.audio import audio  # noqa: PLC0415  # PyAV takes 0.2 s to import

        return await self._media(content, audio, start, stop)

    async def contact_sheet(
        self,
        content: Content,
        *,
        columns: int = 4,
        rows: int | None = None,
        count: int = 12,
        width: int = 960,
        timestamps: bool = True,
    ) -> Image:
        """Frames from all over a video in one picture, `width` pixels wide, each with its time."""
        from ipfs_stream_nb.media.sheet import contact_sheet  # noqa: PLC0415  # PyAV takes 0.2 s to import

        return await self._media(
            content,
            contact_sheet,
            columns=columns,
            rows=rows,
            count=count,
            width=width,
            timestamps=timestamps,
        )

    async def _media(self, content: Content, call: Callable[..., T], *args: Any, **options: Any) -> T:
        """Call a function of a file object on a thread; a cancelled call ends at its next read."""
        file = await self.open(content)
        try:
            return await asyncio.to_thread(call, file, *args, **options)
        finally:
            file.close()
