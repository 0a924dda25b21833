"""What the delay allows: more while the queue does not grow, less than what arrives once it does.

This is the additive and multiplicative control of draft-ietf-rmcat-gcc-02, section 5.5, but:
- The cut has two parts. The estimate falls to a little below what arrived; the target goes further below it
  for as long as the queue stands, by how long it stands, so that 300 ms are gone in less than a second, and
  comes back at once.
- If the queue stays although less was sent than arrived, it is another's (TCP fills it always). The rate then
  behaves like TCP's until the queue is seen empty: up by a packet per round trip, down by a factor once per
  loss.
- Away from the last known capacity it rises faster once the queue has been empty for two seconds.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final, Literal, NamedTuple

from ipfs_stream_nb.webrtc.congestion.queueing import FLATNESS
from ipfs_stream_nb.webrtc.congestion.trendline import Signal

State = Literal["increase", "hold", "decrease"]

BACKOFF: Final = 0.85
BACKOFF_QUEUED: Final = 0.9
"""Of what arrived; the second where a queue stands, as what arrives is then the link's rate to the byte."""
QUEUED: Final = 0.030
EMPTY: Final = 0.015
BUSY: Final = 0.050
"""Seconds of standing queue: from the first on it is drained, below the second it is empty, and above the
third it is surely in use; between the last two it may be jitter.
"""
LONG: Final = 0.2
"""Seconds of standing queue that are too many even if they do not grow,"""
SURGE: Final = 0.1
SURGE_SECONDS: Final = 0.25
"""and those that are too many where most of them came within so short a time: the link has become much narrower."""
DRAIN: Final = 0.4
"""Seconds in which the queue falls to 37 %."""
LEAST_DRAIN: Final = 0.25
"""Of the estimate, while draining."""
PATIENCE: Final = 1.0
"""Seconds of draining after which the queue must have become half."""
GROWTH: Final = 0.08
FAST_GROWTH: Final = 0.2
"""Per second; the second one after `CALM` seconds of an empty queue."""
CALM: Final = 2.0
NEAR: Final = 3.0
"""Deviations from the last known capacity."""
ABOVE_ARRIVING: Final = 1.5
HEADROOM: Final = 10_000
"""The estimate rises to that factor of what arrives, plus these bit/s."""
PROCESSING: Final = 0.1
FRAME_RATE: Final = 30
"""Near the capacity the rate rises by one packet per two round trips and this many seconds."""
PACKET_BITS: Final = 8 * 1200
LEAST_ADDITION: Final = 4000
"""bit/s each second."""
COMPETING_BACKOFF: Final = 0.7
COMPETING_GROWTH: Final = 0.05
"""Per second at least."""
COMPETING_RTT: Final = 0.2
"""Seconds of round trip at least that its rise is reckoned with."""
FELL: Final = 0.15
"""Share by which less must be sent than before a cut to see whether as much arrives."""
LESS: Final = 0.9
"""If of what arrived before draining less than this arrives, and the queue stays, others send in our stead.
"""
STANDING: Final = 0.025
"""Seconds of queue that cannot be drained if it is others'."""
OURS: Final = 0.9
"""Share of what is sent; if less arrives, the queue grows by what we send."""
FORGOTTEN: Final = 0.5
"""Seconds of an empty queue after which nobody else fills it."""
OTHERS_KEEP: Final = 0.5
"""Share of the queue that is left after `PATIENCE` if it is others'."""


class Seen(NamedTuple):
    """What one message of feedback makes known: bit/s and seconds."""

    arriving: float | None
    """Over half a second."""
    arriving_now: float | None
    """Over a fifth of a second."""
    sending: float | None
    """Of the packets of which feedback came, over half a second."""
    queue: float
    rtt: float
    """With the queue."""
    lost: bool


