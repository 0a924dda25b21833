"""The notebook about streams in a real JupyterLab."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import ROOT, Lab
from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_the_notebook_about_streams(
    page: Page,
    *,
    start_lab: Callable[[str], Lab],
    shoot: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It runs to its end over the server extension, and looks right in both themes."""
    monkeypatch.setenv("IPFS_STREAM_NB_GATEWAYS", "")
    lab = start_lab("/")
    shutil.copy(ROOT / "notebooks" / "01_streaming.ipynb", lab.root)
    page.set_viewport_size({"width": 1100, "height": 4600})
    lab.run_all(page, "01_streaming.ipynb")
    for theme in ("Light", "Dark"):
        lab.theme(page, f"JupyterLab {theme}")
        shoot(page, theme.lower())
