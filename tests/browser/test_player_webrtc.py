"""The player over WebRTC in a real browser, with real peers; the kernel's end of the wire is in the test's hands."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from harness import Harness
from playwright.sync_api import Locator, Page, expect
from rtc_server import CLIP, RATE, SHORT, Signaling
from rtc_server import ROOT as ROOT_FOLDER
from rtc_server import frame_number as shown_number

from ipfs_stream_nb import samples
from ipfs_stream_nb.widgets.player import Player

pytestmark = pytest.mark.browser
ROOT = ".ipfs-player"
Shoot = Callable[..., Path]
MINUTE = f"{ROOT_FOLDER}/minute.webm"
"""A clip that does not end before a slow machine has seen what it is to see."""
LONG = "a-name-as-long-as-that-of-a-cid-of-its-own.webm"


@pytest.fixture(scope="module")
def minute(clips: Path) -> str:
    """The path of a clip of a minute."""
    samples.video(clips / MINUTE, width=320, height=180, duration=60, frame_rate=RATE)
    return MINUTE


@pytest.fixture
def page(served: tuple[Harness, Signaling], signaling: Signaling, page: Page) -> Page:
    """The page is open, and the server has no quirks yet."""
    page.set_viewport_size({"width": 760, "height": 560})
    page.goto(served[0].url)
    page.wait_for_function("window.ready")
    return page


def show(page: Page, views: int = 1, **state: object) -> Locator:
    """Show a model with `state`, over WebRTC unless it says otherwise, and give the (first) player."""
    state = {"path": CLIP, "mime_type": "video/webm", "transport": "webrtc", "quality": "auto", **state}
    page.evaluate(
        "async ([state, views]) => { const p = await player(state); for (let i = 0; i < views; i++) await p.show(); }",
        [state, views],
    )
    return page.locator(ROOT).first


def note(part: Locator) -> None:
    """Keep what a part of the player says from here on, which it may not say for long."""
    part.evaluate("""part => { window.told = [];
        new MutationObserver(() => told.push(part.textContent)).observe(part, { childList: true }); }""")


def until_told(page: Page, text: str) -> None:
    """Wait until the part has said so."""
    page.wait_for_function("text => told.includes(text)", arg=text)


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


def tell(page: Page, number: int, kind: str, **fields: object) -> None:
    """A command of the kernel."""
    page.evaluate("message => last.model.message(message)", {"type": kind, "id": number, **fields})


def play(page: Page) -> None:
    page.locator(".ipfs-player-big").first.click()
    wait_for(page, "model.get('state') === 'playing' && media.videoWidth && model.get('current_time') > 0.2")


def frame_number(page: Page) -> int | None:
    return shown_number(page.locator("video").first)


def wait_for_frame(page: Page, least: int, most: int) -> None:
    """Wait until a picture of these numbers is shown, which may come after what is said of it."""
    for _ in range(150):
        if (number := frame_number(page)) is not None and least <= number <= most:
            return
        page.wait_for_timeout(100)
    raise AssertionError(number)


def test_plays(page: Page, signaling: Signaling, shoot: Shoot) -> None:
    """It connects when it is played; time, length and state reach the kernel, and the connection is told in words."""
    player = show(page)
    wait_for_state(page, "ready")
    link = player.locator(".ipfs-player-link")
    expect(link).to_have_text("WebRTC: connects when it is played")
    shoot(player, "ready")
    assert signaling.received == []
    play(page)
    wait_for(page, "model.get('current_time') > 0.5 && model.get('duration') > 7")
    expect(link).to_have_text("Live over WebRTC")
    assert (trait(page, "paused"), trait(page, "connection")) == (False, "Live over WebRTC")
    player.hover()
    shoot(player, "playing")
    page.evaluate("document.body.classList.add('dark')")
    shoot(player, "dark")
    expect(player.locator(".ipfs-player-rate")).to_be_hidden()
    expect(player.locator(".ipfs-player-quality")).to_be_visible()
    player.locator("video").click()
    wait_for_state(page, "paused")
    expect(link).to_have_text("WebRTC, paused")
    shoot(player, "paused")
    position = trait(page, "current_time")
    page.wait_for_timeout(300)
    assert trait(page, "current_time") == position
    assert frame_number(page) == pytest.approx(position * RATE, abs=12)


def test_seeking(page: Page, minute: str) -> None:
    """Keys, the bar and the kernel move it: the frame that is shown tells, playing and paused."""
    player = show(page, path=minute, current_time=1)
    wait_for_state(page, "ready")
    player.focus()
    page.keyboard.press("k")
    wait_for(page, "model.get('state') === 'playing' && model.get('duration') && media.videoWidth")
    assert 20 <= frame_number(page) < 700  # before the place that is sought next
    page.keyboard.press("5")
    wait_for(page, "model.get('current_time') > 30.1")
    wait_for_frame(page, 750, 1400)
    for _ in range(4):  # further than it would play until then
        page.keyboard.press("ArrowRight")
    wait_for(page, "model.get('current_time') > 50.1")
    page.keyboard.press("k")
    wait_for_state(page, "paused")
    player.locator(".ipfs-player-seek").fill("3")
    wait_for(page, "model.get('current_time') === 3")
    wait_for_frame(page, 72, 78)
    tell(page, 1, "seek", time=5)
    tell(page, 2, "play")
    wait_for(page, "model.get('state') === 'playing' && model.get('current_time') > 5.3")


def test_the_end_and_again(page: Page, signaling: Signaling) -> None:
    """At its end the state is "ended"; a seek there leaves it paused, and play begins anew."""
    show(page, path=SHORT, current_time=1.1)
    played = "model.saved.some((s) => s.state === 'playing')"  # which a page that comes late does not see
    page.locator(".ipfs-player-big").click()
    wait_for_state(page, "ended")
    wait_for(page, played)
    assert (trait(page, "paused"), trait(page, "current_time")) == (True, pytest.approx(1.5, abs=0.1))
    page.evaluate("last.model.saved.length = 0")
    page.locator(".ipfs-player-big").click()
    wait_for(page, played)
    wait_for_state(page, "ended")
    tell(page, 1, "seek", time=0.5)
    wait_for(page, "model.get('state') === 'paused' && model.get('current_time') === 0.5")
    tell(page, 2, "play")
    wait_for(page, "model.get('state') === 'ended'")
    page.evaluate("last.model.update({loop: true})")
    tell(page, 3, "play")
    page.wait_for_function("() => { const t = last.model.get('current_time'); const back = t < window.before - 0.5; window.before = t;"
                           " window.turns = (window.turns ?? 0) + back; return window.turns > 1; }")  # fmt: skip
    assert signaling.of("offer_request")[-1]["loop"] is True


def test_quality_rate_and_volume(page: Page, signaling: Signaling) -> None:
    """The quality goes to the server; another rate cannot be had; volume and mute are the element's."""
    player = show(page, loop=True)
    play(page)
    note(player.locator(".ipfs-player-toast"))
    player.locator(".ipfs-player-quality").select_option("low")
    wait_for(page, "model.get('quality') === 'low'")
    page.evaluate("last.model.update({quality: 'high'})")
    expect(player.locator(".ipfs-player-quality")).to_have_value("high")
    signaling.refuse = {"set_quality": "unsupported_media"}
    page.evaluate("last.model.update({quality: 'medium'})")
    until_told(page, "This quality can't be had")
    assert [one["quality"] for one in signaling.of("set_quality")] == ["low", "high", "medium"]
    page.evaluate("last.model.update({playback_rate: 2})")
    wait_for(page, "model.get('playback_rate') === 1")
    until_told(page, "Over WebRTC it plays at 1×")
    player.focus()
    page.keyboard.press("m")
    wait_for(page, "media.muted && model.get('muted')")
    page.evaluate("last.model.update({muted: false, volume: 0.5})")
    wait_for(page, "!media.muted && media.volume === 0.5")
    assert trait(page, "state") == "playing"


