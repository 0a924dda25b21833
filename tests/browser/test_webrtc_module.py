"""ipfs-webrtc.js in a real browser, with real peers, through signaling that can go wrong."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from harness import Harness
from playwright.sync_api import Page
from rtc_server import CLIP, RATE, ROOT, SHORT, Signaling, frame_number

pytestmark = pytest.mark.browser

LIBRARY = """
window.until = async (condition, ms = 10000) => {
  for (const end = performance.now() + ms; !(await condition()); ) {
    if (performance.now() > end) throw new Error(`never: ${condition}; ${JSON.stringify(seen)}`);
    await new Promise((done) => setTimeout(done, 10));
  }
};
window.failure = (promise) => promise.then(() => 'no error', (error) => [error.name, error.code, error.message]);
// A player that notes all that it is told.
window.open_player = (options = {}) => {
  window.video = document.body.appendChild(document.createElement('video'));
  video.muted = true;
  window.seen = { states: [], playback: [], errors: [], messages: [] };
  window.player = new m.WebRTCPlayer({ base, token, element: video, ...options,
    onState: (state) => seen.states.push(state), onPlayback: (playback) => seen.playback.push(playback),
    onError: (error) => seen.errors.push([error.code, error.message]), onMessage: (message) => seen.messages.push(message.type) });
};
// All connections that the page makes, with their configurations.
window.pcs = [];
window.RTCPeerConnection = class extends RTCPeerConnection {
  constructor(configuration) { super(configuration); pcs.push(this); }
};
"""


@pytest.fixture
def run(served: tuple[Harness, Signaling], signaling: Signaling, page: Page) -> Iterator[Any]:
    """Evaluate the body of an async function in a page that has the module as `m`, `base` and a player with its video."""
    harness, _ = served
    page.goto(harness.url)
    page.evaluate(
        "async ([url, clip, short]) => Object.assign(window, {base: url, token: null, clip, short, m: await import(`${url}ipfs-webrtc.js`),"
        " waits: (await import(`${url}ipfs-stream.js`)).limits})",
        [harness.url, CLIP, SHORT],
    )
    page.evaluate(
        f"() => {{ {LIBRARY}; Object.assign(waits, {{firstWait: 20, longestWait: 100}}); open_player(); }}"
    )
    yield lambda body, *args: page.evaluate(f"async (args) => {{ {body} }}", list(args))
    page.evaluate("() => player.close()")


def test_plays(run: Any, page: Page, signaling: Signaling) -> None:
    """Picture and sound come, the right frames in order, with states, position and length told on the way."""
    got = run(
        """await player.play(clip, { start: 2 });
        await until(() => video.videoWidth && player.position > 2.4 && seen.playback.some((p) => p.duration));
        return [seen.states, player.duration, player.stream.getTracks().map((t) => t.kind).sort(), video.srcObject === player.stream];"""
    )
    assert got[0] == ["connecting", "connected", "playing"]
    assert got[1:] == [pytest.approx(8, abs=0.1), ["audio", "video"], True]
    numbers: list[int] = []
    for _ in range(100):  # the page may show the same picture for a while, but none of before
        before = run("return player.position")
        numbers.append(frame_number(page.locator("video")))
        assert before - 1 < numbers[-1] / RATE < run("return player.position") + 1
        if len(set(numbers)) == 3:
            break
        run("await new Promise((done) => setTimeout(done, 100))")
    assert len(set(numbers)) == 3
    assert numbers == sorted(numbers)
    assert numbers[0] >= 50
    (request,) = signaling.of("offer_request")
    assert request == {
        "type": "offer_request", "cid": CLIP, "kind": "video", "quality": "auto", "audio": True, "start": 2,
        "loop": False,
    }  # fmt: skip
    candidates = signaling.of("candidate")
    assert candidates[-1]["candidate"] == ""
    assert any(" typ host" in one["candidate"] for one in candidates)
    assert run("return player.error") is None
    assert run("await until(() => seen.messages.includes('stats')); return seen.errors") == []


def test_commands(run: Any, page: Page, signaling: Signaling) -> None:
    """seek, pause, resume, quality and stats give what the server answers, and the picture follows."""
    got = run(
        """await player.play('/ipfs/' + clip, { audio: false });
        const paused = await player.pause();
        const sought = await player.seek(6);
        return [paused.state, player.state, sought.position, player.position, player.stream.getTracks().length];"""
    )
    assert got == ["paused", "paused", 6, 6, 1]
    run("await new Promise((done) => setTimeout(done, 300))")
    assert run("return player.position") == 6
    run("await player.resume(); await until(() => player.state === 'playing' && player.position > 6.5)")
    assert frame_number(page.locator("video")) >= 150
    assert run("return await player.setQuality('low')") is True
    assert signaling.of("set_quality")[0]["quality"] == "low"
    stats = run("return await player.stats()")
    assert (stats["state"], stats["received"]["video"]["width"]) == ("connected", 320)
    assert stats["received"]["video"]["frames"] > 0
    assert run("return await player.relayed()") is False
    assert run("return await failure(player.seek(-1))")[1] == "bad_request"
    assert run("return await failure(player.seek(NaN))")[1] == "bad_request"


def test_the_end_and_again(run: Any) -> None:
    """At the end the state is `ended`, at the position of the end; a seek plays on, and a loop never ends."""
    run("await player.play(short); await until(() => player.state === 'ended')")
    assert run("return [player.position, player.duration]") == [pytest.approx(1.5, abs=0.05)] * 2
    run("await player.seek(0.5); await player.resume(); await until(() => player.state === 'playing')")
    run("await player.play(short, { loop: true, start: 1 })")
    run("await until(() => seen.playback.some((p) => p.position > 1.2))")
    run("seen.playback.length = 0; await until(() => seen.playback.some((p) => p.position < 0.5))")
    assert "ended" not in run("return seen.states.slice(seen.states.lastIndexOf('connecting'))")


def test_playing_again_makes_a_new_connection(run: Any, signaling: Signaling) -> None:
    """A second play() closes the first one's connection, also while that is being made; its promise says so."""
    got = run(
        """const first = failure(player.play(clip));
        await until(() => pcs.length);
        const second = player.play(short);
        const before = await first;
        await second;
        await player.play(clip);
        await until(() => video.videoWidth);
        return [before[1], pcs.map((pc) => pc.connectionState)];"""
    )
    assert got[0] == "closed"
    assert got[1][:-1] == ["closed"] * (len(got[1]) - 1)
    assert got[1][-1] == "connected"
    assert signaling.count("offer_request") == 3
    run("player.close()")
    assert run("return [player.state, video.srcObject, pcs.at(-1).connectionState]") == [
        "closed",
        None,
        "closed",
    ]
    assert run("return await failure(player.seek(1))")[1] == "closed"


