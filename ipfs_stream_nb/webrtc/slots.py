"""How many peers there may be: one counter, shared by all managers of a server."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

from ipfs_stream_nb.errors import BusyError

MAX_PEERS: Final = 64
"""Peers in all."""
MAX_PEERS_PER_USER: Final = 16


class PeerSlots:
    """Counts peers, by user and in all. None is one user as well."""

    def __init__(self, total: int = MAX_PEERS, per_user: int = MAX_PEERS_PER_USER) -> None:
        self.total = total
        self.per_user = per_user
        self._by_user: Counter[str | None] = Counter()

    @property
    def active(self) -> int:
        """Peers there are."""
        return self._by_user.total()

    def take(self, user: str | None) -> None:
        """Count one more. Raises BusyError where there is no room."""
        if self.active >= self.total:
            raise BusyError(f"{self.total} peer connections are open, which is the limit")
        if self._by_user[user] >= self.per_user:
            raise BusyError(f"you have {self.per_user} peer connections open, which is the limit; close one")
        self._by_user[user] += 1

    def give_back(self, user: str | None) -> None:
        """Count one less."""
        self._by_user[user] -= 1
        if self._by_user[user] <= 0:
            del self._by_user[user]


@dataclass(frozen=True, slots=True)
class PeerLimits:
    """What a peer may do, and how long it may take. Seconds."""

    connect_seconds: float = 30.0
    """From the offer until media can flow."""
    max_tracks: int = 8
    """Tracks of one peer, those that were removed included: each keeps its place in the description."""
    max_candidates: int = 64
    """Candidates that one peer may name: to each of them packets are sent before anybody there has agreed."""
    allow_loopback: bool = False
    """Whether candidates on the loopback and link-local addresses are taken."""
