"""The way of emitted events into the log: at once for whoever emits, in batches for the log."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterable, Mapping
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

from ipfs_stream_nb.notifications.engine import Engine
from ipfs_stream_nb.notifications.events import Event, NotificationType

MAX_WAITING: Final = 10_000
"""Emitted events that wait to be committed; more are lost, and counted."""
AT_ONCE: Final = 500
"""Events that are given to the log together."""
COMPLAIN_SECONDS: Final = 60.0
"""Seconds between two complaints in the server's log about lost events."""

log = logging.getLogger(__name__)


async def send(engine: Engine, events: Iterable[tuple[Event, bool]]) -> list[int | BaseException | None]:
    """Send events, each with whether the log is to keep it: the id, None for what it does not keep, or the error of each.

    They go in their order: what is kept is committed before what is only announced behind it.
    """
    done: list[int | BaseException | None] = []
    for keep, group in groupby(events, key=itemgetter(1)):
        work = [engine.publish(event) if keep else engine.announce(event) for event, _ in group]
        done += await asyncio.gather(*work, return_exceptions=True)
    return done


class Emission:
    """A bounded queue and the task that empties it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: deque[tuple[Event, bool]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._more = asyncio.Event()
        self._closing = False
        self._complained = -COMPLAIN_SECONDS
        self.lost = 0
        """Events that were emitted and could not be kept or sent."""

    def start(self) -> None:
        """Begin to commit."""
        self._closing = False
        self._task = asyncio.create_task(self._run(), name="commit emitted events")

    def put(
        self,
        notification_type: NotificationType,
        data: Mapping[str, Any],
        *,
        source: str | None,
        owner: str | None,
        keep: bool,
    ) -> None:
        """Take an event; never fails."""
        try:
            event = Event(notification_type, data, source, owner)
        except Exception as error:  # noqa: BLE001  # whatever it is, the work that emits goes on
            self._lose(1, error)
            return
        if self._closing or len(self._waiting) >= MAX_WAITING:
            self._lose(1, f"over {MAX_WAITING} wait to be committed")
            return
        self._waiting.append((event, keep))
        self._more.set()

    async def _run(self) -> None:
        while self._waiting or not self._closing:
            if not self._waiting:
                self._more.clear()
                await self._more.wait()
                continue
            taken = [self._waiting.popleft() for _ in range(min(AT_ONCE, len(self._waiting)))]
            done = await send(self._engine, taken)
            failures = [error for error in done if isinstance(error, BaseException)]
            if failures:
                self._lose(len(failures), failures[0])

    def _lose(self, count: int, why: object) -> None:
        self.lost += count
        if time.monotonic() - self._complained >= COMPLAIN_SECONDS:
            self._complained = time.monotonic()
            log.warning("%d events could not be sent, %d so far: %s", count, self.lost, why)

    async def close(self) -> None:
        """Commit what waits, then end. Idempotent."""
        self._closing = True
        self._more.set()
        if self._task is not None:
            await self._task
            self._task = None
