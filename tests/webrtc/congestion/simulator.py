"""A bottleneck in simulated time: video and TCP through one droptail queue; the same at each run."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ipfs_stream_nb.webrtc.congestion.estimator import BandwidthEstimator
from ipfs_stream_nb.webrtc.congestion.feedback import PacketResult

FRAME = 1 / 30
AUDIO = 0.02
AUDIO_BYTES = 160
PACKET = 1200
PACING = 2.5
KEYFRAME = 6
TCP_PACKET = 1500
REORDERED = 0.02
"""Seconds that a packet comes too late."""


class Link:
    """One direction of a path: a droptail queue before a line, then delay, jitter and random loss."""

    def __init__(
        self,
        rate: list[tuple[float, float]],
        *,
        delay: float = 0.025,
        queue: float = 0.3,
        loss: float = 0.0,
        jitter: float = 0.0,
        reordering: float = 0.0,
        outages: tuple[tuple[float, float], ...] = (),
        seed: int = 1,
    ) -> None:
        """`rate`: (from second, bit/s); `delay`, `jitter` (in order): s; `loss`, `reordering`: shares;
        `queue`: s at the lowest rate; `outages`: (from, to).
        """
        self._rate, self._delay, self._loss, self._jitter, self.outages = rate, delay, loss, jitter, outages
        self._limit = queue * min(each for _, each in rate) / 8
        self._random = random.Random(seed)
        self._queue: deque[tuple[int, Callable[[], None]]] = deque()
        self._bytes = 0
        self._reordering, self._latest = reordering, 0.0
        self.dropped = 0
        self.passed = 0

    def rate(self, now: float) -> float:
        """bit/s."""
        return next(each for begin, each in reversed(self._rate) if begin <= now)

    def out(self, now: float) -> bool:
        return any(begin <= now < end for begin, end in self.outages)

    def queued(self, now: float) -> float:
        """Seconds of queue."""
        return self._bytes * 8 / self.rate(now)

    def change_delay(self, delay: float) -> None:
        """The path becomes another."""
        self._delay = delay

    def send(self, clock: Clock, size: int, arrived: Callable[[], None]) -> None:
        if self.out(clock.now) or self._bytes + size > self._limit:
            self.dropped += 1
            return
        self._queue.append((size, arrived))
        self._bytes += size
        if len(self._queue) == 1:
            self._serve(clock)

    def _serve(self, clock: Clock) -> None:
        clock.at(clock.now + self._queue[0][0] * 8 / self.rate(clock.now), lambda: self._served(clock))

    def _served(self, clock: Clock) -> None:
        size, arrived = self._queue.popleft()
        self._bytes -= size
        if self._queue:
            self._serve(clock)
        if self._random.random() < self._loss or self.out(clock.now):
            self.dropped += 1
            return
        self.passed += 1
        self._latest = max(self._latest, clock.now + self._delay + self._random.random() * self._jitter)
        reordered = self._random.random() < self._reordering
        clock.at(self._latest + (REORDERED if reordered else 0.0), arrived)


class BucketLink(Link):
    """A line whose rate a token bucket makes: `burst` bytes pass at once after a while of silence."""

    LINE = 100e6
    """bit/s within a burst."""

    def __init__(self, *args: Any, burst: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self._burst = self._tokens = float(burst)
        self._filled = 0.0

    def _fill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * self.rate(now) / 8)
        self._filled = now

    def _serve(self, clock: Clock) -> None:
        self._fill(clock.now)
        size = self._queue[0][0]
        wait = max(0.0, (size - self._tokens) * 8 / self.rate(clock.now))
        clock.at(clock.now + wait + size * 8 / self.LINE, lambda: self._take(clock, size))

    def _take(self, clock: Clock, size: int) -> None:
        self._fill(clock.now)
        self._tokens -= size
        self._served(clock)


class Clock:
    """Simulated time: what is to be done, in its order."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, time: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._due, (time, self._count, action))

    def every(self, interval: float, action: Callable[[], None], begin: float = 0.0) -> None:
        def again() -> None:
            action()
            self.at(self.now + interval, again)

        self.at(begin, again)

    def run(self, end: float) -> None:
        while self._due and self._due[0][0] <= end:
            self.now, _, action = heapq.heappop(self._due)
            action()
        self.now = end


