"""The kernel's side of the uploader; the browser's end of the wire is in the test's hands."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ipywidgets.comm
import pytest
from comm.base_comm import BaseComm
from traitlets import TraitError

import ipfs_stream_nb as ipfs
from ipfs_stream_nb.errors import BadRequestError
from ipfs_stream_nb.widgets.modules import join_modules
from ipfs_stream_nb.widgets.uploader import Uploader

CID = "bafkreifzjut3te7nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"
STATIC = Path(ipfs.__file__).parent / "widgets" / "static"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ipfs.Client]:
    """A client of its own store and server."""
    with ipfs.connect(repo=tmp_path_factory.mktemp("repo")) as client:
        yield client


class Wire(BaseComm):
    """The wire to the browser: it keeps what goes out."""

    sent: list[dict[str, Any]]

    def publish_msg(self, msg_type: str, data: Any = None, **_rest: Any) -> None:
        self.__dict__.setdefault("sent", []).append(data or {})


class Browser:
    """A page as the kernel sees it."""

    def __init__(self, uploader: Uploader, page: str = "p1") -> None:
        self.uploader, self.page, self.number = uploader, page, 0
        uploader.comm.sent.clear()

    def say(self, **message: Any) -> None:
        self.uploader.comm.handle_msg(
            {"content": {"data": {"method": "custom", "content": message}}, "buffers": []}
        )

    def report(self, *items: Any, gone: Any = ()) -> None:
        self.number += 1
        self.say(event="items", page=self.page, number=self.number, items=list(items), gone=list(gone))

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [m["content"] for m in self.uploader.comm.sent if m.get("method") == "custom"]


def item(key: str = "a", **more: Any) -> dict[str, Any]:
    """A report of one upload."""
    facts = {"id": key, "name": f"{key}.txt", "kind": "file", "size": 10, "sent": 5, "files": 1}
    return facts | {"state": "uploading", "cid": None, "error": ""} | more


def done(key: str = "a", **more: Any) -> dict[str, Any]:
    """A report of one that is finished."""
    return item(key, **({"sent": 10, "state": "done", "cid": CID} | more))


@pytest.fixture(autouse=True)
def _wire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipywidgets.comm, "create_comm", Wire)


@pytest.fixture
def uploader(client: ipfs.Client) -> Iterator[Uploader]:
    """An uploader."""
    uploader = client.uploader()
    yield uploader
    uploader.close()


@pytest.fixture
def browser(uploader: Uploader) -> Browser:
    """A page that shows it."""
    return Browser(uploader)


def test_an_empty_uploader(uploader: Uploader) -> None:
    """It says that there is nothing yet, the same in every run, and where no widget runs as well."""
    assert repr(uploader) == "Uploader(nothing uploaded yet)"
    assert (list(uploader.cids), list(uploader.uploads)) == ([], [])
    data, _ = uploader._repr_mimebundle_()
    assert data["text/html"] == "<p>Nothing uploaded yet.</p>"
    assert data["text/plain"] == repr(uploader)
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == uploader.model_id


def test_reports_become_uploads(uploader: Uploader, browser: Browser) -> None:
    """Each report changes what it names; progress, states and CIDs are there and can be observed."""
    seen: list[Any] = []
    uploader.observe(lambda change: seen.append(change.new), "uploads")
    browser.report(item("a"), item("b", state="waiting", sent=0))
    browser.report(done("a"))
    assert [(one.name, one.state, one.percent) for one in uploader.uploads] == [
        ("a.txt", "done", 100.0),
        ("b.txt", "waiting", 0.0),
    ]
    assert [(one.name, str(one.cid), one.size) for one in uploader.cids] == [("a.txt", CID, 10)]
    assert uploader.cids["a.txt"] is uploader.cids[0]
    assert len(seen) == 2
    assert repr(uploader) == "Uploader(1 of 2 done)"
    assert [m for m in browser.messages if "taken" in m] == [{"taken": 1}, {"taken": 2}]
    with pytest.raises(KeyError):
        uploader.cids["b.txt"]


def test_the_table_of_what_was_uploaded(uploader: Uploader, browser: Browser) -> None:
    """Names come from anywhere and are escaped; what is not done says how it stands."""
    browser.report(done("a", name="<img src=x>"), item("b", state="error", error="too large"), item("c"))
    data, _ = uploader._repr_mimebundle_()
    assert "&lt;img src=x&gt;" in data["text/html"]
    assert CID in data["text/html"]
    assert "too large" in data["text/html"]
    assert "uploading, 50 %" in data["text/html"]
    assert repr(uploader.uploads).splitlines() == [
        "uploads:",
        f"  Upload('<img src=x>', 10 bytes, {CID})",
        "  Upload('b.txt', 10 bytes, error)",
        "  Upload('c.txt', 10 bytes, uploading)",
    ]


def test_what_was_uploaded_is_content(client: ipfs.Client, uploader: Uploader, browser: Browser) -> None:
    """A finished upload is taken wherever content is."""
    added = client.add(b"hello", name="hello.txt")
    browser.report(done("a", cid=str(added.cid), size=5, sent=5))
    assert client.cat(uploader.cids[0]) == b"hello"
    assert client.cat(str(uploader.cids[0])) == b"hello"


def test_callbacks(uploader: Uploader, browser: Browser, caplog: pytest.LogCaptureFixture) -> None:
    """Each is called once for each finished upload; one that fails is shown and logged, and holds up no other."""
    heard: list[str] = []

    @uploader.on_complete
    def fails(upload: Any) -> None:
        heard.append(f"fails {upload.name}")
        raise ValueError("no")

    uploader.on_complete(lambda upload: heard.append(str(upload)))
    uploader.on_complete(fails)  # a second time changes nothing
    browser.report(item("a"))
    assert heard == []
    browser.report(done("a"))
    browser.report(done("a"))
    assert heard == ["fails a.txt", CID]
    assert uploader.results[0]["note"] == "on_complete: fails raised ValueError: no"
    assert "Traceback" in caplog.text
    uploader.on_complete(fails, remove=True)
    browser.report(done("b"))
    assert heard[2:] == [CID]
    assert uploader.results[1]["note"] == ""


def test_bad_callbacks(uploader: Uploader) -> None:
    """What cannot be called, what is async, and what is not there to be removed are refused."""

    async def later(_upload: Any) -> None: ...

    with pytest.raises(BadRequestError, match="not a str"):
        uploader.on_complete("print")
    with pytest.raises(BadRequestError, match="awaits none"):
        uploader.on_complete(later)
    with pytest.raises(BadRequestError, match="not there"):
        uploader.on_complete(print, remove=True)


def test_a_callback_may_set_up_another(uploader: Uploader, browser: Browser) -> None:
    """Callbacks that change the callbacks do not disturb the round that runs."""
    heard: list[str] = []

    def once(_upload: Any) -> None:
        uploader.on_complete(once, remove=True)
        uploader.on_complete(lambda upload: heard.append(upload.name))

    uploader.on_complete(once)
    browser.report(done("a"))
    browser.report(done("b"))
    assert heard == ["b.txt"]


def test_what_is_taken_away(uploader: Uploader, browser: Browser) -> None:
    """A cancelled upload is gone; a finished one stays, whatever the page says."""
    browser.report(item("a"), done("b"))
    browser.report(gone=["a", "b", "never", 5, None])
    assert [one.name for one in uploader.uploads] == ["b.txt"]


def test_a_reloaded_page(uploader: Uploader, browser: Browser) -> None:
    """What the browser still knows has stopped and can go on under the same id; the rest is lost; what is done stays."""
    browser.report(done("a"), item("b"), item("c", state="waiting"), item("d", state="error", error="no"))
    browser.say(event="ready", page="p1", known=[])
    assert [one.state for one in uploader.uploads] == ["done", "uploading", "waiting", "error"]
    browser.say(event="ready", page="p2", known=["b", "x", 3])
    assert [(one.name, one.state) for one in uploader.uploads] == [
        ("a.txt", "done"),
        ("b.txt", "interrupted"),
    ]
    second = Browser(uploader, "p2")
    second.report(done("b"))
    assert len(uploader.cids) == 2


def test_a_page_shows_what_an_earlier_one_finished(uploader: Uploader, browser: Browser) -> None:
    """The results are synchronised, and progress is not: it would travel for nothing."""
    browser.report(item("a"))
    assert [m for m in uploader.comm.sent if m.get("method") == "update"] == []
    browser.report(done("a"))
    state = uploader.get_state("results")["results"]
    expected = {"id": "a", "name": "a.txt", "kind": "file", "size": 10, "files": 1, "cid": CID, "note": ""}
    assert state == [expected]
    assert "uploads" not in uploader.get_state()


@pytest.mark.parametrize(
    "message",
    [
        None,
        "text",
        {},
        {"event": "?"},
        {"event": "token"},
        {"event": "token", "request": 5},
        {"event": "ready"},
        {"event": "items", "page": "p", "number": "1", "items": []},
        {"event": "items", "page": "p", "number": 1, "items": "all"},
    ],
)
def test_nonsense_from_a_page_is_ignored(browser: Browser, message: Any) -> None:
    """Messages that are none of the protocol's change nothing and raise nothing."""
    browser.uploader.comm.handle_msg(
        {"content": {"data": {"method": "custom", "content": message}}, "buffers": []}
    )
    assert browser.messages == []
    assert len(browser.uploader.uploads) == 0


