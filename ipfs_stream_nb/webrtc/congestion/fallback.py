"""What may be sent where no transport-wide feedback comes: by receiver reports and REMB.

The rule is the loss-based one of draft-ietf-rmcat-gcc-02, section 6, with one difference: loss between 2 and
10 % does not keep the rate from rising while round trips are as short as ever, as it is then the path's own.
"""

from __future__ import annotations

import math
from typing import Final, Literal

LOW: Final = 0.02
HIGH: Final = 0.10
GROWTH: Final = 0.08
REMB_GROWTH: Final = 0.5
"""Per second; the second up to what a receiver's own estimate says."""
LONGEST: Final = 2.0
"""Seconds of growth at most that one report stands for."""
QUEUED: Final = 0.050
"""Seconds by which round trips are longer than the shortest where a queue stands."""
HOLD: Final = 0.3
"""Seconds between cuts, and a round trip."""


class Fallback:
    """Takes reports; returns the rate, bit/s."""

    def __init__(self) -> None:
        self.remb = math.inf
        """bit/s that the receiver estimates."""
        self._least_rtt = math.inf
        self._updated: float | None = None
        self._cut = -math.inf

    def report(
        self, rate: float, loss: float, rtt: float | None, now: float
    ) -> tuple[float, Literal["increase", "hold", "decrease"]]:
        """The rate after a report, below REMB; `loss`: 0 to 1."""
        passed = 0.0 if self._updated is None else min(max(now - self._updated, 0.0), LONGEST)
        self._updated = now
        if rtt is not None:
            self._least_rtt = min(self._least_rtt, rtt)
        short = rtt is not None and rtt < self._least_rtt + QUEUED
        if loss > HIGH:
            if now - self._cut < HOLD + (rtt or 0.0):
                return rate, "hold"
            self._cut = now
            return rate * (1 - loss / 2), "decrease"
        if loss > LOW and not short:
            return rate, "hold"
        growth = REMB_GROWTH if rate < self.remb < math.inf else GROWTH
        return min(rate * (1 + growth) ** passed, max(self.remb, rate)), "increase"
