"""How well a provider does: what it costs to ask it, and whether to ask it at all for now."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from ipfs_stream_nb.content.retrieval.provider import is_about_content
from ipfs_stream_nb.errors import (
    BusyError,
    CorruptContentError,
    IPFSStreamError,
    NotFoundError,
    UnreachableError,
)

LATENCIES: Final = 32
"""Latest answers whose latency counts."""
RECENT_SECONDS: Final = 600.0
"""Older answers and failures no longer count: it may do better by now, and gets a chance."""
UNTRIED_SECONDS: Final = 0.5
"""What an answer is expected to take of a provider that was never asked."""
FAILURE_SECONDS: Final = 2.0
"""What each failure in a row adds to that."""
LOOKUP_SECONDS: Final = 0.5
"""What each look-up in a row that found nothing adds: it may be that nobody has that content."""
REST_SECONDS: Final = 30.0
"""A provider that cannot be reached, or failed with MAX_FAILURES blocks in a row, rests so long; each time twice as
long."""
MAX_REST_SECONDS: Final = 300.0
NEAR_REST_SECONDS: Final = 2.0
"""One on this machine that cannot be reached rests so long: a refused connection costs nothing, and it may just be
started again."""
MAX_FAILURES: Final = 4
MAX_LOOKUPS: Final = 8
"""After look-ups of so many blocks in a row that found nothing it is asked for one at a time, until it gives one. It
does not rest: users who ask for what nobody has must not take it from those who ask for what it holds."""
CORRUPT_SECONDS: Final = 600.0
"""One that gave wrong bytes rests so long."""
BUSY_SECONDS: Final = 30.0
"""How long one that is busy, and does not say until when, is left alone."""


class Health:
    """One provider's. Times are seconds of a monotonic clock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, near: bool = False) -> None:
        """`near`: whether it is on this machine."""
        self.clock = clock
        self._near = near
        self._latencies: deque[tuple[float, float]] = deque(maxlen=LATENCIES)  # when, and how long
        self._failures: deque[bytes] = deque(maxlen=MAX_FAILURES)  # what was asked for, since the last answer
        self._lookups: deque[bytes] = deque(maxlen=MAX_LOOKUPS)  # likewise
        self._failed_at = -RECENT_SECONDS
        self._rests = 0
        self._rest_until = 0.0
        self._under_way = 0
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
    def usable(self) -> bool:
        """Whether it can be asked now."""
        doubtful = len(self._lookups) == MAX_LOOKUPS and self._failed_lately
        return not self.resting and not (doubtful and self._under_way)

    @property
    def score(self) -> float:
        """Seconds that an answer is expected to take: who has fewest is asked first."""
        failures = FAILURE_SECONDS * len(self._failures) + LOOKUP_SECONDS * len(self._lookups)
        return self._expected + (failures if self._failed_lately else 0)

    @property
    def _failed_lately(self) -> bool:
        return self.clock() - self._failed_at < RECENT_SECONDS

    @property
    def _expected(self) -> float:
        latency = self.latency
        return UNTRIED_SECONDS if latency is None else latency

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Around each request to it."""
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    def answered(self, seconds: float | None) -> None:
        """It gave a block; `seconds` is None where that says nothing of how long the next one takes."""
        self.ok += 1
        if seconds is not None:
            self._latencies.append((self.clock(), seconds))
        self._rests = 0
        self._start_anew()

    def overtaken(self, seconds: float) -> None:
        """Somebody else was quicker: its answer would have taken at least so long, which may be no news."""
        if seconds > self._expected:
            self._latencies.append((self.clock(), seconds))

    def has_not(self) -> None:
        """It said that it does not have a block: that is an answer, too."""
        self.missing += 1
        self._start_anew()

    def _start_anew(self) -> None:
        self._failures.clear()
        self._lookups.clear()

    def note(self, error: IPFSStreamError, *, about: bytes, began: float | None = None) -> None:
        """Let a failure count: of a request for `about` (a multihash) that `began` then."""
        if isinstance(error, NotFoundError):
            self.has_not()
        elif isinstance(error, CorruptContentError):
            self.wrong_bytes(str(error))
        elif isinstance(error, BusyError):
            self.busy(str(error), BUSY_SECONDS if error.retry_after is None else error.retry_after)
        else:
            self.failure(
                str(error),
                about=about,
                began=began,
                unreachable=isinstance(error, UnreachableError),
                lookup=is_about_content(error),
            )

    def failure(
        self,
        reason: str,
        *,
        about: bytes,
        unreachable: bool = False,
        lookup: bool = False,
        began: float | None = None,
    ) -> None:
        """It failed; one that cannot be reached rests at once. A block counts once, however often it is asked for.

        `lookup`: it may be the content's fault (see MAX_LOOKUPS). Requests that were under way together fail together:
        one that `began` before the last failure is no further one.
        """
        self.failed += 1
        self.reason = reason
        if began is not None and began < self._failed_at:
            return
        row = self._lookups if lookup else self._failures
        known = about in row
        if not known:
            row.append(about)
        self._failed_at = self.clock()
        if unreachable and self._near:
            self._rest(NEAR_REST_SECONDS)
        elif unreachable or (not lookup and not known and len(row) == MAX_FAILURES):
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
            "reason": self.reason if resting or self._failures or self._lookups else "",
        }