def test_candidates_before_the_offer(run: Any, signaling: Signaling) -> None:
    """Candidates that come before the description that they belong to are kept."""
    signaling.early = True
    kinds = run(
        """await player.play(clip);
        return [...(await pcs[0].getStats()).values()].filter((r) => r.type === 'remote-candidate').map((r) => r.candidateType);"""
    )
    assert "host" in kinds  # and not only as the source of a packet that came


def test_wishes_while_it_connects(run: Any) -> None:
    """A pause and a seek before there is media are carried out once there is."""
    got = run(
        """const playing = player.play(clip), paused = player.pause(), sought = player.seek(5);
        await playing;
        return [(await paused).state, (await sought).position, player.state, player.position];"""
    )
    assert got == ["paused", 5, "paused", 5]


def test_another_track(run: Any, signaling: Signaling) -> None:
    """A `track_offer` is answered, and the new track joins the stream that is playing."""
    run("await player.play(clip, { audio: false }); await until(() => video.videoWidth)")
    run(
        "player.connection.socket.send({ type: 'add_track', pc_id: player.connection.id, cid: clip, kind: 'audio' })"
    )
    run("await until(() => player.stream.getTracks().length === 2)")
    stats = "Object.keys((await player.stats()).received).length === 2"
    run(f"await until(async () => {stats})")
    assert run("return pcs.length") == 1
    assert signaling.count("answer") == 2


def test_without_a_way_it_gives_up(run: Any, signaling: Signaling) -> None:
    """Where no packet finds its way it ends in time with `no_media`, once, and nothing runs on."""
    signaling.blocked = True
    got = run(
        """const begun = performance.now();
        const error = await failure(player.play(clip, { patience: 700 }));
        return [error, performance.now() - begun, seen, player.state, pcs.map((pc) => pc.connectionState), video.srcObject];"""
    )
    (name, code, text), took, seen, state, connections, source = got
    assert (name, code) == ("IPFSStreamError", "no_media")
    assert "0.7 s" in text
    assert 600 < took < 8000  # and not what is the default
    assert (seen["states"], seen["errors"]) == (["connecting", "failed"], [])
    assert (state, connections, source) == ("failed", ["closed"], None)
    assert run("return await failure(player.pause())")[1] == "no_media"


