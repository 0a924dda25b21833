"""What a cursor is asked for, and the clock that its packets are told in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from ipfs_stream_nb.media.encoded import Aim, TrackKind

CLOCK: Final = 90_000
"""Ticks of a second, on which all times of packets lie, so that they are the same however one came there."""

Alive = Callable[[], None]
"""Called while decoding goes on without a packet to show for it."""


@dataclass(frozen=True, slots=True)
class Order:
    """Packets of one track from a place on."""

    kind: TrackKind
    position: float
    """Seconds."""
    after: bool
    """Only packets later than `position`, which continue what ended there; else from the one that holds it."""
    height: int | None
    bitrate: int | None
    aim: Aim | None = None
    """Where it is encoded just in time: what the network carries, set anew with each MORE."""

    @property
    def ticks(self) -> int:
        """The position on the clock."""
        return round(self.position * CLOCK)


def ticks_of(seconds: Fraction) -> int:
    """A time on the clock."""
    return round(seconds * CLOCK)
