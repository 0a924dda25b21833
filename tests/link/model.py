"""One direction of a link, without sockets or clocks: packets go in, and come out when the caller's time is ripe."""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from enum import IntEnum
from typing import Any, NamedTuple

from link.paths import BurstLoss, NetworkPath, Steps


class Outcome(IntEnum):
    """What became of a packet."""

    DELIVERED = 0
    QUEUE_FULL = 1
    RANDOM_LOSS = 2
    BURST_LOSS = 3
    WAITING = 4
    TRAVELLING = 5


LOSSES = (Outcome.QUEUE_FULL, Outcome.RANDOM_LOSS, Outcome.BURST_LOSS)


class Row(NamedTuple):
    """The record of a packet; times are seconds of the caller's clock, NaN for what has not happened."""

    outcome: int
    flow: int
    size: int
    sent_at: float
    """It came to the queue."""
    served_at: float = math.nan
    """It left the bottleneck."""
    due_at: float = math.nan
    """It is at the other end."""
    handed_at: float = math.nan
    """The caller took it, a little after `due_at`."""


class _Packet(NamedTuple):
    sent_at: float
    size: int
    flow: int
    payload: Any


class _Cursor:
    """A schedule's value at a time that only goes on; the first one until the scenario begins."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._index = 0
        self._begin = math.inf
        self.value = steps[0][1]
        self.until = math.inf

    def begin(self, at: float) -> None:
        self._begin = at
        self._turn()

    def move(self, now: float) -> None:
        while now >= self.until:
            self._index += 1
            self._turn()

    def _turn(self) -> None:
        self.value = self._steps[self._index][1]
        after = self._index + 1
        self.until = self._begin + self._steps[after][0] if after < len(self._steps) else math.inf


class _Burst:
    """The state of a Gilbert-Elliott channel."""

    def __init__(self, loss: BurstLoss, chance: random.Random) -> None:
        self._loss = loss
        self._chance = chance
        self._bad = False

    def takes_next(self) -> bool:
        turn = self._loss.leave if self._bad else self._loss.enter
        if self._chance.random() < turn:
            self._bad = not self._bad
        return self._chance.random() < (self._loss.bad if self._bad else self._loss.good)


class Model:
    """A path in use. All times given to it are of one clock and never go back."""

    def __init__(self, path: NetworkPath, seed: int) -> None:
        self._path = path
        self._rate = _Cursor(path.rate)
        self._delay = _Cursor(path.delay)
        self._chance = random.Random(seed)
        self._burst = _Burst(path.burst_loss, self._chance) if path.burst_loss else None
        self._waiting: deque[_Packet] = deque()
        self._left = 0.0
        """Bits of the first one waiting that have still to go."""
        self._clock = -math.inf
        """How far the bottleneck has worked."""
        self._room_rate = self._rate.value
        self._travelling: list[tuple[float, int, float, _Packet]] = []
        """A heap by the time it is due; the number keeps equal ones in order."""
        self._number = 0
        self._last_due = -math.inf
        self.waiting_bytes = 0
        self.rows: list[Row] = []
        """Of packets whose fate is settled; the owner takes them away."""

    def begin(self, at: float) -> None:
        """Let the schedule's time 0 be `at`; before, its first values hold."""
        self._rate.begin(at)
        self._delay.begin(at)

    def send(self, now: float, size: int, payload: Any, flow: int = 0) -> None:
        """Put a packet of `size` bytes into the queue, if there is room."""
        self._serve(now)
        if self._waiting and self.waiting_bytes + size > self._room():
            self.rows.append(Row(Outcome.QUEUE_FULL, flow, size, now))
            return
        if not self._waiting:
            self._left = 8.0 * size
        self._waiting.append(_Packet(now, size, flow, payload))
        self.waiting_bytes += size

    def receive(self, now: float) -> list[Any]:
        """The payloads that have arrived by now and were not taken before, in order of arrival."""
        self._serve(now)
        arrived = []
        while self._travelling and self._travelling[0][0] <= now:
            due, _, served, packet = heapq.heappop(self._travelling)
            self.rows.append(
                Row(Outcome.DELIVERED, packet.flow, packet.size, packet.sent_at, served, due, now)
            )
            arrived.append(packet.payload)
        return arrived

    def next_time(self) -> float:
        """When to call `receive` again, if nothing is sent meanwhile; infinity when nothing is under way."""
        time = self._travelling[0][0] if self._travelling else math.inf
        if self._waiting:
            rate = self._rate.value
            end = self._clock + self._left / rate if rate else math.inf
            if end > self._rate.until:
                end = self._rate.until
            elif end < self._delay.until:
                end += self._delay.value  # nothing is to be done as it leaves the bottleneck
            time = min(time, end)
        return time

    def unsettled(self) -> list[Row]:
        """The rows of the packets that are still under way."""
        travelling = [
            Row(Outcome.TRAVELLING, packet.flow, packet.size, packet.sent_at, served, due)
            for due, _, served, packet in sorted(self._travelling)
        ]
        return travelling + [
            Row(Outcome.WAITING, packet.flow, packet.size, packet.sent_at) for packet in self._waiting
        ]

    def _room(self) -> float:
        room = math.inf if self._path.queue_bytes is None else self._path.queue_bytes
        if self._path.queue_seconds is not None:
            room = min(room, self._path.queue_seconds * self._room_rate / 8)
        return room

    def _serve(self, now: float) -> None:
        """Let the bottleneck work until `now`."""
        while self._waiting:
            self._turn(self._clock)
            rate = self._rate.value
            end = self._clock + self._left / rate if rate else math.inf
            until = min(now, self._rate.until)
            if end > until:
                self._left = max(self._left - rate * (until - self._clock), 0.0)
                self._clock = until
                if until >= now:
                    break
                continue
            self._clock = end
            packet = self._waiting.popleft()
            self.waiting_bytes -= packet.size
            if self._waiting:
                self._left = 8.0 * self._waiting[0].size
            self._depart(end, packet)
        self._clock = max(self._clock, now)
        self._turn(self._clock)

    def _turn(self, now: float) -> None:
        self._rate.move(now)
        if self._rate.value:
            self._room_rate = self._rate.value

    def _depart(self, served: float, packet: _Packet) -> None:
        loss = None
        if self._burst and self._burst.takes_next():
            loss = Outcome.BURST_LOSS
        if self._path.loss and self._chance.random() < self._path.loss:
            loss = loss or Outcome.RANDOM_LOSS
        if loss is not None:
            self.rows.append(Row(loss, packet.flow, packet.size, packet.sent_at, served))
            return
        self._delay.move(served)
        due = served + self._delay.value
        if self._path.jitter:
            due += self._path.jitter * self._chance.random()
        if not self._path.reorder:
            due = self._last_due = max(due, self._last_due)
        self._number += 1
        heapq.heappush(self._travelling, (due, self._number, served, packet))
