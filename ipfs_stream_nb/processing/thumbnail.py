"""One picture out of a video, or a small one of a large one."""

from __future__ import annotations

import io
from typing import Any, Final

from PIL import Image

from ipfs_stream_nb.content.file import ContentFile
from ipfs_stream_nb.errors import BadRequestError, CorruptContentError
from ipfs_stream_nb.media.decode import VideoDecoder
from ipfs_stream_nb.media.frames import at_times, content_end
from ipfs_stream_nb.media.picture import RGBConverter
from ipfs_stream_nb.media.source import open_media

HIGHEST: Final = 4
"""Times its width that a thumbnail is high at most: a long strip becomes a narrow one."""
QUALITY: Final = 85
"""Of a JPEG, in Pillow's measure."""


def thumbnail(
    file: ContentFile, time: float | None, width: int, kind: str
) -> tuple[io.BytesIO, dict[str, Any]]:
    """The frame on screen at `time` (s) as a file of Pillow's `kind`, and {"width", "height": pixels, "time": s}.

    Raises BadRequestError for a time behind the end, and what open_media raises.
    """
    with open_media(file) as source:
        decoder = VideoDecoder(source)
        length = 0.0 if source.is_image and time is None else content_end(decoder)
        if time is not None and time >= length and not source.is_image:
            raise BadRequestError(f"time={time:g}: the video ends at {length:.3f} s")
        found = next(at_times(decoder, iter([length / 10 if time is None else time])), None)
        if found is None:
            raise CorruptContentError(
                "The content is damaged or cut short: it has no picture that can be decoded."
            )
        pts, frame = found
        width = min(width, RGBConverter(frame, source, None).width)
        array = RGBConverter(frame, source, (width, HIGHEST * width)).array(frame)
    output = io.BytesIO()
    Image.fromarray(array).save(output, kind, quality=QUALITY)
    height, width = array.shape[:2]
    shown = float((pts - decoder.first) * decoder.time_base)
    return output, {"width": width, "height": height, "time": shown}
