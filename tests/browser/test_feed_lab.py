"""The notification feed in a real JupyterLab: by the notebook's own cookie, and by a token where the server is another."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import ROOT, Lab
from playwright.sync_api import Page, expect
from test_lab import CONNECT, ask, ask_until

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.mark.parametrize("server", ["jupyter", "embedded"])
def test_events_of_the_notebook(
    page: Page, lab: Lab, shoot: Callable[..., Path], tmp_path: Path, server: str
) -> None:
    """Events come while a cell runs, the kernel hears them too, a reloaded page has them again; no token is in a URL of the
    notebook's own server, in a trait or in the saved notebook."""
    own = server == "jupyter"
    start = "import tempfile, ipfs_stream_nb as ipfs\nclient = ipfs.connect(repo=tempfile.mkdtemp())"
    lab.write(
        f"feed-{server}.ipynb",
        CONNECT if own else start,
        "heard = []\nfeed = client.notification_feed(height=180)\n"
        "_ = feed.on('custom_event', lambda event: heard.append(event['data']['n']))\n"
        "_ = feed.on('content_added', lambda event: event['nonsense'])\nfeed",
        "for n in range(5):\n    client.emit({'event': 'tick', 'n': n})\nadded = client.add(b'hello', name='hello.txt')",
    )
    sockets: list[str] = []
    page.on("websocket", lambda socket: sockets.append(socket.url))
    lab.run_all(page, f"feed-{server}.ipynb")
    assert ask(page, "client.server.same_origin") == str(own)
    root = page.locator(".jp-OutputArea .ipfs-feed")
    expect(root).to_have_attribute("data-state", "live", timeout=15_000)
    row = root.get_by_role("listitem").filter(has_text="hello.txt").first
    expect(row).to_be_visible(timeout=15_000)
    expect(root).to_contain_text("raised KeyError for content_added: 'nonsense'")
    ask_until(page, "heard", "[0, 1, 2, 3, 4]")
    seen = tmp_path / "seen"  # until it is there the cell runs
    page.evaluate(
        """code => {
            const { kernel } = window.jupyterapp.shell.currentWidget.sessionContext.session;
            window.busy = kernel.requestExecute({code}).done;
            window.runs = true; window.busy.finally(() => { window.runs = false; }); }""",
        "import os, time\nclient.emit({'event': 'busy', 'n': 5})\nend = time.monotonic() + 60\n"
        f"while not os.path.exists({str(seen)!r}) and time.monotonic() < end:\n    time.sleep(0.05)",
    )
    expect(root.get_by_role("listitem").filter(has_text="busy")).to_be_visible()
    assert page.evaluate("window.runs")
    seen.touch()
    page.evaluate("window.busy")
    shoot(page, "light")
    # Jupyter's own keys: two d's delete a cell in command mode.
    row.click()
    cells = page.locator(".jp-Notebook .jp-Cell")
    count = cells.count()
    page.keyboard.type("dd")
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("x")
    assert cells.count() == count
    page.keyboard.press("Escape")
    lab.theme(page, "JupyterLab Dark")
    row.click()
    link = root.locator(".ipfs-feed-link").first
    href = link.get_attribute("href")
    assert (href is not None) is own
    if own:
        assert page.request.get(href).text() == "hello"
    shoot(page, "dark")
    page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    saved = page.evaluate("JSON.stringify(window.jupyterapp.shell.currentWidget.content.model.toJSON())")
    assert "A live list of notifications" in saved
    assert "eyJ" not in saved
    assert "eyJ" not in ask(page, "str({k: v for k, v in feed.get_state().items() if k[0] != '_'})")
    lab.open(page, f"feed-{server}.ipynb")
    expect(root.get_by_role("listitem").filter(has_text="hello.txt").first).to_be_visible(timeout=15_000)
    expect(root.get_by_role("listitem").filter(has_text="busy")).to_have_count(1)
    ours = [url for url in sockets if "/ws/notifications" in url]
    assert len(ours) == 2
    assert all(("token=" in url) is not own for url in ours)
    assert all(url.split("://")[1].startswith(lab.url.split("://")[1]) is own for url in ours)


def test_a_lost_cookie_is_made_good_by_a_token(page: Page, lab: Lab) -> None:
    """The server does not take the cookie any more: the kernel gives a token, on the page's own origin."""
    lab.write("feed-cookie.ipynb", CONNECT, "feed = client.notification_feed('custom_event')\nfeed")
    lab.open(page, "feed-cookie.ipynb")
    urls: list[str] = []
    page.on("websocket", lambda socket: urls.append(socket.url))
    # JupyterLab's own requests would bring the cookie back: so its absence is played by what it leads to.
    page.route(
        "**/ws/notifications",
        lambda route: route.fulfill(status=403, json={"code": "unauthorized", "error": "no"}),
    )
    page.evaluate(
        """() => { const Real = WebSocket; window.WebSocket = class extends Real {
            constructor(url, ...rest) {
                super(String(url).endsWith('/ws/notifications') ? String(url).replace('/ws/n', '/ws/nowhere/n') : url, ...rest); } }; }"""
    )
    lab.run_all(page)
    root = page.locator(".jp-OutputArea .ipfs-feed")
    expect(root).to_have_attribute("data-state", "live", timeout=15_000)
    good = [url for url in urls if "/ws/notifications?token=" in url]
    assert len(good) == 1
    assert good[0].split("://")[1].startswith(lab.url.split("://")[1])


def test_the_notebook_about_notifications(
    page: Page,
    *,
    start_lab: Callable[[str], Lab],
    shoot: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It runs to its end over the server extension, and looks right in both themes."""
    monkeypatch.setenv("IPFS_STREAM_NB_GATEWAYS", "")
    lab = start_lab("/")
    shutil.copy(ROOT / "notebooks" / "02_notifications.ipynb", lab.root)
    page.set_viewport_size({"width": 1100, "height": 4600})
    lab.run_all(page, "02_notifications.ipynb")
    feed = page.locator(".jp-OutputArea .ipfs-feed").first
    expect(feed.locator(".ipfs-feed-chip").filter(has_text="custom")).to_contain_text("12")
    good = page.locator(".jp-OutputArea .ipfs-feed").nth(1)
    expect(good.locator(".ipfs-feed-foot")).to_contain_text("4 events")
    for theme in ("Light", "Dark"):
        lab.theme(page, f"JupyterLab {theme}")
        shoot(page, theme.lower())
