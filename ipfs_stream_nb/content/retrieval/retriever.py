"""Verified blocks from whoever has them: asked in order of merit, hedged when slow, replaced when wrong.

Nothing that a provider sends is used before its hash is right. Several callers that want one block share one request.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from cachetools import LRUCache, TTLCache

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.retrieval.gateway import TrustlessGateway
from ipfs_stream_nb.content.retrieval.health import Health
from ipfs_stream_nb.content.retrieval.provider import Provider
from ipfs_stream_nb.content.retrieval.settings import RetrievalSettings
from ipfs_stream_nb.errors import (
    BusyError,
    CorruptContentError,
    IPFSStreamError,
    NotFoundError,
    RetrievalError,
    RetrievalTimeoutError,
    UnreachableError,
)

HASH_ON_LOOP_BYTES: Final = 16 * 1024
"""Larger blocks are hashed on a thread."""
AT_ONCE: Final = 3
"""Providers that are asked for one block at the same time, at most."""
MISSING_SECONDS: Final = 60.0
"""How long it is remembered that a provider does not have a block."""
MISSING_ENTRIES: Final = 16_384
ROUTED_PROVIDERS: Final = 8
"""Gateways that a router named and that are kept."""
RETRY_DELAY: Final = 0.5
"""Seconds before the second round; each one more waits so much longer."""
BUSY_SECONDS: Final = 30.0
"""How long a provider that is busy, and does not say until when, is left alone."""


class Router(Protocol):
    """Knows of further gateways (see routing.DelegatedRouting)."""

    def providers(self, cid: CID) -> Awaitable[list[str]]:
        """Base URLs of gateways that may have a block."""

    async def close(self) -> None:
        """Release its connections."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A verified block."""

    cid: CID
    data: bytes
    provider: str
    """The name of who gave it."""
    held: bool = False
    """Whether a provider on this machine had it at hand."""


@dataclass(eq=False)
class _Known:
    provider: Provider
    slots: asyncio.Semaphore
    health: Health = field(default_factory=Health)


@dataclass(eq=False)
class _Flight:
    task: asyncio.Task[Fetched]
    waiting: int = 0


