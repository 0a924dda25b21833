"""Sample media made on the spot: for the quickstart without a network, and for tests that read the frame number back.

    samples.video("clip.mp4")            # H.264 and AAC; kind="webm" is VP8 and Opus
    samples.image("picture.png")
    samples.table("table.parquet")

Each function writes to the path that it is given and returns it as a Path; without a path it returns bytes.

A frame shows a time code, its number, and a ball that touches the ground on each whole second, when a click is heard.
Along the lower edge its number stands once more in black and white blocks; `read_frame_number` reads it from any
decoded or rescaled copy of the frame.
"""

from __future__ import annotations

import io
import math
import os
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import numpy.typing as npt
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, VideoReformatter
from av.video.stream import VideoStream
from PIL import Image

from ipfs_stream_nb.errors import BadRequestError, NotFoundError
from ipfs_stream_nb.media.pattern import MAX_NUMBER, MIN_SIDE, FramePainter, read_frame_number

__all__ = ["SAMPLE_RATE", "image", "read_frame_number", "sound", "table", "video"]

StrPath = str | os.PathLike[str]

SAMPLE_RATE = 48_000
"""Samples a second of the sound track."""
MAX_SIDE = 8192
"""Longest side of a picture that is generated, in pixels."""

_VIDEO_CODECS = {"mp4": ("libx264", "aac"), "webm": ("libvpx", "libopus")}
_IMAGE_FORMATS = {"png": "PNG", "jpeg": "JPEG", "gif": "GIF", "webp": "WEBP", "bmp": "BMP", "tiff": "TIFF"}
_TONE_HZ, _TONE_LEVEL = 220.0, 0.02
_CLICK_HZ, _CLICK_LEVEL, _CLICK_DECAY = 1000.0, 0.8, 0.003
_BT709 = 1  # in ITU-T H.273, for primaries, transfer and matrix alike
# The matrix of each kind, there and in FFmpeg's scaler. VP8 knows BT.601 alone (RFC 6386, section 9.2): packets that leave
# their file, as in WebRTC, tell of no other.
_MATRICES = {"mp4": (_BT709, Colorspace.ITU709), "webm": (6, Colorspace.ITU601)}


def video(
    path: StrPath | None = None,
    *,
    kind: str | None = None,
    width: int = 640,
    height: int = 360,
    duration: float = 10.0,
    frame_rate: float | Fraction = 30,
    gop: int | None = None,
    audio: bool = True,
    b_frames: int = 2,
    faststart: bool = True,
    rotation: int = 0,
    grain: int = 0,
    bit_rate: int | None = None,
) -> Path | bytes:
    """A clip of `duration` seconds; `width` and `height` are those of the picture as it is shown, in pixels.

    kind        "mp4" (H.264 and AAC; even sizes only, as its encoder demands) or "webm" (VP8 and Opus); None takes
                it from the path's ending, and mp4 where there is no path
    gop         frames from one keyframe to the next; None is one second
    audio       a quiet tone with a click on each whole second, 48 kHz stereo
    b_frames    consecutive B-frames at most (mp4)
    faststart   the index stands before the media data (mp4)
    rotation    0, 90, 180 or 270: the stored picture is turned, and a player turns it clockwise by this (mp4)
    grain       amplitude of added noise, 0 to 64 of 255: noise does not compress, so that the file grows
    bit_rate    bits a second aimed at for the video; None keeps a constant quality

    Raises BadRequestError for what cannot be made.
    """
    kind = _kind_of(path, kind, "mp4", _VIDEO_CODECS)
    rate = _checked_rate(frame_rate)
    if not (math.isfinite(duration) and 0 < duration * rate <= MAX_NUMBER):
        raise BadRequestError(
            f"duration={duration!r}: expected seconds above 0, for at most {MAX_NUMBER} frames."
        )
    if gop is not None and gop < 1:
        raise BadRequestError(f"gop={gop!r}: expected a number of frames from 1.")
    clip = _Clip(
        kind, width, height, max(1, round(duration * rate)), rate, gop or math.ceil(rate), audio, b_frames,
        faststart, rotation, grain, bit_rate,
    )  # fmt: skip
    clip.check()
    if path is not None:
        where = _writable(path)
        clip.write(str(where))
        return where
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / f"sample.{kind}"
        clip.write(str(target))
        return target.read_bytes()


