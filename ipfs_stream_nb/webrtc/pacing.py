"""What one transport sends, and when: audio first, retransmissions on a budget, video, and padding that probes the path."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtp import is_rtcp

from ipfs_stream_nb.webrtc.congestion.feedback import PacketResult, ProbeCluster
from ipfs_stream_nb.webrtc.feedback_reader import FeedbackReader
from ipfs_stream_nb.webrtc.rtp_bytes import (
    as_retransmission,
    original_sequence,
    restamped,
    sequence_of,
    ssrc_of,
)
from ipfs_stream_nb.webrtc.send_queue import (
    MIN_QUEUE_BYTES,
    WIRE_BYTES,
    FlightWindow,
    Lane,
    RateMeter,
    RetransmissionBudget,
)
from ipfs_stream_nb.webrtc.stamping import Stamper
from ipfs_stream_nb.webrtc.transport_cc import Negotiation, SendHistory, Stream

PACING_FACTOR: Final = 1.5
"""Of the rate that is set: pictures differ in size, and each shall be gone before the next one."""
RUSH_FACTOR: Final = 2.5
"""The same while more than RUSH_SECONDS wait, which is what a keyframe makes."""
RUSH_SECONDS: Final = 0.1
MAX_QUEUE_SECONDS: Final = 0.2
"""What may wait of a kind; who sends more of it waits himself."""
BURST_SECONDS: Final = 0.01
"""Packets of so long go out at once: to wake up for each costs more than to send it."""
RTX_MAX_SECONDS: Final = 0.5
"""Retransmissions that waited longer come too late."""
GIVEN_UP_SECONDS: Final = 1.0
"""For which packets that were given up may still be asked for."""
MAX_PROBES: Final = 4
MAX_PROBE_SECONDS: Final = 1.0
MIN_PROBE_PACKETS: Final = 5
_LONGEST_SLEEP: Final = 0.05
_RECENT: Final = 64
"""Packets of video that are kept as padding: aiortc's receivers take one that is 100 behind for a new beginning."""
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class TransportStats:
    """Counters of one transport, of packets where nothing else is said."""

    retransmitted: int = 0
    retransmissions_dropped: int = 0
    """Over the budget, asked for twice within a round trip, or too late."""
    probes: int = 0
    """Clusters that were sent."""
    padding_bytes: int = 0


