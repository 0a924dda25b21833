"""The notification socket's conversation, over two queues, with the real log below it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipfs_stream_nb.notifications.authorized import AuthorizedNotificationManager
from ipfs_stream_nb.notifications.events import EVENT_TYPES, NotificationType
from ipfs_stream_nb.notifications.log import SQLiteEngine
from ipfs_stream_nb.notifications.rights import may_see, principal_of
from ipfs_stream_nb.transports.notifications import NotificationConversation
from queue_connection import talking
from queue_outlet import QueueOutlet

ADMIN = {"id": "ada", "role": "admin", "permissions": {"webrtc": True}}
USER = {"id": "bob", "role": "user", "permissions": {}}
CUSTOM = NotificationType.CUSTOM_EVENT


@pytest.fixture
async def manager(tmp_path):
    """An open manager over a log of its own."""
    found = AuthorizedNotificationManager(SQLiteEngine(tmp_path))
    await found.open()
    yield found
    await found.close()


@contextlib.asynccontextmanager
async def connected(manager, user=ADMIN, room=0):
    """A client beside the test, which has been welcomed."""
    link = QueueOutlet(room)
    async with talking(NotificationConversation(link, manager, user).run(), link):
        link.welcome = await link.hear()
        yield link


async def publish(manager, count, kind=lambda _n: CUSTOM, begin=0):
    """Events numbered in `n`, many to a commit."""
    numbers = range(begin, begin + count)
    return await asyncio.gather(*(manager.notify(kind(n), {"n": n}) for n in numbers))


def odd_custom(n):
    """Custom events with odd numbers, pins with even ones."""
    return CUSTOM if n % 2 else NotificationType.PIN_ADDED


def subscribe(types=("all_events",), **fields):
    return {"action": "subscribe", "notification_types": list(types)} | fields


async def test_the_messages_of_the_guide(manager):
    """Each message has the protocol's fields, in the guide's shapes, and nothing comes that was not asked for."""
    async with connected(manager) as link:
        assert link.welcome == {
            "type": "welcome",
            "message": "IPFS notification server connected",
            "connection_id": link.welcome["connection_id"],
            "available_notifications": [kind.value for kind in NotificationType],
            "epoch": manager.epoch,
            "last_id": 0,
            "timestamp": link.welcome["timestamp"],
        }
        await manager.notify(CUSTOM, {"n": 0})
        link.say({"action": "ping"})
        pong = await link.hear()
        assert pong == {"type": "pong", "timestamp": pong["timestamp"]}
        link.say(subscribe(["content_added", "custom_event", "nonsense"], filters={"n": 1}))
        confirmed = await link.hear()
        assert confirmed == {
            "type": "subscription_confirmed",
            "notification_types": ["content_added", "custom_event"],
            "filters": {"n": 1},
            "invalid_types": ["nonsense"],
            "unauthorized_types": [],
            "epoch": manager.epoch,
            "since": 1,
            "timestamp": confirmed["timestamp"],
        }
        await manager.notify(CUSTOM, {"n": 2})
        await manager.notify(CUSTOM, {"n": 1}, "me")
        event = await link.hear()
        assert list(event) == ["type", "notification_type", "data", "timestamp", "source", "id", "prev"]
        assert event == {
            "type": "notification",
            "notification_type": "custom_event",
            "data": {"n": 1},
            "timestamp": event["timestamp"],
            "source": "me",
            "id": 3,
            "prev": 0,
        }
        await manager.notify_all(NotificationType.SYSTEM_INFO, {"message": "hello"})
        event = await link.hear()
        assert (event["type"], event["id"], event["prev"]) == ("system_notification", 4, 3)
        link.say({"action": "get_history", "limit": 2})
        history = await link.hear()
        assert [found["id"] for found in history["events"]] == [3, 4]
        assert (history["type"], history["count"]) == ("history", 2)
        link.say({"action": "unsubscribe", "notification_types": ["custom_event"]})
        gone = await link.hear()
        assert gone == {
            "type": "unsubscription_confirmed",
            "notification_types": ["custom_event"],
            "invalid_types": [],
            "timestamp": gone["timestamp"],
        }
        link.say({"action": "get_metrics"}, {"action": "get_info"})
        metrics, info = await link.hear(), await link.hear()
        assert metrics["metrics"]["subscriptions_by_type"] == {"content_added": 1}
        assert metrics["metrics"]["active_connections"] == metrics["metrics"]["connections_total"] == 1
        assert metrics["metrics"]["notifications_sent"] == 2
        assert info["type"] == "connection_info"
        assert info["info"]["subscriptions"] == ["content_added"]
        assert link.unread() == []
    assert manager.active_connections == {}
    assert not any(manager.subscriptions.values())


BAD = [
    ("[]", "a message is a JSON object"),
    ("{", "the message is not JSON"),
    (b"{}", "binary message"),
    ("{}", "it has no action"),
    ('{"action": 7}', "'7' is no action"),
    ('{"action": "drop"}', "'drop' is no action"),
    ('{"action": {"a": []}}', "is no action"),
    ('{"action": "subscribe"}', "notification_types is missing"),
    ('{"action": "subscribe", "notification_types": 5}', "notification_types is a list"),
    (
        '{"action": "subscribe", "notification_types": ["custom_event"], "filters": []}',
        "filters are an object",
    ),
    ('{"action": "subscribe", "notification_types": ["custom_event"], "since": -1}', "since is the id"),
    ('{"action": "subscribe", "notification_types": ["custom_event"], "since": 1.5}', "since is the id"),
    ('{"action": "subscribe", "notification_types": ["custom_event"], "since": [1]}', "since is the id"),
    ('{"action": "subscribe", "notification_types": ["custom_event"], "since": "x-y-1"}', "since is the id"),
    (
        '{"action": "subscribe", "notification_types": ["custom_event"], "since": 1, "epoch": 5}',
        "epoch is the text",
    ),
    ('{"action": "get_history", "limit": "all"}', "limit is a whole number"),
    ('{"action": "get_history", "limit": true}', "limit is a whole number"),
    ('{"action": "get_history", "notification_type": "x"}', "'x' is no notification type"),
    (
        '{"action": "subscribe", "notification_types": ["custom_event"], "filters": {"a": {"gt": []}}}',
        "gt takes",
    ),
]


@pytest.mark.parametrize(("message", "text"), BAD)
async def test_bad_commands(manager, message, text):
    """What is wrong with a command is told, and the connection goes on."""
    async with connected(manager) as link:
        link.say(message, {"action": "ping"})
        error = await link.hear()
        assert error["type"] == "error"
        assert error["code"] == "bad_request"
        assert text in error["error"] == error["message"]
        assert (await link.hear())["type"] == "pong"


async def test_a_message_that_is_too_long(manager):
    """100 kB of filter are refused, and nothing is subscribed."""
    async with connected(manager) as link:
        link.say(subscribe(filters={"x": "y" * 100_000}))
        assert (await link.hear())["code"] == "too_large"
        assert manager.subscriptions == {}


@pytest.mark.parametrize(("limit", "count"), [(0, 0), (-3, 0), (None, 5), (10**9, 5), (2, 2)])
async def test_limits_of_the_history(manager, limit, count):
    """A limit is cut to what there is; 0 is none, and not all of it."""
    await publish(manager, 5)
    events = await manager.get_history(limit, user=ADMIN)
    assert [event["data"]["n"] for event in events] == list(range(5 - count, 5))
    for event in events:
        event["data"]["n"] = "changed"
    assert [event["data"]["n"] for event in await manager.get_history(1, user=ADMIN)] == [4]


async def test_history_from_a_cursor(manager):
    """With `since` a client pages on through all that it missed, each event once."""
    await publish(manager, 10, odd_custom)
    seen, since = [], 0
    while page := await manager.get_history(3, since=f"{manager.epoch}-{since}", user=ADMIN):
        seen += [event["data"]["n"] for event in page]
        since = page[-1]["id"]
    assert seen == list(range(10))
    assert [e["id"] for e in await manager.get_history(9, "pin_added", since=4, user=ADMIN)] == [5, 7, 9]
    assert [e["id"] for e in await manager.get_history(1, since="other-7", user=ADMIN)] == [1]


async def test_from_a_cursor_on(manager):
    """What came after `since` comes first, in order, then what is new; other subscriptions get nothing twice."""
    await publish(manager, 700, odd_custom)
    async with connected(manager) as link:
        link.say(subscribe(["pin_added"]))
        assert (await link.until("subscription_confirmed"))["since"] == 700
        await manager.notify(NotificationType.PIN_ADDED, {"n": 700})
        link.say(subscribe(["custom_event"], since=100))
        assert (await link.events(1))[0]["id"] == 701
        assert (await link.until("subscription_confirmed"))["since"] == 100
        events = await link.events(300)
        await manager.notify(NotificationType.PIN_ADDED, {"n": 701})
        await manager.notify(CUSTOM, {"n": 702})
        events += await link.events(2)
    ids = [event["id"] for event in events]
    assert ids == [*range(102, 701, 2), 702, 703]
    assert [event["prev"] for event in events] == [100, *ids[:-1]]


@pytest.mark.parametrize("since", ["another-2", 99])
async def test_a_cursor_of_another_log(manager, since):
    """A cursor of another epoch, or behind the log's end, is told by `reset`, and all that there is comes."""
    await publish(manager, 3)
    async with connected(manager) as link:
        link.say(subscribe(since=since))
        assert await link.hear() == {"type": "reset", "epoch": manager.epoch, "first": 1}
        assert (await link.hear())["since"] == 0
        assert [event["id"] for event in await link.events(3)] == [1, 2, 3]


