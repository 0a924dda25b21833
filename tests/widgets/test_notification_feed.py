"""The kernel's side of the feed, against a real server; the browser's end of the wire is in the test's hands."""

from __future__ import annotations

import base64
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ipywidgets.comm
import pandas as pd
import pytest
from comm.base_comm import BaseComm
from hypothesis import given, settings
from hypothesis import strategies as st
from jupyter_client.manager import start_new_kernel
from traitlets import TraitError

import ipfs_stream_nb as ipfs
from ipfs_stream_nb.errors import BadRequestError
from ipfs_stream_nb.notifications.events import NotificationType
from ipfs_stream_nb.widgets import feed_events
from ipfs_stream_nb.widgets.feed_events import MAX_COLUMNS, Subscription, table
from ipfs_stream_nb.widgets.notification_feed import NotificationFeed


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ipfs.Client]:
    """A client of its own store and server."""
    with ipfs.connect(repo=tmp_path_factory.mktemp("repo")) as client:
        yield client


class Wire(BaseComm):
    """The wire to the browser: it keeps what goes out."""

    def publish_msg(self, msg_type: str, data: Any = None, **_rest: Any) -> None:
        self.__dict__.setdefault("sent", []).append(data or {})


@pytest.fixture(autouse=True)
def _wire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipywidgets.comm, "create_comm", Wire)


@pytest.fixture
def make(client: ipfs.Client) -> Iterator[Callable[..., NotificationFeed]]:
    """Make feeds, which end with the test."""
    made: list[NotificationFeed] = []

    def make(*args: Any, **kwargs: Any) -> NotificationFeed:
        made.append(client.notification_feed(*args, **kwargs))
        return made[-1]

    yield make
    for feed in made:
        feed.close()


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until something is so in another thread."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def event(number: int | None = 1, kind: str = "custom_event", **data: Any) -> dict[str, Any]:
    """An event as it comes."""
    facts = {"type": "notification", "notification_type": kind, "data": data, "timestamp": 1_700_000_000.5}
    return facts | ({"id": number} if number else {})


def test_a_new_feed(make: Callable[..., NotificationFeed]) -> None:
    """It knows where it begins, has a stable text, something to show where no widget runs, and no token in its state."""
    feed = make()
    assert repr(feed) == "NotificationFeed(all events)"
    assert repr(make("pin_added", {"cid": "x"})) == "NotificationFeed(pin_added, where cid fit)"
    epoch, _, number = feed.since.rpartition("-")
    assert epoch
    assert number.isdigit()
    assert (feed.types, feed.filters, feed.height, feed.limit) == (["all_events"], {}, 320, 100)
    data, _ = feed._repr_mimebundle_()
    assert data["text/html"].startswith("<p>A live list of notifications.")
    assert data["text/plain"] == repr(feed)
    assert "eyJ" not in json.dumps({k: v for k, v in feed.get_state().items() if k[0] != "_"})


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"types": "content_aded"}, BadRequestError, "did you mean 'content_added'"),
        ({"types": ["custom_event", 7]}, BadRequestError, "'7' is no notification type; these are"),
        ({"types": []}, BadRequestError, "'all_events' stands for all"),
        ({"types": 5}, BadRequestError, "not an int"),
        ({"filters": {"a": object()}}, BadRequestError, "must be JSON"),
        ({"filters": "cid"}, BadRequestError, "filters are an object"),
        ({"filters": {"size": {"gt": "x", "lt": []}}}, BadRequestError, "lt"),
        ({"height": 5}, TraitError, "^height=5: expected a whole number, 60 to 4000$"),
        ({"height": "big"}, BadRequestError, "^height='big': expected a whole number"),
        ({"limit": 0}, TraitError, "^limit=0: "),
        ({"limit": True}, TraitError, "^limit=True: "),
        ({"limit": 10_001}, BadRequestError, "1 to 10000"),
        ({"tipes": "custom_event"}, TypeError, "did you mean 'types'"),
    ],
)
def test_mistakes(client: ipfs.Client, arguments: Any, error: type[Exception], text: str) -> None:
    """What cannot be shown is refused when the feed is made, with what would be right."""
    with pytest.raises(error, match=text):
        client.notification_feed(**arguments)


def test_a_mistyped_trait(make: Callable[..., NotificationFeed]) -> None:
    """Traits that do not exist or are fixed are not set in silence."""
    feed = make()
    with pytest.raises(AttributeError, match="did you mean 'height'"):
        feed.heigth = 200
    with pytest.raises(TraitError, match="read-only"):
        feed.types = ["pin_added"]
    with pytest.raises(BadRequestError, match="expected a whole number") as raised:
        feed.height = 7.5
    assert len(raised.value._render_traceback_()) <= 3  # the text, and lines of the test's own
    feed.height = 200
    feed.limit = 5


