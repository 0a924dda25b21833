"""Files and events that are meant to do harm: an error for who reads, and nothing left behind."""

import asyncio
import io
import os
import random
import signal
import struct
from contextlib import aclosing, suppress

import psutil
import pytest
from PIL import Image

from ipfs_stream_nb.errors import (
    CorruptContentError,
    IPFSStreamError,
    IsDirectoryError,
    NotFoundError,
    RetrievalError,
    UnsupportedMediaError,
)


def index_bomb(video, count):
    """An MP4 whose index says: `count` samples, all alike."""
    data = bytearray(video)
    sizes, durations, chunks = data.find(b"stsz"), data.find(b"stts"), data.find(b"stsc")
    data[sizes + 8 : sizes + 16] = struct.pack(">II", 1, count)
    data[durations + 12 : durations + 16] = struct.pack(">I", count)
    data[chunks + 16 : chunks + 20] = struct.pack(">I", count)
    return bytes(data)


def picture(side):
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", UnsupportedMediaError),
        (b"Dear reader,\nthis is a letter, not a film.\n" * 400, UnsupportedMediaError),
        (b"ffconcat version 1.0\nfile '/etc/passwd'\n", UnsupportedMediaError),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n", UnsupportedMediaError),
        (picture(64), UnsupportedMediaError),
        (picture(16_000), UnsupportedMediaError),
        (b"\x00\x00\x00\x18ftypisom\0\0\2\0isomiso2" + b"\0" * 500, CorruptContentError),
        (random.Random(1).randbytes(200_000), IPFSStreamError),
    ],
    ids=["empty", "text", "ffconcat", "m3u8", "picture", "huge picture", "mp4 head", "noise"],
)
async def test_what_is_no_media_is_refused(content, error, open_clip):
    """Anything else than media gives an error that a user understands."""
    with pytest.raises(error) as caught:
        await open_clip(content)
    assert "av." not in str(caught.value)


async def test_what_is_no_file_is_refused(pool, node):
    """A directory, and content that is not there."""
    empty = await node.add_directory({})
    with pytest.raises(IsDirectoryError):
        await pool.open(node, str(empty.cid))
    with pytest.raises(NotFoundError):
        await pool.open(node, "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy")


