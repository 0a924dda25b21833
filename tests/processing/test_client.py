"""The clients' `process`."""

import asyncio
import os
import signal
from functools import partial

import pytest
from tqdm import tqdm

import ipfs_stream_nb as ipfs
from far_client import connected
from ipfs_stream_nb import samples
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.errors import BadRequestError
from ipfs_stream_nb_server.standalone import StandaloneServer


def test_a_video_in_a_notebook(tmp_path, clip):
    """The blocking client makes WebM of a video, which plays through its own frames; a bar of the caller's moves."""
    with ipfs.connect(repo=tmp_path / "repo") as client:
        cid = client.add(clip(), name="clip.mp4", progress=False)
        with tqdm(disable=True) as bar:
            result = client.process(cid, "transcode", progress=bar, height=60)
            assert bar.total == client.stat(cid).size
        shown = client.frames(result["cid"])
        assert shown.array.shape == (50, 60, 80, 3)
        assert client.info(result["cid"]).format == "webm"
        assert client.frames(result["cid"], 1.5, count=1).times[0] == pytest.approx(1.48, abs=0.041)
        with pytest.raises(BadRequestError, match="no option 'width'"):
            client.process(cid, "transcode", width=60)


async def test_over_http(tmp_path):
    """Through a server alone, content is read and results are added over HTTP."""
    with StandaloneServer(partial(EmbeddedNode.open, tmp_path / "repo")) as server:
        async with connected(server.url, server.token) as client:
            cid = await client.add(samples.image(), progress=False)
            result = await client.process(cid, "thumbnail", width=100, progress=False)
            assert (await client.info(result["cid"])).video.width == 100
            assert [pin.name for pin in await client.pins()][-1].endswith("-thumbnail.jpg")
        await asyncio.sleep(0)


async def test_events_go_where_the_client_sends_them(tmp_path):
    """Each step is given to the client's emitter, under the task's name."""
    async with ipfs.connect_async(repo=tmp_path / "repo") as client:
        told = []
        cid = await client.add(b"x", progress=False)

        def emit(kind, data, **_options):
            told.append((kind, data["task_id"], data["status"]))

        client._reports.reporter.emit = emit
        await client.process(cid, "checksums", task_id="mine", progress=False)
        assert set(told) == {("system_info", "mine", s) for s in ("starting", "processing", "completed")}


def test_ctrl_c_ends_a_transcode(tmp_path, clip, monkeypatch):
    """Ctrl-C in a cell ends the work at once, with its event, and the client goes on."""
    with ipfs.connect(repo=tmp_path / "repo") as client:
        statuses = []

        def emit(_kind, data, **_options):
            statuses.append(data["status"])
            if statuses == ["starting", "processing"]:
                os.kill(os.getpid(), signal.SIGINT)

        cid = client.add(clip(width=640, height=480, duration=3.0, grain=20), progress=False)
        client._session.client._reports.reporter.emit = emit
        pins = len(client.pins())
        # so that it is not done before this thread hears of the signal
        monkeypatch.setattr(EmbeddedNode, "add", lambda *_args, **_options: asyncio.Event().wait())
        with pytest.raises(KeyboardInterrupt):
            client.process(cid, "transcode", progress=False)
        assert statuses[-1] == "cancelled"
        assert len(client.pins()) == pins
        assert client.process(cid, "checksums", progress=False)["cid"] == str(cid)
