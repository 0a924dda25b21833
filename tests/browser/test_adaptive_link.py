"""A browser behind a link that becomes narrow and wide again, in network namespaces: what it sees, and what the sender does."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from link.namespaces import LinkUnavailableError
from link.playing import play
from link.scenarios import SCENARIOS
from rich_clip import rich_clip

STEP = 4.0
DURATION = 14.0


def test_the_picture_follows_the_link(tmp_path: Path) -> None:
    """Content that does not fit through the link goes on with fewer lines, at a rate that the link carries and with a short queue."""
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(rich_clip(20.0))
    scenario = SCENARIOS["step_down"]
    scenario = replace(
        scenario, duration=DURATION, down=replace(scenario.down, rate=((0.0, 4e6), (STEP, 0.6e6)))
    )
    try:
        with ThreadPoolExecutor(1) as thread:  # Playwright keeps a loop in this one
            played = thread.submit(
                lambda: asyncio.run(play(scenario, "ours", clip, tmp_path / "store"))
            ).result()
    except LinkUnavailableError as error:
        pytest.skip(str(error))
    (viewer,), (samples,) = played.viewers, played.samples
    down = played.records.down
    levels = {one["level"] for one in samples if one["at"] > STEP + 2}
    assert levels
    assert levels <= {"very_low", "low", "medium"}
    assert down.bitrate(STEP + 4, DURATION) > 0.25e6
    assert down.queue_delay(50, STEP + 4, DURATION) < 0.15
    late = viewer.heights[viewer.frames > STEP + 4]
    assert len(late) > 60
    assert max(late) <= 480
    assert viewer.longest_gap(STEP + 4, DURATION) < 1.5
    assert all(one["bandwidth_estimate"] > 0 for one in samples)