@pytest.mark.parametrize("options", [{"b_frames": 0}, {}, {"kind": "webm"}])
async def test_truncated_file_plays_to_where_it_is_cut(options, clip, open_clip, peer):
    """What is there is given, then an error tells that the rest is missing."""
    data = clip(duration=3.0, **options)
    packets = []
    with pytest.raises(CorruptContentError, match=r"cut short|damaged|ends"):
        source = await open_clip(data[: len(data) * 2 // 3])
        async with aclosing(source.packets("video")) as stream:
            async for packet in stream:
                packets.append(packet)
    if packets:
        numbers = [number for _, number, _ in peer.shown(packets, "h264")]
        assert numbers == list(range(len(numbers)))


async def test_damaged_frames_are_left_out_and_counted(clip, open_clip, take):
    """Holes in the middle of the media data cost some frames, which are counted, and not the rest."""
    data = bytearray(clip(duration=4.0, grain=20))
    for place in range(len(data) // 3, len(data) // 2, 3000):
        data[place : place + 400] = bytes(400)
    source = await open_clip(bytes(data))
    packets = await take(source, "video")
    times = [packet.time for packet in packets]
    assert times == sorted(times)
    assert times[-1] == pytest.approx(3.96, abs=0.01)
    assert source.damaged > 0


async def test_bombs_cost_little(clip, open_clip, take):
    """An index of 2³¹ samples in a few KB is refused, or ends, and the worker's and our own memory stay small."""
    before = psutil.Process().memory_info().rss
    with pytest.raises(IPFSStreamError):
        source = await open_clip(index_bomb(clip(audio=False, b_frames=0), 2**31 - 1))
        async with asyncio.timeout(60):
            await take(source, "video")
    assert psutil.Process().memory_info().rss - before < 64 * 2**20


@pytest.mark.parametrize("when", ["while it works", "while it is idle"])
async def test_killed_worker_is_an_error_and_the_next_opening_works(when, open_cid, add, long_clip, peer):
    """kill -9 in the middle: readers get an error, and who opens the content again gets another worker."""
    cid = await add(long_clip)
    source = await open_cid(cid)
    async with aclosing(source.packets("video")) as stream:
        await anext(stream)
        if when == "while it is idle":
            await peer.wait_until(lambda: not any(run.task for run in source._shared._taps._runs))
        os.kill(source.worker_pid, signal.SIGKILL)
        with pytest.raises(CorruptContentError, match="failed"):
            async for _ in stream:
                pass
    with pytest.raises(CorruptContentError):
        await anext(source.packets("audio"))
    again = await open_cid(cid)
    assert again.worker_pid != source.worker_pid
    assert len([packet async for packet in again.packets("video", 18.0)]) >= 50
    await source.close()


async def test_worker_that_stands_still_is_killed(make_pool, node, add, long_clip):
    """A worker that answers nothing, though it has all bytes, is ended after stall_seconds."""
    pool = make_pool(stall_seconds=5.0)  # a machine may stand still for less
    source = await pool.open(node, await add(long_clip))
    async with aclosing(source.packets("video")) as stream:
        await anext(stream)
        os.kill(source.worker_pid, signal.SIGSTOP)
        with pytest.raises(CorruptContentError, match="stopped"):
            async with asyncio.timeout(60):
                async for _ in stream:
                    pass


async def test_pause_is_no_stall(make_pool, node, add, long_clip):
    """A reader may pause for longer than a worker may stand still, and go on."""
    source = await make_pool(stall_seconds=5.0, read_ahead_seconds=0.2).open(node, await add(long_clip))
    async with aclosing(source.packets("video")) as stream:
        await anext(stream)
        await asyncio.sleep(5.8)
        for _ in range(100):
            await anext(stream)


class FarNode:
    """A node whose reads past a place wait until they are let go, or fail."""

    def __init__(self, node, error=None):
        self._node, self._error = node, error
        self.fixed, self.stat = node.fixed, node.stat
        self.held, self.go = asyncio.Event(), asyncio.Event()
        self.open = True

    async def read(self, path, offset, length):
        if not self.open:
            self.held.set()
            if self._error:
                raise self._error
            await self.go.wait()
        return await self._node.read(path, offset, length)


async def test_waiting_for_bytes_is_no_stall(make_pool, node, add, clip, take):
    """A worker that waits for far bytes longer than it may stand still goes on when they come."""
    pool, far = make_pool(stall_seconds=5.0), FarNode(node)
    source = await pool.open(far, await add(clip(width=480, height=360, grain=30, b_frames=0)))
    far.open = False
    playing = asyncio.create_task(take(source, "video"))
    await far.held.wait()
    await asyncio.sleep(5.8)
    far.go.set()
    assert len(await playing) == 75


async def test_content_that_cannot_be_had(pool, node, add, clip, take):
    """A failed retrieval is told as what it is; the worker lives, and later reads work."""
    far = FarNode(node, RetrievalError("block x could not be had"))
    source = await pool.open(far, await add(clip(width=480, height=360, grain=30, b_frames=0)))
    far.open = False
    with pytest.raises(RetrievalError, match="block x"):
        await take(source, "video")
    far.open = True
    assert len(await take(source, "video")) == 75


async def test_seeks_in_far_content_do_not_pile_up(make_pool, node, add, long_clip):
    """Who leaves while bytes are on their way frees the place in the worker, so that the last seek is served."""
    pool, far = make_pool(cursors=2), FarNode(node)
    source = await pool.open(far, await add(long_clip))
    far.open = False
    for position in range(1, 15):
        stream = source.packets("video", float(position))
        waiting = asyncio.create_task(anext(stream))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await stream.aclose()
    (shelf,) = source._shared._shelves.values()
    assert not shelf._unborn
    far.open = True
    far.go.set()
    async with asyncio.timeout(30), aclosing(source.packets("video", 16.0)) as stream:
        assert (await anext(stream)).time == pytest.approx(16.0)


async def test_hasty_seeks_hold_up_nobody(make_pool, open_clip, long_clip, take, peer):
    """Readers who leave before, while and after their packets are made do not keep others from theirs, nor threads alive."""
    source = await open_clip(long_clip, make_pool(cursors=2))
    moment = random.Random(5)

    async def hop():
        for _ in range(15):
            stream = source.packets("video", moment.random() * 19)
            waiting = asyncio.create_task(anext(stream))
            for _ in range(moment.choice((0, 1, 2, 3, 40))):
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await stream.aclose()

    async with asyncio.timeout(90):
        await asyncio.gather(*(hop() for _ in range(3)), take(source, "video", count=50))
        positions = (0.0, 5.0, 10.0, 15.0)
        played = await asyncio.gather(*(take(source, "video", at, count=30) for at in positions))
    assert [len(packets) for packets in played] == [30] * 4
    worker = psutil.Process(source.worker_pid)
    await peer.wait_until(lambda: worker.num_threads() <= 1 + 2 * (1 + 2 + 2))


@pytest.mark.parametrize("seed", range(4))
async def test_leaving_at_any_time_leaves_nothing(seed, make_pool, node, add, long_clip):
    """Opening, reading and closing are cut off after a random time: no process, file or task stays (see make_pool)."""
    moment = random.Random(seed)
    pool, cid = make_pool(linger_seconds=0.0), await add(long_clip)

    async def play(position):
        source = await pool.open(node, cid)
        try:
            async with aclosing(source.packets("video", position)) as stream:
                async for _ in stream:
                    await asyncio.sleep(0)
        finally:
            await source.close()

    players = [asyncio.create_task(play(position)) for position in (0.0, 3.0, 11.0)]
    for player in players:
        await asyncio.sleep(moment.random() * 0.3)
        player.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.gather(*players, return_exceptions=True)
    await pool.close()
    with pytest.raises(RetrievalError):
        await pool.open(node, cid)
