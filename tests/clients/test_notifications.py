"""`NotificationClient`, and the clients' methods for live events."""

import asyncio
import datetime as dt
import os
import random
import signal
import threading
import time
from collections import deque

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

import ipfs_stream_nb as ipfs
from cutting_proxy import Cut, CuttingProxy
from far_client import connected
from feed_server import TYPES, FeedServer, KeptServer, Log, Subscriber
from ipfs_stream_nb.clients import notifications, notifications_inbox, notifications_link, transfer_socket
from ipfs_stream_nb.clients.notifications import check_seconds
from ipfs_stream_nb.clients.notifications_positions import (
    Positions,
    read_filters,
    read_since,
    read_type,
    read_types,
)
from ipfs_stream_nb.errors import (
    BadRequestError,
    RetrievalError,
    RetrievalTimeoutError,
    TooLargeError,
    UnauthorizedError,
)


@pytest.fixture
async def feed():
    """A server whose log and connections are in the hands of the test."""
    async with FeedServer() as feed:
        yield feed


@pytest.fixture
async def reader(feed):
    """A client of it, connected."""
    async with ipfs.NotificationClient(feed.url) as reader:
        yield reader


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Lost connections are made again quickly."""
    monkeypatch.setattr(transfer_socket, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(transfer_socket, "MAX_DELAY", 0.05)


async def take(client, count):
    """The ids of the next events."""
    return [(await asyncio.wait_for(anext(client), 10))["id"] for _ in range(count)]


async def until(condition):
    """Return once it holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # what is waited for has no event
            await asyncio.sleep(0.005)


# -- the guide's use


async def test_the_guides_desktop_example(feed):
    """Connect, subscribe, and a function of one's own is called with each event; it may be a coroutine function."""
    plain, awaited = [], []

    async def handle(event):
        await asyncio.sleep(0)
        awaited.append(event)

    one = ipfs.NotificationClient(api_url=feed.url, on_notification=plain.append)
    two = ipfs.NotificationClient(feed.url, handle)
    for client in (one, two):
        assert (client.state, client.connected) == ("new", False)
        await client.connect()
        assert (client.state, client.connected) == ("connected", True)
        await client.subscribe(["content_added", ipfs.NotificationType.PIN_ADDED])
        assert (client.state, client.connected) == ("connected", True)
    await feed.publish("content_added", cid="bafy")
    await feed.publish("custom_event")
    await feed.publish("pin_added")
    await until(lambda: len(plain) == len(awaited) == 2)
    assert plain == awaited
    assert [(event["id"], event["notification_type"]) for event in plain] == [
        (1, "content_added"),
        (3, "pin_added"),
    ]
    assert plain[0]["data"] == {"cid": "bafy"}
    for client in (one, two):
        await client.close()
        await client.close()
        assert client.state == "closed"


async def test_commands_and_their_answers(feed, reader):
    """subscribe, unsubscribe, get_history and ping give what the server answers, many at once too."""
    got = await reader.subscribe(["content_added", "nonsense"], {"cid": "x"})
    assert (got["success"], got["subscribed_types"]) == (True, ["content_added"])
    assert (got["invalid_types"], got["epoch"], got["since"]) == (["nonsense"], "e1", 0)
    await feed.publish("content_added", cid="x")
    await feed.publish("content_added", cid="y")
    await feed.publish("custom_event")
    history, seconds, more, *_ = await asyncio.gather(
        reader.get_history(2), reader.ping(), reader.subscribe("custom_event"), reader.get_history(limit=0)
    )
    assert [event["id"] for event in history] == [2, 3]
    assert 0 < seconds < 5
    assert more["since"] == 3
    await reader.unsubscribe(["content_added"])
    await feed.publish("content_added", cid="x")
    await feed.publish("custom_event")
    assert await take(reader, 2) == [1, 5]
    assert (reader.last_id, reader.cursor) == (5, "e1-5")


async def test_a_cursor_brings_what_came_after_it(feed):
    """`since` as an id, and as the cursor of an earlier client."""
    for _ in range(5):
        await feed.publish()
    async with ipfs.NotificationClient(feed.url) as client:
        await client.subscribe(["all_events"], since=2)
        assert await take(client, 2) == [3, 4]
        cursor = client.cursor
    async with ipfs.NotificationClient(feed.url) as client:
        await client.subscribe(["all_events"], since=cursor)
        assert await take(client, 1) == [5]


async def test_events_that_no_log_keeps(feed, reader):
    """They have no id, and come to who is subscribed."""
    await reader.subscribe(["custom_event"])
    await feed.say({"type": "notification", "notification_type": "system_info", "data": {"n": 1}})
    await feed.say({"type": "notification", "notification_type": "custom_event", "data": {"n": 2}})
    assert (await anext(reader))["data"] == {"n": 2}
    assert (reader.last_id, reader.cursor) == (None, "e1-0")


async def test_a_quiet_feed_has_a_cursor(feed, reader):
    """From the subscription on, so that what comes before the first matching event is not lost over a restart."""
    for _ in range(3):
        await feed.publish()
    assert reader.cursor is None
    await reader.subscribe(["content_added"])
    assert reader.cursor == "e1-3"
    await feed.publish("content_added")
    async with ipfs.NotificationClient(feed.url) as other:
        await other.subscribe(["content_added"], since=reader.cursor)
        assert await take(other, 1) == [4]


