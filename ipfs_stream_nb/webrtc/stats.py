"""What RTCP tells about a connection, in the protocol's units."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from aiortc import RTCRtpSender
from aiortc.rtp import (
    RTCP_PSFB_APP,
    RTCP_PSFB_FIR,
    RTCP_PSFB_PLI,
    RTCP_RTPFB_NACK,
    AnyRtcpPacket,
    RtcpPsfbPacket,
    RtcpRrPacket,
    RtcpRtpfbPacket,
    RtcpSrPacket,
    unpack_remb_fci,
)

from ipfs_stream_nb.webrtc.lane import CLOCK_RATES
from ipfs_stream_nb.webrtc.tracks import track_kind

MAX_NACKS: Final = 500
"""Packets a second that one receiver may ask for once more, of one track; those of 20 Mbit/s of which a quarter is lost."""


@dataclass(frozen=True, slots=True)
class SenderStats:
    """Of one track's sender. None: no report has come yet."""

    bytes_sent: int
    packets_sent: int
    rtt: float | None
    """Seconds."""
    packet_loss: float | None
    """Of the packets since the report before, 0 to 1."""
    packets_lost: int
    jitter: float | None
    """Seconds."""


class RtcpWatch:
    """Looks at the RTCP that reaches a sender: requests for a picture, and the receiver's estimate of its bandwidth.

    aiortc has no event for either: it hands them to its own encoder, which packets do not pass through.
    """

    def __init__(self, sender: RTCRtpSender, on_picture_loss: Callable[[], None]) -> None:
        self.bandwidth_estimate: int | None = None
        """bit/s, of the latest REMB message."""
        self.reports = 0
        """Receiver reports that came,"""
        self.rembs = 0
        """and REMB messages."""
        self._nacks = float(MAX_NACKS)
        """Packets that may be asked for now."""
        self._nacked = time.monotonic()
        self._on_picture_loss = on_picture_loss
        self._inner = sender._handle_rtcp_packet  # noqa: SLF001  # see above
        sender._handle_rtcp_packet = self._handle  # type: ignore[method-assign]  # noqa: SLF001

    async def _handle(self, packet: AnyRtcpPacket) -> None:
        if isinstance(packet, (RtcpRrPacket, RtcpSrPacket)):
            self.reports += 1
        elif isinstance(packet, RtcpPsfbPacket):
            if packet.fmt in {RTCP_PSFB_PLI, RTCP_PSFB_FIR}:
                self._on_picture_loss()
            elif packet.fmt == RTCP_PSFB_APP and not self._estimate(packet):
                return
        elif isinstance(packet, RtcpRtpfbPacket) and packet.fmt == RTCP_RTPFB_NACK:
            packet.lost = self._affordable(packet.lost)
        await self._inner(packet)

    def _estimate(self, packet: RtcpPsfbPacket) -> bool:
        """Take a REMB message. Whether it is one: aiortc's own handler fails at others."""
        try:
            self.bandwidth_estimate = unpack_remb_fci(packet.fci)[0]
        except (ValueError, struct.error):
            return False
        self.rembs += 1
        return True

    def _affordable(self, lost: list[int]) -> list[int]:
        """Of the packets that are asked for once more, those that may be looked for: each costs the loop time, sent or not."""
        now = time.monotonic()
        self._nacks = min(self._nacks + (now - self._nacked) * MAX_NACKS, MAX_NACKS)
        self._nacked = now
        asked = list(dict.fromkeys(lost))[: int(self._nacks)]
        self._nacks -= len(asked)
        return asked


async def sender_stats(sender: RTCRtpSender) -> SenderStats:
    """What is known of one sender. aiortc reports round trips in seconds, jitter in RTP ticks and losses in 1/256."""
    report: dict[str, Any] = await sender.getStats()
    sent = next((one for one in report.values() if one.type == "outbound-rtp"), None)
    remote = next((one for one in report.values() if one.type == "remote-inbound-rtp"), None)
    rate = CLOCK_RATES[track_kind(sender.kind)]
    return SenderStats(
        bytes_sent=sent.bytesSent if sent else 0,
        packets_sent=sent.packetsSent if sent else 0,
        rtt=remote.roundTripTime if remote else None,
        packet_loss=remote.fractionLost / 256 if remote else None,
        packets_lost=remote.packetsLost if remote else 0,
        jitter=remote.jitter / rate if remote else None,
    )
