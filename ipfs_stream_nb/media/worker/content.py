"""What a content has, and its packets in answer to orders."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, cast

import av

from ipfs_stream_nb.errors import BadRequestError, CorruptContentError, UnsupportedMediaError
from ipfs_stream_nb.media.decode import content_start
from ipfs_stream_nb.media.encoded import Codec, EncodedInfo, EncodedPacket, EncodedTrack
from ipfs_stream_nb.media.reader import MediaLimits
from ipfs_stream_nb.media.source import MediaSource, open_media
from ipfs_stream_nb.media.worker import pictures, sound, through
from ipfs_stream_nb.media.worker.order import Alive, Order
from ipfs_stream_nb.media.worker.remote import Blocks, RemoteFile


@dataclass
class Making:
    """Packets on the way, and how many of the file's were damaged."""

    source: MediaSource
    packets: Iterator[EncodedPacket]
    maker: pictures.Pictures | sound.Sound | None = None

    def resume(self) -> None:
        """The time in which nothing was asked for is no stall."""
        self.source.reader.progress()

    @property
    def damaged(self) -> int:
        """Packets and frames that could not be decoded so far."""
        return 0 if self.maker is None else self.maker.damaged


class Content:
    """One file, in one worker. `probe` first; then `making` from any number of threads."""

    def __init__(self, blocks: Blocks, limits: MediaLimits, threads: int) -> None:
        self._blocks, self._limits, self._threads = blocks, limits, threads
        self._zero = Fraction(0)
        self._info = EncodedInfo(None, None, None)
        self._bitrate = 0

    def probe(self, alive: Alive) -> EncodedInfo:
        """Look at the file. Raises what open_media does, and UnsupportedMediaError for a picture."""
        with open_media(RemoteFile(self._blocks, threading.Event()), self._limits) as source:
            if source.is_image and not source.container.duration:
                raise UnsupportedMediaError("The content is a picture: there is nothing to play.")
            video = self._probe_video(source, alive) if source.find_video() is not None else None
            audio = self._probe_audio(source)
            if video is None:
                source.audio  # noqa: B018 - raises where there is no sound either
                self._zero = content_start(source)
            self._info = EncodedInfo(self._duration(source), video, audio)
        return self._info

    @contextmanager
    def making(self, order: Order, stopped: threading.Event, alive: Alive) -> Iterator[Making]:
        """The packets that are ordered. Raises BadRequestError for a track that there is not."""
        track = self._info.video if order.kind == "video" else self._info.audio
        if track is None:
            raise BadRequestError(f"The content has no {order.kind}.")
        with open_media(RemoteFile(self._blocks, stopped), self._limits) as source:
            making = Making(source, iter(()))
            make = self._video if order.kind == "video" else self._audio
            making.packets = make(source, order, making, alive)
            yield making

    def _video(
        self, source: MediaSource, order: Order, making: Making, alive: Alive
    ) -> Iterator[EncodedPacket]:
        track = cast("EncodedTrack", self._info.video)
        if track.passthrough and self._fits(order, track):
            last: EncodedPacket | None = None
            try:
                for packet in through.video(source, self._zero, order, alive):
                    last = packet
                    yield packet
                return
            except through.NeedsTranscodeError:
                self._info = replace(self._info, video=replace(track, passthrough=False))
            if last is not None:
                order = replace(order, position=last.time, after=True)
            source.reopen()
        making.maker = decoder = pictures.Pictures(source, self._threads, alive)
        yield from pictures.transcode(decoder, order, track.codec, self._threads)

    def _audio(
        self, source: MediaSource, order: Order, making: Making, alive: Alive
    ) -> Iterator[EncodedPacket]:
        if cast("EncodedTrack", self._info.audio).passthrough:
            yield from through.opus(source, self._zero, order, alive)
            return
        making.maker = decoder = sound.Sound(source, alive)
        yield from sound.transcode(decoder, self._zero, order)

    def _fits(self, order: Order, track: EncodedTrack) -> bool:
        """Whether the file's own packets are what is ordered."""
        if order.aim is not None:
            return False
        low = order.height is None or order.height >= track.height
        return low and (order.bitrate is None or 0 < self._bitrate <= order.bitrate)

    def _probe_video(self, source: MediaSource, alive: Alive) -> EncodedTrack:
        decoder = pictures.Pictures(source, 1, alive)
        shown = None
        for _, frame in decoder.frames():
            shown = shown or frame
            if len(decoder.packets) >= pictures.FIRST_PACKETS:
                break
        if shown is None:
            raise CorruptContentError(
                "The content is damaged or cut short: it has no picture that can be decoded."
            )
        canvas, stream = pictures.Canvas(shown, source), decoder.stream
        self._zero = decoder.first * decoder.time_base
        self._bitrate = stream.codec_context.bit_rate or source.container.bit_rate or 0
        name = _name(stream.codec_context)
        times = [pts for pts, _ in decoder.packets]
        in_order = None not in times and times == sorted(cast("list[int]", times))
        slow_enough = float(stream.average_rate or 0) < pictures.MAX_FRAME_RATE + 1
        passes = (
            slow_enough
            and in_order
            and (
                (name == "h264" and canvas.same and through.takes_h264(stream, source, shown))
                or (name == "vp8" and (canvas.width - shown.width, canvas.height - shown.height) in _ODD)
            )
        )
        return EncodedTrack(
            kind="video",
            codec=cast("Codec", name if passes else "h264"),
            source_codec=name,
            passthrough=passes,
            width=canvas.width,
            height=canvas.height,
            frame_rate=float(stream.average_rate or 0),
            bitrate=self._bitrate,
        )

    def _probe_audio(self, source: MediaSource) -> EncodedTrack | None:
        try:
            context = source.audio.codec_context
        except UnsupportedMediaError:
            return None
        name = _name(context)
        passes = name == "opus" and context.layout.nb_channels <= 2
        return EncodedTrack(kind="audio", codec="opus", source_codec=name, passthrough=passes)

    def _duration(self, source: MediaSource) -> float | None:
        container = source.container
        if not container.duration or container.duration <= 0:
            return None
        end = Fraction((container.start_time or 0) + container.duration, av.time_base) - self._zero
        return float(end) if end > 0 else None


_ODD = {(0, 0), (-1, 0), (0, -1), (-1, -1)}  # VP8 may have odd sizes, which the canvas has not


def _name(context: Any) -> str:
    """FFmpeg's name of the format, such as "mp3"; before PyAV 15, that of the decoder, such as "mp3float"."""
    return str(getattr(context.codec, "canonical_name", context.codec.name))
