"""What a browser shows and sounds of live tracks, measured: the right pictures in order, sound in time with them, the right
picture after a seek. The clips come through real workers out of a real store."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import Harness
from playwright.sync_api import Page
from rtc_server import CLIP, RATE, ROOT, Signaling, serving

from ipfs_stream_nb import samples

pytestmark = pytest.mark.browser

CLIPS = {"packets": CLIP, "transcode": f"{ROOT}/clip.mp4"}
IN_TIME = 40.0
"""ms that a click may be heard before or after its picture is seen."""
CLICKS = 3
"""In a row that must be in time: a browser that has to wait for a core needs some seconds until it has both together again."""
AT_ONCE = 0.2
"""Seconds by which the picture after a seek may miss the position."""
MAX_FLASH = 300.0
"""ms."""
ROUNDS = 3
"""How often it is played at the most until all is in time once, which a busy machine may not allow."""
WIDTH, HEIGHT = 64, 40
"""Of the small copies of pictures in which their numbers are read."""

LIBRARY = """
window.video = document.body.appendChild(document.createElement('video'));
window.shown = []; // of each picture: when it is seen (ms), and the picture, small and grey
window.clicks = []; // when each click of the sound was handed on to be played (ms)
window.player = new m.WebRTCPlayer({ base, token: null, element: video });
window.begin = async (path) => { // by a player of its own, with nothing left of an earlier one
  player.close();
  shown.length = clicks.length = 0;
  window.player = new m.WebRTCPlayer({ base, token: null, element: video });
  await player.play(path);
};
const canvas = Object.assign(document.createElement('canvas'), { width: WIDTH, height: HEIGHT });
const context = canvas.getContext('2d', { willReadFrequently: true });
const look = (now, { expectedDisplayTime, mediaTime }) => {
  video.requestVideoFrameCallback(look);
  if (video.readyState < video.HAVE_CURRENT_DATA) return; // the first may be told of before the element is ready
  const picture = new VideoFrame(video);
  // a page that comes late finds the next picture in the element, and may be called once more for that one
  if (Math.abs(picture.timestamp / 1e6 - mediaTime) < 1e-3) {
    context.drawImage(picture, 0, 0, WIDTH, HEIGHT);
    const pixels = context.getImageData(0, 0, WIDTH, HEIGHT).data;
    shown.push([expectedDisplayTime, pixels.filter((_, at) => at % 4 === 1)]);
  }
  picture.close();
};
video.requestVideoFrameCallback(look);
window.listen = async () => {
  const { readable } = new MediaStreamTrackProcessor({ track: player.stream.getAudioTracks()[0] });
  const reader = readable.getReader();
  for (let last = -Infinity; ; ) {
    const { value: data, done } = await reader.read();
    if (done) return;
    const begins = performance.now();
    const samples = new Float32Array(data.numberOfFrames);
    data.copyTo(samples, { planeIndex: 0, format: 'f32-planar' });
    const at = samples.findIndex((sample) => Math.abs(sample) > 0.3);
    const when = begins + (1000 * at) / data.sampleRate;
    if (at >= 0 && when - last > 500) clicks.push((last = when));
    data.close();
  }
};
window.until = async (condition) => {
  while (!(await condition())) await new Promise((done) => setTimeout(done, 10));
};
// Milliseconds that sound waits in the device's buffer, on average.
window.device = async () => {
  const row = [...(await player.connection.pc.getStats()).values()].find(({ type }) => type === 'media-playout');
  return row?.totalSamplesCount ? (1000 * row.totalPlayoutDelay) / row.totalSamplesCount : 0;
};
// All that was shown until now.
window.taken = () => shown.splice(0).map(([when, pixels]) => [when, btoa(String.fromCharCode(...pixels))]);
"""


@pytest.fixture(scope="module")
def served(clips: Path) -> Iterator[tuple[Harness, Signaling]]:
    """A clip whose packets go out as they are, and one that is transcoded for its B-frames and AAC."""
    samples.video(clips / CLIPS["transcode"], width=320, height=180, duration=8, frame_rate=RATE)
    with serving(clips, workers=True) as served:
        yield served


@pytest.fixture
def run(served: tuple[Harness, Signaling], signaling: Signaling, page: Page) -> Iterator[Any]:
    """Evaluate the body of an async function in a page with a player and its ears."""
    harness, _ = served
    page.goto(harness.url)
    page.evaluate(
        "async (base) => Object.assign(window, { base, m: await import(`${base}ipfs-webrtc.js`) })",
        harness.url,
    )
    page.evaluate(f"() => {{ const WIDTH = {WIDTH}, HEIGHT = {HEIGHT}; {LIBRARY} }}")
    yield lambda body, *args: page.evaluate(f"async (args) => {{ {body} }}", list(args))
    page.evaluate("() => player.close()")


def numbered(taken: list[tuple[float, str]]) -> list[tuple[float, int]]:
    """When each picture was seen (ms), and the number that is burnt into it."""
    found = []
    for when, data in taken:
        picture = np.frombuffer(base64.b64decode(data), np.uint8).reshape(HEIGHT, WIDTH)
        if (number := samples.read_frame_number(picture)) is not None:
            found.append((when, number))
    return found


def offsets(clicks: list[float], found: list[tuple[float, int]]) -> list[float]:
    """How much later (ms) each click is heard than the picture of a whole second is seen which is nearest to it; without those
    whose picture the page has missed."""
    whole = [when for when, number in found if number % RATE == 0]
    nearest = [min((click - when for when in whole), key=abs) for click in clicks]
    return [late for late in nearest if abs(late) < 500]


def in_time(late: list[float]) -> bool:
    """Whether some clicks in a row are."""
    rows = zip(*(late[first:] for first in range(CLICKS)), strict=False)
    return any(max(map(abs, row)) <= IN_TIME for row in rows)


@pytest.mark.parametrize("way", CLIPS)
def test_picture_and_sound(run: Any, way: str) -> None:
    """Pictures come in order, none twice, and a click is heard within 40 ms of the picture that it belongs to."""
    for _ in range(ROUNDS):
        run("await begin(args[0]); listen()", CLIPS[way])
        found, late = [], []
        for second in (4.5, 5.5, 6.5, 7.5):
            run("await until(() => player.position > args[0])", second)
            found += numbered(run("return taken()"))
            clicks, device = run("return [clicks, await device()]")
            late = [offset + device for offset in offsets(clicks, found)]
            if in_time(late):
                break
        numbers = [number for _, number in found]
        assert numbers == sorted(set(numbers))
        assert run("return (await player.stats()).transport") == way
        # the page itself may miss some that were shown
        if in_time(late) and numbers[0] < RATE / 2 and len(numbers) > 0.6 * numbers[-1]:
            return
    raise AssertionError(([round(offset) for offset in late], numbers))


@pytest.mark.parametrize("way", CLIPS)
def test_seeking(run: Any, way: str) -> None:
    """A seek goes on within 200 ms of the position. The pictures before it that only the decoder needs may flash up, no others,
    and not for long."""
    for _ in range(ROUNDS):
        run("await begin(args[0]); await until(() => player.position > 1)", CLIPS[way])
        seeks = [seek(run, position) for position in (6.3, 3.5)]
        if all(seeks):
            return
    raise AssertionError(seeks)


def seek(run: Any, position: float) -> bool:
    """Whether a seek shows the position in time. The pictures around it come in order at any rate."""
    sought = position * RATE
    run("taken(); await player.seek(args[0])", position)
    # a page that comes late misses pictures, and there may be too few of them to the end
    run("await until(() => shown.length > args[0] || player.state === 'ended')", RATE)
    found = [
        (when, number) for when, number in numbered(run("return taken()")) if abs(number - sought) < 2 * RATE
    ]
    assert [one for _, one in found] == sorted({one for _, one in found})
    there = [(when, number) for when, number in found if number >= sought - AT_ONCE * RATE]
    return bool(there) and there[0][1] <= sought + AT_ONCE * RATE and there[0][0] - found[0][0] < MAX_FLASH
