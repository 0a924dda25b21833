"""One thing from several providers: another one is asked whenever one fails or takes long, and the first answer is taken."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from ipfs_stream_nb.content.retrieval.health import Health
from ipfs_stream_nb.content.retrieval.provider import Provider, StalledError
from ipfs_stream_nb.errors import IPFSStreamError, RetrievalError

T = TypeVar("T")

AT_ONCE: Final = 3
"""Providers that are asked for one thing at the same time, at most, those that are slow apart."""
SLOW_AFTER: Final = 4
"""One that has taken so many times as long as it takes for another one to be asked as well is slow: a trickle of
bytes must not keep others from being asked."""
AT_MOST: Final = 2 * AT_ONCE
"""How many there may be with the slow ones; then the one that has taken longest is given up for the next one."""


@dataclass(eq=False)
class Known:
    """A provider, and what may be under way with it at once.

    Runs are at most half of all, since they wait for their readers. What a provider holds is asked for beside all
    others, which may have to wait for a long look-up.
    """

    provider: Provider
    requests: int

    def __post_init__(self) -> None:
        self.name = self.provider.name
        self.health = Health(near=self.provider.near)
        self.slots = asyncio.Semaphore(self.requests)
        self.runs = asyncio.Semaphore(self.requests // 2)
        self.held = asyncio.Semaphore(self.requests)


@dataclass(eq=False)
class Attempt:
    """One provider being asked for one thing. Times are those of the monotonic clock."""

    known: Known
    patience: float
    """Seconds after which another one is asked as well."""
    started: float = field(default_factory=time.monotonic)
    began: float | None = None
    """When it was asked; None while it waits for a slot."""

    @property
    def overdue_at(self) -> float:
        """When another one is asked as well."""
        return self.started + self.patience

    @property
    def slow_at(self) -> float:
        """From when on it does not keep another one from being asked."""
        return self.started + SLOW_AFTER * self.patience

    def overtaken(self) -> None:
        """Others were quicker, which is remembered."""
        if self.began is not None:
            self.known.health.overtaken(time.monotonic() - self.began)


Trouble = dict[str, IPFSStreamError]
"""What went wrong, by the names of providers."""


async def race(
    runners: Sequence[Known],
    ask: Callable[[Attempt], Coroutine[Any, Any, T]],
    patience: Callable[[Known], float],
    trouble: Trouble,
) -> T | None:
    """The first answer; the first of the runners is asked first. What goes wrong is put into `trouble`.

    `ask` raises IPFSStreamErrors; `patience` gives the seconds that a provider has before another one is asked.
    """
    todo = list(reversed(runners))
    running: dict[asyncio.Task[T], Attempt] = {}  # the oldest first
    try:
        while running or todo:
            if todo and _has_room(running):
                if len(running) >= AT_MOST:
                    await _give_up_oldest(running, trouble)
                known = todo.pop()
                attempt = Attempt(known, patience(known))
                running[asyncio.create_task(ask(attempt), name=f"ask {known.name}")] = attempt
            until = _next_start(running) if todo else None
            done, _ = await asyncio.wait(running, timeout=until, return_when=asyncio.FIRST_COMPLETED)
            found = [task.result() for task in done if _gave_it(running.pop(task).known.name, task, trouble)]
            if found:
                for attempt in running.values():
                    attempt.overtaken()
                return found[0]
        return None
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _has_room(running: dict[asyncio.Task[T], Attempt]) -> bool:
    now = time.monotonic()
    return sum(attempt.slow_at > now for attempt in running.values()) < AT_ONCE


def _next_start(running: dict[asyncio.Task[T], Attempt]) -> float:
    """Seconds until another one is asked."""
    attempts = list(running.values())
    when = attempts[-1].overdue_at if _has_room(running) else min(attempt.slow_at for attempt in attempts)
    return max(0.0, when - time.monotonic())


def _gave_it(name: str, task: asyncio.Task[T], trouble: Trouble) -> bool:
    """Whether an attempt gave it; if not, what went wrong is kept."""
    error = RetrievalError("it was ended from within") if task.cancelled() else task.exception()
    if error is None:
        return True
    if not isinstance(error, IPFSStreamError):
        raise error
    trouble[name] = error
    return False


async def _give_up_oldest(running: dict[asyncio.Task[T], Attempt], trouble: Trouble) -> None:
    task, attempt = next(iter(running.items()))
    del running[task]
    attempt.overtaken()
    trouble[attempt.known.name] = StalledError("it was slow, and was given up for others to be asked")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
