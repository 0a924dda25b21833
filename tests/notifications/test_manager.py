"""The guide's manager by itself: its attributes, its shapes, what it emits, and what it does when its log fails."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from ipfs_stream_nb.errors import BadRequestError, NotFoundError, TooLargeError
from ipfs_stream_nb.notifications import emission, fanout
from ipfs_stream_nb.notifications.authorized import AuthorizedNotificationManager
from ipfs_stream_nb.notifications.events import EVENT_TYPES, Event, NotificationType, Record
from ipfs_stream_nb.notifications.log import SQLiteEngine
from ipfs_stream_nb.notifications.manager import NotificationManager
from ipfs_stream_nb.notifications.since import Cursor, parse_since
from queue_outlet import QueueOutlet

CUSTOM = NotificationType.CUSTOM_EVENT


@pytest.fixture
async def manager(tmp_path):
    """An open manager without rights."""
    found = NotificationManager(SQLiteEngine(tmp_path), max_history_size=10)
    await found.open()
    yield found
    await found.close()


def test_the_types_of_the_guide():
    """There are twenty, whose values are their names in lower case, and which print as their values."""
    assert len(NotificationType) == 20
    for kind in NotificationType:
        assert kind.value == kind.name.lower() == f"{kind}" == str(kind)
    assert len(EVENT_TYPES) == 19


@pytest.mark.parametrize(
    ("kind", "data", "error"),
    [
        ("all_events", {}, "for subscribing"),
        ("nonsense", {}, "no notification type"),
        (None, {}, "no notification type"),
        ("custom_event", [], "a JSON object, not a list"),
        ("custom_event", {"x": float("nan")}, "finite"),
        ("custom_event", {"x": {1}}, "must be JSON"),
        ("custom_event", {"x": 10**5000}, "must be JSON"),
    ],
)
async def test_what_is_no_event(manager, kind, data, error):
    """It is refused with the reason; emitted, it is counted as lost, and nothing fails."""
    with pytest.raises(BadRequestError, match=error):
        await manager.notify(kind, data)
    manager.emit(kind, data)
    await manager.emit_event(kind, data)
    assert manager.metrics["notifications_lost"] == 2
    assert await manager.get_history() == []


async def test_an_event_that_is_too_large(manager):
    """Over 64 KiB of JSON are refused."""
    with pytest.raises(TooLargeError, match="at most 65536"):
        await manager.notify(CUSTOM, {"x": "y" * 70_000})
    loop: list = []
    loop.append(loop)
    with pytest.raises(BadRequestError):
        await manager.notify(CUSTOM, {"x": loop})


async def test_the_guides_methods(manager):
    """connect, subscribe, notify, history, information, metrics, unsubscribe, disconnect, in the guide's shapes."""
    link = QueueOutlet()
    name = await manager.connect(link, "user_7")
    assert name == "user_7"
    with pytest.raises(BadRequestError, match="user_7"):
        await manager.connect(QueueOutlet(), "user_7")
    result = await manager.subscribe(name, ["content_added", "pin_added"], {"cid": "x"})
    assert result == {
        "success": True,
        "subscribed_types": ["content_added", "pin_added"],
        "invalid_types": [],
        "unauthorized_types": [],
        "filters": {"cid": "x"},
        "epoch": manager.epoch,
        "since": 0,
    }
    assert manager.subscriptions == {"content_added": {name}, "pin_added": {name}}
    assert list(manager.active_connections) == [name]
    assert await manager.notify("content_added", {"cid": "x"}, "test", owner="anybody") == 1
    assert (await link.events(1))[0]["source"] == "test"
    info = manager.get_connection_info(name)
    assert info["subscriptions"] == ["content_added", "pin_added"]
    assert info["filters"]["pin_added"] == {"cid": "x"}
    assert (info["notifications_sent"], info["last_id"]) == (1, 1)
    assert manager.get_metrics() == manager.metrics
    assert manager.metrics == {
        "connections_total": 1,
        "active_connections": 1,
        "notifications_sent": 1,
        "subscriptions_by_type": {"content_added": 1, "pin_added": 1},
        "notifications_lost": 0,
        "lagged_total": 0,
        "epoch": manager.epoch,
        "last_id": 1,
    }
    assert await manager.unsubscribe(name, ["pin_added", "nonsense"]) == {
        "success": True,
        "unsubscribed_types": ["pin_added"],
        "invalid_types": ["nonsense"],
    }
    await manager.disconnect(name)
    await manager.disconnect(name)
    assert manager.metrics["active_connections"] == 0
    assert manager.metrics["notifications_sent"] == 1
    for gone in (manager.subscribe(name, ["pin_added"]), manager.unsubscribe(name, ["pin_added"])):
        with pytest.raises(NotFoundError, match="user_7"):
            await gone


