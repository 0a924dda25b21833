"""Workers over a real store, and what is left of them at the end of each test: nothing."""

import asyncio
import os
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import psutil
import pytest

from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.media.worker.limits import WorkerLimits
from ipfs_stream_nb.media.worker.pool import WorkerPool
from ipfs_stream_nb.samples import read_frame_number

LIMITS = WorkerLimits(spare=False, linger_seconds=0.2)


@pytest.fixture
async def node(tmp_path):
    """An empty store."""
    async with await EmbeddedNode.open(tmp_path / "repo") as node:
        yield node


@pytest.fixture
async def make_pool(node):
    """Pools with limits; when they are closed there are no more processes, open files or tasks than before."""
    children, files, tasks = _left()
    pools = []

    def clean():
        now = _left()
        return now[0] <= children and len(now[1]) <= len(files) and now[2] <= tasks

    def make(**limits):
        pools.append(WorkerPool(replace(LIMITS, **limits)))
        return pools[-1]

    yield make
    for pool in pools:
        await pool.close()
    try:
        await wait_until(clean)
    except TimeoutError:
        assert _left() == (children, files, tasks)


@pytest.fixture
def pool(make_pool):
    return make_pool()


@pytest.fixture
def add(node):
    """Add bytes; gives the CID as text."""

    async def add(data):
        async def pieces():
            for place in range(0, len(data), 2**20):
                yield data[place : place + 2**20]

        return str((await node.add(pieces())).cid)

    return add


@pytest.fixture
def open_clip(pool, node, add):
    """Open bytes in a worker."""

    async def open_clip(data, using=None):
        return await (using or pool).open(node, await add(data))

    return open_clip


@pytest.fixture
def open_cid(pool, node):
    """Open a CID in a worker."""
    return lambda cid: pool.open(node, cid)


@pytest.fixture
def take():
    """Packets of a track: all, or the first few."""

    async def take(source, kind, position=0.0, rendition=None, *, count=None):
        taken = []
        async with aclosing(source.packets(kind, position, rendition)) as packets:
            async for packet in packets:
                taken.append(packet)
                if len(taken) == count:
                    break
        return taken

    return take


def _left():
    tasks = {task for task in asyncio.all_tasks() if "worker" in repr(task.get_coro())}
    return set(psutil.Process().children()), sorted(os.listdir("/proc/self/fd")), tasks  # noqa: PTH208


async def wait_until(true, seconds=20.0):
    """Look until something holds."""
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 - other processes set no event
            await asyncio.sleep(0.01)


def shown(packets, codec):
    """Decode packets as a peer does: (time of the packet, frame number on the picture, type of picture) of each."""
    decoder = av.CodecContext.create(codec, "r")
    decoder.thread_count = 1
    found = []
    for number, packet in enumerate(packets):
        one = av.Packet(packet.data)
        one.pts = number
        found += decoder.decode(one)
    found += decoder.decode(None)
    return [
        (
            packets[frame.pts].time,
            read_frame_number(frame.to_ndarray(format="rgb24")),
            av.video.frame.PictureType(frame.pict_type).name,
        )
        for frame in found
    ]


def heard(packets):
    """Decode Opus as a peer does: (n, 2) samples at 48 kHz, each packet at its own time."""
    decoder = av.CodecContext.create("libopus", "r")
    decoder.sample_rate, decoder.layout = 48_000, "stereo"
    last = packets[-1]
    sound = np.zeros((round((last.time + last.duration) * 48_000) + 960, 2), np.float32)
    for packet in packets:
        for frame in decoder.decode(av.Packet(packet.data)):
            samples = frame.to_ndarray()
            samples = samples.reshape(-1, 2) if samples.shape[0] == 1 else samples.T
            at = round(packet.time * 48_000)
            sound[at : at + len(samples)] = samples if samples.dtype.kind == "f" else samples / 32768
    return sound


def clicks(sound):
    """When clicks begin, in seconds."""
    loud = np.flatnonzero(np.abs(sound).max(axis=1) > 0.35)
    return [] if not len(loud) else [loud[0] / 48_000, *(loud[1:][np.diff(loud) > 4800] / 48_000)]


@pytest.fixture
def peer():
    """What a peer makes of packets."""

    class Peer:
        pass

    Peer.shown, Peer.heard, Peer.clicks = staticmethod(shown), staticmethod(heard), staticmethod(clicks)
    Peer.wait_until = staticmethod(wait_until)
    return Peer


@pytest.fixture(scope="session")
def long_clip(tmp_path_factory):
    """20 s of 320 × 180 with B-frames and sound: all of it must be transcoded."""
    from ipfs_stream_nb import samples  # noqa: PLC0415

    path = tmp_path_factory.mktemp("long") / "clip.mp4"
    samples.video(path, width=320, height=180, duration=20.0, frame_rate=25, faststart=False)
    return Path(path).read_bytes()
