"""Sound as numpy arrays, exact to the sample."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple, cast

import av
import numpy as np
import numpy.typing as npt
from av.audio.frame import AudioFrame

from ipfs_stream_nb.errors import BadRequestError, TooLargeError, UnsupportedMediaError
from ipfs_stream_nb.media.decode import AudioDecoder, content_start
from ipfs_stream_nb.media.frames import check_time
from ipfs_stream_nb.media.reader import DEFAULT_LIMITS, BinaryFile, MediaLimits
from ipfs_stream_nb.media.source import open_media

MAX_JITTER = Fraction(1, 100)
"""Seconds by which a time stamp may miss the end of the sound before it; beyond, there is a gap or an overlap."""

MAX_ROUNDING = Fraction(2, 1000)
"""Seconds that time stamps in whole milliseconds may be off, of the encoder's delay and of the frame together."""

Samples = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Audio:
    """Sound: `samples` (n, channels) float32 from -1 to 1, at `rate` Hz, from `start` (seconds of the content) on."""

    samples: Samples
    rate: int
    start: float = 0.0

    @property
    def channels(self) -> int:
        """Channels side by side: 1 is mono, 2 is stereo."""
        return int(self.samples.shape[1])

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.samples) / self.rate

    def __len__(self) -> int:
        return len(self.samples)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.array(self.samples, dtype=dtype) if copy else np.asarray(self.samples, dtype=dtype)

    def __repr__(self) -> str:
        return f"Audio({self.duration:.3f} s from {self.start:.3f} s, channels={self.channels}, rate={self.rate} Hz)"


def audio(
    file: BinaryFile,
    start: float | None = None,
    stop: float | None = None,
    *,
    limits: MediaLimits = DEFAULT_LIMITS,
) -> Audio:
    """The sound of [start, stop) in seconds of the content, which count from the first frame where there is video.

    Sample i is the one at start + i / rate; what the file leaves out in between is silence. Encoder delay (AAC, Opus,
    MP3) is cut off as the container says. WebM keeps its times in whole milliseconds: a range of it is exact for
    codecs with frames of one length (Opus, AAC), and may be off by a millisecond for others (Vorbis). Lossy sound is
    clipped to -1…1.

    Raises BadRequestError for arguments that make no sense and for a start behind the end, TooLargeError when the array would pass max_result_bytes,
    UnsupportedMediaError without audio, and what open_media raises.
    """
    begin = check_time("start", start, 0.0)
    end = math.inf if stop is None else check_time("stop", stop, 0.0)
    if end < begin:
        raise BadRequestError(
            f"stop={end:g} comes before start={begin:g}: expected [start, stop) in seconds."
        )
    with open_media(file, limits) as source:
        source.audio  # noqa: B018 - the error for content without audio comes before any work
        zero = content_start(source)
        decoder = AudioDecoder(source)
        target = math.floor((Fraction(begin) + zero) / decoder.time_base) if begin > 0 else None
        grid = _Grid.of(decoder, zero) if target is not None else None
        pieces: _Pieces | None = None
        for time, frame in _timed(decoder, target, zero):
            if pieces is None:
                pieces = _Pieces(frame, begin, end, grid, limits)
            if pieces.put(time, frame):
                break
            source.reader.progress()
        length = (source.container.duration or 0) / av.time_base
    if begin >= length > 0 and (pieces is None or pieces.ended_before):
        raise BadRequestError(f"start={begin:g}: the sound ends at {length:.3f} s.")
    if pieces is None:
        raise UnsupportedMediaError("The content's audio stream holds no sound.")
    return Audio(pieces.joined(), pieces.rate, begin)


def _timed(
    decoder: AudioDecoder, target: int | None, zero: Fraction
) -> Iterator[tuple[Fraction, AudioFrame]]:
    for pts, frame in decoder.frames(target):
        yield pts * decoder.time_base - zero, frame


