"""Video that is encoded just in time, at what the network carries."""

import asyncio
import itertools
from contextlib import aclosing

import pytest

from ipfs_stream_nb.media.encoded import Aim, Rendition
from rich_clip import rich_clip

LEVEL = Rendition(360, 2_000_000)


@pytest.fixture(scope="module")
def rich():
    return rich_clip(8.0, 640, 360, gop=60, audio=False)


async def take_next(packets, count):
    """So many packets that come next."""
    taken = []
    async for packet in packets:
        taken.append(packet)
        if len(taken) == count:
            break
    return taken


def rate(packets):
    return sum(len(one.data) for one in packets) * 8 / (packets[-1].time - packets[0].time + 1 / 30)


async def test_a_changed_aim_is_followed_in_place(rich, open_clip, peer):
    """The bit rate follows the aim within 0.3 s, down and up, without another key frame."""
    source = await open_clip(rich)
    aim = Aim(2_000_000)
    async with aclosing(source.packets("video", 0.5, LEVEL, aim)) as packets:
        before = await take_next(packets, 60)
        aim.bitrate = 400_000
        await take_next(packets, 9)
        low = await take_next(packets, 45)
        aim.bitrate = 1_200_000
        await take_next(packets, 20)
        high = await take_next(packets, 45)
    assert before[0].time == pytest.approx(0.5, abs=0.02)
    assert [one.keyframe for one in (*before, *low, *high)].count(True) == 1
    assert rate(before[9:]) == pytest.approx(1_600_000, rel=0.2)
    assert rate(low) == pytest.approx(400_000, rel=0.15)
    assert rate(high) == pytest.approx(1_200_000, rel=0.3)


async def test_the_first_picture_is_small(rich, open_clip):
    """Who changes to a lower level because the link has become slow sees nothing until it has come: it takes 70 ms of the rate."""
    source = await open_clip(rich)
    for bitrate in (250_000, 500_000, 1_000_000):
        async with aclosing(source.packets("video", 0.5, Rendition(360, bitrate), Aim(bitrate))) as packets:
            first = await anext(packets)
        assert first.keyframe
        assert len(first.data) * 8 < 0.07 * bitrate


async def test_little_is_made_ahead(rich, open_clip):
    """What is not yet read was hardly encoded: a change of the aim is not preceded by seconds of the old rate."""
    source = await open_clip(rich)
    async with aclosing(source.packets("video", 1.0, LEVEL, Aim(500_000))) as packets:
        taken = await take_next(packets, 30)
        await asyncio.sleep(0.2)  # time in which it could go on
        (shelf,) = (one for one in source._shared._shelves.values() if one.live)
        made = max(chunk.packets[-1].time for chunk in shelf._chunks.values())
    assert made - taken[-1].time < 0.2


async def test_frames_are_left_out(rich, open_clip, peer):
    """An aim's frame rate is followed, without a key frame."""
    source = await open_clip(rich)
    aim = Aim(500_000)
    async with aclosing(source.packets("video", 0.0, LEVEL, aim)) as packets:
        await take_next(packets, 15)
        aim.frame_rate = 15.0
        await take_next(packets, 6)
        half = await take_next(packets, 15)
    gaps = [later.time - one.time for one, later in itertools.pairwise(half)]
    assert gaps == pytest.approx([1 / 15] * 14, abs=1e-3)
    assert not any(one.keyframe for one in half)


async def test_readers_share_what_the_slower_can_receive(rich, open_clip):
    """Two who are near each other get the same packets, at the lower aim; the other's counts again once that one has left."""
    source = await open_clip(rich)
    wide, narrow = Aim(1_500_000), Aim(400_000)
    async with aclosing(source.packets("video", 0.0, LEVEL, wide)) as first:
        async with aclosing(source.packets("video", 0.0, LEVEL, narrow)) as second:
            for _ in range(30):
                one, other = await anext(first), await anext(second)
                assert one is other
            both = await take_next(first, 20)
        await take_next(first, 20)
        alone = await take_next(first, 45)
    assert rate(both) < 700_000
    assert rate(alone) > 1_000_000


async def test_who_comes_later_begins_with_a_picture_of_his_own(rich, open_clip):
    """In the middle between key frames a newcomer does not get all that was before."""
    source = await open_clip(rich)
    async with aclosing(source.packets("video", 0.0, LEVEL, Aim(500_000))) as first:
        await take_next(first, 60)
        async with aclosing(source.packets("video", 1.8, LEVEL, Aim(500_000))) as second:
            packet = await anext(second)
    assert packet.keyframe
    assert packet.time == pytest.approx(1.8, abs=0.02)
