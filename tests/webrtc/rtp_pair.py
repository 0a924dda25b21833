"""Two of aiortc's peers over the loopback address: one sends by a PacketSender and a TransportController, the other tells what came."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from fractions import Fraction
from typing import Self

from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection
from aiortc.rtp import RTCP_RTPFB_NACK, RtcpRtpfbPacket, RtpPacket
from av import Packet

from ipfs_stream_nb.clients.webrtc_aiortc import FeedbackSender
from ipfs_stream_nb.webrtc import transport_cc
from ipfs_stream_nb.webrtc.congestion.feedback import PacketResult
from ipfs_stream_nb.webrtc.ice import mend
from ipfs_stream_nb.webrtc.pacing import TransportController
from ipfs_stream_nb.webrtc.packets import PacketSender

SECONDS = 10


class Frames(MediaStreamTrack):
    """Frames of so many bytes, each when the test gives it."""

    kind = "video"

    def __init__(self) -> None:
        super().__init__()
        self.waiting: asyncio.Queue[int] = asyncio.Queue()
        self.taken = 0

    async def recv(self) -> Packet:
        size = await self.waiting.get()
        packet = Packet(bytes(size))
        packet.pts, packet.time_base = 3000 * self.taken, Fraction(1, 90_000)
        self.taken += 1
        return packet

    def give(self, *sizes: int) -> None:
        for size in sizes:
            self.waiting.put_nowait(size)


class Pair:
    """`arrived` has all RTP packets that come, and `results` what the sender is told."""

    def __init__(self, *, ours: bool = True) -> None:
        self.near, self.far = (RTCPeerConnection(RTCConfiguration(iceServers=[])) for _ in range(2))
        self.negotiation = transport_cc.enable(self.near)
        self.track = Frames()
        self.video = self.near.addTransceiver(self.track, "sendonly").sender
        self.audio = self.near.addTransceiver("audio", "sendonly").sender
        for sender in (self.video, self.audio):
            PacketSender(sender)
        self.arrived: list[RtpPacket] = []
        self.results: list[PacketResult] = []
        self.drop: Callable[[RtpPacket], bool] = lambda _packet: False
        self._ours = ours
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self.near.setLocalDescription()
        await self.far.setRemoteDescription(self.near.localDescription)
        negotiation = transport_cc.enable(self.far) if self._ours else None
        mend(self.far)
        await self.far.setLocalDescription()
        await self.near.setRemoteDescription(self.far.localDescription)
        self.dtls = self.video.transport
        self.controller = TransportController(self.dtls, self.negotiation, self._told)
        self.far_dtls = self.far.getTransceivers()[0].receiver.transport
        self.far_dtls._handle_rtp_data = self._arrive
        if negotiation is not None:
            self.feedback = FeedbackSender(self.far_dtls, negotiation, 1)
        inner, extensions = self.far_dtls._handle_rtp_data, self.far_dtls._rtp_header_extensions_map

        async def lossy(data: bytes, arrival_time_ms: int) -> None:
            if not self.drop(RtpPacket.parse(data, extensions)):
                await inner(data, arrival_time_ms=arrival_time_ms)

        self.far_dtls._handle_rtp_data = lossy
        await self.until(lambda: self.near.connectionState == self.far.connectionState == "connected")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.controller.close()
        await self.near.close()
        await self.far.close()
        await asyncio.sleep(0)  # aiortc closes once more by itself when the other side is gone

    async def _arrive(self, data: bytes, arrival_time_ms: int) -> None:
        self.arrived.append(RtpPacket.parse(data, self.far_dtls._rtp_header_extensions_map))
        self._news.set()

    def _told(self, results: list[PacketResult]) -> None:
        self.results += results
        self._news.set()

    async def until(self, true: Callable[[], object]) -> None:
        """Wait for what a packet or feedback makes true, or time alone."""
        async with asyncio.timeout(SECONDS):
            while not true():
                self._news.clear()
                try:
                    await asyncio.wait_for(self._news.wait(), 0.02)
                except TimeoutError:
                    continue

    def of(self, ssrc: int) -> list[RtpPacket]:
        return [one for one in self.arrived if one.ssrc == ssrc]

    async def nack(self, *numbers: int) -> None:
        """Ask for packets of the video once more."""
        packet = RtcpRtpfbPacket(RTCP_RTPFB_NACK, 1, self.video._ssrc, lost=list(numbers))
        await self.far_dtls._send_rtp(bytes(packet))
