"""How long packets stand in the path's queues: one-way delay above its least."""

from __future__ import annotations

from collections import deque
from typing import Final

BUCKET: Final = 1.0
"""Seconds that share one minimum."""
BUCKETS: Final = 30
"""How many of them count; older ones no longer, as clocks drift."""
FLAT: Final = 2.5
"""Seconds of delay that does not move, however high: the path has become longer. A queue that others fill
moves.
"""
FLATNESS: Final = 0.008
"""Seconds within which it counts as unmoved."""
RAISED: Final = 0.010
"""Seconds by which such a delay is above the least."""


class QueueDelay:
    """Takes packets' one-way delays, whose zero is anywhere; seconds."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all; a clock was set."""
        self._least: deque[tuple[float, float]] = deque(maxlen=BUCKETS)
        self._recent: deque[tuple[float, float]] = deque()
        self._low = self._high = self._last = None  # type: float | None
        self.standing = 0.0
        """The least that a packet of the latest feedback waited."""
        self.jitter = 0.0
        """Mean deviation of packets' delays from one to the next, as RFC 3550's section 6.4.1."""

    def add(self, delay: float) -> None:
        """One packet's."""
        if self._low is None or delay < self._low:
            self._low = delay
        if self._last is not None:
            self.jitter += (abs(delay - self._last) - self.jitter) / 16
        self._last = delay

    def update(self, now: float, *, keep: bool) -> None:
        """All of one feedback are added. `keep`: the least does not age, as others' packets hide it."""
        low, self._low = self._low, None
        if low is None:
            return
        least = self._least
        if not least or now - least[-1][0] >= BUCKET:
            if keep and least:
                least[0] = (least[0][0], min(each for _, each in least))
                while len(least) > 1:
                    least.pop()
                least[0] = (now, min(low, least[0][1]))
            else:
                least.append((now, low))
        elif low < least[-1][1]:
            least[-1] = (least[-1][0], low)
        while not keep and now - least[0][0] > BUCKETS * BUCKET:
            least.popleft()  # of before a pause, in which the clocks went apart
        base = min(each for _, each in least)
        recent = self._recent
        recent.append((now, low))
        while now - recent[0][0] > FLAT:
            recent.popleft()
        if low - base > RAISED and now - recent[0][0] > FLAT * 0.9:
            lowest = min(each for _, each in recent)
            if lowest - base > RAISED and max(each for _, each in recent) - lowest < FLATNESS:
                least.clear()
                least.append((now, lowest))
                base = lowest
        self.standing = max(0.0, low - base)
