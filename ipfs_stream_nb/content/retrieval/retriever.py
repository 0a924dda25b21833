"""Verified blocks from whoever has them: asked in order of merit, hedged when slow, replaced when wrong.

Nothing that a provider sends is used before its hash is right. Several callers that want one block share one request.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

from cachetools import LRUCache, TTLCache

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.retrieval.gateway import TrustlessGateway
from ipfs_stream_nb.content.retrieval.health import Health
from ipfs_stream_nb.content.retrieval.provider import Provider, as_ours, is_worth_another_try, within
from ipfs_stream_nb.content.retrieval.race import Attempt, Known, Trouble, race
from ipfs_stream_nb.content.retrieval.settings import RetrievalSettings
from ipfs_stream_nb.errors import (
    IPFSStreamError,
    NotFoundError,
    RefusedError,
    RetrievalError,
    RetrievalTimeoutError,
    UnreachableError,
)

HASH_ON_LOOP_BYTES: Final = 16 * 1024
"""Larger blocks are hashed on a thread."""
DENIED_SECONDS: Final = 60.0
"""How long it is remembered that a provider does not have a block, or does not give it."""
DENIED_ENTRIES: Final = 16_384
ROUTED_PROVIDERS: Final = 8
"""Gateways that a router named and that are kept."""
RETRY_DELAY: Final = 0.5
"""Seconds before the second round; each one more waits so much longer."""
HELD_TIMEOUT: Final = 5.0
"""Seconds in which a provider on this machine must give what it holds; then it hangs, and the others are asked."""


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
        self._routed: LRUCache[str, Known] = LRUCache(ROUTED_PROVIDERS)
        self._flights: dict[CID, _Flight] = {}
        self._denied: TTLCache[tuple[str, bytes], tuple[type[IPFSStreamError], str]]
        self._denied = TTLCache(DENIED_ENTRIES, DENIED_SECONDS)
        self._closed = False

    def _know(self, provider: Provider) -> Known:
        return Known(provider, self.settings.max_requests)

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
            flight.task.add_done_callback(lambda _: self._landed(cid, flight))
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if self._closed and flight.task.cancelled() and caller is not None and not caller.cancelling():
                raise RetrievalError("the node was closed") from None
            raise
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                self._landed(cid, flight)
                flight.task.cancel()
                await asyncio.wait([flight.task])

    def _landed(self, cid: CID, flight: _Flight) -> None:
        """Whoever wants the block from now on needs a flight of their own."""
        if self._flights.get(cid) is flight:
            del self._flights[cid]

    async def _fetch(self, cid: CID) -> Fetched:
        trouble: Trouble = {}
        found = await self._held(cid, trouble)
        if found is not None:
            return found
        proven = [known for known in self._routed.values() if known.health.ok]
        among = [*self._known, *proven]
        for number in range(self.settings.max_retries + 1):
            if number:
                await asyncio.sleep(RETRY_DELAY * number * random.uniform(0.8, 1.2))  # noqa: S311  # jitter
            found = await self._race(cid, among, trouble)
            if found is None and not number:
                others = [known for known in await self._routes(cid) if known not in proven]
                among += others
                found = await self._race(cid, others, trouble)
            if found is not None:
                return found
            if not self._usable(cid, among, trouble):  # all have said no, or took all of their time, or rest
                break
        raise self._error(cid, among, trouble)

    async def _race(self, cid: CID, among: Sequence[Known], trouble: Trouble) -> Fetched | None:
        return await race(self._usable(cid, among, trouble), partial(self._ask, cid), self._patience, trouble)

    async def _held(self, cid: CID, trouble: Trouble) -> Fetched | None:
        """From a provider on this machine that has it at hand."""
        for known in self._known:
            if not known.provider.near:
                continue
            async with known.held:
                if known.health.resting:
                    continue
                began = known.health.clock()
                try:
                    async with within(HELD_TIMEOUT, "what it holds itself"):
                        data = await known.provider.get_held(cid)
                    if data is not None:
                        await self._verify(cid, data)
                        known.health.answered(None)
                        return Fetched(cid, data, known.name, held=True)
                except Exception as error:  # noqa: BLE001  # noted, and the others are asked
                    ours = as_ours(error, known.name)
                    if isinstance(ours, RetrievalTimeoutError):
                        ours = UnreachableError(str(ours))
                    self._note(known, cid, ours, began)
                    trouble[known.name] = ours
        return None

    def _usable(self, cid: CID, among: Sequence[Known], trouble: Trouble) -> list[Known]:
        """Those that can be asked for a block now, the most promising first."""
        key = cid.multihash
        usable = [
            known
            for known in among
            if known.health.usable
            and (known.name, key) not in self._denied
            and (known.name not in trouble or is_worth_another_try(trouble[known.name]))
        ]
        return sorted(usable, key=lambda known: known.health.score)

    def _patience(self, known: Known) -> float:
        """Seconds that a provider has before another one is asked as well."""
        usual, latency = self.settings.hedge_after, known.health.latency
        return usual if latency is None else min(max(2 * latency, usual / 4), usual * 4)

    async def _ask(self, cid: CID, attempt: Attempt) -> Fetched:
        known, health = attempt.known, attempt.known.health
        limit = self.settings.answer_timeout + self.settings.block_timeout
        async with known.slots:
            if not health.usable:  # since another request that it had before this one
                raise _left_alone(health)
            attempt.began = began = health.clock()
            try:
                with health.asked():
                    async with within(limit, "the block"):
                        data = await known.provider.get(cid)
                    await self._verify(cid, data)
            except Exception as error:
                ours = as_ours(error, known.name)
                self._note(known, cid, ours, began)
                if ours is error:
                    raise
                raise ours from error
        health.answered(health.clock() - began)
        return Fetched(cid, data, known.name)

    async def _verify(self, cid: CID, data: bytes) -> None:
        if len(data) <= HASH_ON_LOOP_BYTES:
            cid.verify(data)
        else:
            await asyncio.get_running_loop().run_in_executor(self._executor, cid.verify, data)

    def _note(self, known: Known, cid: CID, error: IPFSStreamError, began: float) -> None:
        """Let the error of a request that began then count."""
        if isinstance(error, NotFoundError | RefusedError):
            self._denied[known.name, cid.multihash] = type(error), str(error)
        known.health.note(error, about=cid.multihash, began=began)

    async def _routes(self, cid: CID) -> list[Known]:
        """Gateways that a router names for a block."""
        if self._router is None:
            return []
        try:
            urls = await self._router.providers(cid)
        except Exception as error:  # noqa: BLE001  # a router only helps
            as_ours(error, "the router")
            return []
        own = {known.name for known in self._known}
        named, dropped = [], []
        for url in urls[:ROUTED_PROVIDERS]:
            if url in own:
                continue
            known = self._routed.get(url)
            if known is None:
                if len(self._routed) >= ROUTED_PROVIDERS:
                    dropped.append(self._routed.popitem()[1])
                known = self._routed[url] = self._know(TrustlessGateway(url, self.settings))
            named.append(known)
        for known in dropped:
            await known.provider.close()
        return named

    def _error(self, cid: CID, among: Sequence[Known], trouble: Trouble) -> IPFSStreamError:
        """Who was asked and what came of it, and who was not and why."""
        told = {}
        for known in among:
            name, resting = known.name, known.health.resting
            error = trouble.get(name)
            if error is None and (name, cid.multihash) in self._denied:
                kind, text = self._denied[name, cid.multihash]
                error = kind(text)
            if error is not None:
                again = f" (asked again in {resting:.0f} s)" if resting else ""
                told[name] = error, f"{error}{again}"
            elif not known.health.usable:
                error = _left_alone(known.health)
                told[name] = error, str(error)
        errors = [error for error, _ in told.values()]
        if all(isinstance(error, NotFoundError) for error in errors):
            names = ", ".join(told) or "there is nobody to ask"
            return NotFoundError(f"{cid} is not here, and was not found elsewhere: {names}")
        late = all(isinstance(error, RetrievalTimeoutError | NotFoundError) for error in errors)
        tried = "; ".join(f"{name}: {text}" for name, (_, text) in told.items())
        kind = RetrievalTimeoutError if late else RetrievalError
        return kind(f"{cid} is not here, and could not be fetched. Tried: {tried}")

    async def run(
        self, cid: CID, start: int, stop: int, *, provider: str | None = None
    ) -> AsyncGenerator[Fetched, None]:
        """Verified blocks of bytes `start` to `stop` of the file under `cid`, in the order of a CAR.

        From `provider`, or the most promising one that can. Raises RetrievalError where it breaks off, and where
        there is none, or none that has not enough of them under way.
        """
        for known in self._usable(cid, [*self._known, *self._routed.values()], {}):
            name = known.name
            blocks = None
            if not self._closed and provider in {None, name} and not known.runs.locked():
                blocks = known.provider.run(cid, start, stop)
            if blocks is None:
                continue
            began = known.health.clock()
            try:
                async with known.runs, known.slots, aclosing(blocks):
                    async for block in blocks:
                        await self._verify(block.cid, block.data)
                        yield Fetched(block.cid, block.data, name)
            except Exception as error:
                ours = as_ours(error, name)
                self._note(known, cid, ours, began)
                raise RetrievalError(f"{name} broke off: {ours}") from error
            return
        raise RetrievalError(f"nobody sends {cid} in one piece")

    def describe(self) -> list[dict[str, Any]]:
        """Every provider with its health: name, kind, and what Health.describe tells."""
        return [
            {"name": known.name, "kind": known.provider.kind, **known.health.describe()}
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


def _left_alone(health: Health) -> RetrievalError:
    if health.resting:
        return RetrievalError(f"it is left alone for {health.resting:.0f} s more, since {health.reason}")
    return RetrievalError(f"it is asked for one block at a time, since {health.reason}")
