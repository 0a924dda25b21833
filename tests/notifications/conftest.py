"""What the tests of live events share: an engine of each kind, and somebody who follows it."""

from __future__ import annotations

import asyncio
import functools
from contextlib import aclosing, contextmanager

import pytest

from ipfs_stream_nb.notifications.jetstream import JetStreamEngine
from ipfs_stream_nb.notifications.log import SQLiteEngine
from nats_server import running


@contextmanager
def sqlite(home):
    """Logs in files."""
    yield functools.partial(SQLiteEngine, home)


@contextmanager
def jetstream(home):
    """A feed over a nats-server; skips where that is not installed."""
    with running(home) as server:
        yield functools.partial(JetStreamEngine, server.url)


ENGINES = {"sqlite": sqlite, "jetstream": jetstream}
"""By name: what gives, for a new directory, a function that makes engines over one and the same log, with the settings
`max_events`, `max_age` and `max_bytes`."""


@pytest.fixture(params=ENGINES)
def engine_factory(request, tmp_path):
    """Makes engines over one log, which the test opens and closes."""
    with ENGINES[request.param](tmp_path / "log") as make:
        yield make


@pytest.fixture
async def engine(engine_factory):
    """An open engine."""
    engine = engine_factory()
    await engine.open()
    yield engine
    await engine.close()


class Follower:
    """Reads a subscription all the time: `records` is what came, and `task` ends as the subscription does."""

    def __init__(self, engine, since):
        self.records = []
        self._came = asyncio.Condition()
        self.task = asyncio.create_task(self._follow(engine, since))

    async def _follow(self, engine, since):
        async with aclosing(engine.subscribe(since)) as batches:
            async for batch in batches:
                async with self._came:
                    self.records += batch
                    self._came.notify_all()

    async def until(self, enough):
        """Wait until enough(records)."""
        async with asyncio.timeout(30), self._came:
            await self._came.wait_for(lambda: enough(self.records))

    async def ended(self):
        """Wait for the end of the subscription, and raise as it did."""
        async with asyncio.timeout(30):
            await self.task

    @property
    def ids(self):
        """Of all that came."""
        return [record.id for record in self.records]


@pytest.fixture
async def follow():
    """follow(engine, since) makes a follower, which is ended with the test."""
    followers = []

    def make(engine, since=0):
        followers.append(Follower(engine, since))
        return followers[-1]

    yield make
    for follower in followers:
        follower.task.cancel()
    await asyncio.gather(*(follower.task for follower in followers), return_exceptions=True)
