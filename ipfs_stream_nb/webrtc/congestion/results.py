"""What of feedback can be used: results that can be, each packet once."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from itertools import pairwise
from typing import Final

from ipfs_stream_nb.webrtc.congestion.feedback import PacketResult

OLDEST: Final = 10.0
"""Seconds since sending from which on a result is stale."""
AHEAD: Final = 0.001
"""Seconds by which a packet may have been sent after its result came: the clock's own steps."""
FURTHEST: Final = 1e12
"""Seconds of a receiver's clock."""
LARGEST: Final = 65_535
MOST: Final = 20_000
"""Results of one message; more is no message (its count has 16 bits, and 20 000 are 20 s of 10 Mbit/s)."""
LOST_KEPT: Final = 1024
"""Lost packets that are remembered, as they may arrive late."""
WINDOW: Final = 1.0
"""Seconds over which loss is told."""


def usable(results: Iterable[PacketResult], now: float) -> list[PacketResult]:
    """Those with times and sizes that can be, in order of sending."""
    fine = [
        each
        for each, _ in zip(results, range(MOST), strict=False)
        if now - OLDEST <= each.sent_at <= now + AHEAD
        and 0 < each.size <= LARGEST
        and (each.received_at is None or abs(each.received_at) < FURTHEST)
    ]
    if any(one.sent_at > other.sent_at for one, other in pairwise(fine)):
        fine.sort(key=lambda each: each.sent_at)
    return fine


class Reordering:
    """Tells packets that are new from those of which a result came before."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._newest = -math.inf
        self._lost: deque[float] = deque(maxlen=LOST_KEPT)

    def sort(self, results: list[PacketResult]) -> tuple[list[PacketResult], int]:
        """New ones, and how many of those that counted as lost have arrived late."""
        fresh, late, before = [], 0, self._newest
        for each in results:
            if each.sent_at > before:
                fresh.append(each)
                if each.received_at is None:
                    self._lost.append(each.sent_at)
            elif each.received_at is not None and each.sent_at in self._lost:
                self._lost.remove(each.sent_at)
                late += 1
        if fresh:
            self._newest = fresh[-1].sent_at
        return fresh, late


class LossShare:
    """Packets and losses over about the last second of sending."""

    def __init__(self) -> None:
        self._packets: deque[tuple[float, bool]] = deque()
        self._lost = 0

    def add(self, sent: float, *, lost: bool) -> None:
        """One packet."""
        self._packets.append((sent, lost))
        self._lost += lost
        while self._packets[0][0] < sent - WINDOW:
            self._lost -= self._packets.popleft()[1]
        self._lost = max(0, self._lost)

    def recover(self) -> None:
        """One that was lost has arrived."""
        self._lost = max(0, self._lost - 1)

    @property
    def share(self) -> float:
        """0 to 1."""
        return min(1.0, self._lost / len(self._packets)) if self._packets else 0.0
