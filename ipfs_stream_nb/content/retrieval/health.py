"""How well a provider does: what it costs to ask it, and whether to ask it at all for now."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

LATENCIES: Final = 32
"""Latest answers whose latency counts."""
UNTRIED_SECONDS: Final = 0.5
"""What an answer is expected to take of a provider that was never asked."""
FAILURE_SECONDS: Final = 2.0
"""What each failure in a row adds to that."""
REST_SECONDS: Final = 30.0
"""A provider that cannot be reached, or failed MAX_FAILURES times in a row, rests so long; each time twice as long."""
MAX_REST_SECONDS: Final = 300.0
MAX_FAILURES: Final = 4
CORRUPT_SECONDS: Final = 600.0
"""One that gave wrong bytes rests so long."""


class Health:
    """One provider's. Times are seconds of a monotonic clock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._latencies: deque[float] = deque(maxlen=LATENCIES)
        self._failures = 0
        self._rests = 0
        self._rest_until = 0.0
        self.ok = 0
        """Blocks that it gave."""
        self.missing = 0
        """Blocks that it did not have."""
        self.failed = 0
        self.corrupt = 0
        """Blocks whose bytes were not those that were asked for."""
        self.reason = ""
        """Why it failed last."""

    @property
    def latency(self) -> float | None:
        """The median of the latest answers; None for none yet."""
        return statistics.median(self._latencies) if self._latencies else None

    @property
    def resting(self) -> float:
        """Seconds until it is asked again; 0 where it can be asked now."""
        return max(0.0, self._rest_until - self._clock())

    @property
    def score(self) -> float:
        """Seconds that an answer is expected to take: who has fewest is asked first."""
        latency = self.latency
        return (UNTRIED_SECONDS if latency is None else latency) + FAILURE_SECONDS * self._failures

    def answered(self, seconds: float) -> None:
        """It gave a block."""
        self.ok += 1
        self._latencies.append(seconds)
        self._failures = self._rests = 0

    def overtaken(self, seconds: float) -> None:
        """Somebody else was quicker: its answer would have taken at least so long."""
        self._latencies.append(seconds)

    def has_not(self) -> None:
        """It said that it does not have a block: that is an answer, too."""
        self.missing += 1
        self._failures = 0

    def failure(self, reason: str, *, unreachable: bool = False) -> None:
        """It failed; one that cannot be reached rests at once."""
        self.failed += 1
        self._failures += 1
        self.reason = reason
        if unreachable or self._failures >= MAX_FAILURES:
            self._rest(min(REST_SECONDS * 2**self._rests, MAX_REST_SECONDS))
            self._rests += 1

    def wrong_bytes(self, reason: str) -> None:
        """It gave other bytes than were asked for."""
        self.corrupt += 1
        self.reason = reason
        self._rest(CORRUPT_SECONDS)

    def busy(self, reason: str, seconds: float) -> None:
        """It asked to be left alone for so long."""
        self.failed += 1
        self.reason = reason
        self._rest(seconds)

    def _rest(self, seconds: float) -> None:
        self._rest_until = max(self._rest_until, self._clock() + seconds)

    def describe(self) -> dict[str, Any]:
        """For people and for JSON: `latency_ms` is milliseconds, `resting_s` seconds."""
        resting = self.resting
        latency = self.latency
        state = "resting" if resting else "untried" if not (self.ok or self.missing or self.failed) else "ok"
        return {
            "state": state,
            "latency_ms": None if latency is None else round(latency * 1000, 1),
            "ok": self.ok,
            "missing": self.missing,
            "failed": self.failed,
            "corrupt": self.corrupt,
            "resting_s": round(resting, 1),
            "reason": self.reason if resting or self._failures else "",
        }