async def test_a_later_subscription_does_not_pass_what_is_unread(feed, reader):
    """Its place becomes the cursor once the events before it are read; one that begins further back takes it back."""
    await reader.subscribe(["content_added"])
    for _ in range(2):
        await feed.publish("content_added")
    await reader.ping()
    await reader.subscribe(["custom_event"])
    assert reader.cursor == "e1-0"
    assert await take(reader, 1) == [1]
    assert reader.cursor == "e1-1"
    await feed.publish("custom_event")
    assert await take(reader, 2) == [2, 3]
    await reader.subscribe(["pin_added"], since=1)
    assert reader.cursor == "e1-1"


async def test_what_is_for_all_comes_without_a_subscription(feed, reader):
    """A system_notification comes to whoever is connected, and once; `get` with a time-out waits for it."""
    waiting = asyncio.create_task(reader.get(timeout=10))
    await feed.publish("system_info", "system_notification", n=1)
    assert (await waiting)["id"] == 1
    await reader.subscribe(["custom_event"], since=0)
    await feed.publish("custom_event")
    assert await take(reader, 1) == [2]


async def test_what_a_function_raises_ends_nothing(feed, caplog):
    """It is logged, and the next event comes."""
    got = []

    def handle(event):
        got.append(event["id"])
        raise ZeroDivisionError

    async with ipfs.NotificationClient(feed.url, handle) as client:
        await client.subscribe("all_events")
        await feed.publish()
        await feed.publish()
        await until(lambda: got == [1, 2])
        with pytest.raises(BadRequestError, match="on_notification takes"):
            await anext(client)
    assert caplog.text.count("'notification' failed") == 2


async def test_a_function_may_use_its_client(feed):
    """Commands work in on_notification, and so does close."""
    done = asyncio.Event()

    async def handle(event):
        assert await client.ping() > 0
        await client.close()
        done.set()

    client = ipfs.NotificationClient(feed.url, handle)
    await client.connect()
    await client.subscribe("all_events")
    await feed.publish()
    await asyncio.wait_for(done.wait(), 10)
    assert client.state == "closed"


# -- connections that are lost


async def test_a_lost_connection_loses_nothing(feed, reader):
    """Cut again and again, with events while the reader is away: each comes once, in order."""
    await reader.subscribe(["content_added"])
    await reader.subscribe(["custom_event"], {"keep": True})
    wanted = []
    for round_ in range(20):
        for n in range(6):
            keep = n % 2 == 0
            number = await feed.publish(["content_added", "custom_event", "pin_added"][n % 3], keep=keep)
            if n % 3 == 0 or (n % 3 == 1 and keep):
                wanted.append(number)
            if n == round_ % 6:
                feed.met.clear()
                feed.drop()
        await feed.met.wait()
    async with asyncio.timeout(20):
        got = [await anext(reader) for _ in wanted]
    assert sorted(event["id"] for event in got) == wanted
    for kind in ("content_added", "custom_event"):
        ids = [event["id"] for event in got if event["notification_type"] == kind]
        assert ids == sorted(ids)
    assert reader.cursor == f"e1-{wanted[-1]}"
    assert (reader.missed, reader.resets) == (0, 0)
    assert feed.connections == 21


async def test_a_server_that_is_away_for_long(feed, reader):
    """It is waited for, by commands too, and found again; the state says so meanwhile."""
    await reader.subscribe("all_events")
    await feed.stop()
    await until(lambda: reader.state == "connecting")
    asked = asyncio.create_task(reader.subscribe(["content_added"]))
    history = asyncio.create_task(reader.get_history())
    await asyncio.sleep(0.3)
    for _ in range(3):
        feed.log.add()
    await feed.start()
    assert await take(reader, 3) == [1, 2, 3]
    assert (await asked)["success"]
    assert len(await history) == 3
    assert reader.connected


async def test_giving_up(feed):
    """`give_up_after` seconds without a server are an error, for who reads, asks or comes later."""
    async with ipfs.NotificationClient(feed.url, give_up_after=0.2) as client:
        await client.subscribe("all_events")
        await feed.publish()
        await until(lambda: client._link.positions.passed)
        await feed.stop()
        asked = asyncio.create_task(client.ping())
        assert await take(client, 1) == [1]  # what had come is still read
        for use in (anext(client), asked, client.get(), client.subscribe("all_events"), client.connect()):
            with pytest.raises(RetrievalError, match="no server answers"):
                await asyncio.wait_for(use, 10)
        assert (client.state, type(client.error)) == ("closed", RetrievalError)


async def test_a_right_that_is_taken_away_ends_it(feed, reader):
    """A server that closes with 1008 is not asked again."""
    await reader.subscribe("all_events")
    await feed.close_all(1008, "Unauthorized access")
    with pytest.raises(UnauthorizedError, match="1008 Unauthorized access"):
        await asyncio.wait_for(anext(reader), 10)
    assert feed.connections == 1


