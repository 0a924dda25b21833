"""One subscriber: what it wants, how far it is, and its own pace.

A subscriber that keeps up is sent each pack at once. For one that does not, packs wait in a queue that is bounded; what does
not fit there is read again from the log once it has caught up. So a slow subscriber never holds up another, and nothing is
lost for either.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from ipfs_stream_nb.errors import IPFSStreamError
from ipfs_stream_nb.notifications.filters import Filters
from ipfs_stream_nb.notifications.history import History
from ipfs_stream_nb.notifications.packs import Outlet, Pack
from ipfs_stream_nb.notifications.rights import Principal
from ipfs_stream_nb.notifications.selection import Batch, Selection
from ipfs_stream_nb.transports.connection import INTERNAL, ConnectionClosedError, close_reason

log = logging.getLogger(__name__)

MAX_QUEUED: Final = 256
"""Messages that wait for one subscriber."""
MAX_QUEUED_BYTES: Final = 1 << 20
"""Bytes of them. Subscribers who want the same share them."""


class Subscriber:
    """A connection, its subscriptions, and how far it is. `tail`: up to which id all is sent, or waits in the queue."""

    def __init__(
        self,
        id: str,  # noqa: A002  # the protocol's word
        outlet: Outlet,
        principal: Principal | None,
        history: History,
        on_lost: Callable[[Subscriber], None],
    ) -> None:
        self.id = id
        self.outlet = outlet
        self.principal = principal
        self.connected_at = time.time()
        self.filters: dict[str, Filters] = {}
        self.selection = Selection.of({}, principal)
        self.tail = self.prev = history.head
        self.sent = 0
        """Notifications."""
        self.lagged = 0
        """How often it was too slow for its queue."""
        self.dropped = 0
        """Events that the log does not keep, and that there was no room for."""
        self.lost = False
        self._history = history
        self._on_lost = on_lost
        self.held = 0
        """Up to which id some types' events are not wanted: it reads these from the log."""
        self._after: dict[str, int] = {}
        """The same for each type."""
        self._queue: deque[Pack] = deque()
        self._queued = self._queued_bytes = 0
        self._overflowed = False
        self._said = 0
        """Messages in the queue that are no events."""
        self._heard: asyncio.Future[None] | None = None
        self._sender: asyncio.Task[None] | None = None

    # what it wants

    def want(self, types: tuple[str, ...], filters: Filters, since: int | None) -> int:
        """Subscribe: from behind `since`, or from here on. Gives the id behind which these types' events begin."""
        start = self._history.head if since is None else since
        if since is not None:
            if since < self.tail:
                for other in self.filters:
                    self._after[other] = max(self._after.get(other, 0), self.tail)
                self.tail, self._overflowed = since, False
            self.prev = min(since, self.tail)
        for name in types:
            self._after[name] = start
            self.filters[name] = filters
        self.held = max(self._after.values(), default=0)
        self.selection = Selection.of(self.filters, self.principal)
        return start

    def unwant(self, types: tuple[str, ...]) -> None:
        """Unsubscribe."""
        for name in types:
            self.filters.pop(name, None)
            self._after.pop(name, None)
        self.selection = Selection.of(self.filters, self.principal)

    def restart(self) -> None:
        """The log began anew: all of the new one is wanted."""
        self.tail = self.prev = 0
        self._overflowed = False
        self._after.clear()
        self.held = 0

    # what it is sent

    def deliver(self, pack: Pack, last: int) -> None:
        """Take a pack that ends with the id `last`, of those that begin right behind `tail`."""
        if not pack.messages or self._send_or_queue(pack):
            self.tail, self.prev = last, pack.prev
        else:
            self._overflowed = True

    def pass_on(self, pack: Pack) -> None:
        """Take events that the log does not keep; they are dropped where there is no room for them."""
        if not self._send_or_queue(pack):
            self.dropped += pack.events

    def say(self, message: dict[str, Any]) -> None:
        """Send a message that is no event, behind all that waits already."""
        pack = Pack.control(message)
        if not (self._sender is None and self._offer(pack)):
            self._put(pack)

    async def listened(self) -> None:
        """Wait until nothing that was said waits any more: a client's next command is read then."""
        while self._said and not self.lost:
            self._heard = asyncio.get_running_loop().create_future()
            await self._heard

    def _send_or_queue(self, pack: Pack) -> bool:
        """False where there is no room for it."""
        if self._sender is None and self._offer(pack):
            return True
        messages, size = self._queued + len(pack.messages), self._queued_bytes + pack.size
        if self._queue and (messages > MAX_QUEUED or size > MAX_QUEUED_BYTES):
            return False
        self._put(pack)
        return True

    def _offer(self, pack: Pack) -> bool:
        """Send it if nothing waits; what is lost with its client counts as sent."""
        if self.lost:
            return True
        try:
            taken = self.outlet.offer(pack)
        except ConnectionClosedError:
            self._lose()
            return True
        if taken:
            self.sent += pack.events
        return taken

    def _put(self, pack: Pack) -> None:
        self._queue.append(pack)
        self._queued += len(pack.messages)
        self._queued_bytes += pack.size
        self._said += not pack.events
        self.wake()

    # a pace of its own

    def wake(self) -> None:
        """Send what waits, and what of the log is not sent yet, beside everything else."""
        if self._sender is None and not self.lost and (self._queue or self.tail < self._history.head):
            self._sender = asyncio.create_task(self._send_on(), name=f"send to subscriber {self.id}")

    async def _send_on(self) -> None:
        try:
            while self._queue or self.tail < self._history.head:
                if self._queue:
                    pack = self._take()
                    await self._hand_over(pack)
                    if not pack.events:
                        self._said -= 1
                        self._hear()
                else:
                    await self._read_on()
        except ConnectionClosedError:
            self._lose()
        except Exception as error:  # mostly a log that cannot be read: the client comes again with its cursor
            if not isinstance(error, IPFSStreamError):
                log.exception("Nothing more can be sent to subscriber %s", self.id)
            await self.outlet.close(INTERNAL, close_reason(error))
            self._lose()
        finally:
            self._sender = None

    def _take(self) -> Pack:
        pack = self._queue.popleft()
        self._queued -= len(pack.messages)
        self._queued_bytes -= pack.size
        return pack

    async def _hand_over(self, pack: Pack) -> None:
        await self.outlet.drained()
        while not self.outlet.offer(pack):
            await self.outlet.drained()
        self.sent += pack.events

    def _hear(self) -> None:
        if self._heard is not None and not self._heard.done():
            self._heard.set_result(None)

    async def _read_on(self) -> None:
        """Send the next piece of the log."""
        begun = self.tail
        if self._overflowed:
            self._overflowed = False
            self.lagged += 1
            self.say({"type": "lagged", "from": begun + 1, "to": self._history.head})
            return
        records = await self._history.after(begun)
        if self.tail != begun or self._queue:
            return  # it has subscribed anew meanwhile, or is to be told something first
        self.tail = records[-1].id if records else self._history.head
        first = records[0].id if records else self._history.head + 1
        if first != begun + 1:
            self.prev = first - 1
            self.say(self._history.reset(first))
        # what it subscribes to while this is on its way changes nothing in it
        batch = Batch([r for r in records if r.id > self._after.get(r.notification_type, 0)])
        pack = Pack.of(self.selection.wanted(batch), self.prev)
        self.prev = pack.prev
        if pack.messages:
            self._put(pack)

    def _lose(self) -> None:
        if not self.lost:
            self.lost = True
            self._queue.clear()
            self._hear()
            self._on_lost(self)

    async def close(self) -> None:
        """Stop sending. Idempotent."""
        self.lost = True
        self._queue.clear()
        self._hear()
        if self._sender is not None and self._sender is not asyncio.current_task():
            self._sender.cancel()
            await asyncio.wait([self._sender])
