"""The notebook about adaptive quality in a real JupyterLab: charts that move while the kernel plays, and while the page does."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import ROOT, Lab
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.slow]

NAME = "04_adaptive.ipynb"
WATCH = """() => { window.spans = new Set(); setInterval(() => {
  for (const node of document.querySelectorAll('.ipfs-abr-when')) spans.add(node.textContent); }, 200); }"""
PAINTED = """node => [...node.querySelectorAll('canvas')].some((canvas) => canvas.width
  && canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some((value) => value))"""


def test_the_notebook_about_adaptive_quality(
    page: Page,
    *,
    start_lab: Callable[[str], Lab],
    shoot: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It runs to its end; its chart follows the run over the emulated link while that lasts, and has the recorded one too;
    the player's own chart follows once it plays."""
    monkeypatch.setenv("IPFS_STREAM_NB_GATEWAYS", "")
    lab = start_lab("/")
    shutil.copy(ROOT / "notebooks" / NAME, lab.root)
    shutil.copytree(ROOT / "notebooks" / "data", lab.root / "data")
    (lab.folder / "tests").symlink_to(ROOT / "tests")  # as in a checkout
    page.set_viewport_size({"width": 1100, "height": 4800})
    lab.open(page, NAME)
    page.evaluate(WATCH)
    saved = lab.run_all(page)
    printed = lab.printed(saved)
    if "has no network address" in printed:
        pytest.skip("this machine has no network address for WebRTC")
    assert "Not live here" not in printed
    assert page.evaluate("spans.size") > 8, "the chart stood still while the cell ran"

    of_player, live, recorded = page.locator(".jp-OutputArea .ipfs-abr").all()
    for chart in (live, recorded):
        expect(chart.locator("option")).to_have_text(["live", "recorded"])
        expect(chart.locator("select")).to_have_value("recorded")
        assert chart.evaluate(PAINTED)
    live.locator("select").select_option("live")
    expect(recorded.locator("select")).to_have_value("live")
    expect(live.locator(".ipfs-abr-when")).to_have_text(re.compile("0 s to 1[0-3]"))
    expect(live.get_by_role("region", name="Bit rate")).to_contain_text("estimate")

    page.locator(".jp-OutputArea .ipfs-player-big").click()
    expect(of_player).to_have_attribute("data-state", "live", timeout=20_000)
    expect(of_player.get_by_role("region", name="Bit rate")).to_contain_text("received")
    live.locator("select").select_option("recorded")
    for theme in ("Light", "Dark"):
        lab.theme(page, f"JupyterLab {theme}")
        shoot(page, theme.lower())