async def test_an_event_that_is_missing_is_asked_for(feed, reader):
    """Where `prev` names an event that did not come, the reader goes back to where it was."""
    await reader.subscribe("all_events")
    await feed.publish()
    await take(reader, 1)
    feed.log.add()
    for subscriber in feed.subscribers.values():
        subscriber.tail = subscriber.prev = 2  # the second is lost on its way
    feed.log.add()
    await feed.flush()
    assert await take(reader, 2) == [2, 3]
    assert feed.connections == 2
    assert reader.missed == 0


async def test_what_comes_twice_is_given_once(feed, reader):
    """An id that came already is dropped."""
    await reader.subscribe("all_events")
    await feed.publish()
    again = {"type": "notification", "notification_type": "custom_event", "data": {}, "id": 1, "prev": 1}
    await feed.say(again)
    await feed.publish()
    assert await take(reader, 2) == [1, 2]


@pytest.mark.parametrize(
    "nonsense", ["[]", "nonsense", '{"type":"reset"}', '{"type":"reset","epoch":1,"first":"x"}']
)
async def test_a_server_that_talks_nonsense(feed, reader, nonsense):
    """The connection is made again, and goes on where it was."""
    await reader.subscribe("all_events")
    await feed.publish()
    await feed.say(nonsense)
    await until(lambda: feed.connections == 2)
    await feed.publish()
    assert await take(reader, 2) == [1, 2]


async def test_what_is_newer_than_the_client_is_passed_over(feed, reader):
    """Messages of other types, and errors that answer nothing, end nothing."""
    for message in ({"type": "ping"}, {"type": "novelty", "n": 1}, {"type": "error", "error": "oh"}, {}):
        await feed.say(message)
    await feed.publish("system_info", "system_notification")
    assert (await reader.get(timeout=10))["id"] == 1
    assert await reader.ping() > 0
    assert feed.connections == 1


# -- gaps


async def test_a_trimmed_log_is_told(feed):
    """What the log lost meanwhile is told to on_gap at its place among the events, and counted."""
    told = []
    async with ipfs.NotificationClient(
        feed.url, on_gap=lambda gap: told.append((client.last_id, gap))
    ) as client:
        await client.subscribe(["custom_event", "content_added"])
        await client.subscribe(["pin_added"], {"x": 1})
        await feed.publish()
        assert await take(client, 1) == [1]
        await feed.stop()
        for _ in range(9):
            feed.log.add()
        feed.log.trim(6)
        await feed.start()
        assert await take(client, 5) == [6, 7, 8, 9, 10]
        assert told == [(1, {"type": "reset", "epoch": "e1", "first": 6, "missed": 4})]
        assert (client.missed, client.resets) == (4, 1)


async def test_a_log_that_began_anew_is_told(feed):
    """All of the new log comes, also where its ids are those of the old one; how much is lost nobody knows."""
    told = []
    async with ipfs.NotificationClient(feed.url, on_gap=told.append) as client:
        await client.subscribe("all_events")
        for _ in range(3):
            await feed.publish()
        assert await take(client, 3) == [1, 2, 3]
        await feed.stop()
        feed.log.begin_anew("e2")
        for _ in range(2):
            feed.log.add()
        await feed.start()
        assert await take(client, 2) == [1, 2]
        assert client.cursor == "e2-2"
        feed.log.begin_anew("e3")  # while it is connected
        await feed.publish()
        assert await take(client, 1) == [1]
        assert client.cursor == "e3-1"
        assert [gap["missed"] for gap in told] == [None, None]
        assert (client.missed, client.resets) == (None, 2)


async def test_a_log_that_was_put_back(feed, reader):
    """A log that ends before what came from it gives its ids again: these are other events, and come."""
    await reader.subscribe("all_events")
    for _ in range(5):
        await feed.publish()
    assert await take(reader, 5) == [1, 2, 3, 4, 5]
    await feed.stop()
    feed.log.last = 2
    await feed.start()
    await until(lambda: reader.connected)
    await feed.publish()
    assert await take(reader, 3) == [1, 2, 3]
    assert reader.resets == 1


async def test_a_cursor_of_another_log(feed, reader):
    """A subscription from there is told that it begins elsewhere; others are not concerned."""
    await reader.subscribe(["pin_added"])
    await feed.publish()
    await reader.subscribe(["custom_event"], since="other-7")
    assert await take(reader, 1) == [1]
    assert (reader.resets, reader.missed) == (1, None)
    with pytest.warns(UserWarning, match="'other-7' is of another log"):
        assert [event["id"] for event in await reader.get_history(since="other-7")] == [1]


async def test_lagging_is_told(feed):
    """`lagged` comes to on_gap, and nothing is lost by it; what on_gap raises ends nothing."""
    told = []

    async def on_gap(gap):
        told.append(gap)
        raise ZeroDivisionError

    async with ipfs.NotificationClient(feed.url, on_gap=on_gap) as client:
        await client.subscribe("all_events")
        await feed.say({"type": "lagged", "from": 1, "to": 4})
        await feed.publish()
        assert await take(client, 1) == [1]
        assert (told, client.lagged, client.missed) == ([{"type": "lagged", "from": 1, "to": 4}], 1, 0)


