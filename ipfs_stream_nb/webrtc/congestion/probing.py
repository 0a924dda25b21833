"""Looking for room upwards: when a burst is to be sent, and what it found."""

from __future__ import annotations

from typing import Final

from ipfs_stream_nb.webrtc.congestion.feedback import PacketResult, ProbeCluster

STEP: Final = 2.0
"""How far above the target a burst goes."""
INTERVAL: Final = 4.0
"""Seconds between bursts that ask anew."""
AFTER_DECREASE: Final = 3.0
"""Seconds without one after a cut, but for one that looks whether what was there before is there again: another's
burst takes from what arrives of ours for a moment, and who has least would lose most at each (libwebrtc looks too)."""
DROP: Final = 0.7
"""Share of the rate before a cut below which that is looked for, once,"""
DEEP: Final = 0.4
"""and above which it is: what falls further is a link that has become narrower,"""
RECOVERY: Final = 0.75
"""the share of it that the burst has,"""
SETTLED: Final = 0.5
RECENT: Final = 5.0
"""and the seconds from which on, so that a picture that stands still comes first, and from which on no longer."""
ANSWER: Final = 1.0
"""Seconds in which a burst is answered, or never."""
SHORTEST: Final = 0.03
LONGEST: Final = 0.2
JITTERS: Final = 5
PACKET_BITS: Final = 8 * 1240
PACKETS: Final = 6
"""What a burst lasts and holds: at least the shortest time, some jitters, and some packets; not above the
longest.
"""
FEWEST: Final = 4
"""Arrived packets without which it says nothing."""
ARRIVED: Final = 0.8
"""Share of its bytes without which it says nothing."""
SATURATED: Final = 0.9
"""Arriving at less than this share of the rate of sending: the path was full."""
USABLE: Final = 0.95
"""How much of a full path's rate is taken."""
FOUND: Final = 0.7
"""Share of the rate asked for from which on more is asked for at once."""
CONTRADICTION: Final = 2.0
"""Arriving this much faster than it was sent: the receiver bundles packets, and the burst says nothing."""


class Prober:
    """One burst at a time."""

    def __init__(self) -> None:
        self._number = 0
        self._cluster: ProbeCluster | None = None
        self._asked = 0.0
        self._sent: list[tuple[float, float, int]] = []
        self._between: list[tuple[float, float, int]] = []
        self._bytes = self._arrived = 0
        self._due: float | None = None
        self._fell: tuple[float, float] | None = None
        """When, and from which rate."""

    def fell(self, now: float, bitrate: float) -> None:
        """The estimate was cut, from `bitrate`."""
        before, fell = self._fell, (now, bitrate)
        self.wait(now, AFTER_DECREASE)
        one = before is not None and now - before[0] <= AFTER_DECREASE and bitrate <= before[1]
        self._fell = before if one else fell

    def wait(self, now: float, seconds: float) -> None:
        """No burst for that long."""
        self._due = now + seconds
        self._cluster = self._fell = None

    def wanted(self, now: float, target: float, most: float, jitter: float) -> ProbeCluster | None:
        """The burst that is to be sent now; the more arrivals jitter (s), the longer."""
        if self._cluster is not None:
            if now - self._asked < ANSWER:
                return None
            self.wait(now, INTERVAL)
        if self._fell is not None and now - self._fell[0] >= SETTLED:
            (when, before), self._fell = self._fell, None
            if now - when < RECENT and DEEP * before < target < DROP * before:
                return self._begin(now, RECOVERY * before, 0.0)  # short: the link may be narrow now
        if self._due is not None and now < self._due:
            return None
        bitrate = min(STEP * target, most)
        if bitrate <= target * 1.1:
            return None
        return self._begin(now, bitrate, max(SHORTEST, JITTERS * jitter))

    def _begin(self, now: float, bitrate: float, shortest: float) -> ProbeCluster:
        """One of at least so many seconds."""
        self._number += 1
        self._asked = now
        self._sent, self._between, self._bytes, self._arrived = [], [], 0, 0
        seconds = min(max(shortest, PACKETS * PACKET_BITS / bitrate), LONGEST)
        self._cluster = ProbeCluster(self._number, int(bitrate), seconds)
        return self._cluster

    def add(self, result: PacketResult) -> None:
        """A packet; others between those of the burst count with it, as they share the path."""
        if self._cluster is None or result.sent_at > self._asked + ANSWER:
            return
        if result.probe != self._cluster.number:
            if self._sent and result.received_at is not None:
                self._between.append((result.sent_at, result.received_at, result.size))
            return
        self._bytes += result.size
        if result.received_at is not None:
            self._arrived += result.size
            self._sent += self._between
            self._between.clear()
            self._sent.append((result.sent_at, result.received_at, result.size))

    def result(self, now: float) -> float | None:
        """bit/s that the burst found, once it is over; a further one follows at once where it found all it
        asked.
        """
        cluster = self._cluster
        expected = 0.0 if cluster is None else cluster.bitrate * cluster.seconds / 8
        if cluster is None or self._bytes < ARRIVED * expected:
            return None
        found = _rate(self._sent) if self._arrived >= ARRIVED * self._bytes else None
        self.wait(now, 0.0 if found is not None and found >= FOUND * cluster.bitrate else INTERVAL)
        return found


def _rate(packets: list[tuple[float, float, int]]) -> float | None:
    """bit/s: the lesser of those of sending and of arriving."""
    if len(packets) < FEWEST:
        return None
    sent = [each[0] for each in packets]
    received = [each[1] for each in packets]
    sending, arriving = max(sent) - min(sent), max(received) - min(received)
    if sending <= 0 or arriving <= 0:
        return None
    total = 8 * sum(each[2] for each in packets)
    send_rate = (total - 8 * packets[sent.index(max(sent))][2]) / sending
    receive_rate = (total - 8 * packets[received.index(min(received))][2]) / arriving
    if receive_rate > CONTRADICTION * send_rate:
        return None
    return USABLE * receive_rate if receive_rate < SATURATED * send_rate else min(send_rate, receive_rate)