@dataclass
class Sample:
    """What one tenth of a second was like."""

    time: float
    target: int
    received: float
    """bit/s"""
    queue: float
    """s, at the end of it"""


@dataclass
class Flow:
    """Video in frames and sound, at the target of an estimator."""

    clock: Clock
    link: Link
    back: float = 0.025
    """s of delay that feedback has."""
    every: float = 0.062
    """s between feedback."""
    begin: float = 0.0
    most: float = 1e12
    """bit/s that the source has."""
    keyframes: float = 1e12
    """s between pictures of `KEYFRAME` times a frame's size."""
    lag: float = 0.0
    """s after which the encoder has followed the target to 63 %."""
    clock_offset: float = 1234.5
    """s by which the receiver's clock is ahead."""
    seed: int = 1
    estimator: BandwidthEstimator = field(default_factory=BandwidthEstimator)
    samples: list[Sample] = field(default_factory=list)
    log: list[list[PacketResult]] = field(default_factory=list)
    keep_log: bool = False
    sent: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._flying: deque[tuple[int, float, int, int | None]] = deque()
        self._arrived: dict[int, float] = {}
        self._missing: dict[int, tuple[float, int, int | None]] = {}
        self._number = 0
        self._paced: deque[int] = deque()
        self._free = 0.0
        self._encoded, self._keyframe = 0.0, self.begin
        self._received = 0
        self.received_bytes = 0
        clock = self.clock
        clock.every(FRAME, self._frame, self.begin)
        clock.every(AUDIO, lambda: self._send(AUDIO_BYTES), self.begin + 0.003)
        clock.every(self.every, self._feedback, self.begin + self.every)
        clock.every(0.025, self._tick, self.begin)
        clock.every(0.1, self._sample, self.begin + 0.1)

    def _frame(self) -> None:
        wanted = max(min(self.estimator.target, self.most) - 8 * AUDIO_BYTES / AUDIO, 20_000)
        self._encoded += (wanted - self._encoded) * (FRAME / max(self.lag, FRAME))
        bitrate = self._encoded
        if self.clock.now - self._keyframe >= self.keyframes:
            self._keyframe = self.clock.now
            bitrate *= KEYFRAME
        size = int(bitrate * FRAME / 8 * self._random.uniform(0.8, 1.2))
        idle = not self._paced
        while size > 0:
            self._paced.append(min(size, PACKET) + 40)
            size -= PACKET
        if idle:
            self.clock.at(max(self._free, self.clock.now), self._pace)

    def _pace(self) -> None:
        if self._paced:
            size = self._paced.popleft()
            self._send(size)
            self._free = self.clock.now + size * 8 / (PACING * self.estimator.target)
            if self._paced:
                self.clock.at(self._free, self._pace)

    def _send(self, size: int, probe: int | None = None) -> None:
        number, now = self._number, self.clock.now
        self._number += 1
        self._flying.append((number, now, size, probe))
        self.sent += size
        self.link.send(self.clock, size, lambda: self._arrive(number, size))

    def _arrive(self, number: int, size: int) -> None:
        self._received += size
        self.received_bytes += size
        self._arrived[number] = self.clock.now + self.clock_offset

    def _feedback(self) -> None:
        if self._arrived:
            arrived, self._arrived = self._arrived, {}
            if not self.link.out(self.clock.now):
                self.clock.at(self.clock.now + self.back, lambda: self._report(arrived))

    def _report(self, arrived: dict[int, float]) -> None:
        highest = max(arrived)
        results = []
        for number in sorted(self._missing.keys() & arrived.keys()):
            sent, size, probe = self._missing.pop(number)
            results.append(PacketResult(sent, arrived[number], size, probe))
        while self._flying and self._flying[0][0] <= highest:
            number, sent, size, probe = self._flying.popleft()
            results.append(PacketResult(sent, arrived.get(number), size, probe))
            if number not in arrived:
                self._missing[number] = (sent, size, probe)
        if results:
            if self.keep_log:
                self.log.append(results)
            self.estimator.on_feedback(results, self.clock.now)

    def _tick(self) -> None:
        now = self.clock.now
        self.estimator.on_sent(now, int(min(self.most, 1e9)))
        self.estimator.tick(now)
        cluster = self.estimator.probe_wanted(now)
        if cluster:
            size = PACKET + 40
            gap = size * 8 / cluster.bitrate
            for index in range(max(1, round(cluster.seconds / gap)) + 1):
                self.clock.at(now + index * gap, lambda: self._send(size, cluster.number))

    def _sample(self) -> None:
        now = self.clock.now
        self.samples.append(Sample(now, self.estimator.target, self._received * 80, self.link.queued(now)))
        self._received = 0

    def between(self, begin: float, end: float) -> list[Sample]:
        """The samples of these seconds."""
        return [each for each in self.samples if begin < each.time <= end + 1e-9]

    def rate(self, begin: float, end: float) -> float:
        """bit/s that arrived, on average."""
        samples = self.between(begin, end)
        return sum(each.received for each in samples) / len(samples)


