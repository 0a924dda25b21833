"""Tracks as the guide names them, taken by hand as aiortc takes them."""

from __future__ import annotations

import asyncio
import math
import statistics
from fractions import Fraction
from itertools import pairwise

import av
import pytest
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from av import Packet, VideoFrame

from ipfs_stream_nb.errors import BadRequestError, NotFoundError
from ipfs_stream_nb.media.encoded import Aim
from ipfs_stream_nb.samples import read_frame_number
from ipfs_stream_nb.webrtc.low_latency import LowLatencyStreamTrack
from ipfs_stream_nb.webrtc.playback import Playback
from ipfs_stream_nb.webrtc.tracks import IPFSMediaStreamTrack
from webrtc.packet_source import PacketSource, Sources, clip
from webrtc.viewer import wait_until

pytestmark = pytest.mark.usefixtures("own_time")

NODE = object()


class Scripted(MediaStreamTrack):
    """Gives (delay in seconds, frame) one after the other, then ends."""

    kind = "video"

    def __init__(self, script):
        super().__init__()
        self.script = list(script)

    async def recv(self):
        if not self.script:
            raise MediaStreamError
        delay, frame = self.script.pop(0)
        if delay:
            await asyncio.sleep(delay)
        return frame


def packet(number: int, *, keyframe: bool = False) -> Packet:
    made = Packet(b"%d" % number)
    made.pts, made.time_base, made.is_keyframe = number * 3000, Fraction(1, 90_000), keyframe
    return made


def picture(number: int) -> VideoFrame:
    frame = VideoFrame(16, 16, "gray")
    frame.pts, frame.time_base = number * 3000, Fraction(1, 90_000)
    return frame


@pytest.mark.parametrize(("cid", "codec"), [("webm", "vp8"), ("mp4", "h264")])
async def test_packets(sources: Sources, cid, codec):
    """Packets in RTP's clock that decode to the clip's frames, in order and in real time; opened only when asked for."""
    track = IPFSMediaStreamTrack(ipfs_api=NODE, cid=cid, sources=sources)
    assert not sources.opened
    assert (track.kind, track.frame_rate, track.cid, track.ipfs_api) == ("video", 30, cid, NODE)
    decoder, numbers = av.CodecContext.create(codec, "r"), []
    started = asyncio.get_running_loop().time()
    for number in range(15):
        got = await track.recv()
        assert got.time_base == Fraction(1, 90_000)
        assert got.pts == pytest.approx(number * 3000, abs=60)
        assert got.is_keyframe == (number == 0)
        numbers += [read_frame_number(one.to_ndarray(format="rgb24")) for one in decoder.decode(got)]
    numbers += [read_frame_number(one.to_ndarray(format="rgb24")) for one in decoder.decode(None)]
    assert numbers == list(range(15))
    assert asyncio.get_running_loop().time() - started > 14 / 30 - 0.05  # later on a busy machine
    stats = track.get_stats()
    assert stats["frames_sent"] == 15
    assert stats["frames_dropped"] == 0
    assert 0 <= stats["latency"] < 1
    assert stats["bitrate"] == stats["bytes_sent"] * 8 > 0
    track.stop()
    track.stop()
    await track.closed()
    assert sources.all_closed()
    with pytest.raises(MediaStreamError):
        await track.recv()


async def test_audio_and_end(sources: Sources):
    """Sound is in 48 kHz; after the last packet the track has ended, and what it opened is closed."""
    track = IPFSMediaStreamTrack(ipfs_api=NODE, cid="webm", kind="audio", sources=sources)
    track.playback = Playback(await sources(NODE, "webm"), ("audio",), position=2.9)
    got = [await track.recv()]
    with pytest.raises(MediaStreamError):
        while True:
            got.append(await track.recv())
    assert {one.time_base for one in got} == {Fraction(1, 48_000)}
    assert [b.pts - a.pts for a, b in pairwise(got)] == [960] * (len(got) - 1)
    assert len(got) == 6
    assert track.readyState == "ended"
    await track.playback.close()


