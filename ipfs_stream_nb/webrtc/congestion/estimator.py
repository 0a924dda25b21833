"""How much may be sent to one receiver: Google Congestion Control, changed as its parts' modules say.

Delay (`trendline`, `rate_control`), loss (`loss`) and probes (`probing`) make the target together, as in
libwebrtc. GCC was taken rather than NADA (RFC 8698) or SCReAM (RFC 8298) as it needs nothing of the receiver
but what all browsers send (transport-wide feedback), and as it holds its share beside other calls, which use
it too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from ipfs_stream_nb.errors import BadRequestError
from ipfs_stream_nb.webrtc.congestion.fallback import Fallback
from ipfs_stream_nb.webrtc.congestion.feedback import PacketResult, ProbeCluster
from ipfs_stream_nb.webrtc.congestion.loss import LossLimit
from ipfs_stream_nb.webrtc.congestion.probing import AFTER_DECREASE, Prober
from ipfs_stream_nb.webrtc.congestion.queueing import QueueDelay
from ipfs_stream_nb.webrtc.congestion.rate_control import QUEUED, RateControl, Seen, State
from ipfs_stream_nb.webrtc.congestion.results import LossShare, Reordering, usable
from ipfs_stream_nb.webrtc.congestion.throughput import Throughput
from ipfs_stream_nb.webrtc.congestion.trendline import JUMP, Trendline

FIRST_RTT: Final = 0.1
LONGEST_RTT: Final = 10.0
"""Seconds; a longer one is no measurement."""
SILENCE: Final = 0.5
"""Seconds without feedback, beyond a round trip, from which on nothing is known."""
REPORT_SILENCE: Final = 8.0
"""The same where only reports and REMB come, each few seconds."""
SILENT_FACTOR: Final = 0.5
"""Of the target, at the beginning of silence and each second of it."""
AFTER_OUTAGE: Final = 0.85
"""Of the rate before it."""
SET_BACK: Final = 0.3
"""Seconds by which a packet arrives before an earlier one where the receiver's clock was set back."""
STALL: Final = 0.2
"""Seconds between ticks in which this process did nothing; feedback may wait in the socket."""
ALIVE: Final = 5.0
"""Seconds after transport-wide feedback in which reports and REMB do not count."""
LIMITED: Final = 0.9
"""Share of the target that the application wants at most where it is the limit."""


