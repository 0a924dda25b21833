"""Any video to what every WebRTC peer decodes: constrained baseline H.264 without B-frames, or VP8; 8-bit 4:2:0, upright, even
sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Final, cast

import av
import numpy as np
import numpy.typing as npt
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import Colorspace, VideoReformatter

from ipfs_stream_nb.errors import CorruptContentError
from ipfs_stream_nb.media.decode import VideoDecoder
from ipfs_stream_nb.media.encoded import EncodedPacket, usual_bitrate
from ipfs_stream_nb.media.picture import Orientation, orientation_of, pixel_aspect
from ipfs_stream_nb.media.source import MediaSource
from ipfs_stream_nb.media.worker.order import CLOCK, Alive, Order, ticks_of

KEYFRAME_SECONDS: Final = 2
"""A key frame stands at each multiple of this on the timeline, so that what was begun at different places joins there."""
LIVE_KEYFRAME_SECONDS: Final = 10
"""The same where it is encoded just in time: a slow link notices each of them."""
LIVE_BUFFER_SECONDS: Final = 0.1
"""What the encoder may be ahead of its bit rate there. So small, x264 follows a change within 0.3 s,
but takes less than it may (MOST_EXTRA)."""
LIVE_FIRST_SHARE: Final = 0.6
"""Of that for the first picture: where a link has become slow, all wait for it, and the next ones make it sharp."""
MOST_EXTRA: Final = 1.25
"""So much more than it may take it is given, as long as it takes less."""
MIN_CHANGE: Final = 0.03
"""Of a bit rate that is followed there,"""
MIN_CHANGE_VP8: Final = 0.2
"""and with VP8, whose encoder must begin anew, with a key frame."""
MAX_FRAME_RATE: Final = 60
"""Frames a second at most; others are left out."""
QUALITY: Final = 23
"""x264's crf, while that takes less than the bit rate."""
MAX_DAMAGED: Final = 2000
"""Packets in a row that cannot be decoded, after which the content counts as damaged."""
MAX_PREROLL: Final = 5000
"""Frames between a key frame and the position that is asked for."""
USED_FRAMES: Final = 15
"""Frames over which it is measured what an encoder takes."""
MIN_AIM: Final = 30_000
"""bit/s that are encoded at least, whatever the network carries."""

_UNSPECIFIED, _BT709, _BT601, _BT2020 = 2, 1, 6, (9, 10)  # matrix coefficients in ITU-T H.273
_PQ = 16  # of transfer characteristics there
_HD_LINES = 720
_LIMITED, _FULL = 1, 2


class Pictures(VideoDecoder):
    """The frames of a video; goes on behind what cannot be decoded."""

    def __init__(self, source: MediaSource, threads: int, alive: Alive) -> None:
        self.damaged = 0
        """Packets that could not be decoded, and frames that came out damaged."""
        self.packets: list[tuple[int | None, int | None]] = []
        """(pts, dts) of the first packets."""
        self._threads, self._alive, self._failed = threads, alive, 0
        super().__init__(source)

    def _set_up(self) -> None:
        super()._set_up()
        context = self.stream.codec_context
        if not context.is_open:
            context.thread_count = self._threads

    def _decode_packet(self, packet: Packet[Any]) -> list[VideoFrame]:
        if len(self.packets) < FIRST_PACKETS and packet.size:
            self.packets.append((packet.pts, packet.dts))
        self._alive()
        try:
            frames = super()._decode_packet(packet)
        except CorruptContentError:
            self.damaged += 1
            self._failed += 1
            if self._failed > MAX_DAMAGED:
                raise
            return []
        if frames:
            self._failed = 0
            self.damaged += sum(frame.is_corrupt for frame in frames)
        return frames


FIRST_PACKETS: Final = 6
"""Packets by whose order it is told whether there are B-frames."""


