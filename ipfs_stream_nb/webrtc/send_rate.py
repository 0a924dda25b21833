"""How fast one peer is sent to: the estimate of its bandwidth, its pacer, and what its videos are encoded to for it."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary

from aiortc.rtcdtlstransport import RTCDtlsTransport

from ipfs_stream_nb.webrtc.adaptation import AdaptiveBitrateController
from ipfs_stream_nb.webrtc.congestion.estimator import BandwidthEstimator
from ipfs_stream_nb.webrtc.pacing import TransportController
from ipfs_stream_nb.webrtc.peer_media import PeerMedia, SentTrack
from ipfs_stream_nb.webrtc.playout import PlayoutDelay
from ipfs_stream_nb.webrtc.stats import sender_stats
from ipfs_stream_nb.webrtc.tracks import BITRATE_SECONDS
from ipfs_stream_nb.webrtc.transport_cc import Negotiation

TICK: Final = 0.05
SAMPLE_EVERY: Final = 0.1
"""Seconds between two looks of the controllers."""
REPORT_EVERY: Final = 1.0
"""Seconds between two looks at RTCP's reports, where there is no other feedback."""
FIRST_BITRATE: Final = 1_000_000
FIRST_SHARE: Final = 1.5
"""Of the content's bit rate: what is supposed to be carried until it is known."""
FLOOR, CEILING = 50_000, 50_000_000
"""bit/s of an estimate."""
PROBED_SHARE: Final = 3.0
"""Of what would be of use: so much is looked for, that a seek may bring its pictures quickly."""
PAYLOAD_SHARE: Final = 0.93
"""Of bytes on the wire, beside headers and retransmissions."""
QUEUE: Final = 0.1
"""Seconds that packets may stand in the pacer, before less is encoded."""
LOSSY: Final = 0.02
"""Share of packets lost from which on those that are asked for are sent twice, and waited for."""
OVERFLOW_SECONDS: Final = 1.5
"""After a queue, in which what is known to be lost may be what had no room in it: to wait for that would be a freeze by itself."""
LEAST_SHARE: Final = 0.5
"""Of the estimate that is encoded at the least, while the pacer's queue is emptied."""
_log = logging.getLogger(__name__)


@dataclass
class _Look:
    """What the last look at a track showed."""

    at: float
    """When that was, and"""
    whole_since: float
    """when the content began to go out as it is, in time and with no frame left out; `time.monotonic`."""
    behind: float = 0.0
    """Seconds by which it had fallen behind."""
    left_out: int = 0
    """Frames, since its beginning."""
    reports: int = 0
    rembs: int = 0
    """Messages that were taken."""


