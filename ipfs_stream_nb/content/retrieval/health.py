"""How well a provider does: what it costs to ask it, and whether to ask it at all for now."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

LATENCIES: Final = 32
"""Latest answers whose latency counts."""
RECENT_SECONDS: Final = 600.0
"""Older answers and failures no longer count: it may do better by now, and gets a chance."""
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
        self.clock = clock
        self._latencies: deque[tuple[float, float]] = deque(maxlen=LATENCIES)  # when, and how long
        self._failures = 0
        self._failed_at = -RECENT_SECONDS
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
        """The median of the latest answers; None for none yet, or none of late."""
        since = self.clock() - RECENT_SECONDS
        recent = [seconds for when, seconds in self._latencies if when >= since]
        return statistics.median(recent) if recent else None

    @property
    def resting(self) -> float:
        """Seconds until it is asked again; 0 where it can be asked now."""
        return max(0.0, self._rest_until - self.clock())

    @property
    def score(self) -> float:
        """Seconds that an answer is expected to take: who has fewest is asked first."""
        failures = self._failures if self.clock() - self._failed_at < RECENT_SECONDS else 0
        return self._expected + FAILURE_SECONDS * failures

    @property
    def _expected(self) -> float:
        latency = self.latency
        return UNTRIED_SECONDS if latency is None else latency

    def answered(self, seconds: float | None) -> None:
        """It gave a block; `seconds` is None where that says nothing of how long the next one takes."""
        self.ok += 1
        if seconds is not None:
            self._latencies.append((self.clock(), seconds))
        self._failures = self._rests = 0

    def overtaken(self, seconds: float) -> None:
        """Somebody else was quicker: its answer would have taken at least so long, which may be no news."""
        if seconds > self._expected:
            self._latencies.append((self.clock(), seconds))

    def has_not(self) -> None:
        """It said that it does not have a block: that is an answer, too."""
        self.missing += 1
        self._failures = 0

    def failure(self, reason: str, *, unreachable: bool = False, began: float | None = None) -> None:
        """It failed; one that cannot be reached rests at once.

        Requests that were under way together fail together: one that `began` before the last failure is no further one.
        """
        self.failed += 1
        self.reason = reason
        if began is not None and began < self._failed_at:
            return
        self._failures += 1
        self._failed_at = self.clock()
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
        self._rest_until = max(self._rest_until, self.clock() + seconds)

    def describe(self) -> dict[str, Any]:
        """For people and for JSON: `latency_ms` is milliseconds, `resting_s` seconds."""
        resting = self.resting
        latency = self.latency
        state = (
            "resting"
            if resting
            else "untried"
            if not (self.ok or self.missing or self.failed or self.corrupt)
            else "ok"
        )
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