# -- a reader that is slow


async def test_what_a_server_tells_without_end_is_bounded(feed, reader, monkeypatch):
    """Messages about gaps wait for the reader as events do, however many come."""
    monkeypatch.setattr(notifications_inbox, "MAX_WAITING", 10)
    await reader.subscribe("all_events")
    for number in range(100):
        await feed.say({"type": "lagged", "from": number, "to": number})
    await until(lambda: reader._link.inbox.full)
    assert reader.lagged == 10
    await feed.publish()
    assert await take(reader, 1) == [1]
    assert reader.lagged == 100


async def test_a_slow_reader_is_waited_for(feed, reader, monkeypatch):
    """What waits is bounded; the rest stays with the server, and comes."""
    monkeypatch.setattr(notifications_inbox, "MAX_WAITING", 10)
    await reader.subscribe("all_events")
    for _ in range(100):
        await feed.publish()
    await until(lambda: reader._link.inbox.full)
    await asyncio.sleep(0.1)
    assert len(reader._link.inbox._items) == 10
    assert await take(reader, 100) == list(range(1, 101))
    assert feed.connections == 1


async def test_bytes_are_bounded_too(feed, reader, monkeypatch):
    """Few large events fill it as well."""
    monkeypatch.setattr(notifications_inbox, "MAX_WAITING_BYTES", 30_000)
    await reader.subscribe("all_events")
    for _ in range(20):
        await feed.publish(text="x" * 10_000)
    await until(lambda: reader._link.inbox.full)
    await asyncio.sleep(0.1)
    assert len(reader._link.inbox._items) == 3
    assert await take(reader, 20) == list(range(1, 21))


async def test_commands_work_while_much_is_unread(feed, reader, monkeypatch):
    """An answer behind more events than there is room for still comes; the events come again."""
    monkeypatch.setattr(notifications_inbox, "MAX_WAITING", 10)
    await reader.subscribe("all_events")
    for _ in range(100):
        await feed.publish()
    assert await reader.ping() < 10
    assert await reader.ping() < 10
    await reader.subscribe(["content_added"], since=95)
    assert len(reader._link.inbox._items) <= 10
    assert await take(reader, 100) == list(range(1, 101))
    await feed.publish("content_added")
    assert await take(reader, 1) == [101]


async def test_nothing_is_lost_where_a_wait_ends(feed, reader):
    """`get` gives None where nothing came in time; what comes at that moment is not lost."""
    assert await reader.get(timeout=0.01) is None
    await reader.subscribe("all_events")
    got = []
    for _ in range(50):
        publishing = asyncio.create_task(feed.publish())
        for _ in range(3):
            event = await reader.get(timeout=0.0005)
            if event is not None:
                got.append(event["id"])
        await publishing
    while len(got) < 50:
        event = await reader.get(timeout=10)
        assert event is not None
        got.append(event["id"])
    assert await reader.get(timeout=0.2) is None
    assert got == list(range(1, 51))


# -- what is wrong is told


async def test_before_and_after(feed):
    """Before connect and after close each use is a clear error; a loop ends."""
    client = ipfs.NotificationClient(feed.url)
    for use in (client.subscribe("all_events"), client.ping(), client.get(), anext(client)):
        with pytest.raises(BadRequestError, match="not connected"):
            await use
    await client.connect()
    await client.connect()
    await client.subscribe("all_events")
    waiting = asyncio.create_task(anext(client, "the end"))
    asked = asyncio.create_task(client.get(timeout=10))
    await asyncio.sleep(0)
    await client.close()
    assert await waiting == "the end"
    with pytest.raises(BadRequestError, match="closed"):
        await asked
    assert [event async for event in client] == []
    for use in (client.subscribe("all_events"), client.ping(), client.connect(), client.get()):
        with pytest.raises(BadRequestError, match="closed"):
            await use
    with pytest.raises(BadRequestError, match="timeout='x'"):
        await client.get("x")


async def test_nobody_there(feed):
    """A first connection that cannot be had is an error at once, and may be tried again."""
    await feed.stop()
    client = ipfs.NotificationClient(feed.url)
    with pytest.raises(RetrievalError, match="no server answers"):
        await client.connect()
    assert client.state == "new"
    await feed.start()
    await client.connect()
    await client.close()


@pytest.mark.parametrize("greeting", ["{}", '{"type":"metrics"}', "x"])
async def test_something_else_there(feed, greeting):
    """A server that does not begin with a welcome is none."""
    feed.greeting = greeting
    with pytest.raises(RetrievalError):
        await ipfs.NotificationClient(feed.url).connect()


