"""Publishing to a JetStream stream: many on their way at once, in the order of the calls, each kept exactly once."""

from __future__ import annotations

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from secrets import token_hex
from typing import Final

from ipfs_stream_nb.errors import BusyError, StoreError
from ipfs_stream_nb.notifications.events import Event
from ipfs_stream_nb.notifications.jetstream_link import Link, LostError
from ipfs_stream_nb.notifications.jetstream_wire import (
    MESSAGE_ID,
    NO_RESPONDERS,
    AwayError,
    Message,
    answer_of,
    encoded,
    status_of,
)

WINDOW: Final = 256
"""Events on their way at once."""
MAX_WAITING: Final = 16_384
"""Events that are not acknowledged yet; one more gets BusyError."""
MAX_WAITING_BYTES: Final = 32 << 20
RETRY_PAUSE: Final = 0.1
"""Seconds before what no stream took is sent again."""


@dataclass(slots=True)
class _Item:
    payload: bytes
    headers: dict[str, str]
    done: asyncio.Future[int]


class Publisher:
    """Sends events in the order of the calls; what was on its way when a connection was lost is sent again, in that order and
    before everything else, under the same message ids: JetStream keeps none twice."""

    def __init__(
        self, link: Link, stream: str, subject: str, timeout: float, restore: Callable[[], Awaitable[object]]
    ) -> None:
        """`restore` has the stream be there again."""
        self.retry_seconds = timeout
        """How long one event is tried; not longer than the stream knows message ids."""
        self._link = link
        self._stream = stream
        self._subject = subject
        self._restore = restore
        self._name = token_hex(8)
        self._numbers = itertools.count(1)
        self._waiting: OrderedDict[int, _Item] = OrderedDict()
        self._flying: OrderedDict[int, _Item] = OrderedDict()
        self._refused: OrderedDict[int, _Item] = OrderedDict()
        """What no stream took: it goes again once nothing is on its way any more."""
        self._bytes = 0
        self._count = 0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False
        self._sender: asyncio.Task[None] | None = None
        link.on_ack = self._acknowledged
        link.on_up = self._wake.set
        link.on_down.add(self._lost)

    def start(self) -> None:
        """Begin to send."""
        self._sender = asyncio.create_task(self._send_on(), name="publish events to JetStream")

    async def close(self) -> None:
        """Wait for what is on its way, as long as it may take. Idempotent."""
        self._closed = True
        await self._idle.wait()
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.wait([self._sender])

    async def publish(self, event: Event) -> int:
        """As the engine's."""
        if self._closed or self._sender is None:
            raise StoreError("the feed over NATS is closed")
        payload, headers = encoded(event)
        if self._count >= MAX_WAITING or self._bytes + len(payload) > MAX_WAITING_BYTES:
            raise BusyError(f"{self._count} events wait for NATS already; try again later", retry_after=1)
        number = next(self._numbers)
        headers[MESSAGE_ID] = f"{self._name}-{number}"
        item = self._waiting[number] = _Item(payload, headers, asyncio.get_running_loop().create_future())
        self._count += 1
        self._bytes += len(payload)
        self._idle.clear()
        self._wake.set()
        try:
            async with asyncio.timeout(self.retry_seconds):
                return await item.done
        except TimeoutError:
            raise AwayError(
                f"NATS did not acknowledge an event within {self.retry_seconds:g} s; it may have been kept all the same"
                + (f" ({self._link.said})" if self._link.said else "")
            ) from None
        finally:
            for items in (self._waiting, self._flying, self._refused):
                items.pop(number, None)
            self._count -= 1
            self._bytes -= len(payload)
            self._wake.set()
            if not self._count:
                self._idle.set()

    async def _send_on(self) -> None:
        while True:
            self._wake.clear()
            if self._refused and not self._flying:
                await self._send_refused_again()
            elif (
                self._waiting
                and not self._refused
                and len(self._flying) < WINDOW
                and self._link.client is not None
            ):
                await self._send_next()
            else:
                await self._wake.wait()

    async def _send_next(self) -> None:
        number, item = self._waiting.popitem(last=False)
        self._flying[number] = item
        try:
            await self._link.send(
                self._subject, item.payload, reply=self._link.ack_to(number), headers=item.headers
            )
        except LostError:
            pass  # it is sent again over the next connection
        except StoreError as error:
            _fail(item, error)

    async def _send_refused_again(self) -> None:
        await asyncio.sleep(RETRY_PAUSE)
        try:
            await self._restore()
        except AwayError:
            return  # each has its own time-out
        except StoreError as error:
            for item in self._refused.values():
                _fail(item, error)
            return
        self._waiting = OrderedDict([*self._refused.items(), *self._waiting.items()])
        self._refused.clear()

    def _acknowledged(self, number: int, message: Message) -> None:
        item = self._flying.pop(number, None)
        if item is None:
            return
        self._wake.set()
        if status_of(message) == NO_RESPONDERS:
            self._refused[number] = item
            return
        try:
            answer = answer_of(message)
        except StoreError as error:
            _fail(item, error)
            return
        if answer.get("stream") != self._stream:
            _fail(item, StoreError(f"another stream than {self._stream} keeps the subject {self._subject!r}"))
        elif not item.done.done():
            item.done.set_result(int(answer["seq"]))

    def _lost(self) -> None:
        """Have what was on its way go first over the next connection."""
        again = sorted([*self._flying.items(), *self._refused.items()])
        self._waiting = OrderedDict([*again, *self._waiting.items()])
        self._flying.clear()
        self._refused.clear()
        self._wake.set()


def _fail(item: _Item, error: StoreError) -> None:
    if not item.done.done():
        item.done.set_exception(error)
