"""What notebooks/04_adaptive.ipynb plays: our sender and a viewer in this process, over a link that steps; and its recorded run.

`python -m link.notebook_run` makes the recording anew: in tests/, as root, on a machine with nothing else to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aioice.ice
import numpy as np
from aiortc import RTCConfiguration, RTCDataChannel, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from ipfs_stream_nb.clients.webrtc_aiortc import prepare
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.media.worker.pool import WorkerPool
from ipfs_stream_nb.webrtc.manager import WebRTCStreamingManager
from ipfs_stream_nb.widgets.abr_samples import to_columns
from link.emulator import RelayLink
from link.paths import NetworkPath, Scenario
from link.playing import Played, play
from link.scenarios import MEGABIT, QUEUE, RTT, SCENARIOS, UP_RATE
from rich_clip import rich_clip

STEPS = Scenario(
    "steps, in short",
    NetworkPath(((0, 3 * MEGABIT), (3, 0.6 * MEGABIT), (6, 2 * MEGABIT)), RTT / 2, queue_seconds=QUEUE),
    NetworkPath(UP_RATE, RTT / 2),
    duration=12,
)
EVERY = 0.1
"""Seconds between two samples."""
CONNECT_SECONDS = 10
"""Until the first picture, and from one sample to the next at the most; where UDP is not let through there is none."""
RECORDED_SECONDS = 0.1
"""Ago, up to when a link's records are whole."""
RECORDING = Path(__file__).parents[2] / "notebooks" / "data" / "steps.json"
RECORDED_EVERY = 0.2
DIGITS = {"packet_loss": 4, "rtt": 4, "jitter": 4, "queue_delay": 4}
"""Decimals of seconds and shares that are recorded; of bit rates there are none, of all else two."""

Sample = dict[str, Any]


async def run_live(show: Callable[[Sample], None], scenario: Scenario = STEPS) -> None:
    """Play over the scenario's link for as long as it lasts, and `show` each sample, with `time` since it began.

    Raises ConnectionError where this cannot be: without UDP, a network address or Linux.
    """
    addresses = aioice.ice.get_host_addresses(use_ipv4=True, use_ipv6=False)
    if not addresses:
        raise ConnectionError("this machine has no network address")
    if not hasattr(os, "memfd_create"):
        raise ConnectionError("the link's emulator needs Linux")
    async with contextlib.AsyncExitStack() as made:
        folder = Path(made.enter_context(tempfile.TemporaryDirectory()))
        pool = WorkerPool()
        made.push_async_callback(pool.close)
        clip = folder / "clip.mp4"
        await asyncio.gather(asyncio.to_thread(_make, clip, scenario.duration + 3), pool.warm())
        node = await EmbeddedNode.open(folder / "store")
        made.push_async_callback(node.close)
        cid = str((await node.add_path(str(clip))).cid)
        sender = WebRTCStreamingManager(node, sources=pool.open)
        made.push_async_callback(sender.close_all_connections)
        link = await made.enter_async_context(RelayLink(scenario, addresses[0]))
        viewer = _Viewer(link)
        made.push_async_callback(viewer.close)
        await viewer.connect(sender, cid)
        while (sample := await viewer.sample())["time"] < scenario.duration:
            show(sample)


def _make(clip: Path, seconds: float) -> None:
    """What 3 Mbit/s carry as it is, keyframes and all."""
    clip.write_bytes(rich_clip(seconds, 960, 540, bitrate=1_400_000, audio=False))


