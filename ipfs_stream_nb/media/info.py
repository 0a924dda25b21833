"""What a media file is: format, duration, streams."""

from __future__ import annotations

import html
from dataclasses import dataclass

import av
from av.audio.stream import AudioStream
from av.codec.context import CodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ipfs_stream_nb.errors import CorruptContentError
from ipfs_stream_nb.media.decode import AudioDecoder, VideoDecoder
from ipfs_stream_nb.media.picture import Orientation, clock, orientation_of, pixel_aspect
from ipfs_stream_nb.media.reader import DEFAULT_LIMITS, BinaryFile, MediaLimits
from ipfs_stream_nb.media.source import MediaSource, is_cover, open_media

_WEBM_CODECS = {"vp8", "vp9", "av1", "opus", "vorbis", "webvtt"}


@dataclass(frozen=True)
class VideoStreamInfo:
    """A video stream, or a picture. None is for what the file does not tell."""

    index: int
    codec: str
    width: int
    """Pixels across, upright: after rotation, as frames() gives them."""
    height: int
    """Pixels down, upright."""
    rotation: int
    """Clockwise degrees by which the stored picture is turned to be shown: 0, 90, 180 or 270."""
    pixel_aspect: float
    """Width of a pixel by its height, upright; not applied to width."""
    frame_rate: float | None
    """Frames a second on average; None for a single picture."""
    frames: int | None
    pixel_format: str | None
    """FFmpeg's name, such as "yuv420p"."""
    bit_rate: int | None
    language: str | None
    cover: bool
    """True for a picture that belongs to a song: no video."""

    def __str__(self) -> str:
        rate = f", {self.frame_rate:g} fps" if self.frame_rate else ""
        turned = f", rotated {self.rotation}°" if self.rotation else ""
        return f"{self.codec} {self.width}×{self.height}{rate}{turned}"


@dataclass(frozen=True)
class AudioStreamInfo:
    """An audio stream. None is for what the file does not tell."""

    index: int
    codec: str
    sample_rate: int
    """Hz."""
    channels: int
    bit_rate: int | None
    language: str | None

    def __str__(self) -> str:
        return f"{self.codec} {self.sample_rate} Hz, channels: {self.channels}"


@dataclass(frozen=True)
class OtherStreamInfo:
    """Subtitles, data, or a stream without a decoder here; `type` says which."""

    index: int
    type: str
    codec: str | None
    language: str | None

    def __str__(self) -> str:
        return self.codec or "unknown"


StreamInfo = VideoStreamInfo | AudioStreamInfo | OtherStreamInfo


@dataclass(frozen=True, repr=False)
class MediaInfo:
    """A media file. None is for what it does not tell, and for the duration of a picture."""

    kind: str
    """"video", "audio" or "image"."""
    format: str
    """Short name of the container, such as "mp4", "webm" or "png"."""
    duration: float | None
    """Seconds."""
    size: int
    """Bytes."""
    bit_rate: int | None
    """Bits a second, of all streams together."""
    streams: tuple[StreamInfo, ...]

    @property
    def video(self) -> VideoStreamInfo | None:
        """The stream that frames() decodes."""
        return next((s for s in self.streams if isinstance(s, VideoStreamInfo) and not s.cover), None)

    @property
    def audio(self) -> AudioStreamInfo | None:
        """The stream that audio() decodes."""
        return next((s for s in self.streams if isinstance(s, AudioStreamInfo)), None)

    def __repr__(self) -> str:
        duration = "" if self.duration is None else f", {self.duration:.3f} s"
        streams = "".join(f", {_kind_of(stream)}: {stream}" for stream in self.streams)
        return f"MediaInfo({self.kind} {self.format}{duration}, {self.size:,} bytes{streams})"

    def _repr_html_(self) -> str:
        facts = {
            "Format": self.format,
            "Duration": None if self.duration is None else f"{clock(self.duration)} ({self.duration:.3f} s)",
            "Size": f"{self.size:,} bytes",
            "Bit rate": None if self.bit_rate is None else f"{self.bit_rate / 1000:,.0f} kbit/s",
        }
        facts |= {f"Stream {s.index}: {_kind_of(s)}": _details(s) for s in self.streams}
        rows = "".join(
            f'<tr><th scope="row" style="text-align:left">{html.escape(name)}</th>'
            f'<td style="text-align:left">{html.escape(text)}</td></tr>'
            for name, text in facts.items()
            if text is not None
        )
        return f"<table><caption>{html.escape(self.kind.capitalize())}</caption><tbody>{rows}</tbody></table>"


