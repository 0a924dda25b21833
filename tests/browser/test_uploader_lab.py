"""The uploader in a real JupyterLab: by the notebook's own cookie, and by a token where the server is another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lab import Lab
from playwright.sync_api import Page, expect
from test_lab import CONNECT, ask, ask_until

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture
def chosen(tmp_path: Path) -> Path:
    """Two files, and a folder of three."""
    folder = tmp_path / "chosen"
    (folder / "data" / "deep").mkdir(parents=True)
    random = np.random.default_rng(5)
    (folder / "clip.mp4").write_bytes(random.bytes(9_000_000))
    (folder / "table.csv").write_text("a,b\n1,2\n")
    for name in ("one.bin", "deep/two.bin", "deep/three.bin"):
        (folder / "data" / name).write_bytes(random.bytes(400_000))
    return folder


@pytest.mark.parametrize("server", ["jupyter", "embedded"])
def test_files_and_a_folder(
    page: Page, lab: Lab, chosen: Path, shoot: Callable[..., Path], server: str
) -> None:
    """What is chosen arrives, and Python has the CIDs of client.add; no token is in a URL of the notebook's own server,
    in a trait or in the saved notebook."""
    own = server == "jupyter"
    start = "import tempfile, ipfs_stream_nb as ipfs\nclient = ipfs.connect(repo=tempfile.mkdtemp())"
    lab.write(
        f"upload-{server}.ipynb",
        CONNECT if own else start,
        "seen = []\nuploader = client.uploader()\n_ = uploader.on_complete(lambda upload: seen.append(upload.name))\nuploader",
    )
    urls: list[str] = []
    page.on("websocket", lambda socket: urls.append(socket.url))
    page.on("request", lambda request: urls.append(request.url))
    lab.run_all(page, f"upload-{server}.ipynb")
    assert ask(page, "client.server.same_origin") == str(own)
    root = page.locator(".jp-OutputArea .ipfs-uploader")
    root.scroll_into_view_if_needed()
    shoot(page, "empty")
    root.locator("input[type=file]").first.set_input_files([chosen / "clip.mp4", chosen / "table.csv"])
    root.locator("input[webkitdirectory]").set_input_files(chosen / "data")
    expect(root.locator("[data-state=done]")).to_have_count(3, timeout=20_000)
    ask_until(page, "sorted(seen)", "['clip.mp4', 'data', 'table.csv']")
    for name in ("clip.mp4", "table.csv", "data"):
        assert (
            ask(page, f"uploader.cids['{name}'].cid == client.add({str(chosen / name)!r}, pin=False).cid")
            == "True"
        )
    assert ask(page, "client.cat(f\"{uploader.cids['data']}/deep/two.bin\", 0, 4) is not None") == "True"
    shoot(page, "light")
    lab.theme(page, "JupyterLab Dark")
    root.get_by_role("button", name="Copy the CID of table.csv").focus()
    shoot(page, "dark")
    page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    ours = [url for url in urls if "/ws/upload" in url or "/ipfs-stream/directories" in url]
    assert len(ours) == 6
    assert all(("token=" in url) is not own for url in ours)
    assert all(url.split("://")[1].startswith(lab.url.split("://")[1]) is own for url in ours)
    saved = page.evaluate("JSON.stringify(window.jupyterapp.shell.currentWidget.content.model.toJSON())")
    assert "Nothing uploaded yet" in saved
    assert "eyJ" not in saved
    assert "eyJ" not in ask(
        page, "str(uploader.get_state())".replace("get_state()", "get_state(['results', 'base_url'])")
    )


def test_a_lost_cookie_is_made_good_by_a_token(page: Page, lab: Lab, chosen: Path) -> None:
    """The server does not take the cookie any more: the kernel gives a token, on the page's own origin."""
    lab.write("cookie.ipynb", CONNECT, "uploader = client.uploader()\nuploader")
    lab.open(page, "cookie.ipynb")
    urls: list[str] = []
    page.on("websocket", lambda socket: urls.append(socket.url))
    # JupyterLab's own requests would bring the cookie back: so its absence is played by what it leads to.
    page.route(
        "**/ws/upload", lambda route: route.fulfill(status=403, json={"code": "unauthorized", "error": "no"})
    )
    page.evaluate(
        """() => { const Real = WebSocket; window.WebSocket = class extends Real {
            constructor(url, ...rest) {
                super(String(url).endsWith('/ws/upload') ? String(url).replace('/ws/upload', '/ws/nowhere') : url, ...rest); } }; }"""
    )
    lab.run_all(page)
    root = page.locator(".jp-OutputArea .ipfs-uploader")
    root.locator("input[type=file]").first.set_input_files([chosen / "table.csv", chosen / "clip.mp4"])
    expect(root.locator("[data-state=done]")).to_have_count(2, timeout=20_000)
    good = [url for url in urls if "/ws/upload?token=" in url]
    assert len(good) == 2
    assert all(url.split("://")[1].startswith(lab.url.split("://")[1]) for url in good)