def test_falls_back_to_http(page: Page, signaling: Signaling, shoot: Shoot) -> None:
    """ "auto" without a way for UDP plays over HTTP from the same place on, and says why."""
    signaling.blocked = True
    page.evaluate("limits.auto = 1200")
    player = show(page, transport="auto", current_time=2)
    note(player.locator(".ipfs-player-link"))
    page.locator(".ipfs-player-big").click()
    until_told(page, "Connecting over WebRTC…")
    page.wait_for_timeout(600)
    shoot(player, "connecting")
    wait_for(
        page,
        "model.get('state') === 'playing' && media.src.endsWith('clip.webm') && model.get('current_time') > 2.2",
    )
    expect(player.locator(".ipfs-player-link")).to_have_text("Over HTTP, as nothing came over WebRTC")
    shoot(player, "http")
    told = trait(page, "connection")
    assert told.startswith("Over HTTP, as nothing came over WebRTC. No media came in 1.2 s")
    assert "UDP" in told
    times = page.evaluate("last.model.saved.map((s) => s.current_time).filter((time) => time !== undefined)")
    assert times == sorted(times)
    assert 2 <= times[0] < 4
    assert trait(page, "error") == ""
    expect(player.locator(".ipfs-player-rate")).to_be_visible()
    expect(player.locator(".ipfs-player-quality")).to_be_hidden()
    page.evaluate("last.show()")
    expect(page.locator(".ipfs-player-link").nth(1)).to_contain_text("Over HTTP")
    assert signaling.count("offer_request") == 1


