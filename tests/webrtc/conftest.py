"""Peers in one process: over the loopback address, which ICE leaves out by itself."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from ipfs_stream_nb.webrtc import clock
from webrtc.packet_source import Sources, clip


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aioice.ice.get_host_addresses", lambda **_kwargs: ["127.0.0.1"])


class Leap:
    """A loop's clock and its selector: no time passes but that for which everybody waits, and that passes at once."""

    def __init__(self, loop: Any) -> None:
        self.now, self._inner = loop.time(), loop._selector

    def time(self) -> float:
        return self.now

    def select(self, timeout: float | None = None) -> Any:
        found = self._inner.select(0 if timeout else timeout)
        self.now += 0 if found else timeout or 0
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@pytest.fixture
async def own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time of the loop's own, in which no machine is slow: for tests of clocks. Sockets and threads have no part in it."""
    loop: Any = asyncio.get_running_loop()
    leap = Leap(loop)
    loop.time, loop._selector = leap.time, leap
    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=leap.time))


@pytest.fixture
def sources() -> Sources:
    """An opener: `webm` (VP8, Opus), `mp4` (H.264), `silent` (VP8 alone)."""
    return Sources(webm=clip("webm"), mp4=clip("mp4", audio=False), silent=clip("webm", 1.0, audio=False))


class Events:
    """An emitter that keeps what it is given."""

    def __init__(self) -> None:
        self.all: list[tuple[str, dict[str, Any], dict[str, Any]]] = []

    def __call__(self, notification_type: Any, data: Any, **options: Any) -> None:
        self.all.append((notification_type.value, dict(data), options))

    def types(self) -> list[str]:
        return [one[0] for one in self.all]

    def of(self, notification_type: str) -> list[dict[str, Any]]:
        return [one[1] for one in self.all if one[0] == notification_type]


@pytest.fixture
def events() -> Events:
    return Events()