class _Viewer:
    """A peer that takes what comes, and has the sender tell how it does.

    It says nothing of freezes: after a loss aiortc shows pictures far later than a browser does.
    """

    def __init__(self, link: RelayLink) -> None:
        self._link = link
        self._pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._pc.on("track", self._play)
        self._pc.on("datachannel", self._listen)
        self._track: MediaStreamTrack | None = None
        self._channel: asyncio.Future[RTCDataChannel] = asyncio.get_running_loop().create_future()
        self._told: asyncio.Queue[Sample] = asyncio.Queue()
        self._began: float | None = None
        self._playing: asyncio.Task[None] | None = None

    async def connect(self, sender: WebRTCStreamingManager, cid: str) -> None:
        """Play content; the scenario begins with the first sample."""
        ends = self._link.pairs[0]
        offer = await sender.create_offer(cid, audio=False)
        sdp = ends.server.rewrite_sdp(offer["sdp"])
        await self._pc.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
        prepare(self._pc)
        await self._pc.setLocalDescription(await self._pc.createAnswer())
        await sender.handle_answer(offer["pc_id"], ends.viewer.rewrite_sdp(self._pc.localDescription.sdp))
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                channel = await self._channel
                await self._picture()
        except TimeoutError:
            raise ConnectionError("no media came, so that UDP is not let through here") from None
        self._playing = asyncio.create_task(self._look(), name="viewer")
        channel.send(json.dumps({"type": "watch", "every": EVERY}))

    async def sample(self) -> Sample:
        """What the sender tells next, and what has been seen here."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                told = await self._told.get()
        except TimeoutError:
            raise ConnectionError("the sender tells nothing any more") from None
        if self._began is None:
            self._began = told["time"]
            self._link.begin()
        now = self._link.elapsed - RECORDED_SECONDS
        received = self._link.records.down.bitrate(now - 1, now)
        return told | {"time": told["time"] - self._began, "received_bitrate": received}

    def _play(self, track: MediaStreamTrack) -> None:
        self._track = track

    def _listen(self, channel: RTCDataChannel) -> None:
        channel.on("message", self._take)
        self._channel.set_result(channel)

    def _take(self, text: str) -> None:
        message: Sample = json.loads(text)
        if message["type"] == "quality":
            self._told.put_nowait(message)

    async def _look(self) -> None:
        with contextlib.suppress(MediaStreamError):  # the end
            while True:
                await self._picture()

    async def _picture(self) -> None:
        assert self._track is not None
        await self._track.recv()

    async def close(self) -> None:
        await self._pc.close()
        if self._playing is not None:
            await self._playing


def samples_of(played: Played) -> list[Sample]:
    """What our sender and its viewer saw of a run, in one."""
    viewer, kept = played.viewers[0], list[Sample]()
    at, received, freezes, frozen, *_ = viewer.samples.T
    first = np.searchsorted(at, 0)
    for told in played.samples[0]:
        now = told["at"]
        if not 0 <= now <= played.scenario.duration or (
            kept and now < kept[-1]["time"] + RECORDED_EVERY - 0.05
        ):
            continue
        last, before = (max(int(np.searchsorted(at, when)) - 1, 0) for when in (now, now - 1))
        seconds = max(at[last] - at[before], RECORDED_EVERY)
        kept.append(
            {name: value for name, value in told.items() if name not in {"type", "at"}}
            | {
                "time": now,
                "received_bitrate": 8 * float(received[last] - received[before]) / seconds,
                "frames_per_second": int(((viewer.frames > now - 1) & (viewer.frames <= now)).sum()),
                "freezes": int(freezes[last] - freezes[first]),
                "freeze_seconds": float(frozen[last] - frozen[first]),
            }
        )
    return kept


def write_recording(scenario: Scenario, samples: list[Sample], path: Path) -> None:
    """As JSON: the link's rate as [seconds, bit/s], and a column for each figure."""
    columns = to_columns([{name: _rounded(name, value) for name, value in one.items()} for one in samples])
    rate = json.dumps(scenario.down.rate)
    lines = ",\n".join(f'  "{name}": {json.dumps(values)}' for name, values in columns.items())
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'{{"link": {rate}, "samples": {{\n{lines}\n}}}}\n', "utf-8")


def _rounded(name: str, value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return round(value) if name.endswith(("bitrate", "estimate")) else round(value, DIGITS.get(name, 2))


def record(path: Path = RECORDING) -> None:
    """Run the scenario "steps" between two hosts, and keep what came of it. Raises LinkUnavailableError."""
    scenario = SCENARIOS["steps"]
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder, "clip.mp4")
        clip.write_bytes(rich_clip(scenario.duration + 10))
        played = asyncio.run(play(scenario, "ours", clip, Path(folder, "store")))
    write_recording(scenario, samples_of(played), path)


if __name__ == "__main__":
    record()
