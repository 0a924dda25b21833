"""The system's metrics, what it warns of, and what it says of itself."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import logging
import random
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfs_stream_nb import __version__
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.content.node import RepoStat
from ipfs_stream_nb.errors import NotFoundError
from ipfs_stream_nb.notifications import system
from ipfs_stream_nb.notifications.emitting import emit_error
from ipfs_stream_nb.notifications.system import MetricsCollector, Store, collect_system_metrics
from ipfs_stream_nb.notifications.system_monitor import SystemMonitor, emit_started
from ipfs_stream_nb.notifications.system_readings import Disk, LoopLag, Reading, rates, read, read_disk

GROUPS = {
    "process": {"cpu_percent", "rss", "open_files", "threads", "uptime"},
    "system": {"cpu_percent", "cpu_count", "memory_total", "memory_available", "memory_percent"},
    "network": {"bytes_sent", "bytes_received", "sent_rate", "received_rate"},
    "disk": {"total", "free", "percent"},
}
ZERO = Reading(0.0, 0.0, 0.0, 0, 0, 0, 0.0, 0.0, 1, 0, 0, 0)


class Emitted(list):
    """An `Emit` that keeps what it is given."""

    def __init__(self):
        super().__init__()
        self._came = asyncio.Event()

    def __call__(self, notification_type, data, *, source=None, owner=None, keep=True):
        json.dumps(data, allow_nan=False)
        self.append((notification_type.value, data, keep, owner))
        self._came.set()

    async def reach(self, count):
        """Wait for so many events."""
        while len(self) < count:
            self._came.clear()
            await within(self._came.wait())


class Silent:
    """A node that never tells."""

    kind = "kubo"

    async def repo_stat(self):
        await asyncio.Event().wait()


class Counters:
    """A clock that goes on a second with each reading."""

    def __init__(self):
        self.reads = 0

    def __call__(self):
        self.reads += 1
        return dataclasses.replace(ZERO, at=float(self.reads))


@contextlib.asynccontextmanager
async def collecting(emitted=None, **options):
    """A collector that runs, with counters of its own unless told otherwise."""
    collector = MetricsCollector(
        Emitted() if emitted is None else emitted, **{"read_counters": Counters(), **options}
    )
    collector.start()
    try:
        yield collector
    finally:
        await collector.close()


async def within(waiting, seconds=10):
    """What is awaited, which comes soon."""
    async with asyncio.timeout(seconds):
        return await waiting


@pytest.fixture
def quick(monkeypatch):
    """A hundred samples a second, and stores that are asked each time."""
    monkeypatch.setattr(system, "SAMPLE_SECONDS", 0.01)
    monkeypatch.setattr(system, "NODE_SECONDS", 0.0)
    monkeypatch.setattr(system, "NODE_TIMES", 0)


# -- one sample


async def test_what_a_sample_holds(tmp_path):
    """Every documented key, as JSON, of a real system and a real node."""
    async with await EmbeddedNode.open(tmp_path / "repo", min_free=0, quota=1 << 30) as node:
        writer = node.writer()
        await writer.write(b"x" * 1000)
        await writer.finish()
        collector = MetricsCollector(
            Emitted(),
            node=lambda: node,
            folder=tmp_path / "repo",
            active=lambda: {"streams": 1, "uploads": 2},
        )
        try:
            found = await collector.sample()
        finally:
            await collector.close()
    json.dumps(found, allow_nan=False)
    assert {name: set(found[name]) for name in GROUPS} == GROUPS
    assert set(found) == {*GROUPS, "event_loop", "node", "active"}
    assert found["event_loop"] == {"lag_max": 0.0, "lag_mean": 0.0}
    assert found["active"] == {"streams": 1, "uploads": 2}
    assert found["node"] == {
        "kind": "embedded",
        "size": 1000,
        "blocks": 1,
        "quota": 1 << 30,
        "cache_size": 0,
    }
    assert found["process"]["rss"] > 1 << 20
    assert found["process"]["threads"] >= 1
    assert 0 < found["system"]["memory_percent"] < 100
    assert 0 < found["disk"]["free"] <= found["disk"]["total"]


async def test_the_guides_name():
    """`collect_system_metrics()` looks at this system without a server."""
    found = await collect_system_metrics()
    assert {name: set(found[name]) for name in found} == GROUPS


def test_work_is_seen():
    """A process that works for 0.2 s of CPU time is seen to."""
    process = psutil.Process()
    before = read(process)
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass
    now = read(process)
    seconds = now.at - before.at
    assert now.process_cpu - before.process_cpu >= 0.18
    assert rates(before, now)["process"]["cpu_percent"] >= round(18 / seconds, 1)


def test_rates():
    """Percentages and rates are over the time between two readings."""
    before = Reading(10.0, 100.0, 5.0, 1, 3, 2, 40.0, 100.0, 1000, 250, 500, 5000)
    now = Reading(12.0, 102.0, 8.0, 7, 4, 6, 41.0, 104.0, 1000, 250, 900, 4000)
    found = rates(before, now)
    assert found["process"] == {
        "cpu_percent": 150.0,
        "rss": 7,
        "open_files": 4,
        "threads": 6,
        "uptime": 102.0,
    }
    assert (found["system"]["cpu_percent"], found["system"]["memory_percent"]) == (25.0, 75.0)
    assert found["network"] == {
        "bytes_sent": 900,
        "bytes_received": 4000,
        "sent_rate": 200,
        "received_rate": 0,  # the counter began anew
    }


numbers = st.floats(0, 1e15)
counts = st.integers(0, 1 << 62)
readings = st.builds(
    Reading,
    at=numbers,
    uptime=numbers,
    process_cpu=numbers,
    rss=counts,
    open_files=st.none() | counts,
    threads=st.none() | counts,
    cpu_busy=numbers,
    cpu_all=numbers,
    memory_total=st.integers(1, 1 << 50),
    memory_available=counts,
    bytes_sent=st.none() | counts,
    bytes_received=st.none() | counts,
)


@given(readings, readings)
def test_any_counters_give_clean_numbers(before, now):
    """Counters that go back, jump or are missing give finite JSON, no negative rate, and percentages of at most 100."""
    found = rates(before, now)
    json.dumps(found, allow_nan=False)
    assert found["process"]["cpu_percent"] >= 0
    assert 0 <= found["system"]["cpu_percent"] <= 100
    for name in ("sent_rate", "received_rate"):
        assert found["network"][name] is None or found["network"][name] >= 0


def test_the_disk_of_a_store_that_is_yet_to_be_made(tmp_path):
    """It is the one that its directory will be on; a disk that cannot be read is None."""
    assert read_disk(tmp_path / "a" / "b").total == read_disk(tmp_path).total
    assert MetricsCollector(Emitted(), read_space=lambda _: None, folder=tmp_path).collect()["disk"] is None


async def test_a_blocked_loop_is_seen():
    """What blocks the loop for 0.3 s shows as lag of the last second, and as the worst since it was asked last."""
    lag = LoopLag()
    lag.start()
    try:
        assert lag.recent() == (0.0, 0.0)
        time.sleep(0.3)  # noqa: ASYNC251  # what is to be seen
        await asyncio.sleep(0.01)
        worst, mean = lag.recent()
        assert worst > 0.19
        assert 0 < mean <= worst
        assert lag.take_worst() == worst
        assert lag.take_worst() == 0.0
    finally:
        lag.stop()


# -- the collector


async def test_it_samples_only_while_somebody_listens(quick):
    """Nothing is read before the first listener or after the last; two get the same samples, each an event once."""
    counters, emitted = Counters(), Emitted()
    async with collecting(emitted, read_counters=counters, active=lambda: {"n": counters.reads}) as collector:
        await asyncio.sleep(0.05)
        assert (counters.reads, emitted) == (0, [])
        one, two = collector.samples(), collector.samples()
        first = await within(anext(one))
        assert await within(anext(two)) is first  # at once, and the same
        second, also = await asyncio.gather(within(anext(one)), within(anext(two)))
        assert second.metrics["active"]["n"] > first.metrics["active"]["n"]
        assert also.timestamp >= second.timestamp
        await one.aclose()
        await two.aclose()
        while collector._sample is not None:  # noqa: ASYNC110  # it notices with its next look
            await asyncio.sleep(0.01)
        read, told = counters.reads, len(emitted)
        await asyncio.sleep(0.05)
        assert (counters.reads, len(emitted)) == (read, told)
    assert told >= 2
    assert {(kind, keep) for kind, _, keep, _ in emitted} == {("system_metrics", False)}
    assert len({data["active"]["n"] for _, data, *_ in emitted}) == told


async def test_it_samples_for_who_wants_events(quick):
    """Subscribers to the events are listeners as well, who are asked about each time."""
    came, wanted = asyncio.Event(), True

    def emit(*_args, **_named):
        came.set()

    counters = Counters()
    async with collecting(emit, read_counters=counters, wanted=lambda: wanted):
        await within(came.wait())
        wanted = False
        await asyncio.sleep(0.05)
        came.clear()
        read = counters.reads
        await asyncio.sleep(0.05)
        assert (came.is_set(), counters.reads) == (False, read)


async def test_who_is_slow_gets_the_newest(quick):
    """A listener that was away gets the newest sample, and none of those in between."""
    emitted = Emitted()
    async with collecting(emitted) as collector, contextlib.aclosing(collector.samples()) as samples:
        await within(anext(samples))
        await emitted.reach(5)
        assert (await within(anext(samples))).metrics is emitted[-1][1]


async def test_the_first_sample_comes_at_once(monkeypatch):
    """The first listener does not wait for the next second to begin."""
    monkeypatch.setattr(system, "SAMPLE_SECONDS", 60.0)
    async with collecting() as collector:
        await asyncio.sleep(0.05)  # it waits for listeners
        async with contextlib.aclosing(collector.samples()) as samples:
            await within(anext(samples))


async def test_one_sample_a_second():
    """Each sample comes a second after the one before; a busy machine may be late with one of them."""
    async with collecting() as collector, contextlib.aclosing(collector.samples()) as samples:
        times = [(await within(anext(samples))).timestamp for _ in range(3)]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert 0.7 < min(gaps) < 3


async def test_a_node_that_does_not_tell_holds_up_nothing(quick, monkeypatch):
    """Samples come without its numbers, and it is asked once at a time."""
    monkeypatch.setattr(system, "NODE_PATIENCE", 0.01)
    asked = itertools.count()

    def node():
        next(asked)
        return Silent()

    async with collecting(node=node) as collector, contextlib.aclosing(collector.samples()) as samples:
        for _ in range(3):
            assert (await within(anext(samples))).metrics["node"] is None
    assert next(asked) == 1


async def test_a_node_that_takes_long_to_tell_is_asked_seldom(monkeypatch):
    """What it told holds for twenty times as long as that took."""
    monkeypatch.setattr(system, "NODE_SECONDS", 0.0)
    now, asked = [0.0], []

    class Slow:
        kind = "kubo"

        async def repo_stat(self):
            asked.append(now[0])
            now[0] += 2.0
            return RepoStat("", "", 1, 1, 1, None, 1)

    collector = MetricsCollector(Emitted(), node=Slow, clock=lambda: now[0])
    for _ in range(100):
        assert (await collector.store()).stat.size == 1
        now[0] += 1.0
    assert asked == [0.0, 42.0, 84.0]
    await collector.close()


async def test_what_cannot_be_collected_is_tried_again(quick, caplog):
    """An error in what it is given is logged, and the next sample comes."""
    outcomes = iter([RuntimeError("broken"), {"streams": 3}])

    def active():
        outcome = next(outcomes, {"streams": 4})
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async with collecting(active=active) as collector, contextlib.aclosing(collector.samples()) as samples:
        assert (await within(anext(samples))).metrics["active"] == {"streams": 3}
    assert "could not be collected" in caplog.text


async def test_its_end_ends_what_listens(quick):
    """`samples` ends when the collector closes, also where it has none; a closed one has none."""
    async with collecting(node=Silent) as collector:
        waiting = asyncio.ensure_future(_all(collector.samples()))
        await asyncio.sleep(0)
        await collector.close()
        await within(waiting)
        assert await _all(collector.samples()) == []
        assert collector._listeners == 0


async def _all(samples):
    return [sample async for sample in samples]


# -- warnings


class Watched:
    """A monitor whose disk, store, lag and clock are the test's."""

    def __init__(self, **options):
        self.emitted = Emitted()
        self.disk, self.now, self.node = Disk(1000, 500), 0.0, None
        self.collector = MetricsCollector(
            self.emitted, folder=Path(), read_space=lambda _: self.disk, node=lambda: self.node
        )
        self.lag = 0.0
        self.collector.lag.take_worst = lambda: self.lag
        self.monitor = SystemMonitor(self.emitted, self.collector, clock=lambda: self.now, **options)

    async def look(self, after=100.0):
        """What is said at a look that comes so many seconds after the last."""
        self.now += after
        before = len(self.emitted)
        await self.monitor.look()
        return [(kind, data["warning"]) for kind, data, *_ in self.emitted[before:]]


