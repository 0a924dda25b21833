"""The notebook about WebRTC in a real JupyterLab: media comes from the server to the kernel and to the page."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import ROOT, Lab
from playwright.sync_api import Page, expect
from rtc_server import frame_number

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_the_notebook_about_webrtc(
    page: Page,
    *,
    start_lab: Callable[[str], Lab],
    shoot: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It runs to its end over the server extension; its player shows the picture of its place, live, the feed tells of the
    connections, and both look right in both themes."""
    monkeypatch.setenv("IPFS_STREAM_NB_GATEWAYS", "")
    lab = start_lab("/")
    shutil.copy(ROOT / "notebooks" / "03_webrtc.ipynb", lab.root)
    page.set_viewport_size({"width": 1100, "height": 4600})
    saved = lab.run_all(page, "03_webrtc.ipynb")
    printed = lab.printed(saved)
    if "No WebRTC here" in printed:
        pytest.skip("this machine has no network address for WebRTC")
    assert "240 lines came: True" in printed
    player = page.locator(".jp-OutputArea .ipfs-player").first
    player.locator(".ipfs-player-big").click()
    expect(player.locator(".ipfs-player-link")).to_have_text("Live over WebRTC", timeout=20_000)
    page.wait_for_function(
        "() => { const video = document.querySelector('.ipfs-player video'); return video.videoWidth && !video.paused; }"
    )
    player.locator(".ipfs-player-seek").fill("12")
    deadline = time.monotonic() + 10
    # what is on the way to the place may not be read
    while not 12 * 30 <= (number := frame_number(player.locator("video")) or 0) < 20 * 30:
        assert time.monotonic() < deadline, f"frame {number} is shown, not one after the seek to 12 s"
        page.wait_for_timeout(100)
    feed = page.locator(".jp-OutputArea .ipfs-feed")
    expect(feed.get_by_role("listitem").filter(has_text="peer connected").first).to_be_visible()
    player.locator("video").click()
    expect(player.locator(".ipfs-player-link")).to_have_text("WebRTC, paused")
    for theme in ("Light", "Dark"):
        lab.theme(page, f"JupyterLab {theme}")
        shoot(page, theme.lower())
