"""An `Emit` that keeps what it is given, and can be waited for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ipfs_stream_nb.notifications.events import Event, NotificationType

SECONDS = 10


@dataclass(frozen=True)
class Told:
    """One event as it was emitted."""

    kind: str
    data: dict[str, Any]
    owner: str | None
    keep: bool


class Recorder:
    """Made on an event loop."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self._came = asyncio.Event()

    def __call__(
        self,
        notification_type: NotificationType,
        data: Mapping[str, Any],
        *,
        source: str | None = None,
        owner: str | None = None,
        keep: bool = True,
    ) -> None:
        """Emit. What is no event raises, as the manager would drop it."""
        Event(notification_type, data, source, owner)
        assert source == "ipfs_stream_nb"
        self.told.append(Told(notification_type.value, json.loads(json.dumps(data)), owner, keep))
        self._came.set()

    def of(self, *kinds: str) -> list[Told]:
        """Those of these types, so far."""
        return [told for told in self.told if told.kind in kinds]

    async def wait(self, *kinds: str, count: int = 1) -> list[Told]:
        """Those of these types, once there are so many."""
        async with asyncio.timeout(SECONDS):
            while len(self.of(*kinds)) < count:
                self._came.clear()
                await self._came.wait()
        return self.of(*kinds)
