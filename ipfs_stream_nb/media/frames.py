"""Video frames as numpy arrays: all of a range, or some at even distances, at once or one by one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, overload

import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame

from ipfs_stream_nb.errors import BadRequestError, TooLargeError
from ipfs_stream_nb.media.decode import VideoDecoder
from ipfs_stream_nb.media.picture import Picture, RGBConverter, Size, check_size, png, strip
from ipfs_stream_nb.media.reader import DEFAULT_LIMITS, BinaryFile, MediaLimits
from ipfs_stream_nb.media.source import open_media

MAX_COUNT = 1_000_000
"""Frames that `count` may ask for."""
SEEK_GAP = 1.0
"""Seconds between wanted frames from which on a seek is tried rather than decoding what lies between."""
PREVIEW_FRAMES, PREVIEW_HEIGHT = 6, 96
"""Pictures in the preview of Frames, and their height in pixels."""

MAX_ROUNDING = Fraction(1, 2000)
"""Seconds by which a time may miss a frame's, and still mean it; half a tick of the stream's clock where that is less."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame: `array` (height, width, 3) uint8 RGB, upright, and its `time` in seconds of the content."""

    time: float
    array: Picture

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return (
            np.array(self.array, dtype=dtype, copy=bool(copy))
            if copy
            else np.asarray(self.array, dtype=dtype)
        )

    def __repr__(self) -> str:
        height, width = self.array.shape[:2]
        return f"Frame(time={self.time:.3f}, {width}×{height})"

    def _repr_png_(self) -> bytes:
        return png(self.array)


@dataclass(frozen=True, eq=False)
class Frames:
    """Frames in order: `array` (n, height, width, 3) uint8 RGB, and `times` (n,) float64 in seconds of the content.

    An index gives a Frame, a slice gives Frames over the same memory; numpy takes it for its array.
    """

    array: Picture
    times: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.times)

    @overload
    def __getitem__(self, index: int) -> Frame: ...
    @overload
    def __getitem__(self, index: slice) -> Frames: ...
    def __getitem__(self, index: int | slice) -> Frame | Frames:
        if isinstance(index, slice):
            return Frames(self.array[index], self.times[index])
        return Frame(float(self.times[index]), self.array[index])

    def __iter__(self) -> Iterator[Frame]:
        return (self[index] for index in range(len(self)))

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.array(self.array, dtype=dtype) if copy else np.asarray(self.array, dtype=dtype)

    def __repr__(self) -> str:
        count, height, width = self.array.shape[:3]
        span = f", {self.times[0]:.3f} to {self.times[-1]:.3f} s" if count else ""
        return f"Frames(n={count}, {width}×{height}{span})"

    def _repr_png_(self) -> bytes | None:
        if not len(self):
            return None
        places = np.linspace(0, len(self) - 1, min(len(self), PREVIEW_FRAMES)).round().astype(int)
        return png(strip([self.array[place] for place in places], PREVIEW_HEIGHT))


def frames(
    file: BinaryFile,
    start: float | None = None,
    stop: float | None = None,
    *,
    every: float | None = None,
    count: int | None = None,
    size: Size = None,
    limits: MediaLimits = DEFAULT_LIMITS,
) -> Frames:
    """The frames whose times lie in [start, stop), as one array; times are seconds, 0 at the first frame.

    every    instead: the frame that is on screen at start, start + every, … up to stop or the end
    count    instead: the frames on screen at that many even distances, from start on. A frame stands there as often
             as it is met
    size     a width, or (width, height) for the largest picture that fits into this box: the aspect is kept
    limits   what the file and the result may cost

    A picture is a video of one frame at 0. Frames come upright (rotation is applied), as 8-bit RGB.
    Raises BadRequestError for arguments that make no sense and for a start behind the video's end, TooLargeError when
    the array would pass max_result_bytes, and what open_media raises.
    """
    wanted = _Selection.checked(start, stop, every, count, check_size(size))
    with open_media(file, limits) as source:
        return _collect(VideoDecoder(source), wanted)


def iter_frames(
    file: BinaryFile,
    start: float | None = None,
    stop: float | None = None,
    *,
    every: float | None = None,
    count: int | None = None,
    size: Size = None,
    limits: MediaLimits = DEFAULT_LIMITS,
) -> Iterator[Frame]:
    """As `frames`, but one by one while they are decoded; leaving the loop early frees the decoder."""
    wanted = _Selection.checked(start, stop, every, count, check_size(size))
    return _iterate(file, wanted, limits)


