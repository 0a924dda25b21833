"""A browser that plays over an emulated link what a program sends, and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from link.emulator import Host, Link
from link.flows import BulkFlow
from link.paths import Scenario
from link.records import Records

PORT = 8765
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SETTLE = 3.0
"""Seconds of playing before a scenario begins."""


@dataclass
class Viewer:
    """What one browser has seen: `frames` at seconds since the scenario began, with their heights; `samples` of getStats:
    seconds, bytes, freezes, frozen seconds, frames, lost packets, seconds in the jitter buffer."""

    frames: np.ndarray
    heights: np.ndarray
    samples: np.ndarray

    def frozen(self, start: float = 0.0, end: float = float("inf")) -> float:
        """Seconds for which the picture stood still, as webrtc-stats defines a freeze: longer than three frames, and 0.15 s more
        than one."""
        frames = np.append(self.frames, end) if np.isfinite(end) else self.frames  # it may not come back
        gaps = np.diff(frames)
        usual = np.array([gaps[max(0, n - 30) : n].mean() if n else np.inf for n in range(len(gaps))])
        still = gaps > np.maximum(3 * usual, usual + 0.15)
        within = (frames[1:] > start) & (frames[1:] <= end)
        return float(gaps[still & within].sum())

    def longest_gap(self, start: float = 0.0, end: float = float("inf")) -> float:
        """Seconds between two pictures at the most."""
        within = (self.frames[1:] > start) & (self.frames[1:] <= end)
        return float(np.diff(self.frames)[within].max(initial=0.0))


@dataclass
class Played:
    """What came of one run."""

    scenario: Scenario
    records: Records
    viewers: list[Viewer]
    samples: list[list[dict[str, Any]]]
    """Our sender's own, of each viewer; `at` is seconds since the scenario began."""
    tcp_bitrate: float = 0.0


@dataclass
class _Programs:
    running: list[asyncio.subprocess.Process] = field(default_factory=list)

    async def start(self, host: Host, name: str, *arguments: str) -> asyncio.subprocess.Process:
        program = await host.start(
            sys.executable, str(BENCHMARKS / name), *arguments,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=1 << 26,
            env=os.environ | {"PYTHONPATH": os.pathsep.join((str(BENCHMARKS.parent), str(BENCHMARKS.parents[1])))},
        )  # fmt: skip
        self.running.append(program)
        return program

    async def close(self) -> None:
        for program in self.running:
            with contextlib.suppress(ProcessLookupError):
                program.terminate()
        for program in self.running:
            await program.wait()


async def _line(program: asyncio.subprocess.Process, seconds: float = 60.0) -> str:
    assert program.stdout is not None
    async with asyncio.timeout(seconds):
        line = await program.stdout.readline()
    if not line:
        raise RuntimeError("a program of the run ended too early; its errors stand above")
    return line.decode().strip()


async def play(
    scenario: Scenario, kind: str, file: Path, store: Path, receiver: str = "adaptive_viewer.py"
) -> Played:
    """Send `file` by "ours" or by stock "aiortc" to the scenario's viewers, and watch. Raises LinkUnavailableError."""
    programs = _Programs()
    async with Link(scenario) as link:
        try:
            server = await programs.start(
                link.server, "adaptive_server.py", kind, str(file), str(PORT), str(store)
            )
            await _line(server)
            url = f"http://{link.server.address}:{PORT}"
            viewers = [await programs.start(link.viewer, receiver, f"{url}/") for _ in range(scenario.flows)]
            for viewer in viewers:
                await _line(viewer)
            await asyncio.sleep(SETTLE)
            link.begin()
            begun, wall = time.monotonic(), time.time()
            with contextlib.ExitStack() as flows:
                bulk = [
                    flows.enter_context(await asyncio.to_thread(BulkFlow, link.server, link.viewer))
                    for _ in range(scenario.tcp_flows)
                ]
                await asyncio.sleep(scenario.duration)
                seen = [await _seen(viewer, wall) for viewer in viewers]
                tcp = sum(link.records.down.bitrate(2, scenario.duration, one.flow) for one in bulk)
            samples = await asyncio.to_thread(_samples, link.server, url, begun)
            return Played(scenario, link.records, seen, samples, tcp)
        finally:
            await programs.close()


async def _seen(viewer: asyncio.subprocess.Process, wall: float) -> Viewer:
    assert viewer.stdin is not None
    viewer.stdin.write(b"\n")
    told = json.loads(await _line(viewer))
    frames = np.array([[at / 1000 - wall, height] for at, _, height in told["frames"]])
    samples = np.array(told["samples"], dtype=float)
    samples[:, 0] = samples[:, 0] / 1000 - wall
    return Viewer(frames[:, 0], frames[:, 1], samples)


def _samples(host: Host, url: str, begun: float) -> list[list[dict[str, Any]]]:
    with host.entered(), urllib.request.urlopen(f"{url}/samples") as answer:  # noqa: S310  # a server of ours
        told: list[list[dict[str, Any]]] = json.load(answer)
    return [[one | {"at": one["at"] - begun} for one in samples] for samples in told]