class Cubic:
    """One TCP flow that always has something to send (RFC 9438), with selective acknowledgements."""

    def __init__(self, clock: Clock, link: Link, back: float = 0.025, begin: float = 0.0) -> None:
        self._clock, self._link, self._back = clock, link, back
        self._window, self._threshold = 10.0, 1e9
        self._most, self._epoch, self._k = 0.0, -1.0, 0.0
        self._sent, self._flying = 0, {}  # type: int, dict[int, float]
        self._recover, self._rtt, self._heard = -1, 0.1, begin
        self.received_bytes = 0
        self._stopped = False
        clock.at(begin, self._send)
        clock.every(0.1, self._timeout, begin + 1)

    def stop(self) -> None:
        """Send nothing more."""
        self._stopped = True

    def _send(self) -> None:
        while not self._stopped and len(self._flying) < int(self._window):
            number = self._sent
            self._sent += 1
            self._flying[number] = self._clock.now
            self._link.send(self._clock, TCP_PACKET, lambda number=number: self._arrive(number))

    def _arrive(self, number: int) -> None:
        self.received_bytes += TCP_PACKET
        self._clock.at(self._clock.now + self._back, lambda: self._acked(number))

    def _acked(self, number: int) -> None:
        now = self._clock.now
        sent = self._flying.pop(number, None)
        if sent is None:
            return
        self._heard = now
        self._rtt += (now - sent - self._rtt) / 8
        lost = []
        for each in self._flying:
            if each >= number - 3:
                break
            lost.append(each)
        for each in lost:
            del self._flying[each]
        if lost and lost[-1] > self._recover:
            self._recover = self._sent
            self._most = self._window * (0.85 if self._window < self._most else 1)
            self._window = self._threshold = max(2.0, self._window * 0.7)
            self._epoch = now
            self._k = (self._most * 0.3 / 0.4) ** (1 / 3)
            self._linear = self._window
        elif self._window < self._threshold:
            self._window += 1
        elif self._epoch >= 0:
            self._linear += 0.53 / self._window
            wanted = max(0.4 * (now - self._epoch + self._rtt - self._k) ** 3 + self._most, self._linear)
            self._window += max(0.0, min(wanted, 1.5 * self._window) - self._window) / self._window
        self._send()

    def _timeout(self) -> None:
        if self._clock.now - self._heard > 1:
            self._threshold, self._window, self._heard = max(2.0, self._window / 2), 1.0, self._clock.now
            self._flying.clear()
            self._send()
