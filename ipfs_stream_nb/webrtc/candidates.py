"""ICE candidates that a viewer names, on their way into a peer connection, and those of ours that are found late."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from aiortc import RTCBundlePolicy, RTCIceCandidate, RTCPeerConnection

from ipfs_stream_nb.errors import BadRequestError, TooLargeError
from ipfs_stream_nb.webrtc.ice import candidate_json, is_allowed
from ipfs_stream_nb.webrtc.peer_events import PeerEvents, ignore
from ipfs_stream_nb.webrtc.slots import PeerLimits

MAX_EARLY: Final = 64
"""Candidates that are kept until the answer is there."""
_log = logging.getLogger(__name__)


class Candidates:
    """Those of one viewer: checked, counted, and kept until there is an answer that they belong to. Our own that are found
    after the offer are kept until then too, since the viewer may not know of the offer before."""

    def __init__(
        self,
        pc: RTCPeerConnection,
        limits: PeerLimits,
        bundle_policy: RTCBundlePolicy,
        events: PeerEvents,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        """`spawn` runs what takes a while: a name of mDNS takes up to a second."""
        self.added = 0
        """Those that were taken."""
        self._pc = pc
        self._limits = limits
        self._bundle_policy = bundle_policy
        self._events = events
        self._spawn = spawn
        self._early: list[RTCIceCandidate | None] = []
        self._late: list[RTCIceCandidate] | None = []
        """None: they are told at once."""

    def trickle(self) -> None:
        """Tell the viewer, if there is a way, those of STUN and TURN servers as they come, so that the offer does not wait."""
        if self._events.tell is not ignore:
            self._pc.on("icecandidate", self._found)

    def add(self, candidate: RTCIceCandidate | None) -> None:
        """Take a candidate; None: there are no more. Those on forbidden addresses are passed over. Raises TooLargeError,
        BadRequestError for a section that there is not."""
        if candidate is not None:
            if not is_allowed(candidate, allow_loopback=self._limits.allow_loopback):
                _log.debug("the candidate %s is not allowed", candidate.ip)
                return
            if self.added >= self._limits.max_candidates:
                raise TooLargeError(f"a peer has at most {self._limits.max_candidates} candidates")
            self._place(candidate)
            self.added += 1
        if self._pc.remoteDescription is not None:
            self._spawn(self._add(candidate))
        elif len(self._early) < MAX_EARLY:
            self._early.append(candidate)

    def answered(self) -> None:
        """The answer is there: those that came before it can be added, and ours be told."""
        late, self._late = self._late, None
        for found in late or ():
            self._found(found)
        early, self._early = self._early, []
        for candidate in early:
            self._spawn(self._add(candidate))

    def _found(self, candidate: RTCIceCandidate | None) -> None:
        if candidate is None:  # a viewer need not know that there are no more
            return
        if self._late is None:
            self._events.tell({"type": "candidate", "pc_id": self._events.pc_id, **candidate_json(candidate)})
        else:
            self._late.append(candidate)

    def _place(self, candidate: RTCIceCandidate) -> None:
        mids = [one.mid for one in self._pc.getTransceivers()]
        if self._pc.sctp is not None:
            mids.append(self._pc.sctp.mid)
        if (candidate.sdpMid is not None and candidate.sdpMid not in mids) or not (
            0 <= (candidate.sdpMLineIndex or 0) < len(mids)
        ):
            raise BadRequestError("the candidate names a media section that the offer does not have")
        if self._bundle_policy is RTCBundlePolicy.MAX_BUNDLE or candidate.sdpMid is None:
            candidate.sdpMid, candidate.sdpMLineIndex = mids[0], 0  # one transport serves all

    async def _add(self, candidate: RTCIceCandidate | None) -> None:
        try:
            await self._pc.addIceCandidate(candidate)
        except Exception:  # noqa: BLE001  # one candidate of many, from anybody
            _log.debug("a candidate was refused", exc_info=True)
