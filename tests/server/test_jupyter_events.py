"""Jupyter's own event system: who hears of what, and what it costs."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from datetime import datetime

import pytest
from jupyter_events import EventLogger
from websockets.asyncio.client import connect

from ipfs_stream_nb.notifications.events import EVENT_TYPES, Event, Record
from ipfs_stream_nb_server.jupyter_events import BURST_SECONDS, SCHEMA, SCHEMA_ID, SHARE, JupyterEventsBridge

EPOCH = "test.1"
UNREADABLE = Record(1, "content_added", None, "notification", 1.0, b"not to be parsed")


def record(notification_type="content_added", data=None, id=1, **options):  # noqa: A002  # the protocol's word
    """An event as the log keeps it."""
    return Record.of(Event(notification_type, {"cid": "bafy"} if data is None else data, **options), id)


class Heard:
    """A listener to Jupyter's events."""

    def __init__(self, events):
        self.data = []
        events.add_listener(schema_id=SCHEMA_ID, listener=self)

    async def __call__(self, logger, schema_id, data):
        self.data.append(data)


def no_time():
    """A clock by which no event takes any of the loop's time, as busy as the machine may be."""
    return 0.0


@pytest.fixture
def events():
    """An event logger of Jupyter's, as a server has one."""
    return EventLogger()


def dial(server):
    """A subscriber to a server's events."""
    return connect(
        f"ws://127.0.0.1:{server.port}/a%40b/api/events/subscribe",
        additional_headers={"Authorization": f"token {server.token}"},
        proxy=None,
    )


async def hear(link):
    """The next event of this test's, as the subscriber gets it."""
    async with asyncio.timeout(10):
        while True:
            found = json.loads(await link.recv())
            if found["schema_id"] == SCHEMA_ID and found["epoch"] == EPOCH:
                return found


async def test_a_subscriber_of_a_real_server(server):
    """A WebSocket on /api/events/subscribe gets the event, with its id and epoch."""
    bridge = JupyterEventsBridge(server.app.event_logger)
    async with dial(server) as link:
        await (await link.ping())  # behind the subscription
        sent = record(data={"cid": "bafy", "size": 3, "tags": ["a", None]}, id=7, source="me")
        bridge.forward(record("custom_event", owner="ann"), EPOCH)
        bridge.forward(sent, EPOCH)
        assert await hear(link) == {
            "schema_id": SCHEMA_ID,
            "notification_type": "content_added",
            "data": {"cid": "bafy", "size": 3, "tags": ["a", None]},
            "timestamp": sent.timestamp,
            "source": "me",
            "id": 7,
            "epoch": EPOCH,
        }
    assert (bridge.forwarded, bridge.dropped) == (1, 0)


async def test_events_as_logs_get_them(events):
    """A handler of an operator's gets lines of JSON under the schema, with the event's own time."""
    lines = []

    class Keeping(logging.Handler):
        def emit(self, record):
            lines.append(json.loads(self.format(record)))

    events.handlers = []
    events.register_handler(Keeping())
    sent = record(timestamp=1_000_000_000.5)
    JupyterEventsBridge(events).forward(sent, EPOCH)
    (line,) = lines
    assert (line["__schema__"], line["__schema_version__"]) == (SCHEMA_ID, "1")
    assert datetime.fromisoformat(line["__timestamp__"].removesuffix("Z")).timestamp() == sent.timestamp
    assert line["data"] == {"cid": "bafy"}
    assert "source" not in line


async def test_what_others_may_not_see(events):
    """Events with an owner, those that no log keeps, and types that need a right are passed over."""
    bridge, heard = JupyterEventsBridge(events, clock=no_time), Heard(events)
    for name in EVENT_TYPES:
        bridge.forward(record(name, owner="ann"), EPOCH)
        bridge.forward(record(name, id=0), EPOCH)
    await events.gather_listeners()
    assert (heard.data, bridge.dropped) == ([], 0)
    for name in EVENT_TYPES:
        bridge.forward(record(name), EPOCH)
    await events.gather_listeners()
    told = [data["notification_type"] for data in heard.data]
    assert told == [name for name in EVENT_TYPES if not name.startswith(("system_", "webrtc_"))]


async def test_where_all_have_all_rights(events):
    """Every type fits the schema, and goes there where the server says that nobody lacks the right."""
    bridge, heard = JupyterEventsBridge(events, restricted=True, clock=no_time), Heard(events)
    for name in EVENT_TYPES:
        bridge.forward(record(name), EPOCH)
    await events.gather_listeners()
    assert [data["notification_type"] for data in heard.data] == list(EVENT_TYPES)
    assert bridge.dropped == 0


def test_nobody_listens(events):
    """Then nothing is even parsed; a second bridge on the same logger is none's mistake."""
    bridge = JupyterEventsBridge(events)
    JupyterEventsBridge(events).forward(UNREADABLE, EPOCH)
    bridge.forward(UNREADABLE, EPOCH)
    assert (bridge.forwarded, bridge.dropped) == (0, 0)


async def test_what_fails_there_stays_there(events, caplog):
    """A modifier that raises, data too deep to be copied and a broken record are counted, and logged as one warning."""
    bridge, heard = JupyterEventsBridge(events, clock=no_time), Heard(events)

    def broken(schema_id, data):
        if data["data"] == {"cid": "bad"}:
            raise RuntimeError("another extension's")
        return data

    events.add_modifier(schema_id=SCHEMA_ID, modifier=broken)
    bridge.forward(record(data={"cid": "bad"}), EPOCH)
    deep = []
    for _ in range(900):
        deep = [deep]
    body = f'{{"data":{{"x":{json.dumps(deep)}}}'.encode()
    bridge.forward(Record(1, "content_added", None, "notification", 1.0, body), EPOCH)
    bridge.forward(UNREADABLE, EPOCH)
    bridge.forward(record(), EPOCH)
    await events.gather_listeners()
    assert len(heard.data) == 1
    assert (bridge.forwarded, bridge.dropped) == (1, 3)
    assert [found.levelname for found in caplog.records if "Jupyter's event" in found.message].count(
        "WARNING"
    ) == 1


async def test_a_flood_takes_a_small_share_of_the_loop(events):
    """Events that would take more than their share of the time are dropped; after a rest they go there again."""
    now, cost = itertools.count(), 0.001
    bridge = JupyterEventsBridge(
        events, clock=lambda: next(now) * cost
    )  # each look at the clock is a millisecond
    heard = Heard(events)
    for _ in range(2000):
        bridge.forward(record(), EPOCH)
    await events.gather_listeners()
    assert bridge.forwarded == len(heard.data)
    assert bridge.forwarded + bridge.dropped == 2000
    seconds = next(now) * cost
    assert BURST_SECONDS / cost <= bridge.forwarded <= (BURST_SECONDS + seconds * SHARE) / cost + 1
    bridge._at -= BURST_SECONDS / SHARE
    bridge.forward(record(), EPOCH)
    assert bridge.dropped == 2000 - len(heard.data)
    await events.gather_listeners()
    assert len(heard.data) == bridge.forwarded


def test_the_schema_is_packed():
    """It lies beside its module, where the wheel takes it from."""
    assert SCHEMA.is_file()
    assert SCHEMA.parent.name == "ipfs_stream_nb_server"
