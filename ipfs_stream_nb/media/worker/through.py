"""Packets of a file that go out as they are: H.264 without B-frames as Annex B, VP8, Opus."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from typing import Any, Final

import av
from av.audio.stream import AudioStream
from av.bitstream import BitStreamFilterContext
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ipfs_stream_nb.media.decode import BACK_OFFS, check_clear
from ipfs_stream_nb.media.encoded import EncodedPacket
from ipfs_stream_nb.media.source import MediaSource
from ipfs_stream_nb.media.worker.order import CLOCK, Alive, Order, ticks_of

MAX_GOP_SECONDS: Final = 20
"""Seconds between key frames; with more, nobody could join soon, so that video is encoded anew."""
H264_PROFILES: Final = frozenset({"Baseline", "Constrained Baseline", "Main", "High"})
"""What browsers decode."""
TIMED_FORMATS: Final = frozenset({"mov", "matroska", "mpegts", "flv"})
"""Containers that say when each picture is shown; by that it is known that there are no B-frames."""

_SLICE, _IDR, _SPS, _PPS = 1, 5, 7, 8  # NAL unit types, ITU-T H.264 table 7-1
_START_CODE = b"\0\0\1"
_INTERLACED = "interlaced_frame"


class NeedsTranscodeError(Exception):
    """The packets turn out to be none that can go out as they are."""


def takes_h264(stream: VideoStream, source: MediaSource, first: VideoFrame) -> bool:
    """Whether a peer can show this H.264, of which `first` was decoded, with no B-frames seen so far."""
    context = stream.codec_context
    return (
        source.format.split(",")[0] in TIMED_FORMATS
        and str(context.profile) in H264_PROFILES
        and first.format.name in ("yuv420p", "yuvj420p")
        and not getattr(first, _INTERLACED, False)
        and not context.has_b_frames
        and first.width % 2 == first.height % 2 == 0
        and "h264_mp4toannexb" in av.bitstream_filters_available
    )


def video(source: MediaSource, zero: Fraction, order: Order, alive: Alive) -> Iterator[EncodedPacket]:
    """Packets from the key frame at or before the position on; or those that are later than it.

    Raises NeedsTranscodeError where a picture is not shown after the one that was sent before it, or a key frame is too
    far.
    """
    stream = source.video
    base, key, last = stream.time_base or Fraction(1, av.time_base), -1, -1
    usual = ticks_of(1 / Fraction(stream.average_rate)) if stream.average_rate else 0
    annex_b = _AnnexB(stream) if stream.codec_context.name == "h264" else None
    for packet in _from(source, zero, order):
        check_clear(packet)
        pts = packet.pts if packet.pts is not None else packet.dts
        if not packet.size or pts is None or packet.is_corrupt:
            continue
        ticks = ticks_of(pts * base - zero)
        length = ticks_of(packet.duration * base) if packet.duration else usual  # before the filter takes it
        data, keyframe = (bytes(packet), packet.is_keyframe) if annex_b is None else annex_b.of(packet)
        if ticks < 0:
            continue
        if keyframe:
            key = ticks
        if ticks <= last or ticks - max(key, 0) > MAX_GOP_SECONDS * CLOCK:
            raise NeedsTranscodeError
        if key < 0 or not data:
            continue
        last = ticks
        if order.after and ticks <= order.ticks:
            alive()
            continue
        source.reader.progress()
        yield EncodedPacket(data, ticks / CLOCK, max(0, length) / CLOCK, keyframe)


def opus(source: MediaSource, zero: Fraction, order: Order, alive: Alive) -> Iterator[EncodedPacket]:
    """Packets from the one that holds the position on, or from the one after it."""
    stream = source.audio
    base, end = stream.time_base or Fraction(1, av.time_base), -CLOCK
    for packet in _from(source, zero, order):
        check_clear(packet)
        pts = packet.pts if packet.pts is not None else packet.dts
        if not packet.size or pts is None or packet.is_corrupt:
            continue
        length = opus_ticks(bytes(packet)[:2])
        ticks = ticks_of(pts * base - zero)
        begun = ticks > order.ticks if order.after else ticks + length > order.ticks
        if length == 0 or ticks + length <= 0 or not begun or ticks <= end:
            alive()
            continue
        end = ticks
        source.reader.progress()
        yield EncodedPacket(bytes(packet), max(0, ticks) / CLOCK, length / CLOCK, keyframe=True)


def opus_ticks(head: bytes) -> int:
    """How long an Opus packet is, by its first two bytes, on our clock; 0 for what is none (RFC 6716, section 3.1)."""
    if not head:
        return 0
    config, code = head[0] >> 3, head[0] & 3
    if config < 12:
        frame = (900, 1800, 3600, 5400)[config % 4]
    elif config < 16:
        frame = (900, 1800)[config % 2]
    else:
        frame = (225, 450, 900, 1800)[config % 4]
    frames = (1, 2, 2)[code] if code < 3 else (head[1] & 63 if len(head) > 1 else 0)
    return frame * frames if frame * frames <= 10_800 else 0  # 120 ms at most


def _from(source: MediaSource, zero: Fraction, order: Order) -> Iterator[Packet[Any]]:
    """The stream's packets, from a key frame at or before the position on."""
    if order.ticks <= 0:
        source.reopen()
        return source.packets(_of(source, order))
    stream = _of(source, order)
    base = stream.time_base or Fraction(1, av.time_base)
    target = int((Fraction(order.ticks, CLOCK) + zero) / base + Fraction(1, 2))
    for back in BACK_OFFS:
        try:
            source.container.seek(target - int(back / base), stream=stream)
        except av.error.FFmpegError:
            source.reader.raise_failure()
            break
        source.reader.raise_failure()
        packets = source.packets(stream)
        first = next((one for one in packets if one.is_keyframe or not one.size), None)
        if first is None or not first.size:
            continue
        pts = first.pts if first.pts is not None else first.dts
        if pts is not None and ticks_of(pts * base - zero) <= order.ticks:
            return chain((first,), packets)
    source.reopen()
    return source.packets(_of(source, order))


def _of(source: MediaSource, order: Order) -> VideoStream | AudioStream:
    return source.video if order.kind == "video" else source.audio


class _AnnexB:
    """Makes H.264 of any container Annex B, with the parameter sets before each key frame."""

    def __init__(self, stream: VideoStream) -> None:
        self._filter = BitStreamFilterContext("h264_mp4toannexb", stream)
        extra = stream.codec_context.extradata or b""
        self._sets = extra if extra.startswith((_START_CODE, b"\0" + _START_CODE)) else b""

    def of(self, packet: Packet[Any]) -> tuple[bytes, bool]:
        """The picture, and whether decoding can begin there."""
        try:
            data = b"".join(bytes(part) for part in self._filter.filter(packet))
        except av.error.FFmpegError:  # damaged
            return b"", False
        types = nal_types(data)
        if _IDR not in types:
            return data, False
        if _SPS not in types and self._sets:
            data = self._sets + data
        return data, _SPS in types or bool(self._sets)


def nal_types(data: bytes) -> list[int]:
    """The types of the NAL units of a picture in Annex B, up to its first slice."""
    types: list[int] = []
    at = data.find(_START_CODE)
    while 0 <= at < len(data) - 3:
        types.append(data[at + 3] & 31)
        if types[-1] in (_SLICE, _IDR):
            break
        at = data.find(_START_CODE, at + 3)
    return types