def test_a_relay_is_tried(run: Any, signaling: Signaling) -> None:
    """Where a relay is known and no direct way is found, the next connection takes the relay and nothing else."""
    signaling.ice_servers = [
        {"urls": ["stun:127.0.0.1:9", "turn:127.0.0.1:9"], "username": "u", "credential": "c"}
    ]
    signaling.blocked = True
    got = run(
        """const failing = failure(player.play(clip, { patience: 4000 }));
        await until(() => pcs.length);
        player.wish.patience = 12000; // half of it is for the relay's way
        const error = await failing;
        return [error, pcs.map((pc) => pc.getConfiguration().iceTransportPolicy), pcs[0].getConfiguration().iceServers];"""
    )
    assert (got[0][1], got[1]) == ("no_media", ["all", "relay"]), got[0]
    assert got[2][0]["username"] == "u"
    assert signaling.count("offer_request") == 2


def test_media_that_does_not_come(run: Any, signaling: Signaling) -> None:
    """With a way but without media it gives up as well, without a try by relay."""
    signaling.ice_servers = [{"urls": "turn:127.0.0.1:9", "username": "u", "credential": "c"}]
    got = run(
        """const { prototype } = Object.getPrototypeOf(RTCPeerConnection);
        prototype.getStats = async () => new Map(); // nothing is ever decoded
        return [await failure(player.play(clip, { patience: 6000 })), pcs.length, seen.states];"""
    )
    assert got[0][1:] == ["no_media", "no media came in 6 s"]
    assert got[1:] == [1, ["connecting", "connected", "failed"]]


@pytest.mark.parametrize(
    ("path", "code"), [(f"{ROOT}/gone", "not_found"), ("nonsense", "bad_cid"), (CLIP, "busy")]
)
def test_a_refusal_is_told_at_once(run: Any, signaling: Signaling, path: str, code: str) -> None:
    """What the server says instead of an offer ends it with the server's code and words."""
    if code == "busy":
        signaling.refuse = {"offer_request": "busy"}
    got = run("return [await failure(player.play(args[0])), player.state, seen.errors, pcs.length]", path)
    assert got[0][:2] == ["IPFSStreamError", code]
    assert got[1:] == ["failed", [], 0]


def test_errors_beside_the_media(run: Any, signaling: Signaling) -> None:
    """An answer that is refused ends it at once, and so does an error behind which nothing comes; one about a candidate is
    nothing; one that media goes on behind is told to onError."""
    signaling.refuse = {"answer": "unsupported_media"}
    got = run("return await failure(player.play(clip))")
    assert got[1:] == ["unsupported_media", "no answer here"]
    signaling.refuse, signaling.blocked = {}, True
    run(
        "window.failed = failure(player.play(clip)); m.limits.doubt = 200; await until(() => pcs.length === 2)"
    )
    signaling.tell({"type": "error", "error": "the file is damaged", "code": "corrupt_content"})
    assert run("return await failed")[1:] == ["corrupt_content", "the file is damaged"]
    signaling.refuse, signaling.blocked = {"candidate": "bad_request"}, False
    run("await player.play(clip); await player.seek(1)")
    signaling.tell({"type": "error", "error": "a hiccup", "code": "internal"})
    run("await until(() => seen.errors.length)")
    assert run("return [seen.errors, player.state]") == [[["internal", "a hiccup"]], "playing"]


def test_a_command_that_is_refused(run: Any, signaling: Signaling) -> None:
    """An error is the answer to the command that waits; one that gets none ends by itself. Playing goes on."""
    signaling.refuse = {"seek": "bad_request"}
    signaling.silent = {"get_stats"}
    got = run(
        """await player.play(clip);
        const refused = await failure(player.seek(3));
        m.limits.answer = 300; // from here on: the refusal may take longer
        return [refused, await failure(player.stats()), player.state, seen.errors];"""
    )
    assert got[0][1:] == ["bad_request", "no seek here"]
    assert got[1][1] == "timeout"
    assert got[2:] == ["playing", []]


def test_a_lost_connection_is_made_again(run: Any, signaling: Signaling) -> None:
    """When the socket is cut it goes on at its place in another connection, paused if it was; a seek meanwhile counts."""
    begun = time.monotonic()
    run("await player.play(clip, { start: 1 }); await until(() => player.position > 1.3)")
    signaling.cut()
    run("await until(() => seen.states.includes('reconnecting') && player.state === 'playing')")
    again = signaling.of("offer_request")[1]
    assert 1.2 < again["start"] < 1 + time.monotonic() - begun
    run("await player.pause(); seen.states.length = 0")
    signaling.cut()
    got = run(
        """await until(() => seen.states.includes('reconnecting'));
        const answer = await player.seek(1);
        await until(() => player.state === 'paused');
        return [answer.position, player.position, seen.errors, seen.states.at(-1)];"""
    )
    assert got == [1, 1, [], "paused"]


