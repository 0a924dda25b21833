"""A track for live pictures: rather less of them than late ones."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from aiortc.mediastreams import MediaStreamError
from av.frame import Frame
from av.packet import Packet

from ipfs_stream_nb.webrtc.tracks import IPFSMediaStreamTrack

MAX_BEHIND: Final = 0.5
"""Seconds behind its own clock from which on a track skips."""
MAX_SKIP: Final = 10
"""Frames that are skipped at once, where no keyframe is nearer."""


@dataclass(frozen=True, slots=True)
class _Arrived:
    frame: Packet[Any] | Frame
    at: float
    """The loop's time."""
    time: float
    """When it is shown, in seconds of its stream."""

    @property
    def independent(self) -> bool:
        """Whether it can be decoded without those before it."""
        return not isinstance(self.frame, Packet) or self.frame.is_keyframe


class LowLatencyStreamTrack(IPFSMediaStreamTrack):
    """A track that holds `max_buffer_size` frames at most, and catches up when it is behind (guide, "Streaming Performance").

    Frames are taken as they come and given out evenly, up to `jitter_buffer_delay` seconds after the quickest of them would
    have come. When more come than fit, or the next one is more than MAX_BEHIND seconds late, the oldest are skipped: with
    `prioritize_keyframes` all those before the newest keyframe that is there, else MAX_SKIP at most. Packets that build upon
    one that was skipped are skipped as well, since no decoder could show them. `latency` is measured from a frame's arrival
    to its leaving.
    """

    def __init__(
        self,
        *args: Any,
        max_buffer_size: int = 2,
        jitter_buffer_delay: float = 0.1,
        prioritize_keyframes: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.max_buffer_size = max_buffer_size
        self.jitter_buffer_delay = jitter_buffer_delay
        self.prioritize_keyframes = prioritize_keyframes
        self._arrived: deque[_Arrived] = deque()
        self._changed = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._origin: float | None = None
        """The loop's time at which the stream's time 0 would have arrived at the earliest."""
        self._broken = False
        """Whether packets up to the next keyframe are of no use."""
        self._done = False

    async def recv(self) -> Packet[Any] | Frame:
        """The next frame or packet. Raises MediaStreamError at the end."""
        if self.readyState != "live":
            raise MediaStreamError
        if self._reader is None:
            self._reader = asyncio.create_task(self._read(), name="low latency reader")
        while True:
            now = asyncio.get_running_loop().time()
            self._catch_up(now)
            wait = self._wait(now)
            if self.readyState != "live" or (self._done and not self._arrived):
                self.stop()
                raise MediaStreamError
            if wait is not None and wait <= 0:
                arrived = self._arrived.popleft()
                frame = arrived.frame
                self._sent(len(bytes(frame)) if isinstance(frame, Packet) else 0, now - arrived.at)
                return frame
            await self._pause(wait)

    def stop(self) -> None:
        """End the track. Idempotent."""
        super().stop()
        if self._reader is not None:
            self._reader.cancel()
        self._changed.set()

    async def _read(self) -> None:
        source = IPFSMediaStreamTrack(
            self.track, self.ipfs_api, self.cid, self.kind, self.frame_rate,
            sources=self._sources, playback=self.playback, on_error=self._fail,
        )  # fmt: skip
        try:
            while True:
                self._take(await source.recv())
        except MediaStreamError:
            pass
        finally:
            self._done = True
            self._changed.set()
            if source.playback is not self.playback:
                source.stop()
            await source.closed()

    def _take(self, frame: Packet[Any] | Frame) -> None:
        now = asyncio.get_running_loop().time()
        time = float(frame.pts * frame.time_base) if frame.pts is not None and frame.time_base else now
        arrived = _Arrived(frame, now, time)
        if self._origin is None or not 0 <= now - time - self._origin <= MAX_BEHIND:
            self._origin = now - time  # the quickest so far, or the source itself has fallen behind
        if self._broken and not arrived.independent:
            self._frames_dropped += 1
            return
        self._broken = False
        self._arrived.append(arrived)
        if len(self._arrived) > self.max_buffer_size:
            self._skip(len(self._arrived) - self.max_buffer_size)
        self._changed.set()

    def _wait(self, now: float) -> float | None:
        """Seconds until the oldest frame goes out; None without one. A full buffer waits for nothing."""
        if not self._arrived:
            return None
        if self._done or len(self._arrived) >= self.max_buffer_size:
            return 0.0
        assert self._origin is not None  # noqa: S101  # there is a frame
        return self._origin + self._arrived[0].time + self.jitter_buffer_delay - now

    def _catch_up(self, now: float) -> None:
        if self._arrived and self._origin is not None:
            behind = now - (self._origin + self._arrived[0].time)
            if behind > MAX_BEHIND + self.jitter_buffer_delay:
                self._skip(min(len(self._arrived) - 1, MAX_SKIP))

    def _skip(self, count: int) -> None:
        """Skip `count` of the oldest, or with prioritize_keyframes up to the newest keyframe."""
        if self.prioritize_keyframes:
            newest = max((n for n, one in enumerate(self._arrived) if one.independent), default=0)
            if isinstance(self._arrived[0].frame, Packet):
                count = max(count, newest)
        for _ in range(count):
            self._arrived.popleft()
        self._frames_dropped += count
        while count and self._arrived and not self._arrived[0].independent:
            self._arrived.popleft()
            self._frames_dropped += 1
            self._broken = True
        if count and not self._arrived:
            self._broken = True

    async def _pause(self, seconds: float | None) -> None:
        self._changed.clear()
        loop = asyncio.get_running_loop()
        timer = None if seconds is None else loop.call_later(seconds, self._changed.set)
        try:
            await self._changed.wait()
        finally:
            if timer is not None:
                timer.cancel()
