"""Transport-wide feedback as it comes: what is new in it, and no more than there can be."""

from __future__ import annotations

import logging
from typing import Final

from ipfs_stream_nb.webrtc.congestion.feedback import PacketResult
from ipfs_stream_nb.webrtc.transport_cc import SendHistory
from ipfs_stream_nb.webrtc.transport_feedback import MAX_STATUSES, TransportFeedback, split_rtcp

MAX_STATUSES_A_SECOND: Final = 20_000
"""Packets of which feedback may tell: 200 Mbit/s. A few bytes can claim thousands, and to read them takes time from all viewers."""
_log = logging.getLogger(__name__)


class FeedbackReader:
    """Takes the RTCP packets of one transport."""

    def __init__(self, history: SendHistory) -> None:
        self.taken = 0
        self.invalid = 0
        """Feedback packets, and those that could not be read or were too many."""
        self._history = history
        self._statuses = float(MAX_STATUSES)
        self._at: float | None = None

    def read(self, data: bytes, now: float) -> tuple[list[list[PacketResult]], bytes]:
        """The results of each feedback packet in a compound one, and the rest of it. What is no RTCP is given back."""
        try:
            bodies, rest = split_rtcp(data)
        except ValueError:
            return [], data  # aiortc drops it
        if bodies and self._at is not None:
            earned = MAX_STATUSES_A_SECOND * (now - self._at)
            self._statuses = min(self._statuses + earned, float(MAX_STATUSES))
        self._at = now if bodies else self._at
        return [results for body in bodies if (results := self._take(body)) is not None], rest

    def _take(self, body: bytes) -> list[PacketResult] | None:
        try:
            feedback = TransportFeedback.parse(body, int(self._statuses))
        except ValueError as error:
            self.invalid += 1
            _log.debug("transport feedback was dropped: %s", error)
            return None
        self._statuses -= len(feedback.deltas)
        self.taken += 1
        return self._history.results(feedback)
