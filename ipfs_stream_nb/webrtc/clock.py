"""The clock of a playback: which second of the content is on."""

from __future__ import annotations

import math
import time
from typing import Final

from ipfs_stream_nb.errors import BadRequestError

RATES: Final = (0.25, 4.0)
"""The slowest and the fastest, as multiples of the usual speed."""


class Clock:
    """Stands at a position, or runs from it at a rate. For the event loop's thread."""

    def __init__(self, position: float) -> None:
        self._position = position
        """Seconds of the content: where it stands, or where it was at `_since`."""
        self._since: float | None = None
        """The loop's time since which it runs."""
        self.rate = 1.0

    @property
    def runs(self) -> bool:
        """Whether it runs."""
        return self._since is not None

    @property
    def position(self) -> float:
        """Seconds of the content."""
        return self._position if self._since is None else self._position + (now() - self._since) * self.rate

    def start(self) -> None:
        """Run on. Idempotent."""
        if self._since is None:
            self._since = now()

    def stop(self, position: float) -> None:
        """Stand at a position."""
        self._position, self._since = position, None

    def set_back(self, seconds: float) -> None:
        """Be later by so many seconds of the loop's time."""
        assert self._since is not None  # noqa: S101  # it runs
        self._since += seconds

    def due(self, position: float) -> float:
        """The loop's time at which it reaches a position, while it runs."""
        assert self._since is not None  # noqa: S101  # it runs
        return self._since + (position - self._position) / self.rate


def now() -> float:
    """The event loop's time, in seconds, without asking which loop it is: that is a system call before Python 3.12, and many packets
    ask."""
    return time.monotonic()


def checked_position(position: float, duration: float | None) -> float:
    """A position in seconds; beyond the end, the end. Raises BadRequestError."""
    if isinstance(position, bool) or not isinstance(position, (int, float)) or not position >= 0:
        raise BadRequestError(f"a position is a number of seconds of 0 or more, not {str(position)[:80]!r}")
    try:
        seconds = float(position)
    except OverflowError:
        seconds = math.inf
    if seconds == math.inf:
        raise BadRequestError("a position is a finite number of seconds")
    return seconds if duration is None else min(seconds, duration)


def checked_rate(rate: float) -> float:
    """A rate of playback. Raises BadRequestError."""
    if not RATES[0] <= rate <= RATES[1]:
        raise BadRequestError(f"a rate of {RATES[0]:g} to {RATES[1]:g} was expected, not {rate!r}")
    return rate