async def test_the_history_in_memory(manager):
    """`event_history` is bounded by max_history_size; the log has all of it, in the same order."""
    await asyncio.gather(*(manager.notify(CUSTOM, {"n": n}) for n in range(30)))
    history = await manager.get_history(30)
    assert [event["data"]["n"] for event in history] == list(range(30))
    link = QueueOutlet()
    await manager.subscribe(await manager.connect(link), ["custom_event"], since=0)
    await link.events(30)
    assert [record.id for record in manager.event_history] == list(range(21, 31))
    assert [event["id"] for event in await manager.get_history(3, "custom_event")] == [28, 29, 30]
    assert await manager.get_history(3, "pin_added") == []


async def test_emitting_waits_for_nothing(manager, monkeypatch, caplog):
    """What is emitted is committed in order, and what would be too much is counted and logged once."""
    monkeypatch.setattr(emission, "MAX_WAITING", 5)
    with caplog.at_level(logging.WARNING):
        for n in range(8):
            manager.emit(CUSTOM, {"n": n})
    link = QueueOutlet()
    await manager.subscribe(await manager.connect(link), ["custom_event"], since=0)
    assert [event["data"]["n"] for event in await link.events(5)] == list(range(5))
    assert manager.metrics["notifications_lost"] == 3
    assert len(caplog.records) == 1


async def test_what_was_emitted_is_committed_at_the_end(tmp_path):
    """close() waits for what was emitted, and ends the connections."""
    manager = NotificationManager(SQLiteEngine(tmp_path))
    await manager.open()
    link = QueueOutlet()
    await manager.connect(link)
    for n in range(50):
        manager.emit(CUSTOM, {"n": n})
    await manager.close()
    await manager.close()
    assert link.closed[0] == 1001
    await manager.open()
    assert len(await manager.get_history(100)) == 50
    await manager.close()


async def test_a_log_that_begins_anew(tmp_path):
    """A log that is damaged under a running manager is set aside: subscribers are told by `reset`, get what comes then,
    and there is a system_error that says so."""
    manager = AuthorizedNotificationManager(SQLiteEngine(tmp_path))
    await manager.open()
    link = QueueOutlet()
    name = await manager.connect(link, user={"id": "ada", "role": "admin"})
    await manager.subscribe(name, ["all_events"])
    await asyncio.gather(*(manager.notify(CUSTOM, {"n": n, "x": "y" * 5000}) for n in range(50)))
    await link.events(50)
    epoch = manager.epoch
    for path in tmp_path.glob("notifications.sqlite*"):
        if path.suffix != ".lock":
            path.write_bytes(b"\xff" * path.stat().st_size)
    await manager.notify(CUSTOM, {"n": 50})
    reset = await link.until("reset")
    assert reset == {"type": "reset", "epoch": manager.epoch, "first": 1}
    assert manager.epoch != epoch
    events = await link.events(2)
    assert [event["id"] for event in events] == [1, 2]
    assert [event["prev"] for event in events] == [0, 1]
    kinds = {event["notification_type"]: event["data"] for event in events}
    assert kinds["custom_event"]["n"] == 50
    assert kinds["system_error"]["operation"] == "notifications"
    await manager.close()


async def test_without_a_log_of_its_own():
    """As in the guide a manager needs nothing: its log lasts until it is closed, and leaves nothing behind."""
    manager = NotificationManager()
    await manager.open()
    folder = manager._engine._directory
    assert await manager.notify(CUSTOM, {}) == 1
    await manager.close()
    assert not await asyncio.to_thread(folder.exists)


class PlainSocket:
    """What a web framework gives, with the one way of sending that it has."""

    def __init__(self, way):
        self.sent: asyncio.Queue = asyncio.Queue()
        self.go = asyncio.Event()
        self.go.set()
        self.closed = None
        self.broken = False

        async def send(message):
            await self.go.wait()
            if self.broken:
                raise RuntimeError("the framework says that it is gone")
            self.sent.put_nowait(json.loads(message) if way == "send_text" else message)

        setattr(self, way, send)

    async def close(self, code):
        self.closed = code