def test_events_are_a_table(client: ipfs.Client, make: Callable[..., NotificationFeed]) -> None:
    """What came since the feed was made, also before somebody looked, with the keys of its data as columns."""
    client.emit({"event": "before"})
    feed = make(["custom_event", NotificationType.SYSTEM_INFO])
    assert feed.events.empty
    first = client.emit({"event": "one", "loss": 0.5, "id": "mine"})
    client.emit({"event": "two", "step": 3, "nested": {"a": [1]}}, source="trainer")
    client.emit({"cid": "x"}, "content_added")
    frame = feed.events
    assert list(frame["event"]) == ["one", "two"]
    assert list(frame["id"]) == [first, first + 1]
    assert frame["id"].dtype == "Int64"
    assert str(frame["time"].dtype).endswith("UTC]")
    assert abs(frame["time"].iloc[0].timestamp() - time.time()) < 60
    assert list(frame["notification_type"]) == ["custom_event"] * 2
    assert frame["source"].iloc[1] == "trainer"
    assert frame["data.id"].iloc[0] == "mine"
    assert frame["step"].iloc[1] == 3
    assert frame["step"].dtype == "Int64"
    assert frame["nested"].iloc[1] == {"a": [1]}
    client.emit({"event": "three"})
    assert list(feed.events["event"]) == ["one", "two", "three"]
    assert "<td>custom_event</td>" in feed._repr_mimebundle_()[0]["text/html"]


def test_filters_hold_in_the_kernel_too(client: ipfs.Client, make: Callable[..., NotificationFeed]) -> None:
    """A feed with filters has what fits them, and a look at it waits for nothing that does not."""
    feed = make("custom_event", {"loss": {"lt": 0.5}})
    for loss in (0.9, 0.4, 0.7, 0.1, 0.6):
        client.emit({"loss": loss})
    begun = time.monotonic()
    assert list(feed.events["loss"]) == [0.4, 0.1]
    assert time.monotonic() - begun < feed_events.CATCH_UP


def test_what_is_not_kept(client: ipfs.Client, make: Callable[..., NotificationFeed]) -> None:
    """Metrics and progress are in the table where their type was asked for by name; callbacks have them in any case."""
    everything, metrics = make(), make(["system_metrics", "custom_event"])
    assert everything.events.empty
    heard: list[dict[str, Any]] = []
    everything.on("system_metrics", heard.append)
    wait_for(lambda: len(metrics.events) >= 1)
    wait_for(lambda: heard)
    client.emit({"n": 1})
    assert list(everything.events["notification_type"]) == ["custom_event"]
    assert set(metrics.events["notification_type"]) == {"system_metrics", "custom_event"}
    assert metrics.events["id"].isna().iloc[0]


def test_a_feed_that_begins_earlier(client: ipfs.Client, make: Callable[..., NotificationFeed]) -> None:
    """`since` is an event's id, or a cursor, also of a log that is gone; the table has what came after it at once."""

    def begin(since: Any, filters: Any = None) -> NotificationFeed:
        return NotificationFeed(client, client._run(Subscription.begin, "custom_event", filters, since))

    feed = make("custom_event")
    first, *_ = [client.emit({"n": n}) for n in range(4)]
    epoch = feed.since.rpartition("-")[0]
    for since in (first, f"{epoch}-{first}"):
        later = begin(since)
        assert later.since == f"{epoch}-{first}"
        assert list(later.events["n"]) == [1, 2, 3]
        later.close()
    for filters, fitting in ((None, [0, 1, 2, 3]), ({"n": "none such"}, [])):
        other = begin("another-3", filters)
        begun = time.monotonic()
        assert list(other.events.get("n", []))[-4:] == fitting
        assert time.monotonic() - begun < feed_events.CATCH_UP
        other.close()
    for bad in ("yesterday", -1, 1.5, True):
        with pytest.raises(BadRequestError, match="since="):
            begin(bad)