def image(
    path: StrPath | None = None,
    *,
    kind: str | None = None,
    width: int = 640,
    height: int = 360,
    number: int = 0,
) -> Path | bytes:
    """Frame `number` of a clip at 30 frames a second as a picture; `kind` comes from the path's ending, else "png"."""
    kind = _kind_of(path, kind, "png", _IMAGE_FORMATS)
    _check_size(width, height)
    if not 0 <= number <= MAX_NUMBER:
        raise BadRequestError(f"number={number!r}: expected 0 to {MAX_NUMBER}.")
    picture = Image.fromarray(FramePainter(width, height, Fraction(30)).paint(number)).convert("RGB")
    buffer = io.BytesIO()
    picture.save(buffer, _IMAGE_FORMATS[kind])
    return _deliver(path, buffer.getvalue())


def table(path: StrPath | None = None, *, rows: int = 1000) -> Path | bytes:
    """A Parquet table of `rows` readings: time (s), temperature (°C), humidity (%) and station (text).

    Needs pyarrow, which comes with the extra `lab`; raises BadRequestError without it.
    """
    try:
        # Optional, and slow to import.
        import pyarrow as pa  # type: ignore[import-untyped]  # noqa: PLC0415
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError:
        raise BadRequestError("samples.table needs pyarrow: pip install 'ipfs_stream_nb[lab]'.") from None
    if rows < 1:
        raise BadRequestError(f"rows={rows!r}: expected at least 1.")
    random = np.random.default_rng(2026)
    time = np.arange(rows, dtype=np.float64) * 60
    day = 2 * np.pi * time / 86_400
    columns = {
        "time": time,
        "temperature": np.round(14 - 6 * np.cos(day) + random.normal(0, 0.4, rows), 2),
        "humidity": np.round(62 + 18 * np.cos(day) + random.normal(0, 1.5, rows), 1),
        "station": np.array(["harbour", "hill", "airport"])[np.arange(rows) % 3],
    }
    buffer = io.BytesIO()
    parquet.write_table(pa.table(columns), buffer, row_group_size=max(1, min(rows, 65_536)))
    return _deliver(path, buffer.getvalue())


def sound(first: int, count: int) -> npt.NDArray[np.float32]:
    """Samples `first` to `first + count` of the clips' sound track, (count,) float32 at 48 kHz."""
    number = np.arange(first, first + count)
    since_click = (number % SAMPLE_RATE) / SAMPLE_RATE
    click = _CLICK_LEVEL * np.cos(2 * np.pi * _CLICK_HZ * since_click) * np.exp(-since_click / _CLICK_DECAY)
    tone = _TONE_LEVEL * np.sin(2 * np.pi * _TONE_HZ * number / SAMPLE_RATE)
    return (click + tone).astype(np.float32)