@pytest.mark.parametrize("way", ["send_text", "send_json"])
async def test_a_socket_of_any_framework(manager, way):
    """What has send_text or send_json is sent to, at its own pace, and is forgotten once sending fails."""
    socket, other = PlainSocket(way), PlainSocket(way)
    name = await manager.connect(socket)
    await manager.subscribe(name, ["custom_event"])
    await manager.connect(other)
    assert [(await socket.sent.get())["type"] for _ in range(2)] == ["welcome", "subscription_confirmed"]
    assert (await other.sent.get())["type"] == "welcome"
    socket.go.clear()
    await asyncio.gather(*(manager.notify(CUSTOM, {"n": n}) for n in range(50)))
    await manager.notify_all(CUSTOM, {"n": 50})
    assert (await other.sent.get())["data"] == {"n": 50}
    socket.go.set()
    assert [(await socket.sent.get())["data"]["n"] for _ in range(51)] == list(range(51))
    socket.broken = True
    while name in manager.active_connections:
        await manager.notify(CUSTOM, {})
    await manager.close()
    assert (socket.closed, other.closed) == (None, 1001)


async def test_what_is_no_socket(manager):
    """It is refused with what would be right, and nothing is registered; so is a manager that is not open."""
    with pytest.raises(BadRequestError, match="send_text or send_json"):
        await manager.connect(object(), "x")
    assert manager.active_connections == {}
    with pytest.raises(BadRequestError, match=r"await manager.open\(\)"):
        await NotificationManager().connect(PlainSocket("send_json"))


def test_records():
    """A record is encoded with its own id and the subscriber's `prev`; without an id it has neither."""
    event = Event(CUSTOM, {"a": "ü"}, "me", timestamp=1.5)
    text = b'{"type":"notification","notification_type":"custom_event","data":{"a":"\\u00fc"},"timestamp":1.5,"source":"me"'
    assert Record.of(event, 7).encode(5) == text + b',"id":7,"prev":5}'
    assert Record.of(event).encode(5) == text + b"}"
    assert Record.of(event, 7).message()["id"] == 7


@pytest.mark.parametrize(
    ("since", "epoch", "cursor"),
    [
        (None, None, None),
        (None, "e", None),
        (0, None, Cursor(0)),
        (5, "e", Cursor(5, "e")),
        ("5", None, Cursor(5)),
        ("5", "e", Cursor(5, "e")),
        ("e.1_x-5", "other", Cursor(5, "e.1_x")),
    ],
)
def test_cursors(since, epoch, cursor):
    """An id, an id and an epoch, or both in one text."""
    assert parse_since(since, epoch) == cursor


@pytest.mark.parametrize(
    "since", [-1, 1.0, True, [], {}, "", "x", "-5", "e-", "e-x", "e--5", "٣", 1 << 80, "9" * 30, "e\n-1"]
)
def test_bad_cursors(since):
    """Anything else is refused."""
    with pytest.raises(BadRequestError, match="since is the id"):
        parse_since(since)


async def test_what_cannot_be_read_harms_nobody(manager, tmp_path):
    """A record that somebody else wrote and that is no JSON is not shown, and what comes behind it is."""
    link = QueueOutlet()
    name = await manager.connect(link)
    await manager.subscribe(name, ["custom_event"], {"n": 2})
    deep = b'{"type":"notification","data":' + b"[" * 100_000
    for body in (b"\x1f no JSON", deep):
        event = Event(CUSTOM, {})
        object.__setattr__(event, "body", body)
        await manager._engine.publish(event)
    await manager.notify(CUSTOM, {"n": 2})
    assert (await link.events(1))[0]["id"] == 3
    assert [event["id"] for event in await manager.get_history()] == [3]


async def test_an_event_that_is_too_deep(manager):
    """Data of over 64 lists and objects in one another is refused."""
    data: dict = {}
    inner = data
    for _ in range(63):
        inner["x"] = inner = {}
    await manager.notify(CUSTOM, data)
    inner["x"] = []
    with pytest.raises(BadRequestError, match="more than 64"):
        await manager.notify(CUSTOM, data)


async def test_the_feed_outlives_its_faults(manager, monkeypatch, caplog):
    """Whatever goes wrong with one event is logged, and the next ones are sent."""
    monkeypatch.setattr(fanout, "RETRY_SECONDS", 0.01)
    link = QueueOutlet()
    await manager.subscribe(await manager.connect(link), ["custom_event"])
    faults = [RuntimeError("a bug"), KeyError("another")]

    def fail(_record):
        if faults:
            raise faults.pop()

    manager.listeners.append(fail)
    for n in range(3):
        await manager.notify(CUSTOM, {"n": n})
    assert [event["data"]["n"] for event in await link.events(3)] == [0, 1, 2]
    assert faults == []
    assert "could not be sent on" in caplog.text
