"""From the log to all subscribers: each event is looked at and encoded once for all who want the same."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import aclosing
from typing import Final

from ipfs_stream_nb.errors import IPFSStreamError
from ipfs_stream_nb.notifications.engine import Engine, EpochChangedError
from ipfs_stream_nb.notifications.events import Record
from ipfs_stream_nb.notifications.history import History
from ipfs_stream_nb.notifications.packs import Pack, first_of
from ipfs_stream_nb.notifications.selection import Batch, Selection
from ipfs_stream_nb.notifications.subscriber import Subscriber
from ipfs_stream_nb.process_end import process_ends

RETRY_SECONDS: Final = 1.0
"""Seconds until a log that could not be read is tried again."""
TURN_SECONDS: Final = 0.005
"""Seconds of sending after which others have their turn on the event loop."""

log = logging.getLogger(__name__)


class FanOut:
    """The one reader of the log that sends on what comes; subscribers who are behind read it themselves."""

    def __init__(
        self,
        engine: Engine,
        history: History,
        subscribers: Mapping[str, Subscriber],
        listeners: Iterable[Callable[[Record], None]],
        on_anew: Callable[[], None],
    ) -> None:
        """`on_anew` is called once the log has begun anew."""
        self._engine = engine
        self._history = history
        self._subscribers = subscribers
        self._listeners = listeners
        self._on_anew = on_anew

    async def run(self) -> None:
        """Send on what comes to the log, for ever, whatever happens to it."""
        while True:
            try:
                await asyncio.sleep(0)  # so that what fails at once cannot hold up everybody
                if (await self._engine.bounds()).epoch != self._history.epoch:
                    await self._begin_anew()
                for subscriber in list(self._subscribers.values()):
                    subscriber.wake()  # who missed something, reads it
                async with aclosing(self._engine.subscribe(self._history.head)) as batches:
                    async for records in batches:
                        await self._send_on(records)
            except EpochChangedError:
                continue
            except IPFSStreamError as error:
                log.warning("The log of notifications cannot be read: %s", error)
            except Exception:  # one event, or one subscriber, must not end the feed of all others
                if process_ends():
                    return
                log.exception("Notifications could not be sent on")
            await asyncio.sleep(RETRY_SECONDS)

    async def _send_on(self, records: list[Record]) -> None:
        for kept, group in itertools.groupby(records, key=lambda record: record.id > 0):
            left = list(group)
            while left:
                piece = first_of(left)
                left = left[len(piece) :]
                await (self._deliver(piece) if kept else self._pass_on(piece))

    async def _deliver(self, records: list[Record]) -> None:
        """Send events of the log to all who have all that came before them."""
        before = self._history.head
        self._history.append(records)
        for listener in self._listeners:
            for record in records:
                listener(record)
        whole = records[0].id == before + 1  # if not, others trimmed the log before it was read here
        last = records[-1].id
        batch = Batch(records)
        packs: dict[tuple[Selection, int], Pack] = {}
        began = asyncio.get_running_loop().time()
        for subscriber in list(self._subscribers.values()):
            if whole and subscriber.tail == before and subscriber.held <= before:
                key = (subscriber.selection, subscriber.prev)
                pack = packs.get(key)
                if pack is None:
                    pack = packs[key] = Pack.of(subscriber.selection.wanted(batch), subscriber.prev)
                subscriber.deliver(pack, last)
            else:
                subscriber.wake()  # it reads the log at a pace of its own
            began = await self._turn(began)

    async def _turn(self, began: float) -> float:
        """Let others have their turn on the event loop after TURN_SECONDS."""
        now = asyncio.get_running_loop().time()
        if now - began < TURN_SECONDS:
            return began
        await asyncio.sleep(0)
        return asyncio.get_running_loop().time()

    async def _pass_on(self, records: list[Record]) -> None:
        """Send events that no log keeps."""
        batch = Batch(records)
        packs: dict[Selection, Pack] = {}
        began = asyncio.get_running_loop().time()
        for subscriber in list(self._subscribers.values()):
            pack = packs.get(subscriber.selection)
            if pack is None:
                pack = packs[subscriber.selection] = Pack.of(subscriber.selection.wanted(batch), 0)
            if pack.messages:
                subscriber.pass_on(pack)
            began = await self._turn(began)

    async def _begin_anew(self) -> None:
        """The log began anew: everybody is told, and gets all that is in the new one."""
        await self._history.begin(head=0)
        for subscriber in list(self._subscribers.values()):
            subscriber.restart()
            subscriber.say(self._history.reset(1))
        self._on_anew()
