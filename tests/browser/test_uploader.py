"""The uploader in a real browser: its ES module, a real Uploader at the kernel's end of the wire, and a real server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets.comm
import numpy as np
import pytest
from comm.base_comm import BaseComm
from harness import Harness, Relay, serve
from playwright.sync_api import Locator, Page, expect

import ipfs_stream_nb as ipfs
from ipfs_stream_nb_server import standalone
from ipfs_stream_nb_server.context import ServerContext
from ipfs_stream_nb_server.limits import Limits

pytestmark = pytest.mark.browser
MIB = 1 << 20
TOO_LARGE = 24 * MIB

SHOW = """async ([module, css, state, views]) => {
  const {default: widget} = await import(module);
  document.head.append(Object.assign(document.createElement('style'), {textContent: css}));
  const model = new Model(state);
  window.kernel = async (model, message) => {
    if (window.kernelIsBusy) return;
    for (const {method, content, state} of await window.python(message)) {
      if (method === 'update') model.update(state); else model.message(content);
    }
  };
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


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ipfs.Client]:
    """A client with a server of its own, which takes files of up to TOO_LARGE bytes."""
    with pytest.MonkeyPatch.context() as patch:
        limited = partial(ServerContext, limits=Limits(max_add_size=TOO_LARGE))
        patch.setattr(standalone, "ServerContext", limited)
        with ipfs.connect(repo=tmp_path_factory.mktemp("repo")) as client:
            yield client


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of several sizes, and a folder."""
    folder = tmp_path_factory.mktemp("chosen")
    random = np.random.default_rng(4)
    for name, size in [
        ("holiday.mp4", 20 * MIB),
        ("notes.txt", 2_345),
        ("empty.dat", 0),
        ("huge.iso", 30 * MIB),
    ]:
        (folder / name).write_bytes(random.bytes(size))
    (folder / "photos" / "2024" / "summer").mkdir(parents=True)
    for number in range(7):
        (folder / "photos" / "2024" / f"picture {number} & more.jpg").write_bytes(random.bytes(300_000))
    (folder / "photos" / "2024" / "summer" / "ü.txt").write_text("sun")
    (folder / "photos" / "index.html").write_text("<h1>photos</h1>")
    (folder / "photos" / ".DS_Store").write_text("not meant")
    return folder


@dataclass
class Notebook:
    """A page that shows an uploader, and the uploader in Python."""

    page: Page
    harness: Harness
    relay: Relay
    client: ipfs.Client
    uploader: ipfs.Uploader | None = None
    said: list[dict[str, Any]] = field(default_factory=list)
    """What the page said to the kernel."""

    def show(self, views: int = 1, **options: Any) -> ipfs.Uploader:
        """Make an uploader and show it."""
        if self.uploader is None:
            self.uploader = self.client.uploader(**options)
            self.page.expose_function("python", self._kernel)
        state = {name: self.uploader.get_state()[name] for name in self.uploader.keys if name[0] != "_"}
        state = json.loads(json.dumps(state, default=str))
        (self.harness.folder / "joined.mjs").write_text(self.uploader._esm)
        self.page.evaluate(SHOW, [f"{self.harness.url}ipfs/joined.mjs", self.uploader._css, state, views])
        return self.uploader

    def _kernel(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        assert self.uploader is not None
        self.said.append(message)
        sent = self.uploader.comm.__dict__.setdefault("sent", [])
        sent.clear()
        self.uploader.comm.handle_msg(
            {"content": {"data": {"method": "custom", "content": message}}, "buffers": []}
        )
        answers = json.loads(json.dumps(sent).replace(self.client.server.url, self.relay.url))
        return [answer for answer in answers if answer.get("method") in {"update", "custom"}]

    def reload(self) -> None:
        """The page is loaded anew; the kernel lives on, and so does its uploader."""
        self.page.reload()
        self.page.wait_for_function("window.ready")
        self.show()

    @property
    def root(self) -> Locator:
        return self.page.locator(".ipfs-uploader").first

    def row(self, name: str) -> Locator:
        return self.root.locator(".ipfs-uploader-row", has=self.page.locator(f"[title='{name}']"))

    def choose(self, *paths: Path) -> None:
        self.root.locator("input[type=file]").first.set_input_files(list(paths))

    def choose_folder(self, path: Path) -> None:
        self.root.locator("input[webkitdirectory]").set_input_files(path)

    def press(self, name: str) -> None:
        self.root.get_by_role("button", name=name).click()

    def until_up(self, size: int) -> None:
        """Wait until so many bytes have come through the relay."""
        for _ in range(600):
            if self.relay.up > size:
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(self.relay.up)

    def until(self, name: str, state: str) -> None:
        """Wait until a row is in a state, in the page and in Python."""
        expect(self.row(name)).to_have_attribute("data-state", state, timeout=20_000)
        for _ in range(100):
            if (
                name in [one.name for one in self.uploader.uploads]
                and self.uploader.uploads[name].state == state
            ):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(self.uploader.uploads)

    def until_known(self, *names: str) -> None:
        """Wait until Python has these uploads and no others: the page tells of them a little later."""
        for _ in range(300):
            if [one.name for one in self.uploader.uploads] == list(names):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(self.uploader.uploads)


@pytest.fixture
def notebook(
    page: Page, tmp_path: Path, client: ipfs.Client, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Notebook]:
    """The page is open, and shows nothing yet."""
    monkeypatch.setattr(ipywidgets.comm, "create_comm", Wire)
    harness, close = serve(tmp_path)
    page.goto(harness.url)
    page.wait_for_function("window.ready")
    with Relay(client.server.url) as relay:
        yield Notebook(page, harness, relay, client)
    close()


def test_chosen_files_arrive(notebook: Notebook, files: Path, shoot: Callable[..., Path]) -> None:
    """Two chosen files are uploaded past the kernel, with progress, and their CIDs are in Python."""
    uploader = notebook.show()
    shoot(notebook.page, "empty")
    heard: list[Any] = []
    uploader.on_complete(heard.append)
    notebook.relay.rate = 2e6  # until the page has been looked at
    notebook.choose(files / "holiday.mp4", files / "notes.txt")
    notebook.until("notes.txt", "done")
    expect(notebook.row("holiday.mp4").locator(".ipfs-uploader-facts")).to_contain_text("left")
    shoot(notebook.page, "uploading")
    notebook.relay.rate = 0
    notebook.until("holiday.mp4", "done")
    notebook.page.wait_for_timeout(300)
    shoot(notebook.page, "done")
    notebook.page.evaluate("document.body.classList.add('dark')")
    shoot(notebook.page, "dark")
    for name in ("holiday.mp4", "notes.txt"):
        added = notebook.client.add(files / name, pin=False)
        assert (uploader.cids[name].cid, uploader.cids[name].size) == (added.cid, added.size)
        assert notebook.row(name).locator(".ipfs-uploader-cid").inner_text() == str(added.cid)
    assert [one.name for one in heard] == ["notes.txt", "holiday.mp4"]
    assert repr(uploader) == "Uploader(2 of 2 done)"
    assert {pin.name for pin in notebook.client.pins()} >= {"holiday.mp4", "notes.txt"}
    assert max(len(json.dumps(message)) for message in notebook.said) < 2000  # no content over the comm


def test_a_folder_becomes_a_directory(notebook: Notebook, files: Path, shoot: Callable[..., Path]) -> None:
    """A chosen folder ends in the CID of client.add, without its hidden files; its files have no pins of their own."""
    uploader = notebook.show()
    pins = len(notebook.client.pins())
    notebook.choose_folder(files / "photos")
    notebook.until("photos", "done")
    added = notebook.client.add(files / "photos", pin=False)
    (found,) = uploader.cids
    assert (found.kind, found.files, found.cid) == ("folder", 9, added.cid)
    assert found.size == sum(
        path.stat().st_size for path in (files / "photos").rglob("[!.]*") if path.is_file()
    )
    assert [pin.name for pin in notebook.client.pins()[pins:]] == ["photos"]
    assert notebook.client.cat(f"{found}/2024/summer/ü.txt") == b"sun"
    expect(notebook.row("photos")).to_contain_text("Without 1 hidden file")
    shoot(notebook.page, "done")


def test_dropped_files_arrive(notebook: Notebook, shoot: Callable[..., Path]) -> None:
    """What is dropped is uploaded; while it hovers the place says so; what `accept` does not name is left out."""
    uploader = notebook.show(accept=".txt,image/*")
    make = """(names) => { const data = new DataTransfer();
        for (const name of names) data.items.add(new File([name], name, {type: name.endsWith('png') ? 'image/png' : ''}));
        return data; }"""
    data = notebook.page.evaluate_handle(make, ["a.txt", "b.png", "c.exe"])
    drop = notebook.root.locator(".ipfs-uploader-drop")
    drop.dispatch_event("dragenter", {"dataTransfer": data})
    drop.dispatch_event("dragover", {"dataTransfer": data})
    expect(notebook.root).to_have_class("ipfs-uploader is-over")
    shoot(notebook.page, "over")
    drop.dispatch_event("drop", {"dataTransfer": data})
    notebook.until("a.txt", "done")
    notebook.until("b.png", "done")
    expect(notebook.root).to_have_class("ipfs-uploader")
    expect(notebook.root.locator(".ipfs-uploader-notice")).to_contain_text(
        "c.exe left out: only .txt, image/*"
    )
    assert [one.name for one in uploader.uploads] == ["a.txt", "b.png"]
    assert notebook.client.cat(uploader.cids["a.txt"]) == b"a.txt"
    shoot(notebook.page, "left-out")


def test_errors_are_shown(notebook: Notebook, files: Path, shoot: Callable[..., Path]) -> None:
    """A file that is too large says so, can be tried again and taken away; the others are not disturbed."""
    uploader = notebook.show()
    notebook.choose(files / "huge.iso", files / "empty.dat")
    notebook.until("huge.iso", "error")
    notebook.until("empty.dat", "done")
    expect(notebook.row("huge.iso").get_by_role("alert")).to_contain_text(f"at most {TOO_LARGE} are taken")
    assert "at most" in uploader.uploads["huge.iso"].error
    notebook.page.wait_for_timeout(300)
    shoot(notebook.page, "light")
    notebook.page.evaluate("document.body.classList.add('dark')")
    shoot(notebook.page, "dark")
    notebook.press("Try again: huge.iso")
    notebook.until("huge.iso", "error")
    notebook.press("Cancel huge.iso")
    expect(notebook.row("huge.iso")).to_have_count(0)
    notebook.until_known("empty.dat")
    focused = notebook.page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused == "Copy the CID of empty.dat"


def test_a_lost_connection_comes_back(notebook: Notebook, files: Path, shoot: Callable[..., Path]) -> None:
    """The server cannot be reached for a while: the row says so, and the upload goes on by itself."""
    uploader = notebook.show()
    notebook.relay.rate = 2e6
    notebook.choose(files / "holiday.mp4")
    notebook.until("holiday.mp4", "uploading")
    notebook.until_up(2 * MIB)
    notebook.relay.closed = True
    notebook.relay.cut()
    notebook.until("holiday.mp4", "reconnecting")
    shoot(notebook.page, "reconnecting")
    notebook.relay.closed, notebook.relay.rate = False, 0
    notebook.until("holiday.mp4", "done")
    assert uploader.cids[0].cid == notebook.client.add(files / "holiday.mp4", pin=False).cid


def test_pause_resume_and_cancel(notebook: Notebook, files: Path, shoot: Callable[..., Path]) -> None:
    """A paused upload sends nothing and can go on; a folder pauses as one; a cancelled one is gone everywhere."""
    uploader = notebook.show(pin=False, profile="unixfs-v0-2015")
    notebook.relay.most = MIB  # the small files, too, are still under way when all are paused
    notebook.choose(files / "holiday.mp4")
    notebook.choose_folder(files / "photos")
    notebook.until("holiday.mp4", "uploading")
    notebook.press("Pause all")
    notebook.until("holiday.mp4", "paused")
    notebook.until("photos", "paused")
    notebook.relay.most, before = None, -1  # what was under way arrives, and then nothing more
    while notebook.relay.up != before:
        before = notebook.relay.up
        notebook.page.wait_for_timeout(500)
    assert before < 20 * MIB
    shoot(notebook.page, "paused")
    notebook.press("Cancel holiday.mp4")
    expect(notebook.row("holiday.mp4")).to_have_count(0)
    notebook.press("Resume photos")
    notebook.until("photos", "done")
    added = notebook.client.add(files / "photos", pin=False, profile="unixfs-v0-2015")
    assert [str(one.cid) for one in uploader.uploads] == [str(added.cid)]
    assert str(added.cid) not in [str(pin.cid) for pin in notebook.client.pins()]


def test_a_reloaded_page_goes_on(notebook: Notebook, files: Path, shoot: Callable[..., Path]) -> None:
    """After a reload the unfinished upload is offered; the same file goes on where it was, and no token was kept."""
    uploader = notebook.show()
    notebook.relay.most = 12 * MIB  # so that it does not end before the page is reloaded
    notebook.choose(files / "notes.txt", files / "holiday.mp4")
    notebook.until("notes.txt", "done")
    arrived = "(size) => JSON.parse(Object.values(localStorage)[0]).some(({ sent }) => sent >= size)"
    for _ in range(600):  # what is still on its way to the server may be lost with the page
        if notebook.page.evaluate(arrived, 8 * MIB):
            break
        notebook.relay.most += 4096  # the page keeps how far it is as more is taken
        notebook.page.wait_for_timeout(50)
    assert notebook.page.evaluate(arrived, 8 * MIB)
    notebook.reload()
    notebook.relay.cut()  # nothing more comes of the page that was
    notebook.relay.most = None
    notebook.until("holiday.mp4", "interrupted")
    expect(notebook.row("notes.txt")).to_have_attribute("data-state", "done")
    shoot(notebook.page, "interrupted")
    kept = notebook.page.evaluate("JSON.stringify(localStorage)")
    assert "holiday.mp4" in kept
    assert "eyJ" not in kept
    before = notebook.relay.up
    with notebook.page.expect_file_chooser() as chooser:
        notebook.press("Choose again and resume holiday.mp4")
    chooser.value.set_files(files / "holiday.mp4")
    notebook.until("holiday.mp4", "done")
    assert notebook.relay.up - before < 12.5 * MIB
    assert uploader.cids["holiday.mp4"].cid == notebook.client.add(files / "holiday.mp4", pin=False).cid
    assert len(uploader.uploads) == 2
    expect(notebook.root.locator(".ipfs-uploader-row")).to_have_count(2)
    assert "holiday.mp4" not in notebook.page.evaluate("JSON.stringify(localStorage)")


def test_forgetting_what_was_interrupted(notebook: Notebook, files: Path) -> None:
    """What is not wanted any more goes from the list and from the server."""
    notebook.show()
    notebook.relay.most = 2 * MIB  # so that it does not end before the page is reloaded
    notebook.choose(files / "holiday.mp4")
    notebook.until("holiday.mp4", "uploading")
    notebook.page.wait_for_function("JSON.parse(Object.values(localStorage)[0] ?? '[]')[0]?.id")
    notebook.reload()
    notebook.relay.most = None
    identifier = notebook.page.evaluate("JSON.parse(Object.values(localStorage)[0])[0].id")
    notebook.press("Forget holiday.mp4")
    expect(notebook.root).to_have_attribute("data-state", "empty")
    notebook.until_known()
    answer = notebook.page.evaluate(
        """async ([url, id]) => {
            const ask = () => new Promise((done) => { const socket = new WebSocket(url);
                socket.onopen = () => socket.send(JSON.stringify({upload_id: id}));
                socket.onmessage = ({data}) => { socket.close(); done(JSON.parse(data).code); }; });
            let code;
            for (let n = 0; n < 40 && code !== 'not_found'; n++) { // the server forgets it a little later
                await new Promise((done) => setTimeout(done, 300));
                code = await ask();
            }
            return code; }""",
        [
            f"{notebook.relay.url.replace('http', 'ws', 1)}ws/upload?token={notebook.client.server.token}",
            identifier,
        ],
    )
    assert answer == "not_found"


def test_two_views_of_one_uploader(notebook: Notebook, files: Path) -> None:
    """Both show the same rows, whichever took the files, and a pause in one is a pause in the other."""
    notebook.show(views=2)
    notebook.relay.most = 4 * MIB  # so that it does not end before it is paused
    second = notebook.page.locator(".ipfs-uploader").nth(1)
    second.locator("input[type=file]").first.set_input_files([files / "holiday.mp4"])
    expect(notebook.row("holiday.mp4")).to_have_attribute("data-state", "uploading")
    second.get_by_role("button", name="Pause holiday.mp4").click()
    notebook.until("holiday.mp4", "paused")
    notebook.press("Resume holiday.mp4")
    notebook.relay.most = None
    notebook.until("holiday.mp4", "done")
    expect(second.locator(".ipfs-uploader-row")).to_have_attribute("data-state", "done")
    assert len(notebook.uploader.uploads) == 1


def test_one_file_at_a_time(notebook: Notebook, files: Path) -> None:
    """multiple=False offers no folders and takes one file; set in Python later on, it takes several."""
    uploader = notebook.show(multiple=False)
    expect(notebook.root.get_by_role("button", name="Choose a folder to upload")).to_be_hidden()
    make = "() => { const data = new DataTransfer(); for (const n of 'ab') data.items.add(new File([n], n)); return data; }"
    data = notebook.page.evaluate_handle(make)
    notebook.root.locator(".ipfs-uploader-drop").dispatch_event("drop", {"dataTransfer": data})
    expect(notebook.root.get_by_role("alert")).to_contain_text("One file at a time")
    assert len(uploader.uploads) == 0
    notebook.choose(files / "empty.dat")
    notebook.until("empty.dat", "done")
    notebook.page.evaluate("last.model.update({multiple: true})")
    expect(notebook.root.get_by_role("button", name="Choose a folder to upload")).to_be_visible()


def test_a_callback_that_fails_is_shown(
    notebook: Notebook, files: Path, shoot: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    """The upload is done all the same, and its row says what the callback raised."""

    def train(_upload: object) -> None:
        raise KeyError("no such column")

    uploader = notebook.show()
    uploader.on_complete(train)
    notebook.choose(files / "notes.txt")
    notebook.until("notes.txt", "done")
    expect(notebook.row("notes.txt")).to_contain_text("on_complete: train raised KeyError: 'no such column'")
    shoot(notebook.page, "note")
    assert "train failed for notes.txt" in caplog.text


def test_the_keyboard_is_enough(notebook: Notebook, files: Path, shoot: Callable[..., Path]) -> None:
    """Tab finds every control, Enter works it, no key reaches Jupyter's shortcuts, and a screen reader is told."""
    notebook.show()
    page = notebook.page
    page.evaluate("window.keys = []; document.addEventListener('keydown', (event) => keys.push(event.key))")
    notebook.relay.rate = 2e6
    page.keyboard.press("Tab")
    with page.expect_file_chooser() as chooser:
        page.evaluate("0")  # behind Playwright's asking for the dialogs, for which it does not wait
        page.keyboard.press("Enter")
    chooser.value.set_files(files / "holiday.mp4")
    notebook.until("holiday.mp4", "uploading")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Pause holiday.mp4"
    page.keyboard.press("Enter")
    notebook.until("holiday.mp4", "paused")
    expect(notebook.root.get_by_role("status")).to_have_text("holiday.mp4 is paused")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Resume holiday.mp4"
    shoot(page, "focus")
    page.keyboard.press("Tab")
    page.keyboard.press(" ")
    expect(notebook.row("holiday.mp4")).to_have_count(0)
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Choose files to upload"
    assert set(page.evaluate("keys")) <= {"Tab"}  # the first, pressed outside


