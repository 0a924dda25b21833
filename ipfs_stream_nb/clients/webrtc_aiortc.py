"""What aiortc has no settings for: addresses found in time, arrivals told, video after losses, nothing left behind."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from aiortc import RTCPeerConnection
from aiortc.rtcdtlstransport import RTCDtlsTransport

from ipfs_stream_nb.clients.webrtc_losses import LossRecovery
from ipfs_stream_nb.webrtc.ice import mend
from ipfs_stream_nb.webrtc.rtp_bytes import find_extension, ssrc_of
from ipfs_stream_nb.webrtc.transport_cc import Negotiation, enable
from ipfs_stream_nb.webrtc.transport_feedback import feedback_for, unwrap

FEEDBACK_SECONDS: Final = 0.05
"""Between two messages of which packets came when."""
MAX_ARRIVALS: Final = 4000
"""Packets that one message may tell of: 50 ms at 900 Mbit/s."""
REORDERING: Final = 1000
"""Packets by which one may come late and still be told of."""
_log = logging.getLogger(__name__)


def prepare(pc: RTCPeerConnection) -> None:
    """Make a connection fit for use, once its tracks are known and before it connects."""
    mend(pc)
    for transceiver in pc.getTransceivers():
        if transceiver.kind == "video" and LossRecovery.fits(transceiver.receiver):
            LossRecovery(transceiver.receiver)
    negotiation = enable(pc)
    if negotiation is not None and negotiation.extension_id is not None:
        for transport in {one.receiver.transport for one in pc.getTransceivers()}:
            FeedbackSender(transport, negotiation, pc.getTransceivers()[0].sender._ssrc)  # noqa: SLF001  # aiortc's


class FeedbackSender:
    """Tells the sender when each of a transport's packets came (transport-wide congestion control), while such come."""

    def __init__(self, dtls: RTCDtlsTransport, negotiation: Negotiation, ssrc: int) -> None:
        self._dtls = dtls
        self._negotiation = negotiation
        self._ssrc = ssrc
        self._media_ssrc = 0
        self._arrivals: dict[int, float] = {}
        """Seconds by unwrapped transport sequence number; what was told already stays for those that come late."""
        self._highest = 0
        self._first = 0
        """The lowest number that is not told yet."""
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._sending: asyncio.Task[None] | None = None
        self._inner = dtls._handle_rtp_data  # noqa: SLF001  # no other place sees all packets
        dtls._handle_rtp_data = self._handle  # type: ignore[method-assign]  # noqa: SLF001

    async def _handle(self, data: bytes, arrival_time_ms: int) -> None:
        now = time.monotonic()
        extension_id = self._negotiation.extension_id
        at = None if extension_id is None or len(data) < 12 else find_extension(data, extension_id, 2)
        if at is not None:
            self._media_ssrc = ssrc_of(data)
            self._arrived(int.from_bytes(data[at : at + 2], "big"), now)
        await self._inner(data, arrival_time_ms=arrival_time_ms)

    def _arrived(self, value: int, now: float) -> None:
        if not self._arrivals:
            self._highest = self._first = value
        number = unwrap(value, self._highest, 16)
        if (
            number in self._arrivals
            or number < self._highest - REORDERING
            or len(self._arrivals) >= MAX_ARRIVALS
        ):
            return
        self._arrivals[number] = now
        self._highest = max(self._highest, number)
        self._first = min(self._first, number)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FEEDBACK_SECONDS, self._tell)

    def _tell(self) -> None:
        self._timer = None
        if self._dtls.state != "connected":
            return
        messages = feedback_for(
            self._arrivals, self._first,
            sender_ssrc=self._ssrc, media_ssrc=self._media_ssrc, count=self._count,
        )  # fmt: skip
        self._count += len(messages)
        self._first = self._highest + 1
        for number in [one for one in self._arrivals if one < self._highest - REORDERING]:
            del self._arrivals[number]
        self._sending = asyncio.create_task(self._send([one.pack() for one in messages]), name="feedback")

    async def _send(self, packets: list[bytes]) -> None:
        try:
            for packet in packets:
                await self._dtls._send_rtp(packet)  # noqa: SLF001  # which takes RTCP too
        except ConnectionError:
            _log.debug("the transport closed before feedback was sent")