def test_without_a_fallback_it_says_so(page: Page, signaling: Signaling, shoot: Shoot) -> None:
    """ "webrtc" without a way ends with the reason and with what may help; trying again works."""
    signaling.blocked = True
    page.evaluate("limits.live = 600")
    player = show(page)
    page.locator(".ipfs-player-big").click()
    wait_for_state(page, "error")
    alert = player.locator("[role=alert]")
    expect(alert.locator("strong")).to_have_text("It can't be played over WebRTC")
    expect(alert).to_contain_text('transport="http"')
    shoot(player, "error")
    page.evaluate("document.body.classList.add('dark')")
    shoot(player, "error-dark")
    assert trait(page, "error").startswith("It can't be played over WebRTC. No media came in 0.6 s")
    assert trait(page, "paused") is True
    signaling.blocked = False
    page.evaluate("limits.live = 10000")
    player.locator(".ipfs-player-retry").click()
    wait_for_state(page, "playing")
    assert trait(page, "error") == ""


def test_a_lost_connection(page: Page, signaling: Signaling, shoot: Shoot, minute: str) -> None:
    """When the connection is lost it is told in words, and playing goes on at its place once it is made again."""
    player = show(page, path=minute, current_time=3)
    begun = time.monotonic()
    play(page)
    signaling.silent = {"offer_request"}
    before = trait(page, "current_time")
    signaling.cut()
    link = player.locator(".ipfs-player-link")
    expect(link).to_have_text("WebRTC was lost, connecting again…")
    wait_for_state(page, "buffering")
    most = 3 + time.monotonic() - begun
    page.wait_for_timeout(600)
    shoot(player, "reconnecting")
    assert frame_number(page) > 70  # the last picture stays
    signaling.silent = set()
    signaling.cut()
    expect(link).to_have_text("Live over WebRTC", timeout=10_000)
    wait_for_state(page, "playing")
    assert before - 0.1 < signaling.of("offer_request")[-1]["start"] < most + 0.1


GONE = {
    "type": "error",
    "error": "connection was lost: nothing more was heard of the viewer",
    "code": "unreachable",
}


