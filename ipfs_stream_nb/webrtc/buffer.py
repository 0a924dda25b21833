"""A queue of frames or packets that is measured in seconds of media."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import Any, Final

from ipfs_stream_nb.errors import BadRequestError
from ipfs_stream_nb.media.encoded import EncodedPacket

VIDEO_SECONDS: Final = 1 / 30
AUDIO_SECONDS: Final = 0.02
"""How long a frame lasts that says neither when it begins nor how long it is."""
LONGEST: Final = 3600.0
"""Seconds that a frame can last; a time that would make it longer is none."""
MAX_FRAMES: Final = 4096
"""Frames at most, however short they say they are."""
RECENT: Final = 30
"""Durations that are kept in `frame_durations`."""


class StreamEndedError(Exception):
    """All frames have been taken, and no more will come."""


class StreamBuffer:
    """Frames on their way from who makes them to who plays them: av frames and packets, or EncodedPackets of one track.

    Its length is the sum of its frames' own durations, so that it does not matter at which time a stream begins, or
    begins anew. Reading begins, and begins again once it ran dry, with `min_duration` seconds in it, or at the end mark.
    Adding waits from `max_duration` seconds on until less than `target_duration` are left.
    """

    def __init__(
        self, target_duration: float = 2.0, max_duration: float = 5.0, min_duration: float = 0.5
    ) -> None:
        """Seconds each. Raises BadRequestError unless 0 ≤ min ≤ target ≤ max and max is above 0."""
        if not 0 <= min_duration <= target_duration <= max_duration < math.inf or not max_duration:
            raise BadRequestError(
                "0 ≤ min_duration ≤ target_duration ≤ max_duration was expected, not "
                f"{min_duration!r}, {target_duration!r}, {max_duration!r}"
            )
        self.target_duration = target_duration
        self.max_duration = max_duration
        self.min_duration = min_duration
        self.buffer: deque[tuple[Any, float]] = deque()
        """Frames with their durations in seconds, the oldest first."""
        self.buffer_duration = 0.0
        """Seconds of media in it."""
        self.frame_durations: deque[float] = deque(maxlen=RECENT)
        """Those of the latest frames, in seconds."""
        self.playback_ready = min_duration == 0
        """Whether a reader gets what is there, and does not wait for more."""
        self.throttle = False
        """Whether adding waits."""
        self._last: float | None = None
        """When the latest frame begins, in its stream's time."""
        self._ended = False
        self._error: BaseException | None = None
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()

    async def add_frame(self, frame: Any) -> None:
        """Append a frame, once there is room. Raises StreamEndedError after `end` and `close`."""
        await self._writable.wait()
        if self._ended:
            raise StreamEndedError
        begin = _begin(frame)
        duration = self._duration(frame, begin)
        self._last = begin
        self.buffer.append((frame, duration))
        self.frame_durations.append(duration)
        self._count(duration)
        if self.buffer_duration >= self.min_duration or self.throttle:  # full of frames that hardly last
            self.playback_ready = True
        if self.playback_ready:
            self._readable.set()

    async def get_frame(self) -> Any:
        """The oldest frame, once reading may go on. Raises StreamEndedError after the last one, or what `end` was given."""
        while not (self.buffer and self.playback_ready):
            if self._ended and not self.buffer:
                raise self._error or StreamEndedError
            self._readable.clear()
            await self._readable.wait()
        frame, duration = self.buffer.popleft()
        self._count(-duration)
        if not self.buffer and not self._ended:
            self.playback_ready = self.min_duration == 0
        return frame

    def end(self, error: BaseException | None = None) -> None:
        """Mark the end: what is there can be read however short it is, then `error` or StreamEndedError is raised."""
        if not self._ended:
            self._ended, self._error = True, error
            self.playback_ready = True
            self._readable.set()
            self._writable.set()

    def close(self) -> None:
        """Drop everything; readers and writers get StreamEndedError."""
        self.buffer.clear()
        self.buffer_duration = 0.0
        self.end()
        self._error = None

    @property
    def ended(self) -> bool:
        """Whether the end mark stands."""
        return self._ended

    def _duration(self, frame: Any, begin: float | None) -> float:
        """How long a frame lasts: what it says, else the distance to the one before, else what is usual."""
        own = _length(frame)
        if own is not None and 0 < own <= LONGEST:
            return own
        if begin is not None and self._last is not None and 0 < begin - self._last <= LONGEST:
            return begin - self._last
        if self.frame_durations:
            return self.frame_durations[-1]
        return AUDIO_SECONDS if hasattr(frame, "samples") else VIDEO_SECONDS

    def _count(self, change: float) -> None:
        # an empty buffer is 0 exactly: errors of rounding do not pile up over hours
        self.buffer_duration = max(self.buffer_duration + change, 0.0) if self.buffer else 0.0
        if self.buffer_duration >= self.max_duration or len(self.buffer) >= MAX_FRAMES:
            self.throttle = True
        elif not self.buffer or (
            self.buffer_duration < self.target_duration and len(self.buffer) < MAX_FRAMES
        ):
            self.throttle = False
        if self.throttle and not self._ended:
            self._writable.clear()
        else:
            self._writable.set()


def _begin(frame: Any) -> float | None:
    """When a frame begins, in seconds of its stream."""
    if isinstance(frame, EncodedPacket):
        return frame.time
    if frame.pts is None or not frame.time_base:
        return None
    return float(frame.pts * frame.time_base)


def _length(frame: Any) -> float | None:
    """How long a frame says that it is, in seconds."""
    if isinstance(frame, EncodedPacket):
        return frame.duration
    samples = getattr(frame, "samples", None)
    if samples:
        return float(samples / frame.sample_rate)
    duration = getattr(frame, "duration", None)
    return float(duration * frame.time_base) if duration and frame.time_base else None