WARNING, INFO = "system_warning", "system_info"


async def test_a_disk_that_fills():
    """Below 5 % free it is low, once; it is over only with a little more than that."""
    watched = Watched()
    assert await watched.look() == []
    watched.disk = Disk(1000, 49)
    assert await watched.look() == [(WARNING, "disk_low")]
    assert watched.emitted[-1][1] == {
        "warning": "disk_low",
        "message": "the store's disk has 49 bytes free of 1000 bytes",
        "free": 49,
        "total": 1000,
        "min_free": 0,
    }
    assert await watched.look() == []
    watched.disk = Disk(1000, 52)
    assert await watched.look() == []
    watched.disk = Disk(1000, 56)
    assert await watched.look() == [(INFO, "disk_low")]
    assert watched.emitted[-1][1]["event"] == "resolved"
    watched.disk = Disk(1000, 52)
    assert await watched.look() == []
    watched.disk = None
    assert await watched.look() == []
    assert all(keep and owner is None for *_, keep, owner in watched.emitted)


async def test_what_must_stay_free():
    """Less than twice what must stay free is low, whatever its share of the disk."""
    watched = Watched(min_free=300)
    assert await watched.look() == [(WARNING, "disk_low")]
    watched.disk = Disk(10_000, 700)
    assert await watched.look() == [(INFO, "disk_low")]