async def test_a_cursor_that_was_trimmed(tmp_path):
    """A cursor older than the log is told by `reset` with the first event that there is."""
    manager = AuthorizedNotificationManager(SQLiteEngine(tmp_path, max_events=10), max_history_size=5)
    await manager.open()
    await publish(manager, 50)
    await manager._engine.trim()
    async with connected(manager) as link:
        link.say(subscribe(since=5))
        await link.until("subscription_confirmed")
        reset = await link.hear()
        first = (await manager._engine.bounds()).first
        assert reset == {"type": "reset", "epoch": manager.epoch, "first": first}
        assert first > 6
        events = await link.events(51 - first)
        assert [event["id"] for event in events] == list(range(first, 51))
        assert events[0]["prev"] == first - 1
    await manager.close()


async def test_a_slow_client(manager):
    """Who does not read is told `lagged` and reads the log again: nothing is missing, nothing comes twice, and the
    other one has all of it meanwhile."""
    async with connected(manager, room=5) as slow, connected(manager) as quick:
        for link in (slow, quick):
            link.say(subscribe(["custom_event"]))
            await link.until("subscription_confirmed")
        for begin in range(0, 2000, 20):  # in steps, as a single commit would be a single page
            await publish(manager, 20, begin=begin)
        assert [event["id"] for event in await quick.events(2000)] == list(range(1, 2001))
        heard = []
        while sum(message["type"] == "notification" for message in heard) < 2000:
            heard.append(await slow.hear())
        lagged = [message for message in heard if message["type"] == "lagged"]
        events = [message for message in heard if message["type"] == "notification"]
        assert lagged
        assert all(message["from"] <= message["to"] for message in lagged)
        assert [event["id"] for event in events] == list(range(1, 2001))
        assert [event["prev"] for event in events] == list(range(2000))
        assert manager.get_metrics()["lagged_total"] == len(lagged)


