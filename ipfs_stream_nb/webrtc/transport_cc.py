"""Transport-wide congestion control in one aiortc peer connection: its negotiation, with that of the playout delay, and what
feedback says of packets.

aiortc has no setting for either. What it is made to do here concerns the one connection alone.
"""

from __future__ import annotations

import functools
import inspect
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import aiortc
from aiortc import RTCPeerConnection, RTCRtpTransceiver, RTCSessionDescription
from aiortc.codecs import HEADER_EXTENSIONS
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcrtpparameters import RTCRtcpFeedback, RTCRtpHeaderExtensionParameters
from aiortc.sdp import MediaDescription, SessionDescription

from ipfs_stream_nb.webrtc.congestion.feedback import PacketResult
from ipfs_stream_nb.webrtc.transport_feedback import (
    REFERENCE_BITS,
    REFERENCE_TICKS,
    TICK,
    TransportFeedback,
    unwrap,
)

EXTENSION: Final = "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01"
PLAYOUT_DELAY: Final = "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay"
ABS_SEND_TIME: Final = "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time"
IDS: Final = range(1, 15)
"""Of header extensions with one-byte heads (RFC 8285, section 4.2)."""
MAX_HISTORY: Final = 8192
"""Packets that wait for feedback: more than 4 s at 20 Mbit/s."""
APART: Final = 1e-6
"""Seconds between two packets of a burst, so that each has a time of its own: what came of them may be told in several messages."""
_FEEDBACK: Final = RTCRtcpFeedback(type="transport-cc")
_COROUTINES: Final[Mapping[type, tuple[str, ...]]] = {
    RTCPeerConnection: ("createOffer", "setRemoteDescription"),
    RTCDtlsTransport: ("_send_rtp", "_handle_rtcp_data", "_handle_rtp_data"),
}
"""What this module and its users build upon."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stream:
    """What is known of the packets of one SSRC that we send."""

    kind: Literal["audio", "video", "retransmission"]
    extension_id: int | None
    """Of transport sequence numbers; None: the other side takes none."""
    abs_send_time_id: int | None
    rtx_ssrc: int | None
    rtx_payload_type: int | None
    """Of the stream's retransmissions, if there are such."""
    playout_delay_id: int | None = None
    """Of how long a receiver is asked to keep pictures; None: it takes no such wish."""


class Negotiation:
    """Transport-wide feedback in one connection's offers and answers, and what came of it."""

    def __init__(self, pc: RTCPeerConnection) -> None:
        self.streams: dict[int, Stream] = {}
        """By SSRC, since the latest description of the other side."""
        self._ids: dict[str, int] = {}
        """Of the header extensions that were agreed upon, or are offered, by URI."""
        self._pc = pc
        self._offer = pc.createOffer
        self._set_remote = pc.setRemoteDescription
        pc.createOffer = self._create_offer  # type: ignore[method-assign]
        pc.setRemoteDescription = self._set_remote_description  # type: ignore[method-assign]
        if pc.remoteDescription is not None:
            self._apply(pc.remoteDescription)

    @property
    def extension_id(self) -> int | None:
        """Of transport sequence numbers: as it was agreed upon, or is offered."""
        return self._ids.get(EXTENSION)

    @property
    def negotiated(self) -> bool:
        """Whether the other side sends feedback."""
        return any(one.extension_id is not None for one in self.streams.values())

    async def _create_offer(self) -> RTCSessionDescription:
        description = await self._offer()
        parsed = SessionDescription.parse(description.sdp)
        # of all kinds, since a track of another kind may come later to the same transport
        taken = {one.id for extensions in HEADER_EXTENSIONS.values() for one in extensions}
        free = (one for one in IDS if one not in taken and one not in self._ids.values())
        for uri in (EXTENSION, PLAYOUT_DELAY):
            if self._ids.get(uri, 0) in {0, *taken}:
                self._ids[uri] = next(free)
        for media in parsed.media:
            if media.kind in {"audio", "video"}:
                media.rtp.headerExtensions += [
                    RTCRtpHeaderExtensionParameters(id=self._ids[uri], uri=uri)
                    for uri in (EXTENSION, PLAYOUT_DELAY)
                    if uri == EXTENSION or media.kind == "video"
                ]
                for codec in media.rtp.codecs:
                    if codec.name.lower() != "rtx":
                        codec.rtcpFeedback.append(_FEEDBACK)
        return RTCSessionDescription(str(parsed), description.type)

    async def _set_remote_description(self, sessionDescription: RTCSessionDescription) -> None:  # noqa: N803
        await self._set_remote(sessionDescription)
        # aiortc uses what it agreed upon in a task that has not begun yet
        self._apply(sessionDescription)

    def _apply(self, description: RTCSessionDescription) -> None:
        sections = {one.rtp.muxId: one for one in SessionDescription.parse(description.sdp).media}
        self.streams.clear()
        for transceiver in self._pc.getTransceivers():
            media = sections.get(transceiver.mid or "")
            if media is not None:
                delay = self._take(transceiver, media, PLAYOUT_DELAY) if media.kind == "video" else None
                self._learn(transceiver, self._agree(transceiver, media), delay)

    def _take(self, transceiver: RTCRtpTransceiver, media: MediaDescription, uri: str) -> int | None:
        """Add a header extension to what aiortc took of a media section; its id, if the section has it."""
        extension = next(
            (one for one in media.rtp.headerExtensions if one.uri == uri and one.id in IDS), None
        )
        if extension is None:
            return None
        if extension not in transceiver._headerExtensions:  # noqa: SLF001
            transceiver._headerExtensions.append(extension)  # noqa: SLF001
        self._ids[uri] = extension.id
        return extension.id

    def _agree(self, transceiver: RTCRtpTransceiver, media: MediaDescription) -> int | None:
        """Add feedback to what aiortc took of a media section; the extension's id, if the section has both."""
        able = {one.payloadType for one in media.rtp.codecs if _FEEDBACK in one.rtcpFeedback}
        codecs = transceiver._codecs  # noqa: SLF001  # see above
        if not any(one.payloadType in able for one in codecs):
            return None
        extension_id = self._take(transceiver, media, EXTENSION)
        if extension_id is None:
            return None
        transceiver._codecs = [  # noqa: SLF001  # copies: they may be those that all connections begin with
            replace(one, rtcpFeedback=[*one.rtcpFeedback, _FEEDBACK])
            if one.payloadType in able and _FEEDBACK not in one.rtcpFeedback
            else one
            for one in codecs
        ]
        return extension_id

    def _learn(
        self, transceiver: RTCRtpTransceiver, extension_id: int | None, playout_delay_id: int | None
    ) -> None:
        sender, codecs = transceiver.sender, transceiver._codecs  # noqa: SLF001
        extensions = {one.uri: one.id for one in transceiver._headerExtensions}  # noqa: SLF001
        stamp = extensions.get(ABS_SEND_TIME)
        rtx = next(
            (
                one.payloadType
                for one in codecs
                if one.name.lower() == "rtx" and one.parameters.get("apt") == codecs[0].payloadType
            ),
            None,
        )
        self.streams[sender._ssrc] = Stream(  # noqa: SLF001
            "audio" if transceiver.kind == "audio" else "video", extension_id, stamp,
            None if rtx is None else sender._rtx_ssrc, rtx, playout_delay_id,  # noqa: SLF001
        )  # fmt: skip
        if rtx is not None:
            self.streams[sender._rtx_ssrc] = Stream("retransmission", extension_id, stamp, None, None)  # noqa: SLF001


