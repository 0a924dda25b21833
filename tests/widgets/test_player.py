"""The kernel's side of the player, over real content; the browser's end of the wire is in the test's hands."""

from __future__ import annotations

import base64
import io
import json
import math
import threading
import time
import urllib.request
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import ipywidgets.comm
import nbformat
import numpy as np
import pytest
from comm.base_comm import BaseComm
from nbclient import NotebookClient
from PIL import Image
from traitlets import TraitError, Unicode

import ipfs_stream_nb as ipfs
from ipfs_stream_nb import samples
from ipfs_stream_nb.errors import BadCIDError, BadRequestError, IsDirectoryError, NotFoundError
from ipfs_stream_nb.widgets.player import Player, kind_of
from ipfs_stream_nb.widgets.poster import MAX_SIDE, make_poster

ABSENT = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ipfs.Client]:
    """A client of its own store and server."""
    with ipfs.connect(repo=tmp_path_factory.mktemp("repo")) as client:
        yield client


@pytest.fixture(scope="module")
def video(client: ipfs.Client) -> str:
    """The CID of a clip of two seconds, 320×180 at 25 frames a second."""
    data = samples.video(width=320, height=180, duration=2, frame_rate=25)
    return str(client.add(data, name="clip.mp4").cid)


class Wire(BaseComm):
    """The wire to the browser: it keeps what goes out."""

    sent: list[dict[str, Any]]

    def publish_msg(self, msg_type: str, data: Any = None, **_rest: Any) -> None:
        self.__dict__.setdefault("sent", []).append({"type": msg_type, **(data or {})})


class Browser:
    """A view as the kernel sees it: it speaks, and hears messages and updates."""

    def __init__(self, player: Player) -> None:
        self.player = player
        self.player.comm.sent.clear()

    def say(self, **message: Any) -> None:
        self._deliver({"method": "custom", "content": message})

    def report(self, **state: Any) -> None:
        self._deliver({"method": "update", "state": state})

    def _deliver(self, data: dict[str, Any]) -> None:
        self.player.comm.handle_msg({"content": {"data": data}, "buffers": []})

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [m["content"] for m in self.player.comm.sent if m.get("method") == "custom"]

    @property
    def updates(self) -> list[dict[str, Any]]:
        return [m["state"] for m in self.player.comm.sent if m.get("method") == "update"]


@pytest.fixture(autouse=True)
def _wire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipywidgets.comm, "create_comm", Wire)


@pytest.fixture
def player(client: ipfs.Client, video: str) -> Iterator[Player]:
    """A player of the clip."""
    player = client.play(video)
    yield player
    player.close()


@pytest.fixture
def browser(player: Player) -> Browser:
    """A browser that shows nothing yet."""
    return Browser(player)


def test_tells_what_it_plays(client: ipfs.Client, player: Player, video: str) -> None:
    """Path, MIME type, size and kind come from the content, and the repr is the same in every run."""
    assert (player.path, player.mime_type, player.kind, player.state) == (
        video,
        "video/mp4",
        "video",
        "loading",
    )
    assert player.size == client.stat(video).size
    assert repr(player) == f"Player({video!r}, video/mp4)"


def test_a_path_below_a_directory(client: ipfs.Client, tmp_path: Path) -> None:
    """A file is named through its directory, and keeps its name; the directory itself does not play."""
    samples.image(tmp_path / "a picture.png")
    root = client.add(tmp_path).cid
    player = client.play(f"/ipfs/{root}/a picture.png")
    assert (player.path, player.kind) == (f"{root}/a picture.png", "image")
    with pytest.raises(IsDirectoryError, match=r"client\.ls"):
        client.play(root)


def test_content_that_cannot_be_had(client: ipfs.Client) -> None:
    """A malformed CID, absent content and things that are no path fail where they are asked for."""
    with pytest.raises(BadCIDError):
        client.play("not a cid")
    with pytest.raises(NotFoundError):
        client.play(ABSENT)
    with pytest.raises(BadRequestError):
        client.play(42)


def test_what_is_not_media_says_so(client: ipfs.Client) -> None:
    """Text gets a note with its type, its size and what reads it."""
    player = client.play(client.add(b"hello world", name="hello.txt"))
    assert (player.kind, player.state) == ("other", "error")
    assert "text/plain" in player.error
    assert "11 bytes" in player.error
    assert f'client.open("{player.path}")' in player.error
    assert "image/jpeg" not in player._repr_mimebundle_()[0]
    assert "empty" in client.play(client.add(b"", name="nothing.mp4", pin=False)).error