async def test_a_server_that_says_nothing(feed, reader, monkeypatch):
    """No answer in time is an error that names the command; the answer that comes late is nobody else's."""
    monkeypatch.setattr(notifications_link, "ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(notifications, "PING_SECONDS", 0.05)
    for subscriber in feed.subscribers.values():
        subscriber.command = lambda message: None
    with pytest.raises(RetrievalTimeoutError, match=r"'ping' in 0\.05 s"):
        await reader.ping()
    with pytest.raises(RetrievalTimeoutError, match=r"'get_history' in 0\.05 s"):
        await reader.get_history()
    monkeypatch.setattr(notifications_link, "ANSWER_SECONDS", 10)
    asked = asyncio.create_task(reader.get_history())
    await until(lambda: len(feed.commands) == 3)
    await feed.say({"type": "history", "events": [{"id": 1}]})  # the late one
    await feed.say({"type": "history", "events": [{"id": 2}]})
    assert await asked == [{"id": 2}]
    assert not reader._link._sent


async def test_an_answer_that_is_passed_over(feed, reader):
    """Answers come in order: a command whose successor is answered fails at once."""
    for subscriber in feed.subscribers.values():
        subscriber.command = lambda message: None
    first, second = asyncio.create_task(reader.get_history()), asyncio.create_task(reader.ping())
    await until(lambda: len(feed.commands) == 2)
    await feed.say({"type": "pong"})
    assert await second > 0
    with pytest.raises(RetrievalError, match="passed over 'get_history'"):
        await first


async def test_what_the_server_could_not_read(feed, reader):
    """An error that names no command is about the oldest one; the next is answered."""
    wrong, right = await asyncio.gather(
        reader.subscribe("all_events", {"unreadable": 1}),
        reader.subscribe("custom_event"),
        return_exceptions=True,
    )
    assert isinstance(wrong, TooLargeError)
    assert right["success"]


async def test_a_command_that_is_too_large(feed, reader):
    """It is refused before it is sent, and the next ones are answered."""
    for ask in (
        reader.subscribe("all_events", {"a": "x" * 100_000}),
        reader.subscribe("x" * 70_000),
        reader.get_history(notification_type="x" * 70_000),
    ):
        with pytest.raises(TooLargeError, match="at most 64000"):
            await ask
    assert (await reader.subscribe("all_events", {"a": "x" * 63_000}))["success"]
    feed.drop()
    await feed.publish(a="x" * 63_000)
    assert await take(reader, 1) == [1]
    assert await reader.ping() > 0


async def test_a_ping_of_a_server_that_is_away(feed, reader, monkeypatch):
    """It fails soon, and nothing of it is left to be sent later on."""
    await feed.stop()
    await until(lambda: reader.state == "connecting")
    with monkeypatch.context() as patch:  # a busy server that is there takes longer
        patch.setattr(notifications, "PING_SECONDS", 0.1)
        with pytest.raises(RetrievalError, match="no server answers at http"):
            await reader.ping()
    assert not reader._link._waiting
    await feed.start()
    await until(lambda: reader.connected)
    assert await reader.ping() > 0
    assert len(feed.commands) == 1


async def test_a_loop_over_nothing(feed, reader):
    """Who has not subscribed, or has unsubscribed, is told so instead of waiting for ever."""
    for wait in (anext(reader), reader.get()):
        with pytest.raises(BadRequestError, match="subscribe"):
            await wait
    waiting = asyncio.create_task(anext(reader))  # it begins once the subscription is on its way
    await reader.subscribe(["custom_event"])
    await feed.publish()
    assert (await waiting)["id"] == 1
    await feed.publish()
    await reader.ping()
    await reader.unsubscribe(["custom_event"])
    assert await take(reader, 1) == [2]
    with pytest.raises(BadRequestError, match="subscribe"):
        await anext(reader)


async def test_types_that_may_not_be_seen(feed):
    """They are named; all_events stands for those that may be."""
    feed.log.forbidden = frozenset({"system_info", "pin_added"})
    async with connected(feed.url, None) as client:
        for types in (["custom_event", "system_info", "pin_added"], ["system_info", "pin_added"]):
            with pytest.raises(UnauthorizedError, match="may not see system_info, pin_added"):
                await client.notifications(types).connect()
        async with client.notifications() as everything:
            await feed.publish("pin_added")
            await feed.publish()
            assert await take(everything, 1) == [2]


async def test_what_the_server_refuses(feed, reader):
    """Its error is raised where the command was given, and the next one is answered."""
    with pytest.raises(BadRequestError, match="no filter"):
        await reader.subscribe("all_events", {"bad": 1})
    assert await reader.ping() > 0


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ipfs.NotificationClient(8000), "text such as"),
        (lambda: ipfs.NotificationClient("localhost:8000"), "not a server's URL"),
        (lambda: ipfs.NotificationClient(token="x"), "goes with a URL"),
        (lambda: ipfs.NotificationClient("http://x/", "no function"), "on_notification is a function"),
        (lambda: ipfs.NotificationClient("http://x/", on_gap=3), "on_gap is a function"),
        (lambda: ipfs.NotificationClient("http://x/", give_up_after=-1), "number of seconds"),
        (lambda: read_types([]), "is empty"),
        (lambda: read_types([3]), "no text"),
        (lambda: read_types(3), "list of types"),
        (lambda: read_types({"a": 1}), "list of types"),
        (lambda: read_filters([1]), "dictionary"),
        (lambda: ipfs.NotificationClient("http://x/", give_up_after="x"), "'x': it is a number of seconds"),
        (lambda: check_seconds("timeout", float("nan")), "timeout=nan: it is a number of seconds"),
        (lambda: read_type(["custom_event", "pin_added"]), "one type, not 2"),
        (lambda: read_filters({"a": object()}), r"filters\['a'\] is an object; JSON has"),
        (lambda: read_filters({"a": {"gt": float("nan")}}), r"filters\['a'\]\['gt'\] is nan; .* finite"),
        (lambda: read_since(-1, "e"), "id of an event"),
        (lambda: read_since(True, "e"), "id of an event"),
        (lambda: read_since("7", "e"), "id of an event"),
        (lambda: read_since(1.5, "e"), "id of an event"),
    ],
)
def test_bad_input(make, text):
    """What makes no sense is refused at once, with what would."""
    with pytest.raises(BadRequestError, match=text):
        make()


