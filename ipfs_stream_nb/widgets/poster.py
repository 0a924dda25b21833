"""The still picture that stands for a player where no widget runs."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ipfs_stream_nb.content.file import ContentFile

MAX_SIDE: Final = 480
"""Longest side in pixels: the picture is saved in the notebook, twice."""
QUALITY: Final = 80
"""Of the JPEG, 0 to 95."""
PATIENCE: Final = 3.0
"""Seconds that displaying a player may wait for its picture; after that it goes without."""
LEAD_IN: Final = 1.0
"""Seconds into a video: many begin with black. Shorter ones are taken from a tenth of their length."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Poster:
    """A small JPEG, and the frames a second of the video that it is from (None for a picture)."""

    jpeg: bytes
    frame_rate: float | None


def make_poster(open_file: Callable[[], ContentFile], patience: float = PATIENCE) -> Poster | None:
    """A picture of a video or an image; None where that fails or takes longer than `patience` seconds.

    It never raises for the content: a player without a picture is still a player.
    """
    made: list[Poster] = []
    opened: list[ContentFile] = []

    def work() -> None:
        try:
            opened.append(open_file())
            with opened[0] as file:
                made.append(_decode(file))
        except Exception as error:  # noqa: BLE001 - whatever hostile content makes a decoder do
            _log.debug("no poster: %s", error)

    thread = threading.Thread(target=work, name="ipfs-stream-nb-poster", daemon=True)
    thread.start()
    thread.join(patience)
    if thread.is_alive() and opened:
        opened[0].close()  # its next read fails, and that ends the thread
    return made[0] if made else None


def _decode(file: ContentFile) -> Poster:
    from PIL import Image  # noqa: PLC0415 - with PyAV 0.25 s, which only a display pays

    from ipfs_stream_nb.media.frames import frames  # noqa: PLC0415
    from ipfs_stream_nb.media.info import probe  # noqa: PLC0415

    info = probe(file)
    start = min(LEAD_IN, (info.duration or 0) / 10)
    picture = Image.fromarray(frames(file, start or None, count=1).array[0])
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=QUALITY)
    return Poster(out.getvalue(), info.video.frame_rate if info.video else None)
