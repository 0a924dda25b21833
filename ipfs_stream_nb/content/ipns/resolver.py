"""What IPNS names stand for at this time: through Kubo, or by signed records from routers and gateways.

Every record is verified here; a domain's DNSLink, and an answer of Kubo without its record, are taken from the
operator's own daemon as they are.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol
from weakref import WeakValueDictionary

from cachetools import LRUCache, TTLCache

from ipfs_stream_nb.content.ipns.name import Name, parse_name
from ipfs_stream_nb.content.ipns.record import Record, verify
from ipfs_stream_nb.content.resolver import parse_path
from ipfs_stream_nb.content.retrieval.provider import as_ours
from ipfs_stream_nb.errors import (
    BadRequestError,
    CorruptContentError,
    IPFSStreamError,
    NotFoundError,
    RetrievalError,
    RetrievalTimeoutError,
)

if TYPE_CHECKING:
    from ipfs_stream_nb.content.kubo.rpc import KuboRPC
    from ipfs_stream_nb.content.retrieval.routing import DelegatedRouting

MAX_DEPTH: Final = 32
"""Names that may stand for each other, as in boxo."""
DEFAULT_TTL: Final = 300.0
"""Seconds for which a name's record counts that does not say it (the specification's suggestion)."""
MIN_TTL: Final = 5.0
"""A record may ask to be asked for again at once: one player's requests must not each go through the network."""
MAX_TTL: Final = 3600.0
UNSIGNED_TTL: Final = 60.0
"""For what Kubo says without a record: domains, and names whose record it does not give in time."""
STALE_SECONDS: Final = 30.0
"""After which it is tried again, where an old record is used because nobody answers."""
FAILED_SECONDS: Final = 10.0
"""For which a name that could not be resolved is not asked for again."""
MAX_NAMES: Final = 1024
"""Names that are remembered."""
WINDOW: Final = 1.0
"""Seconds after the first valid record in which others may bring a better one."""
LIMIT: Final = 10.0
"""Seconds until Kubo, and then all others together, must have answered."""
CHAIN_LIMIT: Final = 30.0
"""Seconds for a name and all that it stands for, the wait for others' questions included."""
MAX_QUESTIONS: Final = 8
"""Names that are asked for at once: each question goes to Kubo twice, or to every router and gateway."""


class RecordSource(Protocol):
    """A gateway or router (see TrustlessGateway, DelegatedRouter)."""

    name: str

    def ipns_record(self, name: str) -> Awaitable[bytes]:
        """The record of a name in base 36, not verified. Raises IPFSStreamErrors."""


@dataclass(frozen=True, slots=True)
class ResolvedName:
    """What an IPNS name stands for at this time."""

    path: str
    """/ipfs/<cid>, maybe with names below it."""
    ttl: float
    """Seconds for which that need not be asked again."""
    stale: bool = False
    """Whether nobody answered, and what is older than it should be is used, as long as it is still valid."""
    record: bytes | None = None
    """The name's own signed record, where it is known."""


@dataclass(frozen=True, slots=True)
class _Known:
    value: str
    until: float
    """On the monotonic clock."""
    record: Record | None = None
    stale: bool = False

    @property
    def fresh_for(self) -> float:
        return self.until - time.monotonic()


