"""Which second of the content a received frame shows: RTP counts on through seeks, pauses and repeats, content does not."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, cast

PlaybackState = Literal["playing", "paused", "ended", "failed"]
STATES: Final = ("playing", "paused", "ended", "failed")

TOLERANCE: Final = 0.1
"""Seconds by which a position that came as a message may differ from what the frames themselves say."""
MARKS: Final = 8
"""Marks of a track that are kept: frames from before the newest may be on their way still."""
_HALF: Final = 1 << 31
"""Timestamps wrap at twice this: of two, the later one is less than this ahead (RFC 3550, section 5.1)."""


@dataclass(frozen=True, slots=True)
class Playback:
    """Where a stream is. Seconds."""

    position: float
    state: PlaybackState
    duration: float | None
    """None where it is not known."""

    @classmethod
    def read(cls, message: Mapping[str, Any]) -> Playback | None:
        """Out of a message; None where it holds none."""
        position, state = _seconds(message.get("position")), message.get("state")
        if position is None or state not in STATES:
            return None
        return cls(position, cast("PlaybackState", state), _seconds(message.get("duration")))


def _seconds(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf"):
        return float(value)
    return None


class PlaybackClock:
    """What the server told last of a stream's playback, counted on since."""

    def __init__(self, start: float) -> None:
        self._told = Playback(start, "paused", None)
        self._at = time.monotonic()

    def take(self, told: Playback) -> None:
        """Take what it tells."""
        self._told, self._at = told, time.monotonic()

    @property
    def now(self) -> Playback:
        """Where it is at this moment."""
        told = self._told
        if told.state != "playing":
            return told
        position = told.position + time.monotonic() - self._at
        if told.duration is not None:
            position = min(position, told.duration)
        return Playback(position, told.state, told.duration)


class Mark(NamedTuple):
    """From which RTP timestamp on it is what time."""

    timestamp: int
    time: float | None
    """None: frames from here on are only there to decode others."""
    number: int
    """Of the marks that the server has sent for the track, which one this is; 0: it is an estimate."""


class Timeline:
    """One track's frames and their times, in seconds, by the RTP timestamps that they came with (32 bits)."""

    def __init__(self, start: float, clock_rate: int) -> None:
        self._start = start
        self._rate = clock_rate
        self._marks: deque[Mark] = deque(maxlen=MARKS)
        self.marked = 0
        """Marks that the server has sent."""
        self._last: tuple[int, float] | None = None
        """The newest frame's timestamp, and when it came."""

    def take(self, timestamp: int, now: float) -> float | None:
        """The time of a frame that comes `now`; None for one that is only there to decode others."""
        if not self._marks:
            self._marks.append(Mark(timestamp, self._start, 0))
        self._last = (timestamp, now)
        return self.time_of(timestamp)

    def time_of(self, timestamp: int) -> float | None:
        """The same for any frame, once one has come or been marked."""
        mark = self.mark_of(timestamp)
        return None if mark.time is None else max(mark.time + self._since(timestamp, mark), 0.0)

    def mark_of(self, timestamp: int) -> Mark:
        """The mark that holds for a frame."""
        return next(
            (mark for mark in reversed(self._marks) if self._since(timestamp, mark) >= 0), self._marks[0]
        )

    def _since(self, timestamp: int, mark: Mark) -> float:
        return ((timestamp - mark.timestamp + _HALF) % (2 * _HALF) - _HALF) / self._rate

    def mark(self, message: Mapping[str, Any]) -> None:
        """The server says that the frame at `rtp_timestamp` shows the content at `time`; null: nothing that is to be seen."""
        timestamp, at = message.get("rtp_timestamp"), _seconds(message.get("time"))
        if isinstance(timestamp, int) and 0 <= timestamp < 2 * _HALF:
            if not self.marked:
                self._marks.clear()
            self.marked += 1
            self._marks.append(Mark(int(timestamp), at, self.marked))

    def hint(self, told: Playback, now: float) -> None:
        """The server says where its clock is `now`: good to some ten milliseconds, and of no use beside marks."""
        if self.marked or told.state != "playing" or self._last is None:
            return
        # RTP's clock is that of the wall
        timestamp = (self._last[0] + round((now - self._last[1]) * self._rate)) % (2 * _HALF)
        expected = self.time_of(timestamp)
        if expected is None or abs(expected - told.position) > TOLERANCE:
            self._marks.append(Mark(timestamp, told.position, 0))
