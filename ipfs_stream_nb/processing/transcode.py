"""Any video or sound to WebM: VP8 and Opus, which browsers play and WebRTC carries as they are."""

from __future__ import annotations

import heapq
import itertools
import math
import os
from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from typing import Any, Final, TypeVar, cast

import av
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, VideoReformatter
from av.video.stream import VideoStream

from ipfs_stream_nb.content.file import READ_SIZE, ContentFile
from ipfs_stream_nb.errors import CorruptContentError, UnsupportedMediaError
from ipfs_stream_nb.media.decode import AudioDecoder, VideoDecoder, _Decoder, content_start
from ipfs_stream_nb.media.picture import RGBConverter
from ipfs_stream_nb.media.source import MediaSource, open_media
from ipfs_stream_nb.processing.job import Job, Scratch

FrameT = TypeVar("FrameT", VideoFrame, AudioFrame)

CLOCK: Final = Fraction(1, 1000)
"""Seconds of a tick: WebM's times are whole milliseconds."""
KEYFRAME_SECONDS: Final = 2
"""Seconds from one keyframe to the next at most: a seek lands on one."""
BITS_PER_PIXEL: Final = 0.1
"""Of each frame, where no bit rate is asked for,"""
MIN_BITRATE: Final = 100_000
"""but not less than so many bits a second."""
SOUND_RATE: Final = 48_000
"""Samples a second: Opus has no other."""
SOUND_BITRATE: Final = 64_000
"""Bits a second of each channel."""
MAX_DRIFT: Final = SOUND_RATE // 20
"""Samples by which a time stamp may miss the end of the sound before it; beyond, there is a gap."""
NEW_START: Final = 1000
"""Ticks by which time must run back to begin anew: recordings that were strung together follow one another."""
MAX_SIDE: Final = 16383
"""Pixels: VP8 has 14 bits for a side (RFC 6386, section 9.1)."""
MAX_THREADS: Final = 8
"""Threads of the encoder."""
_VIDEO_CODECS: Final = ("libvpx", "libvpx-vp9")
# In ITU-T H.273. The matrix of VP8 is that of BT.601 (RFC 6386, section 9.2), whatever the size.
_BT601_MATRIX: Final = 6
_BT709: Final = 1


def transcode(
    file: ContentFile, job: Job, height: int | None, bitrate: int | None
) -> tuple[Scratch, dict[str, Any]]:
    """A WebM file with cues, and {"duration": s, "width", "height", "video_codec", "audio_codec", "damaged_frames"}.

    The first video stream and the first audio stream are taken, either of which may be missing: its facts are then
    None. Frames come upright and with square pixels, each at its own time. What cannot be decoded is left out and
    counted. Raises UnsupportedMediaError for a picture, CorruptContentError for a file that is cut short or of which
    no frame can be decoded, DiskFullError, TooLargeError, and what open_media raises.
    """
    output, shared = job.scratch(), _Shared(file)
    with ExitStack() as opened:
        pictures = _open_pictures(opened.enter_context(open_media(shared)))
        sound = _open_sound(opened.enter_context(open_media(shared)))
        if pictures is None and sound is None:
            raise CorruptContentError("The content is damaged: it has no frame that can be decoded.")
        container = opened.enter_context(av.open(output, "w", format="webm", options={"fflags": "bitexact"}))
        tracks = _Tracks(container, pictures, sound, height, bitrate)
        for time in tracks.mux():
            output.check()
            job.report(time, tracks.length, seconds=round(time, 3))
        container.close()
        output.check()
    return output, tracks.facts()