class Canvas:
    """What decoded frames are brought to: one size, upright, square pixels, even sides, never larger than they were."""

    def __init__(
        self, first: VideoFrame, source: MediaSource, height: int | None = None, codec: str = "h264"
    ) -> None:
        self._exif = source.exif_orientation
        self._orientation = orientation_of(first, self._exif)
        aspect = pixel_aspect(source.video)
        wide, high = Fraction(first.width), Fraction(first.height)
        wide, high = (wide, high / aspect) if aspect >= 1 else (wide * aspect, high)
        if self._orientation.transpose:
            wide, high = high, wide
        if height is not None and height < high:
            wide, high = wide * height / high, Fraction(height)
        self.width, self.height = (max(2, int(side) // 2 * 2) for side in (wide, high))
        self.same = (self.width, self.height) == (
            first.width,
            first.height,
        ) and self._orientation == Orientation()
        """Whether frames have the shape already."""
        wide_range = _matrix(first) in (_BT709, *_BT2020) or first.format.is_rgb
        self.matrix = _BT709 if wide_range and codec != "vp8" else _BT601
        """Of the result, in the numbers of ITU-T H.273; VP8 has BT.601 alone (RFC 6386, section 9.2)."""
        self._reformatter = VideoReformatter()

    def draw(self, frame: VideoFrame) -> VideoFrame:
        """The frame as 8-bit 4:2:0 of limited range."""
        orientation = orientation_of(frame, self._exif)
        width, height = (self.height, self.width) if orientation.transpose else (self.width, self.height)
        drawn = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="yuv420p",
            src_colorspace=_COLORSPACES.get(_matrix(frame), Colorspace.ITU601),
            dst_colorspace=_COLORSPACES[self.matrix],
            src_color_range=_FULL if frame.color_range == _FULL else _LIMITED,
            dst_color_range=_LIMITED,
        )
        bright = getattr(frame, "color_trc", None) == _PQ
        if bright or orientation != Orientation():
            drawn = _redraw(drawn, orientation, bright=bright)
        elif drawn is frame:  # its type and time are ours to set, and the decoder's to read
            drawn = VideoFrame.from_ndarray(frame.to_ndarray(), format="yuv420p")
        return drawn


def _matrix(frame: VideoFrame) -> int:
    """The frame's matrix coefficients; BT.709 for high-definition video that does not say, as browsers take it."""
    said = int(frame.colorspace)
    return _BT709 if said == _UNSPECIFIED and min(frame.width, frame.height) >= _HD_LINES else said


_COLORSPACES = {
    _BT709: Colorspace.ITU709, _BT601: Colorspace.ITU601, 4: Colorspace.FCC, 7: Colorspace.SMPTE240M, 9: 9, 10: 9,
}  # fmt: skip


def _redraw(frame: VideoFrame, orientation: Orientation, *, bright: bool) -> VideoFrame:
    """Turn the planes, and bring the brightness of PQ down to that of a usual screen."""
    packed = cast("npt.NDArray[np.uint8]", frame.to_ndarray())
    size = frame.width * frame.height
    flat = packed.reshape(-1)
    luma = flat[:size].reshape(frame.height, frame.width)
    chroma = flat[size:].reshape(2, frame.height // 2, frame.width // 2)
    planes = [_SDR_OF_PQ[luma] if bright else luma, *chroma]
    turned = [orientation.apply(plane[..., None])[..., 0] for plane in planes]
    height, width = turned[0].shape
    joined = np.concatenate([np.ascontiguousarray(plane).reshape(-1) for plane in turned])
    return VideoFrame.from_ndarray(joined.reshape(height * 3 // 2, width), format="yuv420p")


def _sdr_of_pq() -> npt.NDArray[np.uint8]:
    """Luma of PQ (SMPTE ST 2084) to that of a screen of 100 cd/m² with gamma 2.4; above 203 cd/m² it bends (BT.2408)."""
    signal = np.clip((np.arange(256) - 16) / 219, 0, 1)
    power = signal ** (1 / 78.84375)
    light = 10_000 * (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (
        1 / 0.1593017578125
    )
    relative = light / 203
    bent = (
        relative * (1 + relative / 25) / (1 + relative)
    )  # Reinhard: 203 cd/m² to the middle, 1000 near white
    return np.round(16 + 219 * np.clip(bent, 0, 1) ** (1 / 2.4)).astype(np.uint8)


_SDR_OF_PQ = _sdr_of_pq()


def transcode(decoder: Pictures, order: Order, codec: str, threads: int) -> Iterator[EncodedPacket]:
    """Packets of "h264" or "vp8", of the frame that is on screen at the position, or the first one after it, and of those that follow."""
    encoder: _Encoder | None = None
    for ticks, length, frame in _wanted(decoder, order):
        if encoder is None:
            canvas = Canvas(frame, decoder.source, order.height, codec)
            encoder = _Encoder(decoder, canvas, codec, order, threads)
        packets = encoder.encode(ticks, length, frame)
        del frame
        yield from packets
    if encoder is not None:
        yield from encoder.finish()


def _wanted(decoder: Pictures, order: Order) -> Iterator[tuple[int, int, VideoFrame]]:
    """Frames with their times and lengths on our clock, each later than the one before, no more than MAX_FRAME_RATE and the aim's."""
    scale, rate = decoder.time_base, decoder.stream.average_rate
    usual = ticks_of(1 / Fraction(rate)) if rate else CLOCK // 30
    target = decoder.first + int(Fraction(order.ticks, CLOCK) / scale)
    begun, last, preroll = False, -1, 0
    held: tuple[int, int, VideoFrame] | None = None
    for pts, frame in decoder.frames(target if order.ticks > 0 else None):
        ticks = ticks_of((pts - decoder.first) * scale)
        if ticks < 0:
            continue
        one = ticks, ticks_of(getattr(frame, "duration", 0) * scale) or usual, frame
        if not begun:
            if ticks <= order.ticks:
                held = None if order.after else one
                preroll += 1
                if preroll > MAX_PREROLL:
                    raise CorruptContentError("The content has too few key frames to begin in its middle.")
                decoder.source.reader.progress()
                continue
            begun = True
            if held is not None:
                last = held[0]
                yield held
                held = None
        wanted = order.aim.frame_rate if order.aim is not None else None
        frame_rate = min(wanted or MAX_FRAME_RATE, MAX_FRAME_RATE)
        if _slot(ticks, frame_rate) > _slot(last, frame_rate):
            last = ticks
            yield one
    if held is not None:
        yield held


def _slot(ticks: int, frame_rate: float) -> int:
    """Frames of one slot are too near each other."""
    return math.floor(ticks * frame_rate / CLOCK + 0.5)


class _Encoder:
    def __init__(self, decoder: Pictures, canvas: Canvas, codec: str, order: Order, threads: int) -> None:
        self._canvas, self._source = canvas, decoder.source
        rate = Fraction(decoder.stream.average_rate or 30)
        self._rate = min(max(rate, Fraction(1)), Fraction(MAX_FRAME_RATE)).limit_denominator(1001)
        self._codec, self._aim, self._threads = codec, order.aim, threads
        self._most = order.bitrate or usual_bitrate(canvas.width, canvas.height, float(self._rate))
        self._grid = (KEYFRAME_SECONDS if order.aim is None else LIVE_KEYFRAME_SECONDS) * CLOCK
        self._last = -1
        self._lengths: dict[int, int] = {}
        self._used = 1.0
        """How much of the bit rate was taken lately."""
        self._bitrate = self._wanted_bitrate()
        self._context = self._open()

    def _open(self) -> VideoCodecContext:
        canvas = self._canvas
        context = cast("VideoCodecContext", av.CodecContext.create(_ENCODERS[self._codec], "w"))
        context.width, context.height, context.pix_fmt = canvas.width, canvas.height, "yuv420p"
        context.time_base, context.framerate = Fraction(1, CLOCK), self._rate
        context.gop_size = KEYFRAME_SECONDS * MAX_FRAME_RATE * 10  # key frames are asked for
        context.thread_count = self._threads
        context.color_range = _LIMITED
        context.colorspace = context.color_primaries = context.color_trc = canvas.matrix
        if self._codec == "vp8":
            context.bit_rate = self._bitrate
            context.options = {
                "deadline": "realtime",
                "cpu-used": "8",
                "lag-in-frames": "0",
                "auto-alt-ref": "0",
            }
        else:
            context.max_b_frames = 0
            context.options = {
                "preset": "superfast",
                "tune": "zerolatency",
                "profile": "baseline",
                "forced-idr": "1",
                "maxrate": str(self._most),
                "x264-params": "scenecut=0:repeat-headers=1",
            }
            if self._aim is None:
                context.options |= {"crf": str(QUALITY), "bufsize": str(self._most)}
            else:  # x264 follows changes where it was opened for a constant bit rate
                context.bit_rate = self._most
                context.options |= {"bufsize": str(round(self._most * LIVE_BUFFER_SECONDS))}
                context.options["x264-params"] += f":vbv-init={LIVE_FIRST_SHARE}"
                context.open()
                context.bit_rate = self._bitrate
        return context

    def _wanted_bitrate(self) -> int:
        if self._aim is None:
            return self._most
        extra = min(max(1 / self._used, 1.0), MOST_EXTRA) if self._codec != "vp8" else 1.0
        return round(extra * max(MIN_AIM, min(self._aim.bitrate, self._most)))

    def _follow(self) -> None:
        """Encode at what the network carries now."""
        wanted = self._wanted_bitrate()
        change = abs(wanted - self._bitrate) / self._bitrate
        if self._codec == "vp8" and change > MIN_CHANGE_VP8:
            self._bitrate = wanted
            self._context = self._open()
            self._last = -1
        elif self._codec != "vp8" and change > MIN_CHANGE:
            self._context.bit_rate = self._bitrate = wanted

    def encode(self, ticks: int, length: int, frame: VideoFrame) -> list[EncodedPacket]:
        self._follow()
        picture = self._canvas.draw(frame)
        key = self._last < 0 or ticks // self._grid > self._last // self._grid
        self._last = ticks
        picture.pict_type = PictureType.I if key else PictureType.NONE
        picture.pts, picture.time_base = ticks, Fraction(1, CLOCK)
        self._lengths[ticks] = length
        return self._packets(self._context.encode(picture))

    def finish(self) -> list[EncodedPacket]:
        return self._packets(self._context.encode(None))

    def _packets(self, encoded: list[Packet[Any]]) -> list[EncodedPacket]:
        self._source.reader.progress()
        packets = []
        for packet in encoded:
            ticks = packet.pts or 0
            length = self._lengths.pop(ticks, 0)
            if self._aim is not None and length and not packet.is_keyframe:
                used = packet.size * 8 * CLOCK / (length * min(self._aim.bitrate, self._most))
                self._used += (min(used, 2.0) - self._used) / USED_FRAMES
            packets.append(EncodedPacket(bytes(packet), ticks / CLOCK, length / CLOCK, packet.is_keyframe))
        return packets


_ENCODERS = {"h264": "libx264", "vp8": "libvpx"}
