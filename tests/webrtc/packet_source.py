"""An EncodedSource whose file is demuxed here, in memory and in this process: packets of a clip as they stand in it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator
from functools import cache
from typing import Any

import av
from av.bitstream import BitStreamFilterContext

from ipfs_stream_nb import samples
from ipfs_stream_nb.errors import NotFoundError
from ipfs_stream_nb.media.encoded import EncodedInfo, EncodedPacket, EncodedTrack


@cache
def clip(kind: str = "webm", duration: float = 3.0, audio: bool = True, gop: int | None = None) -> bytes:
    """A small clip, made once: VP8 and Opus, or H.264 without B-frames."""
    made = samples.video(
        kind=kind, width=320, height=180, duration=duration, b_frames=0, audio=audio, gop=gop
    )
    assert isinstance(made, bytes)
    return made


@cache
def demuxed(data: bytes) -> tuple[EncodedInfo, dict[str, list[EncodedPacket]]]:
    """What a file has, and its packets by kind."""
    packets: dict[str, list[EncodedPacket]] = {"video": [], "audio": []}
    tracks: dict[str, EncodedTrack | None] = {"video": None, "audio": None}
    with av.open(io.BytesIO(data)) as container:
        streams = [one for one in container.streams if one.codec_context.name in {"vp8", "h264", "opus"}]
        filters: dict[int, BitStreamFilterContext] = {}
        for stream in streams:
            codec: Any = stream.codec_context.name
            video = stream.type == "video"
            rate = float(stream.average_rate) if video else 0.0
            tracks[stream.type] = EncodedTrack(
                stream.type,
                codec,
                codec,
                passthrough=True,
                width=stream.codec_context.width if video else 0,
                height=stream.codec_context.height if video else 0,
                frame_rate=rate,
            )
            if codec == "h264":
                filters[stream.index] = BitStreamFilterContext("h264_mp4toannexb", stream)
        for packet in container.demux(streams):
            if packet.pts is None:
                continue
            kind = packet.stream.type
            usual = 1 / tracks[kind].frame_rate if kind == "video" else 0.02
            base, filter_ = packet.time_base, filters.get(packet.stream.index)
            for one in filter_.filter(packet) if filter_ else [packet]:
                time = max(float(one.pts * base), 0.0)
                packets[kind].append(EncodedPacket(bytes(one), time, usual, keyframe=bool(one.is_keyframe)))
    end = max(one[-1].time + one[-1].duration for one in packets.values() if one)
    return EncodedInfo(round(end, 3), tracks["video"], tracks["audio"]), packets


class PacketSource:
    """A file's packets. `hold` stops them where it is cleared; `failure` is raised at `fail_at` seconds."""

    def __init__(self, data: bytes) -> None:
        self.info, self.all_packets = demuxed(data)
        self.hold = asyncio.Event()
        self.hold.set()
        self.failure: Exception | None = None
        self.fail_at = 0.0
        self.readers = 0
        self.begun: list[tuple[str, float, Any]] = []
        self.closed = 0

    async def packets(
        self, kind: str, position: float = 0.0, rendition: Any = None, aim: Any = None
    ) -> AsyncGenerator[EncodedPacket, None]:
        self.begun.append((kind, position, rendition))
        self.readers += 1
        try:
            every = self.all_packets[kind]
            first = 0
            for number, packet in enumerate(every):
                if packet.time <= position and (packet.keyframe if kind == "video" else True):
                    first = number
            for packet in every[first:]:
                await self.hold.wait()
                if self.failure is not None and packet.time >= self.fail_at:
                    raise self.failure
                yield packet
        finally:
            self.readers -= 1

    async def close(self) -> None:
        self.closed += 1


class Sources:
    """An opener over clips by name; it keeps what it has opened."""

    def __init__(self, **clips: bytes) -> None:
        self.clips = clips
        self.opened: list[PacketSource] = []
        self.wait = asyncio.Event()
        self.wait.set()

    async def __call__(self, _node: Any, path: str) -> PacketSource:
        await self.wait.wait()
        if path not in self.clips:
            raise NotFoundError(f"this node does not have {path}")
        source = PacketSource(self.clips[path])
        self.opened.append(source)
        return source

    def all_closed(self) -> bool:
        """Whether nothing is left open."""
        return all(one.closed and not one.readers for one in self.opened)
