"""Readers at many places: what they share, how far is read ahead, and what it may cost."""

import asyncio
from contextlib import aclosing

import psutil
import pytest

from ipfs_stream_nb.errors import BadRequestError, BusyError, RetrievalError
from ipfs_stream_nb.media.encoded import Rendition


def head(source, kind="video"):
    """Up to when the packets of a track are made."""
    times = [
        chunk.packets[-1].time
        for (of, *_), shelf in source._shared._shelves.items()
        if of == kind
        for chunk in shelf._chunks.values()
    ]
    return max(times)


def kept(source):
    return sum(shelf._cost for shelf in source._shared._shelves.values())


@pytest.mark.parametrize("position", [0.0, 0.02, 3.3, 7.99, 19.5, 60.0])
async def test_transcode_begins_at_the_position(position, long_clip, open_clip, take, peer):
    """The first frame is a key frame, and the one that is on screen at the position; the last one where it is past the end."""
    source = await open_clip(long_clip)
    assert source.info.duration == pytest.approx(20.0, abs=0.05)
    packets = await take(source, "video", position, count=10)
    assert packets[0].keyframe
    assert packets[0].time == pytest.approx(min(int(position * 25 + 1e-6) / 25, 19.96), abs=1e-4)
    seen = peer.shown(packets, "h264")
    assert [number for _, number, _ in seen] == [round(time * 25) for time, _, _ in seen]
    sound = await take(source, "audio", position, count=1)
    assert not sound or sound[0].time <= position < sound[0].time + 0.02


async def test_passthrough_begins_at_the_key_frame_before(clip, open_clip, take, peer):
    """Packets of the file begin where the file can be decoded from, and go on to its end."""
    source = await open_clip(clip(b_frames=0, duration=6.0, gop=50))
    packets = await take(source, "video", 5.3)
    assert packets[0].time == 4.0
    assert [number for _, number, _ in peer.shown(packets, "h264")] == list(range(100, 150))


async def test_near_readers_share_one_encode(long_clip, open_clip, take):
    """Who comes a little later, or joins what was made, gets the very same packets."""
    source = await open_clip(long_clip)
    both = await asyncio.gather(take(source, "video", count=60), take(source, "video", count=60))
    assert all(one is other for one, other in zip(*both, strict=True))
    later = await take(source, "video", 2.5, count=5)
    assert later[0] is both[0][50]  # the key frame at 2 s


async def test_two_runs_join_at_a_key_frame(long_clip, open_clip, take, peer):
    """A reader from 0 goes on into what a reader from 5.3 s on has had made, without a seam in numbers or times."""
    source = await open_clip(long_clip)
    ahead = await take(source, "video", 5.3, count=60)
    packets = await take(source, "video", count=200)
    assert any(packet is one for packet in packets for one in ahead)
    assert [number for _, number, _ in peer.shown(packets, "h264")] == list(range(200))


async def test_no_more_is_made_than_a_little_ahead(long_clip, open_clip, peer):
    """A reader that stops after one packet has some seconds made, and no more; one that goes on gets the rest."""
    source = await open_clip(long_clip)
    async with aclosing(source.packets("video")) as packets:
        await anext(packets)
        await peer.wait_until(lambda: not any(run.task for run in source._shared._taps._runs))
        made = head(source)
        assert 1.9 <= made < 3
        assert sum([1 async for _ in packets]) == 499


async def test_more_readers_than_places_all_get_on(long_clip, make_pool, open_clip, peer):
    """With two places in the worker, five readers far from each other all play on, each with the right frames."""
    source = await open_clip(long_clip, make_pool(cursors=2, read_ahead_seconds=0.5))

    async def play(position):
        packets = []
        async with aclosing(source.packets("video", position)) as stream:
            async for packet in stream:
                packets.append(packet)
                await asyncio.sleep(0)
                if packet.time > position + 2.2:
                    break
        return packets

    played = await asyncio.gather(*map(play, (0.5, 4.2, 8.6, 12.4, 16.1)))
    assert len(source._shared._taps._runs) <= 2
    for packets in played:
        seen = peer.shown(packets, "h264")
        first = round(packets[0].time * 25)
        assert [number for _, number, _ in seen] == list(range(first, first + len(seen)))