def test_a_busy_kernel_is_not_flooded(notebook: Notebook, files: Path) -> None:
    """While the kernel says nothing one report waits for it; the upload itself goes on, with the token it has."""
    uploader = notebook.show()
    notebook.choose(files / "empty.dat")
    notebook.until("empty.dat", "done")
    page = notebook.page
    page.evaluate("window.kernelIsBusy = true; last.model.sent.length = 0")
    notebook.relay.rate = 12e6
    notebook.choose(files / "holiday.mp4")
    expect(notebook.row("holiday.mp4")).to_have_attribute("data-state", "done", timeout=15_000)
    held = page.evaluate("last.model.sent")
    assert len(held) == 1
    page.evaluate("window.kernelIsBusy = false; kernel(last.model, last.model.sent[0])")
    notebook.until("holiday.mp4", "done")
    assert len(uploader.cids) == 2


@pytest.mark.parametrize("width", [260, 360])
def test_a_narrow_uploader(notebook: Notebook, files: Path, shoot: Callable[..., Path], width: int) -> None:
    """In a narrow place nothing sticks out."""
    notebook.show()
    notebook.page.set_viewport_size({"width": width, "height": 700})
    notebook.choose(files / "huge.iso", files / "notes.txt")
    notebook.until("huge.iso", "error")
    notebook.until("notes.txt", "done")
    shoot(notebook.page, str(width))
    assert notebook.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    root = notebook.root.bounding_box()
    for button in notebook.root.get_by_role("button").all():
        if button.is_visible():
            box = button.bounding_box()
            assert box["x"] >= root["x"]
            assert box["x"] + box["width"] <= root["x"] + root["width"]
