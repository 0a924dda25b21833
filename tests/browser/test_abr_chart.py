"""The chart in a real browser: its ES module, a real AbrChart at the kernel's end, and real playback in
the same page."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ipywidgets.comm
import pytest
from comm.base_comm import BaseComm
from harness import Harness, serve
from playwright.sync_api import Locator, Page, expect
from rtc_server import CLIP, Signaling

import ipfs_stream_nb as ipfs
from ipfs_stream_nb import samples
from ipfs_stream_nb.widgets.abr_chart import AbrChart

pytestmark = pytest.mark.browser
Shoot = Callable[..., Path]
END = 1.8e9
"""When the run ended."""
RUN = "step 3 → 0.6 Mbit/s"
EVERY = 0.1

SHOW = """async ([module, style, state, views]) => {
  const {default: widget} = await import(module);
  const sheet = document.createElement('style');
  sheet.textContent = style;
  document.head.append(sheet);
  const model = new Model(state);
  const asked = window.kernel; // the player's, where there is one
  window.kernel = async (from, message) => {
    if (from !== model) return asked?.(from, message);
    for (const content of await window.python(message)) model.message(content);
  };
  const save = model.save_changes.bind(model);
  model.save_changes = () => { save(); window.saved(model.saved.at(-1)); };
  const parts = widget();
  window.chart = {model, stop: await parts.initialize({model}), ends: []};
  for (let i = 0; i < views; i++) {
    const el = document.createElement('div'); // which is not in the page yet, as in JupyterLab
    chart.ends.push(await parts.render({model, el}));
    await new Promise((done) => setTimeout(done, 50));
    document.getElementById('views').append(el);
  }
}"""
HAS_COLOUR = """(node, hex) => { // whether anything in a panel has a colour
  const canvas = node.querySelector('canvas');
  const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  const colour = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  for (let i = 0; i < data.length; i += 4) {
    if (data[i + 3] > 90 && colour.every((value, n) => Math.abs(data[i + n] - value) < 8)) return true;
  }
  return false;
}"""
INK = """node => { // how many pixels of a panel's canvas are painted
  const canvas = node.querySelector('canvas');
  const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  let n = 0;
  for (let i = 3; i < data.length; i += 4) n += data[i] > 0;
  return n;
}"""


class Wire(BaseComm):
    """The wire to the browser: it keeps what goes out."""

    def publish_msg(self, msg_type: str, data: Any = None, **_rest: Any) -> None:
        self.__dict__.setdefault("sent", []).append(data or {})


def run(seconds: float = 60, begin: float = 0.0) -> Iterator[dict[str, Any]]:
    """A link that steps down to a fifth and comes back, as a controller might live through it."""
    frozen = 0.0
    for number in range(round(seconds / EVERY)):
        at = number * EVERY
        link = 3e6 if at < 20 else 0.6e6 if at < 40 else 2e6
        since = at % 20
        ripple = math.sin(number * 0.7) * 0.03 + math.sin(number * 2.3) * 0.02
        estimate = (
            link * (0.92 - 0.25 * math.exp(-since)) if at >= 20 else link * (1 - math.exp(-at / 3)) * 0.9
        )
        queue = 0.24 * math.exp(-since * 1.6) if 20 <= at < 40 else 0.006 + 0.004 * abs(ripple) * 20
        if 20.4 <= at < 20.8:
            frozen += EVERY
        level, height = (
            ("high", 720) if estimate > 1.6e6 else ("medium", 480) if estimate > 0.8e6 else ("low", 360)
        )
        yield {
            "time": begin + at,
            "bandwidth_estimate": estimate,
            "target_bitrate": estimate * 0.95,
            "sent_bitrate": estimate * (0.9 + ripple),
            "received_bitrate": min(link, estimate * (0.88 + ripple)),
            "rtt": 0.05 + queue,
            "jitter": 0.004 + abs(ripple) * 0.1,
            "queue_delay": queue,
            "packet_loss": max(0.0, 0.08 * math.exp(-since * 2)) if 20 <= at < 40 else 0.0,
            "level": level,
            "height": height,
            "frame_rate": 30,
            "frames_per_second": 30 + ripple * 20 - 12 * (20 <= at < 21),
            "frames_dropped": 3 * (at > 20.5) + 2 * (at > 21),
            "buffer": 0.1 + 0.4 * math.exp(-since),
            "freezes": int(at > 20.4),
            "freeze_seconds": frozen,
            "state": "decrease" if 20 <= at < 20.6 else "increase" if since < 8 else "hold",
            "reason": "delay" if 20 <= at < 21 else "probe",
            "position": at,
        }


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip long enough to be loaded in parts."""
    folder = tmp_path_factory.mktemp("media")
    samples.video(folder / "clip.mp4", width=320, height=180, duration=6, frame_rate=25, grain=40)
    return folder


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ipfs.Client]:
    """A client with a server of its own."""
    with ipfs.connect(repo=tmp_path_factory.mktemp("repo")) as client:
        yield client


