"""The one door through which media files are opened: untrusted bytes in, a container with limits out.

A "video" may be a playlist that names local files or URLs, a picture of 16000² pixels, or a file made to keep a decoder
busy for ever. So: no protocol is allowed, only demuxers of real media are, PyAV never sees a file name, nothing is
decoded before the limit on pixels is set, and every read and decode counts against a budget of time.
"""

from __future__ import annotations

import errno
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import IO, Any, Self, cast

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream
from PIL import Image

from ipfs_stream_nb.errors import (
    CorruptContentError,
    IPFSStreamError,
    TooLargeError,
    UnsupportedMediaError,
)
from ipfs_stream_nb.media.reader import (
    CHUNK,
    DEFAULT_LIMITS,
    BinaryFile,
    MediaLimits,
    PillowFile,
    Reader,
    check_length,
)

IMAGE_FORMATS = frozenset(
    {"apng", "bmp_pipe", "gif", "ico", "jpeg_pipe", "jpegxl_pipe", "pam_pipe", "pbm_pipe", "pgm_pipe", "png_pipe",
     "ppm_pipe", "qoi_pipe", "tiff_pipe", "webp_pipe"}
)  # fmt: skip
"""FFmpeg's names of the demuxers for pictures."""
FORMATS = IMAGE_FORMATS | frozenset(
    {"aac", "ac3", "aiff", "amr", "asf", "au", "avi", "caf", "eac3", "flac", "flv", "ivf", "matroska", "mov", "mp3",
     "mpeg", "mpegts", "ogg", "w64", "wav", "wv", "yuv4mpegpipe"}
)  # fmt: skip
"""FFmpeg's names of all demuxers that may open a file. None of them refers to other files or to URLs."""

# How a file begins that claims a container, so that a damaged one can be told from something else altogether.
_MAGIC = (
    (4, b"ftyp", "MP4"), (4, b"moov", "QuickTime"), (0, b"\x1aE\xdf\xa3", "WebM or Matroska"), (0, b"OggS", "Ogg"),
    (0, b"RIFF", "RIFF (AVI, WAV or WebP)"), (0, b"fLaC", "FLAC"), (0, b"ID3", "MP3"), (0, b"\x89PNG", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"), (0, b"GIF8", "GIF"),
)  # fmt: skip
# Tags that are not UTF-8 are no reason to refuse a file; from 19 on PyAV never does.
_LENIENT: dict[str, Any] = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}
# What stands at the head of an MP4 or WebM tells all about their streams: a first packet is enough of a probe.
_TELLING = (b"ftyp", b"moov"), b"\x1aE\xdf\xa3"
_PROBE_TELLING = 32 * 1024
# Made for broadcast: packets that begin before the place where reading starts are no damage.
_RESYNCING = frozenset({"mpegts", "mpeg"})
_PILLOW_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
# Whose orientation stands in the header; in a PNG it may stand at the end, which is not read for it.
_EXIF_FORMATS = frozenset({"JPEG", "MPO", "TIFF", "WEBP"})
_EXIF_ORIENTATION = 0x0112


def open_media(file: BinaryFile, limits: MediaLimits = DEFAULT_LIMITS) -> MediaSource:
    """Open a media file for demuxing and decoding; use it as a context manager. The file itself is left open.

    Raises UnsupportedMediaError for what is not media of a known kind or over max_pixels, CorruptContentError for
    damaged media, RetrievalTimeoutError past stall_seconds; errors of the file's own read() pass through.
    """
    return MediaSource(file, limits)