@pytest.mark.parametrize(
    ("mime_type", "kind"),
    [
        ("video/mp4", "video"),
        ("audio/ogg; codecs=opus", "audio"),
        ("image/png", "image"),
        ("text/html", "other"),
        ("application/ogg", "video"),
        ("audio/x-mpegurl", "other"),
        ("application/vnd.apple.mpegurl", "other"),
        ("", "other"),
        ("other/x", "other"),
    ],
)
def test_kinds(mime_type: str, kind: str) -> None:
    """The element is chosen by the type; a playlist is none, whatever its family."""
    assert kind_of(mime_type) == kind


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("volume", 1.5, "greater than 1"),
        ("volume", -0.1, "less than 0"),
        ("volume", "loud", "expected a float"),
        ("volume", math.nan, "finite"),
        ("playback_rate", 0, "less than 0.0625"),
        ("playback_rate", 17, "greater than 16"),
        ("current_time", -1, "less than 0"),
        ("current_time", math.inf, "finite"),
        ("muted", "yes", "boolean"),
        ("width", 0, "width"),
        ("width", "wide", "CSS length"),
        ("width", "1px;position:fixed", "CSS length"),
        ("duration", 3, "read-only"),
        ("state", "playing", "read-only"),
        ("transport", "auto", "read-only"),
        ("connection", "fine", "read-only"),
        ("quality", "best", "very_high"),
        ("path", "x", "read-only"),
    ],
)
def test_bad_values(player: Player, name: str, value: object, part: str) -> None:
    """What is out of range or not for Python to set is refused, and named."""
    with pytest.raises(TraitError, match=part) as refused:
        setattr(player, name, value)
    assert name in str(refused.value)


def test_bad_arguments(client: ipfs.Client, player: Player, video: str) -> None:
    """Options are checked as traits are, unknown ones get a hint, and seek takes times."""
    with pytest.raises(TraitError, match="volume"):
        client.play(video, volume=2)
    with pytest.raises(TypeError, match="did you mean 'autoplay'"):
        client.play(video, auto_play=True)
    with pytest.raises(TraitError, match=r"transport.*'http', 'webrtc', 'auto'"):
        client.play(video, transport="udp")


@pytest.mark.parametrize("when", [-1, math.nan, math.inf, -math.inf, "5", "soon", None, True, [5], 1j])
def test_seek_takes_times_only(player: Player, browser: Browser, when: object) -> None:
    """What is no time is refused by our own error, text included, and nothing goes to the browser."""
    with pytest.raises(BadRequestError, match=r"^seek\(.*expected a (finite )?time"):
        player.seek(when)
    assert browser.messages == []


def test_seek_takes_any_real_number(player: Player, browser: Browser) -> None:
    """Integers, fractions and numpy's numbers are times as well, and go out as plain seconds."""
    for when in (1, Fraction(3, 2), np.float32(0.5), np.int64(1), np.array([0.25])[0]):
        player.seek(when)
    assert [m["time"] for m in browser.messages] == [1.0, 1.5, 0.5, 1.0, 0.25]
    assert all(type(m["time"]) is float for m in browser.messages)


def test_unknown_attributes_are_refused(player: Player) -> None:
    """A mistyped trait is an error with the name that may have been meant, not an attribute that nobody reads."""
    with pytest.raises(AttributeError, match="did you mean 'current_time'"):
        player.curent_time = 5
    with pytest.raises(AttributeError, match=r"can be set is autoplay, .*, width"):
        player.xyzzy = 5
    assert not hasattr(player, "curent_time")
    player.current_time, player.layout.width, player.tooltip, player._own = 1, "50%", "a clip", "mine"
    player.add_traits(note=Unicode())
    player.note = "traits added to one player are its own"
    assert player.current_time == 1


def test_a_closed_player_says_so(client: ipfs.Client, video: str) -> None:
    """After close there is nobody to play: each command is refused with what makes another player."""
    player = client.play(video)
    player.close()
    for command in (player.play, player.pause, lambda: player.seek(1)):
        with pytest.raises(BadRequestError, match=rf"closed; client\.play\('{video}'\)"):
            command()
    with pytest.raises(BadRequestError, match="closed"):
        player.paused = False
    assert player.paused is True
    assert repr(player) == f"Player({video!r}, video/mp4, closed)"
    player.close()