def _iterate(file: BinaryFile, wanted: _Selection, limits: MediaLimits) -> Iterator[Frame]:
    with open_media(file, limits) as source:
        decoder = VideoDecoder(source)
        converter: RGBConverter | None = None
        for pts, frame in wanted.select(decoder):
            converter = converter or RGBConverter(frame, source, wanted.size)
            picture = Frame(_seconds(decoder, pts), converter.array(frame))
            yield picture
            source.reader.progress()
        if converter is None:
            _check_start(decoder, wanted)


@dataclass(frozen=True)
class _Selection:
    """Which frames are wanted, in seconds of the content."""

    start: float
    stop: float | None
    every: float | None
    count: int | None
    size: Size

    @classmethod
    def checked(
        cls, start: float | None, stop: float | None, every: float | None, count: int | None, size: Size
    ) -> _Selection:
        start = check_time("start", start, 0.0)
        stop = None if stop is None else check_time("stop", stop, 0.0)
        if stop is not None and stop < start:
            raise BadRequestError(
                f"stop={stop:g} comes before start={start:g}: expected [start, stop) in seconds."
            )
        if every is not None and count is not None:
            raise BadRequestError("Expected every or count, not both.")
        if every is not None and not (math.isfinite(every) and every > 0):
            raise BadRequestError(f"every={every!r}: expected seconds above 0.")
        if count is not None and (not isinstance(count, int | np.integer) or not 1 <= count <= MAX_COUNT):
            raise BadRequestError(f"count={count!r}: expected a whole number from 1 to {MAX_COUNT}.")
        return cls(start, stop, every, None if count is None else int(count), size)

    def select(self, decoder: VideoDecoder) -> Iterator[tuple[int, VideoFrame]]:
        """The wanted frames and their pts."""
        if self.every is None and self.count is None:
            return self._range(decoder)
        return _at_times(decoder, self._grid(decoder), hold=self.count is not None)

    def expected(self, decoder: VideoDecoder) -> int:
        """How many frames there will be, as far as the container tells; never far too many."""
        if self.count is not None:
            return self.count
        span = self._stop(decoder)
        if span is None:
            return 1
        length = max(0.0, span - self.start)
        if self.every is not None:
            return math.ceil(length / self.every)
        stream = decoder.stream
        rate = min(float(stream.average_rate or 30), 240.0)
        return min(math.ceil(length * rate) + 2, stream.frames or MAX_COUNT)

    def _range(self, decoder: VideoDecoder) -> Iterator[tuple[int, VideoFrame]]:
        first = _ticks_from(decoder, self.start)
        stop = None if self.stop is None else _ticks_from(decoder, self.stop)
        for pts, frame in decoder.frames(first if first > decoder.first else None):
            if stop is not None and pts >= stop:
                return
            if pts >= first:
                yield pts, frame

    def _grid(self, decoder: VideoDecoder) -> Iterator[int]:
        """The pts at which the screen is looked at."""
        stop = self._stop(decoder)
        if self.count is not None:
            if stop is None:
                stop = content_end(decoder)
            if stop < self.start:
                return
            for index in range(self.count):
                yield _ticks_at(decoder, self.start + (stop - self.start) * index / self.count)
            return
        assert self.every is not None  # noqa: S101 - for the type checker
        for index in itertools.count():
            time = self.start + index * self.every
            if stop is not None and time >= stop:
                return
            yield _ticks_at(decoder, time)

    def _stop(self, decoder: VideoDecoder) -> float | None:
        end = decoder.end()
        if end is None:
            return self.stop
        length = _seconds(decoder, end)
        return length if self.stop is None else min(self.stop, length)


def _check_start(decoder: VideoDecoder, wanted: _Selection) -> None:
    """Raise BadRequestError where there are no frames since the video has ended before; a picture stays on."""
    if wanted.start > 0 and not decoder.source.is_image:
        end = content_end(decoder)
        if wanted.start >= end:
            raise BadRequestError(f"start={wanted.start:g}: the video ends at {end:.3f} s.")


def content_end(decoder: VideoDecoder) -> float:
    """The length of the video in seconds, at the price of reading all of it where the container does not tell."""
    end = decoder.end()
    if end is None:
        end = decoder.scan_end()
    return 0.0 if end is None else _seconds(decoder, end)


def at_times(decoder: VideoDecoder, times: Iterator[float]) -> Iterator[tuple[int, VideoFrame]]:
    """The frame on screen at each of some rising times (seconds), and its pts; the last one stays on."""
    return _at_times(decoder, (_ticks_at(decoder, time) for time in times), hold=True)