@dataclass
class Notebook:
    """A page that shows a chart, and the chart in Python."""

    page: Page
    harness: Harness
    chart: AbrChart | None = None

    def show(self, chart: AbrChart, views: int = 1) -> Locator:
        """Show a chart, and give its (first) view."""
        self.chart = chart
        self.page.expose_function("python", self._kernel)
        self.page.expose_function("saved", chart.set_state)
        (self.harness.folder / "joined.mjs").write_text(chart._esm)
        hidden = {"_esm", "_css"}
        traits = {name: chart.get_state()[name] for name in chart.keys if name not in hidden}
        self.page.evaluate(SHOW, [f"{self.harness.url}ipfs/joined.mjs", chart._css, traits, views])
        return self.root

    def _kernel(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        return self._sent(
            lambda: self.chart.comm.handle_msg(
                {"content": {"data": {"method": "custom", "content": message}}, "buffers": []}
            )
        )

    def _sent(self, act: Callable[[], object]) -> list[dict[str, Any]]:
        """What the chart sends while something is done, as the page takes it."""
        sent = self.chart.comm.__dict__.setdefault("sent", [])
        sent.clear()
        act()
        return [json.loads(json.dumps(one["content"])) for one in sent if one.get("method") == "custom"]

    def tell(self, act: Callable[[], object]) -> None:
        """Do something with the chart in Python, and bring the page its messages and its traits."""
        before = self.chart.get_state()
        messages = self._sent(lambda: (act(), self.chart._flush()))  # what waits for a loop as well
        after = self.chart.get_state()
        changed = {name: value for name, value in after.items() if value != before[name]}
        script = "([changed, messages]) => { chart.model.update(changed); messages.forEach((m) => chart.model.message(m)); }"
        self.page.evaluate(script, [changed, messages])

    @property
    def root(self) -> Locator:
        return self.page.locator(".ipfs-abr").first

    def panel(self, title: str) -> Locator:
        return self.root.get_by_role("region", name=title, exact=True)

    def value(self, title: str, label: str) -> str:
        """What the legend says of a figure."""
        item = self.panel(title).get_by_role("button").filter(has_text=label)
        return item.locator(".ipfs-abr-value").inner_text()

    def ink(self, title: str) -> int:
        """How much is painted in a panel."""
        return self.panel(title).evaluate(INK)

    def pixels(self, title: str) -> str:
        """What a panel's canvas shows."""
        return self.panel(title).locator("canvas").evaluate("canvas => canvas.toDataURL()")

    def until(self, meets: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait until the latest record meets a condition, and give it."""
        for _ in range(150):
            records = self.chart.to_records()
            if records and meets(records[-1]):
                return records[-1]
            self.page.wait_for_timeout(100)
        raise AssertionError(records[-1:])

    def settle(self) -> None:
        """Wait until what came is painted."""
        self.page.wait_for_timeout(250)


@pytest.fixture
def notebook(media: Path, page: Page, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notebook]:
    """The page is open; charts have a wire that the test holds."""
    monkeypatch.setattr(ipywidgets.comm, "create_comm", Wire)
    harness, close = serve(media)
    page.goto(harness.url)
    page.wait_for_function("window.ready")
    yield Notebook(page, harness)
    close()


def fed(seconds: float = 60) -> AbrChart:
    """A chart of a run that ended a moment ago."""
    chart = AbrChart()
    chart.add_samples(run(seconds, END - seconds), connection=RUN)
    return chart


@pytest.mark.parametrize(
    ("theme", "sent"), [("light", "#1769c4"), ("dark", "#5aa9f8")], ids=["light", "dark"]
)
def test_draws_a_run(notebook: Notebook, shoot: Shoot, theme: str, sent: str) -> None:
    """All panels are drawn, with the latest figures in the legend and freezes marked, in a light and in a
    dark theme."""
    notebook.page.evaluate("theme => document.body.classList.toggle('dark', theme === 'dark')", theme)
    root = notebook.show(fed())
    expect(root).to_have_attribute("data-state", "live")
    expect(root).to_have_attribute("data-theme", theme)
    for title in ("Bit rate", "Delay", "Loss", "Picture", "Buffer"):
        assert notebook.ink(title) > 1800, title
    assert notebook.panel("Picture").evaluate(HAS_COLOUR, sent)
    assert notebook.value("Bit rate", "estimate") == "1.84"
    assert notebook.value("Delay", "round trip") == "57"
    assert notebook.value("Picture", "height") == "720p"
    assert notebook.value("Picture", "dropped") == "5"
    expect(notebook.panel("Picture").locator(".ipfs-abr-words")).to_have_text("high")
    expect(notebook.panel("Bit rate").locator(".ipfs-abr-words")).to_have_text("hold · probe")
    expect(root.locator(".ipfs-abr-freezes")).to_have_text("1 freeze, 0.4 s")
    shoot(notebook.page, "run")
    before = notebook.pixels("Bit rate")
    notebook.page.evaluate("document.body.classList.toggle('dark')")
    expect(root).not_to_have_attribute("data-theme", theme)
    assert notebook.pixels("Bit rate") != before


def test_moves_on(notebook: Notebook) -> None:
    """Samples that come from Python are drawn at once, what is missing is a gap, what came before is not
    taken twice, and what is older than the window goes; a longer window has what the kernel still knows."""
    root = notebook.show(fed(10))
    expect(notebook.panel("Buffer")).to_be_visible()
    full = notebook.ink("Buffer")
    late = {"samples": {RUN: {"time": [END - 3], "sent_bitrate": [8e6]}}}
    notebook.page.evaluate("message => chart.model.message(message)", late)
    notebook.settle()
    assert notebook.value("Bit rate", "sent") != "8.00"
    notebook.tell(lambda: setattr(notebook.chart, "seconds", 90.0))
    expect(root.locator(".ipfs-abr-when")).to_have_text("last 90 s")
    notebook.tell(lambda: notebook.chart.add_sample({"time": END + 1, "sent_bitrate": 9e6}, connection=RUN))
    expect(notebook.panel("Bit rate").get_by_text("9.00")).to_be_visible()
    assert notebook.value("Delay", "round trip") == "–"
    notebook.tell(
        lambda: notebook.chart.add_samples(
            [{"time": END + 99 + n / 10, "sent_bitrate": 1e6} for n in range(10)], connection=RUN
        )
    )
    expect(notebook.panel("Bit rate").get_by_text("1.00")).to_be_visible()
    assert notebook.ink("Buffer") < full  # of the run nothing is in the window any more
    expect(root.locator(".ipfs-abr-freezes")).to_be_hidden()
    notebook.tell(notebook.chart.clear)
    expect(root).to_contain_text("No samples yet")
    assert notebook.chart.to_records() == []


def test_pointer(notebook: Notebook, shoot: Shoot) -> None:
    """What is below the pointer stands in the legends of all panels, with its time; without it, the latest."""
    root = notebook.show(fed())
    over = notebook.panel("Delay").locator(".u-over")
    box = over.bounding_box()
    notebook.page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 20)
    expect(root.locator(".ipfs-abr-when")).to_have_text("−30 s")
    assert notebook.value("Picture", "height") == "360p"
    assert float(notebook.value("Bit rate", "estimate")) == pytest.approx(0.552, abs=0.01)
    shoot(notebook.page, "pointer")
    notebook.page.mouse.move(box["x"] + box["width"] + 200, box["y"])
    expect(root.locator(".ipfs-abr-when")).to_have_text("last 60 s")
    assert notebook.value("Picture", "height") == "720p"


def test_pause(notebook: Notebook, shoot: Shoot) -> None:
    """Paused by a key, the picture stands while samples come; Python knows, and can go on as well as the
    button."""
    root = notebook.show(fed())
    expect(notebook.panel("Bit rate")).to_be_visible()
    root.focus()
    notebook.page.keyboard.press("k")
    expect(root).to_have_attribute("data-state", "paused")
    assert notebook.chart.paused
    before = notebook.pixels("Bit rate")
    notebook.tell(
        lambda: notebook.chart.add_sample({"time": END + 9, "sent_bitrate": 9e6, "rtt": 1}, connection=RUN)
    )
    notebook.settle()
    assert notebook.pixels("Bit rate") == before
    assert notebook.value("Bit rate", "sent") != "9.00"
    shoot(notebook.page, "paused")
    root.get_by_role("button", name="Resume").click()
    expect(root).to_have_attribute("data-state", "live")
    assert notebook.value("Bit rate", "sent") == "9.00"
    assert not notebook.chart.paused
    notebook.tell(lambda: notebook.chart.set_trait("paused", True))
    expect(root).to_have_attribute("data-state", "paused")


def test_the_keyboard_is_enough(notebook: Notebook) -> None:
    """Arrows move the cursor and its figures are said; Escape ends it; a legend's button hides a line; no
    key reaches Jupyter."""
    root = notebook.show(fed())
    page = notebook.page
    page.evaluate("window.keys = []; document.addEventListener('keydown', (event) => keys.push(event.key))")
    expect(notebook.panel("Bit rate")).to_be_visible()
    root.focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    expect(root.locator(".ipfs-abr-when")).to_have_text("−3 s")
    said = root.locator(".ipfs-abr-said")
    expect(said).to_contain_text("−3 s: estimate 1.84 Mbit/s")
    expect(said).to_contain_text("height 720p")
    page.keyboard.press("Home")
    expect(root.locator(".ipfs-abr-when")).to_have_text("−60 s")
    page.keyboard.press("x")
    page.keyboard.press("Escape")
    expect(root.locator(".ipfs-abr-when")).to_have_text("last 60 s")
    assert page.evaluate("keys") == []
    shown = notebook.ink("Loss")
    button = notebook.panel("Loss").get_by_role("button", name="packets")
    button.focus()
    page.keyboard.press("Enter")
    expect(button).to_have_attribute("aria-pressed", "false")
    notebook.settle()
    assert notebook.ink("Loss") < shown


def test_several_connections_in_two_views(notebook: Notebook) -> None:
    """One of several connections is chosen, in all views and in Python; a view that is closed leaves the
    other as it is."""
    chart = fed()
    chart.add_samples(
        [{"time": END + n, "throughput": 5e6, "buffer": n} for n in range(8)], connection="<b>http"
    )
    notebook.show(chart, views=2)
    first, second = notebook.page.locator(".ipfs-abr").all()
    expect(first.get_by_role("combobox")).to_have_value(RUN)
    second.get_by_role("combobox").select_option("<b>http")
    expect(first.get_by_role("region", name="Delay")).to_be_hidden()
    expect(first).to_contain_text("5.00")
    assert chart.connection == "<b>http"
    assert notebook.value("Buffer", "ahead") == "7.00"
    notebook.tell(lambda: setattr(chart, "connection", RUN))
    for view in (first, second):
        expect(view.get_by_role("region", name="Delay")).to_be_visible()
    notebook.page.evaluate("chart.ends[1]()")
    expect(notebook.page.locator(".ipfs-abr")).to_have_count(1)
    notebook.tell(lambda: chart.add_sample({"time": END + 1, "rtt": 0.123}, connection=RUN))
    expect(first).to_contain_text("123")


@pytest.mark.parametrize("width", [320, 480])
def test_a_narrow_chart(notebook: Notebook, shoot: Shoot, width: int) -> None:
    """In a narrow place nothing sticks out, and the chart follows the width."""
    root = notebook.show(fed())
    expect(notebook.panel("Bit rate")).to_be_visible()
    notebook.page.set_viewport_size({"width": width, "height": 900})
    expect(notebook.panel("Bit rate").locator(".uplot")).to_have_css("width", f"{width - 42}px")
    assert notebook.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    shoot(root, str(width))


def test_a_short_run(notebook: Notebook, shoot: Shoot) -> None:
    """A run that is shorter than the window fills it, and an estimate far above the rest goes out at the top."""
    chart = AbrChart()
    chart.add_samples(
        [{"time": n / 10, "bandwidth_estimate": 16e6, "sent_bitrate": 2e6, "rtt": 0.05} for n in range(301)],
        connection="run",
    )
    root = notebook.show(chart)
    expect(root.locator(".ipfs-abr-when")).to_have_text("0 s to 30 s")
    shoot(root, "run")
    root.focus()
    notebook.page.keyboard.press("Home")
    expect(root.locator(".ipfs-abr-when")).to_have_text("0 s")


def test_the_legend_stands_still(notebook: Notebook) -> None:
    """When further figures come, the panels stay where they are, wide and narrow."""
    chart = AbrChart()
    notebook.show(chart)
    for name, width in (("wide", 760), ("narrow", 360)):
        notebook.page.set_viewport_size({"width": width, "height": 900})
        first = {"time": 0, "sent_bitrate": 2e6, "received_bitrate": 2e6, "rtt": 0.05}
        notebook.tell(
            lambda name=name, first=first: (
                chart.add_sample(first, connection=name),
                setattr(chart, "connection", name),
            )
        )
        expect(notebook.panel("Delay")).to_be_visible()
        notebook.settle()
        before = notebook.panel("Delay").bounding_box()
        more = {
            "time": 1,
            "target_bitrate": 2e6,
            "bandwidth_estimate": 14.2e6,
            "state": "increase",
            "reason": "application",
        }
        notebook.tell(lambda name=name, more=more: chart.add_sample(more, connection=name))
        expect(notebook.panel("Bit rate")).to_contain_text("target")
        notebook.settle()
        assert notebook.panel("Delay").bounding_box() == before


def test_empty(notebook: Notebook, shoot: Shoot) -> None:
    """A chart of nothing says how it gets something."""
    root = notebook.show(AbrChart())
    expect(root).to_contain_text("Nothing to show yet")
    expect(root.get_by_role("button")).to_be_hidden()
    shoot(notebook.page, "empty")


PLAY = """async (state) => { await player(state); await last.show(); }"""


def test_playback_over_http(notebook: Notebook, client: ipfs.Client, shoot: Shoot) -> None:
    """A player in the page is charted without the kernel: buffer, throughput, picture, and freezes on a
    slow line; the kernel has the samples when it comes to it, and a page that is loaded anew shows them
    again."""
    player = client.play(client.add(notebook.harness.folder / "clip.mp4", name="clip.mp4"), muted=True)
    root = notebook.show(client.chart(player, seconds=10))
    expect(root).to_contain_text("The player is not on this page")
    wire = notebook.page.context.new_cdp_session(notebook.page)
    wire.send("Network.enable")
    slow = {"offline": False, "latency": 0, "downloadThroughput": 60_000, "uploadThroughput": 60_000}
    wire.send("Network.emulateNetworkConditions", slow)
    size = (notebook.harness.folder / "clip.mp4").stat().st_size
    state = {"size": size, "autoplay": True, "muted": True, "_samples_key": player._samples_key}
    notebook.page.evaluate(PLAY, state)
    expect(notebook.panel("Buffer")).to_be_visible()
    shoot(notebook.page, "begun")
    expect(root.locator(".ipfs-abr-freezes")).to_be_visible(timeout=15_000)
    slowly = [one["throughput"] for one in notebook.chart.to_records() if "throughput" in one]
    wire.send("Network.emulateNetworkConditions", slow | {"downloadThroughput": -1, "uploadThroughput": -1})
    notebook.page.wait_for_function("document.querySelector('video').currentTime > 2.5")
    notebook.page.wait_for_timeout(1100)  # the kernel is told once a second
    records = notebook.chart.to_records()
    shoot(notebook.page, "http")
    assert 0.08 < (records[-1]["time"] - records[0]["time"]) / (len(records) - 1) < 0.2
    assert records[-1]["freezes"] >= 1
    assert records[-1]["freeze_seconds"] > 0.1
    assert records[-1]["height"] == 180
    assert records[-1]["level"] == "source"
    assert 0.2e6 < statistics.median(slowly) < 1.2e6, slowly  # of 0.48 Mbit/s
    assert max(one.get("throughput", 0) for one in records) > 2e6
    notebook.page.evaluate("chart.stop(); last.stop()")
    assert notebook.page.evaluate("globalThis[Symbol.for('ipfs_stream_nb.samples')].size") == 0


@pytest.fixture
def live(
    page: Page, served: tuple[Harness, Signaling], signaling: Signaling, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Notebook]:
    """The page with a signaling server behind it."""
    monkeypatch.setattr(ipywidgets.comm, "create_comm", Wire)
    page.goto(served[0].url)
    page.wait_for_function("window.ready")
    yield Notebook(page, served[0])
    page.goto("about:blank")


HEAR = """() => { // what the page sends over data channels
  const send = RTCDataChannel.prototype.send;
  window.watched = [];
  RTCDataChannel.prototype.send = function (text) {
    watched.push(JSON.parse(text));
    send.call(this, text);
  };
}"""


DRAWN = """() => { // whether the rates and the round trip are told
  const all = (title) => [...document.querySelectorAll(`.ipfs-abr section[aria-label="${title}"] button`)];
  const value = (title, label) => all(title)
    .find((one) => one.textContent.includes(label))?.querySelector('.ipfs-abr-value')?.textContent ?? '–';
  const rates = ['received', 'estimate'].map((label) => value('Bit rate', label));
  return rates.every((rate) => rate > 0) && value('Delay', 'round trip') !== '–';
}"""


def test_playback_over_webrtc(live: Notebook, client: ipfs.Client, shoot: Shoot) -> None:
    """What the browser counts and what the server says is charted together; the server is asked only while
    a chart looks."""
    notebook, page = live, live.page
    page.evaluate(HEAR)
    player = client.play(client.add(live.harness.folder / CLIP, name="clip.webm"), transport="webrtc")
    state = {
        "path": CLIP,
        "mime_type": "video/webm",
        "transport": "webrtc",
        "quality": "auto",
        "loop": True,  # it does not end before a slow machine has seen enough of it
        "_samples_key": player._samples_key,
    }
    page.evaluate(PLAY, state)
    root = notebook.show(client.chart(player))
    expect(root).to_contain_text("Waiting for playback")
    page.locator(".ipfs-player-big").click()
    expect(notebook.panel("Bit rate").locator(".ipfs-abr-words")).not_to_be_empty()
    expect(notebook.panel("Picture")).to_contain_text("source")
    page.wait_for_function(DRAWN)
    shoot(page, "webrtc")
    wish = {"type": "watch", "every": 0.1}
    assert page.evaluate("watched") == [wish]
    last = notebook.until(
        lambda one: one.get("frames_per_second", 0) > 10 and one.get("received_bitrate", 0) > 10_000
    )
    assert {"bandwidth_estimate", "sent_bitrate", "jitter", "buffer", "freezes", "state"} <= last.keys()
    page.locator("video").click()  # a pause is no freeze, and has no pictures a second
    page.wait_for_timeout(5000)
    notebook.until(lambda one: "frames_per_second" not in one)
    page.locator(".ipfs-player-big").click()
    page.wait_for_timeout(1000)
    again = notebook.until(lambda one: 15 < one.get("frames_per_second", 0) < 40)
    assert again["freeze_seconds"] - last["freeze_seconds"] < 4  # a busy machine may have a shorter one
    page.evaluate("chart.stop()")
    assert page.evaluate("watched") == [wish, wish | {"every": 0}]
