"""A viewer by aiortc: answers offers, decodes what comes, and reads the frame numbers that the samples burn in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError

from ipfs_stream_nb.clients.webrtc_aiortc import prepare
from ipfs_stream_nb.samples import read_frame_number
from ipfs_stream_nb.webrtc.ice import mend

SECONDS = 10


async def wait_until(true: Callable[[], Any], seconds: float = SECONDS) -> None:
    """Wait for what nothing tells of."""
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110  # see above
            await asyncio.sleep(0.01)


class Viewer:
    """What arrives: `pictures` as (loop's time, frame number, pts), `sound` as (loop's time, pts, whether a click begins)."""

    def __init__(self, *, feedback: bool = False) -> None:
        """`feedback`: tell when packets came."""
        self.feedback = feedback
        self.pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.pictures: list[tuple[float, int, int]] = []
        self.height = 0
        self.sound: list[tuple[float, int, float]] = []
        self.messages: list[dict[str, Any]] = []
        self.tracks: list[Any] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()
        self.pc.on("track", self._on_track)
        self.pc.on("datachannel", self._on_channel)

    def _on_track(self, track: Any) -> None:
        self.tracks.append(track)
        task = asyncio.ensure_future(self._watch(track))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _on_channel(self, channel: Any) -> None:
        self.channel = channel

        @channel.on("message")
        def _on_message(message: str) -> None:
            self.messages.append(json.loads(message))
            self._news.set()

    async def _watch(self, track: Any) -> None:
        loop = asyncio.get_running_loop()
        with suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                if track.kind == "video":
                    self.height = frame.height
                    number = read_frame_number(frame.to_ndarray(format="rgb24"))
                    self.pictures.append((loop.time(), number, frame.pts))
                else:
                    loudest = float(np.abs(frame.to_ndarray()).max()) / 32768
                    self.sound.append((loop.time(), frame.pts, loudest))
                self._news.set()

    async def answer(self, sdp: str) -> str:
        """Take an offer; the answer."""
        await self.pc.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
        if self.feedback:
            prepare(self.pc)
        mend(self.pc)  # or one that is closed while it connects would leave a task
        await self.pc.setLocalDescription()
        return self.pc.localDescription.sdp

    async def until(self, true: Callable[[], Any], seconds: float = SECONDS) -> Any:
        """Wait until something that came makes it true; what it gave."""
        async with asyncio.timeout(seconds):
            while not (found := true()):
                self._news.clear()
                await self._news.wait()
        return found

    def numbers(self) -> list[int]:
        """The frame numbers so far."""
        return [number for _, number, _ in self.pictures]

    async def close(self) -> None:
        await self.pc.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
