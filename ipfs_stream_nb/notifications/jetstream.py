"""The log of events in NATS JetStream: one feed that many servers share, such as those of a JupyterHub site."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Final

from ipfs_stream_nb.errors import BadRequestError, StoreError
from ipfs_stream_nb.notifications.engine import MAX_AGE, MAX_BYTES, MAX_EVENTS, PAGE_BYTES, Bounds
from ipfs_stream_nb.notifications.events import MAX_EVENT, Event, Record
from ipfs_stream_nb.notifications.jetstream_consumer import Follower, Source, read
from ipfs_stream_nb.notifications.jetstream_link import Link, LostError, Site
from ipfs_stream_nb.notifications.jetstream_publisher import Publisher
from ipfs_stream_nb.notifications.jetstream_wire import (
    NO_STREAM,
    AwayError,
    Message,
    RefusedByJetStreamError,
    answer_of,
    encoded,
    record_of,
)

STREAM: Final = "IPFS_STREAM_NB"
SUBJECT: Final = "ipfs_stream_nb.events"
LIVE_SUBJECT: Final = "ipfs_stream_nb.live"
"""What is announced goes over this subject, beside the stream."""
TIMEOUT: Final = 10.0
MIN_SECONDS: Final = 0.1
MAX_SECONDS: Final = 1e9
"""Of an age and of a time-out."""
DUPLICATES_SECONDS: Final = 120.0
"""How long the stream knows the ids of messages, at the least: a publication that is tried again is kept once."""
MAKE_PAUSES: Final = (0.05, 0.2, 0.5)
"""Seconds before a stream that could not be made is looked for: many servers may make it at once."""
REMAKE_PAUSE: Final = 0.5
"""Seconds before a stream that was deleted is made anew: nats-server 2.9 still removes its files after it said that it is
gone, and would remove new ones."""
MAX_HEADERS: Final = 4096
"""Bytes of a message beside its event."""
DESCRIPTION: Final = "Events of ipfs_stream_nb, which sets the limits of this stream"
"""Marks a stream whose limits follow the settings. One that somebody made by hand keeps the limits that it has."""

_NANO: Final = 1_000_000_000
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,200}")
_SUBJECT: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
log = logging.getLogger(__name__)


class JetStreamEngine:
    """A log in a JetStream stream (nats-server 2.9 or newer), by nats-py (the extra `jetstream`).

    An event's id is its sequence number in the stream. Any number of engines, in any processes, publish to one stream, and
    each one's subscribers get the events of all, in one order. An event is committed once JetStream acknowledges it; whether
    it survives a power cut is the server's setting (`sync_interval`, or several replicas).

    - The stream is made where there is none: kept in files, the oldest dropped at the limits. The limits of a stream that this
      class made follow the settings of whoever opens it last. Another one under the same name raises StoreError where it has
      other subjects, does not keep events until a limit is reached, or does not acknowledge; else it is used as it is.
    - The epoch is the time of the stream's making. A stream that was deleted is made anew by the next call, and is another
      epoch; running subscriptions raise EpochChangedError.
    - A connection that is lost is made anew for ever; what was being published is sent again under the same message id, which
      JetStream keeps once, and subscriptions go on behind the last event that they gave.
    - What is on the subject and is no event, and what was deleted from the middle of the stream, is given as a record without
      a type (`notification_type` is ""), which no right and no subscription covers: ids stay dense, and nobody is shown it.
      An event that another program publishes in the same JSON, on one line, is an event as any other.
    """

    def __init__(
        self,
        url: str | list[str],
        *,
        stream: str = STREAM,
        subject: str = SUBJECT,
        live_subject: str = LIVE_SUBJECT,
        user: str | None = None,
        password: str | None = None,
        token: str | None = None,
        credentials: str | Path | None = None,
        replicas: int = 1,
        max_events: int | None = MAX_EVENTS,
        max_age: float | None = MAX_AGE,
        max_bytes: int | None = MAX_BYTES,
        timeout: float = TIMEOUT,
    ) -> None:
        """`url`: one or several of one cluster (a list, or commas between), such as nats://localhost:4222; `credentials`: a file as `nsc generate creds`
        writes it; `replicas`: servers of a cluster that keep each event; `max_age` in seconds; None: without that limit;
        `timeout`: seconds for one answer, and until a publication that cannot be made fails. Two feeds on one NATS server
        need streams and subjects of their own, `live_subject` among them.

        Raises BadRequestError for names and numbers that JetStream does not take."""
        if not _NAME.fullmatch(stream):
            raise BadRequestError(f"{stream[:80]!r} cannot name a stream: letters, digits, `_` and `-` can")
        for name in (subject, live_subject):
            if not _SUBJECT.fullmatch(name):
                raise BadRequestError(
                    f"{name[:80]!r} is no subject: words of letters, digits, `_` and `-`, with dots between"
                )
        if subject == live_subject:
            raise BadRequestError(f"what is kept and what is not need two subjects, not {subject!r} for both")
        for what, number in (("max_events", max_events), ("max_bytes", max_bytes), ("replicas", replicas)):
            if number is not None and number < 1:
                raise BadRequestError(f"{what} is 1 or more, not {number}")
        for what, seconds in (("max_age", max_age), ("timeout", timeout)):
            if seconds is not None and not MIN_SECONDS <= seconds <= MAX_SECONDS:
                raise BadRequestError(f"{what} is {MIN_SECONDS:g} to {MAX_SECONDS:g} seconds, not {seconds}")
        self._stream = stream
        self._subject = subject
        self._live_subject = live_subject
        self._timeout = timeout
        self._replicas = replicas
        age = 0 if max_age is None else int(max_age * _NANO)
        window = int(max(DUPLICATES_SECONDS, 2 * timeout) * _NANO)
        self._limits = {
            "max_msgs": -1 if max_events is None else max_events,
            "max_bytes": -1 if max_bytes is None else max_bytes,
            "max_age": age,
            "duplicate_window": min(window, age) if age else window,
        }
        site = Site(
            url.split(",") if isinstance(url, str) else url,
            user,
            password,
            token,
            Path(credentials) if credentials else None,
        )
        self._link = Link(site, timeout)
        self._link.listen(live_subject, self._heard)
        self._source = Source(self._link, stream, self._api, self.bounds)
        self._publisher = Publisher(self._link, stream, subject, timeout, self.bounds)
        self._followers: set[Follower] = set()
        self._epoch = ""
        self._setbacks: list[str] = []

    async def open(self) -> None:
        """Connect, and make the stream where it is missing. Raises StoreError, which says what to do."""
        try:
            await self._link.open()
            info = await self._info()
            config = info["config"]
            if config.get("description") == DESCRIPTION and any(
                config.get(k) != v for k, v in self._limits.items()
            ):
                info = await self._api(f"STREAM.UPDATE.{self._stream}", {**config, **self._limits})
            self._bounds_of(info)
            known_seconds = info["config"].get("duplicate_window", 0) / _NANO
            self._publisher.retry_seconds = min(self._timeout, known_seconds or self._timeout)
        except BaseException:
            await self._link.close()
            raise
        self._publisher.start()

    async def close(self) -> None:
        """As the protocol says; what is not acknowledged within the time-out fails."""
        await self._publisher.close()
        await self._link.close()

    async def publish(self, event: Event) -> int:
        """As the protocol says. Up to 256 are on their way at once."""
        return await self._publisher.publish(event)

    async def announce(self, event: Event) -> None:
        """As the protocol says; to the subscribers of all servers."""
        payload, headers = encoded(event)
        try:
            await self._link.send(self._live_subject, payload, headers=headers)
        except LostError:
            raise AwayError(
                f"NATS at {self._link.site.shown} is away: an event that is not kept was dropped"
            ) from None

    async def subscribe(self, since: int) -> AsyncGenerator[list[Record], None]:
        """As the protocol says. It outlasts lost connections and restarts of the server, and ends when the engine is closed."""
        follower = Follower(self._source, self._epoch, since)
        self._followers.add(follower)
        try:
            while records := await follower.next():
                yield records
        finally:
            self._followers.discard(follower)
            await follower.close()

    async def read(self, after: int, limit: int, max_bytes: int = PAGE_BYTES) -> list[Record]:
        """As the protocol says."""
        bounds = await self.bounds()
        start = max(after + 1, bounds.first)
        return await self._read(start, min(limit, bounds.last - start + 1), max_bytes, newest=False)

    async def read_back(self, before: int, limit: int, max_bytes: int = PAGE_BYTES) -> list[Record]:
        """As the protocol says."""
        bounds = await self.bounds()
        end = min(before, bounds.last + 1)
        start = max(bounds.first, end - limit)
        return await self._read(start, end - start, max_bytes, newest=True)

    async def trim(self) -> None:
        """Nothing: the server drops what is over the limits."""

    async def bounds(self) -> Bounds:
        """As the protocol says. Makes the stream where it is missing."""
        return self._bounds_of(await self._info())

    def take_setbacks(self) -> list[str]:
        """As the protocol says: streams that were deleted."""
        setbacks, self._setbacks = self._setbacks, []
        return setbacks

    async def _read(self, start: int, count: int, max_bytes: int, *, newest: bool) -> list[Record]:
        if count <= 0:
            return []
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    try:
                        return await read(self._source, start, count, max_bytes, newest=newest)
                    except LostError:
                        await self._link.up()
        except TimeoutError:
            raise self._away() from None

    def _heard(self, message: Message) -> None:
        record = record_of(0, message.data, message.headers)
        if record.notification_type:
            for follower in self._followers:
                follower.announced(record)

    # the stream

    async def _info(self) -> dict[str, Any]:
        """The stream's configuration and state; it is made where it is missing. Raises StoreError."""
        try:
            info = await self._api(f"STREAM.INFO.{self._stream}")
        except RefusedByJetStreamError as error:
            if error.err_code != NO_STREAM:
                raise
            info = await self._made()
        self._check(info["config"])
        return info

    async def _made(self) -> dict[str, Any]:
        config = {
            "name": self._stream,
            "description": DESCRIPTION,
            "subjects": [self._subject],
            "retention": "limits",
            "storage": "file",
            "discard": "old",
            "num_replicas": self._replicas,
            "max_msg_size": MAX_EVENT + MAX_HEADERS,
            **self._limits,
        }
        if self._epoch:
            await asyncio.sleep(REMAKE_PAUSE)
        for pause in MAKE_PAUSES:
            try:
                return await self._api(f"STREAM.CREATE.{self._stream}", config)
            except RefusedByJetStreamError as error:
                refused = error  # also where another engine is about to make it
            await asyncio.sleep(pause)
            try:
                return await self._api(f"STREAM.INFO.{self._stream}")
            except RefusedByJetStreamError as error:
                if error.err_code != NO_STREAM:
                    raise
        raise refused

    def _check(self, config: dict[str, Any]) -> None:
        wrong = []
        if config.get("subjects") != [self._subject]:
            wrong.append(f"its subjects are {config.get('subjects')}, not [{self._subject!r}]")
        if config.get("retention") != "limits":
            wrong.append(f"its retention is {config.get('retention')!r}, not 'limits'")
        if config.get("no_ack"):
            wrong.append("it does not acknowledge (no_ack)")
        if wrong:
            raise StoreError(
                f"the JetStream stream {self._stream} is not the feed's: {'; '.join(wrong)}. Give the feed a stream of its own"
            )

    def _bounds_of(self, info: dict[str, Any]) -> Bounds:
        epoch = re.sub(r"[^0-9A-Za-z]", "", str(info["created"]))
        if epoch != self._epoch:
            if self._epoch:
                text = f"the JetStream stream {self._stream} was deleted, with all events in it; a new log has begun"
                log.warning("%s", text)
                self._setbacks.append(text)
            self._epoch = epoch
        state = info["state"]
        last = int(state["last_seq"])
        return Bounds(epoch, int(state["first_seq"]) if state["messages"] else last + 1, last)

    async def _api(self, verb: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """JetStream's answer to a request, over the next connection where one is lost. Raises StoreError."""
        payload = b"" if body is None else json.dumps(body).encode()
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    try:
                        return answer_of(await self._link.request(f"$JS.API.{verb}", payload))
                    except LostError:
                        await self._link.up()
        except TimeoutError:
            raise self._away() from None

    def _away(self) -> AwayError:
        said = f" ({self._link.said})" if self._link.said else ""
        return AwayError(f"NATS at {self._link.site.shown} did not answer within {self._timeout:g} s{said}")
