"""Video after losses: packets are asked for again until they come, and what waits for lost ones ends at the next key frame.

aiortc 1.16 asks once, and then shows nothing until 512 packets wait.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

from aiortc import RTCRtpReceiver
from aiortc.codecs.vpx import VpxPayloadDescriptor
from aiortc.jitterbuffer import JitterBuffer, JitterFrame
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from aiortc.rtcrtpreceiver import NackGenerator
from aiortc.rtp import RTP_HISTORY_SIZE, RtpPacket

from ipfs_stream_nb.webrtc.transport_feedback import unwrap

CAPACITY: Final = 2048
"""Packets from the first one that is missing to the newest: 1 s at 20 Mbit/s."""
MAX_ASKED: Final = 10
"""How often a packet is asked for, as libwebrtc does it; and none that is RTP_HISTORY_SIZE behind: aiortc forgets it."""
ASK_SECONDS: Final = (0.06, 0.3)
"""Between two requests for a packet, at the least and at the most: ROUND_TRIPS of those that were measured."""
ROUND_TRIPS: Final = 1.5
FIRST_ROUND_TRIP: Final = 0.06
"""Seconds that are assumed before one was measured."""
STUCK_SECONDS: Final = 0.5
"""How long a packet may be missing before a key frame is asked for."""
KEY_FRAME_SECONDS: Final = 1.0
"""Between two requests for a key frame."""
_PREFIX: Final = "_RTCRtpReceiver__"
_SPS, _STAP_A, _FU_A = 7, 24, 28


def begins_key_frame(mime_type: str, payload: bytes) -> bool:
    """Whether an RTP payload is the first of a key frame (VP8: RFC 7741, section 4; H.264: RFC 6184, section 5).

    Of H.264 it is one with a sequence parameter set: a decoder that has missed that one cannot go on from an IDR slice.
    """
    if mime_type.lower() == "video/vp8":
        try:
            descriptor, data = VpxPayloadDescriptor.parse(payload)
        except ValueError:
            return False
        first = descriptor.partition_start == 1 and descriptor.partition_id == 0
        return first and data[3:6] == b"\x9d\x01\x2a" and not data[0] & 1
    if mime_type.lower() == "video/h264":
        return any(unit == _SPS for unit in _unit_types(payload))
    return False


def _unit_types(payload: bytes) -> Iterator[int]:
    """The types of the H.264 NAL units that begin in a payload."""
    if len(payload) < 2:
        return
    kind = payload[0] & 0x1F
    if kind == _FU_A:
        if payload[1] & 0x80:
            yield payload[1] & 0x1F
    elif kind == _STAP_A:
        at = 1
        while at + 2 < len(payload):
            yield payload[at + 2] & 0x1F
            at += 2 + int.from_bytes(payload[at : at + 2], "big")
    else:
        yield kind


@dataclass(slots=True)
class Missing:
    """A packet that has not come, though a later one has. In seconds of the monotonic clock."""

    since: float
    asked: int = 0
    asked_at: float = -math.inf


class VideoBuffer:
    """One stream's packets in order, as whole frames in `frames`; it is what an RTCRtpReceiver has for a jitter buffer.

    A frame ends with RTP's marker bit, so that the last one is seen, and the one that is sought while paused; or where
    the next one begins. What is lost is waited for until a later key frame is whole.
    """

    def __init__(self, codecs: Mapping[int, RTCRtpCodecParameters]) -> None:
        """`codecs`: by payload type."""
        self.frames: list[tuple[RTCRtpCodecParameters, JitterFrame]] = []
        """Whole frames, for who calls `add` to take."""
        self.ssrc = 0
        self._codecs = codecs
        self._packets: dict[int, RtpPacket] = {}
        """By unwrapped sequence number, from `_first` on."""
        self._missing: dict[int, Missing] = {}
        """In order."""
        self._key_frames: list[int] = []
        """The first packets of key frames, from `_first` on."""
        self._first: int | None = None
        """Where the next frame begins."""
        self._next = self._highest = 0
        """The first packet that has not come, and the newest that has."""
        self._broken = False
        """Whether what comes cannot be decoded before there is a key frame."""
        self._round_trip = FIRST_ROUND_TRIP

    def add(self, packet: RtpPacket) -> tuple[bool, None]:
        """Take a packet. As aiortc's own one gives whether to ask for a key frame, and a frame; here `frames` has these."""
        now = time.monotonic()
        if self._first is None:
            self._begin(packet.sequence_number)
        number = unwrap(packet.sequence_number, self._highest, 16)
        if number in self._packets or self._start - CAPACITY < number < self._start:
            return False, None  # it came twice, or too late
        if not 0 <= number - self._start < CAPACITY:
            self._begin(number)
            self._broken = True
        for lost in range(self._highest + 1, number):
            self._missing[lost] = Missing(now)
        self._came(number, now)
        self._packets[number] = packet
        self._highest = max(self._highest, number)
        self.ssrc = packet.ssrc
        if begins_key_frame(self._codec(packet).mimeType, packet.payload):
            self._key_frames.append(number)
        self._put_together()
        if self._missing and (key_frame := self._whole_key_frame()) is not None:
            self._go_to(key_frame)
            self._put_together()
        return False, None

    @property
    def _start(self) -> int:
        assert self._first is not None  # noqa: S101  # there was a packet
        return self._first

    def _codec(self, packet: RtpPacket) -> RTCRtpCodecParameters:
        return self._codecs[packet.payload_type]

    def _begin(self, number: int) -> None:
        self._packets.clear()
        self._missing.clear()
        self._key_frames.clear()
        self._first = self._next = number
        self._highest = number - 1

    def _came(self, number: int, now: float) -> None:
        lost = self._missing.pop(number, None)
        if lost is not None and lost.asked == 1:  # of more, it is not known which one was answered
            self._round_trip += (now - lost.asked_at - self._round_trip) / 8

    def _put_together(self) -> None:
        """Make frames of what is there without a gap."""
        while (packet := self._packets.get(self._next)) is not None:
            if packet.timestamp != self._packets[self._start].timestamp:
                self._give(self._next)
            self._next += 1
            if packet.marker:
                self._give(self._next)

    def _give(self, end: int) -> None:
        """A frame of the packets from the first up to `end`."""
        packets = [self._packets[number] for number in range(self._start, end)]
        if any(one < end for one in self._key_frames):
            self._broken = False
        data = b"".join(packet._data for packet in packets)  # type: ignore[attr-defined]  # noqa: SLF001  # aiortc's
        if data and not self._broken:  # padding has none
            self.frames.append((self._codec(packets[0]), JitterFrame(data, packets[0].timestamp)))
        self._go_to(end)

    def _whole_key_frame(self) -> int | None:
        """The first packet of the newest key frame that is there from its first to its last one."""
        for first in reversed(self._key_frames):
            for number in count(first):
                packet = self._packets.get(number)
                if packet is None or packet.timestamp != self._packets[first].timestamp:
                    break
                if packet.marker:
                    return first
        return None

    def _go_to(self, number: int) -> None:
        """Forget what is before a packet."""
        for passed in range(self._start, number):
            self._packets.pop(passed, None)
            self._missing.pop(passed, None)
        self._key_frames = [one for one in self._key_frames if one >= number]
        self._first, self._next = number, max(self._next, number)

    # -- what is to be asked for

    @property
    def asks(self) -> bool:
        """Whether something is to be asked for once more."""
        return any(True for _ in self._wanted())

    @property
    def ask_seconds(self) -> float:
        """Between two requests for a packet."""
        return min(max(ROUND_TRIPS * self._round_trip, ASK_SECONDS[0]), ASK_SECONDS[1])

    def due(self, now: float) -> list[int]:
        """The sequence numbers to ask for now."""
        found = []
        for number, lost in self._wanted():
            if lost.asked_at + self.ask_seconds <= now:
                lost.asked += 1
                lost.asked_at = now
                found.append(number & 0xFFFF)
        return sorted(found)  # where they wrap, aiortc could not pack them otherwise

    def _wanted(self) -> Iterator[tuple[int, Missing]]:
        """From the newest on. What comes before a key frame that is on its way is asked for once."""
        for number, lost in reversed(self._missing.items()):
            if number <= self._highest - RTP_HISTORY_SIZE:
                return
            if lost.asked < (MAX_ASKED if number > self._key_frame else 1):
                yield number, lost

    @property
    def _key_frame(self) -> int:
        return self._key_frames[-1] if self._key_frames else self._start - 1

    def stuck(self, now: float) -> bool:
        """Whether nothing but a key frame helps, and none is on its way."""
        lost = next((lost for number, lost in self._missing.items() if number > self._key_frame), None)
        if lost is not None and now - lost.since >= STUCK_SECONDS:
            return True
        return self._broken and not self._key_frames


