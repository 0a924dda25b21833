"""A real browser for the tests: Debian's chromium, or Playwright's own."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright import sync_api

sys.path.insert(0, str(Path(__file__).parent))
from harness import Harness  # found by the line above
from lab import Lab

if TYPE_CHECKING:
    from rtc_server import Signaling

BROWSER_VARIABLE = "IPFS_STREAM_NB_BROWSER"
"""Names the browser to be tested with, before what is found by itself."""
FLAGS = [
    "--no-sandbox",  # the tests may run as root, where chromium's sandbox refuses
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=document-user-activation-required",  # what people's browsers do, and headless ones do not
    "--allow-loopback-in-peer-connection",
]
WAIT = 60_000
EXPECT = 15_000
"""ms that a page and an element may take: twice and three times Playwright's own, for machines that are busy with other things."""
ARTEFACTS = Path(__file__).parents[2] / "test-artefacts"


def find_browser(own: str) -> str | None:
    """The path of a browser: the variable's, Debian's, another on the PATH, or Playwright's `own`."""
    if named := os.environ.get(BROWSER_VARIABLE):
        return named
    names = ("/usr/bin/chromium", "chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    return found or (own if Path(own).exists() else None)


@pytest.fixture(scope="session")
def browser() -> Iterator[sync_api.Browser]:
    """One browser process for all tests of a run."""
    sync_api.expect.set_options(timeout=EXPECT)
    with sync_api.sync_playwright() as playwright:
        path = find_browser(playwright.chromium.executable_path)
        if path is None:
            pytest.skip(f"no browser found (install chromium, or name one in {BROWSER_VARIABLE})")
        process = playwright.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        yield process
        process.close()


@pytest.fixture
def page(browser: sync_api.Browser) -> Iterator[sync_api.Page]:
    """An empty page in a context of its own; an error that no code caught in it fails the test."""
    context = browser.new_context(viewport={"width": 1100, "height": 800})
    context.set_default_timeout(WAIT)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert not errors, errors


@pytest.fixture
def shoot(request: pytest.FixtureRequest) -> Callable[..., Path]:
    """Save what a page or an element looks like under test-artefacts, named after the test."""

    def save(target: sync_api.Page | sync_api.Locator, name: str) -> Path:
        ARTEFACTS.mkdir(exist_ok=True)
        test = re.sub(r"\W+", "-", request.node.name).strip("-")
        path = ARTEFACTS / f"{test}--{name}.png"
        target.screenshot(path=str(path))
        return path

    return save


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """JupyterLab under a base URL like those of JupyterHub, escapes included."""
    server = Lab(tmp_path_factory.mktemp("lab"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def start_lab(tmp_path: Path) -> Iterator[Callable[[str], Lab]]:
    """Start a JupyterLab of the test's own, at the base URL that it names."""
    started: list[Lab] = []

    def start(base_url: str) -> Lab:
        started.append(Lab(tmp_path, base_url))
        started[0].start()
        return started[0]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What peers play: a clip of 8 s and one of 1.5 s, with sound."""
    from rtc_server import make_clips  # noqa: PLC0415  # it takes long to import

    return make_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def served(clips: Path) -> Iterator[tuple[Harness, Signaling]]:
    """A server with everything for WebRTC: its pages and files, and its signaling."""
    from rtc_server import serving  # noqa: PLC0415

    with serving(clips) as served:
        yield served


@pytest.fixture
def signaling(served: tuple[Harness, Signaling]) -> Iterator[Signaling]:
    """The signaling server, without quirks; afterwards no peer is left."""
    from rtc_server import without_quirks  # noqa: PLC0415

    with without_quirks(*served):
        yield served[1]
