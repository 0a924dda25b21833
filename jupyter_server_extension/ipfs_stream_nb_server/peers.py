"""Media to WebRTC peers: the workers that encode, the count of peers, and the sessions of WHEP players."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.node import Node
from ipfs_stream_nb.errors import StoreError
from ipfs_stream_nb.media.worker.limits import WorkerLimits
from ipfs_stream_nb.media.worker.pool import WorkerPool
from ipfs_stream_nb.notifications.emitting import Emit
from ipfs_stream_nb.security.access import Action
from ipfs_stream_nb.transports.connection import Connection
from ipfs_stream_nb.webrtc.slots import PeerLimits, PeerSlots

Authorize = Callable[[Action, CID | None], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """What an operator can set of it."""

    ice_servers: list[dict[str, Any]] = field(default_factory=list)
    """As a browser's RTCConfiguration has them."""
    ice_transport_policy: str = "all"
    slots: PeerSlots = field(default_factory=PeerSlots)
    limits: PeerLimits = field(default_factory=PeerLimits)
    workers: WorkerLimits = field(default_factory=WorkerLimits)


class Peers:
    """aiortc, which takes half a second to be imported, is imported with the first of them."""

    def __init__(self, settings: PeerSettings, emit: Emit) -> None:
        self._settings = settings
        self._emit = emit
        self._pool: WorkerPool | None = None
        self._whep: tuple[Node, Any] | None = None
        self._closed = False

    @property
    def active(self) -> int:
        """How many there are."""
        return self._settings.slots.active

    def _options(self) -> dict[str, Any]:
        if self._closed:
            raise StoreError("the server is shutting down")
        if self._pool is None:
            self._pool = WorkerPool(self._settings.workers)
        settings = self._settings
        return {
            "sources": self._pool.open,
            "ice_servers": settings.ice_servers,
            "ice_transport_policy": settings.ice_transport_policy,
            "limits": settings.limits,
            "slots": settings.slots,
            "emit": self._emit,
        }

    async def signal(
        self, connection: Connection, node: Node, authorize: Authorize, *, owner: str | None, user: str
    ) -> None:
        """Serve one client's signaling. Raises ConnectionClosedError."""
        signaling = await asyncio.to_thread(import_module, "ipfs_stream_nb.webrtc.signaling")
        options = self._options()
        await signaling.handle_webrtc_signaling(
            connection, node, authorize=authorize, owner=owner, user=user, **options
        )

    async def whep(self, node: Node) -> Any:
        """The WHEP sessions of a node (webrtc.whep.WhepSessions)."""
        module = await asyncio.to_thread(import_module, "ipfs_stream_nb.webrtc.whep")
        if self._whep is None or self._whep[0] is not node:
            before, self._whep = self._whep, (node, module.WhepSessions(node, **self._options()))
            if before is not None:
                await before[1].close()
        return self._whep[1]

    async def close(self) -> None:
        """End all sessions and workers. Idempotent."""
        self._closed = True
        whep, self._whep = self._whep, None
        if whep is not None:
            await whep[1].close()
        if self._pool is not None:
            await self._pool.close()
