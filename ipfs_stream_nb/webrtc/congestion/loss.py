"""How much loss allows: loss is congestion only where it grows with the rate or comes with a queue.

The model is that of libwebrtc's second loss-based controller: a path loses a share of packets by nature, and
all that is above its bandwidth. Of some candidates for the bandwidth that one is taken under which what was
lost over the last seconds is likeliest; the higher one where they are alike, as random loss says nothing
about the bandwidth.
(The plain rule of draft-ietf-rmcat-gcc-02, section 6, never grows at 5 % random loss.)
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

OBSERVATION: Final = 0.25
"""Seconds of sending."""
OBSERVATIONS: Final = 16
AGING: Final = 0.9
"""What an observation weighs, of the one after it."""
FEWEST: Final = 3
NEGLIGIBLE: Final = 0.01
"""Less loss than this limits nothing."""
NATURAL: Final = 0.12
"""The most that a path without a queue loses by nature."""
NATURAL_QUEUED: Final = 0.05
NATURAL_BALANCE: Final = 75_000
"""The most beside a standing queue: the first, and this many bit/s' share."""
QUEUED: Final = 0.04
"""Seconds of standing queue."""
BIAS: Final = 0.05
"""Nats per packet and e-fold of bandwidth, towards the higher candidate."""
CANDIDATES: Final = (1.05, 1.0, 0.95, 0.85)


class LossLimit:
    """Takes packets' fates; `bitrate` is what loss allows, inf where it allows everything."""

    def __init__(self) -> None:
        self.bitrate = math.inf
        self._allowed = math.inf
        """What delay allowed: a burst above it, such as a key frame, is no rate."""
        self.reset()

    def reset(self) -> None:
        """Forget what was lost, not the limit."""
        self._observations: deque[tuple[float, int, int]] = deque(maxlen=OBSERVATIONS)
        self._begin: float | None = None
        self._packets = self._lost = self._bytes = 0

    def recover(self) -> None:
        """A packet that counted as lost has arrived after all."""
        self._lost = max(0, self._lost - 1)

    def add(self, sent: float, size: int, *, lost: bool) -> bool:
        """One packet; whether an observation is complete, and `update` is due."""
        complete = False
        if self._begin is None:
            self._begin = sent
        elif sent - self._begin >= OBSERVATION:
            rate = self._bytes * 8 / (sent - self._begin)
            if self._packets:
                self._observations.append((min(rate, self._allowed), self._packets, self._lost))
                complete = True
            self._begin, self._packets, self._lost, self._bytes = sent, 0, 0, 0
        self._packets += 1
        self._lost += lost
        self._bytes += size
        return complete

    def update(self, current: float, acked: float | None, queue: float) -> None:
        """`current`: what delay allows, bit/s; `queue`: seconds."""
        self._allowed = current
        weight, weighted, total, lost = 1.0, [], 0.0, 0.0
        for rate, packets, gone in reversed(self._observations):
            weighted.append((rate, packets * weight, gone * weight))
            total += packets * weight
            lost += gone * weight
            weight *= AGING
        if lost <= NEGLIGIBLE * total:
            self.bitrate = math.inf
            return
        if len(weighted) < FEWEST:
            return
        base = min(self.bitrate, current)
        candidates = {min(base * factor, current) for factor in CANDIDATES} | {current}
        if acked is not None and acked < current:
            candidates.add(acked)
        best = max(
            candidates, key=lambda each: _likelihood(each, weighted, queue) + BIAS * total * math.log(each)
        )
        self.bitrate = math.inf if best >= current else best


def _likelihood(bandwidth: float, observations: list[tuple[float, float, float]], queue: float) -> float:
    """Logarithm of it, with the natural loss that fits best."""
    packets = lost = 0.0
    for rate, sent, gone in observations:
        within = min(1.0, bandwidth / rate)
        packets += sent * within
        lost += gone - sent * (1 - within)
    most = NATURAL if queue < QUEUED else min(NATURAL, NATURAL_QUEUED + NATURAL_BALANCE / bandwidth)
    natural = min(max(lost / packets, 0.0), most)
    total = 0.0
    for rate, sent, gone in observations:
        passing = (1 - natural) * min(1.0, bandwidth / rate)
        passing = min(max(passing, 1e-3), 1 - 1e-3)
        total += gone * math.log(1 - passing) + (sent - gone) * math.log(passing)
    return total