@functools.cache
def _unfit() -> str | None:
    """What this aiortc lacks, said once in the log."""
    missing = [
        f"{one.__name__}.{name}"
        for one, names in _COROUTINES.items()
        for name in names
        if not inspect.iscoroutinefunction(getattr(one, name, None))
    ]
    transceiver = RTCRtpTransceiver("audio", None, None)  # type: ignore[arg-type]  # for its attributes alone
    missing += [
        f"RTCRtpTransceiver.{name}"
        for name in ("_codecs", "_headerExtensions")
        if not hasattr(transceiver, name)
    ]
    if not missing:
        return None
    text = (
        f"aiortc {aiortc.__version__} has no {', '.join(missing)}: packets are sent without transport-wide feedback "
        "and without pacing, by the receiver's own estimate of its bandwidth (REMB)"
    )
    _log.error(text)
    return text


def enable(pc: RTCPeerConnection) -> Negotiation | None:
    """Offer transport-wide feedback in a connection, and answer it where it is offered. To be called before the first offer or
    answer is made. None where aiortc's insides are not those that this is made for, which is logged as an error."""
    if _unfit():
        return None
    known = getattr(pc.createOffer, "__self__", None)
    return known if isinstance(known, Negotiation) else Negotiation(pc)


@dataclass(slots=True)
class _Sent:
    at: float
    size: int
    probe: int | None
    total: int
    """Bytes that were sent up to this packet, without those of probes."""
    lost: bool = False


@dataclass(slots=True)
class SendHistory:
    """The packets of one transport that wait for feedback: the last MAX_HISTORY of them."""

    unreported: int = 0
    """Packets of which no feedback told: that feedback was lost, or never came."""
    feedback_lost: int = 0
    """Feedback packets that are missing by their own count."""
    _sent: dict[int, _Sent] = field(default_factory=dict)
    _next: int = 0
    _latest: float = -math.inf
    _total: int = 0
    _reported: int = 0
    """The total of the latest packet that feedback told of."""
    _reference: int | None = None
    _count: int | None = None

    def add(self, at: float, size: int, probe: int | None) -> int:
        """Note a packet; its transport sequence number, 16 bit."""
        self._latest = at = max(at, self._latest + APART)
        number = self._next
        self._next += 1
        if probe is None:
            self._total += size
        self._sent[number] = _Sent(at, size, probe, self._total)
        old = self._sent.pop(number - MAX_HISTORY, None)
        if old is not None and not old.lost:
            self.unreported += 1
        return number & 0xFFFF

    @property
    def in_flight(self) -> int:
        """Bytes sent since the latest packet that feedback told of."""
        return self._total - self._reported

    def results(self, feedback: TransportFeedback) -> list[PacketResult]:
        """What is new by a feedback packet, in the order of sending. A packet that is told as lost comes once more if it arrives
        after all."""
        self._follow(feedback.count)
        reference = feedback.reference
        if self._reference is not None:
            reference = unwrap(reference, self._reference, REFERENCE_BITS)
        self._reference = reference
        ticks = reference * REFERENCE_TICKS
        number = (
            self._next - 1 - (self._next - 1 - feedback.base & 0xFFFF)
        )  # what was not sent yet cannot arrive
        found: list[PacketResult] = []
        for delta in feedback.deltas:
            sent = self._sent.get(number)
            if sent is not None:
                self._reported = max(self._reported, sent.total)
            if delta is not None:
                ticks += delta
                if sent is not None:
                    del self._sent[number]
                    found.append(PacketResult(sent.at, ticks * TICK, sent.size, sent.probe))
            elif sent is not None and not sent.lost:
                sent.lost = True
                found.append(PacketResult(sent.at, None, sent.size, sent.probe))
            number += 1
        return found

    def _follow(self, count: int) -> None:
        ahead = 1 if self._count is None else count - self._count & 0xFF
        if 0 < ahead < 0x80:
            self.feedback_lost += ahead - 1
            self._count = count