def test_callbacks(client: ipfs.Client, make: Callable[..., NotificationFeed]) -> None:
    """Each event of its types comes once and in order, from when the feed was made, in a thread that may use the client;
    the caller's own thread is not needed for it."""
    feed = make()
    client.emit({"n": 0})
    heard: list[Any] = []
    done = threading.Event()

    @feed.on(["custom_event", "pin_added"])
    def note(one: dict[str, Any]) -> None:
        assert client.health()["status"]
        heard.append((one["data"]["n"], one["id"], threading.current_thread().name))
        if one["data"]["n"] == 9:
            done.set()

    for n in range(1, 10):
        client.emit({"n": n})
        client.emit({"n": -n}, "system_info")
    assert done.wait(10)  # this thread stands still, as in a cell that runs
    assert [n for n, _, _ in heard] == list(range(10))
    assert [number for _, number, _ in heard] == sorted({number for _, number, _ in heard})
    assert {name for _, _, name in heard} == {"notification feed"}
    later: list[int] = []
    feed.on("all_events", lambda one: later.append(one["data"].get("n")))
    wait_for(lambda: len(later) >= 19)


def test_a_callback_that_fails(
    client: ipfs.Client, make: Callable[..., NotificationFeed], caplog: pytest.LogCaptureFixture
) -> None:
    """It is shown in the feed and logged, once with its traceback, is called again, and holds up no other."""
    feed = make("custom_event")
    heard: list[int] = []

    def fails(one: dict[str, Any]) -> None:
        raise ValueError(f"no {one['data']['n']}")

    feed.on("custom_event", fails)
    feed.on("custom_event", lambda one: heard.append(one["data"]["n"]))
    for n in range(12):
        client.emit({"n": n})
    wait_for(lambda: heard == list(range(12)))
    wait_for(lambda: feed.note == "on: fails raised ValueError for custom_event: no 11 (… and 11 before)")
    shown = [m["state"]["note"] for m in feed.comm.sent if "note" in m.get("state", {})]
    shown.remove("")  # when it was made
    assert shown[0] == "on: fails raised ValueError for custom_event: no 0"
    loud = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert loud == [shown[0], "on: fails raised ValueError for custom_event: no 9 (… and 9 before)"]
    assert caplog.text.count("Traceback") == 1
    assert (
        "feed_events.py" not in caplog.text[caplog.text.index("Traceback") :].partition("ValueError: no 0")[0]
    )

    def fails_at_length(_event: Any) -> None:
        raise RuntimeError("x" * 5000)

    feed.on("custom_event", fails_at_length)
    wait_for(lambda: "x…" in feed.note)
    assert len(feed.note) < 400


def test_a_callback_that_is_given_again(client: ipfs.Client, make: Callable[..., NotificationFeed]) -> None:
    """A cell that is run again does not multiply its callbacks; those that only look alike are all kept."""
    feed = make(["custom_event", "pin_added"])
    space: dict[str, Any] = {"feed": feed, "heard": []}
    cell = (
        "@feed.on('custom_event')\n"
        "def note(event): heard.append(('note', event['data']['n']))\n"
        "@feed.on(['pin_added', 'custom_event'])\n"
        "def note(event): heard.append(('other types', event['data']['n']))\n"
        "feed.on('custom_event', lambda event: heard.append(('lambda', event['data']['n'])))\n"
        "for name in 'ab':\n"
        "    feed.on('custom_event', lambda event, name=name: heard.append((name, event['data']['n'])))\n"
    )
    once = [("note", 0), ("other types", 0), ("lambda", 0), ("a", 0), ("b", 0)]
    exec(cell, space)  # noqa: S102  # as a notebook does
    client.emit({"n": 0})
    wait_for(lambda: len(space["heard"]) == len(once))
    assert space["heard"] == once
    feed.on("custom_event", space["heard"].append)
    others: list[Any] = []
    feed.on("custom_event", others.append)
    wait_for(lambda: others)
    space["heard"] = heard = []
    exec(cell.replace("'note', ", "'changed', "), space)  # noqa: S102
    client.emit({"n": 1})
    wait_for(
        lambda: len(heard) == 12
    )  # each of the five again from the beginning, and two that could not be told
    for what, times in (("changed", 1), ("other types", 1), ("lambda", 1), ("a", 2), ("b", 2)):
        assert heard.count((what, 1)) == times
    assert not [one for one in heard if one[0] == "note"]
    assert len(others) == 2


