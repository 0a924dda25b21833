"""The system's metrics: one collector, which samples once a second while somebody listens, for all who do (item 159)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from ipfs_stream_nb.content.blocks.filesystems import default_repo
from ipfs_stream_nb.content.node import Node, RepoStat
from ipfs_stream_nb.notifications.emitting import Emit
from ipfs_stream_nb.notifications.events import SOURCE, NotificationType
from ipfs_stream_nb.notifications.system_readings import Disk, LoopLag, Reading, rates, read, read_disk
from ipfs_stream_nb.process_end import process_ends

SAMPLE_SECONDS: Final = 1.0
"""Seconds between two samples."""
FRESH_SECONDS: Final = 5.0
"""Seconds for which counters that were read are what rates begin from."""
BASE_SECONDS: Final = 0.1
"""Seconds that the first sample's rates are over."""
NODE_SECONDS: Final = 5.0
"""Seconds for which what a node told of its store holds, at the least."""
NODE_TIMES: Final = 20
"""It holds for so many times what telling took, since some daemons count all their blocks for it."""
NODE_TIMEOUT: Final = 10.0
"""Seconds that it has to tell it."""
NODE_PATIENCE: Final = 0.25
"""Seconds that a sample waits for it."""

_log = logging.getLogger("ipfs_stream_nb.notifications")


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen at one time."""

    timestamp: float
    """Seconds since the epoch."""
    metrics: dict[str, Any]
    """See MetricsCollector."""


@dataclass(frozen=True, slots=True)
class Store:
    """What a node tells of its store."""

    kind: str
    stat: RepoStat

    @property
    def kept(self) -> int:
        """Bytes that do not go where room is needed; a Kubo daemon's do not count what our own store caches."""
        return self.stat.size if self.kind == "kubo" else self.stat.size - self.stat.cache_size


