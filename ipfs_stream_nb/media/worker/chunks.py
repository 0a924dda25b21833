"""Packets in a row, as they are kept."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ipfs_stream_nb.media.encoded import EncodedPacket

if TYPE_CHECKING:
    from ipfs_stream_nb.media.worker.shelf import Run

PACKET_COST: Final = 256
"""Bytes that a packet takes beside its data,"""
CHUNK_COST: Final = 2048
"""and a chunk."""
ROUNDING: Final = 1e-5
"""Seconds that are no difference."""


@dataclass(eq=False)
class Chunk:
    """Packets in a row. It is whole once `end` is known; until then `run` makes more of it."""

    asked: float
    """The position (s) that it is the answer to; its start where it follows another."""
    run: Run | None
    start: float = math.inf
    """The time of its first packet; infinite before there is one."""
    joinable: bool = True
    """Whether its first packet is a key frame."""
    packets: list[EncodedPacket] = field(default_factory=list)
    sizes: list[int] = field(default_factory=lambda: [0])
    """Bytes of the packets before each one."""
    end: float | None = None
    """Where the next chunk begins; infinite at the end of the content."""
    readers: int = 0
    used: int = 0
    """Grows with each use."""

    @property
    def cost(self) -> int:
        """Bytes of memory, about."""
        return CHUNK_COST + self.sizes[-1] + PACKET_COST * len(self.packets)

    def add(self, packet: EncodedPacket) -> None:
        """Add the next packet."""
        if not self.packets:
            self.start, self.joinable = packet.time, packet.keyframe
        self.packets.append(packet)
        self.sizes.append(self.sizes[-1] + len(packet.data))

    def place(self, position: float) -> int:
        """The last key frame at or before a position."""
        places = range(len(self.packets) - 1, -1, -1)
        found = (
            n for n in places if self.packets[n].keyframe and self.packets[n].time <= position + ROUNDING
        )
        return next(found, 0)
