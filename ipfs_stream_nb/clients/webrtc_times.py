"""Which second of the content a received frame shows: RTP counts on through seeks, pauses and repeats, content does not."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

PlaybackState = Literal["playing", "paused", "ended", "failed"]
STATES: Final = ("playing", "paused", "ended", "failed")

TOLERANCE: Final = 0.1
"""Seconds by which a position that came as a message may differ from what the frames themselves say."""
MARKS: Final = 8
"""Marks of a track that are kept: frames from before the newest may be on their way still."""


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


class Timeline:
    """One track's frames and their times, in seconds. A frame's `pts` counts from the track's first frame on."""

    def __init__(self, start: float) -> None:
        self._marks: deque[tuple[float, float | None]] = deque([(0.0, start)], MARKS)
        """From which pts on it is what time."""
        self._exact = False
        """Whether the server marks the track."""
        self._last: tuple[float, float] | None = None
        """The newest frame's pts, and when it came."""

    def take(self, pts: float, now: float) -> float | None:
        """The time of a frame that comes `now`; None for one that is only there to decode others."""
        self._last = (pts, now)
        return self.time_of(pts)

    def time_of(self, pts: float) -> float | None:
        """The same for any frame."""
        begun, at = next((mark for mark in reversed(self._marks) if mark[0] <= pts), self._marks[0])
        return None if at is None else max(at + pts - begun, 0.0)

    def mark(self, message: Mapping[str, Any]) -> None:
        """The server says that the frame at `pts` shows the content at `time`; null: nothing that is to be seen."""
        pts, at = _seconds(message.get("pts")), _seconds(message.get("time"))
        if pts is not None:
            if not self._exact:
                self._marks.clear()
                self._exact = True
            self._marks.append((pts, at))

    def hint(self, told: Playback, now: float) -> None:
        """The server says where its clock is `now`: good to some ten milliseconds, and of no use beside marks."""
        if self._exact or told.state != "playing" or self._last is None:
            return
        pts = self._last[0] + now - self._last[1]  # RTP's clock is that of the wall
        expected = self.time_of(pts)
        if expected is None or abs(expected - told.position) > TOLERANCE:
            self._marks.append((pts, told.position))