def test_commands_wait_for_a_view(player: Player, browser: Browser) -> None:
    """What nobody has done yet reaches a view when it says that it is ready: the newest wishes, once."""
    player.play()
    player.pause()
    for second in range(100):
        player.seek(second)
    player.play()
    browser.player.comm.sent.clear()  # no view was there to hear
    browser.say(event="ready")
    first = browser.messages
    assert sorted((m["type"], m.get("time")) for m in first) == [("play", None), ("seek", 99.0)]
    for message in first:
        browser.say(event="ack", id=message["id"])
    browser.say(event="ready")
    assert browser.messages == first


def test_a_command_is_sent_again_until_a_view_has_done_it(player: Player, browser: Browser) -> None:
    """A page that went away took the command with it: the next one gets it. A late word on an older one counts not."""
    player.play()
    player.pause()
    play, pause = browser.messages
    browser.say(event="ack", id=play["id"])
    browser.say(event="ready")
    assert browser.messages[2:] == [pause]


def test_reports_do_not_come_back(player: Player, browser: Browser) -> None:
    """The browser's reports change the traits, are observed, and cause neither update nor command."""
    browser.say(event="ready")
    seen: list[tuple[str, Any]] = []
    player.observe(lambda change: seen.append((change.name, change.new)), ["state", "current_time", "paused"])
    browser.report(duration=2.0, paused=False, state="playing", current_time=0.25)
    browser.report(current_time=0.5)
    assert (player.duration, player.paused, player.state, player.current_time) == (2.0, False, "playing", 0.5)
    assert {("state", "playing"), ("paused", False), ("current_time", 0.5)} <= set(seen)
    assert browser.updates == []
    assert browser.messages == []


def test_python_sets_what_the_browser_shows(player: Player, browser: Browser) -> None:
    """Traits set in Python go out once; `paused` is a wish to play; a time past the end is the end."""
    browser.say(event="ready")
    browser.report(duration=2.0)
    player.volume, player.muted, player.playback_rate, player.current_time = 0.5, True, 1.5, 99
    assert player.current_time == 2.0
    assert browser.updates == [
        {"volume": 0.5},
        {"muted": True},
        {"playback_rate": 1.5},
        {"current_time": 2.0},
    ]
    player.paused = False
    assert [m["type"] for m in browser.messages] == ["play"]


def test_the_way_is_chosen_at_first(client: ipfs.Client, player: Player, video: str) -> None:
    """It plays over HTTP, or by the transport that is asked for; the browser tells how it comes, and the quality can be set."""
    assert (player.transport, player.quality, player.connection) == ("http", "auto", "")
    live = client.play(video, transport="webrtc")
    browser = Browser(live)
    assert live.transport == "webrtc"
    browser.report(connection="Live over WebRTC", state="playing")
    assert live.connection == "Live over WebRTC"
    live.quality = "low"
    assert browser.updates == [{"quality": "low"}]
    live.close()


def test_the_url_carries_a_token_and_no_trait_does(
    client: ipfs.Client, player: Player, browser: Browser
) -> None:
    """A view that asks gets a URL that works without any other credential; the widget's state never holds it."""
    browser.say(event="url", request="r1")
    (answer,) = browser.messages
    assert answer["request"] == "r1"
    token = answer["url"].partition("token=")[2]
    assert len(token) > 20
    assert client.server.url + answer["relative"] == answer["url"]
    state = json.dumps(player.get_state(), default=str)
    assert token not in state
    assert client.server.token is None or client.server.token not in state + json.dumps(answer)
    request = urllib.request.Request(answer["url"], headers={"Range": "bytes=4-7"})  # noqa: S310 - http, ours
    with urllib.request.urlopen(request) as response:  # noqa: S310
        assert (response.status, response.read()) == (206, b"ftyp")


def test_questions_that_fail_get_an_answer(tmp_path: Path, video: str) -> None:
    """A client that was closed cannot give a URL: the view is told, instead of waiting."""
    with ipfs.connect(repo=tmp_path) as client:
        player = client.play(client.add(samples.image(), name="picture.png"))
    browser = Browser(player)
    browser.say(event="url", request="r")
    assert "closed" in browser.messages[0]["error"]


