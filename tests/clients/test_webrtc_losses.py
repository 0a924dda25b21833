"""Video goes on soon after packets were lost, whatever becomes of their retransmissions."""

import asyncio
import math
from itertools import pairwise

import numpy as np
import pytest
from aiortc import RTCRtpSender
from aiortc.codecs import depayload
from aiortc.codecs.h264 import H264Encoder
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from aiortc.rtp import RtpPacket, is_rtcp
from hypothesis import given
from hypothesis import strategies as st

import ipfs_stream_nb as ipfs
from ipfs_stream_nb import samples
from ipfs_stream_nb.clients import webrtc_losses
from ipfs_stream_nb.clients.webrtc_losses import (
    ASK_SECONDS,
    CAPACITY,
    KEY_FRAME_SECONDS,
    MAX_ASKED,
    STUCK_SECONDS,
    VideoBuffer,
    begins_key_frame,
)
from scripted_signaling import ScriptedSignaling

RATE = 30
SOON = 10.0
"""Seconds in which a picture follows the one before: it takes 0.15 to 0.3, on a machine that stands still for a while more."""
VP8 = RTCRtpCodecParameters("video/VP8", 90_000, payloadType=97)


# -- over a connection


class Losses:
    """Loses what one sender sends: the next `frames`, key frames, and the first `repeats` retransmissions of each packet."""

    def __init__(self, sender: RTCRtpSender) -> None:
        self.frames = self.key_frames = 0
        self.repeats = 0.0
        self.left = math.inf
        """Packets that are sent after a loss, until `go_on`."""
        self.go_on = asyncio.Event()
        self.lost: list[int] = []
        """Timestamps."""
        self.key_frames_asked_for: list[float] = []
        self._sender = sender
        self._repeated: dict[bytes, int] = {}
        self._send, self._send_keyframe = sender.transport._send_rtp, sender._send_keyframe
        sender.transport._send_rtp = self._lose
        sender._send_keyframe = self._asked

    def _asked(self) -> None:
        self.key_frames_asked_for.append(asyncio.get_running_loop().time())
        self._send_keyframe()

    async def _lose(self, data: bytes) -> None:
        packet = None if is_rtcp(data) else RtpPacket.parse(data)
        if packet is None or not self._loses(packet):
            if packet is not None and packet.ssrc == self._sender._ssrc and self.lost:
                if self.left < 1:
                    await self.go_on.wait()
                self.left -= 1
            await self._send(data)

    def _loses(self, packet: RtpPacket) -> bool:
        if packet.ssrc == self._sender._ssrc:
            if packet.timestamp not in self.lost:
                if self.key_frames and begins_key_frame("video/VP8", packet.payload):
                    self.key_frames -= 1
                elif self.frames:
                    self.frames -= 1
                else:
                    return False
                self.lost.append(packet.timestamp)
            return True
        number = packet.payload[:2]
        self._repeated[number] = self._repeated.get(number, 0) + 1
        return packet.timestamp in self.lost and self._repeated[number] <= self.repeats


class Watching:
    """A client that plays pictures of a codec over `losses`, and checks each that comes."""

    def __init__(self, codec: str) -> None:
        self._codec = codec
        self.numbers: list[int] = []
        self.times: list[float] = []

    async def __aenter__(self):
        self._script = await ScriptedSignaling().__aenter__()
        self._script.on["offer_request"] = self._offer
        self._client = await ipfs.WebRTCClient(self._script.url).__aenter__()
        pc_id = await self._client.request_stream("bafkqaaa")
        sender = self._script.senders[pc_id]
        self.sender = sender.pc.getSenders()[0]
        self.losses = Losses(self.sender)
        self._frames = self._client.frames(pc_id)
        self._pictures = sender.pictures
        await sender.mark(0, 100.0)
        await self.until(5)
        assert sender.pc.getTransceivers()[0]._codecs[0].name == self._codec
        self.losses.key_frames_asked_for.clear()
        return self

    async def _offer(self, script, _message):
        offer = await script.offer()
        (sender,) = script.senders.values()
        (transceiver,) = sender.pc.getTransceivers()
        codecs = RTCRtpSender.getCapabilities("video").codecs
        transceiver.setCodecPreferences([one for one in codecs if one.name in {self._codec, "rtx"}])
        return offer | {"sdp": await sender.offer()}

    async def __aexit__(self, *error):
        await self._client.__aexit__(*error)
        await self._script.__aexit__(*error)

    async def until(self, count: int) -> None:
        """Take pictures until so many have come."""
        async with asyncio.timeout(30):
            while len(self.numbers) < count:
                frame = await anext(self._frames)
                if not self.numbers and frame.time < 100.0:
                    continue  # on a busy machine the mark comes later than this one
                self.numbers.append(samples.read_frame_number(np.asarray(frame)))
                self.times.append(asyncio.get_running_loop().time())
                assert frame.time == pytest.approx(100.0 + self.numbers[-1] / RATE, abs=0.002)
        assert self.numbers == sorted(set(self.numbers))

    def number_of(self, timestamp: int) -> int:
        """Of the picture that has an RTP timestamp."""
        return ((timestamp - self._pictures.origin) & 0xFFFFFFFF) // 3000

    @property
    def longest(self) -> float:
        """Seconds without a picture."""
        return max(after - before for before, after in pairwise(self.times))

    @property
    def missed(self) -> int:
        """Pictures that were not decoded."""
        return self.numbers[-1] - self.numbers[0] + 1 - len(self.numbers) - self._frames.dropped


