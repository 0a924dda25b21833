"""Peers in one process: over the loopback address, which ICE leaves out by itself."""

from __future__ import annotations

from typing import Any

import pytest

from webrtc.packet_source import Sources, clip


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aioice.ice.get_host_addresses", lambda **_kwargs: ["127.0.0.1"])


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
