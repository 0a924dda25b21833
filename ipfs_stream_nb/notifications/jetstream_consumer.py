"""Reading a JetStream stream: a consumer for a while, and a follower that has one after another, for ever."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from ipfs_stream_nb.errors import StoreError
from ipfs_stream_nb.notifications.engine import Bounds, EpochChangedError
from ipfs_stream_nb.notifications.events import MAX_EVENT, Record
from ipfs_stream_nb.notifications.jetstream_link import Link, LostError
from ipfs_stream_nb.notifications.jetstream_wire import (
    NO_STREAM,
    AwayError,
    Message,
    RefusedByJetStreamError,
    nothing,
    place,
    record_of,
    size_of,
    status_of,
)

if TYPE_CHECKING:
    from nats.aio.subscription import Subscription

BATCH: Final = 500
"""Events that a follower asks for at once."""
BATCH_BYTES: Final = 4 << 20
"""Bytes of them, beside one message that the server takes."""
EXPIRES_SECONDS: Final = 30
"""After which a request for events is made anew."""
HEARTBEAT_SECONDS: Final = 2
"""Seconds between two signs of life of a consumer that has nothing to send."""
SILENCE_SECONDS: Final = 2.5 * HEARTBEAT_SECONDS
"""Seconds without any after which it is taken for gone, and another is made."""
UNUSED_SECONDS: Final = 300
"""After which the server drops a consumer that nobody reads from."""
RETRY_PAUSE: Final = 0.5
"""Seconds between two attempts to have a consumer."""
MAX_SEQ: Final = (1 << 63) - 1
"""The largest id that is asked for; none is as large."""
MAX_LIVE: Final = 1024
"""Events without an id that wait for one subscription; more are dropped."""

_NANO: Final = 1_000_000_000
_GOES_ON: Final = ("Message Size Exceeds MaxBytes", "Batch Completed")
"""What ends a request, and not the consumer."""


@dataclass(frozen=True, slots=True)
class Source:
    """A stream, and what its readers need of the engine."""

    link: Link
    stream: str
    api: Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]
    bounds: Callable[[], Awaitable[Bounds]]


T = TypeVar("T")
Make = Callable[[int, bytes, Mapping[str, str] | None], T]
"""Makes, of a message's id, payload and headers, what is wanted of it."""


class Consumer(Generic[T]):
    """Delivers a stream from one id on, as it is asked to, each message once and in order, until `broken`."""

    def __init__(
        self, source: Source, wake: asyncio.Event, make: Make[T], *, only_headers: bool = False
    ) -> None:
        """`wake` is set whenever something has come; `only_headers`: without the payloads."""
        self.arrived: list[T] = []
        self.asked = 0
        """Messages that are still to come of those that were asked for."""
        self.broken = False
        """Nothing more will come: it, its stream or the connection is gone."""
        self._link = source.link
        self._stream = source.stream
        self._api = source.api
        self._wake = wake
        self._make = make
        self._only_headers = only_headers
        self._name = ""
        self._inbox = ""
        self._subscription: Subscription | None = None
        self._delivered = 0

    async def open(self, start: int) -> int:
        """Have it at the server. Gives the number of messages that are there from `start` on. Raises LostError, StoreError."""
        self._link.on_down.add(self._break)
        self._inbox, self._subscription = await self._link.subscribe(self._take)
        config = {
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": min(start, MAX_SEQ),
            "ack_policy": "none",
            "replay_policy": "instant",
            "inactive_threshold": UNUSED_SECONDS * _NANO,
            "headers_only": self._only_headers,
            "mem_storage": True,
            "num_replicas": 1,
        }
        body = {"stream_name": self._stream, "config": config}
        answer = await self._api(f"CONSUMER.CREATE.{self._stream}", body)
        self._name = str(answer["name"])
        return int(answer.get("num_pending", 0))

    async def ask(self, count: int, *, wait: bool) -> None:
        """Ask for so many messages; `wait`: also for what is yet to be published. Raises LostError, StoreError."""
        self.asked = count
        request: dict[str, Any] = {"batch": count}
        if wait:
            client = self._link.client
            request["max_bytes"] = BATCH_BYTES + 2 * (client.max_payload if client is not None else 0)
            request["expires"] = EXPIRES_SECONDS * _NANO
            request["idle_heartbeat"] = HEARTBEAT_SECONDS * _NANO
        else:
            request["no_wait"] = True
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._name}"
        await self._link.send(subject, json.dumps(request).encode(), reply=self._inbox)

    def taken(self) -> list[T]:
        """What has arrived, once."""
        arrived, self.arrived = self.arrived, []
        return arrived

    async def close(self) -> None:
        """Have it no more. Never fails."""
        self._link.on_down.discard(self._break)
        with suppress(
            Exception
        ):  # the server drops what nobody reads from, and an inbox ends with its connection
            if not self.broken or self._link.client is not None:
                if self._subscription is not None:
                    await self._subscription.unsubscribe()
                if self._name:
                    await self._link.send(f"$JS.API.CONSUMER.DELETE.{self._stream}.{self._name}")
        self.broken = True

    def _break(self) -> None:
        self.broken = True
        self._wake.set()

    def _take(self, message: Message) -> None:
        status = status_of(message)
        if status is not None:
            self._take_status(status, (message.headers or {}).get("Description", ""))
        elif not self.broken:
            try:
                seq, delivered = place(message.reply)
            except ValueError:
                return  # somebody wrote to this inbox
            if delivered != self._delivered + 1:
                self.broken = True  # one was lost on its way here
            else:
                self._delivered = delivered
                self.asked -= 1
                self.arrived.append(self._make(seq, message.data, message.headers))
        self._wake.set()

    def _take_status(self, status: str, description: str) -> None:
        if status == "100":
            return
        if status == "503" or (status == "409" and not description.startswith(_GOES_ON)):
            self.broken = True
        self.asked = 0