async def test_a_quota_that_fills(tmp_path, quick):
    """At 90 % of a real store's quota it is near; it is over below 85 %, not in between."""
    async with await EmbeddedNode.open(tmp_path / "repo", min_free=0, quota=100_000) as node:
        watched = Watched()
        watched.node = node

        async def add(size, seed):
            writer = node.writer()
            await writer.write(random.Random(seed).randbytes(size))
            return (await writer.finish()).cid

        await add(80_000, 1)
        assert await watched.look() == []
        small = await add(7_000, 2)
        assert await watched.look() == []
        other = await add(4_000, 3)
        assert await watched.look() == [(WARNING, "quota_near")]
        found = watched.emitted[-1][1]
        assert (found["size"], found["quota"], found["percent"]) == (91_000, 100_000, 91.0)
        await node.remove(other)
        assert await watched.look() == []
        await node.remove(small)
        assert await watched.look() == [(INFO, "quota_near")]


def test_what_goes_where_room_is_needed_is_no_load():
    """Cached blocks do not count against the quota, but for Kubo, whose numbers do not hold them."""
    stat = RepoStat("", "", 9, 900, 900, 1000, 1, cache_size=800)
    assert (Store("embedded", stat).kept, Store("kubo", stat).kept) == (100, 900)


async def test_a_slow_loop():
    """More than 0.25 s of lag since the last look is slow; a look without is its end."""
    watched = Watched()
    watched.lag = 0.25
    assert await watched.look() == []
    watched.lag = 0.3
    assert await watched.look() == [(WARNING, "event_loop_slow")]
    assert watched.emitted[-1][1]["lag"] == 0.3
    watched.lag = 0.0
    assert await watched.look() == [(INFO, "event_loop_slow")]


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 100)), min_size=1, max_size=60))
def test_at_most_one_event_a_minute(looks):
    """Whatever comes and goes: warnings and their ends alternate, a minute apart at least, and what holds is said."""
    watched, said = Watched(), []
    for bad, after in [*looks, (looks[-1][0], 61.0)]:
        watched.now += after
        before = len(watched.emitted)
        for finding in watched.monitor._findings(Disk(100, 0 if bad else 100), None, 0.0):
            watched.monitor._note(finding)
        said += [(watched.now, kind) for kind, *_ in watched.emitted[before:]]
    assert [kind for _, kind in said] == [(WARNING, INFO)[n % 2] for n in range(len(said))]
    assert all(b - a >= 60 for (a, _), (b, _) in itertools.pairwise(said))
    assert (bool(said) and said[-1][1] == WARNING) == looks[-1][0]


