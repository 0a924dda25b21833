"""Who is sent which events: 100,000 random events, users and filters beside an independent look at rights and filters."""

from __future__ import annotations

import random

from ipfs_stream_nb.notifications.events import EVENT_TYPES, Event, Record
from ipfs_stream_nb.notifications.filters import parse_filters
from ipfs_stream_nb.notifications.rights import EVERYTHING, principal_of
from ipfs_stream_nb.notifications.selection import Batch, Selection

NAMES = ["ada", "bob", "eve"]


def random_user(chance):
    return {
        "id": chance.choice(NAMES),
        "role": chance.choice(["admin", "user"]),
        "permissions": chance.choice([{"webrtc": True}, {"webrtc": False}, {}]),
    }


def random_filter(chance):
    value = chance.randrange(4)
    wanted = chance.choice([value, [value, 1], {"gt": value}, {"ne": value}, {"exists": True}])
    return {chance.choice(["n", "data.n", "cid", "source"]): wanted} if chance.random() < 0.7 else {}


def meets(event, key, wanted):
    """The filters above, looked at in another way."""
    missing = object()
    value = event["data"].get(key.removeprefix("data."), missing)
    if value is missing and key == "source":
        value = event.get("source", missing)
    if value is missing:
        return False
    if isinstance(wanted, list):
        return value in wanted
    if isinstance(wanted, dict):
        if "gt" in wanted:
            return isinstance(value, int) and value > wanted["gt"]
        return value != wanted["ne"] if "ne" in wanted else True
    return value == wanted


def due(record, event, user, subscriptions):
    """Whether an event is to be sent."""
    kind = record.notification_type
    if record.owner not in (None, user["id"]):
        return False
    if kind.startswith("system_") and user["role"] != "admin":
        return False
    if kind.startswith("webrtc_") and not user["permissions"].get("webrtc"):
        return False
    if record.kind == "system_notification":
        return True
    return kind in subscriptions and all(meets(event, *one) for one in subscriptions[kind].items())


def test_nobody_sees_what_they_may_not():
    """What is sent is exactly what the user may see and wants: for 100,000 events and users."""
    chance = random.Random(3)
    records = []
    for number in range(1, 501):
        data = {"n": chance.randrange(4)} if chance.random() < 0.8 else {"cid": "x"}
        event = Event(
            chance.choice(EVENT_TYPES),
            data,
            chance.choice([None, "me"]),
            chance.choice([None, *NAMES]),
            "system_notification" if chance.random() < 0.1 else "notification",
        )
        records.append(Record.of(event, number))
    batch = Batch(records)
    messages = [record.message() for record in records]
    sent = 0
    for _ in range(200):
        user = random_user(chance)
        subscriptions = {
            kind.value: random_filter(chance) for kind in chance.sample(EVENT_TYPES, chance.randrange(20))
        }
        filters = {kind: parse_filters(wanted) for kind, wanted in subscriptions.items()}
        selection = Selection.of(filters, principal_of(user))
        wanted = list(selection.wanted(batch))
        assert wanted == [
            record
            for record, event in zip(records, messages, strict=True)
            if due(record, event, user, subscriptions)
        ]
        sent += len(wanted)
    assert sent > 5000


def test_selections_are_shared():
    """Who wants the same with the same rights has the same selection, however it was said; others have another."""
    one = Selection.of({"custom_event": parse_filters({"a": 1, "b": 2})}, EVERYTHING)
    same = Selection.of({"custom_event": parse_filters({"b": 2, "a": 1})}, EVERYTHING)
    assert one is same
    assert one is not Selection.of({"custom_event": parse_filters({"a": 1})}, EVERYTHING)
    assert one is not Selection.of(
        {"custom_event": parse_filters({"a": 1, "b": 2})}, principal_of({"id": "ada"})
    )


def test_nobody_is_sent_nothing():
    """Without a user there is nothing, not even what goes to all."""
    records = [Record.of(Event("custom_event", {}, kind="system_notification"), 1)]
    assert list(Selection.of({"custom_event": parse_filters(None)}, None).wanted(Batch(records))) == []