@pytest.fixture
def open_small(make_pool, open_clip):
    """Open bytes in a worker with little room for packets."""
    pool = make_pool(cache_bytes=100_000, read_ahead_bytes=30_000, read_ahead_seconds=0.5)
    return lambda data: open_clip(data, pool)


@pytest.mark.parametrize("options", [{}, {"b_frames": 0, "gop": 100}])
async def test_cache_is_bounded(options, clip, open_small, take, peer):
    """All of a clip is read twice and across, with far less room than it takes: the frames are right, the room is kept."""
    source = await open_small(clip(duration=8.0, **options))
    slow = source.packets("video")
    async with aclosing(slow):
        begun = [await anext(slow) for _ in range(30)]
        packets = await take(source, "video")
        assert kept(source) < 200_000
        assert len(packets) == 200
        rest = [packet async for packet in slow]
    times = [packet.time for packet in begun + rest]
    assert times == pytest.approx([n / 25 for n in range(200)], abs=1e-4)
    assert [number for _, number, _ in peer.shown(begun + rest, "h264")] == list(range(200))
    assert [number for _, number, _ in peer.shown(await take(source, "video"), "h264")] == list(range(200))


async def test_one_worker_for_all_who_open_a_content(make_pool, node, add, clip, take, peer):  # noqa: PLR0917  # what it is run with
    """Opening it twice at once gives one process, which stays as long as one of them needs it, and a moment longer."""
    pool, cid = make_pool(linger_seconds=5.0), await add(clip(b_frames=0))
    first, second = await asyncio.gather(pool.open(node, cid), pool.open(node, f"/ipfs/{cid}"))
    assert first.worker_pid == second.worker_pid
    await first.close()
    await first.close()
    with pytest.raises(RetrievalError, match="closed"):
        await take(first, "video")
    assert len(await take(second, "video")) == 75
    await second.close()
    third = await pool.open(node, cid)
    assert third.worker_pid == first.worker_pid
    await third.close()
    await peer.wait_until(lambda: not psutil.pid_exists(first.worker_pid), 30)


async def test_limits_of_workers_and_renditions(make_pool, node, add, clip, take):
    """One content more than there may be is refused, and so is one rendition more; what is idle makes room."""
    pool = make_pool(workers=1, linger_seconds=30)
    one, other = await add(clip(b_frames=0)), await add(clip(b_frames=0, duration=1.0))
    source = await pool.open(node, one)
    with pytest.raises(BusyError) as caught:
        await pool.open(node, other)
    assert caught.value.retry_after
    streams = [
        source.packets("video", rendition=Rendition(height=height)) for height in (100, 80, 60, 40, 30, 20)
    ]
    for stream in streams:
        await anext(stream)
    with pytest.raises(BusyError, match="renditions"):
        await take(source, "video", rendition=Rendition(height=50))
    await streams[1].aclose()
    await take(source, "video", rendition=Rendition(height=50), count=1)
    for stream in streams:
        await stream.aclose()
    await source.close()
    assert (await pool.open(node, other)).info.duration == pytest.approx(1.0, abs=0.05)


async def test_close_ends_readers(long_clip, open_clip):
    """A reader that waits, and one that does not, end without an error when their source is closed."""
    source = await open_clip(long_clip)
    stream = source.packets("video")
    await anext(stream)
    waiting = asyncio.create_task(anext(source.packets("video", 15.0), None))
    await asyncio.sleep(0)
    await source.close()
    assert await waiting is None
    assert [packet async for packet in stream] == []


@pytest.mark.parametrize("position", [-1.0, float("nan"), float("inf")])
async def test_positions_that_are_none(position, clip, open_clip, take):
    """A position is a number of seconds from 0."""
    with pytest.raises(BadRequestError, match="position"):
        await take(await open_clip(clip()), "video", position)


async def test_spare_worker_stands_ready(make_pool, node, add, clip):
    """After `warm` a content is opened in a process that was there before."""
    pool = make_pool(spare=True)
    await pool.warm()
    ready = pool._spare.result().pid
    assert (await pool.open(node, await add(clip()))).worker_pid == ready
