"""Decoding from any place of a stream on, exact to the frame: seek to the keyframe before it, decode on from there.

Times here are the stream's own time stamps (pts): integers, in units of its `time_base`.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, ClassVar, Generic, TypeVar, cast

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ipfs_stream_nb.errors import UnsupportedMediaError
from ipfs_stream_nb.media.source import MediaSource

FrameT = TypeVar("FrameT", VideoFrame, AudioFrame)

MAX_DECODE_THREADS = 8
"""Threads of one video decoder at most: each holds a frame, and takes a packet more before the first frame comes."""
BACK_OFFS = (0, 1, 5, 30)
"""Seconds before the target to seek to, in turns, until what is decoded there does not begin behind the target."""

# Where a frame can only be decoded after all those before it.
_NEVER_SEEK = frozenset({"gif", "apng"})
# Where the container has no time stamps for showing, so that the first one is known when it is decoded.
_GUESSED_TIMES = frozenset({"avi"})


class _Decoder(Generic[FrameT]):
    """Decodes one stream; `frames` may be called again and again, and ends what an earlier call gave."""

    preroll: ClassVar[Fraction] = Fraction(0)
    """Seconds that are decoded before the target, and dropped by the caller, for the decoder to settle."""

    def __init__(self, source: MediaSource) -> None:
        self.source = source
        self.time_base = self.stream.time_base or Fraction(1, av.time_base)
        self.landed: int | None = None
        """Where the last call of `frames` began to decode; None is the beginning."""
        self._fresh = True

    @property
    def stream(self) -> VideoStream | AudioStream:
        raise NotImplementedError

    def frames(self, target: int | None = None) -> Iterator[tuple[int, FrameT]]:
        """(pts, frame) in the order of showing, from the frame that is on at `target`, or an earlier one, on.

        None stands for the beginning. The frames before the target are needed to decode it; drop them.
        """
        if target is not None and not self.source.is_image:
            for seconds in BACK_OFFS:
                found = self._seek(target - math.floor((seconds + self.preroll) / self.time_base), target)
                if found is not None:
                    return found
        if not self._fresh:
            self.source.reopen()
        self.landed = None
        return self._decode()

    def end(self) -> int | None:
        """The pts at which the stream ends, as the container tells; None if it does not."""
        stream, container = self.stream, self.source.container
        if stream.duration and stream.duration > 0:
            return (stream.start_time or 0) + stream.duration
        if container.duration and container.duration > 0:
            seconds = Fraction((container.start_time or 0) + container.duration, av.time_base)
            return math.ceil(seconds / self.time_base)
        return None

    def scan_end(self) -> int | None:
        """The pts at which the stream ends, found by reading all its packets without decoding them."""
        if not self._fresh:
            self.source.reopen()
        self._fresh = False
        end: int | None = None
        for packet in self.source.packets(self.stream):
            if packet.pts is not None:
                end = max(end or 0, packet.pts + max(1, packet.duration or 0))
                self.source.reader.progress()
        return end

    def _seek(self, place: int, target: int) -> Iterator[tuple[int, FrameT]] | None:
        """Decode from the keyframe at or before `place`; None if the first frame there comes after `target`."""
        if self.source.format in _NEVER_SEEK:
            return None
        self._fresh = False
        try:
            self.source.container.seek(place, stream=self.stream)
        except av.error.FFmpegError:  # there is no index, or nothing before this place
            self.source.reader.raise_failure()
            return None
        self.source.reader.raise_failure()
        frames = self._decode(after_seek=True)
        first = next(frames, None)
        if first is None or first[0] > target:
            return None
        self.landed = first[0]
        return itertools.chain((first,), frames)

    def _decode(self, *, after_seek: bool = False) -> Iterator[tuple[int, FrameT]]:
        self._fresh = False
        self._set_up()
        keyframe: int | None = None
        due = 0  # the pts of a frame that has none: in a transport stream one time stamp stands for several
        for packet in self._filled_packets():
            if after_seek and keyframe is None:
                if not packet.is_keyframe:
                    continue
                keyframe = packet.pts if packet.pts is not None else packet.dts
            for frame in self._decode_packet(packet):
                pts = frame.pts if frame.pts is not None else due
                due = pts + self._ticks(frame)
                # Pictures shown before the keyframe that comes before them (open GOP) lack what they refer to.
                if keyframe is None or pts >= keyframe:
                    yield pts, frame

    def _filled_packets(self) -> Iterator[Packet[Any]]:
        """The packets that hold something, then the empty one that flushes the decoder.

        Others may be empty too, in Ogg above all, where such a one repeats a picture: a decoder takes them for damage.
        """
        flush: Packet[Any] | None = None
        for packet in self.source.packets(self.stream):
            check_clear(packet)
            if packet.size:
                yield packet
            else:
                self.source.reader.check_stall()
                flush = packet
        if flush is not None:
            yield flush

    def _decode_packet(self, packet: Packet[Any]) -> list[FrameT]:
        with self.source.guarded("decoded"):
            self.source.reader.check_stall()
            return cast("list[FrameT]", cast("Any", packet).decode())

    def _set_up(self) -> None:
        context = self.stream.codec_context
        if not context.is_open:
            context.options = {"max_pixels": str(self.source.max_pixels)}

    def _ticks(self, frame: FrameT) -> int:
        """How long a frame lasts, in units of the time base."""
        raise NotImplementedError


class VideoDecoder(_Decoder[VideoFrame]):
    """Decodes the video stream of a file, or its picture."""

    def __init__(self, source: MediaSource) -> None:
        super().__init__(source)
        start = self.stream.start_time
        if start is None or source.format in _GUESSED_TIMES:
            start = next((pts for pts, _ in self.frames()), 0)
        self.first: int = start
        """The pts of the first frame: content time counts from here."""

    @property
    def stream(self) -> VideoStream:
        return self.source.video

    def _set_up(self) -> None:
        super()._set_up()
        context = self.stream.codec_context
        if not context.is_open:
            context.thread_type = "AUTO"
            pixels = max(1, context.width * context.height)
            context.thread_count = max(
                1, min(os.cpu_count() or 1, MAX_DECODE_THREADS, self.source.max_pixels // pixels)
            )

    def _ticks(self, _frame: VideoFrame) -> int:
        rate = self.stream.average_rate
        return max(1, round(1 / (rate * self.time_base))) if rate else 1


class AudioDecoder(_Decoder[AudioFrame]):
    """Decodes the first audio stream of a file."""

    # An Opus decoder takes 80 ms to settle (RFC 7845, section 4.6); AAC and MP3 a few frames.
    preroll = Fraction(1, 5)

    @property
    def stream(self) -> AudioStream:
        return self.source.audio

    def _ticks(self, frame: AudioFrame) -> int:
        return max(1, round(frame.samples / (frame.sample_rate * self.time_base)))


def check_clear(packet: Packet[Any]) -> None:
    """Raise UnsupportedMediaError for an encrypted packet (ISO 23001-7, WebM), where PyAV is new enough to tell."""
    has = getattr(packet, "has_sidedata", None)
    if has is not None and has("encryption_info"):
        raise UnsupportedMediaError(
            "The content is encrypted: it plays only where its key is, and never here."
        )


def content_start(source: MediaSource) -> Fraction:
    """When content time 0 is, in seconds of the file's own clock: the first frame, or the first sample of mere audio.

    Video and audio count from the same moment, so that they stay in step.
    """
    if source.find_video() is not None and not source.is_image:
        video = VideoDecoder(source)
        source.reopen()
        return video.first * video.time_base
    audio = AudioDecoder(source)
    start = audio.stream.start_time
    if start is None:
        start = next((pts for pts, _ in audio.frames()), 0)
        source.reopen()
    return start * audio.time_base
