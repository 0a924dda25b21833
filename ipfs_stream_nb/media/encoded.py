"""Encoded media on its way to peers: what a source gives, in packets that a WebRTC sender takes as they are."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

TrackKind = Literal["video", "audio"]
Codec = Literal["h264", "vp8", "opus"]
Payload = tuple[bytes, int, int]
"""A head, and where the bytes of a packet that follow it begin and end."""

BITS_PER_PIXEL: Final = 0.09
"""Of each frame, where no bit rate is known or asked for,"""
MIN_BITRATE: Final = 150_000
"""but not less than so many bit/s"""
MAX_BITRATE: Final = 8_000_000
"""nor more."""


def usual_bitrate(width: int, height: int, rate: float) -> int:
    """bit/s that suit a size."""
    return bounded_bitrate(BITS_PER_PIXEL * width * height * rate)


def bounded_bitrate(bitrate: float) -> int:
    """bit/s that video is encoded to with all its lines, as near to these as may be."""
    return max(MIN_BITRATE, min(MAX_BITRATE, round(bitrate)))


@dataclass(frozen=True, slots=True)
class Rendition:
    """How video is wanted. Audio has one rendition."""

    height: int | None = None
    """Lines at most; None: as many as the source has."""
    bitrate: int | None = None
    """bit/s; None: what suits the height."""


@dataclass(slots=True)
class Aim:
    """What one viewer's network carries: set anew at any time, and followed by what is encoded from then on."""

    bitrate: int
    """bit/s; more than the rendition's is as much as that."""
    frame_rate: float | None = None
    """Frames a second at most; None: as many as the source has."""


@dataclass(frozen=True, slots=True)
class EncodedPacket:
    """One access unit: a whole picture, or 20 ms of sound."""

    data: bytes
    """H.264 in Annex B with its parameter sets before each key frame; a VP8 frame; an Opus packet."""
    time: float
    """When it is shown, in seconds of the source's timeline, which begins at 0."""
    duration: float
    """Seconds."""
    keyframe: bool
    payloads: list[Payload] = field(default_factory=list, init=False, compare=False, repr=False)
    """How it is cut for RTP, where that is the same for all viewers: filled in by the first one's sender."""


@dataclass(frozen=True, slots=True)
class EncodedTrack:
    """What one kind of a source's packets is."""

    kind: TrackKind
    codec: Codec
    """Of the packets."""
    source_codec: str
    """Of the file."""
    passthrough: bool
    """Whether packets of the file go out as they are, for a rendition that does not say otherwise."""
    width: int = 0
    height: int = 0
    """Upright and even, for video."""
    frame_rate: float = 0.0
    bitrate: int = 0
    """bit/s as the file tells; 0 where it does not."""


@dataclass(frozen=True, slots=True)
class EncodedInfo:
    """What a source has."""

    duration: float | None
    """Seconds; None where it is not known."""
    video: EncodedTrack | None
    audio: EncodedTrack | None

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        tracks = {
            kind: track and {name: getattr(track, name) for name in track.__slots__}
            for kind, track in (("video", self.video), ("audio", self.audio))
        }
        return {"duration": self.duration, **tracks}


class EncodedSource(Protocol):
    """A media file by CID, demuxed and where needed encoded in a worker. Any number of readers, each at its own position;
    readers of one rendition that are near each other share what is encoded."""

    @property
    def info(self) -> EncodedInfo:
        """What it has."""

    def packets(
        self,
        kind: TrackKind,
        position: float = 0.0,
        rendition: Rendition | None = None,
        aim: Aim | None = None,
    ) -> AsyncGenerator[EncodedPacket, None]:
        """The packets of one track in decoding order, to the end of the file. Video begins with a key frame at or before
        `position` seconds, audio with the packet that holds it. Read no further than a little ahead of whoever iterates;
        must be closed when left early. With `aim` the video is encoded just in time, at what the aims of those who share it
        allow. Raises CorruptContentError, RetrievalError, UnsupportedMediaError, BadRequestError
        for a kind that it does not have."""

    async def close(self) -> None:
        """End it and all its readers. Idempotent."""
