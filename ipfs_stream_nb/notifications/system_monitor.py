"""What the system warns of, and the other events about the server itself."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from ipfs_stream_nb import __version__
from ipfs_stream_nb.display import size_text
from ipfs_stream_nb.notifications.emitting import Emit
from ipfs_stream_nb.notifications.events import SOURCE, NotificationType
from ipfs_stream_nb.notifications.system import MetricsCollector, Store
from ipfs_stream_nb.notifications.system_readings import Disk
from ipfs_stream_nb.process_end import process_ends

LOOK_SECONDS: Final = 10.0
"""Seconds between two looks."""
QUIET_SECONDS: Final = 60.0
"""Seconds between two events about one thing, at the least."""
LOW_SHARE: Final = 0.05
"""The share of a disk below which what is free is little."""
LOW_TIMES: Final = 2
"""It is little as well below so many times what must stay free."""
DISK_OVER: Final = 1.1
"""So many times that little must be free for it to be over."""
QUOTA_NEAR: Final = 0.9
QUOTA_OVER: Final = 0.85
"""Shares of a quota: the warning begins at the one, and is over below the other."""
SLOW_LAG: Final = 0.25
"""Seconds of lag above which an event loop is slow."""

_log = logging.getLogger("ipfs_stream_nb.notifications")


@dataclass(slots=True)
class Finding:
    """One thing that was looked at."""

    warning: str
    """disk_low, quota_near or event_loop_slow."""
    bad: bool
    message: str
    """What is, for people."""
    numbers: dict[str, Any]


@dataclass(slots=True)
class _Told:
    """What was said of one thing last."""

    bad: bool = False
    at: float = float("-inf")


class SystemMonitor:
    """Looks at the disk, the quota and the event loop every LOOK_SECONDS; says when one becomes bad, and when it is over.

    `system_warning`: {"warning", "message", numbers}; `system_info`: {"event": "resolved", "warning", "message", numbers}.
    At most one in QUIET_SECONDS about each: what changes in between is said then, if it is still so.
    """

    def __init__(
        self,
        emit: Emit,
        collector: MetricsCollector,
        *,
        min_free: int = 0,
        seconds: float = LOOK_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`collector`: started, and closed, by its owner; `min_free`: bytes that must stay free on the store's disk."""
        self._emit = emit
        self._collector = collector
        self._min_free = min_free
        self._seconds = seconds
        self._clock = clock
        self._bad: dict[str, bool] = {}
        self._told: dict[str, _Told] = {}
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look now, and from here on. Called on the loop. Idempotent."""
        if self._running is None:
            self._collector.lag.take_worst()  # a server that starts is slow for other reasons
            self._running = asyncio.create_task(self._run(), name="watch the system")

    async def close(self) -> None:
        """End. Idempotent."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                await self.look()
            except Exception:  # noqa: BLE001  # the next look may do
                if process_ends():
                    return
                _log.exception("The system could not be looked at")
            await asyncio.sleep(self._seconds)

    async def look(self) -> None:
        """Look once, and say what changed."""
        store = await self._collector.store()
        disk = await asyncio.to_thread(self._collector.space)
        for finding in self._findings(disk, store, self._collector.lag.take_worst()):
            self._note(finding)

    def _findings(self, disk: Disk | None, store: Store | None, lag: float) -> Iterator[Finding]:
        if disk is not None:
            low = max(self._min_free * LOW_TIMES, LOW_SHARE * disk.total)
            yield Finding(
                "disk_low",
                disk.free < low * (DISK_OVER if self._bad.get("disk_low") else 1),
                f"the store's disk has {size_text(disk.free)} free of {size_text(disk.total)}",
                {"free": disk.free, "total": disk.total, "min_free": self._min_free},
            )
        if store is not None and store.stat.quota:
            used = store.kept / store.stat.quota
            yield Finding(
                "quota_near",
                used >= (QUOTA_OVER if self._bad.get("quota_near") else QUOTA_NEAR),
                f"the store holds {size_text(store.kept)} of its quota of {size_text(store.stat.quota)}",
                {"size": store.kept, "quota": store.stat.quota, "percent": round(100 * used, 1)},
            )
        yield Finding(
            "event_loop_slow",
            lag > SLOW_LAG,
            f"the server's event loop was up to {lag:.2f} s late",
            {"lag": round(lag, 4), "limit": SLOW_LAG},
        )

    def _note(self, finding: Finding) -> None:
        self._bad[finding.warning] = finding.bad
        told, now = self._told.setdefault(finding.warning, _Told()), self._clock()
        if finding.bad == told.bad or now - told.at < QUIET_SECONDS:
            return
        told.bad, told.at = finding.bad, now
        data = {"warning": finding.warning, "message": finding.message} | finding.numbers
        if finding.bad:
            self._emit(NotificationType.SYSTEM_WARNING, data, source=SOURCE)
        else:
            self._emit(NotificationType.SYSTEM_INFO, {"event": "resolved"} | data, source=SOURCE)


def emit_started(emit: Emit, node: str) -> None:
    """Say that the server's node is open, of this kind."""
    emit(
        NotificationType.SYSTEM_INFO,
        {"event": "started", "message": "the server has started", "version": __version__, "node": node},
        source=SOURCE,
    )
