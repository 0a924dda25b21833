"""The RTP packets of a sender: what aiortc would have made, and what is asked for again."""

from __future__ import annotations

import asyncio
import logging
import time
from fractions import Fraction
from itertools import pairwise

import numpy as np
from aiortc import RTCConfiguration, RTCPeerConnection
from aiortc.mediastreams import MediaStreamTrack
from aiortc.rtp import RtpPacket, unwrap_rtx
from av import AudioFrame
from hypothesis import given
from hypothesis import strategies as st

from ipfs_stream_nb.webrtc.packets import KEPT, PacketSender
from webrtc.rtp_pair import Pair


class Tone(MediaStreamTrack):
    """Sound as frames, which aiortc encodes itself."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self._count = 0

    async def recv(self) -> AudioFrame:
        await asyncio.sleep(0.01)
        wave = (np.sin(np.arange(960) / 10) * 16_000).astype(np.int16)
        frame = AudioFrame.from_ndarray(wave.reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = 48_000, Fraction(1, 48_000), 960 * self._count
        self._count += 1
        return frame


async def test_packets_are_those_of_the_standard():
    """RFC 3550: numbers go on by one, a frame's packets share a timestamp, its last one has the marker; RFC 8285: mid and
    abs-send-time; and the reports count what was sent."""
    async with Pair() as pair:
        pair.track.give(3000, 100, 5000)
        await pair.until(lambda: sum(one.marker for one in pair.of(pair.video._ssrc)) == 3)
        packets = pair.of(pair.video._ssrc)
        report = await pair.video.getStats()
    numbers = [one.sequence_number for one in packets]
    assert numbers == list(range(numbers[0], numbers[0] + len(packets)))
    assert numbers[0] < 1 << 15
    frames = [
        [one for one in packets if one.timestamp == stamp] for stamp in sorted({p.timestamp for p in packets})
    ]
    assert sorted(len(one) for one in frames) == [1, 3, 4]
    for frame in frames:
        assert [one.marker for one in frame] == [0] * (len(frame) - 1) + [1]
    stamps = [
        frame[0].timestamp for frame in sorted(frames, key=lambda one: numbers.index(one[0].sequence_number))
    ]
    assert [(after - before) % (1 << 32) for before, after in pairwise(stamps)] == [
        3000,
        3000,
    ]
    assert {one.extensions.mid for one in packets} == {"0"}
    age = (int(time.time() * (1 << 18)) - packets[0].extensions.abs_send_time & 0xFFFFFF) / (1 << 18)
    assert age < 30
    (sent,) = [one for one in report.values() if one.type == "outbound-rtp"]
    assert sent.packetsSent == len(packets)
    assert sent.bytesSent == sum(len(one.payload) for one in packets)


async def test_what_was_lost_comes_once_more():
    """As RTX (RFC 4588), with numbers of its own, also when the same packet is asked for twice; what is too old or was never
    sent is passed over."""
    async with Pair() as pair:
        for count in range(1, 41):  # one by one: the socket would lose some of all at once
            pair.track.give(20_000)
            await pair.until(lambda due=count: sum(one.marker for one in pair.of(pair.video._ssrc)) == due)
        sent = pair.of(pair.video._ssrc)
        assert len(sent) > KEPT
        wanted = sent[-KEPT]
        for number in (
            wanted.sequence_number,
            sent[-1 - KEPT].sequence_number,
            40_000,
            wanted.sequence_number,
        ):
            await pair.nack(number)
        await pair.until(lambda: len(pair.of(pair.video._rtx_ssrc)) == 2)
        again = pair.of(pair.video._rtx_ssrc)
        payload_type = sent[0].payload_type
    for one in again:
        original = unwrap_rtx(one, payload_type=payload_type, ssrc=wanted.ssrc)
        assert (original.sequence_number, original.timestamp, original.payload, original.marker) == (
            wanted.sequence_number, wanted.timestamp, wanted.payload, wanted.marker,
        )  # fmt: skip
    assert again[1].sequence_number == again[0].sequence_number + 1


async def test_the_rest_of_a_picture_that_is_given_up_stays_here():
    """Where a video is dropped while a picture of it waits for room, no more of that picture goes out: the next one does."""
    async with Pair() as pair:
        pair.controller.set_rate(100_000)
        pair.track.give(60_000, 500)
        await pair.until(lambda: pair.controller._video.bytes > pair.controller._limit)
        pair.controller.drop_video(pair.video._ssrc)
        pair.controller.set_rate(None)
        await pair.until(lambda: any(one.marker for one in pair.of(pair.video._ssrc)))
        report = await pair.video.getStats()
        *old, new = pair.of(pair.video._ssrc)
    assert new.timestamp != old[0].timestamp
    assert {one.timestamp for one in old} == {old[0].timestamp}
    assert len(new.payload) < 600
    assert sum(len(one.payload) for one in old) < 30_000
    (sent,) = [one for one in report.values() if one.type == "outbound-rtp"]
    assert sent.packetsSent == (new.sequence_number - old[0].sequence_number) % (1 << 16) + 1


async def test_frames_that_aiortc_encodes_pass_the_same_way():
    """With the level of their sound (RFC 6464)."""
    async with Pair() as pair:
        pair.audio.replaceTrack(Tone())
        await pair.until(lambda: len(pair.of(pair.audio._ssrc)) >= 3)
        packets = pair.of(pair.audio._ssrc)[:3]
    assert [one.sequence_number - packets[0].sequence_number for one in packets] == [0, 1, 2]
    assert {one.extensions.mid for one in packets} == {"1"}
    assert all(one.payload for one in packets)


@given(
    first=st.integers(0, 0xFFFF),
    origin=st.integers(0, 0xFFFFFFFF),
    ticks=st.integers(0, 1 << 40),
    sizes=st.lists(st.integers(1, 1200), min_size=1, max_size=5),
)
def test_numbers_and_times_wrap(first, origin, ticks, sizes):
    """16 and 32 bit, as aiortc's own reader takes them; without RTX a packet is sent again to the byte."""
    sent: list[bytes] = []

    class Transport:
        state = "new"

        async def _send_rtp(self, data: bytes) -> None:
            sent.append(data)

    async def run() -> int:
        pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        sender = pc.addTransceiver("video", "sendonly").sender
        packets = PacketSender(sender)
        sender._RTCRtpSender__transport = Transport()
        packets._number, packets._origin = first, origin
        packets._next = lambda _codec: _frame(sizes, ticks)
        await sender._next_encoded_frame(type("Codec", (), {"payloadType": 97, "mimeType": "video/VP8"}))
        await sender._retransmit(first)
        sender._RTCRtpSender__rtx_payload_type = 98
        for _ in range(2):
            await sender._retransmit(first)
        ssrc = sender._ssrc
        await pc.close()
        return ssrc

    ssrc = asyncio.run(run())
    latest, earlier = (RtpPacket.parse(sent.pop()) for _ in range(2))
    assert latest.sequence_number == (earlier.sequence_number + 1) % (1 << 16)
    assert unwrap_rtx(latest, 97, ssrc).payload == bytes(sizes[0])
    assert sent.pop() == sent[0]
    for index, data in enumerate(sent):
        packet = RtpPacket.parse(data)
        assert packet.sequence_number == (first + index) % (1 << 16)
        assert packet.timestamp == (origin + ticks) % (1 << 32)
        assert (packet.ssrc, packet.payload_type, len(packet.payload)) == (ssrc, 97, sizes[index])
        assert packet.marker == (index == len(sizes) - 1)


async def _frame(sizes: list[int], ticks: int) -> object:
    return type(
        "Frame", (), {"payloads": [bytes(size) for size in sizes], "timestamp": ticks, "audio_level": None}
    )


async def test_another_aiortc_is_left_alone(caplog, monkeypatch):
    """Where its insides are not those that are known, that is said as an error, and it makes its packets itself."""
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    sender = pc.addTransceiver("video", "sendonly").sender
    monkeypatch.delattr(sender, "_RTCRtpSender__mid")
    before = sender._next_encoded_frame
    with caplog.at_level(logging.ERROR):
        PacketSender(sender)
    assert "_RTCRtpSender__mid" in caplog.text
    assert sender._next_encoded_frame == before
    sender._RTCRtpSender__mid = None
    await pc.close()