class _Shared:
    """A file of which two readers take the same bytes, one shortly after the other, so that they are fetched once."""

    def __init__(self, file: ContentFile) -> None:
        self._file = file
        self.seek = file.seek

    def read(self, size: int = -1, /) -> bytes:
        """Some of the bytes: reads that are smaller than a piece of the file go through the pieces that it keeps."""
        return self._file.read(min(size, READ_SIZE // 2) if size >= 0 else READ_SIZE // 2)


class _Tolerant(_Decoder[FrameT]):
    """Goes on behind what cannot be decoded."""

    damaged = 0
    """Packets that could not be decoded, and frames that came out damaged."""

    def _decode_packet(self, packet: Packet[Any]) -> list[FrameT]:
        try:
            frames = cast("list[FrameT]", super()._decode_packet(packet))
        except CorruptContentError:
            self.damaged += 1
            return []
        self.damaged += sum(frame.is_corrupt for frame in frames)
        return frames


class _Pictures(_Tolerant[VideoFrame], VideoDecoder):
    """The frames of a video, and the first of them."""

    shown: VideoFrame


class _Sound(_Tolerant[AudioFrame], AudioDecoder):
    """The sound of a file, its first frame, and when content time 0 is on the file's own clock (s)."""

    heard: AudioFrame
    zero: Fraction


def _open_pictures(source: MediaSource) -> _Pictures | None:
    """The video, None for mere sound. Raises UnsupportedMediaError for a single picture."""
    if source.find_video() is None:
        return None
    if source.is_image and not source.container.duration:
        raise UnsupportedMediaError("The content is a picture: there is nothing to transcode to video.")
    decoder = _Pictures(source)
    first = next((frame for _, frame in decoder.frames()), None)
    if first is None:
        raise CorruptContentError(
            "The content is damaged or cut short: it has no picture that can be decoded."
        )
    decoder.shown, decoder.damaged = first, 0  # what is damaged is counted when all is decoded
    return decoder


def _open_sound(source: MediaSource) -> _Sound | None:
    """The sound, None where there is none; an empty track is none, as screen recorders write it."""
    if all(stream.codec_context is None for stream in source.container.streams.audio):
        return None
    zero = content_start(source)
    decoder = _Sound(source)
    first = next((frame for _, frame in decoder.frames()), None)
    if first is None and decoder.damaged:
        raise CorruptContentError("The content is damaged: it has no sound that can be decoded.")
    if first is None:
        return None
    decoder.heard, decoder.zero, decoder.damaged = first, zero, 0
    return decoder


class _Tracks:
    """The streams of the output, encoded in step."""

    def __init__(
        self,
        container: OutputContainer,
        pictures: _Pictures | None,
        sound: _Sound | None,
        height: int | None,
        bitrate: int | None,
    ) -> None:
        self._container = container
        self._pictures, self._sound = pictures, sound
        self._video: VideoStream | None = None
        self._audio: AudioStream | None = None
        self._end = 0.0
        if pictures is not None:
            self._converter = _converter(pictures, height)
            self._video = self._add_video(pictures, bitrate)
        if sound is not None:
            self._audio = self._add_audio(sound)
        duration = (pictures or cast("_Sound", sound)).source.container.duration
        self.length = duration / av.time_base if duration and duration > 0 else None
        """Seconds, as the content's header says; None where it does not."""

    def facts(self) -> dict[str, Any]:
        """What was written, once it is."""
        video, audio = self._video, self._audio
        damaged = sum(decoder.damaged for decoder in (self._pictures, self._sound) if decoder is not None)
        return {
            "duration": round(self._end, 3),
            "width": video and video.codec_context.width,
            "height": video and video.codec_context.height,
            "video_codec": video and _name(video),
            "audio_codec": audio and _name(audio),
            "damaged_frames": damaged,
        }

    def mux(self) -> Iterator[float]:
        """Write everything, in the order of time; gives the seconds that are written."""
        encoded = [*([self._encode_pictures()] if self._video else []),
                   *([self._encode_sound()] if self._audio else [])]  # fmt: skip
        for packet in heapq.merge(*encoded, key=_time_of):
            self._end = max(self._end, _time_of(packet) + float((packet.duration or 0) * packet.time_base))
            self._container.mux(packet)
            for decoder in (self._pictures, self._sound):
                if decoder is not None:  # the work of one is no stall of the other
                    decoder.source.reader.progress()
            yield self._end

    def _add_video(self, pictures: _Pictures, bitrate: int | None) -> VideoStream:
        codec = next((name for name in _VIDEO_CODECS if name in av.codecs_available), None)
        if codec is None:
            raise UnsupportedMediaError("PyAV was built without VP8 and VP9 here: pip install av has both.")
        rate = min(max(Fraction(pictures.stream.average_rate or 30), Fraction(1)), Fraction(120))
        stream: VideoStream = self._container.add_stream(codec, rate.limit_denominator(1001))
        stream.width, stream.height = self._converter.width, self._converter.height
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = CLOCK
        context.gop_size = math.ceil(KEYFRAME_SECONDS * rate)
        context.color_range, context.colorspace = 1, _BT601_MATRIX  # 1: the limited range
        context.color_primaries = context.color_trc = _BT709
        pixels = self._converter.width * self._converter.height
        context.bit_rate = bitrate or max(MIN_BITRATE, round(BITS_PER_PIXEL * pixels * rate))
        context.thread_count = min(os.cpu_count() or 1, MAX_THREADS)
        context.options = {
            "deadline": "realtime",
            "cpu-used": "-8",
            "auto-alt-ref": "0",
            "lag-in-frames": "0",
        }
        return stream

    def _add_audio(self, sound: _Sound) -> AudioStream:
        layout = "mono" if sound.heard.layout.nb_channels == 1 else "stereo"
        stream: AudioStream = self._container.add_stream("libopus", SOUND_RATE, layout=layout)
        stream.codec_context.bit_rate = SOUND_BITRATE * stream.codec_context.layout.nb_channels
        return stream

    def _encode_pictures(self) -> Iterator[Packet[Any]]:
        pictures, stream = cast("_Pictures", self._pictures), cast("VideoStream", self._video)
        reformatter, last, shift = VideoReformatter(), -1, 0
        for pts, frame in pictures.frames():
            time = round((pts - pictures.first) * pictures.time_base / CLOCK) + shift
            if time < last - NEW_START:
                shift += last + 1 - time
                time = last + 1
            if time <= last:  # it is not shown: two frames of one millisecond, or time that runs backwards
                pictures.damaged += time < last
                continue
            last = time
            picture = reformatter.reformat(
                VideoFrame.from_ndarray(self._converter.array(frame), format="rgb24"),
                format="yuv420p",
                dst_colorspace=Colorspace.ITU601,
            )
            picture.pts, picture.time_base = time, CLOCK
            if duration := getattr(frame, "duration", 0):  # PyAV tells from version 15 on
                picture.duration = round(duration * pictures.time_base / CLOCK)
            yield from stream.encode(picture)
        yield from stream.encode(None)

    def _encode_sound(self) -> Iterator[Packet[Any]]:
        stream, end = cast("AudioStream", self._audio), -MAX_DRIFT
        for time, frame in self._resampled():
            if time + frame.samples <= 0:  # before the first picture
                continue
            if time > end + MAX_DRIFT or end < 0:
                end = max(0, time)
            frame.pts, frame.time_base = end, Fraction(1, SOUND_RATE)
            end += frame.samples
            yield from stream.encode(frame)
        yield from stream.encode(None)

    def _resampled(self) -> Iterator[tuple[int, AudioFrame]]:
        """Frames of SOUND_RATE, each with its time in samples of the content."""
        sound, layout = cast("_Sound", self._sound), cast("AudioStream", self._audio).codec_context.layout
        for _, frames in itertools.groupby(sound.frames(), lambda one: _shape(one[1])):
            resampler, end = AudioResampler("flt", layout, SOUND_RATE), 0
            for pts, frame in frames:
                end = round((pts * sound.time_base - sound.zero) * SOUND_RATE)
                for piece in resampler.resample(frame):
                    yield end, piece
                    end += piece.samples
            for piece in resampler.resample(None):
                if piece is not None:
                    yield end, piece
                    end += piece.samples


def _converter(pictures: _Pictures, height: int | None) -> RGBConverter:
    """To the size that is wanted, with square pixels; never larger than the content."""
    upright = RGBConverter(pictures.shown, pictures.source, None).height
    return RGBConverter(
        pictures.shown, pictures.source, (MAX_SIDE, min(height or upright, upright, MAX_SIDE))
    )


def _time_of(packet: Packet[Any]) -> float:
    return float((packet.dts or 0) * packet.time_base)


def _shape(frame: AudioFrame) -> tuple[int, str, str]:
    """What a resampler is made for; it can change within a stream."""
    return frame.sample_rate, frame.layout.name, frame.format.name


def _name(stream: VideoStream | AudioStream) -> str:
    return str(getattr(stream.codec_context.codec, "canonical_name", stream.codec_context.codec.name))
