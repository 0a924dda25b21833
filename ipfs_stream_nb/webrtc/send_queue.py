"""What a pacer is made of: packets that wait, a budget of retransmissions, and a meter of what went out."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Collection
from typing import Final

from ipfs_stream_nb.webrtc.transport_cc import Stream

WIRE_BYTES: Final = 44
"""Around an RTP packet: IPv4 and UDP headers, and the tag of AES-GCM."""
MIN_QUEUE_BYTES: Final = 4500
"""That may wait, or be on their way, at any rate."""
WINDOW_SECONDS: Final = 0.03
"""Of the rate, that may be on its way beside what is so for a round trip and until feedback is due: more of it is in a queue."""
LET_GO_SECONDS: Final = 0.05
"""Between two packets that are sent although more is on its way than may be, once feedback is overdue;"""
HELD_SECONDS: Final = 2.0
"""without feedback for so long, it may have ended for good."""
TRIP_SECONDS: Final = 1.0
"""In which the least round trip counts: a path becomes longer, too."""
FEEDBACKS: Final = 10
"""Times of feedback, of which the longest between two counts."""
MOMENT: Final = 0.01
"""Seconds in which feedback packets are one piece of news."""
RTX_SHARE: Final = 0.25
"""Of the rate, for retransmissions."""
RTX_DEPTH_SECONDS: Final = 0.5
"""Over which unused budget is kept."""
RTX_MIN_INTERVAL: Final = 0.02
RTX_MAX_INTERVAL: Final = 0.5
"""Bounds of the time before a packet is sent once more,"""
RTX_PATIENCE: Final = 0.5
"""which is so much of a round trip, as that is measured with the time that feedback takes to be made."""
MAX_REPEATS: Final = 1024
"""Retransmitted packets that are remembered."""


class RateMeter:
    """Bytes in steps of 0.1 s, over the last second."""

    def __init__(self) -> None:
        self._steps: deque[list[int]] = deque(maxlen=11)

    def add(self, now: float, size: int) -> None:
        """Count bytes."""
        step = int(now * 10)
        if self._steps and self._steps[-1][0] == step:
            self._steps[-1][1] += size
        else:
            self._steps.append([step, size])

    def rate(self, now: float, steps: int) -> float:
        """bit/s over the last full steps."""
        end = int(now * 10)
        return sum(size for step, size in self._steps if end - steps <= step < end) * 80 / steps


class Lane:
    """Packets of a kind that wait, and who waits to put more there."""

    def __init__(self) -> None:
        self.packets: deque[tuple[bytes, Stream, float]] = deque()
        self.bytes = 0
        self.room = asyncio.Event()

    def put(self, data: bytes, stream: Stream, now: float) -> None:
        """One more packet."""
        self.packets.append((data, stream, now))
        self.bytes += len(data) + WIRE_BYTES

    def take(self, limit: float) -> tuple[bytes, Stream, float]:
        """The first packet, with the time when it came. Up to `limit` bytes there is room for more."""
        item = self.packets.popleft()
        self.bytes -= len(item[0]) + WIRE_BYTES
        if self.bytes <= limit:
            self.room.set()
        return item

    def drop(self, streams: Collection[Stream]) -> None:
        """Drop the packets of some streams."""
        kept = [one for one in self.packets if one[1] not in streams]
        self.clear()
        for one in kept:
            self.put(*one)

    def clear(self) -> None:
        """Drop all."""
        self.packets.clear()
        self.bytes = 0
        self.room.set()


class FlightWindow:
    """How much may be on its way without being heard of: it shows a link that became narrow before a delay is told of."""

    def __init__(self) -> None:
        self.round_trip = math.inf
        """Seconds, with the time that feedback takes to be made: the least of the last TRIP_SECONDS. inf: unknown."""
        self.sent_at = 0.0
        """When the latest packet that may be held was sent."""
        self._heard = -math.inf
        self._intervals: deque[float] = deque(maxlen=FEEDBACKS)
        self._trips: deque[tuple[float, float]] = deque()
        """Round trips, with their times."""
        self._seconds = math.inf
        """Of a rate, that may be on its way; reckoned with each feedback, as it is asked for with each packet."""

    def heard(self, now: float, newest: float | None) -> None:
        """A feedback packet came; `newest`: when the latest of the packets that it told as received was sent."""
        passed = now - self._heard
        again = passed <= MOMENT  # some receivers send several at once
        if not again:
            if passed > HELD_SECONDS:
                self._intervals.clear()  # an outage or a pause, which says nothing of how often feedback comes
            else:
                self._intervals.append(passed)
            self._heard = now
        if newest is not None:
            trip = max(now - newest, 0.0)
            if again and self._trips:
                trip = min(trip, self._trips.pop()[1])
            self._trips.append((now, trip))
            while self._trips[0][0] < now - TRIP_SECONDS:
                self._trips.popleft()
            self.round_trip = min(trip for _, trip in self._trips)
        if self._intervals:
            self._seconds = self.round_trip + max(self._intervals) + WINDOW_SECONDS

    def is_full(self, in_flight: int, rate: float, now: float) -> bool:
        """Whether more than `in_flight` bytes would stand in a queue, at a rate in bit/s. Where feedback is overdue, now and then a
        packet is let go all the same: none may be told of unless some are sent."""
        silent = now - self._heard
        if in_flight <= max(rate * self._seconds / 8, MIN_QUEUE_BYTES) or silent > HELD_SECONDS:
            return False
        return not (silent > self._seconds and now - self.sent_at >= LET_GO_SECONDS)


class RetransmissionBudget:
    """Whether a packet is sent once more: within a share of the rate, and once in a round trip."""

    def __init__(self) -> None:
        self.round_trip = RTX_MIN_INTERVAL
        """Seconds; the time before the same packet is sent again."""
        self._bytes = 0.0
        self._at = 0.0
        self._repeats: dict[tuple[int, int], float] = {}
        """When packets were sent once more, by SSRC and sequence number."""

    def fill(self, rate: float, now: float) -> None:
        """Begin anew, with all that can be kept."""
        self._bytes, self._at = RTX_SHARE * RTX_DEPTH_SECONDS * rate / 8, now

    def allows(self, key: tuple[int, int], size: int, rate: float, now: float) -> bool:
        """Whether a packet of so many bytes may go; then it is counted."""
        before = self._repeats.get(key)
        interval = min(max(RTX_PATIENCE * self.round_trip, RTX_MIN_INTERVAL), RTX_MAX_INTERVAL)
        if before is not None and now - before < interval:
            return False
        share = RTX_SHARE * rate / 8
        self._bytes = min(self._bytes + share * (now - self._at), share * RTX_DEPTH_SECONDS)
        self._at = now
        if self._bytes <= 0:
            return False
        self._bytes -= size
        self._repeats.pop(key, None)
        self._repeats[key] = now
        if len(self._repeats) > MAX_REPEATS:
            del self._repeats[next(iter(self._repeats))]
        return True