@dataclass(frozen=True)
class _Clip:
    """A clip to be encoded; the fields are the arguments of `video`."""

    kind: str
    width: int
    height: int
    frames: int
    rate: Fraction
    gop: int
    audio: bool
    b_frames: int
    faststart: bool
    rotation: int
    grain: int
    bit_rate: int | None

    def check(self) -> None:
        _check_size(self.width, self.height)
        if self.kind == "mp4" and (self.width % 2 or self.height % 2):
            raise BadRequestError(
                f"{self.width}×{self.height}: H.264 takes even sizes only; use "
                f"{self.width + self.width % 2}×{self.height + self.height % 2}, or kind='webm'."
            )
        if self.rotation not in (0, 90, 180, 270) or (self.rotation and self.kind != "mp4"):
            raise BadRequestError(f"rotation={self.rotation!r}: expected 0, 90, 180 or 270, and kind='mp4'.")
        if not 0 <= self.grain <= 64:
            raise BadRequestError(f"grain={self.grain!r}: expected 0 to 64.")
        if not 0 <= self.b_frames <= 16:
            raise BadRequestError(f"b_frames={self.b_frames!r}: expected 0 to 16.")
        if self.bit_rate is not None and self.bit_rate < 1000:
            raise BadRequestError(f"bit_rate={self.bit_rate!r}: expected bits a second, at least 1000.")

    def write(self, path: str) -> None:
        faststart = "+faststart" if self.faststart else "0"
        options = {"fflags": "+bitexact", **({"movflags": faststart} if self.kind == "mp4" else {})}
        with av.open(path, "w", format=self.kind, options=options) as output:
            video_codec, audio_codec = _VIDEO_CODECS[self.kind]
            picture = cast("VideoStream", output.add_stream(video_codec, self.rate))
            self._set_up(picture)
            track: AudioStream | None = None
            if self.audio:
                track = cast("AudioStream", output.add_stream(audio_codec, SAMPLE_RATE, layout="stereo"))
            heard = 0
            for number, frame in enumerate(self._pictures()):
                output.mux(picture.encode(frame))
                if track is not None:
                    until = math.ceil((number + 1) / self.rate * SAMPLE_RATE)
                    output.mux(track.encode(_audio_frame(heard, until - heard)))
                    heard = until
            output.mux(picture.encode(None))
            if track is not None:
                output.mux(track.encode(None))
        if self.rotation:
            _set_display_matrix(path, self.rotation)

    def _set_up(self, stream: VideoStream) -> None:
        turned = self.rotation in (90, 270)
        stream.width, stream.height = (self.height, self.width) if turned else (self.width, self.height)
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = 1 / self.rate
        context.gop_size = self.gop
        context.color_range, context.colorspace = 1, _MATRICES[self.kind][0]  # 1: the limited range
        context.color_primaries = context.color_trc = _BT709
        if self.bit_rate is not None:
            context.bit_rate = self.bit_rate
        if self.kind == "mp4":
            context.max_b_frames = self.b_frames
            quality = {} if self.bit_rate else {"crf": "23"}
            # A fixed distance between keyframes, whatever the picture does.
            context.options = {"preset": "veryfast", "x264-params": "scenecut=0:open-gop=0", **quality}
        else:
            if self.bit_rate is None:
                context.bit_rate = max(200_000, round(self.width * self.height * self.rate / 6))
            context.options = {"deadline": "realtime", "cpu-used": "8", "auto-alt-ref": "0"}

    def _pictures(self) -> Iterator[VideoFrame]:
        painter, reformatter = FramePainter(self.width, self.height, self.rate), VideoReformatter()
        noise = (
            np.random.default_rng(7).integers(0, self.grain + 1, 2**21, dtype=np.uint8)
            if self.grain
            else None
        )
        for number in range(self.frames):
            pixels = painter.paint(number)
            if noise is not None:
                _add_grain(pixels[: painter.code_top], noise, number)
            # Clockwise by the player undoes counter-clockwise here.
            stored = np.ascontiguousarray(np.rot90(pixels, self.rotation // 90))
            frame = reformatter.reformat(
                VideoFrame.from_ndarray(stored, format="rgba"),
                format="yuv420p",
                dst_colorspace=_MATRICES[self.kind][1],
            )
            frame.pts, frame.time_base = number, 1 / self.rate
            yield frame


def _add_grain(pixels: npt.NDArray[np.uint8], noise: npt.NDArray[np.uint8], number: int) -> None:
    """Add noise to the luma, from another place of the table for each frame."""
    height, width = pixels.shape[:2]
    start = number * 7919 % (len(noise) // 2)
    grains = np.resize(noise[start : start + len(noise) // 2], (height, width))
    # The pattern's colours stay below 246, so that only bright text could overflow: there it is held.
    np.minimum(pixels[..., :3], 255 - grains[..., None], out=pixels[..., :3])
    pixels[..., :3] += grains[..., None]


def _audio_frame(first: int, count: int) -> AudioFrame:
    frame = AudioFrame.from_ndarray(np.tile(sound(first, count), (2, 1)), format="fltp", layout="stereo")
    frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, first, Fraction(1, SAMPLE_RATE)
    return frame


def _checked_rate(frame_rate: float | Fraction) -> Fraction:
    if not (math.isfinite(frame_rate) and 0.1 <= frame_rate <= 1000):
        raise BadRequestError(f"frame_rate={frame_rate!r}: expected 0.1 to 1000 frames a second.")
    return Fraction(frame_rate).limit_denominator(1001)


def _check_size(width: int, height: int) -> None:
    if not (MIN_SIDE <= width <= MAX_SIDE and MIN_SIDE <= height <= MAX_SIDE):
        raise BadRequestError(f"{width}×{height}: expected sides of {MIN_SIDE} to {MAX_SIDE} pixels.")


def _kind_of(path: StrPath | None, kind: str | None, default: str, known: Collection[str]) -> str:
    """The kind that is asked for, or that the path's ending says. Raises BadRequestError for unknown ones."""
    if kind is None and path is not None:
        ending = Path(path).suffix.lower().lstrip(".")
        found = {"jpg": "jpeg", "tif": "tiff", "m4v": "mp4"}.get(ending, ending)
        if found not in known:
            endings = ", ".join(f".{one}" for one in known)
            raise BadRequestError(
                f"{os.fspath(path)!r}: expected a path that ends with {endings}, or a kind=."
            )
        return found
    found = default if kind is None else kind
    if found not in known:
        raise BadRequestError(f"kind={found!r}: expected one of {', '.join(known)}.")
    return found


def _writable(path: StrPath) -> Path:
    """Where to write. Raises BadRequestError for a directory, NotFoundError where its folder is missing."""
    where = Path(path)
    if where.is_dir():
        raise BadRequestError(f"{str(where)!r} is a directory: expected the path of a file to write.")
    if not where.parent.is_dir():
        raise NotFoundError(
            f"there is no directory {str(where.parent)!r} to write {where.name!r} into; make it first."
        )
    return where


def _deliver(path: StrPath | None, data: bytes) -> Path | bytes:
    if path is None:
        return data
    where = _writable(path)
    where.write_bytes(data)
    return where


def __dir__() -> list[str]:
    return __all__


def _set_display_matrix(path: str, rotation: int) -> None:
    """Write the matrix of a clockwise turn into the first track's header (ISO 14496-12, 8.3.2 tkhd).

    PyAV before 18 cannot set it; the layout is fixed, so that the same 36 bytes do for every version.
    """
    cosine, sine = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[rotation]
    matrix = np.array([cosine, sine, 0, -sine, cosine, 0, 0, 0, 1]) * [
        65536,
        65536,
        1,
        65536,
        65536,
        1,
        1,
        1,
        2**30,
    ]
    with Path(path).open("r+b") as file:
        start, end = 0, os.fstat(file.fileno()).st_size
        for name in (b"moov", b"trak", b"tkhd"):
            start, end = _find_box(file, name, start, end)
        file.seek(end - 8 - 36)  # the matrix stands before width and height, which end the box
        file.write(matrix.astype(">i4").tobytes())


def _find_box(file: io.BufferedRandom, name: bytes, start: int, end: int) -> tuple[int, int]:
    """Where the content of the first box `name` between two offsets starts and ends."""
    while start < end:
        file.seek(start)
        header = file.read(16)
        size, head = int.from_bytes(header[:4], "big"), 8
        if size == 1:  # a 64-bit size follows
            size, head = int.from_bytes(header[8:], "big"), 16
        if header[4:8] == name:
            return start + head, start + size
        start += size
    raise AssertionError(f"an mp4 without {name!r} was written")