def _at_times(decoder: VideoDecoder, grid: Iterator[int], *, hold: bool) -> Iterator[tuple[int, VideoFrame]]:
    """As at_times, in ticks; without `hold` nothing comes after the end of the last frame."""
    gap = SEEK_GAP / decoder.time_base
    decoded: Iterator[tuple[int, VideoFrame]] = iter(())
    shown: tuple[int, VideoFrame] | None = None
    coming: tuple[int, VideoFrame] | None = None
    for wanted in grid:
        if shown is None or (coming is not None and wanted - coming[0] > gap):
            before = shown[0] if shown is not None else None
            decoded = decoder.frames(wanted if wanted > decoder.first else None)
            shown = coming = next(decoded, None)
            # The keyframe lay behind what was decoded already: seeking pays from a larger distance on only.
            if before is not None and (decoder.landed is None or decoder.landed <= before):
                gap = 2 * (wanted - before)
        while coming is not None and coming[0] <= wanted:
            shown, coming = coming, next(decoded, None)
        if shown is None or (
            coming is None and not hold and wanted >= shown[0] + _duration(decoder, shown[1])
        ):
            return
        yield shown


def _collect(decoder: VideoDecoder, wanted: _Selection) -> Frames:
    limits, expected = decoder.source.limits, wanted.expected(decoder)
    converter: RGBConverter | None = None
    array = np.empty((0, 0, 0, 3), dtype=np.uint8)
    times: list[float] = []
    for pts, frame in wanted.select(decoder):
        if converter is None:
            converter = RGBConverter(frame, decoder.source, wanted.size)
            # A number from rate and duration is near the truth: refuse at once what is surely too much.
            sure = expected if wanted.count is not None else round(expected * 0.9) - 2
            most = _most(converter, sure, limits)
            array = np.empty((min(max(expected, 1), most), *converter.shape), dtype=np.uint8)
        if len(times) == len(array):
            most = _most(converter, len(times) + 1, limits)
            array = np.concatenate(
                [array, np.empty((min(len(array), most - len(array)), *converter.shape), np.uint8)]
            )
        converter.write(frame, array[len(times)])
        times.append(_seconds(decoder, pts))
        decoder.source.reader.progress()
    if converter is None:
        _check_start(decoder, wanted)
        first = next((frame for _, frame in decoder.frames()), None)
        shape = RGBConverter(first, decoder.source, wanted.size).shape if first is not None else (0, 0, 3)
        array = np.empty((0, *shape), dtype=np.uint8)
    return Frames(array[: len(times)], np.array(times, dtype=np.float64))


def _most(converter: RGBConverter, count: int, limits: MediaLimits) -> int:
    """How many frames the limit allows; TooLargeError if `count` is more."""
    most = limits.max_result_bytes // math.prod(converter.shape)
    if count > most:
        raise TooLargeError(
            f"{count} or more frames of {converter.width}×{converter.height} are over the limit of "
            f"{limits.max_result_bytes / 2**30:.3g} GiB (max_result_bytes), which holds {most}. "
            "Ask for a shorter range, a smaller size=, every= or count=, or take them one by one with iter_frames()."
        )
    return most


def _seconds(decoder: VideoDecoder, pts: int) -> float:
    return float((pts - decoder.first) * decoder.time_base)


def _ticks_from(decoder: VideoDecoder, seconds: float) -> int:
    """The first pts that is not before a time."""
    return decoder.first + math.ceil(Fraction(seconds) / decoder.time_base - _slack(decoder))


def _ticks_at(decoder: VideoDecoder, seconds: float) -> int:
    """The last pts that is not after a time."""
    return decoder.first + math.floor(Fraction(seconds) / decoder.time_base + _slack(decoder))


def _slack(decoder: VideoDecoder) -> Fraction:
    """What counts as no difference, in ticks: the container has rounded the times, and so may the caller have."""
    return min(Fraction(1, 2), MAX_ROUNDING / decoder.time_base)


def _duration(decoder: VideoDecoder, frame: VideoFrame) -> int:
    duration = getattr(frame, "duration", 0)  # PyAV tells from version 15 on
    if duration:
        return int(duration)
    rate = decoder.stream.average_rate
    return max(1, round(1 / (rate * decoder.time_base))) if rate else 1


def check_time(name: str, value: float | None, default: float) -> float:
    """A time argument in seconds from 0; BadRequestError for anything else."""
    if value is None:
        return default
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise BadRequestError(f"{name}={value!r}: expected seconds, from 0.")
    return seconds