def test_a_connection_lost_while_nothing_plays(page: Page, signaling: Signaling, minute: str) -> None:
    """Paused, or at its end, a player whose connection is lost stays as it is, and makes another when it is played or
    moved."""
    player = show(page, path=minute, current_time=3)
    play(page)
    player.locator("video").click()
    wait_for_state(page, "paused")
    link = player.locator(".ipfs-player-link")
    for lose in (lambda: signaling.tell(GONE), signaling.cut):
        expect(link).to_have_text("WebRTC, paused")  # the server has said where it stands
        position, offers = trait(page, "current_time"), signaling.count("offer_request")
        lose()
        signaling.cut()
        page.wait_for_timeout(1200)
        assert (trait(page, "state"), trait(page, "error")) == ("paused", "")
        assert trait(page, "current_time") == pytest.approx(position, abs=0.1)
        expect(link).to_have_text("WebRTC, paused")
        wait_for_frame(page, round(position * RATE) - 12, round(position * RATE) + 12)
        assert signaling.count("offer_request") == offers
        page.locator(".ipfs-player-big").click()
        wait_for(page, f"model.get('state') === 'playing' && model.get('current_time') > {position} + 0.3")
        assert signaling.of("offer_request")[-1]["start"] == pytest.approx(position, abs=0.1)
        player.locator("video").click()
        wait_for_state(page, "paused")
    signaling.cut()
    tell(page, 1, "seek", time=59.5)
    wait_for(page, "model.get('current_time') === 59.5")
    assert trait(page, "state") == "paused"
    tell(page, 2, "play")
    wait_for_state(page, "ended")
    end = trait(page, "duration")
    signaling.tell(GONE)
    signaling.cut()
    page.wait_for_timeout(500)
    got = [trait(page, name) for name in ("state", "connection", "current_time", "error")]
    assert got == ["ended", "WebRTC, at the end", end, ""]
    page.locator(".ipfs-player-big").click()
    wait_for(page, "model.get('state') === 'playing' && model.get('current_time') < 50")
    assert signaling.of("offer_request")[-1]["start"] == 0


def test_levels_below_the_source(page: Page, signaling: Signaling) -> None:
    """The menu has the levels below the source, whose height the kernel knows, and the source as it is."""
    page.evaluate("""() => { window.kernel = (model, message) => {
        if (message.event === 'height') model.message({request: message.request, height: 540}); }; }""")
    player = show(page, quality="high")
    menu = player.locator(".ipfs-player-quality")
    assert menu.locator("option").all_inner_texts() == ["Auto", "1080p", "720p", "480p", "360p", "240p"]
    play(page)
    expect(menu.locator("option")).to_have_text(["Auto", "As it is (540p)", "480p", "360p", "240p"])
    expect(menu).to_have_value("very_high")
    page.evaluate("last.model.update({quality: 'low'})")
    expect(menu).to_have_value("low")


def test_the_reason_is_kept(page: Page, signaling: Signaling, shoot: Shoot) -> None:
    """What the server said of content that plays neither way stands on the card."""
    signaling.refuse = {"offer_request": "unsupported_media"}
    broken = f"{ROOT_FOLDER}/broken.mp4"
    (signaling.folder / broken).write_bytes(bytes(1000))
    player = show(page, path=broken, mime_type="video/mp4", transport="auto")
    page.locator(".ipfs-player-big").click()
    wait_for_state(page, "error")
    expect(player.locator("[role=alert]")).to_contain_text(
        "No offer_request here. The kernel may still read it"
    )
    shoot(player, "card")


def test_autoplay_without_a_click(
    page: Page, served: tuple[Harness, Signaling], signaling: Signaling, shoot: Shoot
) -> None:
    """Where the browser wants a click before sound, it plays muted, and a button gives the sound back."""
    state = {"autoplay": True, "path": CLIP, "mime_type": "video/webm", "transport": "auto", "loop": True}
    page.goto("about:blank")
    page.goto(f"{served[0].url}#{quote(json.dumps(state))}")
    signaling.wait_for("answer")
    button = page.locator(".ipfs-player-unmute")
    expect(button).to_be_visible()
    wait_for(page, "model.get('state') === 'playing' && media.videoWidth && model.get('current_time') > 0.5")
    assert (trait(page, "muted"), trait(page, "paused")) == (True, False)
    shoot(page.locator(ROOT), "muted")
    button.click()
    expect(button).to_be_hidden()
    wait_for(page, "!media.muted && !media.paused && model.get('muted') === false")
    assert trait(page, "state") == "playing"