class _Grid(NamedTuple):
    """Where frames of one length end: what coarse time stamps (WebM's milliseconds) have lost is found again."""

    length: int
    phase: int

    @classmethod
    def of(cls, decoder: AudioDecoder, zero: Fraction) -> _Grid | None:
        """The grid of a stream whose first frames are of one length; None where time stamps are exact anyway."""
        frames = [(time, frame) for time, frame in itertools.islice(_timed(decoder, None, zero), 4)]
        if len(frames) < 4 or decoder.time_base * frames[0][1].sample_rate <= 1:
            return None
        lengths = {frame.samples for _, frame in frames[1:]}
        if len(lengths) > 1:
            return None
        time, first = frames[0]
        return cls(lengths.pop(), round(time * first.sample_rate) + first.samples)

    def snap(self, end: int, slack: int) -> int:
        """The place of the grid next to `end`, if it is no further than `slack` samples."""
        place = self.phase + round((end - self.phase) / self.length) * self.length
        return place if abs(place - end) <= slack else end


class _Pieces:
    """Puts decoded frames side by side into one array that grows, each at its time."""

    def __init__(
        self, first: AudioFrame, begin: float, end: float, grid: _Grid | None, limits: MediaLimits
    ) -> None:
        self._grid = grid
        self.rate, self._channels = first.sample_rate, first.layout.nb_channels
        self._limits = limits
        self._first = round(begin * self.rate)
        self._stop = None if math.isinf(end) else round(end * self.rate)
        self._samples: Samples = np.zeros((0, self._channels), dtype=np.float32)
        self._filled = 0
        self._next: int | None = None

    def put(self, time: Fraction, frame: AudioFrame) -> bool:
        """Add a frame that begins at `time` (seconds of the content); True when the end of the range is reached."""
        if frame.sample_rate != self.rate or frame.layout.nb_channels != self._channels:
            raise UnsupportedMediaError(
                f"The audio changes from {self.rate} Hz, {self._channels} channels to {frame.sample_rate} Hz, "
                f"{frame.layout.nb_channels} at {float(time):.3f} s: such content is not supported."
            )
        at = round(time * self.rate)
        if self._next is not None and abs(at - self._next) <= MAX_JITTER * self.rate:
            at = self._next
        elif self._grid is not None:
            at = self._grid.snap(at + frame.samples, round(MAX_ROUNDING * self.rate)) - frame.samples
        self._next = at + frame.samples
        start = max(at, self._first)
        stop = self._next if self._stop is None else min(self._next, self._stop)
        if start < stop:
            self._make_room(stop - self._first)
            self._samples[start - self._first : stop - self._first] = to_float(frame)[start - at : stop - at]
            self._filled = max(self._filled, stop - self._first)
        if self._stop is None or self._next < self._stop:
            return False
        self._make_room(self._stop - self._first)
        self._filled = self._stop - self._first  # what was not put there is silence
        return True

    @property
    def ended_before(self) -> bool:
        """Whether the sound ended before the range began."""
        return self._filled == 0 and (self._next is None or self._next <= self._first)

    def joined(self) -> Samples:
        """All that was put, clipped to -1…1."""
        samples = self._samples[: self._filled]
        return np.clip(samples, -1, 1, out=samples)

    def _make_room(self, needed: int) -> None:
        if needed <= len(self._samples):
            return
        most = self._limits.max_result_bytes // (4 * self._channels)
        if needed > most:
            raise TooLargeError(
                f"The sound is over the limit of {self._limits.max_result_bytes / 2**30:.3g} GiB (max_result_bytes), "
                f"which holds {most / self.rate:.0f} s at {self.rate} Hz and {self._channels} channels: "
                "ask for a shorter range."
            )
        longer = np.zeros(
            (min(most, max(needed, 2 * len(self._samples), self.rate)), self._channels), np.float32
        )
        longer[: self._filled] = self._samples[: self._filled]
        self._samples = longer


def to_float(frame: AudioFrame) -> Samples:
    """A decoded frame as (n, channels) float32, full scale being ±1."""
    data = frame.to_ndarray()
    samples = data.T if frame.format.is_planar else data.reshape(-1, frame.layout.nb_channels)
    if samples.dtype.kind != "f":
        middle = 2 ** (8 * samples.dtype.itemsize - 1)
        samples = (samples.astype(np.float64) - (middle if samples.dtype.kind == "u" else 0)) / middle
    return cast("Samples", samples.astype(np.float32, copy=False))
