"""GStreamer's webrtcbin, a WebRTC peer that shares no code with ours or a browser's, plays our media on another host."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import numpy as np
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as dial
from yarl import URL

import ipfs_stream_nb as ipfs
from ipfs_stream_nb import samples
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb_server.standalone import StandaloneServer
from two_hosts import Network

PYTHON = "/usr/bin/python3"
PROGRAM = Path(__file__).parents[1] / "gst_viewer.py"
ELEMENTS = (
    "webrtcbin",
    "nicesrc",
    "dtlsdec",
    "srtpdec",
    "rtpvp8depay",
    "vp8dec",
    "avdec_h264",
    "opusdec",
    "sctpdec",
)
NEEDED = f"""
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstWebRTC", "1.0")
from gi.repository import Gst, GstWebRTC
Gst.init(None)
print(*(one for one in {ELEMENTS} if Gst.ElementFactory.find(one) is None))
"""
RATE, GOP, SECONDS_LONG = 30, 15, 3.0
SECONDS = 20


@pytest.fixture(scope="module")
def gstreamer() -> None:
    """Skips the tests with the reason where GStreamer is not there as a whole."""
    if shutil.which(PYTHON) is None:
        pytest.skip(f"there is no {PYTHON}, so no GStreamer with it: `make peers` gets it on Debian")
    found = subprocess.run([PYTHON, "-c", NEEDED], capture_output=True, text=True, timeout=60, check=False)
    if found.returncode:
        pytest.skip("GStreamer's WebRTC for Python is not installed: `make peers` gets it on Debian")
    if missing := found.stdout.strip():
        pytest.skip(f"GStreamer lacks {missing}: `make peers` gets it on Debian")


@pytest.fixture(scope="module")
def network(gstreamer: None) -> Iterator[Network]:
    """A second host: ICE leaves 127.0.0.1 out."""
    network = Network()
    yield network
    network.close()


class Site:
    """A server with a clip in each container."""

    def __init__(self, server: StandaloneServer) -> None:
        self.url, self.token = server.url, server.token
        self.headers = {"Authorization": f"token {self.token}"}
        clip = partial(
            samples.video, width=320, height=180, duration=SECONDS_LONG, frame_rate=RATE, gop=GOP, b_frames=0
        )
        with ipfs.connect(self.url, self.token) as client:
            self.cids = {kind: str(client.add(clip(kind=kind)).cid) for kind in ("mp4", "webm")}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, network: Network) -> Iterator[Site]:
    """The real server, with its workers."""
    with StandaloneServer(partial(EmbeddedNode.open, tmp_path_factory.mktemp("site") / "repo")) as server:
        yield Site(server)


class Viewer:
    """The program on the other host, and what it has told of."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.pictures: list[tuple[float, int | None]] = []
        """The time and the number of each."""
        self.sound: list[tuple[float, float]] = []
        """The time and the loudness of each millisecond."""
        self.messages: list[dict[str, Any]] = []
        self.errors: list[str] = []
        """Why it gave up: after the end it has reason to."""
        self.descriptions: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._process = process
        self._news = asyncio.Event()

    async def read(self) -> None:
        """Take what it tells until it ends."""
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            told = json.loads(line)
            match told["type"]:
                case "picture":
                    data = await self._process.stdout.readexactly(told["bytes"])
                    rows = np.frombuffer(data, np.uint8).reshape(told["height"], -1)
                    number = samples.read_frame_number(rows[:, : told["width"]])
                    self.pictures.append((told["time"], number))
                case "sound":
                    self.sound += [(told["time"] + n / 1000, level) for n, level in enumerate(told["levels"])]
                case "message":
                    self.messages.append(json.loads(told["text"]) | {"label": told["label"]})
                case "error":
                    self.errors.append(told["text"])
                case _:
                    self.descriptions.put_nowait(told)
            self._news.set()

    def tell(self, kind: str, sdp: str) -> None:
        """Give it a description."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"type": kind, "sdp": sdp}).encode() + b"\n")

    async def described(self) -> str:
        """Its own description."""
        return (await asyncio.wait_for(self.descriptions.get(), SECONDS))["sdp"]

    async def until_the_end(self) -> None:
        """Wait for the clip's last picture, or until a late machine has left it out."""
        last = round(SECONDS_LONG * RATE) - 1
        try:
            async with asyncio.timeout(SECONDS):
                while not self._heard_of_playback() or (
                    not (self.pictures and self.pictures[-1][1] == last) and not self._all_heard()
                ):
                    assert not self.errors, self.errors
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            came = f"{self.pictures[-3:]}, {len(self.sound)} ms of sound, {self.messages[-3:]}"
            raise AssertionError(f"the last picture did not come: {came}") from None

    def _heard_of_playback(self) -> bool:
        return any(one["type"] == "playback" for one in self.messages)

    def _all_heard(self) -> bool:
        ended = any(one.get("state") == "ended" for one in self.messages)
        return ended and len(self.sound) >= 1000 * SECONDS_LONG

    @property
    def clicks(self) -> list[float]:
        """When each of them begins."""
        loud = [(time, level > 0.25) for time, level in self.sound]
        found: list[float] = []
        for time, is_loud in loud:
            if is_loud and (not found or time - found[-1] > 0.5):
                found.append(time)
        return found


