"""The server's notifications: the log and its manager, the system's metrics and warnings, and Jupyter's own events."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jupyter_events import EventLogger

from ipfs_stream_nb.content.node import Node
from ipfs_stream_nb.errors import IPFSStreamError, StoreError
from ipfs_stream_nb.notifications.authorized import AuthorizedNotificationManager
from ipfs_stream_nb.notifications.engine import Engine
from ipfs_stream_nb.notifications.events import NotificationType
from ipfs_stream_nb.notifications.system import MetricsCollector
from ipfs_stream_nb.notifications.system_monitor import SystemMonitor
from ipfs_stream_nb.process_end import process_ends
from ipfs_stream_nb_server.jupyter_events import JupyterEventsBridge

REOPEN_AFTER: Final = 5.0
"""Seconds after a log could not be opened until a request makes the server try again."""


@dataclass(frozen=True, slots=True)
class FeedSettings:
    """What a feed is made of."""

    store: Path
    """The store's directory, whose disk is watched."""
    engine: Engine | None = None
    """The log; None: one that lasts as long as the server."""
    min_free: int = 0
    """Bytes that must stay free there."""
    event_logger: EventLogger | None = None
    """Jupyter's."""
    everybody_sees_all: bool = False
    """Whether all who may listen to Jupyter's events have all rights here."""


class Feed:
    """Opened beside everything else: a log that cannot be opened does not stop the server. Requests for it get the
    reason then, what is emitted is lost and counted, and it is tried again after a while."""

    def __init__(self, settings: FeedSettings, log: logging.Logger) -> None:
        self.manager = AuthorizedNotificationManager(settings.engine)
        self._settings = settings
        self._log = log
        self._opening: asyncio.Task[str | None] | None = None
        self._retry_at = 0.0
        self._closed = False
        self.collector: MetricsCollector
        """From `attach` on."""
        self._monitor: SystemMonitor

    def attach(self, node: Callable[[], Node | None], active: Callable[[], Mapping[str, int]]) -> None:
        """Say what is to be watched: called once, before everything else. `node`: the open one; `active`: counts of what
        runs."""
        settings, manager = self._settings, self.manager
        self.collector = MetricsCollector(
            manager.emit,
            node=node,
            active=active,
            folder=settings.store,
            wanted=lambda: bool(manager.subscriptions.get(NotificationType.SYSTEM_METRICS)),
        )
        self._monitor = SystemMonitor(manager.emit, self.collector, min_free=settings.min_free)
        if settings.event_logger is not None:
            bridge = JupyterEventsBridge(settings.event_logger, restricted=settings.everybody_sees_all)
            manager.listeners.append(lambda record: bridge.forward(record, manager.epoch))

    def start(self) -> None:
        """Begin to watch, and to open the log. Idempotent."""
        self.collector.start()
        self._monitor.start()
        self._open()

    def _open(self) -> asyncio.Task[str | None]:
        if self._opening is None or (self._opening.done() and time.monotonic() >= self._retry_at):
            self._opening = asyncio.create_task(self._try_to_open(), name="open the log of notifications")
        return self._opening

    async def _try_to_open(self) -> str | None:
        """Open it, or give the reason why not."""
        try:
            await self.manager.open()
        except IPFSStreamError as error:
            reason = str(error)
        except Exception:  # noqa: BLE001  # whatever it is, the server goes on, and says it on each request
            if process_ends():
                return "the process ends"
            self._log.exception("The log of notifications cannot be opened")
            reason = "the log of notifications cannot be opened; the server's log says why"
        else:
            self._retry_at = float("inf")
            return None
        self._log.error("There are no notifications: %s", reason)
        self._retry_at = time.monotonic() + REOPEN_AFTER
        return reason

    async def ready(self) -> AuthorizedNotificationManager:
        """The open manager. Raises StoreError with the reason why there is none."""
        if self._closed:
            raise StoreError("the server is shutting down")
        self.start()
        reason = await asyncio.shield(self._open())  # a client that leaves must not end it for the others
        if reason is not None:
            raise StoreError(reason)
        return self.manager

    async def close(self) -> None:
        """Commit what was emitted, end all subscribers, and close the log. Idempotent."""
        self._closed = True
        await self._monitor.close()
        await self.collector.close()
        if self._opening is not None:
            await asyncio.wait([self._opening])
        await self.manager.close()
