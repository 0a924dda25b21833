"""Content from elsewhere in a real JupyterLab: a video that only a Kubo daemon has, and the notebook about it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import ROOT, Lab
from playwright.sync_api import Page, expect

from ipfs_stream_nb import samples
from kubo import Kubo

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_plays_a_video_that_only_kubo_has(
    page: Page,
    kubo: Kubo,
    *,
    start_lab: Callable[[str], Lab],
    shoot: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It plays and seeks in the notebook, and its frames come out as arrays; the sources name the daemon."""
    clip = samples.video(tmp_path / "far.mp4", duration=8)
    cid = kubo.run("add", "-Q", "--cid-version=1", "--chunker=size-65536", str(clip))
    monkeypatch.setenv("IPFS_API", kubo.api)
    lab = start_lab("/")
    lab.write(
        "far.ipynb",
        "import ipfs_stream_nb as ipfs\nclient = ipfs.connect()\nclient",
        f"player = client.play('{cid}')\nplayer",
        f"frames = client.frames('{cid}', 4, 5, every=0.5)\n"
        "[ipfs.samples.read_frame_number(picture) for picture in frames.array]",
        f"client.sources('{cid}')",
    )
    notebook = lab.run_all(page, "far.ipynb")
    numbers, sources = notebook["cells"][2]["outputs"][0], notebook["cells"][3]["outputs"][0]
    assert numbers["data"]["text/plain"] == "[120, 135]"
    assert f"Kubo at {kubo.api}" in sources["data"]["text/html"]
    player = page.locator(".jp-OutputArea .ipfs-player")
    player.scroll_into_view_if_needed()
    expect(player).to_have_attribute("data-state", "ready", timeout=15_000)
    player.locator(".ipfs-player-big").click()
    page.wait_for_function("() => document.querySelector('.ipfs-player video').currentTime > 1")
    page.evaluate("() => { document.querySelector('.ipfs-player video').currentTime = 6; }")
    page.wait_for_function("() => document.querySelector('.ipfs-player video').currentTime > 6.3")
    shoot(page, "playing")


@pytest.mark.parametrize("daemon", [False, True], ids=["nobody", "daemon"])
def test_the_notebook_about_the_network(
    page: Page,
    request: pytest.FixtureRequest,
    *,
    start_lab: Callable[[str], Lab],
    shoot: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    daemon: bool,
) -> None:
    """It runs to its end with nobody to ask, and with a daemon, and looks right in both themes."""
    if daemon:
        monkeypatch.setenv("IPFS_API", request.getfixturevalue("kubo").api)
    lab = start_lab("/")
    shutil.copy(ROOT / "notebooks" / "05_network.ipynb", lab.root)
    page.set_viewport_size({"width": 1100, "height": 4200})
    lab.run_all(page, "05_network.ipynb")
    for theme in ("Light", "Dark"):
        lab.theme(page, f"JupyterLab {theme}")
        shoot(page, theme.lower())