def test_misspelt_arguments_get_a_hint():
    """As everywhere in this package."""
    with pytest.raises(TypeError, match="did you mean 'on_notification'"):
        ipfs.NotificationClient(on_notificaton=print)


# -- over a real server


async def test_clients_of_a_real_server(client):
    """emit gives the id, the feed brings the event, and the history has it."""
    async with client.notifications(["custom_event"], {"n": [1, 3]}) as feed:
        ids = [await client.emit({"n": n}, source="a test") for n in range(5)]
        events = [await asyncio.wait_for(anext(feed), 10) for _ in range(2)]
        assert [event["id"] for event in events] == [ids[1], ids[3]]
        assert (events[0]["data"], events[0]["source"]) == ({"n": 1}, "a test")
        assert await feed.ping() > 0
    history = await client.notification_history(3, "custom_event")
    assert [event["id"] for event in history] == ids[2:]
    assert [
        event["id"] for event in await client.notification_history(2, "custom_event", feed.cursor)
    ] == ids[4:]


async def test_what_is_sent_is_made_json(client, tmp_path):
    """numpy's numbers, dates, paths and what names a CID are converted, nested too, in events and in filters."""
    added = await client.add(b"content")
    day = dt.datetime(2024, 2, 3, 4, 5, tzinfo=dt.UTC)
    data = {
        "n": [np.int64(3), np.float32(0.5), np.array(7), np.bool_(True)],
        "when": (day, day.date(), np.datetime64("2024-02-03", "ns")),
        "where": {"path": tmp_path, np.int64(1): None},
        "cids": [added, added.cid],
    }
    async with client.notifications("custom_event", {"cids": added, "number": np.int64(3)}) as feed:
        await client.emit(data | {"number": 3, "cids": added})
        assert (await feed.get(timeout=10))["data"]["cids"] == str(added.cid)
    await client.emit(data)
    (event,) = await client.notification_history(1, "custom_event")  # the add is told a moment later
    assert event["data"] == {
        "n": [3, 0.5, 7, True],
        "when": ["2024-02-03T04:05:00+00:00", "2024-02-03", "2024-02-03T00:00:00.000000000"],
        "where": {"path": str(tmp_path), "1": None},
        "cids": [str(added.cid)] * 2,
    }


async def test_events_that_are_not_kept_and_many_at_once(client):
    """`keep=False` comes to who listens, has no id and is in no history; emit_many gives the ids of all."""
    async with client.notifications("custom_event") as feed:
        first = await client.emit({"n": 1})
        assert await client.emit({"n": 2}, keep=False, private=True) is None
        ids = await client.emit_many(({"n": n} for n in (3, 4)), source="a test")
        events = [await asyncio.wait_for(anext(feed), 10) for _ in range(4)]
    assert [event.get("id") for event in events] == [first, None, *ids]
    assert [event["data"]["n"] for event in await client.notification_history(3, "custom_event")] == [1, 3, 4]


async def test_a_loop_needs_no_context(client):
    """`async for` connects and subscribes by itself; the client's end ends it with a word."""
    number = await client.emit({})
    feed = client.notifications(since=number - 1)
    async for event in feed:
        assert event["id"] == number
        break
    waiting = asyncio.create_task(anext(feed))
    await asyncio.sleep(0)
    await client.close()
    with pytest.raises(BadRequestError, match="client of these notifications was closed"):
        await waiting
    with pytest.raises(BadRequestError, match="closed"):
        client.notifications()


async def test_what_is_asked_for_wrongly(client):
    """Types that are none, filters, cursors and data are refused by name, here or by the server."""
    for wrong, text in (
        (client.notifications(["nonsense"]), "'nonsense' is no notification type; these are"),
        (client.notifications("custom_evnt"), "did you mean 'custom_event'"),
        (client.notifications(filters={"a": {"gt": []}}), "gt"),
    ):
        with pytest.raises(BadRequestError, match=text):
            await anext(wrong)
        assert wrong.state == "closed"
    with pytest.raises(BadRequestError, match="since"):
        client.notifications(since="x")
    for data, kind, text in (
        ([], "custom_event", "dictionary"),
        ({}, "nonsense", "nonsense"),
        ({}, "all_events", "all"),
        ({}, "system_infos", "did you mean 'system_info'"),
        ({}, b"custom_event", "notification_type is a bytes"),
        ({"a": [{1}]}, "custom_event", r"data\['a'\]\[0\] is a set"),
    ):
        with pytest.raises(BadRequestError, match=text):
            await client.emit(data, kind)
    with pytest.raises(UnauthorizedError, match="system_metrics"):
        await client.emit({}, "system_metrics")
    with pytest.raises(BadRequestError, match="limit"):
        await client.notification_history("many")
    with pytest.raises(BadRequestError, match="one type, not 2"):
        await client.notification_history(5, ["custom_event", "pin_added"])
    for bad in ("x", {}, [3]):
        with pytest.raises(BadRequestError, match="dictionar"):
            await client.emit_many(bad)
    for flag in ({"keep": 1}, {"private": "yes"}):
        with pytest.raises(BadRequestError, match="True or False"):
            await client.emit({}, **flag)