class RateControl:
    """Takes the detector's signal, what arrives and the queue; `target` is what the delay allows, bit/s."""

    def __init__(self, start: float, floor: float, ceiling: float) -> None:
        self.estimate = start
        self.state: State = "increase"
        self.competing = False
        """The queue is others'."""
        self._floor, self._ceiling = floor, ceiling
        self._capacity: float | None = None
        self._deviation = 0.4
        self._factor = 1.0
        self._updated: float | None = None
        self._drain_since: float | None = None
        self._drain_queue = 0.0
        self._drain_least = self._drain_most = self._drain_rate = 0.0
        self._test: tuple[float, float, float] | None = None
        """Since when it competes at less, and what it sent and what arrived before."""
        self._empty_since: float | None = None
        self._backed_off = -math.inf
        self._queues: deque[tuple[float, float]] = deque()
        """The latest ones, with their times."""

    @property
    def target(self) -> float:
        return max(self._floor, self.estimate * self._factor)

    @property
    def draining(self) -> bool:
        return self._drain_since is not None

    def set_estimate(self, bitrate: float) -> None:
        """A probe's result, or the rate after an outage."""
        self.estimate = min(max(bitrate, self._floor), self._ceiling)

    def pause(self) -> None:
        """Time without feedback is no time to rise in."""
        self._updated = self._empty_since = self._drain_since = None
        self._factor = 1.0
        self._queues.clear()

    def update(self, now: float, signal: Signal, seen: Seen) -> None:
        """One message of feedback."""
        passed = 0.0 if self._updated is None else min(max(now - self._updated, 0.0), 1.0)
        self._updated = now
        if seen.queue > BUSY:
            self._empty_since = None
        elif seen.queue <= EMPTY and self._empty_since is None:
            self._empty_since = now
        if self.competing:
            if self._empty_since is None or now - self._empty_since <= FORGOTTEN:
                self._compete(now, passed, seen)
                return
            self.competing = False
        if self._drain_since is not None:
            self._drain(now, self._drain_since, seen)
        if self.competing:
            return
        if seen.arriving is not None and (
            signal == "overuse" or seen.queue > LONG or self._surges(now, seen.queue)
        ):
            self._cut(now, seen.arriving, seen)
        elif signal == "normal" and not self.draining:
            self.state = "increase"
            self._rise(now, passed, seen)
        else:
            self.state = "hold"

    def _surges(self, now: float, queue: float) -> bool:
        queues = self._queues
        queues.append((now, queue))
        while now - queues[0][0] > SURGE_SECONDS:
            queues.popleft()
        return queue > SURGE and queue - min(each for _, each in queues) > 0.8 * SURGE

    def _cut(self, now: float, arriving: float, seen: Seen) -> None:
        self.state = "decrease"
        queued = seen.queue > QUEUED
        measured = seen.arriving_now if queued and seen.arriving_now is not None else arriving
        ours = seen.sending is None or measured < OURS * seen.sending
        if not self.draining or (seen.queue > self._drain_queue and ours):
            self._learn(measured)
            backoff = BACKOFF_QUEUED if queued else BACKOFF
            self.estimate = max(self._floor, min(self.estimate, measured * backoff))
            self._backed_off = now
        if queued:
            if not self.draining:
                self._begin_drain(now, seen.queue, measured)
            self._drain_queue = max(seen.queue, self._drain_queue)
            self._factor = max(LEAST_DRAIN, 1 - seen.queue / DRAIN)

    def _begin_drain(self, now: float, queue: float, rate: float) -> None:
        self._drain_since, self._drain_rate = now, rate
        self._drain_queue = self._drain_least = self._drain_most = queue

    def _drain(self, now: float, since: float, seen: Seen) -> None:
        queue, arriving, sending = seen.queue, seen.arriving, seen.sending
        if queue < EMPTY:
            self._factor, self._drain_since = 1.0, None
            return
        self._factor = max(LEAST_DRAIN, 1 - queue / DRAIN)
        self._drain_least, self._drain_most = min(self._drain_least, queue), max(self._drain_most, queue)
        if now - since < PATIENCE + seen.rtt or not arriving or not sending:
            return
        stays = self._drain_least > max(STANDING, OTHERS_KEEP * self._drain_queue)
        moves = self._drain_most - self._drain_least > FLATNESS  # or the path has become longer
        if (
            stays
            and moves
            and arriving < LESS * self._drain_rate
            and OURS * sending < arriving < sending / OURS
        ):
            self.competing = True
            self._factor, self._drain_since, self._test = 1.0, None, None
            self.estimate = max(self.estimate, min(self._drain_rate * BACKOFF_QUEUED, self._ceiling))
        else:
            self._begin_drain(now, queue, self._drain_rate)

    def _compete(self, now: float, passed: float, seen: Seen) -> None:
        arriving, sending = seen.arriving, seen.sending
        if self._test is not None and arriving and sending and now - self._test[0] > PATIENCE + seen.rtt:
            (_, sent, arrived), self._test = self._test, None
            fell = 1 - sending / sent
            if fell > FELL and 1 - arriving / arrived < fell / 3:
                self.competing = False  # the link is full whatever we send: the queue is ours
                return
        if seen.lost and now - self._backed_off > seen.rtt:
            self.state = "decrease"
            self.estimate = max(self._floor, self.estimate * COMPETING_BACKOFF)
            self._backed_off = now
            if arriving and sending:
                self._test = (now, sending, arriving)
        else:
            self.state = "increase"
            growth = max(PACKET_BITS / max(seen.rtt, COMPETING_RTT) ** 2, self.estimate * COMPETING_GROWTH)
            self._raise(growth * passed, arriving)

    def _rise(self, now: float, passed: float, seen: Seen) -> None:
        arriving = seen.arriving
        if arriving is not None and self._capacity is not None and self._near(arriving) > NEAR:
            self._capacity = None
        if self._capacity is not None and self._near(self.estimate) > -NEAR:
            packet = min(self.estimate / FRAME_RATE, PACKET_BITS)
            self._raise(max(LEAST_ADDITION, packet / (2 * (seen.rtt + PROCESSING))) * passed, arriving)
            return
        calm = seen.queue <= EMPTY and self._empty_since is not None and now - self._empty_since > CALM
        self._raise(self.estimate * ((1 + (FAST_GROWTH if calm else GROWTH)) ** passed - 1), arriving)

    def _raise(self, by: float, arriving: float | None) -> None:
        most = self._ceiling if arriving is None else ABOVE_ARRIVING * arriving + HEADROOM
        if arriving is not None:
            self.estimate = max(self.estimate, min(self.estimate + by, most, self._ceiling))

    def _near(self, bitrate: float) -> float:
        """Deviations by which it is above the last known capacity."""
        if self._capacity is None:
            return -math.inf
        return (bitrate - self._capacity) / math.sqrt(self._deviation * self._capacity * 1000)

    def _learn(self, measured: float) -> None:
        if self._capacity is None or self._near(measured) < -NEAR:
            self._capacity = measured
        else:
            self._capacity += 0.05 * (measured - self._capacity)
        error = (measured - self._capacity) / 1000
        self._deviation += 0.05 * (error * error / max(self._capacity / 1000, 1) - self._deviation)
        self._deviation = min(max(self._deviation, 0.4), 2.5)
