"""How much arrives: bit/s over a window of the receiver's time."""

from __future__ import annotations

from collections import deque
from typing import Final

WINDOW: Final = 0.5
SHORT: Final = 0.2
"""Seconds; the short one where the bottleneck is busy all the time, so that frames' gaps do not show."""
FEWEST: Final = 0.15
"""Seconds without which there is no rate yet."""


class Throughput:
    """Bytes by the time at which they arrived (or were sent)."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._packets: deque[tuple[float, int]] = deque()
        self._bytes = 0
        self._latest = 0.0

    def add(self, time: float, size: int) -> None:
        """One packet; out of order is fine."""
        if not self._packets or time > self._latest:
            self._latest = time
        self._packets.append((time, size))
        self._bytes += size
        while self._packets[0][0] < self._latest - WINDOW:
            self._bytes -= self._packets.popleft()[1]

    @property
    def bitrate(self) -> float | None:
        """bit/s over half a second; None where too little is known."""
        return self._rate(self._bytes, WINDOW)

    @property
    def short_bitrate(self) -> float | None:
        """bit/s over a fifth of a second."""
        begin = self._latest - SHORT
        return self._rate(sum(size for time, size in self._packets if time > begin), SHORT)

    def _rate(self, total: int, window: float) -> float | None:
        if not self._packets:
            return None
        known = self._latest - self._packets[0][0]
        return total * 8 / min(window, known) if known >= FEWEST else None