class NameResolver:
    """Resolves names, and remembers them as long as their records say. It belongs to one event loop."""

    def __init__(
        self,
        rpc: KuboRPC | None = None,
        gateways: Sequence[RecordSource] = (),
        routing: DelegatedRouting | None = None,
    ) -> None:
        """Kubo is asked first and alone, then all others at once. `close` closes the routing, and nothing else."""
        self._rpc = rpc
        self._routing = routing
        self._sources = [*(routing.routers if routing else ()), *gateways]
        self._known: LRUCache[Name | str, _Known] = LRUCache(MAX_NAMES)
        self._failed: TTLCache[Name | str, IPFSStreamError] = TTLCache(MAX_NAMES, FAILED_SECONDS)
        self._locks: WeakValueDictionary[Name | str, asyncio.Lock] = WeakValueDictionary()
        self._questions = asyncio.Semaphore(MAX_QUESTIONS)
        self._closed = False

    async def resolve(self, name: str) -> ResolvedName:
        """What stands behind `name`, a key or a domain as it stands after /ipns/, through further names.

        Raises BadRequestError for a text that is no name, NotFoundError where nobody has a valid record,
        CorruptContentError for a forged one or one that leads nowhere, RetrievalError and RetrievalTimeoutError;
        the text tells who was asked.
        """
        try:
            async with asyncio.timeout(CHAIN_LIMIT) as deadline:
                return await self._follow(name)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise RetrievalTimeoutError(f"/ipns/{name} was not resolved in {CHAIN_LIMIT:g} s") from None

    async def _follow(self, name: str) -> ResolvedName:
        first = here = await self._known_or_asked(parse_name(name))
        ttl, stale, below = math.inf, False, ""
        for _ in range(MAX_DEPTH):
            ttl, stale = min(ttl, here.fresh_for), stale or here.stale
            path = here.value.rstrip("/") + below
            try:
                if path.startswith("/ipfs/"):
                    parse_path(path)
                    record = first.record.encoded if first.record else None
                    return ResolvedName(path, max(ttl, 0), stale, record)
                text, slash, names = path.removeprefix("/ipns/").partition("/")
                next_name = parse_name(text)
            except BadRequestError as error:
                raise CorruptContentError(
                    f"{name} stands for {path[:200]!r}, which leads nowhere: {error}"
                ) from None
            below = slash + names
            here = await self._known_or_asked(next_name)
        raise BadRequestError(
            f"{name} stands for a name that stands for a name, over {MAX_DEPTH} times; a loop?"
        )

    async def _known_or_asked(self, name: Name | str) -> _Known:
        """One step. Callers that want one name share one question."""
        if self._closed:
            raise RetrievalError("the node is closed")
        lock = self._locks.get(name) or self._locks.setdefault(name, asyncio.Lock())
        async with lock:
            known = self._known.get(name)
            if known is not None and known.fresh_for > 0:
                return known
            failed = self._failed.get(name)
            if failed is not None:
                raise type(failed)(str(failed))
            try:
                async with self._questions:
                    known = await self._ask(name)
            except IPFSStreamError as error:
                if known is None or known.record is None or known.record.remaining <= 0:
                    self._failed[name] = error
                    raise
                known = replace(known, until=time.monotonic() + STALE_SECONDS, stale=True)
            self._known[name] = known
            return known

    async def _ask(self, name: Name | str) -> _Known:
        trouble: dict[str, IPFSStreamError] = {}
        if isinstance(name, str) and self._rpc is None:
            raise NotFoundError(
                f"{name} is a domain, whose DNSLink is resolved by a Kubo daemon only, and this node has none;"
                " start one, or name the content by its key or CID"
            )
        if self._rpc is not None:
            asked = self._rpc.address.name
            try:
                return await self._by_kubo(self._rpc, name)
            except Exception as error:  # noqa: BLE001  # the others are asked
                trouble[asked] = as_ours(error, asked)
        if isinstance(name, Name):
            records = await self._collect(name, trouble)
            if records:
                return self._best(name, records)
        raise _error(name, trouble)

    async def _by_kubo(self, rpc: KuboRPC, name: Name | str) -> _Known:
        """Its record where that comes soon after its answer, which says neither how long it counts nor who signed."""
        path = asyncio.create_task(rpc.name_resolve(str(name)))
        tasks: set[asyncio.Task[str] | asyncio.Task[bytes]] = {path}
        record = None
        if isinstance(name, Name):
            record = asyncio.create_task(rpc.routing_get(f"/ipns/{name}"))
            tasks.add(record)
        try:
            async with asyncio.timeout(LIMIT):
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if record is not None and not record.done():
                    await asyncio.wait({record}, timeout=WINDOW)
                if isinstance(name, Name) and record is not None and record.done() and not record.exception():
                    return self._best(name, [verify(name, record.result())])
                return _Known(await path, time.monotonic() + UNSIGNED_TTL)
        except TimeoutError as error:
            if isinstance(error, IPFSStreamError):
                raise
            raise RetrievalTimeoutError(f"no answer in {LIMIT:g} s") from None
        finally:
            await _end(tasks)

    async def _collect(self, name: Name, trouble: dict[str, IPFSStreamError]) -> list[Record]:
        """The valid records of those that answer in time; what the others say goes into `trouble`."""
        tasks = {asyncio.create_task(_record(source, name)): source.name for source in self._sources}
        running, records = set(tasks), list[Record]()
        until = time.monotonic() + LIMIT
        try:
            while running and (left := until - time.monotonic()) > 0:
                done, running = await asyncio.wait(running, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    try:
                        records.append(task.result())
                    except Exception as error:  # noqa: BLE001  # the others' answers count
                        trouble[tasks[task]] = as_ours(error, tasks[task])
                if records:
                    until = min(until, time.monotonic() + WINDOW)
            trouble |= {tasks[task]: RetrievalTimeoutError(f"no answer in {LIMIT:g} s") for task in running}
            return records
        finally:
            await _end(running)

    def _best(self, name: Name, records: list[Record]) -> _Known:
        """The best of them and of the one that is remembered: nobody can bring back an older one."""
        known = self._known.get(name)
        if known is not None and known.record is not None and known.record.remaining > 0:
            records = [known.record, *records]
        best = max(records, key=lambda record: record.rank)
        ttl = max(DEFAULT_TTL if best.ttl is None else best.ttl, MIN_TTL)
        return _Known(best.value, time.monotonic() + min(ttl, MAX_TTL, best.remaining), best)

    async def close(self) -> None:
        """End the connections to routers. Idempotent."""
        self._closed = True
        if self._routing is not None:
            await self._routing.close()


async def _record(source: RecordSource, name: Name) -> Record:
    return verify(name, await source.ipns_record(str(name)))


async def _end(tasks: set[asyncio.Task[str] | asyncio.Task[bytes]] | set[asyncio.Task[Record]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _error(name: Name | str, trouble: dict[str, IPFSStreamError]) -> IPFSStreamError:
    if not trouble:
        return NotFoundError(
            f"/ipns/{name}: this node has no Kubo daemon, router or gateway that it could ask"
        )
    tried = "; ".join(f"{source}: {error}" for source, error in trouble.items())
    errors = trouble.values()
    if any(isinstance(error, CorruptContentError) for error in errors):
        return CorruptContentError(f"nobody has a valid record of /ipns/{name}. Tried: {tried}")
    if all(isinstance(error, NotFoundError) for error in errors):
        return NotFoundError(f"nobody has a record of /ipns/{name}. Tried: {tried}")
    late = all(isinstance(error, RetrievalTimeoutError | NotFoundError) for error in errors)
    kind = RetrievalTimeoutError if late else RetrievalError
    return kind(f"/ipns/{name} could not be resolved. Tried: {tried}")
