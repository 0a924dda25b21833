"""The notification feed in a real browser: its ES module, a real NotificationFeed at the kernel's end, and a real server."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import ipywidgets.comm
import pytest
from comm.base_comm import BaseComm
from harness import Harness, Relay, serve
from playwright.sync_api import Locator, Page, expect

import ipfs_stream_nb as ipfs
from ipfs_stream_nb.errors import UnauthorizedError
from ipfs_stream_nb.notifications.system import MetricsCollector
from ipfs_stream_nb.notifications.system_monitor import SystemMonitor
from ipfs_stream_nb.security.access import AccessPolicy, Action
from ipfs_stream_nb.widgets.notification_feed import NotificationFeed
from ipfs_stream_nb_server import standalone
from ipfs_stream_nb_server.context import ServerContext

pytestmark = pytest.mark.browser
CID = "bafkreifzjut3te7nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"
QUIET = ("content_added", "pin_added", "custom_event", "content_removed")
"""Types of which none comes by itself."""
ONE_OF_EACH: list[tuple[str, dict[str, Any]]] = [
    ("content_added", {"cid": CID, "name": "holiday.mp4", "size": 5_234_123, "complete": True}),
    ("pin_added", {"cid": CID, "name": "holiday.mp4"}),
    ("content_retrieved", {"cid": CID, "path": CID, "bytes": 65_536, "transport": "http", "complete": True}),
    ("webrtc_connection_established", {"connection_id": "user_3f2a", "state": "connected"}),
    ("webrtc_error", {"error": "ICE failed", "error_code": 701}),
    ("system_warning", {"warning": "disk_low", "message": "The disk has 3 % left", "free": 123_456_789}),
    ("system_error", {"error": "the upload broke off", "operation": "upload"}),
    ("system_info", {"status": "processing", "task_id": "t1", "progress": 50, "cid": CID}),
    ("custom_event", {"event": "epoch_done", "epoch": 12, "loss": 0.0314159, "tags": ["a", "b"]}),
    ("content_removed", {"cid": CID}),
]

SHOW = """async ([module, css, state, views]) => {
  const {default: widget, limits: timing} = await import(module);
  Object.assign(timing, window.timing);
  document.head.append(Object.assign(document.createElement('style'), {textContent: css}));
  const model = new Model(state);
  window.kernel = async (model, message) => {
    for (const {method, content} of await window.python(message)) if (method === 'custom') model.message(content);
  };
  const save = model.save_changes.bind(model);
  model.save_changes = () => { save(); window.saved(model.saved.at(-1)); };
  const parts = widget();
  window.last = {model, stop: await parts.initialize({model})};
  for (let i = 0; i < views; i++) {
    const el = document.getElementById('views').appendChild(document.createElement('div'));
    await parts.render({model, el});
  }
}"""


class Wire(BaseComm):
    """The wire to the browser: it keeps what goes out."""

    def publish_msg(self, msg_type: str, data: Any = None, **_rest: Any) -> None:
        self.__dict__.setdefault("sent", []).append(data or {})


class Gate(AccessPolicy):
    """A policy that can be closed for subscribers, and that can take a user for no admin."""

    closed = False

    rank = "admin"

    async def role(self, user: str) -> str:
        return self.rank

    async def allows(self, user: str, action: Action, cid: Any) -> bool:
        return not (self.closed and action is Action.SUBSCRIBE)


@dataclass
class Server:
    """A client's server, from the inside: every type of event can be sent."""

    client: ipfs.Client
    context: ServerContext
    loop: asyncio.AbstractEventLoop

    def emit(self, *events: tuple[str, dict[str, Any]], keep: bool = True) -> None:
        """Send events in this order; returns when they are in the manager's hands."""
        done = threading.Event()

        def send() -> None:
            for kind, data in events:
                self.context.emit(kind, data, source="ipfs_stream_nb", keep=keep)
            done.set()

        self.loop.call_soon_threadsafe(send)
        assert done.wait(5)

    def numbers(self, first: int, count: int) -> None:
        """Custom events with numbers."""
        self.emit(*(("custom_event", {"event": "tick", "n": n}) for n in range(first, first + count)))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A client with a server of its own."""
    held: dict[str, Any] = {}

    def context(*args: Any, **settings: Any) -> ServerContext:
        held["context"] = ServerContext(*args, **settings | {"policy": Gate()})
        held["loop"] = asyncio.get_running_loop()
        return held["context"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(standalone, "ServerContext", context)
        # a slow machine is warned of, between the test's own events
        for part in (MetricsCollector, SystemMonitor):
            patch.setattr(part, "start", lambda _: None)
        with ipfs.connect(repo=tmp_path_factory.mktemp("repo")) as client:
            yield Server(client, **held)


@dataclass
class Notebook:
    """A page that shows a feed, and the feed in Python."""

    page: Page
    harness: Harness
    relay: Relay
    server: Server
    feed: NotificationFeed | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    """What the page asked the kernel."""

    def make(self, **options: Any) -> None:
        """Make a feed, which the page does not show yet."""
        self.feed = self.server.client.notification_feed(**options)
        self.page.expose_function("python", self._kernel)
        self.page.expose_function("saved", self.feed.set_state)

    def show(self, views: int = 1, state: str = "live", **options: Any) -> NotificationFeed:
        """Make a feed and show it, and wait for the state of its connection."""
        if self.feed is None:
            self.make(**options)
        traits = {name: self.feed.get_state()[name] for name in self.feed.keys if name[0] != "_"}
        (self.harness.folder / "joined.mjs").write_text(self.feed._esm)
        self.page.evaluate(SHOW, [f"{self.harness.url}ipfs/joined.mjs", self.feed._css, traits, views])
        expect(self.root).to_have_attribute("data-state", state)
        return self.feed

    def _kernel(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        self.asked.append(message)
        sent = self.feed.comm.__dict__.setdefault("sent", [])
        sent.clear()
        self.feed.comm.handle_msg(
            {"content": {"data": {"method": "custom", "content": message}}, "buffers": []}
        )
        return json.loads(json.dumps(sent).replace(self.server.client.server.url, self.relay.url))

    def reload(self) -> None:
        """The page is loaded anew; the kernel lives on, and so does its feed."""
        self.page.reload()
        self.page.wait_for_function("window.ready")
        self.show()

    @property
    def root(self) -> Locator:
        return self.page.locator(".ipfs-feed").first

    @property
    def rows(self) -> Locator:
        return self.root.get_by_role("listitem")

    def row(self, text: str) -> Locator:
        return self.rows.filter(has_text=text)

    def chip(self, label: str) -> Locator:
        return self.root.locator(".ipfs-feed-chip").filter(has_text=label)

    def press(self, name: str) -> None:
        self.root.get_by_role("button", name=name, exact=True).click()

    def says(self, text: str) -> None:
        """Wait until the line at the bottom says so."""
        expect(self.root.locator(".ipfs-feed-foot")).to_contain_text(text)

    def lines(self) -> list[str]:
        return self.root.locator(".ipfs-feed-line").all_inner_texts()


@pytest.fixture
def notebook(
    page: Page, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Notebook]:
    """The page is open, and shows nothing yet."""
    monkeypatch.setattr(ipywidgets.comm, "create_comm", Wire)
    harness, close = serve(tmp_path)
    page.goto(harness.url)
    page.wait_for_function("window.ready")
    with Relay(server.client.server.url) as relay:
        notebook = Notebook(page, harness, relay, server)
        yield notebook
        if notebook.feed is not None:
            notebook.feed.close()
    close()


def test_events_come_live(notebook: Notebook, shoot: Callable[..., Path]) -> None:
    """Events of every family come, the newest on top, each with its type, what it is about, and when; chips count them."""
    notebook.show()
    expect(notebook.root).to_contain_text("Nothing yet")
    shoot(notebook.page, "empty")
    notebook.server.emit(*ONE_OF_EACH)
    expect(notebook.row("epoch_done")).to_be_visible()
    expect(notebook.row("epoch_done")).to_contain_text("loss 0.03142")
    expect(notebook.row("ICE failed")).to_have_attribute("data-tone", "error")
    expect(notebook.row("3 % left")).to_have_attribute("data-tone", "warning")
    expect(notebook.row("5.0 MiB")).to_contain_text("holiday.mp4")
    expect(notebook.row("5.0 MiB")).to_contain_text("bafkreif…36n5e")
    expect(notebook.chip("added")).to_contain_text("1")
    shown = [line for line in notebook.lines() if "CPU" not in line]
    assert [line.count("epoch_done") for line in shown[:2]] == [0, 1]
    stamp = notebook.row("epoch_done").locator("time").get_attribute("title")
    assert time.strftime("%Y") in stamp
    shoot(notebook.page, "light")
    notebook.page.evaluate("document.body.classList.add('dark')")
    shoot(notebook.page, "dark")


def test_hostile_data_is_text(notebook: Notebook, shoot: Callable[..., Path]) -> None:
    """HTML, control and bidi characters, huge and deep data: shown as what they are, bounded, and nothing runs."""
    notebook.show(types=QUIET)
    deep: Any = "end"
    for _ in range(60):
        deep = [deep]
    attack = "<img src=x onerror='window.owned=1'><script>window.owned=1</script>"
    notebook.server.emit(
        ("custom_event", {"message": attack, attack: attack, "cid": "javascript:window.owned=1"}),
        ("custom_event", {"message": "invoice\u202egnp.exe\x00\x1b[31m\u200b|"}),
        ("custom_event", {"message": "مرحبا بالعالم", "n": 1}),
        ("custom_event", {"message": "x" * 60_000}),
        ("custom_event", {"event": "deep", "deep": deep, "__proto__": {"a": 1}, "toString": 3}),
        ("custom_event", {f"key {n}": {"a": [n]} for n in range(2000)}),
        ("custom_event", {}),
    )
    notebook.says("7 events")
    expect(notebook.row("invoice")).to_contain_text("invoice\ufffdgnp.exe\u2400\u241b[31m\ufffd|")
    assert max(len(line) for line in notebook.lines()) < 1000
    for text in ("window.owned", "xxx", "deep", "key 3"):
        notebook.row(text).first.click()
        detail = notebook.root.get_by_role("region", name="Detail")
        expect(detail).to_be_visible()
        assert len(detail.inner_text()) < 70_000
        if text == "deep":
            expect(detail).to_contain_text("[… 1]")
    notebook.row("window.owned").click()
    shoot(notebook.page, "detail")
    assert notebook.root.locator(".ipfs-feed img, .ipfs-feed script, .ipfs-feed a").count() == 0
    notebook.root.get_by_role("searchbox").fill("<script>")
    notebook.says("1 of 7 events shown")
    assert notebook.page.evaluate("window.owned") is None
    row = notebook.root.bounding_box()
    assert row["width"] <= 720


def test_search_and_types(notebook: Notebook, shoot: Callable[..., Path]) -> None:
    """Text is looked for in types and data, a chip switches its type off and on, and the counts say what is hidden."""
    notebook.show(types=QUIET)
    notebook.server.emit(
        ("content_added", {"cid": CID, "name": "notes.txt"}),
        ("pin_added", {"cid": CID, "name": "notes.txt"}),
        ("custom_event", {"event": "Training", "nested": {"deep": ["Needle"]}}),
    )
    notebook.says("3 events")
    search = notebook.root.get_by_role("searchbox")
    for text, count in (("needle", 1), ("NOTES", 2), (CID[:12], 2), ("pin_added", 1)):
        search.fill(text)
        notebook.says(f"{count} of 3 events shown")
        expect(notebook.rows).to_have_count(count)
    search.fill("nothing like it")
    expect(notebook.root).to_contain_text("Nothing matches")
    shoot(notebook.page, "nothing")
    notebook.press("Show all")
    notebook.says("3 events")
    assert search.input_value() == ""
    notebook.chip("pinned").click()
    expect(notebook.chip("pinned")).to_have_attribute("aria-pressed", "false")
    notebook.says("2 of 3 events shown")
    notebook.server.emit(("pin_added", {"cid": CID, "name": "late.txt"}))
    expect(notebook.chip("pinned")).to_contain_text("2")
    expect(notebook.rows).to_have_count(2)
    shoot(notebook.page, "off")
    notebook.chip("pinned").click()
    expect(notebook.rows).to_have_count(4)


def test_pause_and_clear(notebook: Notebook, shoot: Callable[..., Path]) -> None:
    """A paused list stands still and counts what is new; a cleared one is empty, after a reload as well."""
    feed = notebook.show(types=QUIET)
    notebook.server.numbers(0, 3)
    notebook.says("3 events")
    notebook.press("Pause")
    notebook.server.numbers(3, 12)
    more = notebook.root.locator(".ipfs-feed-more")
    expect(more).to_have_text("12 new")
    expect(notebook.rows).to_have_count(3)
    notebook.says("paused")
    shoot(notebook.page, "paused")
    more.click()
    notebook.says("15 events")
    expect(more).to_be_hidden()
    began = feed.since
    notebook.press("Clear the list")
    notebook.says("No events")
    notebook.server.numbers(15, 1)
    notebook.says("1 event")
    assert feed.since != began
    notebook.reload()
    notebook.says("1 event")
    expect(notebook.row("n 15")).to_be_visible()


def test_the_last_hundred_are_kept(notebook: Notebook) -> None:
    """Beyond its limit a page drops the oldest and says how many; only rows in sight exist; the limit can be set."""
    feed = notebook.show(types=QUIET)
    notebook.server.numbers(0, 137)
    notebook.says("100 events · the last 100 are kept, 37 older dropped")
    expect(notebook.chip("custom")).to_contain_text("100")
    assert notebook.rows.count() < 20
    notebook.root.locator(".ipfs-feed-log").evaluate("node => { node.scrollTop = 1e6; }")
    expect(notebook.row("n 37")).to_be_visible()
    assert notebook.rows.count() < 20
    feed.limit = 10
    notebook.page.evaluate("last.model.update({limit: 10})")
    notebook.says("10 events · the last 10 are kept, 127 older dropped")


def test_what_is_read_stays_where_it_is(notebook: Notebook) -> None:
    """New events do not move what somebody has scrolled to; a button leads to the newest."""
    notebook.show(types=QUIET)
    notebook.server.numbers(0, 60)
    notebook.says("60 events")
    notebook.root.locator(".ipfs-feed-log").evaluate("node => { node.scrollTop = 600; }")
    place = notebook.row("n 35")
    expect(place).to_be_visible()
    before = place.bounding_box()["y"]
    notebook.server.numbers(60, 25)
    notebook.says("85 events")
    assert notebook.row("n 35").bounding_box()["y"] == pytest.approx(before, abs=1)
    notebook.root.get_by_role("button", name="Go to the newest").click()
    expect(notebook.row("n 84")).to_be_focused()


def test_present_states_take_one_row(notebook: Notebook) -> None:
    """Metrics and progress, which the log does not keep, are one row each that moves on, and push nothing out."""
    notebook.show(types=["pin_progress", "custom_event"], limit=5)
    notebook.server.numbers(0, 3)
    for percent in (10.0, 55.5, 90.0):
        notebook.server.emit(("pin_progress", {"cid": CID, "percent": percent}), keep=False)
        notebook.server.emit(
            ("custom_event", {"event": "upload_progress", "upload_id": "u1", "percent": percent}), keep=False
        )
    expect(notebook.row("pinning")).to_contain_text("90 %")
    expect(notebook.row("upload_progress")).to_contain_text("90 %")
    notebook.says("5 events")
    assert notebook.rows.count() == 5


def test_a_lost_connection_loses_nothing(notebook: Notebook, shoot: Callable[..., Path]) -> None:
    """The server cannot be reached for a while: the feed says so, and then has each event once, in order."""
    notebook.show(types=QUIET)
    notebook.server.numbers(0, 5)
    notebook.says("5 events")
    notebook.relay.closed = True
    notebook.relay.cut()
    expect(notebook.root).to_have_attribute("data-state", "reconnecting")
    shoot(notebook.page, "reconnecting")
    notebook.server.numbers(5, 5)
    notebook.relay.closed = False
    notebook.says("10 events")
    expect(notebook.root).to_have_attribute("data-state", "live")
    assert [line.rpartition(" ")[2] for line in notebook.lines()] == [str(n) for n in reversed(range(10))]


def test_a_computer_without_network(notebook: Notebook, shoot: Callable[..., Path]) -> None:
    """A browser that is off the network says so at once."""
    notebook.show(types=QUIET)
    notebook.relay.closed = True
    notebook.relay.cut()
    expect(notebook.root).to_have_attribute("data-state", "reconnecting")
    notebook.page.context.set_offline(True)
    expect(notebook.root).to_have_attribute("data-state", "offline")
    expect(notebook.root).to_contain_text("This computer is offline")
    shoot(notebook.page, "offline")
    notebook.relay.closed = False
    notebook.page.context.set_offline(False)
    expect(notebook.root).to_have_attribute("data-state", "live", timeout=15_000)


def test_a_reloaded_page_catches_up(notebook: Notebook) -> None:
    """After a reload the events since the feed was made come again, those of the time in between too."""
    notebook.show(types=QUIET)
    notebook.server.numbers(0, 2)
    notebook.says("2 events")
    notebook.page.goto("about:blank")
    notebook.server.numbers(2, 2)
    notebook.page.goto(notebook.harness.url)
    notebook.page.wait_for_function("window.ready")
    notebook.show()
    notebook.says("4 events")


def test_who_may_not_is_told(
    notebook: Notebook, shoot: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy that refuses is named where the list would be, and the feed goes on once it lets one in."""
    notebook.make(types=QUIET)
    monkeypatch.setattr(Gate, "closed", True)
    notebook.show(state="refused")
    expect(notebook.root).to_contain_text("access policy does not let you subscribe")
    shoot(notebook.page, "refused")
    monkeypatch.setattr(Gate, "closed", False)
    notebook.press("Try again")
    expect(notebook.root).to_have_attribute("data-state", "live")