@pytest.fixture
def not_stuck(monkeypatch):
    """A busy machine may take longer than STUCK_SECONDS for what needs no key frame."""
    monkeypatch.setattr(webrtc_losses, "STUCK_SECONDS", 60)


@pytest.mark.parametrize(("codec", "repeats"), [("VP8", 0), ("H264", 1)])
async def test_what_is_lost_is_asked_for_until_it_comes(codec, repeats, not_stuck):
    """Each picture is seen though a burst is lost, and its first retransmission too."""
    async with Watching(codec) as watching:
        watching.losses.repeats = repeats
        watching.losses.frames = 3
        await watching.until(20)
        assert len(watching.losses.lost) == 3
        assert watching.missed == 0
        assert watching.longest < SOON
        assert watching.losses.key_frames_asked_for == []


@pytest.mark.parametrize("codec", ["VP8", "H264"])
async def test_a_key_frame_ends_the_wait(codec, not_stuck):
    """It is seen at once where what is before it never comes; nobody needs to ask for one."""
    async with Watching(codec) as watching:
        watching.losses.repeats = math.inf
        watching.losses.frames = 3
        async with asyncio.timeout(5):
            while watching.losses.frames:  # noqa: ASYNC110  # pictures are sent by the clock
                await asyncio.sleep(0.005)
        watching.losses._send_keyframe()
        await watching.until(15)
        assert watching.missed >= 3
        assert watching.longest < SOON
        assert watching.losses.key_frames_asked_for == []


async def test_a_key_frame_is_asked_for():
    """Half a second after a loss that stays; and once more a second later, where it is lost too."""
    async with Watching("VP8") as watching:
        watching.losses.repeats = math.inf
        watching.losses.frames = watching.losses.key_frames = 1
        await watching.until(10)
        first, second = watching.losses.key_frames_asked_for
        assert first - watching.times[4] >= STUCK_SECONDS
        assert second - first >= KEY_FRAME_SECONDS - 0.05
        assert watching.longest < STUCK_SECONDS + KEY_FRAME_SECONDS + SOON


async def test_what_is_lost_is_asked_for_though_nothing_comes_any_more():
    """A sender that falls silent is asked again, and what it repeats is seen."""
    async with Watching("VP8") as watching:
        watching.losses.repeats = 1
        watching.losses.frames = watching.losses.left = 1
        while watching.losses.left == 1 or watching.numbers[-1] < watching.number_of(watching.losses.lost[0]):
            await watching.until(len(watching.numbers) + 1)
        assert watching.missed == 0
        watching.losses.go_on.set()


# -- the buffer


def packets_of(frames, first=0):
    """VP8 packets of frames: (whether it is a key frame, how many packets)."""
    packets = []
    for index, (key, size) in enumerate(frames):
        for part in range(size):
            data = bytes((0 if key else 1, 0, 0)) + b"\x9d\x01\x2a" if part == 0 else b"more"
            packet = RtpPacket(97, part == size - 1, (first + len(packets)) & 0xFFFF, 3000 * index, 1)
            packet.payload = bytes((0x10 if part == 0 else 0,)) + data
            packet._data = depayload(VP8, packet.payload)
            packets.append(packet)
    return packets


