"""Which second of the content a packet shows: the messages about it."""

from __future__ import annotations

import pytest

from ipfs_stream_nb.media.encoded import EncodedPacket
from ipfs_stream_nb.webrtc.lane import TimedPacket
from ipfs_stream_nb.webrtc.marks import Marker


def timed(ticks: int, time: float, *, preroll: bool = False) -> TimedPacket:
    return TimedPacket(EncodedPacket(b"", time, 0.033, keyframe=False), ticks, 0.0, preroll)


ORIGIN = (1 << 32) - 1000
"""So that timestamps wrap."""


@pytest.mark.parametrize(
    ("packets", "expected"),
    [
        ([timed(900, 5.0), timed(3900, 5.033), timed(6900, 5.065)], [(900, 5.0)]),
        ([timed(900, 5.0), timed(9900, 5.103)], [(900, 5.0), (9900, 5.103)]),
        ([timed(0, 4.0, preroll=True), timed(1, 4.1, preroll=True), timed(90, 4.2)], [(0, None), (90, 4.2)]),
        ([timed(0, 1.0), timed(900, 0.5, preroll=True), timed(1800, 1.02)], [(0, 1), (900, None), (1800, 1.02)]),
        ([timed(0, -0.01)], [(0, 0)]),
        ([timed(9 << 20, 9.0), timed((9 << 20) + (1 << 30), 9.0 + (1 << 30) / 90_000)], [(9 << 20, 9.0),
            ((9 << 20) + (1 << 30), 9.0 + (1 << 30) / 90_000)]),
    ],
    ids=["goes on", "moves by 3 ms", "preroll at first", "preroll within", "before the content", "hours later"],
)  # fmt: skip
def test_marks_come_where_time_does_not_go_on(packets, expected):
    """The first packet has one, and each that is more than 2 ms off, or at which a preroll begins or ends; they name the
    timestamp that is on the wire. After some hours one is repeated."""
    marker = Marker("video", lambda: ORIGIN)
    marks = [mark for one in packets if (mark := marker.mark(one)) is not None]
    assert marks == [
        {"type": "timestamps", "kind": "video", "rtp_timestamp": (ORIGIN + ticks) % (1 << 32), "time": at}
        for ticks, at in expected
    ]


async def test_without_a_sender_there_are_no_marks():
    """Who reads a track by himself sees its packets' own timestamps."""
    assert Marker("video").mark(timed(0, 1.0)) is None
