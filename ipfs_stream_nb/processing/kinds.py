"""The kinds of work, by name: their options, checked when they are made, and the work itself, for a thread."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, fields
from typing import Any, Final, Protocol

from ipfs_stream_nb.content.file import ContentFile
from ipfs_stream_nb.errors import BadRequestError
from ipfs_stream_nb.processing.checksums import checksums
from ipfs_stream_nb.processing.job import Job, Outcome

MAX_WIDTH: Final = 4096
"""Pixels of a thumbnail's width."""
MAX_HEIGHT: Final = 4320
"""Pixels of a transcoded picture's height: 8K."""
MIN_SIDE: Final = 16
"""Pixels of a width or height that can be asked for."""
BITRATES: Final = (10_000, 200_000_000)
"""Bits a second that can be asked for."""
_PICTURES: Final = {"jpeg": "JPEG", "jpg": "JPEG", "png": "PNG"}


class Kind(Protocol):
    """One kind of work with its options."""

    def work(self, file: ContentFile, job: Job) -> Outcome:
        """Do it, on a worker thread. Raises what goes wrong with the content, and StoppedError."""


@dataclass(frozen=True)
class Probe:
    """Media info: format, duration, streams."""

    def work(self, file: ContentFile, job: Job) -> Outcome:  # noqa: ARG002  # it ends at its next read
        """See MediaInfo."""
        from ipfs_stream_nb.processing.probing import facts_of  # noqa: PLC0415  # PyAV takes 0.2 s to import

        return Outcome(facts_of(file))


@dataclass(frozen=True)
class Checksums:
    """Digests of a file's bytes."""

    def work(self, file: ContentFile, job: Job) -> Outcome:
        """All of them in one pass."""
        return Outcome(checksums(file, job))


@dataclass(frozen=True)
class Thumbnail:
    """A picture of a video or image, which is added to the node."""

    time: float | None = None
    """Seconds of the content; None is a tenth of its length."""
    width: int = 320
    """Pixels at most; a smaller picture is not enlarged."""
    format: str = "jpeg"
    """"jpeg" or "png"."""
    pin: bool = True

    def __post_init__(self) -> None:
        if self.time is not None:
            _check_time(self.time)
        _check_whole("width", self.width, MIN_SIDE, MAX_WIDTH)
        if not isinstance(self.format, str) or self.format not in _PICTURES:
            raise BadRequestError(f"format={self.format!r}: expected 'jpeg' or 'png'")
        _check_flag("pin", self.pin)

    def work(self, file: ContentFile, job: Job) -> Outcome:  # noqa: ARG002  # it ends at its next read
        """Decode one frame."""
        from ipfs_stream_nb.processing.thumbnail import thumbnail  # noqa: PLC0415  # PyAV takes 0.2 s to import

        time = None if self.time is None else float(self.time)
        picture, facts = thumbnail(file, time, int(self.width), _PICTURES[self.format])
        ending = "png" if self.format == "png" else "jpg"
        return Outcome(facts, picture, f"-thumbnail.{ending}", self.pin)


@dataclass(frozen=True)
class Transcode:
    """Video or sound as WebM, which every browser plays; it is added to the node."""

    height: int | None = None
    """Pixels at most; None keeps it. A smaller picture is not enlarged."""
    bitrate: int | None = None
    """Bits a second of the pictures; None takes what their size needs."""
    pin: bool = True

    def __post_init__(self) -> None:
        if self.height is not None:
            _check_whole("height", self.height, MIN_SIDE, MAX_HEIGHT)
        if self.bitrate is not None:
            _check_whole("bitrate", self.bitrate, *BITRATES)
        _check_flag("pin", self.pin)

    def work(self, file: ContentFile, job: Job) -> Outcome:
        """Decode and encode all of it."""
        from ipfs_stream_nb.processing.transcode import transcode  # noqa: PLC0415  # PyAV takes 0.2 s to import

        sizes = [None if value is None else int(value) for value in (self.height, self.bitrate)]
        output, facts = transcode(file, job, *sizes)
        return Outcome(facts, output, ".webm", self.pin)


KINDS: Final[dict[str, type[Kind]]] = {
    "probe": Probe,
    "checksums": Checksums,
    "thumbnail": Thumbnail,
    "transcode": Transcode,
}
"""The process types."""


def kind_of(process_type: object, options: dict[str, Any]) -> Kind:
    """The kind of work with its options. Raises BadRequestError for unknown ones, and for values that make no sense."""
    kind = KINDS.get(process_type) if isinstance(process_type, str) else None
    if kind is None:
        raise BadRequestError(f"process_type={str(process_type)[:80]!r}: expected one of {', '.join(KINDS)}")
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # all are dataclasses
    for name in options:
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise BadRequestError(f"{process_type} has no option {name[:80]!r}; {has}")
    return kind(**options)


def _check_time(time: object) -> None:
    try:
        seconds = float(time)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if isinstance(time, str) or not (math.isfinite(seconds) and seconds >= 0):
        raise BadRequestError(f"time={str(time)[:80]}: expected seconds, from 0")


def _check_whole(name: str, value: object, least: int, most: int) -> None:
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = -1
    if not least <= number <= most:
        raise BadRequestError(f"{name}={str(value)[:80]}: expected a whole number from {least:,} to {most:,}")


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise BadRequestError(f"{name}={str(value)[:80]}: expected True or False")