class TransportController:
    """The RTP packets that leave by an RTCDtlsTransport: numbered for feedback, and paced once a rate is set.

    `on_feedback` is called with what each feedback packet says that is new. RTCP, and what belongs to no stream of the
    negotiation, passes by at once.
    """

    def __init__(
        self,
        dtls: RTCDtlsTransport,
        negotiation: Negotiation,
        on_feedback: Callable[[list[PacketResult]], None],
    ) -> None:
        self.stats = TransportStats()
        self.history = SendHistory()
        self.feedback = FeedbackReader(self.history)
        self._negotiation = negotiation
        self._on_feedback = on_feedback
        self.repeats = 1
        """How often a packet that was asked for is sent: on a path that loses much, so that one more loss costs no round trip."""
        self.stamper = Stamper(self.history)
        self._rate: float | None = None
        self._capacity = 0.0
        self._factor, self._rush = PACING_FACTOR, RUSH_FACTOR
        self._limit = float("inf")
        """Bytes of a kind that may wait."""
        self._free_at = 0.0
        """When the bytes that were sent would have been sent at the pace."""
        self._audio, self._retransmissions, self._video = self._lanes = Lane(), Lane(), Lane()
        self._meter = RateMeter()
        self._budget = RetransmissionBudget()
        self._window = FlightWindow()
        self._newest: dict[int, int] = {}
        """The latest sequence number, by the SSRC of its retransmissions."""
        self._given_up: dict[int, tuple[int, float]] = {}
        """The same at a time: nothing up to it is of use any more."""
        self._recent: deque[tuple[bytes, Stream]] = deque(maxlen=_RECENT)
        self._probes: deque[ProbeCluster] = deque()
        self._drain: asyncio.Task[None] | None = None
        self._closed = False
        self._inner_send = dtls._send_rtp  # noqa: SLF001  # no other place sees all packets
        self._inner_rtcp = dtls._handle_rtcp_data  # noqa: SLF001
        dtls._send_rtp = self._send  # type: ignore[method-assign,assignment]  # noqa: SLF001
        dtls._handle_rtcp_data = self._handle_rtcp  # type: ignore[method-assign]  # noqa: SLF001

    # -- settings

    def set_rate(
        self,
        bitrate: float | None,
        *,
        capacity: float = 0.0,
        factor: float = PACING_FACTOR,
        rush: float = RUSH_FACTOR,
    ) -> None:
        """Pace at bit/s times `factor`, and times `rush` while much waits; None: send all at once. `capacity` is what the path
        carries, in bit/s, where that is more. Raises ValueError unless the rate is above 0."""
        if bitrate is not None and not 0 < bitrate < float("inf"):
            raise ValueError(f"a rate is a number of bit/s above 0, not {bitrate}")
        now = time.monotonic()
        if self._rate is None or bitrate is None:
            self._free_at = now
            self._budget.fill(bitrate or 0.0, now)
        elif bitrate > self._rate:  # what was sent at a higher rate is not waited for at a lower one
            self._free_at = now + (self._free_at - now) * self._rate / bitrate
        self._rate, self._factor, self._rush = bitrate, factor, rush
        self._capacity = max(bitrate or 0.0, capacity)
        self._limit = (
            float("inf")
            if bitrate is None
            else max(MIN_QUEUE_BYTES, self._capacity * factor * MAX_QUEUE_SECONDS / 8)
        )

    @property
    def can_probe(self) -> bool:
        """Whether there is anything to probe with: a video that was sent, and whose retransmissions the other side takes."""
        return (
            not self._closed
            and len(self._probes) < MAX_PROBES
            and any(map(self._is_repeatable, self._recent))
        )

    def probe(self, cluster: ProbeCluster) -> bool:
        """Send at a cluster's rate for its time, padding where there is nothing else. False: it cannot be done now. Raises
        ValueError for a cluster without a rate or of more than MAX_PROBE_SECONDS."""
        if cluster.bitrate <= 0 or not 0 < cluster.seconds <= MAX_PROBE_SECONDS:
            raise ValueError(f"a probe has a rate and at most {MAX_PROBE_SECONDS:g} s, not {cluster}")
        if not self.can_probe:
            return False
        self._probes.append(cluster)
        self._start()
        return True

    def drop_video(self, ssrc: int) -> None:
        """Forget a video so far, and what of it is asked for again: it goes on with a key frame."""
        stream = self._negotiation.streams.get(ssrc)
        if stream is None:
            return
        repeats = ssrc if stream.rtx_ssrc is None else stream.rtx_ssrc
        streams = [stream, self._negotiation.streams.get(repeats, stream)]
        self._video.drop(streams)
        self._retransmissions.drop(streams)
        if repeats in self._newest:
            self._given_up[repeats] = self._newest[repeats], time.monotonic()

    # -- what it says

    @property
    def negotiated(self) -> bool:
        """Whether feedback is to be expected."""
        return self._negotiation.negotiated

    @property
    def queue_bytes(self) -> int:
        """What waits, of all kinds."""
        return self._audio.bytes + self._retransmissions.bytes + self._video.bytes

    @property
    def queue_seconds(self) -> float:
        """How long that takes at the pace."""
        return 0.0 if self._rate is None else self.queue_bytes * 8 / self._pace()

    @property
    def sent_bitrate(self) -> float:
        """bit/s on the wire over the last second."""
        return self._meter.rate(time.monotonic(), 10)

    @property
    def sent_bitrate_now(self) -> float:
        """bit/s on the wire over the last tenth of a second."""
        return self._meter.rate(time.monotonic(), 1)

    async def close(self) -> None:
        """Drop what waits; from now on packets pass by."""
        self._closed = True
        self._clear()
        if (drain := self._drain) is not None:
            drain.cancel()
            await asyncio.gather(drain, return_exceptions=True)

    # -- sending

    async def _send(self, data: bytes) -> bool:
        """False: its stream was dropped while this waited for room, and what belongs to the packet is of no use."""
        stream = None if is_rtcp(data) else self._negotiation.streams.get(ssrc_of(data))
        if stream is None or self._closed:
            await self._inner_send(data)
            return True
        now = time.monotonic()
        lane = self._lane_of(data, stream)
        if lane is self._retransmissions and not self._may_repeat(data, stream, now):
            self.stats.retransmissions_dropped += 1
            return True
        if lane is self._retransmissions:
            for _ in range(self.repeats - 1 if stream.kind == "retransmission" else 0):
                lane.put(data, stream, now)
        held = lane is self._video and self._is_full
        if not held and self._drain is None and (self._rate is None or self._free_at <= now + BURST_SECONDS):
            await self._transmit(data, stream, now, None)
            if lane.packets:
                self._start()
            return True
        key = stream.rtx_ssrc or ssrc_of(data)
        given_up = self._given_up.get(key)
        lane.put(data, stream, now)
        self._start()
        # who answers a NACK must not wait: it is the task that receives
        while lane is not self._retransmissions and lane.bytes > self._limit and not self._closed:
            lane.room.clear()
            await lane.room.wait()
        return self._given_up.get(key) is given_up

    def _lane_of(self, data: bytes, stream: Stream) -> Lane:
        if stream.kind == "retransmission":
            return self._retransmissions
        ssrc, number = stream.rtx_ssrc or ssrc_of(data), sequence_of(data)
        if stream.rtx_ssrc is None:
            newest = self._newest.get(ssrc)
            if newest is not None and (newest - number & 0xFFFF) < 0x8000:
                return self._retransmissions
        else:
            self._recent.append((data, stream))
        self._newest[ssrc] = number
        return self._audio if stream.kind == "audio" else self._video

    def _may_repeat(self, data: bytes, stream: Stream, now: float) -> bool:
        if self._rate is None:
            return True
        ssrc = ssrc_of(data)
        number = original_sequence(data) if stream.kind == "retransmission" else sequence_of(data)
        last, at = self._given_up.get(ssrc, (0, -GIVEN_UP_SECONDS))
        if now - at < GIVEN_UP_SECONDS and (last - number & 0xFFFF) < 0x8000:
            return False
        return self._budget.allows((ssrc, number), self.repeats * (len(data) + WIRE_BYTES), self._rate, now)

    async def _transmit(self, data: bytes, stream: Stream, now: float, probe: int | None) -> int:
        """Give a packet to the socket; its bytes on the wire."""
        self.stats.retransmitted += stream.kind == "retransmission" and probe is None
        whole, size = self.stamper.stamped(data, stream, now, probe)
        if self._rate is not None:
            self._free_at = max(self._free_at, now - BURST_SECONDS) + size * 8 / self._pace()
        self._meter.add(now, size)
        if stream.kind == "video" and probe is None:
            self._window.sent_at = now
        await self._inner_send(whole)
        return size

    def _pace(self) -> float:
        assert self._rate is not None  # noqa: S101  # for the type alone
        pace = self._rate * self._factor
        much = self._drain is not None and self.queue_bytes * 8 > pace * RUSH_SECONDS
        return self._rate * self._rush if much else pace

    @property
    def _is_full(self) -> bool:
        """Whether so much is on its way, unheard of, that more would only stand in a queue."""
        return self._rate is not None and self._window.is_full(
            self.history.in_flight, self._capacity, time.monotonic()
        )

    def _start(self) -> None:
        if self._drain is None:
            self._drain = asyncio.create_task(self._empty(), name="pacer")

    async def _empty(self) -> None:
        """Send all that waits, each packet when its time has come."""
        try:
            while self._probes or self.queue_bytes:
                if self._probes:
                    await self._send_probe(self._probes[0])
                    self._probes.popleft()
                    continue
                now = time.monotonic()
                if self._rate is not None and self._free_at > now:
                    await asyncio.sleep(min(self._free_at - now, _LONGEST_SLEEP))
                    continue
                while self._rate is None or self._free_at <= now + BURST_SECONDS:
                    taken = self._take(now)
                    if taken is None:
                        break
                    await self._transmit(*taken, now, None)
                if self.queue_bytes and self._is_full:
                    await asyncio.sleep(BURST_SECONDS)
        except ConnectionError:  # the transport is closed; whoever sends next hears it
            self._clear()
        except Exception:  # noqa: BLE001  # as aiortc's own task would say of what it sends
            _log.exception("packets could not be sent")
            self._clear()
        finally:
            self._drain = None

    def _take(self, now: float) -> tuple[bytes, Stream] | None:
        while True:
            lane = next((one for one in self._lanes if one.packets), None)
            if lane is None or (lane is self._video and self._is_full):
                return None
            data, stream, since = lane.take(self._limit)
            if lane is self._retransmissions and now - since > RTX_MAX_SECONDS:
                self.stats.retransmissions_dropped += 1
                continue
            if stream.abs_send_time_id is not None:
                data = restamped(data, stream.abs_send_time_id)
            return data, stream

    async def _send_probe(self, cluster: ProbeCluster) -> None:
        began, sent, packets = time.monotonic(), 0, 0
        while packets < MIN_PROBE_PACKETS or sent * 8 < cluster.bitrate * cluster.seconds:
            now = time.monotonic()
            early = sent * 8 / cluster.bitrate - (now - began)
            if early > 0:
                await asyncio.sleep(early)
                continue
            taken = self._take(now) or self._padding()
            sent += await self._transmit(*taken, now, cluster.number)
            packets += 1
        self._free_at = time.monotonic()  # what the probe took is none of the media's pace
        self.stats.probes += 1

    def _padding(self) -> tuple[bytes, Stream]:
        """The largest of the latest packets of video, once more: a receiver passes it over."""
        data, stream = max(filter(self._is_repeatable, self._recent), key=lambda one: len(one[0]))
        assert stream.rtx_ssrc is not None  # noqa: S101  # it would not be among them
        assert stream.rtx_payload_type is not None  # noqa: S101
        self.stats.padding_bytes += len(data)
        again = as_retransmission(data, stream.rtx_payload_type, stream.rtx_ssrc)
        return again, self._negotiation.streams[stream.rtx_ssrc]

    def _is_repeatable(self, packet: tuple[bytes, Stream]) -> bool:
        """Whether the other side still takes retransmissions of its stream."""
        return packet[1].rtx_ssrc in self._negotiation.streams

    def _clear(self) -> None:
        self._probes.clear()
        for lane in self._lanes:
            lane.clear()

    # -- feedback

    async def _handle_rtcp(self, data: bytes) -> None:
        now = time.monotonic()
        told, rest = self.feedback.read(data, now)
        for results in told:
            self._told(results, now)
        if rest:
            await self._inner_rtcp(rest)

    def _told(self, results: list[PacketResult], now: float) -> None:
        newest = max((one.sent_at for one in results if one.received_at is not None), default=None)
        self._window.heard(now, newest)
        self._budget.round_trip = self._window.round_trip
        if results and not self._closed:
            try:
                self._on_feedback(results)
            except Exception:  # noqa: BLE001  # in aiortc's hands it would end the connection
                _log.exception("transport feedback was of no use")