def test_types_that_may_not_be_seen(
    notebook: Notebook, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is no admin is told which of the types asked for are hidden; where all are, there is no feed."""
    monkeypatch.setattr(Gate, "rank", "user")
    with pytest.raises(UnauthorizedError, match="system_error"):
        server.client.notification_feed("system_error")
    notebook.show(types=["custom_event", "system_info"])
    expect(notebook.root).to_contain_text("You may not see system_info.")
    server.emit(("system_info", {"n": 1}), ("custom_event", {"n": 2}))
    notebook.says("1 event")


def test_a_log_that_began_anew(notebook: Notebook) -> None:
    """A feed whose place is in another log has all of the new one, and says that some may be missing."""
    notebook.make(types=QUIET)
    notebook.feed.since = "another.log-77"
    notebook.show()
    expect(notebook.root).to_contain_text("began anew: some may have been missed")
    notebook.server.numbers(501, 1)
    expect(notebook.row("n 501")).to_be_visible()


def test_the_keyboard_is_enough(notebook: Notebook, shoot: Callable[..., Path]) -> None:
    """Arrows go through the list, Enter opens, Escape closes, a slash searches, and no key reaches Jupyter's shortcuts."""
    notebook.show(types=QUIET)
    notebook.server.numbers(0, 40)
    notebook.says("40 events")
    page = notebook.page
    page.evaluate("window.keys = []; document.addEventListener('keydown', (event) => keys.push(event.key))")
    search = notebook.root.get_by_role("searchbox")
    search.focus()
    page.keyboard.press("ArrowDown")
    expect(notebook.row("n 39")).to_be_focused()
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    expect(notebook.row("n 36")).to_be_focused()
    notebook.server.numbers(40, 4)
    notebook.says("44 events")
    expect(notebook.row("n 36")).to_be_focused()
    page.keyboard.press("Enter")
    detail = notebook.root.get_by_role("region", name="Detail")
    expect(detail).to_contain_text('"n": 36')
    shoot(page, "detail")
    page.keyboard.press("Escape")
    expect(detail).to_be_hidden()
    expect(notebook.row("n 36")).to_be_focused()
    page.keyboard.press("End")
    expect(notebook.row("n 0").first).to_be_focused()
    page.keyboard.press("Home")
    expect(notebook.row("n 43")).to_be_focused()
    page.keyboard.press("/")
    expect(search).to_be_focused()
    page.keyboard.type("dd n 12")
    assert search.input_value() == "dd n 12"
    page.keyboard.press("Escape")
    assert search.input_value() == ""
    assert page.evaluate("keys") == []


def test_the_detail_of_an_event(notebook: Notebook) -> None:
    """A click shows the event as JSON with links to its CIDs where the cookie serves, and copies it."""
    notebook.show(types=QUIET)
    notebook.server.emit(("content_added", {"cid": CID, "parts": [{"cid": CID.replace("zj", "zk")}]}))
    notebook.rows.first.click()
    detail = notebook.root.get_by_role("region", name="Detail")
    expect(detail.locator(".ipfs-feed-link")).to_have_count(2)
    assert (
        detail.locator(".ipfs-feed-link").first.get_attribute("href") is None
    )  # another origin: a token is needed
    notebook.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    notebook.press("Copy the event as JSON")
    expect(notebook.root.locator(".ipfs-feed-said")).to_have_text("The event is in the clipboard")
    copied = json.loads(notebook.page.evaluate("navigator.clipboard.readText()"))
    assert copied["data"]["cid"] == CID
    notebook.press("Close the detail")
    expect(detail).to_be_hidden()
    expect(notebook.rows.first).to_be_focused()


def test_two_views_have_one_connection(notebook: Notebook) -> None:
    """Two views of one feed show the same events over one connection, each with a search of its own."""
    notebook.show(views=2, types=QUIET)
    notebook.server.numbers(0, 2)
    notebook.says("2 events")
    second = notebook.page.locator(".ipfs-feed").nth(1)
    expect(second.get_by_role("listitem")).to_have_count(2)
    second.get_by_role("searchbox").fill("n 1")
    expect(second.get_by_role("listitem")).to_have_count(1)
    expect(notebook.rows).to_have_count(2)
    assert len([line for line in notebook.relay.requests if "/ws/notifications" in line]) == 1


def test_a_callback_that_fails_is_shown(notebook: Notebook, shoot: Callable[..., Path]) -> None:
    """What the kernel has to tell stands in the feed."""
    feed = notebook.show(types=QUIET)

    @feed.on("custom_event")
    def train(event: Any) -> None:
        raise KeyError(event["data"]["n"])

    notebook.server.numbers(7, 1)
    notebook.says("1 event")
    deadline = time.monotonic() + 5
    while not feed.note and time.monotonic() < deadline:
        notebook.page.wait_for_timeout(20)
    notebook.page.evaluate("note => last.model.update({note})", feed.note)
    expect(notebook.root).to_contain_text("train raised KeyError for custom_event: 7")
    shoot(notebook.page, "note")


def test_screen_readers_are_not_flooded(notebook: Notebook) -> None:
    """The list is a log that is not read out by itself; one sentence now and then tells what is new."""
    notebook.page.evaluate("window.timing = {times: 300, speak: 1500}")
    notebook.show(types=QUIET)
    assert notebook.root.get_by_role("log").get_attribute("aria-live") == "off"
    said = notebook.root.locator(".ipfs-feed-said")
    assert said.get_attribute("aria-live") == "polite"
    said.evaluate(
        """node => { window.sentences = [];
            const note = () => sentences.push([performance.now(), node.textContent]);
            new MutationObserver(note).observe(node, { childList: true }); }"""
    )
    notebook.server.numbers(0, 30)
    notebook.says("30 events")
    expect(said).to_contain_text("the latest: custom tick, n 29")
    sentences = notebook.page.evaluate("sentences")  # the first may come when some of the 30 have
    assert sum(int(text.split()[0]) for _, text in sentences) == 30
    notebook.server.numbers(30, 1)
    notebook.says("31 events")
    expect(said).to_have_text("1 new event, the latest: custom tick, n 30")
    sentences = notebook.page.evaluate("sentences")
    assert sum(int(text.split()[0]) for _, text in sentences) == 31
    assert min(later - at for (at, _), (later, _) in pairwise(sentences)) > 1400
    assert len(sentences) < 6
    row = notebook.rows.first
    assert (row.get_attribute("aria-posinset"), row.get_attribute("aria-setsize")) == ("1", "31")


@pytest.mark.parametrize("width", [260, 380])
def test_a_narrow_feed(notebook: Notebook, shoot: Callable[..., Path], width: int) -> None:
    """In a narrow place nothing sticks out, and nothing moves for who wants no motion."""
    notebook.page.emulate_media(reduced_motion="reduce")
    notebook.show(height=200)
    notebook.page.set_viewport_size({"width": width, "height": 560})
    notebook.server.emit(*ONE_OF_EACH)
    expect(notebook.row("epoch_done")).to_be_visible()
    shoot(notebook.page, str(width))
    assert notebook.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    root = notebook.root.bounding_box()
    for button in notebook.root.get_by_role("button").all():
        if button.is_visible():
            box = button.bounding_box()
            assert box["x"] >= root["x"]
            assert box["x"] + box["width"] <= root["x"] + root["width"]
    dot = notebook.root.locator(".ipfs-feed-dot").first
    assert dot.evaluate("node => getComputedStyle(node).animationName") == "none"
