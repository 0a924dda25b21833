"""Content of a real store, through real workers, to a viewer."""

from __future__ import annotations

import asyncio

import pytest
from aiortc.mediastreams import MediaStreamError

from ipfs_stream_nb import samples
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.errors import UnsupportedMediaError
from ipfs_stream_nb.media.worker.limits import WorkerLimits
from ipfs_stream_nb.media.worker.pool import WorkerPool
from ipfs_stream_nb.webrtc.manager import WebRTCStreamingManager
from ipfs_stream_nb.webrtc.slots import PeerLimits
from ipfs_stream_nb.webrtc.tracks import IPFSMediaStreamTrack
from webrtc.viewer import Viewer


@pytest.fixture
async def node(tmp_path):
    async with await EmbeddedNode.open(tmp_path / "repo") as node:
        yield node


async def add(node: EmbeddedNode, data: bytes) -> str:
    async def pieces():
        yield data

    return str((await node.add(pieces())).cid)


async def test_transcoded(node):
    """H.264 with B-frames and AAC, its index at the end: plays, is sought to the picture, and gets smaller when told."""
    cid = await add(node, samples.video(kind="mp4", width=640, height=360, duration=6, faststart=False))
    pool = WorkerPool(WorkerLimits(spare=False))
    manager = WebRTCStreamingManager(node, sources=pool.open, limits=PeerLimits(allow_loopback=True))
    viewer = Viewer()
    try:
        offer = await manager.create_offer(cid)
        pc_id = offer["pc_id"]
        await manager.handle_answer(pc_id, await viewer.answer(offer["sdp"]))
        await viewer.until(lambda: len(viewer.pictures) > 10 and len(viewer.sound) > 10)
        assert viewer.numbers() == list(range(len(viewer.numbers())))
        count = len(viewer.pictures)
        manager.seek(pc_id, 4.5)
        await viewer.until(lambda: any(number >= 135 for number in viewer.numbers()[count:]))
        assert next(number for number in viewer.numbers()[count:] if number > 120) in range(134, 139)
        assert (await manager.get_stats(pc_id))[pc_id]["transport"] == "transcode"
        manager.seek(pc_id, 0)
        manager.set_quality(pc_id, "very_low")
        await viewer.until(lambda: viewer.height == 240)
    finally:
        await viewer.close()
        await manager.close_all_connections()
        await pool.close()


async def test_track_alone(node):
    """The guide's track needs no more than a node and a CID; what is no media ends it with a reason."""
    cid = await add(node, samples.video(kind="webm", width=320, height=180, duration=1))
    track = IPFSMediaStreamTrack(None, node, cid, "audio")
    packets = []
    with pytest.raises(MediaStreamError):
        while True:
            packets.append(await track.recv())
    assert len(packets) == pytest.approx(51, abs=2)
    await track.closed()
    told: list[BaseException] = []
    text = IPFSMediaStreamTrack(None, node, await add(node, b"no media"), on_error=told.append)
    with pytest.raises(MediaStreamError):
        await text.recv()
    assert isinstance(told[0], UnsupportedMediaError)
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