def test_a_server_that_does_not_come_back(run: Any, page: Page, signaling: Signaling) -> None:
    """A connection that was lost is given up after some tries, which onError is told of, once."""
    run("m.limits.attempts = 2; await player.play(clip); player.wish.patience = 4000")
    signaling.blocked = True
    signaling.cut()
    got = run(
        "await until(() => player.state === 'failed', 30000); return [seen.errors, seen.states.slice(-2)]"
    )
    assert len(got[0]) == 1
    assert got[0][0][0] == "disconnected"
    assert got[1] == ["reconnecting", "failed"]
    assert signaling.count("offer_request") == 3  # of the one that was lost, and of two tries


def test_tokens(run: Any, served: tuple[Harness, Signaling], signaling: Signaling) -> None:
    """The token's function is asked for each connection; without a good one the refusal is `unauthorized`."""
    harness, _ = served
    harness.needs_token, harness.tokens = True, {"one", "two"}
    got = run("return await failure(player.play(clip))")
    assert got[1:] == ["unauthorized", "The token has run out."]
    run(
        """const tokens = ['one', 'two'];
        open_player({ token: async () => tokens.shift() });
        await player.play(clip);"""
    )
    signaling.cut()
    run("await until(() => seen.states.includes('reconnecting') && player.state === 'playing')")
    assert [query.partition("token=")[2] for query in signaling.queries] == ["one", "two"]


def test_sound_where_no_click_was(
    page: Page, served: tuple[Harness, Signaling], signaling: Signaling
) -> None:
    """Where the browser lets no page make a sound by itself, it plays without, and says so."""
    harness, _ = served
    script = """import { WebRTCPlayer } from '../ipfs-webrtc.js';
        window.muted = 0;
        const element = document.querySelector('video');
        window.player = new WebRTCPlayer({ base: '..', element, onMuted: () => muted++ });
        await player.play('CLIP');""".replace("CLIP", CLIP)
    page_file = signaling.folder / "untouched.html"
    page_file.write_text(f"<video></video><script type='module'>{script}</script>")
    page.goto(f"{harness.url}ipfs/{page_file.name}")
    signaling.wait_for("answer")
    page.wait_for_function("player.state === 'playing' && !document.querySelector('video').paused")
    assert page.evaluate("[muted, document.querySelector('video').muted]") == [1, True]
    page.evaluate("player.close()")


def test_which_second_a_picture_shows(run: Any, page: Page) -> None:
    """The RTP timestamp that the browser tells of a picture gives its second of the file, also after seeks and a pause."""
    assert run("return player.timeOf(0)") is None
    run("await player.play(clip, { start: 1.3 }); await until(() => video.videoWidth)")
    run("window.kept = document.body.appendChild(document.createElement('canvas'))")
    for step in ("player.seek(5.1)", "player.pause(); await player.resume()", "player.seek(0.5)"):
        run(f"await {step}")
        time = run(
            """return await new Promise((done) => {
                 const look = (_, { rtpTimestamp, mediaTime }) => {
                   const time = player.timeOf(rtpTimestamp);  // null on the way to the place
                   const ready = time !== null && video.readyState >= video.HAVE_CURRENT_DATA;
                   const picture = ready ? new VideoFrame(video) : null;
                   // a page that comes late finds a later picture in the element
                   const same = picture && Math.abs(picture.timestamp / 1e6 - mediaTime) < 1e-3;
                   if (same) {
                     kept.width = picture.displayWidth;
                     kept.height = picture.displayHeight;
                     kept.getContext('2d').drawImage(picture, 0, 0);
                     done(time);
                   } else video.requestVideoFrameCallback(look);
                   picture?.close();
                 };
                 video.requestVideoFrameCallback(look); });"""
        )
        assert time == pytest.approx(frame_number(page.locator("canvas")) / RATE, abs=0.005)


def test_without_a_network(run: Any, page: Page, signaling: Signaling) -> None:
    """A browser that has no address to be reached at says so at once, instead of looking for one."""
    signaling.blocked = True
    run("Object.defineProperty(navigator, 'onLine', { value: false }); m.limits.offline = 50")
    run("Object.defineProperty(RTCPeerConnection.prototype, 'onicecandidate', { set() {} })")
    assert run("return await failure(player.play(clip))")[1:] == [
        "no_media",
        "this browser has no network, without which it does no WebRTC",
    ]
    assert run("return player.state") == "failed"