class MetricsCollector:
    """Samples once a second while somebody listens. All listeners get the same sample, and it goes out as one
    `system_metrics` event, which no log keeps.

    A sample's metrics are JSON: sizes in bytes, times in seconds, rates in bytes a second, percentages from 0 to 100.
    A value is None where the system does not tell it.

        process     cpu_percent (of one core, so that it may pass 100), rss, open_files, threads, uptime
        system      cpu_percent (of all cores), cpu_count, memory_total, memory_available, memory_percent
        network     bytes_sent, bytes_received, sent_rate, received_rate: of the whole system, without the loopback
        disk        total, free, percent (used): of the disk that the store is on; or None
        event_loop  lag_max, lag_mean: how late the loop ran what was due, over the last second
        node        kind, size, blocks, quota, cache_size: as of some seconds ago; None where no node is open
        active      what `active` gives: streams, uploads, subscribers, peer_connections
    """

    def __init__(
        self,
        emit: Emit,
        *,
        node: Callable[[], Node | None] = lambda: None,
        active: Callable[[], Mapping[str, int]] = dict,
        folder: Path | None = None,
        wanted: Callable[[], bool] = lambda: False,
        read_counters: Callable[[], Reading] | None = None,
        read_space: Callable[[Path], Disk | None] = read_disk,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`node`: the open node; `active`: counts of what runs; `folder`: the store's; `wanted`: whether anybody listens
        to `system_metrics` events, asked once a second. These four are called on the loop, and return at once."""
        self._emit = emit
        self._node = node
        self._active = active
        self._folder = folder
        self._wanted = wanted
        process = psutil.Process()
        self._read = read_counters or (lambda: read(process))
        self._read_space = read_space
        self._clock = clock
        self.lag = LoopLag()
        self._base: Reading | None = None
        self._reading = threading.Lock()
        self._store: Store | None = None
        self._store_until = 0.0
        self._looking: asyncio.Task[None] | None = None
        self._sample: Sample | None = None
        self._listeners = 0
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._closed = False
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Measure the event loop from here on, and sample while somebody listens. Called on the loop. Idempotent."""
        if self._running is None and not self._closed:
            self.lag.start()
            self._running = asyncio.create_task(self._run(), name="sample the system")

    async def close(self) -> None:
        """End, and with it what listens. Idempotent."""
        self._closed = True
        self.lag.stop()
        self._tell(None)
        tasks = [task for task in (self._running, self._looking) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def samples(self) -> AsyncGenerator[Sample, None]:
        """The newest sample at once, then each new one; who is slow is given the newest. Ends with the collector, and
        must be closed when left early: until then it counts as a listener."""
        self._listeners += 1
        self._wake.set()
        try:
            seen = None
            while not self._closed:
                sample, changed = self._sample, self._changed
                if sample is None or sample is seen:
                    await changed.wait()
                    continue
                seen = sample
                yield sample
        finally:
            self._listeners -= 1

    def _tell(self, sample: Sample | None) -> None:
        self._sample = sample
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _run(self) -> None:
        while True:
            began = self._clock()
            try:
                listening = self._listeners > 0 or self._wanted()
                if listening:
                    sample = Sample(time.time(), await self.sample())
                    self._tell(sample)
                    self._emit(NotificationType.SYSTEM_METRICS, sample.metrics, source=SOURCE, keep=False)
            except Exception:  # noqa: BLE001  # a system unlike those that we know: the next sample may do
                if process_ends():
                    return
                _log.exception("The system's metrics could not be collected")
                listening = True
            if listening:
                await asyncio.sleep(max(0.0, began + SAMPLE_SECONDS - self._clock()))
                continue
            self._sample = None
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SAMPLE_SECONDS):
                    await self._wake.wait()

    async def sample(self) -> dict[str, Any]:
        """Collect now, beside the loop. The shape: see the class."""
        store, (worst, mean) = await self.store(), self.lag.recent()
        return await asyncio.to_thread(self.collect) | {
            "event_loop": {"lag_max": round(worst, 4), "lag_mean": round(mean, 4)},
            "node": store and _about(store),
            "active": dict(self._active()),
        }

    def collect(self) -> dict[str, Any]:
        """What the system tells: process, system, network and disk. Takes BASE_SECONDS where nothing was collected
        lately, else a millisecond; called in a thread."""
        with self._reading:
            base, now = self._base, self._read()
            if base is None or now.at - base.at > FRESH_SECONDS:
                time.sleep(BASE_SECONDS)
                base, now = now, self._read()
            self._base = now
        return {**rates(base, now), "disk": _disk(self.space())}

    def space(self) -> Disk | None:
        """The disk that the store is on. Called in a thread."""
        return None if self._folder is None else self._read_space(self._folder)

    async def store(self) -> Store | None:
        """What the node told of its store in the last seconds; a node that takes long to tell is not waited for."""
        if self._looking is None and self._clock() >= self._store_until:
            self._looking = asyncio.create_task(self._look(), name="ask for the store's size")
        if self._looking is not None:
            await asyncio.wait([self._looking], timeout=NODE_PATIENCE)
        return self._store

    async def _look(self) -> None:
        found, began = None, self._clock()
        try:
            node = self._node()
            if node is not None:
                async with asyncio.timeout(NODE_TIMEOUT):
                    found = Store(node.kind, await node.repo_stat())
        except Exception as error:  # noqa: BLE001  # a lost store, a daemon that is gone: then it is not known
            _log.debug("The store's size is not known: %r", error)
        finally:
            self._store, now = found, self._clock()
            self._store_until = now + max(NODE_SECONDS, NODE_TIMES * (now - began))
            self._looking = None


def _about(store: Store) -> dict[str, Any]:
    stat = store.stat
    return {
        "kind": store.kind,
        "size": stat.size,
        "blocks": stat.blocks,
        "quota": stat.quota,
        "cache_size": stat.cache_size,
    }


def _disk(disk: Disk | None) -> dict[str, Any] | None:
    if disk is None:
        return None
    used = 1 - disk.free / disk.total if disk.total else 0.0
    return {"total": disk.total, "free": disk.free, "percent": round(100 * used, 1)}


async def collect_system_metrics() -> dict[str, Any]:
    """The guide's name for one look at this process and its system, without a server: the groups process, system,
    network and disk of MetricsCollector, with rates over BASE_SECONDS."""
    collector = MetricsCollector(lambda *_args, **_named: None, folder=default_repo())
    return await asyncio.to_thread(collector.collect)