async def test_wrong_credentials_are_an_error_at_once(server):
    """Before and after: a token that is refused is not tried again."""
    with pytest.raises(UnauthorizedError, match="token"):
        await ipfs.NotificationClient(server.url, token="wrong").connect()
    with pytest.raises(UnauthorizedError, match="token"):
        await ipfs.NotificationClient(server.url).connect()


async def test_the_server_of_connect_is_found(repo, monkeypatch):
    """Without a URL it is the one that connect() finds."""
    async with ipfs.connect_async() as client, ipfs.NotificationClient() as feed:
        await feed.subscribe("custom_event")
        number = await client.emit({})
        assert await take(feed, 1) == [number]


async def test_many_cuts_before_a_real_server(proxy, server):
    """Cut at bytes that come by chance while events are sent: each that matches comes, once."""
    chance = random.Random(5)
    proxy.cuts.extend(Cut(down=chance.randrange(2500, 9000)) for _ in range(60))
    wanted, got = [], []

    async def read():
        async for event in feed:
            got.append(event["id"])

    async with (
        connected(server.url, server.token) as sender,
        ipfs.NotificationClient(proxy.url, token=server.token) as feed,
    ):
        await feed.subscribe(["custom_event"], {"keep": True})
        await feed.subscribe(["pin_added"])
        reading = asyncio.create_task(read())
        for _ in range(60):
            events = [
                {"notification_type": kind, "data": {"keep": keep, "x": "x" * 50}}
                for kind in ("custom_event", "pin_added")
                for keep in (False, True, True)
            ]
            body = {"events": events}
            answer = await sender._http.json("POST", "ipfs-stream/events", json_body=body)
            wanted.extend(answer["ids"][1:])
        await until(lambda: len(got) >= len(wanted))
        assert sorted(got) == wanted
        assert (feed.missed, feed.resets) == (0, 0)
        await feed.close()
        await reading
    assert len(proxy.passed) > 10


async def test_a_server_that_is_started_again(no_kernel, tmp_path):
    """Its log outlives it: what came while nobody listened comes, and nothing twice."""
    with KeptServer(tmp_path, "token") as server:
        async with (
            CuttingProxy(server.url) as proxy,
            ipfs.NotificationClient(proxy.url, token="token") as feed,
        ):
            await feed.subscribe("custom_event")
            ids = []
            for _ in range(3):
                async with connected(server.url, "token") as sender:
                    ids += [await sender.emit({}) for _ in range(3)]
                    assert await take(feed, 3) == ids[-3:]
                    await asyncio.to_thread(server.stop)
                    await until(lambda: feed.state == "connecting")
                await asyncio.to_thread(server.start)
                proxy.upstream = server.url
            await until(lambda: feed.connected)
            assert (feed.resets, feed.missed) == (0, 0)


def test_the_blocking_twin(repo, monkeypatch):
    """`for event in feed`, `feed.get`, commands, and Ctrl-C in a wait, of which nothing is lost."""
    waits = threading.Event()

    def interrupt():
        waits.wait()
        os.kill(os.getpid(), signal.SIGINT)

    with ipfs.connect() as client:
        with client.notifications(["custom_event"]) as feed:
            assert feed.connected
            assert feed.get(timeout=0.01) is None
            first = client.emit({"n": 1})
            for event in feed:
                assert event["id"] == first
                break
            get = feed._feed.get

            def told(timeout):
                waits.set()
                return get(timeout)

            with monkeypatch.context() as patch:
                patch.setattr(feed._feed, "get", told)
                threading.Thread(target=interrupt).start()
                with pytest.raises(KeyboardInterrupt):
                    feed.get()
            assert feed.subscribe(["system_info"])["success"]
            feed.unsubscribe(["system_info"])
            client.emit({"n": 2}, ipfs.NotificationType.SYSTEM_INFO)
            assert client.emit({"n": 3}) == feed.get(timeout=10)["id"] == feed.last_id
            history = [event["data"] for event in feed.get_history()]  # a busy server tells that it is
            assert [data for data in history if "n" in data][-2:] == [{"n": 2}, {"n": 3}]
            assert feed.ping() > 0
            assert (feed.missed, feed.state) == (0, "connected")
            assert (feed.resets, feed.lagged, feed.error) == (0, 0, None)
            assert client.emit({"n": 4}, keep=False) is None
            assert feed.get(timeout=10)["data"] == {"n": 4}
            assert client.emit_many([{"n": 3}]) == [feed.get(timeout=10)["id"]]
        assert list(feed) == []
        assert [event["data"]["n"] for event in client.notification_history(1, "custom_event")] == [3]
        with client.notifications("custom_event", since=feed.cursor) as other:
            last = client.emit({})
            assert other.get(timeout=10)["id"] == last
        feed = client.notifications()
        next_one = threading.Thread(target=lambda: next(iter(feed)))
        next_one.start()
        while not feed.connected:
            time.sleep(0.01)
        client.emit({})
        next_one.join(10)
    assert feed.state == "closed"