@pytest.mark.parametrize(
    "bad",
    [
        None,
        "a",
        {},
        item(size="10"),
        item(size=-1),
        item(sent=11),
        item(state="flying"),
        item(kind="pipe"),
        item(files=0),
        done(cid=None),
        done(cid="nonsense"),
        done(cid=7),
    ],
)
def test_nonsense_in_a_report_is_left_out(browser: Browser, bad: Any) -> None:
    """An item that makes no sense is dropped; the others of the report are taken."""
    browser.report(bad, item("z"))
    assert [one.name for one in browser.uploader.uploads] == ["z.txt"]


def test_the_token_goes_to_the_page_alone(client: ipfs.Client, uploader: Uploader, browser: Browser) -> None:
    """A page that asks gets a token good for adding, and nothing else; the widget's state never holds it."""
    browser.say(event="token", request="r1")
    (answer,) = browser.messages
    assert answer["request"] == "r1"
    assert answer["url"] == client.server.url
    state = json.dumps(uploader.get_state(), default=str)
    assert answer["token"] not in state
    assert client.server.token is None or client.server.token not in state + json.dumps(answer)

    def status(method: str, path: str, body: bytes | None = None) -> int:
        url = f"{client.server.url}{path}?token={answer['token']}"
        try:
            return urllib.request.urlopen(urllib.request.Request(url, body, method=method)).status  # noqa: S310
        except urllib.error.HTTPError as error:
            return error.code

    added = client.add(b"x", name="x")
    entries = json.dumps({"entries": {"x": str(added.cid)}}).encode()
    assert status("POST", "ipfs-stream/directories", entries) == 201
    assert status("GET", f"ipfs/{added.cid}") == 403
    assert status("POST", "ipfs-stream/gc", b"") == 403