async def test_unsubscribe_after_all_events(manager):
    """Of all_events, one type can be left out again."""
    async with connected(manager) as link:
        link.say(subscribe())
        assert (await link.until("subscription_confirmed"))["notification_types"] == ["all_events"]
        link.say({"action": "unsubscribe", "notification_types": ["custom_event"]})
        await link.until("unsubscription_confirmed")
        await manager.notify(CUSTOM, {})
        await manager.notify(NotificationType.PIN_ADDED, {})
        assert (await link.events(1))[0]["notification_type"] == "pin_added"


async def test_filters_belong_to_their_types(manager):
    """A filter counts for the types of its own subscription alone, and a later one takes its place."""
    async with connected(manager) as link:
        link.say(subscribe(["custom_event"], filters={"n": 1}), subscribe(["pin_added"]))
        await link.until("subscription_confirmed")
        await link.until("subscription_confirmed")
        await manager.notify(CUSTOM, {"n": 2})
        await manager.notify(NotificationType.PIN_ADDED, {"n": 2})
        link.say({"action": "ping"})
        assert [(await link.hear())["type"] for _ in range(2)] == ["notification", "pong"]
        link.say(subscribe(["custom_event"], filters={"n": {"gt": 1}}))
        await link.until("subscription_confirmed")
        await manager.notify(CUSTOM, {"n": 2})
        assert (await link.events(1))[0]["notification_type"] == "custom_event"