def test_cells_that_are_run_again() -> None:
    """In a real kernel: the feed that a cell made before is closed, and what callbacks print and raise is shown below the
    cell that gave them, never below the one that runs."""
    # asyncio's debug mode tells of slow steps on stderr, below no cell
    manager, kernel = start_new_kernel(env=os.environ | {"PYTHONASYNCIODEBUG": ""})
    outputs: dict[str, str] = {}
    cells: dict[str, str] = {}

    def take() -> dict[str, Any]:
        message = kernel.get_iopub_msg(timeout=30)
        cell = cells.get(message["parent_header"].get("msg_id"), "")
        if message["msg_type"] == "stream":
            outputs[cell] = outputs.get(cell, "") + message["content"]["text"]
        assert message["msg_type"] != "error", message["content"]
        return message

    def run(cell: str, code: str) -> None:
        content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False}
        request = kernel.session.msg("execute_request", content, metadata={"cellId": cell})
        cells[request["header"]["msg_id"]] = cell
        kernel.shell_channel.send(request)
        while (message := take())["content"].get("execution_state") != "idle" or message["parent_header"][
            "msg_id"
        ] != request["header"]["msg_id"]:
            pass

    try:
        run(
            "begin", "import tempfile, ipfs_stream_nb as ipfs\nclient = ipfs.connect(repo=tempfile.mkdtemp())"
        )
        make = (
            "feed, second = client.notification_feed(), client.notification_feed()\n"
            "@feed.on('custom_event')\ndef tell(event): print('told', event['data'])\nfeed"
        )
        run("make", make)
        run("keep", "old, other = feed, client.notification_feed()")
        run("make", make)
        run("fail", "@feed.on('custom_event')\ndef fails(event): raise KeyError('no such key')")
        run("emit", "for n in range(5): client.emit({'n': n})\nprint(old, feed, second, other)")
        while "4}" not in outputs.get("make", "") or "KeyError: 'no such key'" not in outputs.get("fail", ""):
            take()
        run("end", "print(feed.note)\nclient.close()")
    finally:
        kernel.stop_channels()
        manager.shutdown_kernel(now=True)
    alive = "NotificationFeed(all events)"
    assert outputs["emit"] == f"NotificationFeed(all events, closed) {alive} {alive} {alive}\n"
    assert outputs["make"] == "".join(f"told {{'n': {n}}}\n" for n in range(5))
    assert outputs["fail"].count("Traceback") == 1
    assert set(outputs) <= {"make", "fail", "emit", "end"}


def test_off(client: ipfs.Client, make: Callable[..., NotificationFeed]) -> None:
    """A callback that is taken away is called no more, not even for what waits."""
    feed = make("custom_event")
    heard: list[int] = []
    begun, go = threading.Event(), threading.Event()

    def slow(one: dict[str, Any]) -> None:
        heard.append(one["data"]["n"])
        begun.set()
        go.wait(10)

    feed.on("custom_event", slow)
    for n in range(5):
        client.emit({"n": n})
    assert begun.wait(10)
    assert len(feed.events) == 5  # a slow callback holds up nobody else
    feed.off(slow)
    go.set()
    client.emit({"n": 5})
    assert len(feed.events) == 6
    assert heard == [0]
    with pytest.raises(BadRequestError, match="not there"):
        feed.off(slow)


def test_bad_callbacks(make: Callable[..., NotificationFeed]) -> None:
    """Types that the feed has not, and what cannot be called or would be awaited, are refused."""
    feed = make(["pin_added", "pin_removed"])

    async def later(_event: Any) -> None: ...

    with pytest.raises(BadRequestError, match="has no custom_event events"):
        feed.on("custom_event", print)
    with pytest.raises(BadRequestError, match="did you mean 'pin_added'"):
        feed.on("pin_aded")
    with pytest.raises(BadRequestError, match="not a str"):
        feed.on("pin_added", "print")
    with pytest.raises(BadRequestError, match="awaits none"):
        feed.on("pin_added", later)