def probe(file: BinaryFile, limits: MediaLimits = DEFAULT_LIMITS) -> MediaInfo:
    """The facts about a media file; a picture counts as one. Reads its index, and what the first frame needs.

    Raises what open_media raises.
    """
    with open_media(file, limits) as source:
        video = source.find_video()
        first = None if video is None else next((frame for _, frame in VideoDecoder(source).frames()), None)
        if video is not None and first is None:
            raise CorruptContentError(
                "The content is damaged or cut short: it has no picture that can be decoded."
            )
        duration = _duration(source)
        still = source.is_image and duration is None
        count = len(source.container.streams)
        streams = tuple([_describe(source, index, first, still=still) for index in range(count)])
        bit_rate = source.container.bit_rate or (round(source.reader.size * 8 / duration) if duration else 0)
        return MediaInfo(
            kind="image" if still else "audio" if video is None else "video",
            format=_format_name(source),
            duration=duration,
            size=source.reader.size,
            bit_rate=bit_rate if duration and bit_rate > 0 else None,
            streams=streams,
        )


def _describe(source: MediaSource, index: int, first: VideoFrame | None, *, still: bool) -> StreamInfo:
    stream = source.container.streams[
        index
    ]  # anew each time: learning a sound's format may open the file again
    language = stream.metadata.get("language")
    if stream.codec_context is not None and isinstance(stream, VideoStream):
        video = source.find_video()
        shown = first if video is not None and video.index == stream.index else None
        return _describe_video(stream, shown, source.exif_orientation, language, still=still)
    if stream.codec_context is not None and isinstance(stream, AudioStream):
        codec = _codec_name(stream.codec_context)
        bit_rate = stream.codec_context.bit_rate or None
        rate, channels = _audio_format(source, stream)
        return AudioStreamInfo(index, codec, rate, channels, bit_rate, language)
    return OtherStreamInfo(stream.index, stream.type, getattr(stream, "name", None), language)


def _describe_video(
    stream: VideoStream, first: VideoFrame | None, exif: int, language: str | None, *, still: bool
) -> VideoStreamInfo:
    context = stream.codec_context
    turn = orientation_of(first, exif) if first is not None else Orientation()
    width, height = (context.width, context.height) if first is None else (first.width, first.height)
    aspect = pixel_aspect(stream)
    cover = is_cover(stream)
    rate = None if still or cover else stream.average_rate
    return VideoStreamInfo(
        index=stream.index,
        codec=_codec_name(context),
        width=height if turn.transpose else width,
        height=width if turn.transpose else height,
        rotation=turn.rotation,
        pixel_aspect=float(1 / aspect if turn.transpose else aspect),
        frame_rate=float(rate) if rate else None,
        frames=1 if still or cover else stream.frames or None,
        pixel_format=context.pix_fmt if first is None else first.format.name,
        bit_rate=context.bit_rate or None,
        language=language,
        cover=cover,
    )


def _audio_format(source: MediaSource, stream: AudioStream) -> tuple[int, int]:
    """Rate in Hz and channels. MPEG-TS does not tell them: then the first frame does."""
    context = stream.codec_context
    if context.sample_rate and context.layout.nb_channels:
        return context.sample_rate, context.layout.nb_channels
    if stream.index == source.audio.index:
        source.reopen()
        for _, frame in AudioDecoder(source).frames():
            return frame.sample_rate, frame.layout.nb_channels
    return context.sample_rate, context.layout.nb_channels


def _duration(source: MediaSource) -> float | None:
    duration = source.container.duration
    return duration / av.time_base if duration and duration > 0 else None


def _format_name(source: MediaSource) -> str:
    """A name that people use; FFmpeg's demuxers stand for families of formats."""
    if source.format.startswith("mov,"):
        return "mov" if source.container.metadata.get("major_brand", "qt").startswith("qt") else "mp4"
    if source.format.startswith("matroska"):
        codecs = {_codec_name(s.codec_context) for s in source.container.streams if s.codec_context}
        return "webm" if codecs <= _WEBM_CODECS else "matroska"
    return source.format.removesuffix("_pipe")


def _codec_name(context: CodecContext) -> str:
    """FFmpeg's name of the format, such as "mp3"; before PyAV 15, that of the decoder, such as "mp3float"."""
    return str(getattr(context.codec, "canonical_name", context.codec.name))


def _kind_of(stream: StreamInfo) -> str:
    if isinstance(stream, VideoStreamInfo):
        return "cover" if stream.cover else "video"
    return "audio" if isinstance(stream, AudioStreamInfo) else stream.type


def _details(stream: StreamInfo) -> str:
    parts = [str(stream)]
    if isinstance(stream, VideoStreamInfo) and stream.pixel_format:
        parts.append(stream.pixel_format)
    if not isinstance(stream, OtherStreamInfo) and stream.bit_rate:
        parts.append(f"{stream.bit_rate / 1000:,.0f} kbit/s")
    if stream.language not in (None, "und"):
        parts.append(f"language: {stream.language}")
    return ", ".join(parts)