def test_the_blocking_twin_tells_gaps(repo):
    """`on_gap` may use the client; a log that is another one is told, counted and warned of."""
    told = []
    with ipfs.connect() as client:
        number = client.emit({})

        def on_gap(gap):
            told.append((gap["missed"], client.notification_history(1, "custom_event")[0]["id"]))

        with client.notifications("custom_event", since="other-1", on_gap=on_gap) as feed:
            assert feed.get(timeout=10)["id"] == number
            assert told == [(None, number)]
            assert (feed.resets, feed.missed, feed.lagged, feed.error) == (1, None, 0, None)
        with pytest.warns(UserWarning, match="another log"):
            found = client.notification_history(notification_type="custom_event", since="other-7")
        assert found[-1]["id"] == number

        async def waits(gap):
            raise AssertionError(gap)

        for wrong in (3, waits):
            with pytest.raises(BadRequestError, match="on_gap"):
                client.notifications(on_gap=wrong)


# -- where it has come to, for any course of events


class Course(RuleBasedStateMachine):
    """Events, cuts at any message, subscriptions from anywhere: each matching event once, in order."""

    def __init__(self):
        super().__init__()
        self.log = Log()
        self.positions = Positions()
        self.begun = {}
        """By type: the filter, and the id behind which it was last subscribed to, as far as the client knows."""
        self.got = []
        self.wanted = {}
        self.connect()

    def connect(self):
        self.server = Subscriber(self.log)
        self.sent = deque(self.positions.welcome(self.server.out.popleft()))
        self.asked = [None] * len(self.sent)

    def read(self, message):
        match message["type"]:
            case "subscription_confirmed":
                asked = self.asked.pop(0)
                if asked is None:
                    self.positions.resumed(message)
                else:
                    self.positions.subscribed(asked, message)
                    names = (
                        TYPES[:-1]
                        if "all_events" in message["notification_types"]
                        else message["notification_types"]
                    )
                    for name in names:
                        self.begun[name] = (asked, message["since"])
            case "unsubscription_confirmed":
                self.positions.unsubscribed(message)
                for name in message["notification_types"]:
                    self.begun.pop(name, None)
            case "notification":
                kind = message["notification_type"]
                if self.positions.take(message):
                    filters, since = self.begun[kind]
                    assert message["id"] > since
                    assert all(message["data"].get(key) == value for key, value in filters.items())
                    self.wanted.setdefault(kind, []).append(message["id"])
            case other:
                raise AssertionError(other)

    @rule(kind=st.sampled_from(TYPES[:-1]), x=st.integers(0, 1), count=st.integers(1, 4))
    def publish(self, kind, x, count):
        for _ in range(count):
            self.log.add(kind, x=x)
        self.server.pump()

    @rule(
        kinds=st.sets(st.sampled_from(TYPES), min_size=1, max_size=3),
        x=st.none() | st.integers(0, 1),
        live=st.booleans(),
        back=st.integers(0, 8),
    )
    def subscribe(self, kinds, x, live, back):
        filters = {} if x is None else {"x": x}
        command = {"action": "subscribe", "notification_types": sorted(kinds), "filters": filters}
        if not live:
            command |= {"epoch": "e1", "since": max(0, self.log.last - back)}
        self.sent.append(command)
        self.asked.append(filters)

    @rule(kind=st.sampled_from(TYPES[:-1]))
    def unsubscribe(self, kind):
        self.sent.append({"action": "unsubscribe", "notification_types": [kind]})

    @rule()
    def server_reads(self):
        if self.sent:
            self.server.command(self.sent.popleft())
            self.server.pump()

    @rule(count=st.integers(0, 12))
    def some_arrive(self, count):
        for _ in range(min(count, len(self.server.out))):
            self.read(self.server.out.popleft())

    @rule()
    def in_step(self):
        self.server_reads()
        self.some_arrive(len(self.server.out))

    @rule()
    def cut(self):
        self.connect()

    def teardown(self):
        while self.sent:
            self.server_reads()
        self.server.pump()
        while self.server.out:
            self.read(self.server.out.popleft())
        for kind, (filters, since) in self.begun.items():
            matching = [
                number
                for number, event in self.log.events.items()
                if number > since
                and event["notification_type"] == kind
                and all(event["data"].get(key) == value for key, value in filters.items())
            ]
            got = [number for number in self.wanted.get(kind, []) if number > since]
            assert got[len(got) - len(matching) :] == matching


TestCourse = Course.TestCase
TestCourse.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
