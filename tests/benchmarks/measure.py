"""What the benchmarks share: big files, memory, ratios."""

from __future__ import annotations

import os
import statistics
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

MIB = 1024 * 1024


def random_file(path: Path, size: int) -> Path:
    """A file of `size` random bytes."""
    with path.open("wb") as file:
        for at in range(0, size, MIB):
            file.write(os.urandom(min(MIB, size - at)))
    return path


def settle() -> None:
    """Wait until the disk has written what earlier runs left, so that none pays for another."""
    os.sync()


def anonymous_bytes(pid: int | str = "self") -> int:
    """Memory that is a process's own (RssAnon). Pages of mapped files are the kernel's cache and not counted:
    they are given back when anybody needs memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no RssAnon in /proc; the memory figures need Linux")


class AnonymousMemory:
    """The peak growth of private memory during `with` blocks, sampled a hundred times a second."""

    def __init__(self, pid: int | str = "self") -> None:
        self.growth = 0
        self._pid = pid
        self._start = 0
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._start = anonymous_bytes(self._pid)
        self._done.clear()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._done.wait(0.01):
            self.growth = max(self.growth, anonymous_bytes(self._pid) - self._start)

    def __exit__(self, *_exc: object) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()


@dataclass
class Result:
    """Rounds of ours beside a peer's; higher is better."""

    what: str
    peer: str
    unit: str
    goal: float
    rounds: list[tuple[float, float]] = field(default_factory=list)

    def add(self, ours: float, peer: float) -> None:
        """Enter one round."""
        self.rounds.append((ours, peer))

    @property
    def ratios(self) -> list[float]:
        """Ours over the peer's, round by round."""
        return [ours / peer for ours, peer in self.rounds]


def report(result: Result) -> None:
    """One row: medians, the median ratio with its range, the goal."""
    ours = statistics.median(ours for ours, _ in result.rounds)
    peer = statistics.median(peer for _, peer in result.rounds)
    ratio = statistics.median(result.ratios)
    print(
        f"{result.what}: {ours:,.0f} {result.unit}; {result.peer}: {peer:,.0f} {result.unit};"
        f" ratio {ratio:.2f} ({min(result.ratios):.2f} to {max(result.ratios):.2f}), goal {result.goal}",
        flush=True,
    )