async def test_what_no_log_keeps(manager):
    """An event that is only announced has no id, and is in no history."""
    async with connected(manager) as link:
        link.say(subscribe())
        await link.until("subscription_confirmed")
        manager.emit(NotificationType.SYSTEM_METRICS, {"cpu": 1}, keep=False)
        event = (await link.events(1))[0]
        assert "id" not in event
        assert "prev" not in event
    assert await manager.get_history(user=ADMIN) == []


async def test_rights(manager):
    """A user who is no admin is refused types, sees none of them by all_events, and another user's events nowhere."""
    async with connected(manager, USER) as bob, connected(manager) as ada:
        bob.say(subscribe(["system_info", "webrtc_error", "custom_event"]))
        confirmed = await bob.until("subscription_confirmed")
        assert confirmed["notification_types"] == ["custom_event"]
        assert confirmed["unauthorized_types"] == ["system_info", "webrtc_error"]
        for link in (bob, ada):
            link.say(subscribe())
            await link.until("subscription_confirmed")
        await manager.notify(NotificationType.SYSTEM_INFO, {})
        await manager.notify_all(NotificationType.SYSTEM_WARNING, {})
        await manager.notify(NotificationType.CONTENT_ADDED, {"cid": "a"}, owner="ada")
        await manager.notify(NotificationType.CONTENT_ADDED, {"cid": "b"}, owner="bob")
        await manager.notify(CUSTOM, {})
        assert [event["id"] for event in await bob.events(2)] == [4, 5]
        assert [event["id"] for event in await ada.events(4)] == [1, 2, 3, 5]
        bob.say({"action": "get_history", "limit": 9}, subscribe(since=0), {"action": "ping"})
        assert [event["id"] for event in (await bob.until("history"))["events"]] == [4, 5]
        assert [event["id"] for event in await bob.events(2)] == [4, 5]
    with pytest.raises(PermissionError):
        await manager.get_history()


async def test_nobody(manager):
    """Without a user nothing is subscribed, in the guide's shape."""
    link = QueueOutlet()
    name = await manager.connect(link)
    assert await manager.subscribe(name, ["all_events"]) == {
        "success": False,
        "error": "User not authenticated",
        "subscribed_types": [],
    }
    result = await manager.subscribe(name, ["custom_event", "system_info"], user=USER)
    assert result["success"] is True
    assert result["subscribed_types"] == ["custom_event"]
    assert result["unauthorized_types"] == ["system_info"]
    await manager.disconnect(name)