async def test_a_real_loop_that_is_blocked_is_warned_of():
    """The monitor that runs looks again and again, goes on after an error, and says what the loop did since."""
    loop, looks, third, slow = (
        asyncio.get_running_loop(),
        itertools.count(1),
        asyncio.Event(),
        asyncio.Event(),
    )

    def emit(_type, data, **_named):
        if data["warning"] == "event_loop_slow":
            slow.set()

    def space(_folder):
        number = next(looks)
        if number == 1:
            raise RuntimeError("broken")
        if number == 3:
            loop.call_soon_threadsafe(third.set)
        return Disk(1, 1)

    async with collecting(emit, folder=Path(), read_space=space) as collector:
        monitor = SystemMonitor(emit, collector, seconds=0.05)
        monitor.start()
        await within(third.wait())
        time.sleep(0.5)  # noqa: ASYNC251  # what is to be seen
        await within(slow.wait())
        await monitor.close()


# -- what the server says of itself


def test_the_start():
    """The version and the kind of node are told."""
    emitted = Emitted()
    emit_started(emitted, "embedded")
    assert emitted[0][:2] == (
        INFO,
        {
            "event": "started",
            "message": "the server has started",
            "version": __version__,
            "node": "embedded",
        },
    )


def test_errors_tell_what_users_may_know():
    """Our errors' texts go out; those of others stay inside."""
    emitted = Emitted()
    emit_error(emitted, "upload", NotFoundError("bafy… is not here"), owner="ann", cid="bafy…")
    foreign = OSError("/home/ann/secret")
    foreign.code = 17
    emit_error(emitted, "upload", foreign)
    assert emitted[0] == (
        "system_error",
        {
            "message": "upload failed",
            "operation": "upload",
            "error": "bafy… is not here",
            "code": "not_found",
            "cid": "bafy…",
        },
        True,
        "ann",
    )
    assert emitted[1][1]["code"] == "internal"
    assert "secret" not in json.dumps(emitted[1][1])


@pytest.fixture(autouse=True)
def _asyncio_is_quiet():
    """Tests that block the loop are not to fill the log with asyncio's own remarks."""
    logger = logging.getLogger("asyncio")
    before = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(before)