def test_a_closed_client_says_so(tmp_path: Path) -> None:
    """A page that asks for a token of a client that was closed is told, instead of waiting."""
    with ipfs.connect(repo=tmp_path) as client:
        uploader = client.uploader()
    browser = Browser(uploader)
    browser.say(event="token", request="r")
    assert "closed" in browser.messages[0]["error"]


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("multiple", "yes", "boolean"),
        ("pin", 2, "boolean"),
        ("profile", "fancy", "unixfs-v1-2025"),
        ("profile", 5, "profile"),
        ("accept", "mp4", "neither an extension"),
        ("accept", "image/*;x", "neither an extension"),
        ("accept", None, "unicode"),
        ("uploads", [], "read-only"),
        ("results", [], "read-only"),
    ],
)
def test_bad_values(uploader: Uploader, name: str, value: object, part: str) -> None:
    """What is out of range or not for Python to set is refused, and named."""
    with pytest.raises(TraitError, match=part):
        setattr(uploader, name, value)


def test_options(client: ipfs.Client) -> None:
    """Options are checked as traits are; unknown ones, and unknown attributes, get a hint."""
    uploader = client.uploader(accept=".mp4 , image/*,", profile="unixfs-v0-2015", pin=False, multiple=False)
    assert uploader.accept == ".mp4,image/*"
    assert (uploader.profile, uploader.pin, uploader.multiple) == ("unixfs-v0-2015", False, False)
    with pytest.raises(TraitError, match="profile"):
        client.uploader(profile="fancy")
    with pytest.raises(TypeError, match="did you mean 'multiple'"):
        client.uploader(multipel=True)
    with pytest.raises(AttributeError, match="did you mean 'accept'"):
        uploader.acept = ".mp4"
    with pytest.raises(AttributeError, match=r"can be set is accept, .*, profile"):
        uploader.xyzzy = 1


def test_a_closed_uploader(client: ipfs.Client) -> None:
    """It keeps what it has, and says that it is closed."""
    uploader = client.uploader()
    Browser(uploader).report(done("a"))
    uploader.close()
    assert repr(uploader) == "Uploader(1 of 1 done, closed)"
    assert len(uploader.cids) == 1


def test_the_modules_are_joined() -> None:
    """One text without imports, in which each module stands once, after what it needs; its export is the widget."""
    text = join_modules(STATIC / "uploader.js")
    assert text == Uploader._esm
    assert not re.search(r"^import ", text, re.MULTILINE)
    assert re.findall(r"^export (\w+)", text, re.MULTILINE) == ["default"]
    scopes = re.findall(r"^const (module_\w+) = \(", text, re.MULTILINE)
    assert len(scopes) == len(set(scopes)) == 6
    for scope in scopes:
        assert text.index(f"const {scope} = (") < text.index(f"}} = {scope};")
