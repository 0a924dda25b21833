"""What a worker does before its sandbox is shut: everything once that loads code or looks at the machine."""

from __future__ import annotations

import io
from concurrent.futures import Future
from threading import Event
from typing import Any, cast

import av
import numpy as np
from av.video.frame import VideoFrame
from PIL import Image

from ipfs_stream_nb.media.reader import MediaLimits
from ipfs_stream_nb.media.worker import sound
from ipfs_stream_nb.media.worker.content import Content
from ipfs_stream_nb.media.worker.order import Order
from ipfs_stream_nb.media.worker.remote import Blocks

_SIDE, _FRAMES = 64, 4


def rehearse() -> None:
    """Encode a few frames and a moment of sound, and do with them what is done with any file."""
    Image.init()  # its decoders are imported by name
    clip = _clip()

    def fetch(offset: int, length: int) -> Future[bytes]:
        future: Future[bytes] = Future()
        future.set_result(clip[offset : offset + length])
        return future

    content = Content(Blocks(fetch, len(clip), len(clip)), MediaLimits(), threads=2)
    content.probe(_nothing)
    for order in (
        Order("video", 0.0, after=False, height=None, bitrate=None),
        Order("video", 0.0, after=False, height=_SIDE // 2, bitrate=None),
        Order("audio", 0.0, after=False, height=None, bitrate=None),
    ):
        with content.making(order, Event(), _nothing) as making:
            if not sum(1 for _ in making.packets):
                raise RuntimeError(f"PyAV makes no {order.kind} here")


def _clip() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        video = cast("Any", output.add_stream("libx264", 25))
        video.width = video.height = _SIDE
        video.pix_fmt = "yuv420p"
        video.codec_context.max_b_frames = 0
        audio = cast("Any", output.add_stream("aac", sound.RATE, layout="stereo"))
        for _ in range(_FRAMES):
            output.mux(video.encode(VideoFrame(_SIDE, _SIDE, "yuv420p")))
        silence = np.zeros((2, sound.RATE // 5), np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = sound.RATE, 0
        output.mux(audio.encode(frame))
        output.mux(video.encode(None))
        output.mux(audio.encode(None))
    return file.getvalue()


def _nothing() -> None:
    pass