def test_callbacks_that_are_too_slow(
    client: ipfs.Client,
    make: Callable[..., NotificationFeed],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What waits for them is bounded: the oldest are left out, and that is logged."""
    monkeypatch.setattr(feed_events, "KEPT", 3)
    feed = make("custom_event")
    heard: list[int] = []
    begun, go = threading.Event(), threading.Event()

    def slow(one: dict[str, Any]) -> None:
        begun.set()
        go.wait(10)
        heard.append(one["data"]["n"])

    feed.on("custom_event", slow)
    client.emit({"n": 0})
    assert begun.wait(10)
    for n in range(1, 8):
        client.emit({"n": n})
    assert list(feed.events["n"]) == [5, 6, 7]
    go.set()
    wait_for(lambda: heard[-1:] == [7])
    assert heard == [0, 5, 6, 7]
    assert caplog.text.count("the oldest were left out") == 1


def test_closing(client: ipfs.Client, make: Callable[..., NotificationFeed]) -> None:
    """A closed feed calls nobody, has its table still, and leaves no connection and no thread behind."""
    feed = make("custom_event")
    heard: list[Any] = []
    feed.on("custom_event", heard.append)
    client.emit({"n": 1})
    wait_for(lambda: len(heard) == 1)
    subscribers = client.health()["active"]["subscribers"]
    feed.close()
    feed.close()
    assert repr(feed) == "NotificationFeed(custom_event, closed)"
    client.emit({"n": 2})
    assert len(feed.events) == 1
    wait_for(lambda: client.health()["active"]["subscribers"] == subscribers - 1)
    wait_for(lambda: "notification feed" not in [thread.name for thread in threading.enumerate()])
    assert len(heard) == 1
    with pytest.raises(BadRequestError, match="closed"):
        feed.on("custom_event", print)


def test_a_client_that_is_closed(tmp_path: Any) -> None:
    """A feed outlives its client without an error: what is asked of it then says so."""
    client = ipfs.connect(repo=tmp_path)
    feed = client.notification_feed("custom_event")
    client.emit({"n": 1})
    assert len(feed.events) == 1
    client.close()
    wait_for(lambda: "The kernel hears no events any more" in feed.note)
    with pytest.raises(BadRequestError, match="closed"):
        feed.events  # noqa: B018
    feed.close()
    assert len(feed.events) == 1


def test_the_page_is_given_a_token(client: ipfs.Client, make: Callable[..., NotificationFeed]) -> None:
    """A token to subscribe to the feed's types goes to the page that asks, and into no trait."""
    feed = make(["pin_added", "custom_event"])
    feed.comm.sent.clear()
    content = {"event": "token", "request": "r1"}
    for ask in (content, {"event": "token"}, {"event": "other", "request": "r2"}, {}):
        feed.comm.handle_msg({"content": {"data": {"method": "custom", "content": ask}}, "buffers": []})
    (answer,) = [m["content"] for m in feed.comm.sent]
    assert answer["request"] == "r1"
    assert answer["url"] == client.server.url
    payload = answer["token"].split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    assert claims["act"] == "subscribe"
    assert sorted(next(v for v in claims.values() if isinstance(v, list))) == ["custom_event", "pin_added"]
    assert answer["token"] not in str(feed.get_state())


def test_a_cleared_feed_begins_anew(make: Callable[..., NotificationFeed]) -> None:
    """The page moves the beginning when it is cleared; what is no cursor is refused."""
    feed = make()
    epoch = feed.since.rpartition("-")[0]
    feed.set_state({"since": f"{epoch}-12"})
    assert feed.since == f"{epoch}-12"
    for bad in ("", "12", "a b-3", f"{epoch}--1", "x" * 200 + "-1"):
        with pytest.raises(TraitError, match="expected an epoch and an id"):
            feed.since = bad


def test_the_fallback_is_escaped(client: ipfs.Client, make: Callable[..., NotificationFeed]) -> None:
    """The table for where no widget runs holds other people's texts, as text."""
    feed = make("custom_event")
    client.emit({"message": "<script>alert(1)</script>", "long": "x" * 5000})
    assert len(feed.events) == 1
    html = feed._repr_mimebundle_()[0]["text/html"]
    assert "&lt;script&gt;" in html
    assert "<script>" not in html
    assert len(html) < 3000


async def test_the_async_client_has_it_too(tmp_path: Any) -> None:
    """The same widget from connect_async."""
    async with ipfs.connect_async(repo=tmp_path) as client:
        feed = await client.notification_feed("custom_event", limit=7)
        assert (feed.limit, repr(feed)) == (7, "NotificationFeed(custom_event)")
        feed.close()


def test_a_table_has_a_bounded_width() -> None:
    """Keys beyond the most columns are in one column together."""
    events = [event(n, **{f"key {n} {k}": k for k in range(100)}, more="own") for n in range(1, 5)]
    frame = table(events)
    assert len(frame.columns) == 4 + MAX_COLUMNS + 1
    assert frame["data.more"].iloc[0] == "own"
    assert len(frame["more"].iloc[3]) > 90


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.dictionaries(st.text(max_size=4) | st.sampled_from(["id", "data.id", "more"]), JSON, max_size=4),
        max_size=5,
    )
)
def test_any_data_makes_a_table(datas: list[dict[str, Any]]) -> None:
    """Whatever JSON events hold, each is a row with its id, and the frame can be shown and filtered."""
    frame = table([event(n or None) | {"data": data} for n, data in enumerate(datas)])
    assert len(frame) == len(datas)
    assert [None if pd.isna(number) else number for number in frame["id"]] == [
        n or None for n in range(len(datas))
    ]
    assert isinstance(frame.to_html(), str)
    texts = [value for data in datas for value in data.values() if isinstance(value, str)]
    cells = [cell for column in frame.columns[4:] for cell in frame[column] if isinstance(cell, str)]
    assert sorted(cells) == sorted(texts)