class BandwidthEstimator:
    """Takes what feedback says of packets, and the time; `target` is bit/s on the wire that may be sent.

    Times are seconds of one monotonic clock, rates bit/s. Statistics that cannot be are left out, and nothing
    rises without news.
    """

    def __init__(self, start: int = 1_000_000, floor: int = 50_000, ceiling: int = 20_000_000) -> None:
        """Raises BadRequestError unless 0 < floor ≤ start ≤ ceiling."""
        if not 0 < floor <= start <= ceiling < math.inf:
            raise BadRequestError(
                f"0 < floor ≤ start ≤ ceiling was expected, not {floor!r}, {start!r}, {ceiling!r}"
            )
        self._floor, self._ceiling = floor, ceiling
        self._control = RateControl(start, floor, ceiling)
        self._trendline = Trendline()
        self._queue = QueueDelay()
        self._loss_limit = LossLimit()
        self._losses = LossShare()
        self._reordering = Reordering()
        self._prober = Prober()
        self._fallback = Fallback()
        self._arrived, self._sent = Throughput(), Throughput()
        self._heard: float | None = None
        """When the latest transport-wide feedback came."""
        self._reported: float | None = None
        """When the latest report or REMB came."""
        self._now = -math.inf
        self._latest_arrival: float | None = None
        self._offset = 0.0
        self._least_queue = math.inf
        """Seconds, since the loss limit was reckoned: bursts of ours do not count as a standing queue."""
        self._suspects = 0
        """Packets that the latest feedback did not have; the next one may, if they were only late."""
        self._ticked: float | None = None
        self._stalled = 0.0
        """Seconds of ours, not of the path's silence: no tick came."""
        self._silent = 0.0
        """Halvings for silence."""
        self._wanted: float | None = None
        self._sending_since: float | None = None
        self._report_loss = 0.0
        self.state: State = "hold"
        """What the target does."""
        self.reason = "start"
        """Why: "start", "delay", "loss", "probe", "competition", "application", "remb", "report" or
        "silence".
        """
        self.target = start
        """bit/s, between floor and ceiling."""
        self.rtt = FIRST_RTT
        """Seconds, smoothed; without the time for which the receiver kept feedback back."""

    @property
    def capacity(self) -> int:
        """bit/s that the path carries; the target is less while a queue is emptied."""
        return self.target if not self._control.draining else int(max(self.target, self._control.estimate))

    @property
    def packet_loss(self) -> float:
        """Share of packets over about the last second, 0 to 1."""
        return self._report_loss if self._heard is None else self._losses.share

    @property
    def jitter(self) -> float:
        """Seconds, as RFC 3550 reckons it."""
        return self._queue.jitter

    @property
    def queue_delay(self) -> float:
        """Seconds that packets stand in the path's queues at least."""
        return self._queue.standing

    @property
    def acked_bitrate(self) -> int:
        """bit/s that arrived over the last half second; 0 as long as it is unknown."""
        return int(self._arrived.bitrate or 0)

    def on_sent(self, now: float, bitrate_wanted: int) -> None:
        """The application sends, and would send so much if it were let; 0: it sends nothing."""
        if not self._advance(now) or bitrate_wanted != bitrate_wanted:  # noqa: PLR0124 - NaN
            return
        self._wanted = float(min(max(bitrate_wanted, 0), self._ceiling))
        if not self._wanted:
            self._sending_since = None
        elif self._sending_since is None:
            self._sending_since = now

    def on_feedback(self, results: Sequence[PacketResult], now: float) -> None:
        """One message of transport-wide feedback; results of the same packets again are left out."""
        if not self._advance(now):
            return
        fresh, late = self._reordering.sort(usable(results, now))
        for _ in range(late):
            self._loss_limit.recover()
            self._losses.recover()
        if not any(each.received_at is not None for each in fresh):
            return  # the receiver hears nothing: as silence, which `tick` sees
        self._heard, self._stalled = now, 0.0
        if self._silent:
            self._return(now)
            fresh = [each for each in fresh if each.received_at is not None]
        due = self._take(fresh, now)
        arriving, queue, control = self._arrived.bitrate, self._queue.standing, self._control
        self._least_queue = min(self._least_queue, queue)
        if due:
            self._loss_limit.update(control.target, arriving, self._least_queue)
            self._least_queue = math.inf
        lost = self._suspects > late
        self._suspects = sum(each.received_at is None for each in fresh)
        signal = self._trendline.signal
        if signal == "overuse" and any(each.probe is not None for each in fresh):
            signal = "normal"  # a burst fills the queue for as long as it lasts
        before = control.estimate
        seen = Seen(arriving, self._arrived.short_bitrate, self._sent.bitrate, queue, self.rtt + queue, lost)
        control.update(now, signal, seen)
        if control.state == "decrease" and control.estimate < before:
            self._prober.fell(now, before)
        self.state, self.reason = control.state, "competition" if control.competing else "delay"
        if control.state == "increase" and control.estimate == before and before < self._ceiling:
            self.state, self.reason = "hold", "application"
        found = self._prober.result(now)
        if (
            found is not None
            and found > control.estimate
            and control.state != "decrease"
            and not control.draining
        ):
            control.set_estimate(found)
            self.state, self.reason = "increase", "probe"
        self._aim()

    def on_report(self, packet_loss: float | None, rtt: float | None, now: float) -> None:
        """One RTCP receiver report; what it does not say is None."""
        if not self._advance(now):
            return
        if rtt is not None and not 0 < rtt < LONGEST_RTT:
            rtt = None
        if packet_loss is not None and not 0 <= packet_loss <= 1:
            packet_loss = None
        if self.hears_feedback(now) or (packet_loss is None and rtt is None):
            return
        if rtt is not None:
            self.rtt = rtt if self._reported is None else self.rtt + (rtt - self.rtt) / 4
        if packet_loss is None:
            return
        self._report_loss = packet_loss
        if self._silent:
            self._return(now)
        self._reported = now
        control = self._control
        rate, self.state = self._fallback.report(control.estimate, packet_loss, rtt, now)
        if rate > control.estimate and self._wanted is not None:
            rate = max(control.estimate, min(rate, self._wanted))
        control.set_estimate(rate)
        self.reason = "report" if self.state == "increase" else "loss"
        self._aim()

    def on_remb(self, bitrate: int, now: float) -> None:
        """The receiver's own estimate; counts where no transport-wide feedback comes."""
        if not self._advance(now) or not 0 <= bitrate < math.inf or self.hears_feedback(now):
            return
        if self._silent:
            self._return(now)
        self._reported = now
        self._fallback.remb = float(min(bitrate, self._ceiling))
        if bitrate < self._control.estimate:
            self._control.set_estimate(bitrate)
            self.state, self.reason = "decrease", "remb"
        self._aim()

    def tick(self, now: float) -> None:
        """Time passes: each 25 to 50 ms."""
        if not self._advance(now):
            return
        passed = 0.0 if self._ticked is None else now - self._ticked
        self._ticked = now
        if self._sending_since is None:
            return
        if passed > STALL:
            self._stalled += passed
        reports_only = self._heard is None or (self._reported is not None and self._reported > self._heard)
        silence = REPORT_SILENCE if reports_only else SILENCE + self.rtt
        latest = max(each for each in (self._heard, self._reported, self._sending_since) if each is not None)
        silence += min(self._stalled, SILENCE)
        if now - latest <= silence:
            return
        self._silent = 1 + math.floor(now - latest - silence)
        self.state, self.reason = "decrease", "silence"
        self._aim()

    def probe_wanted(self, now: float) -> ProbeCluster | None:
        """A burst to send now, if room upwards is to be looked for; each is asked for once."""
        control = self._control
        if (
            not self._advance(now)
            or self._heard is None
            or self._silent
            or control.competing
            or control.draining
            or control.state == "decrease"
            or self._queue.standing > QUEUED
            or self._loss_limit.bitrate < control.estimate
            or (self._wanted is not None and self._wanted < LIMITED * self.target)
        ):
            return None
        return self._prober.wanted(now, self.target, self._ceiling, self.jitter)

    def _advance(self, now: float) -> bool:
        """Whether `now` is a time; where the clock was set back, all that stands in the old one is forgotten."""
        if not math.isfinite(now):
            return False
        if now < self._now - JUMP or (now > self._now + 3600 and self._now > -math.inf):
            self._heard = None if self._heard is None else now
            self._reported = None if self._reported is None else now
            self._sending_since = None if self._sending_since is None else now
            self._forget()
            self._queue.reset()
            self._reordering.reset()
            self._fallback = Fallback()
            self._prober.wait(now, AFTER_DECREASE)
            self._latest_arrival = None
        self._now = now
        return True

    def hears_feedback(self, now: float) -> bool:
        """Whether transport-wide feedback came of late: then reports and REMB do not count."""
        return self._heard is not None and now - self._heard < ALIVE

    def _take(self, fresh: Iterable[PacketResult], now: float) -> bool:
        """Give each packet to the parts; whether the loss limit is due."""
        due = False
        trip = math.inf
        latest = max(each.received_at for each in fresh if each.received_at is not None)
        for each in fresh:
            received, sent = each.received_at, each.sent_at
            lost = received is None
            due = self._loss_limit.add(sent, each.size, lost=lost) or due
            self._losses.add(sent, lost=lost)
            self._sent.add(sent, each.size)
            if received is None:
                self._prober.add(each)
                continue
            delay = received - sent
            if self._latest_arrival is not None and (
                abs(delay - self._offset) > JUMP or received < self._latest_arrival - SET_BACK
            ):
                self._forget()
                self._queue.reset()
                self._latest_arrival = received
            self._latest_arrival = (
                received if self._latest_arrival is None else max(received, self._latest_arrival)
            )
            self._offset = delay
            self._prober.add(each)
            self._trendline.add(sent, received)
            self._queue.add(delay)
            self._arrived.add(received, each.size)
            trip = min(trip, now - sent - (latest - received))
        self._queue.update(now, keep=self._control.competing)
        if 0 < trip < LONGEST_RTT:
            trip = max(0.001, trip - self._queue.standing)
            self.rtt += (trip - self.rtt) / 8
        return due

    def _forget(self) -> None:
        """What was before says nothing of what comes."""
        self._trendline.reset()
        self._arrived.reset()
        self._sent.reset()
        self._loss_limit.reset()
        self._control.pause()

    def _return(self, now: float) -> None:
        """The receiver is heard again."""
        self._silent = 0
        self._forget()
        self._control.set_estimate(self._control.estimate * AFTER_OUTAGE)
        self._prober.wait(now, 1.0)

    def _aim(self) -> None:
        """Set the target to the least of what the parts allow."""
        rate = self._control.target
        if self._loss_limit.bitrate < rate:
            rate, self.reason = self._loss_limit.bitrate, "loss"
            self.state = "decrease" if rate < self.target else "hold"
        rate *= SILENT_FACTOR**self._silent
        self.target = int(min(max(rate, self._floor), self._ceiling))