async def test_errors(sources: Sources):
    """What cannot be opened ends the track; the reason is told once, and kept."""
    told: list[BaseException] = []
    track = IPFSMediaStreamTrack(ipfs_api=NODE, cid="missing", sources=sources, on_error=told.append)
    for _ in range(2):
        with pytest.raises(MediaStreamError):
            await track.recv()
    assert len(told) == 1
    assert isinstance(told[0], NotFoundError)
    assert track.error is told[0]
    assert track.readyState == "ended"


async def test_stop_while_opening(sources: Sources):
    """A track that is stopped while its content is opened closes it again."""
    sources.wait.clear()
    track = IPFSMediaStreamTrack(ipfs_api=NODE, cid="webm", sources=sources)
    taking = asyncio.ensure_future(track.recv())
    await asyncio.sleep(0)
    track.stop()
    sources.wait.set()
    with pytest.raises(MediaStreamError):
        await taking
    await track.closed()
    assert sources.all_closed()


async def test_relay():
    """A track can be given instead of content."""
    track = IPFSMediaStreamTrack(Scripted([(0, picture(0)), (0, packet(1))]))
    assert (await track.recv()).pts == 0
    assert bytes(await track.recv()) == b"1"
    with pytest.raises(MediaStreamError):
        await track.recv()
    assert track.get_stats()["frames_sent"] == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"cid": "webm"},
        {"kind": "smell"},
        {"frame_rate": 0},
        {"frame_rate": float("nan")},
        {"frame_rate": "30"},
    ],
)
def test_bad_arguments(wrong):
    """A track without anything to play, or of no kind, is refused at once."""
    playback = Playback(PacketSource(clip()), ("video",)) if wrong and "cid" not in wrong else None
    with pytest.raises(BadRequestError):
        IPFSMediaStreamTrack(**wrong, playback=playback)


# -- low latency


async def drain(track, delay: float = 0.0) -> list:
    got = []
    with pytest.raises(MediaStreamError):
        while True:
            got.append(await track.recv())
            if delay:
                await asyncio.sleep(delay)
    return got


async def test_low_latency_defaults(sources: Sources):
    """The guide's attributes, over content: frames come at their pace, and their way through is measured."""
    track = LowLatencyStreamTrack(ipfs_api=NODE, cid="webm", sources=sources)
    assert (track.max_buffer_size, track.jitter_buffer_delay, track.prioritize_keyframes) == (2, 0.1, True)
    numbers = [round((await track.recv()).pts / 3000) for _ in range(20)]
    assert numbers == list(range(20)) or track.get_stats()["frames_dropped"]  # on a busy machine
    assert 0 < track.get_stats()["latency"] < 1
    track.stop()
    await wait_until(sources.all_closed)


def assert_even(times: list[float]) -> None:
    """Most gaps are 1/30 s, though a busy machine may delay some. They come as 0 and 2/30 by turns, so that
    the median is one of these where nothing evens them out."""
    gaps = [b - a for a, b in pairwise(times)]
    assert len(gaps) % 2
    assert 0.01 < statistics.median(gaps) < 0.055


async def test_jitter_is_evened_out():
    """Frames that come unevenly go out evenly, up to the delay late."""
    script = [(0.0, picture(0)), *((0.0 if n % 2 else 2 / 30, picture(n)) for n in range(1, 20))]
    track = LowLatencyStreamTrack(Scripted(script), max_buffer_size=8)
    loop, times = asyncio.get_running_loop(), []
    with pytest.raises(MediaStreamError):
        while True:
            await track.recv()
            times.append(loop.time())
    assert_even(times[1:13])
    assert track.get_stats()["frames_dropped"] == 0


