"""The player's ES module in a real browser, with the kernel's end of the wire in the test's hands."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from harness import Harness, serve
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from ipfs_stream_nb import samples

pytestmark = pytest.mark.browser
ROOT = ".ipfs-player"


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip, a longer one, a sound, a picture, and things that are none of them."""
    folder = tmp_path_factory.mktemp("media")
    samples.video(folder / "clip.mp4", width=320, height=180, duration=4, frame_rate=25)
    samples.video(folder / "long.mp4", width=320, height=180, duration=60, frame_rate=10, grain=40)
    samples.video(folder / "name & part#1?.webm", kind="webm", width=320, height=180, duration=2)
    samples.image(folder / "picture.png")
    (folder / "text.mp4").write_text("not a film at all\n" * 200)
    clip = bytearray((folder / "clip.mp4").read_bytes())
    (folder / "cut.mp4").write_bytes(clip[: len(clip) // 2])
    return folder


@pytest.fixture
def harness(media: Path, page: Page) -> Iterator[Harness]:
    """The page is open, and the content server has no quirks yet."""
    harness, close = serve(media)
    page.goto(harness.url)
    page.wait_for_function("window.ready")
    yield harness
    close()


def show(page: Page, views: int = 1, **state: object) -> Locator:
    """Make a model with `state`, show it, and give the (first) player."""
    page.evaluate(
        "async ([state, views]) => { const p = await player(state); for (let i = 0; i < views; i++) await p.show(); }",
        [state, views],
    )
    return page.locator(ROOT).first


def answer(page: Page, event: str, reply: str) -> None:
    """The kernel's end answers each question `event` with the fields of `reply`; to be set up before the player."""
    page.evaluate(f"""() => {{ window.kernel = (model, message) => {{
        if (message.event === '{event}') model.message({{request: message.request, ...{reply}}}); }} }}""")


def give_token(page: Page, harness: Harness, token: str) -> None:
    """The kernel's end gives URLs that carry `token`."""
    harness.tokens = {token}
    rest = f"'ipfs/' + model.get('path') + '?token={token}'"
    answer(page, "url", f"{{relative: {rest}, url: '{harness.url}' + {rest}}}")


def trait(page: Page, name: str) -> object:
    return page.evaluate("name => last.model.get(name)", name)


def wait_for(page: Page, condition: str) -> None:
    """Wait for a condition on `model` and the first `media` element."""
    page.wait_for_function(
        f"() => {{ const model = last.model, media = document.querySelector('video, audio'); return {condition}; }}",
        timeout=15_000,
    )


def wait_for_state(page: Page, state: str) -> None:
    wait_for(page, f"model.get('state') === '{state}'")
    assert page.locator(ROOT).first.get_attribute("data-state") == state


def frame_number(page: Page) -> int:
    """The number burnt into the frame that the video shows now."""
    data = page.evaluate("""() => { const v = document.querySelector('video'), c = document.createElement('canvas');
        [c.width, c.height] = [v.videoWidth, v.videoHeight]; c.getContext('2d').drawImage(v, 0, 0);
        return c.toDataURL('image/png').split(',')[1]; }""")
    return samples.read_frame_number(
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
    )


def test_plays_by_the_pages_own_base_url(page: Page, harness: Harness, shoot: Callable[..., Path]) -> None:
    """A click plays the video from the page's base URL, and time and state reach the kernel."""
    player = show(page, loop=True)  # it does not end before a slow machine has paused it
    wait_for_state(page, "ready")
    assert trait(page, "duration") == pytest.approx(4, abs=0.1)
    shoot(player, "ready")
    player.locator(".ipfs-player-big").click()
    wait_for(page, "model.get('state') === 'playing' && model.get('current_time') > 0.5")
    assert trait(page, "paused") is False
    shoot(player, "playing")
    player.locator("video").click()
    wait_for_state(page, "paused")
    assert trait(page, "current_time") == pytest.approx(
        page.evaluate("document.querySelector('video').currentTime")
    )
    assert not any("token" in query for _, query, _ in harness.seen)


def test_ended_and_again(page: Page, harness: Harness) -> None:
    """At its end the state is "ended", and playing starts over."""
    show(page, path="long.mp4", current_time=59.7)
    wait_for_state(page, "ready")
    page.evaluate("last.model.message({type: 'play', id: 1})")
    wait_for_state(page, "ended")
    assert trait(page, "paused") is True
    page.locator(".ipfs-player-big").click()
    wait_for(page, "model.get('state') === 'playing' && model.get('current_time') < 50")


def test_path_segments_are_escaped(page: Page, harness: Harness) -> None:
    """A name with spaces, `&`, `#` and `?` reaches the server whole; WebM plays as well."""
    show(page, path="name & part#1?.webm", mime_type="video/webm")
    wait_for_state(page, "ready")


def test_time_is_reported_four_times_a_second_and_never_comes_back(page: Page, harness: Harness) -> None:
    """Reports are throttled, and none of them makes the element seek."""
    show(page, path="long.mp4")
    wait_for_state(page, "ready")
    page.evaluate("""() => { Object.assign(window, {seeks: 0, ticks: 0});
        document.querySelector('video').addEventListener('seeking', () => seeks++);
        document.querySelector('video').addEventListener('timeupdate', () => ticks++);
        last.model.message({type: 'play', id: 1}); }""")
    wait_for(page, "model.get('current_time') > 1")
    page.evaluate("ticks = last.model.saved.length = 0; window.from = last.model.get('current_time')")
    wait_for(page, "model.get('current_time') > from + 1.5")
    reports, ticks, took = page.evaluate(
        "[last.model.saved.filter(s => 'current_time' in s).length, ticks, last.model.get('current_time') - from]"
    )
    # one that comes a moment before its time is left to the next; a page that stands still has none
    assert ticks / 2 - 1 <= reports <= took * 4 + 1
    assert ticks > 0
    assert page.evaluate("seeks") == 0


def test_the_kernel_sets_traits(page: Page, harness: Harness) -> None:
    """Volume, mute, rate, loop, position, width and controls follow the kernel, and nothing is said back."""
    player = show(page)
    wait_for_state(page, "ready")
    page.evaluate("last.model.saved.length = 0")
    page.evaluate(
        "last.model.update({volume: 0.3, muted: true, playback_rate: 1.1, loop: true, width: '400px', controls: false})"
    )
    wait_for(page, "media.volume === 0.3 && media.muted && media.playbackRate === 1.1 && media.loop")
    assert player.bounding_box()["width"] == 400
    expect(player.locator(".ipfs-player-controls")).to_be_hidden()
    page.evaluate("last.model.update({current_time: 2.5})")
    wait_for(page, "Math.abs(media.currentTime - 2.5) < 0.01 && !media.seeking")
    said = page.evaluate("last.model.saved.flatMap(Object.keys)")
    assert not {"volume", "muted", "playback_rate"} & set(said)
    assert trait(page, "current_time") == 2.5


def test_commands_are_acknowledged_and_kept_over_loading(page: Page, harness: Harness) -> None:
    """A seek and a play that come while the source is still unknown take effect once it is there."""
    show(page, same_origin=False)
    page.evaluate(
        "[{type: 'seek', time: 2, id: 1}, {type: 'play', id: 2}].forEach((m) => last.model.message(m))"
    )
    page.evaluate("last.model.message({type: 'seek', time: 0, id: 1})")
    assert page.evaluate("last.model.sent.filter((m) => m.event === 'ack').map((m) => m.id)") == [1, 2, 1]
    page.evaluate(f"""() => {{ const model = last.model, question = model.sent.find((m) => m.event === 'url');
        model.message({{request: question.request, url: '{harness.url}ipfs/clip.mp4?token=t', relative: ''}}); }}""")
    wait_for(page, "model.get('state') === 'playing' && media.currentTime >= 2")


def test_autoplay_refused_is_a_hint(browser, media: Path) -> None:
    """A browser that wants a gesture first leaves the player paused, with a word on what to do."""
    harness, close = serve(media)
    page = browser.new_page()
    page.goto(harness.url + "#" + quote(json.dumps({"autoplay": True})))
    page.wait_for_function("window.ready")
    expect(page.locator(".ipfs-player-toast")).to_contain_text("Click to play", timeout=10_000)
    assert trait(page, "paused") is True
    assert trait(page, "error") == ""
    page.locator(".ipfs-player-big").click()
    wait_for_state(page, "playing")
    page.close()
    close()


@pytest.mark.parametrize(
    ("key", "start", "expected"),
    [("ArrowRight", 20, 25), ("ArrowLeft", 20, 15), ("ArrowLeft", 3, 0), ("l", 20, 30), ("j", 20, 10), ("L", 20, 30),
     ("Home", 20, 0), ("End", 20, 60), ("5", 20, 30), ("0", 20, 0), ("9", 20, 54)],
)  # fmt: skip
def test_keys_that_seek(page: Page, harness: Harness, key: str, start: float, expected: float) -> None:
    """Arrows, j, l, Home, End and digits go where they should, and not past the ends."""
    player = show(page, path="long.mp4", current_time=start)
    wait_for_state(page, "ready")
    player.focus()
    page.keyboard.press(key)
    wait_for(page, f"Math.abs(media.currentTime - {expected}) < 0.1 && !media.seeking")


def test_keys_that_switch(page: Page, harness: Harness) -> None:
    """Space and k play and pause, m mutes, < and > change the rate, up and down the volume, f goes full screen."""
    player = show(page, loop=True)
    wait_for_state(page, "ready")
    player.focus()
    for key in (" ", "k"):
        page.keyboard.press(key)
        wait_for(page, "!media.paused")
        page.keyboard.press(key)
        wait_for(page, "media.paused")
    page.keyboard.press("m")
    wait_for(page, "media.muted && model.get('muted')")
    page.keyboard.press(">")
    wait_for(page, "model.get('playback_rate') === 1.25")
    expect(player.locator(".ipfs-player-rate")).to_have_value("1.25")
    page.keyboard.press("<")
    page.keyboard.press("<")
    wait_for(page, "model.get('playback_rate') === 0.75")
    page.keyboard.press("ArrowDown")
    wait_for(page, "Math.abs(model.get('volume') - 0.95) < 1e-6")
    page.keyboard.press("f")
    page.wait_for_function("document.fullscreenElement?.className === 'ipfs-player'")
    page.keyboard.press("f")
    page.wait_for_function("document.fullscreenElement === null")


def test_frame_steps_show_the_next_and_the_last_frame(page: Page, harness: Harness) -> None:
    """`.` and `,` move by exactly one frame: the number burnt into it tells."""
    player = show(page, frame_rate=25, current_time=1)
    wait_for_state(page, "ready")
    wait_for(page, "!media.seeking && media.readyState > 2")
    player.focus()
    first = frame_number(page)
    numbers = []
    for key in "...,,":
        page.keyboard.press(key)
        wait_for(page, "!media.seeking && media.readyState > 2")
        page.evaluate("() => new Promise(requestAnimationFrame)")
        numbers.append(frame_number(page))
    assert numbers == [first + n for n in (1, 2, 3, 2, 1)]


def test_keys_stay_in_the_player(page: Page, harness: Harness) -> None:
    """Single keys never reach the notebook (x would cut a cell there); Tab, Escape and chords do."""
    player = show(page)
    wait_for_state(page, "ready")
    page.evaluate("window.keys = []; document.addEventListener('keydown', (e) => keys.push(e.key))")
    player.focus()
    for key in (" ", "k", "x", "d", "d", "Enter", "j", "m", "m", "b", "1"):
        page.keyboard.press(key)
    assert page.evaluate("keys") == []
    page.keyboard.press("Control+b")
    page.keyboard.press("Escape")
    page.keyboard.press("Shift+Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("keys.filter((k) => !['Control', 'Shift'].includes(k))") == [
        "b",
        "Escape",
        "Enter",
        "Tab",
    ]
    expect(player.locator(".ipfs-player-play")).to_be_focused()
    page.keyboard.press("Space")
    wait_for(page, "model.get('paused') === false || media.paused === false")


def test_two_views_of_one_model(page: Page, harness: Harness) -> None:
    """The view that is used leads: it alone reports, the other pauses; volume is shared; closing hands over."""
    show(page, views=2, loop=True)
    players = page.locator(ROOT)
    page.wait_for_function(
        "[...document.querySelectorAll('.ipfs-player')].every((p) => p.dataset.state === 'ready')"
    )
    players.nth(0).locator(".ipfs-player-big").click()
    wait_for_state(page, "playing")
    players.nth(1).locator(".ipfs-player-big").click()
    page.wait_for_function(
        "() => { const [a, b] = document.querySelectorAll('video'); return a.paused && !b.paused && b.currentTime > 0.3; }"
    )
    assert trait(page, "paused") is False
    players.nth(0).locator(".ipfs-player-mute").click()
    page.wait_for_function("[...document.querySelectorAll('video')].every((v) => v.muted)")
    assert trait(page, "muted") is True
    page.evaluate("last.model.update({volume: 0.5})")
    page.wait_for_function("[...document.querySelectorAll('video')].every((v) => v.volume === 0.5)")
    page.evaluate("last.views[1].close()")
    page.wait_for_function("last.model.get('paused') === true && last.model.get('state') === 'paused'")
    page.evaluate("last.model.message({type: 'play', id: 1})")
    page.wait_for_function("!document.querySelector('video').paused")
    page.evaluate(
        "last.views[0].close(); last.model.sent.length = 0; last.model.message({type: 'pause', id: 2})"
    )
    assert page.evaluate("last.model.sent") == []


def test_a_closed_view_leaves_nothing_behind(page: Page, harness: Harness) -> None:
    """Removing the view stops the media, gives its connection back and drops its listeners."""
    show(page, path="long.mp4")
    page.evaluate("last.model.message({type: 'play', id: 1})")
    wait_for_state(page, "playing")
    page.evaluate("window.kept = document.querySelector('video'); last.views[0].close(); last.stop()")
    assert page.evaluate("kept.paused && !kept.getAttribute('src')")
    page.wait_for_function("kept.networkState === HTMLMediaElement.NETWORK_EMPTY")
    assert page.evaluate("last.model.handlers.length") == 0
    assert page.locator(ROOT).count() == 0
    page.evaluate("last.model.saved.length = 0; document.body.click()")
    for _ in range(100):
        if harness.open == 0:
            break
        page.wait_for_timeout(50)
    assert harness.open == 0


def test_without_a_cookie_the_kernel_gives_a_token(page: Page, harness: Harness) -> None:
    """The page's own URL is refused: the kernel's is used, at the page's base URL, and no trait holds the token."""
    harness.needs_token, harness.tokens = True, {"fresh"}
    answer(page, "url", "{relative: 'ipfs/clip.mp4?token=fresh', url: 'http://127.0.0.1:9/unreachable'}")
    show(page)
    wait_for_state(page, "ready")
    assert "fresh" not in page.evaluate("JSON.stringify(last.model.state)")
    assert harness.seen[0][2] == 403


def test_an_expired_token_is_renewed_in_place(page: Page, harness: Harness) -> None:
    """When the token runs out in the middle, the player asks again and goes on where it was, still playing."""
    harness.needs_token = True
    give_token(page, harness, "one")
    show(page, path="long.mp4", same_origin=False, current_time=5)
    page.evaluate("last.model.message({type: 'play', id: 1})")
    wait_for(page, "model.get('state') === 'playing'")
    give_token(page, harness, "two")
    page.evaluate("last.model.message({type: 'seek', time: 50, id: 2})")
    wait_for(
        page,
        "model.get('state') === 'playing' && media.src.endsWith('two') && media.currentTime > 50"
        " && media.currentTime < 55",
    )
    assert trait(page, "error") == ""


@pytest.mark.parametrize(
    ("path", "status", "title", "detail"),
    [
        ("gone.mp4", 0, "Content not found", "gone.mp4"),
        ("clip.mp4", 403, "Not allowed", "client.verify()"),
        ("clip.mp4", 503, "The server could not deliver", "client.verify()"),
    ],
)
def test_refusals_are_explained(  # noqa: PLR0917 - fixtures and parameters
    page: Page, harness: Harness, shoot, path: str, status: int, title: str, detail: str
) -> None:  # fmt: skip
    """404, 403 and other refusals each say what happened; the server's own text is shown."""
    harness.fail_with = status
    give_token(page, harness, "t")
    player = show(page, path=path, same_origin=False)
    wait_for_state(page, "error")
    expect(player.locator("[role=alert] strong")).to_have_text(title)
    expect(player.locator("[role=alert]")).to_contain_text(detail)
    assert trait(page, "error").startswith(title)
    shoot(player, "error")


def test_the_first_refusal_counts_when_the_kernel_has_nothing_better(page: Page, harness: Harness) -> None:
    """No cookie and no kernel: the user reads that access was refused, not that the kernel is silent."""
    page.evaluate("waits.kernelTimeout = 300")
    harness.fail_with = 403
    player = show(page)
    wait_for_state(page, "error")
    expect(player.locator("[role=alert] strong")).to_have_text("Not allowed")


def test_a_silent_kernel_is_named(page: Page, harness: Harness, shoot) -> None:
    """While the kernel is busy the player says so, and gives up with a reason and a way to try again."""
    page.evaluate("limits.patience = 200")
    player = show(page, same_origin=False)
    expect(player.locator(".ipfs-player-toast")).to_have_text("Waiting for the kernel…")
    shoot(player, "waiting")
    page.evaluate("last.views[0].close(); last.stop(); waits.kernelTimeout = 300")  # from here on
    player = show(page, same_origin=False)
    wait_for_state(page, "error")
    assert "kernel" in player.locator("[role=alert]").inner_text()
    give_token(page, harness, "t")
    player.locator(".ipfs-player-retry").click()
    wait_for_state(page, "ready")
    assert trait(page, "error") == ""


def test_a_server_that_is_gone(page: Page, media: Path, shoot) -> None:
    """No connection: the server's address is named, and trying again works when it is back."""
    harness, close = serve(media)
    page.goto(harness.url)
    page.wait_for_function("window.ready")
    close()
    player = show(page)
    wait_for_state(page, "error")
    expect(player.locator("[role=alert] strong")).to_have_text("The server can't be reached")
    assert harness.origin in player.locator("[role=alert]").inner_text()
    shoot(player, "error")


def test_a_server_that_says_nothing(page: Page, harness: Harness, shoot) -> None:
    """A hanging server leaves the player loading, with a word on what it waits for."""
    page.evaluate("limits.patience = 300")
    harness.silent = True
    player = show(page)
    expect(player.locator(".ipfs-player-toast")).to_have_text("Waiting for the server…")
    shoot(player, "loading")


def test_text_that_claims_to_be_video(page: Page, harness: Harness, shoot) -> None:
    """What this browser can't decode is said with the codec that the kernel finds, and with a way out."""
    answer(page, "codecs", "{text: 'hevc (Main 10), ac3'}")
    player = show(page, path="text.mp4")
    wait_for_state(page, "error")
    alert = player.locator("[role=alert]")
    expect(alert).to_contain_text("hevc (Main 10), ac3")
    expect(alert).to_contain_text('client.frames("text.mp4")')
    expect(alert).to_contain_text("This browser can't play this video")
    shoot(player, "error")


def test_a_cut_file(page: Page, harness: Harness, shoot) -> None:
    """A truncated file plays as far as it goes and then says that it is damaged."""
    player = show(page, path="cut.mp4")
    page.evaluate("last.model.message({type: 'play', id: 1})")
    wait_for(page, "['error', 'ended'].includes(model.get('state'))")
    shoot(player, "cut")


def test_what_is_not_media(page: Page, harness: Harness, shoot) -> None:
    """Text gets a note with its type and size, and nothing is fetched."""
    player = show(
        page,
        kind="other",
        mime_type="text/plain",
        path="notes.txt",
        state="error",
        error="notes.txt is text/plain (12 B), not video, audio or an image.",
    )
    expect(player.locator("[role=note]")).to_contain_text("text/plain")
    assert harness.seen == []
    shoot(player, "note")


def test_an_image(page: Page, harness: Harness, shoot) -> None:
    """A picture is shown with its size; a broken one says so."""
    player = show(page, kind="image", path="picture.png", mime_type="image/png")
    wait_for_state(page, "ready")
    expect(player.locator(".ipfs-player-facts")).to_contain_text("×")
    shoot(player, "image")
    player = show(page, kind="image", path="text.mp4", mime_type="image/png")
    wait_for(page, "model.get('state') === 'error'")


def test_sound(page: Page, harness: Harness, shoot) -> None:
    """Audio plays in a bar of its own."""
    player = show(page, kind="audio", path="clip.mp4", mime_type="audio/mp4")
    wait_for_state(page, "ready")
    shoot(player, "audio")
    player.locator(".ipfs-player-play").click()
    wait_for(page, "model.get('current_time') > 0.3")


def test_dragging_does_not_queue_a_request_per_pixel(page: Page, harness: Harness) -> None:
    """A drag over the whole bar ends at the pointer, and most of the places on the way are never asked for."""
    player = show(page, path="long.mp4")
    wait_for_state(page, "ready")
    harness.delay = 1
    page.evaluate(
        "window.seeks = 0; document.querySelector('video').addEventListener('seeking', () => seeks++)"
    )
    box = player.locator(".ipfs-player-track input").bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + box["height"] / 2, steps=60)
    page.mouse.up()
    wait_for(page, "!media.seeking && Math.abs(media.currentTime - 45) < 1.5")
    assert page.evaluate("seeks") < 20


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_a_narrow_player_has_room_for_what_matters(
    page: Page, harness: Harness, shoot: Callable[..., Path], kind: str
) -> None:
    """Below 420 pixels volume and rate go, wherever the width comes from; what is left lies side by side inside."""
    player = show(page, kind=kind, width=640)
    wait_for_state(page, "ready")
    expect(player.locator(".ipfs-player-rate")).to_be_visible()
    for width in (419, 300, 240):
        page.evaluate("width => document.getElementById('views').style.width = `${width + 10}px`", width)
        expect(player.locator(".ipfs-player-rate")).to_be_hidden()
        expect(player.locator(".ipfs-player-volume")).to_be_hidden()
        shoot(player, str(width))
        outer = player.bounding_box()
        assert outer["width"] == width + 2
        parts = ["play", "track", "time", "mute", *(["expand"] if kind == "video" else [])]
        edge = outer["x"]
        for name in parts:
            box = player.locator(f".ipfs-player-{name}").bounding_box()
            assert box["width"] > 25
            assert box["x"] >= edge
            edge = box["x"] + box["width"]
        assert edge <= outer["x"] + outer["width"]
    page.evaluate("document.getElementById('views').style.width = ''")
    expect(player.locator(".ipfs-player-rate")).to_be_visible()
