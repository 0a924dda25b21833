"""The protocol's levels of quality, and what they mean for a source."""

from __future__ import annotations

from typing import Any, Final

from ipfs_stream_nb.errors import BadRequestError
from ipfs_stream_nb.media.encoded import (
    EncodedInfo,
    EncodedTrack,
    Rendition,
    bounded_bitrate,
    usual_bitrate,
)

AUTO: Final = "auto"
SOURCE: Final = "source"
"""The content as it is."""
LEVELS: Final = {
    "very_low": Rendition(240, 250_000),
    "low": Rendition(360, 500_000),
    "medium": Rendition(480, 1_000_000),
    "high": Rendition(720, 2_500_000),
    "very_high": Rendition(1080, 4_500_000),
}
"""Lines and bit/s, from the least to the best."""


def checked_quality(quality: object) -> str:
    """A level's name, or auto. Raises BadRequestError."""
    if isinstance(quality, str) and (quality == AUTO or quality in LEVELS):
        return quality
    raise BadRequestError(f"quality is {', '.join(LEVELS)} or {AUTO}, not {str(quality)[:80]!r}")


def score(rtt: float | None, loss: float | None) -> int:
    """A connection's quality, 0 to 100: 60 points are lost at 10 % of packets lost, 40 at a round trip of 0.5 s."""
    lost = min((loss or 0.0) / 0.1, 1.0) * 60
    slow = min((rtt or 0.0) / 0.5, 1.0) * 40
    return round(100 - lost - slow)


def rendition_json(rendition: Rendition | None, info: EncodedInfo) -> dict[str, Any]:
    """height and bitrate as events tell them; null where the source's own are not known."""
    own = (info.video.height or None) if info.video else None
    if rendition is None:
        return {"height": own, "bitrate": None}
    return {"height": rendition.height or own, "bitrate": rendition.bitrate}


def top_bitrate(track: EncodedTrack) -> int:
    """bit/s of the video with all its lines: what the file has, or what suits the size where it does not tell."""
    if track.bitrate:
        return bounded_bitrate(track.bitrate)
    return usual_bitrate(track.width, track.height, track.frame_rate or 30.0)


def live_rendition(height: int | None, track: EncodedTrack) -> Rendition:
    """What video is encoded to just in time: the lines that are wanted, or all, with the most bits that those may take."""
    level = next((one for one in LEVELS.values() if one.height == height), None)
    if level is not None and level.height is not None and level.height < track.height:
        return level
    fitting = (one for one in LEVELS.values() if (one.height or 0) >= track.height)
    usual = next(fitting, LEVELS["very_high"]).bitrate or 0
    return Rendition(height, max(usual, top_bitrate(track)))
