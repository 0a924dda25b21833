"""The protocol's levels of quality, and what they mean for a source."""

from __future__ import annotations

from typing import Any, Final

from ipfs_stream_nb.errors import BadRequestError
from ipfs_stream_nb.media.encoded import EncodedInfo, Rendition

AUTO: Final = "auto"
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


def rendition_of(quality: str, info: EncodedInfo) -> Rendition | None:
    """What a level is for a source. None: the source as it is, which a level of as many lines or more is too."""
    if quality == AUTO or info.video is None:
        return None
    level = LEVELS[quality]
    return None if 0 < info.video.height <= (level.height or 0) else level


def score(rtt: float | None, loss: float | None) -> int:
    """A connection's quality, 0 to 100: 60 points are lost at 10 % of packets lost, 40 at a round trip of 0.5 s."""
    lost = min((loss or 0.0) / 0.1, 1.0) * 60
    slow = min((rtt or 0.0) / 0.5, 1.0) * 40
    return round(100 - lost - slow)


def rendition_json(rendition: Rendition | None, info: EncodedInfo) -> dict[str, Any]:
    """height and bitrate as events tell them; null where the source's own are not known."""
    if rendition is None:
        return {"height": (info.video.height or None) if info.video else None, "bitrate": None}
    return {"height": rendition.height, "bitrate": rendition.bitrate}
