"""Which second of the content a packet shows: RTP counts on through seeks, pauses and repeats, content does not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import CoroutineType
from typing import Any, Final

from ipfs_stream_nb.media.encoded import TrackKind
from ipfs_stream_nb.webrtc.lane import CLOCK_RATES, TimedPacket

TOLERANCE: Final = 0.002
"""Seconds by which a packet may miss the time that its track's latest mark gives it."""
REPEAT_TICKS: Final = 1 << 30
"""Ticks after which a mark is repeated: RTP timestamps have 32 bits, so that 2³¹ ticks later it could be taken for a later one."""
WRAP: Final = 1 << 32


class Marker:
    """Makes the `timestamps` messages of one track: at its first packet, where time no longer goes on as RTP's does, and every
    few hours.

    `rtp_timestamp` is the one of the packet's RTP header (RFC 3550, section 5.1), `time` seconds of the content, or null from
    there on for packets that are only there for the decoder.
    """

    def __init__(self, kind: TrackKind, origin: Callable[[], int | None] | None = None) -> None:
        """`origin` gives what is added to a packet's ticks on the wire; None while that is not known."""
        self._kind = kind
        self._find_origin = origin or sender_origin
        self._origin: int | None = None
        self._at: int | None = None
        """The ticks of the latest mark."""
        self._ahead: float | None = None
        """How far the content's time is ahead of RTP's; None in a preroll."""

    def mark(self, timed: TimedPacket) -> dict[str, Any] | None:
        """The message for the packet that goes out next; None where the latest one holds for it too, and where nobody sends it
        by RTP."""
        if self._origin is None:
            self._origin = self._find_origin()
            if self._origin is None:
                return None
        time = None if timed.preroll else max(timed.packet.time, 0.0)
        ahead = None if time is None else time - timed.ticks / CLOCK_RATES[self._kind]
        before = self._ahead
        same = ahead is before if ahead is None or before is None else abs(ahead - before) <= TOLERANCE
        if same and self._at is not None and timed.ticks - self._at < REPEAT_TICKS:
            return None
        self._at, self._ahead = timed.ticks, ahead
        timestamp = (self._origin + timed.ticks) % WRAP
        return {"type": "timestamps", "kind": self._kind, "rtp_timestamp": timestamp, "time": time}


def sender_origin() -> int | None:
    """What the RTP sender that asks for a packet at this moment adds to its ticks, at random (RFC 3550, section 5.1); None
    where no sender asks. aiortc keeps it in a variable of the coroutine that it sends in."""
    task = asyncio.current_task()
    sending = None if task is None else task.get_coro()
    if not isinstance(sending, CoroutineType) or sending.cr_frame is None:
        return None
    origin = sending.cr_frame.f_locals.get("timestamp_origin")
    return origin if isinstance(origin, int) else None
