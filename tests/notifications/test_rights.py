"""Who may see and send which notifications."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfs_stream_nb.errors import BadRequestError
from ipfs_stream_nb.notifications.events import EVENT_TYPES, NotificationType
from ipfs_stream_nb.notifications.rights import (
    EVERYTHING,
    MAX_SHOWN,
    MAX_TYPES,
    Principal,
    TypeChoice,
    may_emit,
    may_see,
    may_subscribe,
    principal_of,
    split_types,
)

ADMIN = Principal("root", admin=True, webrtc=True)
USER = Principal("ann")
TYPES = [kind.value for kind in NotificationType]
SYSTEM = {"system_metrics", "system_warning", "system_error", "system_info"}
WEBRTC = {name for name in TYPES if name[:7] == "webrtc_"}
OPEN = set(TYPES) - SYSTEM - WEBRTC - {"all_events"}
NOBODY = (None, {}, [], "ann", 5, True, ["role", "admin"])
NAMES = (None, "ann", "bob", "", 5, ["ann"])
ROLES = ("admin", "user", None, "Admin", True, 1, ["admin"], "")
PERMISSIONS = (
    {"webrtc": True},
    {"webrtc": False},
    {"webrtc": "false"},
    {"webrtc": 1},
    {},
    None,
    "webrtc",
    ["webrtc"],
)
OWNERS = (None, "ann", "bob", "")


def seen_by(user, types):
    """What a user may see, said anew: which types, and whose events."""
    if not isinstance(user, dict) or user == {}:
        return set(), set()
    seen = set(OPEN)
    if "role" in user and user["role"] == "admin":
        seen |= SYSTEM
    if (
        "permissions" in user
        and isinstance(user["permissions"], dict)
        and user["permissions"].get("webrtc") is True
    ):
        seen |= WEBRTC
    if types is not None:
        seen &= set(types)
    owners = {None}
    if "id" in user and user["id"] in ("ann", "bob"):
        owners.add(user["id"])
    return seen, owners


def random_user(rng):
    """Whatever may come as a user; each part may be missing."""
    if rng.random() < 0.05:
        return rng.choice(NOBODY)
    parts = {"id": rng.choice(NAMES), "role": rng.choice(ROLES), "permissions": rng.choice(PERMISSIONS)}
    return {name: value for name, value in parts.items() if rng.random() < 0.9}


def test_nobody_sees_what_they_may_not():
    """100,000 users, tokens, types and owners: what may be seen is what the oracle says, no more and no less."""
    rng = random.Random(5)
    yes = 0
    for _ in range(100_000):
        user, owner, name = random_user(rng), rng.choice(OWNERS), rng.choice([*TYPES, "unknown"])
        types = frozenset(rng.sample(TYPES, rng.randrange(20))) if rng.random() < 0.3 else None
        principal = principal_of(user)
        if principal is not None and types is not None:
            principal = Principal(principal.id, principal.admin, principal.webrtc, types)
        seen, owners = seen_by(user, types)
        assert may_subscribe(principal, name) is (name in seen), (user, types, name)
        assert may_see(principal, name, owner) is (name in seen and owner in owners), (
            user,
            types,
            name,
            owner,
        )
        yes += name in seen and owner in owners
    assert yes > 10_000  # neither side of the rule is rare


def test_a_choice_of_types_grants_no_more_than_may_be_seen():
    """5,000 users and subscriptions: what is granted, whether named or by all_events, is what may be seen of it."""
    rng = random.Random(6)
    for _ in range(5_000):
        user, asked = random_user(rng), rng.choices([*TYPES, "unknown", 7], k=rng.randrange(6))
        choice, seen = split_types(asked, principal_of(user)), seen_by(user, None)[0]
        wanted = set(TYPES) - {"all_events"} if "all_events" in asked else set(asked) & set(TYPES)
        assert set(choice.types) == wanted & seen
        assert set(choice.unauthorized) == wanted - seen
        assert set(split_types("all_events", principal_of(user)).types) == seen


@pytest.mark.parametrize("user", NOBODY)
def test_who_is_not_authenticated_has_no_rights(user):
    """What is no dictionary, or an empty one, is nobody, who sees and sends nothing."""
    assert principal_of(user) is None
    assert not any(
        may_subscribe(None, name) or may_see(None, name, None) or may_emit(None, name) for name in TYPES
    )


def test_a_principal_can_be_compared_and_is_a_key():
    """Users with the same rights are equal, and limits make a difference."""
    user = {"id": "ann", "role": "user", "permissions": {"webrtc": True}, "email": "a@example.org"}
    assert principal_of(user) == Principal("ann", webrtc=True)
    assert len({principal_of(user), principal_of(dict(user)), Principal("ann", types=frozenset())}) == 2


def test_anothers_events_are_hidden_from_admins():
    """An admin sees the system's events and their own, and not another user's."""
    assert may_see(ADMIN, "system_error", None)
    assert may_see(ADMIN, "content_added", "root")
    assert not may_see(ADMIN, "content_added", "ann")
    assert not may_see(Principal(None, admin=True), "content_added", "root")


def test_without_authorization_everything_is_seen():
    """The principal of a manager that asks for no rights sees every type, whosever the event is."""
    assert split_types("all_events", EVERYTHING).types == EVENT_TYPES
    assert all(may_see(EVERYTHING, kind, owner) for kind in EVENT_TYPES for owner in OWNERS)


@pytest.mark.parametrize("name", TYPES)
def test_who_may_emit_what(name):
    """Everybody sends custom events, admins what tells of content, pins and the system, nobody what is measured here."""
    by_admins = name.startswith(("content_", "pin_")) or name in {
        "system_info",
        "system_warning",
        "system_error",
    }
    assert may_emit(ADMIN, name) is (by_admins or name == "custom_event")
    assert may_emit(USER, name) is (name == "custom_event")
    assert not may_emit(ADMIN, f"{name}_")


def test_all_events_of_one_who_may_see_all():
    """all_events stays one word where it hides nothing, and stands for every type."""
    choice = split_types(["pin_added", "all_events", "nonsense"], ADMIN)
    assert choice == TypeChoice(("all_events",), ("nonsense",), ())
    assert choice.types == EVENT_TYPES


def test_all_events_of_one_who_may_not():
    """all_events becomes the types that may be seen, and the others are named as refused."""
    choice = split_types("all_events", USER)
    assert set(choice.granted) == OPEN
    assert set(choice.unauthorized) == SYSTEM | WEBRTC
    assert choice.types == choice.granted
    narrow = split_types(
        ["all_events"], Principal("root", admin=True, webrtc=True, types=frozenset({"pin_added"}))
    )
    assert narrow.granted == ("pin_added",)


def test_types_are_sorted_out_in_the_order_they_came():
    """Each type is named once, with what is unknown or no text among the invalid."""
    asked = [
        "pin_removed",
        "system_info",
        "x",
        "pin_added",
        "pin_removed",
        7,
        None,
        "x",
        "PIN_ADDED",
        {"a": [1]},
        "",
    ]
    choice = split_types([*asked, NotificationType.PIN_ADDED], USER)
    assert choice.granted == ("pin_removed", "pin_added")
    assert choice.unauthorized == ("system_info",)
    assert choice.invalid == ("x", "7", "null", "PIN_ADDED", '{"a": [1]}', "")
    assert all(type(name) is str for name in choice.granted)
    assert choice.types == (NotificationType.PIN_REMOVED, NotificationType.PIN_ADDED)
    assert split_types("pin_added", USER) == split_types(["pin_added"], USER)
    assert split_types([], USER) == TypeChoice((), (), ())


@pytest.mark.parametrize("names", [None, 5, True, {"pin_added": 1}, ("pin_added",), ["x"] * (MAX_TYPES + 1)])
def test_what_is_no_choice_of_types(names):
    """Anything but a list of at most 64 values, or a text, is refused with a text that names the field."""
    with pytest.raises(BadRequestError, match="notification_types"):
        split_types(names, USER)


def test_what_is_no_type_is_shown_short():
    """However long, deep or huge it is, 100 characters are shown of it."""
    nested = []
    for _ in range(100_000):
        nested = [nested]
    odd = ["x" * 10_000, [0] * 10_000, nested, 10**5000, object(), b"y"]
    shown = split_types(odd, USER).invalid
    assert [len(text) for text in shown[:2]] == [MAX_SHOWN, MAX_SHOWN]
    assert shown[2:] == ("list", "int", "object", "bytes")


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text() | st.sampled_from(TYPES),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(json_values, json_values)
def test_whatever_is_sent_is_sorted_out_or_refused(names, user):
    """No JSON raises anything but BadRequestError, and nothing is granted that may not be seen."""
    principal = principal_of(user)
    try:
        choice = split_types(names, principal)
    except BadRequestError:
        return
    assert all(may_subscribe(principal, kind) for kind in choice.types)