def test_the_kernels_token(page: Page, served: tuple[Harness, Signaling], signaling: Signaling) -> None:
    """Where the cookie is refused the kernel's token is used, at the page's base URL, fresh for each connection."""
    harness, _ = served
    harness.needs_token, harness.tokens = True, {"t1", "t2"}
    page.evaluate("""() => { let n = 0; window.kernel = (model, message) => { if (message.event === 'url') { n++;
        model.message({request: message.request, relative: `ipfs/${model.get('path')}?token=t${n}`,
                       url: `http://127.0.0.1:9/ipfs/${model.get('path')}?token=t${n}`}); } }; }""")
    show(page)
    play(page)
    signaling.cut()
    wait_for(page, "model.saved.some((s) => s.connection?.startsWith('WebRTC was lost'))")
    wait_for(page, "model.get('connection') === 'Live over WebRTC'")
    assert [query.rpartition("=")[2] for query in signaling.queries] == ["t1", "t2"]
    assert "t1" not in page.evaluate("JSON.stringify(last.model.state)")


def test_two_views_and_closing(page: Page, signaling: Signaling) -> None:
    """The view that is used plays, the other pauses; a view that is closed leaves no connection behind."""
    show(page, views=2, loop=True)
    play(page)
    page.locator(".ipfs-player-big").last.click()
    page.wait_for_function(
        "() => { const [a, b] = document.querySelectorAll('.ipfs-player'); return a.dataset.state === 'paused' && b.dataset.state === 'playing'; }"
    )
    assert signaling.peers == 2
    page.evaluate("last.views.forEach((view) => view.close())")
    page.wait_for_function("document.querySelectorAll('video').length === 0")


def test_sound_alone(page: Page, signaling: Signaling, shoot: Shoot) -> None:
    """Sound has a bar of its own, and asks for sound alone."""
    page.evaluate("limits.idle = 100")
    player = show(page, kind="audio", mime_type="audio/webm")
    player.locator(".ipfs-player-play").click()
    wait_for(
        page, "model.get('state') === 'playing' && model.get('current_time') > 0.3 && model.get('duration')"
    )
    assert signaling.of("offer_request")[0]["kind"] == "audio"
    page.wait_for_timeout(400)
    assert player.locator(".ipfs-player-controls").evaluate("e => getComputedStyle(e).opacity") == "1"
    shoot(player, "audio")
    page.evaluate("document.body.classList.add('dark')")
    shoot(player, "audio-dark")


def test_narrow(page: Page, signaling: Signaling, shoot: Shoot) -> None:
    """In a narrow cell what matters stays, and the state of the connection is not cut to nothing."""
    (signaling.folder / ROOT_FOLDER / LONG).write_bytes((signaling.folder / CLIP).read_bytes())
    player = show(page, width=240, path=f"{ROOT_FOLDER}/{LONG}")
    play(page)
    link = player.locator(".ipfs-player-link")
    for width in (240, 300, 360, 410, 440):
        page.evaluate("width => last.model.update({width})", width)
        expect(player.locator(".ipfs-player-quality")).to_be_visible(visible=width >= 300)
        player.hover()
        shoot(player, str(width))
        outer = player.bounding_box()
        assert link.evaluate("e => e.scrollWidth <= e.clientWidth + 1")
        for name in ("play", "time", "expand", "link", *(["quality"] if width >= 300 else [])):
            box = player.locator(f".ipfs-player-{name}").bounding_box()
            assert box["x"] >= outer["x"]
            assert box["x"] + box["width"] <= outer["x"] + outer["width"]


def test_the_text_that_a_notebook_gets(
    page: Page, served: tuple[Harness, Signaling], signaling: Signaling
) -> None:
    """The module as it is joined for a front end plays as its parts do."""
    (signaling.folder / "joined.mjs").write_text(Player._esm)
    page.evaluate(
        """async ([url, state]) => {
            const model = window.joined = new Model(state);
            const widget = (await import(url)).default();
            await widget.initialize({ model });
            await widget.render({ model, el: document.getElementById("views") });
        }""",
        [
            f"{served[0].url}ipfs/joined.mjs",
            {
                **{name: trait.default_value for name, trait in Player.class_own_traits().items()},
                "path": CLIP, "mime_type": "video/webm", "kind": "video", "transport": "webrtc", "same_origin": True,
                "size": 1000,
            },
        ],
    )  # fmt: skip
    page.locator(".ipfs-player-big").click()
    page.wait_for_function("joined.get('state') === 'playing' && joined.get('current_time') > 0.2")