class SendRate:
    """Follows a peer's connection. `run` goes on until it is cancelled; then `close`."""

    def __init__(self, media: PeerMedia, dtls: RTCDtlsTransport, negotiation: Negotiation) -> None:
        self._media = media
        wanted = sum(controller.source_bitrate for _, controller in self._videos)
        start = max(FIRST_BITRATE, min(round(FIRST_SHARE * wanted), CEILING))
        self.estimator = BandwidthEstimator(start, FLOOR, CEILING)
        self.transport = TransportController(dtls, negotiation, self._feedback)
        self.transport.set_rate(start)
        self._began = self._next_report = self._next_sample = time.monotonic()
        self._playout = PlayoutDelay()
        self._queued = -math.inf
        """When packets last stood in the path's queue."""
        self._silent = False
        self._looks: WeakKeyDictionary[SentTrack, _Look] = WeakKeyDictionary()

    @property
    def _videos(self) -> list[tuple[SentTrack, AdaptiveBitrateController]]:
        return [(one, one.controller) for one in self._media.tracks.values() if one.controller is not None]

    @property
    def _playing(self) -> list[tuple[SentTrack, AdaptiveBitrateController]]:
        return [one for one in self._videos if one[0].content.playback.state == "playing"]

    def _feedback(self, results: list[Any]) -> None:
        self.estimator.on_feedback(results, time.monotonic())
        self.transport.set_rate(self.estimator.target, capacity=self.estimator.capacity)

    async def run(self) -> None:
        """Look at what is known, many times a second. A look that fails is told of once, and is not the last."""
        failed = False
        while True:
            feedback = self.estimator.hears_feedback(time.monotonic())
            try:
                await self._step(feedback=feedback)
            except Exception:  # noqa: BLE001  # whatever it is, the viewer's network changes further on
                if not failed:
                    _log.exception(
                        "how fast a peer may be sent to could not be worked out; it is tried again"
                    )
                failed = True
            await asyncio.sleep(TICK if feedback else SAMPLE_EVERY)

    async def _step(self, *, feedback: bool) -> None:
        now = time.monotonic()
        if now >= self._next_report and not feedback:
            self._next_report = now + REPORT_EVERY
            await self._read_reports(now)
        self._wish(now)
        self.estimator.tick(now)
        self.transport.set_rate(self.estimator.target, capacity=self.estimator.capacity)
        self._follow_loss(now)
        if self.transport.can_probe and (cluster := self.estimator.probe_wanted(now)) is not None:
            self.transport.probe(cluster)
        silent, self._silent = self._silent, self.estimator.reason == "silence"
        returned = silent and not self._silent
        if now >= self._next_sample or returned:
            self._next_sample = now + SAMPLE_EVERY
            self._adapt(returned=returned)

    def _follow_loss(self, now: float) -> None:
        """Where the path loses packets without being full of ours, have pictures wait for those that are repeated; where the path is
        not full at all, repeat them twice."""
        estimator = self.estimator
        queued = estimator.queue_delay >= QUEUE
        if queued:
            self._queued = now
        lossy = estimator.packet_loss > LOSSY and not queued
        self.transport.repeats = 2 if lossy else 1
        overflowed = now - self._queued < OVERFLOW_SECONDS
        lossy = (lossy and not overflowed) or estimator.reason == "competition"
        self._playout.update(now, estimator.rtt + estimator.queue_delay, lossy=lossy)
        self.transport.stamper.playout_delay = self._playout.seconds

    def _look(self, sent: SentTrack) -> _Look:
        now = time.monotonic()
        return self._looks.setdefault(sent, _Look(now, now, sent.content.playback.seconds_behind))

    async def _read_reports(self, now: float) -> None:
        """What receivers tell that send no transport-wide feedback: each message once."""
        rembs = []
        for sent in list(self._media.tracks.values()):
            watch, look = sent.watch, self._look(sent)
            if watch is None:
                continue
            if watch.rembs > look.rembs and watch.bandwidth_estimate is not None:
                rembs.append(watch.bandwidth_estimate)
            news, look.rembs, look.reports = watch.reports > look.reports, watch.rembs, watch.reports
            if news and sent.controller is not None and sent.transceiver is not None:
                stats = await sender_stats(sent.transceiver.sender)
                self.estimator.on_report(stats.packet_loss, stats.rtt, now)
        if rembs:
            self.estimator.on_remb(max(rembs), now)

    def _wish(self, now: float) -> None:
        """Say how much would be sent if it could."""
        wish = sum(controller.wanted_bitrate for sent, controller in self._playing if sent.flowing)
        self.estimator.on_sent(now, round(PROBED_SHARE * wish))

    def _adapt(self, *, returned: bool) -> None:
        """Have the videos follow. `returned`: the receiver is heard again, and has missed so much that it needs a new picture."""
        videos = self._playing
        audio = sum(
            one.track.get_stats()["bitrate"] for one in self._media.tracks.values() if one.controller is None
        )
        share = max(LEAST_SHARE, 1 - max(self.transport.queue_seconds - QUEUE, 0.0))
        carried, now = (
            max(bitrate * PAYLOAD_SHARE - audio, 0.0) / max(len(videos), 1)
            for bitrate in (self.estimator.capacity, self.estimator.target)
        )
        for sent, controller in videos:
            playback = sent.content.playback
            restarts, look = playback.restarts, self._look(sent)
            lag, look.behind = playback.seconds_behind - look.behind, playback.seconds_behind
            left_out = self._measure(sent, controller, look, lag)
            if returned:
                controller.forget()
            controller.add_sample(
                {
                    "bandwidth_estimate": carried,
                    "send_bitrate": now * share,
                    "reason": self.estimator.reason,
                    "rtt": self.estimator.rtt,
                    "packet_loss": self.estimator.packet_loss,
                    "jitter": self.estimator.jitter,
                    "queue_delay": self.estimator.queue_delay + self.transport.queue_seconds,
                    "frames_dropped": left_out,
                    "lag": lag / SAMPLE_EVERY,
                }
            )
            if returned:
                playback.refresh()
            if playback.restarts != restarts and sent.transceiver is not None:
                self.transport.drop_video(sent.transceiver.sender._ssrc)  # noqa: SLF001  # aiortc tells it nowhere

    def _measure(
        self, sent: SentTrack, controller: AdaptiveBitrateController, look: _Look, lag: float
    ) -> int:
        """Tell how much the content takes as it is: of a second in which all of it went out. How many frames were left out since
        the last time."""
        now, stats = time.monotonic(), sent.track.get_stats()
        paused, look.at = now - look.at > BITRATE_SECONDS / 2, now
        left_out: int = stats["frames_dropped"] - look.left_out
        look.left_out = stats["frames_dropped"]
        whole = controller.at_source and not left_out and not paused and lag <= 0
        if not whole or self.transport.queue_seconds > QUEUE:
            look.whole_since = now
        if now - look.whole_since > BITRATE_SECONDS:
            controller.measured(stats["bitrate"])
        return left_out

    def stats(self) -> dict[str, Any]:
        """What is known better than from RTCP's reports, for connection_stats."""
        estimator, videos = self.estimator, self._videos
        main = videos[0][1] if videos else None
        known = {
            "bandwidth_estimate": estimator.target,
            "target_bitrate": main and main.target_bitrate,
            "level": main and main.level,
            "reason": estimator.reason,
        }
        if not self.transport.feedback.taken:
            return known
        return known | {
            "rtt": estimator.rtt,
            "packet_loss": estimator.packet_loss,
            "jitter": estimator.jitter,
        }

    def sample(self) -> dict[str, Any]:
        """What a chart shows: the `quality` message of the data channel."""
        estimator, videos = self.estimator, self._videos
        main, controller = videos[0] if videos else (None, None)
        return {
            "type": "quality",
            "time": round(time.monotonic() - self._began, 3),
            "target_bitrate": None if controller is None else controller.target_bitrate,
            "sent_bitrate": round(self.transport.sent_bitrate),
            "bandwidth_estimate": estimator.target,
            "rtt": round(estimator.rtt, 4),
            "jitter": round(estimator.jitter, 4),
            "queue_delay": round(estimator.queue_delay + self.transport.queue_seconds, 4),
            "packet_loss": round(estimator.packet_loss, 4),
            "level": None if controller is None else controller.level,
            "height": None if controller is None else controller.lines,
            "frame_rate": None if controller is None else controller.frames_per_second,
            "state": estimator.state,
            "reason": estimator.reason,
            "position": None if main is None else round(main.content.playback.position, 3),
        }

    async def close(self) -> None:
        """Let packets pass as they come. Idempotent."""
        await self.transport.close()
