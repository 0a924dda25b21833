"""StreamBuffer: seconds of media, whatever its timestamps begin at."""

from __future__ import annotations

import asyncio
import math
from fractions import Fraction

import pytest
from av import AudioFrame, Packet, VideoFrame
from hypothesis import given
from hypothesis import strategies as st

from ipfs_stream_nb.errors import BadRequestError
from ipfs_stream_nb.media.encoded import EncodedPacket
from ipfs_stream_nb.webrtc.buffer import MAX_FRAMES, StreamBuffer, StreamEndedError


def picture(pts: int | None, rate: int = 30) -> VideoFrame:
    frame = VideoFrame(16, 16, "gray")
    frame.pts, frame.time_base = pts, Fraction(1, rate)
    return frame


async def fill(buffer: StreamBuffer, begin: int, rate: int = 30) -> int:
    """Add frames until adding waits; how many there are."""
    added = 0
    while not buffer.throttle:
        await asyncio.wait_for(buffer.add_frame(picture(begin + added, rate)), 5)
        added += 1
    return added


@pytest.mark.parametrize("begin", [0, 30, 300, 10_000_000])
async def test_length(begin):
    """5 s fit, wherever the stream's time begins (the guide's own took 18, 5 or 1 frames)."""
    buffer = StreamBuffer()
    assert await fill(buffer, begin) == 150
    assert buffer.buffer_duration == pytest.approx(5.0)
    assert list(buffer.frame_durations) == pytest.approx([1 / 30] * 30)


async def test_ready():
    """Reading begins with half a second, and waits for that again once the buffer ran dry."""
    buffer = StreamBuffer()
    reader = asyncio.ensure_future(buffer.get_frame())
    for number in range(14):
        await buffer.add_frame(picture(300 + number))
        assert not buffer.playback_ready
    await buffer.add_frame(picture(314))
    assert buffer.playback_ready
    assert (await reader).pts == 300
    for _ in range(14):
        await buffer.get_frame()
    assert not buffer.playback_ready
    assert buffer.buffer_duration == 0


async def test_throttle():
    """From the maximum on adding waits until less than the target is left."""
    buffer = StreamBuffer(0.5, 1.0, 0.0)
    assert await fill(buffer, 0) == 30
    adding = asyncio.ensure_future(buffer.add_frame(picture(30)))
    for _ in range(15):
        await buffer.get_frame()
        await asyncio.sleep(0)
    assert not adding.done()
    await buffer.get_frame()
    await asyncio.wait_for(adding, 1)
    assert not buffer.throttle


async def test_end():
    """A clip shorter than the minimum plays, and its end is told; adding after it is refused."""
    buffer = StreamBuffer()
    for number in range(10):
        await buffer.add_frame(picture(number))
    reader = asyncio.ensure_future(buffer.get_frame())
    await asyncio.sleep(0)
    buffer.end()
    assert (await reader).pts == 0
    for number in range(1, 10):
        assert (await buffer.get_frame()).pts == number
    for _ in range(2):
        with pytest.raises(StreamEndedError):
            await buffer.get_frame()
    with pytest.raises(StreamEndedError):
        await buffer.add_frame(picture(11))


async def test_error_at_the_end():
    """What a writer failed with is raised after what it has written."""
    buffer = StreamBuffer()
    await buffer.add_frame(picture(0))
    buffer.end(ValueError("broken"))
    assert (await buffer.get_frame()).pts == 0
    with pytest.raises(ValueError, match="broken"):
        await buffer.get_frame()


async def test_close():
    """Closing frees a reader and a writer that wait."""
    buffer = StreamBuffer(0.1, 0.1, 0.0)
    reader = asyncio.ensure_future(buffer.get_frame())
    await asyncio.sleep(0)
    buffer.close()
    with pytest.raises(StreamEndedError):
        await reader
    full = StreamBuffer(0.1, 0.1, 0.0)
    await fill(full, 0)
    writer = asyncio.ensure_future(full.add_frame(picture(9)))
    await asyncio.sleep(0)
    full.close()
    with pytest.raises(StreamEndedError):
        await writer


async def test_durations():
    """A frame's own duration counts, of sound its samples, else the distance to the one before, else what is usual."""
    buffer = StreamBuffer()
    await buffer.add_frame(picture(None))
    await buffer.add_frame(picture(10))
    await buffer.add_frame(picture(16))
    sound = AudioFrame("s16", "stereo", 480)
    sound.sample_rate = 48_000
    await buffer.add_frame(sound)
    packet = Packet(b"x")
    packet.pts, packet.duration, packet.time_base = 0, 90_000, Fraction(1, 90_000)
    await buffer.add_frame(packet)
    await buffer.add_frame(EncodedPacket(b"x", 7.0, 0.25, keyframe=True))
    assert list(buffer.frame_durations) == pytest.approx([1 / 30, 1 / 30, 0.2, 0.01, 1.0, 0.25])


async def test_bounded_without_times():
    """However short frames say that they are, their number is bounded, and they can be read."""
    buffer = StreamBuffer()
    for number in range(MAX_FRAMES):
        await buffer.add_frame(EncodedPacket(b"", number * 1e-9, 1e-9, keyframe=True))
    assert buffer.throttle
    assert buffer.playback_ready


@pytest.mark.parametrize("durations", [(1, 2, 3), (5, 2, 1), (0, 0, 0), (1, math.inf, 0), (2, 5, -1)])
def test_bad_durations(durations):
    """Durations out of order are refused."""
    with pytest.raises(BadRequestError):
        StreamBuffer(*durations)


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(
                st.just("add"),
                st.floats(allow_nan=True, allow_infinity=True),
                st.one_of(st.floats(-1, 10), st.floats()),
            ),
            st.tuples(st.just("get"), st.none(), st.none()),
        ),
        max_size=200,
    ),
    durations=st.sampled_from([(2.0, 5.0, 0.5), (0.5, 1.0, 0.0), (1.0, 1.0, 1.0)]),
)
def test_any_order(steps, durations):
    """Whatever is added and taken: order is kept, the length is that of what is in it, and nobody waits for ever."""

    async def work() -> None:
        buffer = StreamBuffer(*durations)
        written: list[int] = []
        read: list[int] = []
        for number, (step, time, duration) in enumerate(steps):
            if step == "add" and not buffer.throttle:
                await buffer.add_frame(EncodedPacket(b"%d" % number, time, duration, keyframe=True))
                written.append(number)
            elif step == "get" and buffer.buffer and buffer.playback_ready:
                read.append(int((await buffer.get_frame()).data))
            assert buffer.buffer_duration == pytest.approx(sum(one for _, one in buffer.buffer), abs=1e-6)
            assert all(0 < one < math.inf for _, one in buffer.buffer)
            assert buffer.throttle or buffer.buffer_duration < durations[1]
        buffer.end()
        while True:
            try:
                read.append(int((await buffer.get_frame()).data))
            except StreamEndedError:
                break
        assert read == written

    asyncio.run(work())