def test_names_the_codecs(browser: Browser) -> None:
    """A view that could not decode learns what is inside."""
    browser.say(event="codecs", request="r")
    assert browser.messages[0]["text"] == "h264, aac"


def test_tells_the_height(browser: Browser) -> None:
    """A view learns how many lines the source has, above which it offers no quality."""
    browser.say(event="height", request="r")
    assert browser.messages[0]["height"] > 0


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"event": "url"},
        {"event": "url", "request": 1},
        {"event": "ack", "id": "x"},
        {"event": "?"},
        "text",
        None,
    ],
)
def test_nonsense_from_a_page_is_ignored(browser: Browser, message: Any) -> None:
    """Messages that are none of the protocol's change nothing and raise nothing."""
    browser._deliver({"method": "custom", "content": message})
    assert browser.messages == []


def test_carries_a_still_picture(player: Player) -> None:
    """The MIME bundle has the widget, the repr, and a small JPEG of the video."""
    assert player.poster == ""
    data, _ = player._repr_mimebundle_()
    assert data["text/plain"] == repr(player)
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == player.model_id
    picture = Image.open(io.BytesIO(base64.b64decode(data["image/jpeg"])))
    assert (picture.format, picture.size) == ("JPEG", (320, 180))
    assert len(data["image/jpeg"]) < 60_000
    assert player.frame_rate == 25
    assert player.poster.startswith("data:image/jpeg;base64,")


def test_pictures_get_a_small_copy(client: ipfs.Client) -> None:
    """An image's still is scaled down; transparency is no hindrance."""
    out = io.BytesIO()
    Image.new("RGBA", (2000, 1000), (200, 30, 30, 128)).save(out, "PNG")
    data, _ = client.play(client.add(out.getvalue(), name="red.png"))._repr_mimebundle_()
    assert Image.open(io.BytesIO(base64.b64decode(data["image/jpeg"]))).size == (MAX_SIDE, MAX_SIDE // 2)


@pytest.mark.parametrize("cut", [200, 3000])
def test_damaged_content_has_no_picture_and_no_error(client: ipfs.Client, cut: int) -> None:
    """A video that no decoder takes is shown without a still picture, and is tried once."""
    data = samples.video(width=64, height=64, duration=1)[:cut]
    player = client.play(client.add(data, name="cut.mp4"))
    bundle, _ = player._repr_mimebundle_()
    assert "image/jpeg" not in bundle
    assert bundle["text/plain"] == repr(player)


def test_a_slow_source_does_not_hold_up_the_display() -> None:
    """Past its patience the still picture is given up, the file is closed, and its thread ends."""
    closed = threading.Event()

    class Slow(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def seekable(self) -> bool:
            return True

        def seek(self, offset: int, whence: int = 0) -> int:
            return 1000 if whence == 2 else offset

        def readinto(self, buffer: Any) -> int:
            if not closed.wait(20):
                raise AssertionError("never closed")
            raise OSError("closed")

        def close(self) -> None:
            closed.set()

    start = time.monotonic()
    assert make_poster(Slow, patience=0.2) is None
    assert time.monotonic() - start < 15  # the source holds up for 20
    for thread in threading.enumerate():
        if thread.name == "ipfs-stream-nb-poster":
            thread.join(5)
            assert not thread.is_alive()


@pytest.mark.slow
def test_a_saved_notebook_keeps_the_picture_and_no_token(tmp_path: Path) -> None:
    """A notebook run without a Jupyter server and saved: text, a still picture, and widget state free of tokens."""
    cells = [
        "import ipfs_stream_nb as ipfs\nclient = ipfs.connect()",
        "video = client.add(ipfs.samples.video(width=320, height=180, duration=1), name='clip.mp4')",
        "player = client.play(video)\nplayer",
        "print(client.url(video).partition('token=')[2], client.server.token)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPFS_STREAM_NB_REPO", str(tmp_path / "repo"))
        patch.setenv("IPYTHONDIR", str(tmp_path))
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    data = notebook.cells[2].outputs[0].data
    assert data["text/plain"].startswith("Player('baf")
    assert Image.open(io.BytesIO(base64.b64decode(data["image/jpeg"]))).size == (320, 180)
    state = json.dumps(notebook.metadata["widgets"])
    tokens = notebook.cells[3].outputs[0].text.split()
    assert "video/mp4" in state
    assert not any(token in state for token in tokens if token != "None")