def given_by(packets, buffer=None):
    """Indices of the frames that a buffer makes of packets; each is whole."""
    buffer = buffer or VideoBuffer({97: VP8})
    for packet in packets:
        assert buffer.add(packet) == (False, None)
    taken, buffer.frames = buffer.frames, []
    return [frame.timestamp // 3000 for _, frame in taken]


sizes = st.lists(st.tuples(st.booleans(), st.integers(1, 4)), min_size=1, max_size=12)


@given(frames=sizes, first=st.integers(0, 0xFFFF), data=st.data())
def test_frames_come_whole_and_in_order(frames, first, data):
    """Whatever is lost, doubled or late; and what can be decoded does not wait: from the last whole key frame on, all."""
    packets = packets_of(frames, first)
    kept = data.draw(st.lists(st.booleans(), min_size=len(packets), max_size=len(packets)))
    kept[0] = True
    arriving = [packet for packet, keep in zip(packets, kept, strict=True) if keep]
    late = data.draw(st.lists(st.integers(0, 5), min_size=len(arriving), max_size=len(arriving)))
    order = sorted(range(1, len(arriving)), key=lambda at: at + late[at])
    doubled = data.draw(st.lists(st.sampled_from(arriving), max_size=4))
    buffer = VideoBuffer({97: VP8})
    seen = given_by([arriving[at] for at in (0, *order)] + doubled, buffer)
    starts = np.cumsum([0, *(size for _, size in frames)])
    whole = [all(kept[a:b]) for a, b in pairwise(starts)]
    assert seen == sorted(set(seen))
    assert all(whole[index] for index in seen)
    last = max(
        (index for index, (key, _) in enumerate(frames) if whole[index] and (key or not index)), default=None
    )
    if last is not None:
        run = next((index for index in range(last, len(frames)) if not whole[index]), len(frames))
        assert set(range(last, run)) <= set(seen)
    assert len(buffer._packets) + len(buffer._missing) <= len(packets)


def test_a_gap_that_is_too_large_begins_anew():
    """With a key frame, which is asked for: what comes before it cannot be decoded."""
    buffer = VideoBuffer({97: VP8})
    frames = [(True, 1), *[(False, 1)] * (CAPACITY + 3), (True, 2), (False, 1)]
    packets = packets_of(frames)
    assert given_by(packets[:2], buffer) == [0, 1]
    assert given_by(packets[CAPACITY + 2 : CAPACITY + 4], buffer) == []
    assert buffer.stuck(0.0)
    assert given_by(packets[-3:-2], buffer) == []
    assert not buffer.stuck(0.0)
    assert given_by(packets[-2:], buffer) == [CAPACITY + 4, CAPACITY + 5]
    assert given_by(packets[2:3], buffer) == []  # too late
    assert given_by(packets_of([(False, 1)], 30_000), buffer) == []
    assert buffer.stuck(0.0)


def test_what_is_asked_for_and_when():
    """All that is missing at once, across the wrap; then each a few times; and once where a key frame makes it needless."""
    frames = [(True, 1), *[(False, 1)] * 5, (True, 3)]
    packets = packets_of(frames, 0xFFFE)
    buffer = VideoBuffer({97: VP8})
    given_by([packets[0], packets[4]], buffer)
    now = 1000.0
    assert buffer.due(now) == [0, 1, 0xFFFF]
    assert buffer.due(now + ASK_SECONDS[0] / 2) == []
    given_by(packets[2:3], buffer)
    asked = 1
    while buffer.asks:
        now += ASK_SECONDS[1]
        assert buffer.due(now) == [1, 0xFFFF]
        asked += 1
    assert asked == MAX_ASKED
    assert buffer.stuck(math.inf)
    given_by(packets[6:7] + packets[8:], buffer)
    assert buffer.due(now) == [3, 5]
    assert buffer.due(now + ASK_SECONDS[1]) == [5]
    assert given_by(packets[7:8], buffer) == [6]
    assert not buffer.asks
    assert not buffer.stuck(math.inf)


def test_the_key_frame_that_is_whole_first_is_seen():
    """Though a later one has begun before."""
    buffer = VideoBuffer({97: VP8})
    packets = packets_of([(True, 1), (False, 1), (True, 2), (True, 2)])
    assert given_by([packets[0], packets[2], packets[4]], buffer) == [0]
    assert given_by([packets[3]], buffer) == [2]
    assert given_by([packets[5]], buffer) == [3]


def test_padding_and_a_sender_without_marker_bits():
    """Neither an empty packet nor the lack of an end is a frame."""
    packets = packets_of([(True, 2), (False, 1), (False, 1)])
    for packet in packets:
        packet.marker = 0
    packets[2].payload = packets[2]._data = b""
    assert given_by(packets) == [0]


def test_where_a_key_frame_begins():
    """By parameter sets in H.264, alone, together, or in fragments; by the frame's head in VP8; not in what is no codec."""
    sps, idr = b"\x67" + bytes(20), b"\x65" + bytes(3000)
    together = H264Encoder._packetize_stap_a(sps, iter([b"\x68\1"]))[0]
    fragments = H264Encoder._packetize_fu_a(b"\x67" + bytes(3000))
    for payload, begins in [
        (sps, True), (together, True), (fragments[0], True), (fragments[1], False), (b"\x65\x88", False), (b"\x67", False),
        (H264Encoder._packetize_fu_a(idr)[0], False), (b"\x18\0", False), (b"\x18\0\0\x67", True), (b"", False),
    ]:  # fmt: skip
        assert begins_key_frame("video/H264", payload) is begins
    head = b"\0\0\0\x9d\x01\x2a"
    for payload, begins in [
        (b"\x10" + head, True), (b"\0" + head, False), (b"\x11" + head, False), (b"\x10\1" + head[1:], False),
        (b"\x90\x80\x05" + head, True), (b"\x90", False), (b"\x10", False), (b"", False),
    ]:  # fmt: skip
        assert begins_key_frame("video/VP8", payload) is begins
    assert not begins_key_frame("video/AV1", b"\x10" + head)
