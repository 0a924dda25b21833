"""What the system says of itself: counters read at one time, rates between two, and how late an event loop is."""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import psutil

LAG_SECONDS: Final = 0.1
"""Seconds between two looks at an event loop's lag: what blocks it for less may go unseen."""
LAG_LOOKS: Final = 10
"""Looks that the lag of a sample is made of: those of the last second."""

_LOOPBACK: Final = re.compile(r"lo\d*|loopback.*", re.IGNORECASE)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reading:
    """Counters at one time. None: the system does not tell."""

    at: float
    """Seconds of a monotonic clock."""
    uptime: float
    """Seconds since this process began."""
    process_cpu: float
    """Seconds of CPU that it used."""
    rss: int
    """Bytes of memory that it has."""
    open_files: int | None
    """Its file descriptors; handles on Windows."""
    threads: int | None
    cpu_busy: float
    cpu_all: float
    """Seconds that all CPUs together worked, and were there."""
    memory_total: int
    memory_available: int
    bytes_sent: int | None
    bytes_received: int | None
    """Over all network interfaces but the loopback."""


def read(process: psutil.Process) -> Reading:
    """Read all counters, in a fraction of a millisecond."""
    cpu = psutil.cpu_times()
    memory = psutil.virtual_memory()
    with process.oneshot():
        used = process.cpu_times()
        sent, received = _told(_network) or (None, None)
        return Reading(
            at=time.monotonic(),
            uptime=time.time() - process.create_time(),
            process_cpu=used.user + used.system,
            rss=process.memory_info().rss,
            open_files=_told(getattr(process, "num_fds" if psutil.POSIX else "num_handles")),
            threads=_told(process.num_threads),
            cpu_busy=_work(cpu),
            cpu_all=_work(cpu) + cpu.idle + getattr(cpu, "iowait", 0.0),
            memory_total=memory.total,
            memory_available=memory.available,
            bytes_sent=sent,
            bytes_received=received,
        )


def _told(ask: Callable[[], T]) -> T | None:
    """What a call gives; None where the system refuses it, as in some containers."""
    with suppress(psutil.Error, OSError):
        return ask()
    return None


def _work(cpu: Any) -> float:
    """The seconds in which CPUs did something. Guests are counted in `user` already."""
    idle = {"idle", "iowait", "guest", "guest_nice"}
    return float(sum(value for name, value in cpu._asdict().items() if name not in idle))


def _network() -> tuple[int, int]:
    each = psutil.net_io_counters(pernic=True)
    real = [counters for name, counters in each.items() if not _LOOPBACK.fullmatch(name)]
    return sum(counters.bytes_sent for counters in real), sum(counters.bytes_recv for counters in real)


def rates(before: Reading, now: Reading) -> dict[str, Any]:
    """The sample's groups process, system and network; rates are over the time between the two readings."""
    seconds = max(now.at - before.at, 1e-3)
    cpus = now.cpu_all - before.cpu_all
    busy = (now.cpu_busy - before.cpu_busy) / cpus if cpus > 0 else 0.0
    used = 1 - now.memory_available / now.memory_total
    return {
        "process": {
            "cpu_percent": round(100 * max(0.0, now.process_cpu - before.process_cpu) / seconds, 1),
            "rss": now.rss,
            "open_files": now.open_files,
            "threads": now.threads,
            "uptime": round(now.uptime, 1),
        },
        "system": {
            "cpu_percent": round(100 * min(max(busy, 0.0), 1.0), 1),
            "cpu_count": psutil.cpu_count() or 1,
            "memory_total": now.memory_total,
            "memory_available": now.memory_available,
            "memory_percent": round(100 * used, 1),
        },
        "network": {
            "bytes_sent": now.bytes_sent,
            "bytes_received": now.bytes_received,
            "sent_rate": _rate(before.bytes_sent, now.bytes_sent, seconds),
            "received_rate": _rate(before.bytes_received, now.bytes_received, seconds),
        },
    }


def _rate(before: int | None, now: int | None, seconds: float) -> int | None:
    """Bytes a second; counters may begin anew, as where an interface goes."""
    return None if before is None or now is None else round(max(0, now - before) / seconds)


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes of a filesystem; `free` is what its user may still write."""

    total: int
    free: int


def read_disk(folder: Path) -> Disk | None:
    """The disk that a directory is on, or will be once it is made; None where it cannot be told."""
    return _told(lambda: _usage(folder.absolute()))


def _usage(folder: Path) -> Disk:
    place = next(place for place in (folder, *folder.parents) if place.exists())
    usage = psutil.disk_usage(str(place))
    return Disk(usage.total, usage.free)


class LoopLag:
    """How late an event loop runs what is due. Looks every LAG_SECONDS from `start` to `stop`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lags: deque[float] = deque(maxlen=LAG_LOOKS)
        self._worst = 0.0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin; called on the loop. Idempotent."""
        if self._timer is None:
            self._again()

    def _again(self) -> None:
        self._due = self._clock() + LAG_SECONDS
        self._timer = asyncio.get_running_loop().call_later(LAG_SECONDS, self._look)

    def _look(self) -> None:
        lag = max(0.0, self._clock() - self._due)
        self._lags.append(lag)
        self._worst = max(self._worst, lag)
        self._again()

    def recent(self) -> tuple[float, float]:
        """The greatest and the mean lag of the last second, in seconds."""
        return (max(self._lags), sum(self._lags) / len(self._lags)) if self._lags else (0.0, 0.0)

    def take_worst(self) -> float:
        """The greatest lag since this was asked last, in seconds."""
        worst, self._worst = self._worst, 0.0
        return worst

    def stop(self) -> None:
        """End. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