class Retriever:
    """Asks providers. It belongs to the event loop that uses it, and closes the providers that it was given."""

    def __init__(
        self,
        providers: Sequence[Provider],
        settings: RetrievalSettings,
        *,
        router: Router | None = None,
        executor: Executor | None = None,
    ) -> None:
        """Blocks are hashed on `executor`; None: the event loop's own."""
        self.settings = settings
        self._executor = executor
        self._router = router
        self._known = [self._know(provider) for provider in providers]
        self._routed: LRUCache[str, _Known] = LRUCache(ROUTED_PROVIDERS)
        self._flights: dict[CID, _Flight] = {}
        self._missing: TTLCache[tuple[str, bytes], bool] = TTLCache(MISSING_ENTRIES, MISSING_SECONDS)
        self._closed = False

    def _know(self, provider: Provider) -> _Known:
        return _Known(provider, asyncio.Semaphore(self.settings.max_requests))

    async def get(self, cid: CID) -> Fetched:
        """A verified block.

        Raises NotFoundError where everybody who could be asked says no, RetrievalTimeoutError where the last reason
        was time, and RetrievalError otherwise; the text tells who was asked and what came of it.
        """
        if cid.is_identity:
            return Fetched(cid, cid.digest, "the CID itself")
        if self._closed:
            raise RetrievalError("the node is closed")
        flight = self._flights.get(cid)
        if flight is None:
            flight = self._flights[cid] = _Flight(asyncio.create_task(self._fetch(cid), name=f"fetch {cid}"))
            flight.task.add_done_callback(lambda _: self._flights.pop(cid, None))
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                self._flights.pop(cid, None)
                flight.task.cancel()
                await asyncio.wait([flight.task])

    async def _fetch(self, cid: CID) -> Fetched:
        trouble: dict[str, IPFSStreamError] = {}
        held = await self._held(cid, trouble)
        if held is not None:
            return held
        for number in range(self.settings.max_retries + 1):
            if number:
                await asyncio.sleep(RETRY_DELAY * number * random.uniform(0.8, 1.2))  # noqa: S311  # jitter
            found = await self._race(cid, self._usable(cid, self._known), trouble)
            if found is not None:
                return found
            if not self._usable(cid, self._known):  # all have said no, or rest
                break
        found = await self._race(cid, self._usable(cid, await self._routes(cid)), trouble)
        if found is None:
            raise self._error(cid, trouble)
        return found

    async def _held(self, cid: CID, trouble: dict[str, IPFSStreamError]) -> Fetched | None:
        """From a provider on this machine that has it at hand."""
        for known in self._known:
            if not known.provider.near or known.health.resting:
                continue
            try:
                async with known.slots:
                    data = await known.provider.get_held(cid)
                if data is not None:
                    await self._verify(cid, data)
                    known.health.ok += 1
                    return Fetched(cid, data, known.provider.name, held=True)
            except IPFSStreamError as error:
                self._note(known, cid, error)
                trouble[known.provider.name] = error
        return None

    def _usable(self, cid: CID, among: Sequence[_Known]) -> list[_Known]:
        """Those that can be asked for a block now, the most promising first."""
        key = cid.multihash
        usable = [
            known
            for known in among
            if not known.health.resting and (known.provider.name, key) not in self._missing
        ]
        return sorted(usable, key=lambda known: known.health.score)

    async def _race(
        self, cid: CID, runners: list[_Known], trouble: dict[str, IPFSStreamError]
    ) -> Fetched | None:
        """The first right block; another provider is asked whenever one fails or takes long."""
        todo = runners[::-1]
        running: dict[asyncio.Task[Fetched], tuple[_Known, float]] = {}
        start_next = True
        try:
            while running or todo:
                if todo and len(running) < AT_ONCE and start_next:
                    known = todo.pop()
                    task = asyncio.create_task(self._ask(known, cid))
                    running[task] = known, time.monotonic()
                patience = self._patience(known) if todo and len(running) < AT_ONCE else None
                done, _ = await asyncio.wait(running, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                start_next = True
                for task in done:
                    asked, _ = running.pop(task)
                    error = task.exception()
                    if error is None:
                        return task.result()
                    if not isinstance(error, IPFSStreamError):
                        raise error
                    trouble[asked.provider.name] = error
            return None
        finally:
            for task, (known, started) in running.items():
                task.cancel()
                known.health.overtaken(time.monotonic() - started)
            if running:
                await asyncio.wait(running)

    def _patience(self, known: _Known) -> float:
        """Seconds that a provider has before another one is asked as well."""
        usual, latency = self.settings.hedge_after, known.health.latency
        return usual if latency is None else min(max(2 * latency, usual / 4), usual * 4)

    async def _ask(self, known: _Known, cid: CID) -> Fetched:
        async with known.slots:
            start = time.monotonic()
            try:
                data = await known.provider.get(cid)
                await self._verify(cid, data)
            except IPFSStreamError as error:
                self._note(known, cid, error)
                raise
        known.health.answered(time.monotonic() - start)
        return Fetched(cid, data, known.provider.name)

    async def _verify(self, cid: CID, data: bytes) -> None:
        if len(data) <= HASH_ON_LOOP_BYTES:
            cid.verify(data)
        else:
            await asyncio.get_running_loop().run_in_executor(self._executor, cid.verify, data)

    def _note(self, known: _Known, cid: CID, error: IPFSStreamError) -> None:
        """Let an error count."""
        health = known.health
        if isinstance(error, NotFoundError):
            health.has_not()
            self._missing[known.provider.name, cid.multihash] = True
        elif isinstance(error, CorruptContentError):
            health.wrong_bytes(str(error))
        elif isinstance(error, BusyError):
            health.busy(str(error), BUSY_SECONDS if error.retry_after is None else error.retry_after)
        else:
            health.failure(str(error), unreachable=isinstance(error, UnreachableError))

    async def _routes(self, cid: CID) -> list[_Known]:
        """Gateways that a router names for a block."""
        if self._router is None:
            return []
        try:
            urls = await self._router.providers(cid)
        except IPFSStreamError:
            return []
        own = {known.provider.name for known in self._known}
        for url in urls[:ROUTED_PROVIDERS]:
            if url not in self._routed and url not in own:
                if len(self._routed) >= ROUTED_PROVIDERS:
                    await self._routed.popitem()[1].provider.close()
                self._routed[url] = self._know(TrustlessGateway(url, self.settings))
        return [self._routed[url] for url in urls if url in self._routed]

    def _error(self, cid: CID, trouble: dict[str, IPFSStreamError]) -> IPFSStreamError:
        told = dict(trouble)
        for known in (*self._known, *self._routed.values()):
            name = known.provider.name
            if known.health.resting and name not in told:
                rest = f"it is left alone for {known.health.resting:.0f} s more, since {known.health.reason}"
                told[name] = RetrievalError(rest)
            elif (name, cid.multihash) in self._missing and name not in told:
                told[name] = NotFoundError("it does not have it")
        tried = "; ".join(f"{name}: {error}" for name, error in told.items())
        if all(isinstance(error, NotFoundError) for error in told.values()):
            names = ", ".join(told) or "there is nobody to ask"
            return NotFoundError(f"{cid} is not here, and was not found elsewhere: {names}")
        late = all(isinstance(error, RetrievalTimeoutError | NotFoundError) for error in told.values())
        kind = RetrievalTimeoutError if late else RetrievalError
        return kind(f"{cid} is not here, and could not be fetched. Tried: {tried}")

    async def run(
        self, cid: CID, start: int, stop: int, *, provider: str | None = None
    ) -> AsyncGenerator[Fetched, None]:
        """Verified blocks of bytes `start` to `stop` of the file under `cid`, in the order of a CAR.

        From `provider`, or the most promising one that can. Raises RetrievalError where it breaks off, and where
        there is none.
        """
        for known in sorted(self._known, key=lambda known: known.health.score):
            name = known.provider.name
            blocks = None
            if not known.health.resting and provider in {None, name}:
                blocks = known.provider.run(cid, start, stop)
            if blocks is None:
                continue
            try:
                async with known.slots, aclosing(blocks):
                    async for block in blocks:
                        await self._verify(block.cid, block.data)
                        yield Fetched(block.cid, block.data, name)
            except IPFSStreamError as error:
                if not isinstance(error, NotFoundError):
                    self._note(known, cid, error)
                raise RetrievalError(f"{name} broke off: {error}") from error
            return
        raise RetrievalError(f"nobody sends {cid} in one piece")

    def describe(self) -> list[dict[str, Any]]:
        """Every provider with its health: name, kind, and what Health.describe tells."""
        return [
            {"name": known.provider.name, "kind": known.provider.kind, **known.health.describe()}
            for known in (*self._known, *self._routed.values())
        ]

    async def close(self) -> None:
        """End what is being fetched, and close the providers. Idempotent."""
        self._closed = True
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for known in (*self._known, *self._routed.values()):
            await known.provider.close()
        if self._router is not None:
            await self._router.close()