class LossRecovery:
    """Has a video receiver ask for what is lost, and decode all that is whole at once."""

    def __init__(self, receiver: RTCRtpReceiver) -> None:
        """Before it receives."""
        self._receiver = receiver
        self._buffer = VideoBuffer(self._of("codecs"))
        self._key_frame_asked_at = -math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._asking: asyncio.Task[None] | None = None
        self._inner = receiver._handle_rtp_packet  # noqa: SLF001  # it unwraps what was retransmitted
        self._inner_pli = receiver._send_rtcp_pli  # noqa: SLF001
        setattr(receiver, f"{_PREFIX}jitter_buffer", self._buffer)
        setattr(receiver, f"{_PREFIX}nack_generator", None)
        receiver._handle_rtp_packet = self._handle  # type: ignore[method-assign]  # noqa: SLF001
        receiver._send_rtcp_pli = self._ask_for_key_frame  # type: ignore[method-assign]  # noqa: SLF001

    @staticmethod
    def fits(receiver: RTCRtpReceiver) -> bool:
        """Whether it is one of aiortc's video receivers as they are known here."""
        known = {"jitter_buffer": JitterBuffer, "nack_generator": NackGenerator, "codecs": dict}
        return all(isinstance(getattr(receiver, _PREFIX + name, None), one) for name, one in known.items())

    def _of(self, name: str) -> Any:
        return getattr(self._receiver, _PREFIX + name)

    async def _handle(self, packet: RtpPacket, arrival_time_ms: int) -> None:
        await self._inner(packet, arrival_time_ms=arrival_time_ms)
        frames, self._buffer.frames = self._buffer.frames, []
        if self._of("decoder_thread"):
            for codec, frame in frames:
                frame.timestamp = self._of("timestamp_mapper").map(frame.timestamp)
                self._of("decoder_queue").put((codec, frame))
        if self._buffer.stuck(time.monotonic()):
            await self._ask_for_key_frame(self._buffer.ssrc)
        await self._ask()

    async def _ask(self) -> None:
        numbers = self._buffer.due(time.monotonic())
        if numbers:
            await self._receiver._send_rtcp_nack(self._buffer.ssrc, numbers)  # noqa: SLF001
        if self._timer is None and self._buffer.asks:
            seconds = self._buffer.ask_seconds
            self._timer = asyncio.get_running_loop().call_later(seconds, self._ask_again)

    def _ask_again(self) -> None:
        self._timer = None
        if self._receiver.transport.state == "connected":
            self._asking = asyncio.create_task(self._ask(), name="NACK")

    async def _ask_for_key_frame(self, media_ssrc: int) -> None:
        now = time.monotonic()
        if now - self._key_frame_asked_at >= KEY_FRAME_SECONDS:
            self._key_frame_asked_at = now
            await self._inner_pli(media_ssrc)
