"""Feedback as it was recorded: aiortc to aiortc, 50 ms on the way, 2.5 Mbit/s and after 8 s 0.6 Mbit/s."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from statistics import median

from ipfs_stream_nb.webrtc.congestion.estimator import BandwidthEstimator
from ipfs_stream_nb.webrtc.congestion.feedback import PacketResult

RECORD = Path(__file__).with_name("feedback_step.bin")
MESSAGE = struct.Struct("<IH")
"""µs, and how many results follow."""
RESULT = struct.Struct("<IiHb")
"""Sent (µs), received (quarters of ms; -1 alone: lost), bytes, burst (-1: none)."""


def recorded() -> list[tuple[float, list[PacketResult]]]:
    """Messages with the time at which they came."""
    data, at, messages = zlib.decompress(RECORD.read_bytes()), 0, []
    while at < len(data):
        now, count = MESSAGE.unpack_from(data, at)
        at += MESSAGE.size
        results = []
        for sent, received, size, probe in RESULT.iter_unpack(data[at : at + count * RESULT.size]):
            arrived = None if received == -1 else received / 4000
            results.append(PacketResult(sent / 1e6, arrived, size, None if probe == -1 else probe))
        at += count * RESULT.size
        messages.append((now / 1e6, results))
    return messages


def test_recorded_step():
    """The rate rises before the step and is below the new one within a second of it; delay, loss and rate are
    told.
    """
    estimator, targets, queues, losses = BandwidthEstimator(), {}, {}, {}
    for now, results in recorded():
        estimator.on_feedback(results, now)
        estimator.probe_wanted(now)
        targets[now], queues[now], losses[now] = (
            estimator.target,
            estimator.queue_delay,
            estimator.packet_loss,
        )
    assert max(target for now, target in targets.items() if now < 8) >= 1.5e6
    assert max(target for now, target in targets.items() if 9 < now < 10) <= 0.6e6
    assert max(target for now, target in targets.items() if now > 9) <= 0.75e6
    assert median(queue for now, queue in queues.items() if now < 7.5) < 0.02
    assert max(queue for now, queue in queues.items() if now < 9) > 0.15
    assert max(loss for now, loss in losses.items() if now < 8) == 0
    assert max(losses.values()) > 0.1
    assert 0.3e6 < estimator.acked_bitrate < 0.65e6
    assert 0.04 < estimator.rtt < 0.09