async def test_pictures_are_skipped():
    """A slow taker gets the newest pictures; what is skipped is counted."""
    track = LowLatencyStreamTrack(Scripted([(0.01, picture(n)) for n in range(40)]))
    got = await drain(track, 0.05)
    numbers = [one.pts // 3000 for one in got]
    assert numbers == sorted(numbers)
    assert 2 < len(numbers) < 35
    assert numbers[-1] == 39
    assert track.get_stats()["frames_dropped"] == 40 - len(numbers)
    assert track.get_stats()["latency"] < 0.5  # without it, up to 1.6


@pytest.mark.parametrize("prioritize", [True, False])
async def test_packets_are_skipped_to_a_keyframe(prioritize):
    """After packets were skipped the next one is a keyframe: no decoder gets one that builds upon what is not there."""
    track = LowLatencyStreamTrack(
        Scripted([(0.005, packet(n, keyframe=n % 10 == 0)) for n in range(60)]),
        prioritize_keyframes=prioritize,
    )
    numbers = [int(bytes(one)) for one in await drain(track, 0.03)]
    assert len(numbers) < 50
    for before, after in pairwise(numbers):
        assert after == before + 1 or after % 10 == 0
    assert track.get_stats()["frames_dropped"] == 60 - len(numbers)


@pytest.mark.parametrize("keyframe", [None, 15])
async def test_catches_up(keyframe):
    """A taker that comes back 0.8 s late finds ten pictures skipped, or all before the newest keyframe, and then the
    rest at once."""
    make = picture if keyframe is None else lambda n: packet(n, keyframe=n in {0, keyframe})
    track = LowLatencyStreamTrack(Scripted([(1 / 30, make(n)) for n in range(40)]), max_buffer_size=60)
    assert (await track.recv()).pts == 0
    await asyncio.sleep(0.8)
    await wait_until(lambda: len(track._arrived) > 16)  # on a busy machine they take longer
    began = asyncio.get_running_loop().time()
    assert (await track.recv()).pts // 3000 == (keyframe or 11)
    assert track.get_stats()["frames_dropped"] == (keyframe or 11) - 1
    await track.recv()
    await track.recv()
    assert asyncio.get_running_loop().time() - began < 0.5
    track.stop()


async def test_source_falls_behind():
    """Where the source itself stood still for a second its frames are evened out as before, and none is skipped."""
    late = [(1.0, picture(2)), *((0.0 if n % 2 else 2 / 30, picture(n)) for n in range(3, 20))]
    track = LowLatencyStreamTrack(Scripted([(0, picture(0)), (0, picture(1)), *late]), max_buffer_size=8)
    loop, times = asyncio.get_running_loop(), []
    with pytest.raises(MediaStreamError):
        while True:
            await track.recv()
            times.append(loop.time())
    assert track.get_stats()["frames_dropped"] == 0
    assert_even(times[3:13])


@pytest.mark.parametrize(
    "wrong",
    [{"height": 0}, {"height": -1}, {"height": 1.5}, {"height": True}, {"height": "x"}, {"height": 10**9},
     {"bitrate": math.nan}, {"bitrate": 1e30}, {"bitrate": 10**12}, {"bitrate": -5}, {"bitrate": 500.5},
     {"frame_rate": 0}, {"frame_rate": -5}, {"frame_rate": math.nan}, {"frame_rate": 1e30}, {"frame_rate": "x"}],
    ids=repr,
)  # fmt: skip
async def test_encodings_that_cannot_be(wrong):
    """They are refused where they are asked for, by name, and the track plays on."""
    source = PacketSource(clip())
    playback = Playback(source, ("video",))
    track = IPFSMediaStreamTrack(kind="video", playback=playback)
    with pytest.raises(BadRequestError, match=next(iter(wrong))):
        track.set_encoding_parameters(**wrong)
    assert (await track.recv()).is_keyframe
    track.stop()
    await playback.close()


async def test_an_encoding_before_the_content_is_open():
    """It is kept, and holds from the first packet on."""
    sources = Sources(clip=clip())
    track = IPFSMediaStreamTrack(ipfs_api=object(), cid="clip", sources=sources)
    track.set_encoding_parameters(height=90, bitrate=100_000)
    await track.recv()
    assert track.playback.renditions.aim == Aim(100_000)
    track.stop()
    await track.closed()
    with pytest.raises(BadRequestError):
        IPFSMediaStreamTrack(ipfs_api=object(), cid="clip", kind="audio").set_encoding_parameters(
            bitrate=64_000
        )
