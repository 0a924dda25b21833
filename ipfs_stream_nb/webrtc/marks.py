"""Which second of the content a packet shows: RTP counts on through seeks, pauses and repeats, content does not."""

from __future__ import annotations

from typing import Any, Final

from ipfs_stream_nb.media.encoded import TrackKind
from ipfs_stream_nb.webrtc.lane import CLOCK_RATES, TimedPacket

TOLERANCE: Final = 0.002
"""Seconds by which a packet may miss the time that its track's latest mark gives it."""


class Marker:
    """Makes the `timestamps` messages of one track: at its first packet, and where time no longer goes on as RTP's does.

    `pts` is seconds since the track's first packet, `time` seconds of the content, or null from there on for packets that are
    only there for the decoder.
    """

    def __init__(self, kind: TrackKind) -> None:
        self._kind = kind
        self._first: int | None = None
        """The first packet's RTP timestamp."""
        self._ahead: float | None = None
        """How far the content's time is ahead of `pts`; None in a preroll."""

    def mark(self, timed: TimedPacket) -> dict[str, Any] | None:
        """The message for the packet that goes out next; None where the latest one holds for it too."""
        begins = self._first is None
        if self._first is None:
            self._first = timed.ticks
        # not rounded: receivers compare it with the frames' own
        pts = (timed.ticks - self._first) / CLOCK_RATES[self._kind]
        time = None if timed.preroll else max(timed.packet.time, 0.0)
        ahead, before = None if time is None else time - pts, self._ahead
        same = ahead is before if ahead is None or before is None else abs(ahead - before) <= TOLERANCE
        if same and not begins:
            return None
        self._ahead = ahead
        return {"type": "timestamps", "kind": self._kind, "pts": pts, "time": time}
