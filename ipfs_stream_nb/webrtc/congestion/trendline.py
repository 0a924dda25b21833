"""Is the queue growing: the trendline filter and adaptive threshold of Google Congestion Control.

Packets sent within 5 ms make a group; what each group took longer than the one before it is summed and
smoothed, and the slope of that sum over the time of arrival says whether the bottleneck's queue grows
(libwebrtc's filter in place of the Kalman filter of draft-ietf-rmcat-gcc-02, section 5.3). The threshold
follows the slope (section 5.4), so that a flow beside TCP is not starved.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Literal

Signal = Literal["normal", "overuse", "underuse"]

BURST: Final = 0.005
"""Seconds of sending, or of arriving, that make one group."""
LONGEST_BURST: Final = 0.1
GROUPS: Final = 20
"""How many the line is drawn through."""
SMOOTHING: Final = 0.9
GAIN: Final = 4.0
MOST_DELTAS: Final = 60
FIRST_THRESHOLD: Final = 12.5
LOWEST_THRESHOLD: Final = 6.0
HIGHEST_THRESHOLD: Final = 600.0
RISE: Final = 0.0087
FALL: Final = 0.039
"""How fast the threshold follows, per ms."""
OUTLIER: Final = 15.0
"""A slope that is further above the threshold does not move it."""
LONGEST_STEP: Final = 100.0
"""ms at most that one move of the threshold stands for."""
OVERUSING: Final = 0.010
"""Seconds that the slope must be above the threshold."""
JUMP: Final = 3.0
"""Seconds by which time between arrivals differs from that between sendings where a clock was set."""


class Trendline:
    """Takes packets in order of sending; says whether the path is overused."""

    def __init__(self) -> None:
        self._threshold = FIRST_THRESHOLD
        self.reset()

    def reset(self) -> None:
        """Forget the packets; after a gap, or where a clock was set."""
        self.signal: Signal = "normal"
        self._group: tuple[float, float, float, float] | None = None
        """First and last sending, first and last arrival."""
        self._previous: tuple[float, float] | None = None
        self._points: deque[tuple[float, float]] = deque(maxlen=GROUPS)
        self._sum = self._smoothed = 0.0
        self._deltas = 0
        self._slope = 0.0
        self._overusing = 0.0
        self._overuses = 0

    def add(self, sent: float, received: float) -> None:
        """One packet that arrived; seconds of the two clocks."""
        group = self._group
        if group is None:
            self._group = (sent, sent, received, received)
            return
        first, last, arrived, arrived_last = group
        if sent < first:
            return
        late = received - arrived_last
        if sent - first <= BURST or (
            late - (sent - last) < 0 and late <= BURST and received - arrived < LONGEST_BURST
        ):
            self._group = (first, max(sent, last), arrived, max(received, arrived_last))
            return
        if self._previous is not None:
            self._compare(last - self._previous[0], arrived_last - self._previous[1], arrived_last)
        self._previous = (last, arrived_last)
        self._group = (sent, sent, received, received)

    def _compare(self, sending: float, arriving: float, arrived: float) -> None:
        if abs(arriving - sending) > JUMP:
            self.reset()
            return
        self._deltas = min(self._deltas + 1, MOST_DELTAS)
        self._sum += (arriving - sending) * 1000
        self._smoothed += (1 - SMOOTHING) * (self._sum - self._smoothed)
        points = self._points
        points.append((arrived, self._smoothed))
        if len(points) == GROUPS:
            self._detect(_slope(points) / 1000, sending)

    def _detect(self, slope: float, sending: float) -> None:
        """`slope`: seconds of queue per second."""
        level = self._deltas * slope * GAIN
        if level > self._threshold:
            self._overusing += sending if self._overuses else sending / 2
            self._overuses += 1
            if self._overusing > OVERUSING and self._overuses > 1 and slope >= self._slope:
                self._overusing = self._overuses = 0
                self.signal = "overuse"
        else:
            self._overusing = self._overuses = 0
            self.signal = "underuse" if level < -self._threshold else "normal"
        self._slope = slope
        height = abs(level)
        if height <= self._threshold + OUTLIER:
            follow = FALL if height < self._threshold else RISE
            step = min(sending * 1000, LONGEST_STEP)
            self._threshold += follow * (height - self._threshold) * step
            self._threshold = min(max(self._threshold, LOWEST_THRESHOLD), HIGHEST_THRESHOLD)


def _slope(points: deque[tuple[float, float]]) -> float:
    """Of the line through them by least squares; 0 where they stand above one another."""
    origin = points[0][0]
    count, sx, sy, sxx, sxy = len(points), 0.0, 0.0, 0.0, 0.0
    for time, y in points:
        x = time - origin
        sx += x
        sy += y
        sxx += x * x
        sxy += x * y
    below = count * sxx - sx * sx
    return (count * sxy - sx * sy) / below if below > 1e-12 else 0.0
