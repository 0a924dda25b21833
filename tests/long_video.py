"""Long clips out of short ones, without encoding them again."""

from __future__ import annotations

import io
from pathlib import Path

import av

GAP = 0.1  # the sound is a little longer than the picture


def looped(path: Path, small: bytes, seconds: float, copies: int, **muxer: str) -> Path:
    """The clip `small` of so many seconds again and again; `muxer` are options such as movflags."""
    with av.open(io.BytesIO(small)) as source, av.open(str(path), "w", options=muxer) as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        packets = [packet for packet in source.demux() if packet.size]
        for copy in range(copies):
            for packet in packets:
                shift = round(copy * (seconds + GAP) / packet.time_base)
                again = av.Packet(bytes(packet))
                again.pts, again.dts, again.time_base = (
                    packet.pts + shift,
                    packet.dts + shift,
                    packet.time_base,
                )
                again.duration, again.is_keyframe = packet.duration, packet.is_keyframe
                again.stream = streams[packet.stream.index]
                target.mux(again)
    return path