@asynccontextmanager
async def viewing(network: Network, way: str, codec: str):
    """A viewer that runs until the end of the block."""
    process = await asyncio.create_subprocess_exec(
        *network.prefix, PYTHON, str(PROGRAM), way, codec,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=2**20,
    )  # fmt: skip
    viewer = Viewer(process)
    reading = asyncio.create_task(viewer.read())
    try:
        yield viewer
        process.stdin.close()
        await asyncio.wait_for(reading, SECONDS)
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


def assert_played(viewer: Viewer) -> None:
    """The clip's own pictures in order, none before it is due, and the clicks with the pictures that they belong to."""
    first = viewer.pictures[0][0]
    due: dict[int, float] = {}
    again: list[tuple[float, int]] = []
    for time, number in viewer.pictures:
        if due and number <= max(due):
            again.append((time, number))
        else:
            due[number] = time
    numbers = list(due)
    assert len(numbers) >= 0.6 * SECONDS_LONG * RATE
    for before, number in pairwise(numbers):  # a machine that is late leaves out pictures up to a key one
        assert number == before + 1 or number % GOP == 0
    assert all(time - first > number / RATE - 0.02 for number, time in due.items())
    if (
        again
    ):  # it asked for a picture: that is there at once, made of all since the last one that needs no other
        (began, key), (ended, last) = again[0], again[-1]
        assert [number for _, number in again] == list(range(key, last + 1))
        assert key % GOP == 0
        assert ended - began < 0.2
        assert due[last] <= began
    assert len(viewer.clicks) == SECONDS_LONG
    offsets = [click - due[n * RATE] for n, click in enumerate(viewer.clicks) if n * RATE in due]
    assert abs(median(offsets)) < 0.04
    played = [one for one in viewer.messages if one["type"] == "playback"]
    assert {one["label"] for one in played} == {"ipfs-stream"}
    assert played[0]["duration"] == pytest.approx(SECONDS_LONG, abs=0.05)


async def test_whep(network, site):
    """It offers, and plays what a POST answers: H.264 from the file, Opus made from AAC, and a data channel."""
    async with viewing(network, "offer", "H264") as viewer, aiohttp.ClientSession() as http:
        headers = site.headers | {"Content-Type": "application/sdp"}
        url = f"{site.url}whep/{site.cids['mp4']}"
        async with http.post(url, data=await viewer.described(), headers=headers) as answer:
            assert answer.status == HTTPStatus.CREATED, await answer.text()
            viewer.tell("answer", await answer.text())
            session = URL(url).join(URL(answer.headers["Location"]))
        await viewer.until_the_end()
        async with http.delete(session, headers=site.headers) as answer:
            assert answer.status == HTTPStatus.OK
    assert_played(viewer)


async def test_signaling(network, site):
    """It answers an offer of the signaling socket's, and plays VP8 and Opus from the file."""
    url = f"{site.url.replace('http', 'ws', 1)}ws/webrtc"
    async with (
        viewing(network, "answer", "VP8") as viewer,
        dial(url, additional_headers=site.headers, proxy=None) as link,
    ):
        await link.send(json.dumps({"type": "offer_request", "cid": site.cids["webm"]}))
        offer = await heard(link, "offer")
        viewer.tell("offer", offer["sdp"])
        answer = {"type": "answer", "pc_id": offer["pc_id"], "sdp": await viewer.described()}
        await link.send(json.dumps(answer))
        await heard(link, "connected")
        await viewer.until_the_end()
    assert_played(viewer)


async def heard(link: ClientConnection, kind: str) -> dict[str, Any]:
    """The next message of a type."""
    async with asyncio.timeout(SECONDS):
        while True:
            message = json.loads(await link.recv())
            assert message["type"] != "error", message
            if message["type"] == kind:
                return message
