"""A clip whose pictures cost as many bits as they may: a texture like a photograph's that moves, to fill a link with."""

from __future__ import annotations

import io
from fractions import Fraction
from functools import cache
from typing import Any

import av
import numpy as np

_SIDES = 1024, 2048


@cache
def _texture() -> Any:
    """Noise whose power falls with frequency as that of photographs does, as luma."""
    rows, columns = _SIDES
    waves = np.fft.rfft2(np.random.default_rng(1).standard_normal((rows, columns)))
    distance = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns)[None])
    distance[0, 0] = 1.0
    noise = np.fft.irfft2(waves / distance, (rows, columns))
    return (16 + 219 * (noise - noise.min()) / np.ptp(noise)).astype(np.uint8)


def _picture(number: int, width: int, height: int) -> Any:
    texture = _texture()
    picture = np.full((height * 3 // 2, width), 128, np.uint8)
    x = 7 * number % (_SIDES[1] - width)
    y = round((_SIDES[0] - height) * (0.5 + 0.45 * np.sin(number / 20)))
    picture[:height] = texture[y : y + height, x : x + width]
    side, left, top = height // 4, 13 * number % (width - height // 4), 3 * number % 600
    picture[side : 2 * side, left : left + side] = texture[top : top + side, :side]
    return picture


@cache
def rich_clip(
    seconds: float = 10.0,
    width: int = 1280,
    height: int = 720,
    *,
    bitrate: int = 3_000_000,
    frame_rate: int = 30,
    gop: int = 60,
    b_frames: int = 0,
    audio: bool = True,
) -> bytes:
    """An mp4 of H.264, and with `audio` a tone in AAC."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        video: Any = container.add_stream("libx264", rate=frame_rate)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.bit_rate = bitrate
        video.codec_context.max_b_frames = b_frames
        video.options = {
            "preset": "superfast",
            "g": str(gop),
            "maxrate": str(bitrate),
            "bufsize": str(bitrate),
        }
        sound: Any = container.add_stream("aac", rate=48_000, layout="mono") if audio else None
        for number in range(round(seconds * frame_rate)):
            frame = av.VideoFrame.from_ndarray(_picture(number, width, height), format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, frame_rate)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio:
            for start in range(0, round(seconds * 48_000), 1024):
                wave = np.sin(2 * np.pi * 440 * (start + np.arange(1024)) / 48_000, dtype=np.float32)
                tone = av.AudioFrame.from_ndarray(
                    0.1 * wave[None].astype(np.float32), format="fltp", layout="mono"
                )
                tone.sample_rate, tone.pts, tone.time_base = 48_000, start, Fraction(1, 48_000)
                container.mux(sound.encode(tone))
            container.mux(sound.encode(None))
    return out.getvalue()