async def read(source: Source, start: int, count: int, max_bytes: int, *, newest: bool) -> list[Record]:
    """Of the `count` events from the id `start` on, all of them below the stream's end, the first ones that have room, or the
    `newest`. Raises LostError where that must be begun anew."""
    if count > max(1, max_bytes // MAX_EVENT):
        sizes = dict(await _delivered(source, start, count, size_of, only_headers=True))
        order = range(start, start + count)
        sums = accumulate(
            sizes.get(seq, len(nothing(seq).body)) for seq in (order[::-1] if newest else order)
        )
        fitting = max(1, sum(total <= max_bytes for total in sums))
        start += count - fitting if newest else 0
        count = fitting
    found = {record.id: record for record in await _delivered(source, start, count, record_of)}
    return [found.get(seq) or nothing(seq) for seq in range(start, start + count)]


async def _delivered(
    source: Source, start: int, count: int, make: Make[T], *, only_headers: bool = False
) -> list[T]:
    """As many messages from an id on as there are, at most `count`."""
    wake = asyncio.Event()
    consumer = Consumer(source, wake, make, only_headers=only_headers)
    try:
        there = min(count, await consumer.open(start))
        if there:
            await consumer.ask(there, wait=False)
        while consumer.asked and not consumer.broken:
            wake.clear()
            await wake.wait()
        if consumer.broken:
            raise LostError
        return consumer.taken()
    finally:
        await consumer.close()


class Follower:
    """A subscription: hands out a stream's events behind an id, and what is announced, until it is ended."""

    def __init__(self, source: Source, epoch: str, since: int) -> None:
        self._source = source
        self._epoch = epoch
        self._position = since
        self._handed_out = 0
        self._consumer: Consumer[Record] | None = None
        self._arrived: deque[Record] = deque()
        self._live: deque[Record] = deque()
        self._wake = asyncio.Event()

    def announced(self, record: Record) -> None:
        """Take an event that is not kept."""
        if len(self._live) < MAX_LIVE:
            self._live.append(record)
            self._wake.set()

    async def next(self) -> list[Record]:
        """What comes next, waited for; nothing once the feed is closed. Raises EpochChangedError, StoreError."""
        while not self._source.link.closed:
            try:
                records = await self._step()
            except LostError:
                await self._pause()
            except StoreError as error:
                if not (self._source.link.closed or _will_pass(error)):
                    raise
                await self._pause()
            else:
                if records:
                    return records
        return []

    async def _step(self) -> list[Record]:
        """What is there, or nothing after something was done for there to be more."""
        self._wake.clear()
        consumer = self._consumer
        if self._live:
            live = list(self._live)
            self._live.clear()
            return live
        if consumer is not None:
            self._arrived.extend(consumer.taken())
        if self._arrived:
            records = await self._in_order()
            if records:
                self._position = self._handed_out = records[-1].id
            return records
        if consumer is None or consumer.broken:
            await self._begin()
        elif not consumer.asked:
            await consumer.ask(BATCH, wait=True)
        else:
            await self._wait(consumer)
        return []

    async def close(self) -> None:
        """Release what it holds."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.close()

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(RETRY_PAUSE):
                await self._wake.wait()

    async def _wait(self, consumer: Consumer[Record]) -> None:
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                await self._wake.wait()
        except TimeoutError:
            consumer.broken = True

    async def _begin(self) -> None:
        """Have a consumer that begins where the last one ended."""
        await self.close()
        first = await self._first()
        self._position = max(self._position, first - 1)
        self._consumer = Consumer(self._source, self._wake, record_of)
        try:
            await self._consumer.open(self._position + 1)
            await self._consumer.ask(BATCH, wait=True)
        except BaseException:
            await self.close()
            raise

    async def _first(self) -> int:
        """The oldest id of the log, which must be the one that it has begun with."""
        bounds = await self._source.bounds()
        if bounds.epoch != self._epoch:
            raise EpochChangedError(f"the stream {self._source.stream} was made anew")
        if bounds.last < self._handed_out:
            raise EpochChangedError(f"the stream {self._source.stream} has lost its newest events")
        return bounds.first

    async def _in_order(self) -> list[Record]:
        """Those that have arrived without a gap; over events that are trimmed it jumps, in place of others that are not there
        comes nothing."""
        head = self._arrived[0].id
        if head > self._position + 1:
            first = await self._first()
            self._position = max(self._position, min(first, head) - 1)
            if head > self._position + 1:
                return [
                    nothing(seq) for seq in range(self._position + 1, min(head, self._position + 1 + BATCH))
                ]
        records: list[Record] = []
        while self._arrived and self._arrived[0].id == self._position + 1 + len(records):
            records.append(self._arrived.popleft())
        return records


def _will_pass(error: StoreError) -> bool:
    """Whether trying again may help: nobody answers, or the stream is about to be made anew."""
    return isinstance(error, AwayError) or (
        isinstance(error, RefusedByJetStreamError) and error.err_code == NO_STREAM
    )
