"""Which second of the content a packet shows: the messages about it, and their way out."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from ipfs_stream_nb.media.encoded import EncodedPacket
from ipfs_stream_nb.webrtc.lane import TimedPacket
from ipfs_stream_nb.webrtc.marks import Marker
from ipfs_stream_nb.webrtc.reporting import MAX_BUFFERED, MAX_MARKS, Reporter


def timed(ticks: int, time: float, *, preroll: bool = False) -> TimedPacket:
    return TimedPacket(EncodedPacket(b"", time, 0.033, keyframe=False), ticks, 0.0, preroll)


@pytest.mark.parametrize(
    ("packets", "expected"),
    [
        ([timed(900, 5.0), timed(3900, 5.033), timed(6900, 5.065)], [(0, 5.0)]),
        ([timed(900, 5.0), timed(9900, 5.103)], [(0, 5.0), (0.1, 5.103)]),
        ([timed(0, 4.0, preroll=True), timed(1, 4.1, preroll=True), timed(90, 4.2)], [(0, None), (0.001, 4.2)]),
        ([timed(0, 1.0), timed(900, 0.5, preroll=True), timed(1800, 1.02)], [(0, 1), (0.01, None), (0.02, 1.02)]),
        ([timed(0, -0.01)], [(0, 0)]),
    ],
    ids=["goes on", "moves by 3 ms", "preroll at first", "preroll within", "before the content"],
)  # fmt: skip
def test_marks_come_where_time_does_not_go_on(packets, expected):
    """The first packet has one, and each that is more than 2 ms off, or at which a preroll begins or ends."""
    marker = Marker("video")
    marks = [mark for one in packets if (mark := marker.mark(one)) is not None]
    assert [(one["type"], one["kind"]) for one in marks] == [("timestamps", "video")] * len(expected)
    assert [one["pts"] for one in marks] == pytest.approx([pts for pts, _ in expected])
    assert [one["time"] for one in marks] == [at for _, at in expected]


class Channel:
    """A data channel in the hands of the test."""

    def __init__(self) -> None:
        self.readyState, self.bufferedAmount = "connecting", 0
        self.transport = SimpleNamespace(transport=SimpleNamespace(state="connected"))
        self.sent: list[int] = []

    def on(self, event, function) -> None:
        assert event == "open"
        self.opened = function

    def send(self, text: str) -> None:
        self.sent.append(json.loads(text)["pts"])


def test_marks_wait_for_the_channel():
    """They are kept until it opens and while it is full, no more than so many, and go out in order."""
    channel = Channel()
    reporter = Reporter(channel, dict, dict)
    for pts in range(MAX_MARKS + 3):
        reporter.mark({"pts": pts})
    assert channel.sent == []
    channel.readyState = "open"
    channel.opened()
    assert channel.sent == list(range(3, MAX_MARKS + 3))
    channel.sent.clear()
    channel.bufferedAmount = MAX_BUFFERED
    reporter.mark({"pts": 100})
    assert channel.sent == []
    channel.bufferedAmount = 0
    reporter.mark({"pts": 101})
    assert channel.sent == [100, 101]
