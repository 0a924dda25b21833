"""What goes out over the data channel, and when."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

from ipfs_stream_nb.webrtc.reporting import MAX_BUFFERED, MAX_MARKS, Reporter


class Channel:
    """A data channel in the hands of the test."""

    def __init__(self) -> None:
        self.readyState, self.bufferedAmount = "connecting", 0
        self.transport = SimpleNamespace(transport=SimpleNamespace(state="connected"))
        self.sent: list[dict[str, Any]] = []
        self.news = asyncio.Event()

    def on(self, event, function) -> None:
        if event == "open":
            self.opened = function

    def send(self, text: str) -> None:
        self.sent.append(json.loads(text))
        self.news.set()

    def open(self) -> None:
        self.readyState = "open"
        self.opened()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self.news.clear()
                await self.news.wait()


def test_marks_wait_for_the_channel():
    """They are kept until it opens and while it is full, no more than so many, and go out in order."""
    channel = Channel()
    reporter = Reporter(channel, dict, dict, dict)
    for pts in range(MAX_MARKS + 3):
        reporter.mark({"pts": pts})
    assert channel.sent == []
    channel.open()
    assert [one["pts"] for one in channel.sent] == list(range(3, MAX_MARKS + 3))
    channel.sent.clear()
    channel.bufferedAmount = MAX_BUFFERED
    reporter.mark({"pts": 100})
    assert channel.sent == []
    channel.bufferedAmount = 0
    reporter.mark({"pts": 101})
    assert [one["pts"] for one in channel.sent] == [100, 101]


@asynccontextmanager
async def reporting(channel: Channel, playback: dict[str, Any]) -> AsyncIterator[Reporter]:
    """A reporter that runs, on a playback in the hands of the test."""

    async def stats() -> dict[str, Any]:
        return {"type": "stats"}

    reporter = Reporter(channel, lambda: playback | {"type": "playback"}, stats, lambda: None)
    running = asyncio.create_task(reporter.run())
    try:
        yield reporter
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def states(channel: Channel) -> list[str]:
    return [one["state"] for one in channel.sent if one["type"] == "playback"]


async def test_a_channel_that_opens_late_is_told_how_it_ended():
    """Playback was over before the channel was open: it learns so once it is."""
    channel = Channel()
    playback = {"state": "ended", "position": 3.0}
    async with reporting(channel, playback) as reporter:
        for _ in range(3):  # each time it would have been told
            reporter.changed()
            await asyncio.sleep(0)
        assert channel.sent == []
        channel.open()
        await channel.until(lambda: states(channel) == ["ended"])


async def test_an_end_that_finds_the_channel_full_is_told_later():
    """What is left out for want of room is told where nothing newer comes."""
    channel = Channel()
    playback = {"state": "playing", "position": 2.0}
    async with reporting(channel, playback) as reporter:
        channel.open()
        await channel.until(lambda: states(channel) == ["playing"])
        channel.bufferedAmount = MAX_BUFFERED
        playback |= {"state": "ended", "position": 3.0}
        reporter.changed()
        await asyncio.sleep(0.01)
        assert "ended" not in states(channel)
        channel.bufferedAmount = 0
        await channel.until(lambda: states(channel)[-1] == "ended")