async def test_nobody_sees_what_they_may_not(manager):
    """20,000 deliveries of random events to random users with random subscriptions: by an independent look at rights."""
    chance = random.Random(7)
    users = [
        {
            "id": f"user{n}",
            "role": chance.choice(["admin", "user"]),
            "permissions": {"webrtc": chance.random() < 0.5},
        }
        for n in range(20)
    ]
    async with contextlib.AsyncExitStack() as stack:
        links = [await stack.enter_async_context(connected(manager, user)) for user in users]
        wants = []
        for link in links:
            types = chance.choice([["all_events"], chance.sample([kind.value for kind in EVENT_TYPES], 9)])
            link.say(subscribe(types))
            await link.until("subscription_confirmed")
            wants.append(set(EVENT_TYPES if types == ["all_events"] else types))
        made = []
        for _ in range(1000):
            kind = chance.choice(EVENT_TYPES)
            owner = chance.choice([None, *(user["id"] for user in users)])
            made.append((kind, owner, chance.random() < 0.1))
        numbers = await asyncio.gather(
            *(
                (manager.notify_all if to_all else manager.notify)(kind, {}, owner=owner)
                for kind, owner, to_all in made
            )
        )
        sent = [(number, *event) for number, event in zip(numbers, made, strict=True)]
        for link, user, want in zip(links, users, wants, strict=True):
            due = [
                number
                for number, kind, owner, to_all in sent
                if (to_all or kind in want)
                and (owner is None or owner == user["id"])
                and (not kind.startswith("system_") or user["role"] == "admin")
                and (not kind.startswith("webrtc_") or user["permissions"]["webrtc"])
            ]
            assert [event["id"] for event in await link.events(len(due))] == due
            assert link.unread() == []
            assert all(may_see(principal_of(user), kind, owner) for n, kind, owner, _ in sent if n in due)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
async def test_each_event_once_whatever_happens(manager, data):
    """A client that is cut off at any time, reads as it likes and comes again at its cursor gets each event that it
    subscribed to exactly once and in order; where it is told that it lagged, too."""
    draw = data.draw
    begun = cursor = manager.last_id
    wanted = NotificationType(draw(st.sampled_from(["custom_event", "pin_added"])))
    due, seen = [], []
    for _ in range(draw(st.integers(1, 6))):
        async with connected(manager, room=draw(st.sampled_from([0, 1, 3]))) as link:
            link.say(subscribe([wanted.value], since=cursor))
            await link.until("subscription_confirmed")
            for count in draw(st.lists(st.integers(0, 120), max_size=3)):
                for _ in range(count):
                    kind = (
                        draw(st.sampled_from([CUSTOM, NotificationType.PIN_ADDED])) if count < 20 else wanted
                    )
                    number = await manager.notify(kind, {})
                    due += [number] if kind == wanted else []
                left = len(due) - len(seen)
                for event in await link.events(draw(st.integers(0, left)) if left else 0):
                    assert event["prev"] == cursor if seen else event["prev"] >= begun
                    cursor = event["id"]
                    seen.append(cursor)
    async with connected(manager) as link:
        link.say(subscribe([wanted.value], since=cursor))
        seen += [event["id"] for event in await link.events(len(due) - len(seen))]
        link.say({"action": "ping"})
        await link.until("pong")
    assert seen == due


async def test_a_thousand_cuts(manager):
    """1,000 forced disconnects while events are published without a pause: each event exactly once."""
    chance = random.Random(5)
    going = True

    async def go_on():
        while going:
            await publish(manager, 10)

    publishing = asyncio.create_task(go_on())
    seen, cursor = [], 0
    for _ in range(1000):
        link = QueueOutlet(chance.choice([0, 2, 8]))
        name = await manager.connect(link, user=ADMIN)
        await manager.subscribe(name, ["custom_event"], since=cursor)
        for event in await link.events(chance.randrange(3)):
            assert event["prev"] == cursor
            cursor = event["id"]
            seen.append(cursor)
        link.leave()
        await manager.disconnect(name)
    going = False
    await publishing
    assert seen == list(range(1, len(seen) + 1))
    assert len(seen) > 500


def test_texts_are_json():
    """The table above is of texts that are what they are meant to be."""
    assert all(isinstance(json.loads(text), dict) for text, _ in BAD[3:])