class MediaSource:
    """An open media file. PyAV's errors become ours inside `guarded()`."""

    def __init__(self, file: BinaryFile, limits: MediaLimits) -> None:
        self.limits = limits
        self.reader = Reader(file, limits)
        if self.reader.size == 0:
            raise UnsupportedMediaError("The content is empty: expected a video, audio or image file.")
        check_length(self.reader.head(64), self.reader.size)
        self.exif_orientation = 1
        """A picture file's EXIF orientation, 1 to 8; 1 is upright."""
        self.container = self._open()
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the demuxer and its decoders."""
        self.container.close()

    def reopen(self) -> None:
        """Start again at the first packet: for what cannot seek, and it is exact where seeking to 0 is not."""
        self.container.close()
        self.container = self._open()

    @property
    def format(self) -> str:
        """FFmpeg's name of the demuxer, such as "mov,mp4,m4a,3gp,3g2,mj2"."""
        return self.container.format.name

    @property
    def is_image(self) -> bool:
        """True for the formats of pictures, animated ones too."""
        return self.format in IMAGE_FORMATS

    @property
    def video(self) -> VideoStream:
        """The first video stream that can be decoded and is no cover; UnsupportedMediaError if there is none."""
        stream = self.find_video()
        if stream is None:
            raise self._lacks("video or picture", len(self.container.streams.video))
        return stream

    @property
    def audio(self) -> AudioStream:
        """The first audio stream that can be decoded; UnsupportedMediaError if there is none."""
        for stream in self.container.streams.audio:
            if stream.codec_context is not None:
                return stream
        raise self._lacks("audio", len(self.container.streams.audio))

    def find_video(self) -> VideoStream | None:
        """As `video`, but None if there is none."""
        for stream in self.container.streams.video:
            if stream.codec_context is not None and not is_cover(stream):
                return stream
        return None

    def _lacks(self, what: str, streams: int) -> UnsupportedMediaError:
        known = " that can be decoded here" if streams else ""
        return UnsupportedMediaError(f"The content ({self.format}) has no {what}{known}.")

    def packets(self, stream: VideoStream | AudioStream) -> Iterator[Packet[Any]]:
        """The packets of one stream from here on; the last one is empty and flushes the decoder."""
        with self.guarded("read"):
            packets = self.container.demux(stream)
        whole = stream.frames > 0 and "mp4" in self.format  # all packets stand in an index
        self.reader.missed = 0
        while True:
            with self.guarded("read"):
                packet = next(packets, None)
            if packet is None:
                return
            end = not packet.size
            if (packet.is_corrupt and self.format not in _RESYNCING) or (
                end and (self.reader.missed > self.reader.size or (whole and self.reader.missed))
            ):
                raise CorruptContentError("The content is cut short: it ends within its media data.")
            yield packet

    @contextmanager
    def guarded(self, done: str) -> Iterator[None]:
        """Around each call of PyAV: its errors become ours, and those of the file's read() come out as they were."""
        try:
            yield
        except IPFSStreamError:
            raise
        except Exception as error:
            self.reader.raise_failure()
            raise _translate(error, done) from error
        self.reader.raise_failure()

    @property
    def max_pixels(self) -> int:
        """The limit that holds for this file: that of pictures, or of video."""
        return self.limits.max_pixels if self.is_image else self.limits.max_video_pixels

    def _open(self) -> InputContainer:
        # Without decoders, learning the streams' properties is quick and harmless: parsers do most of it.
        container = self._open_container({"codec_whitelist": "none"})
        raw_audio = not container.streams.video and any(
            s.codec_context is not None and not s.sample_rate for s in container.streams.audio
        )
        if raw_audio:  # ADTS, AC-3: only decoding tells the rate, and without it there are no time stamps
            container.close()
            container = self._open_container({})
        return container

    def _open_container(self, extra: dict[str, str]) -> InputContainer:
        limits = self.limits
        head = self.reader.head(8)
        telling = head[4:] in _TELLING[0] or head.startswith(_TELLING[1])
        options = {
            "protocol_whitelist": "none",
            "format_whitelist": ",".join(sorted(FORMATS)),
            "max_streams": str(limits.max_streams),
            "probesize": str(min(limits.probe_bytes, _PROBE_TELLING) if telling else limits.probe_bytes),
            "formatprobesize": str(limits.probe_bytes),
            "analyzeduration": str(round(limits.probe_seconds * 1_000_000)),
        }
        self.reader.rewind()
        try:
            with self.guarded("opened"):
                container: InputContainer = av.open(
                    self.reader,
                    mode="r",
                    options={"max_pixels": str(limits.max_pixels)},
                    container_options=options | extra,
                    buffer_size=CHUNK,
                    **_LENIENT,
                )
        except CorruptContentError as error:
            if not isinstance(error.__cause__, av.error.FFmpegError):
                raise  # the file's own error
            raise self._explain() from error
        self.reader.watch_counts = "mp4" in container.format.name
        return container

    def _explain(self) -> IPFSStreamError:
        """What to tell about a file that no demuxer took, by how it begins."""
        head = self.reader.head(16)
        for offset, magic, name in _MAGIC:
            if head[offset:].startswith(magic):
                return CorruptContentError(
                    f"The content begins like {name}, but cannot be opened: it is damaged or cut short."
                )
        return UnsupportedMediaError("The content is not a video, audio or image file of a supported format.")

    def _check(self) -> None:
        if not (self.container.streams.video or self.container.streams.audio):
            raise UnsupportedMediaError(f"The content ({self.format}) has no video, picture or audio.")
        for stream in self.container.streams.video:
            if stream.codec_context is not None:
                check_pixels(stream.codec_context.width, stream.codec_context.height, self.max_pixels)
        if self.is_image:
            self._check_image()

    def _check_image(self) -> None:
        """Read a picture's header: its size, for a clear error where a decoder would say "damaged", and orientation."""
        if self.format.removesuffix("_pipe").upper() not in _PILLOW_FORMATS:
            return
        position = self.reader.tell()
        self.reader.rewind()
        try:
            with (
                warnings.catch_warnings(action="ignore"),
                Image.open(cast("IO[bytes]", PillowFile(self.reader)), formats=_PILLOW_FORMATS) as picture,
            ):
                width, height = picture.size
                if picture.format in _EXIF_FORMATS:
                    self.exif_orientation = Image.Image.getexif(picture).get(_EXIF_ORIENTATION, 1)
        except Image.DecompressionBombError as error:
            raise UnsupportedMediaError(
                f"The picture has more than the limit of {self.limits.max_pixels:,} pixels (max_pixels)."
            ) from error
        except Exception:  # noqa: BLE001 - the decoder is the judge; whatever else Pillow says is of no interest
            self.reader.raise_failure()
            return
        finally:
            self.reader.seek(position)  # where the demuxer goes on
        check_pixels(width, height, self.max_pixels)


def check_pixels(width: int, height: int, limit: int) -> None:
    """Raise UnsupportedMediaError for a picture over a limit of pixels."""
    if width * height > limit:
        raise UnsupportedMediaError(
            f"The picture is {width}×{height}: more than the limit of {limit:,} pixels (max_pixels, max_video_pixels)."
        )


def is_cover(stream: VideoStream) -> bool:
    """True for a picture that belongs to a song. PyAV tells from version 14.1 on."""
    disposition = getattr(stream, "disposition", None)
    return disposition is not None and bool(disposition & disposition.attached_pic)


def _translate(error: Exception, done: str) -> IPFSStreamError:
    if isinstance(error, av.error.FFmpegError) and error.errno == errno.EINVAL and done == "opened":
        return UnsupportedMediaError(
            "The content is a playlist, a text or another format that is not opened here: "
            "expected a video, audio or image file."
        )
    if isinstance(error, av.error.DecoderNotFoundError | av.error.PatchWelcomeError):
        return UnsupportedMediaError("The content uses a codec or a feature that is not supported here.")
    if isinstance(error, MemoryError):
        return TooLargeError("There is not enough memory to decode the content.")
    return CorruptContentError(f"The content is damaged or cut short: it could not be {done}.")
