"""Filters, against an oracle that is written the other way round."""

import json
import random
import timeit
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ipfs_stream_nb.errors import BadRequestError
from ipfs_stream_nb.notifications.filters import (
    MAX_DEPTH,
    MAX_JSON,
    MAX_KEY,
    MAX_KEYS,
    MAX_LIST,
    Filters,
    parse_filters,
)

ORDERS = {
    "gt": lambda sign: sign > 0,
    "gte": lambda sign: sign >= 0,
    "lt": lambda sign: sign < 0,
    "lte": lambda sign: sign <= 0,
}


# the oracle: values become text that is equal exactly where the values are


def kind(value):
    """Which of JSON's kinds a value is of."""
    return {bool: "bool", int: "number", float: "number", str: "text"}.get(type(value), "other")


def canonical(value):
    """JSON with its kinds spelt out."""
    if isinstance(value, dict):
        return "{" + ",".join(sorted(f"{k!r}:{canonical(v)}" for k, v in value.items())) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    return f"number {Fraction(value)}" if kind(value) == "number" else f"{kind(value)} {value!r}"


def found(notification, key):
    """All values at a key, the one that counts first."""
    data = notification["data"] if isinstance(notification.get("data"), dict) else {}
    values = [data[key]] if key in data else []
    place = [notification]
    for part in key.split("."):
        place = [inner[part] for inner in place if isinstance(inner, dict) and part in inner]
    return values + place


def meets(values, wanted):
    """Whether the first of these values is as wanted."""
    if isinstance(wanted, list):
        return bool(values) and canonical(values[0]) in map(canonical, wanted)
    if not isinstance(wanted, dict) or not set(wanted) & {*ORDERS, "ne", "prefix", "exists"}:
        return meets(values, [wanted])
    for name, operand in wanted.items():
        if name == "exists":
            held = bool(values) == operand
        elif not values:
            held = False
        elif name == "ne":
            held = canonical(values[0]) != canonical(operand)
        elif kind(values[0]) != kind(operand) or kind(operand) not in ("number", "text"):
            held = False
        elif name == "prefix":
            held = values[0][: len(operand)] == operand
        else:
            held = ORDERS[name]((values[0] > operand) - (values[0] < operand))
        if not held:
            return False
    return True


def oracle(filters, notification):
    """What passes should say."""
    return all(meets(found(notification, key), wanted) for key, wanted in filters.items())


numbers = st.sampled_from([0, 1, 2, -1, 1.0, 0.0, -0.0, 1.5, 10**20, 1e20, 2**53 + 1, float(2**53)])
texts = st.sampled_from(["", "a", "ab", "b", "1", "true", "pin_added", "\ud800", "é"])
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
names = st.sampled_from(["a", "b", "cid", "a.b", "data", "gt", ""])
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=5,
)
operations = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(ORDERS, numbers | texts),
        "ne": values,
        "prefix": texts,
        "exists": st.booleans(),
    },
)
keys = st.one_of(
    st.lists(names, min_size=1, max_size=4).map(".".join),
    st.sampled_from(["data.a", "data.a.b", "notification_type", "source", "data.data.a", ".", "a."]),
)
plain_objects = values.filter(lambda value: not isinstance(value, dict) or "gt" not in value)
filter_objects = st.dictionaries(keys, plain_objects | operations | st.lists(values, max_size=4), max_size=2)
notifications = st.fixed_dictionaries(
    {},
    optional={
        "notification_type": st.just("pin_added"),
        "data": st.dictionaries(names, values, max_size=4) | values,
        "source": texts,
        "a": values,
    },
)


@settings(max_examples=500)
@given(filter_objects, notifications)
def test_what_passes(filters, notification):
    """Every operator, key and kind of value is decided as the oracle decides it."""
    assert parse_filters(filters).passes(notification) is oracle(filters, notification)


POOL = [
    0,
    1,
    1.0,
    2,
    True,
    False,
    None,
    "",
    "a",
    "ab",
    [1],
    [True],
    {},
    {"b": 1},
    {"b": True},
    {"b": "a", "a": 2},
]
"""Few values, so that many are equal, or would be to Python."""


def random_wanted(rng):
    """A value, a list of some, or operators."""
    if rng.random() < 0.4:
        return rng.choice(POOL)
    if rng.random() < 0.5:
        return rng.choices(POOL, k=rng.randrange(9))
    ordered = {
        name: rng.choice([0, 1, 1.5, "", "a", "ab"]) for name in rng.sample(list(ORDERS), rng.randrange(3))
    }
    others = {"ne": rng.choice(POOL), "prefix": rng.choice(["", "a"]), "exists": rng.random() < 0.5}
    return ordered | dict(rng.sample(list(others.items()), rng.choice([0, 1, 1, 2])))


def test_what_passes_among_few_values():
    """50,000 filters and notifications of few keys and values, of which many pass."""
    rng = random.Random(7)
    passed = 0
    for _ in range(50_000):
        keys = rng.choices(["a", "b", "a.b", "data.a", "data.b", "data.a.b"], k=rng.choice([1, 1, 2]))
        filters = {key: random_wanted(rng) for key in keys}
        data = {
            key: rng.choice(POOL) for key in rng.sample(["a", "b", "a.b", "data.a"], rng.choice([0, 2, 3, 4]))
        }
        notification = {"data": data, "a": rng.choice(POOL), "source": "a"}
        passing = oracle(filters, notification)
        assert parse_filters(filters).passes(notification) is passing, (filters, notification)
        passed += passing
    assert passed > 3_000


@pytest.mark.parametrize(
    ("filters", "passing"),
    [
        (None, True),
        ({}, True),
        ({"cid": "bafy"}, True),
        ({"cid": "bafz"}, False),
        ({"data.cid": "bafy"}, True),
        ({"cid": "bafy", "size": 6}, False),  # ANDed
        ({"notification_type": ["pin_added", "content_added"]}, True),
        ({"source": "shadowed"}, True),  # data comes first
        ({"source": "root"}, False),
        ({"data.source": "shadowed"}, True),
        ({"absent": None}, False),
        ({"data.absent": None}, False),
        ({"absent": {"ne": 1}}, False),
        ({"absent": {"exists": False}}, True),
        ({"data.absent.deeper": {"exists": False}}, True),
        ({"absent": {"exists": True}}, False),
        ({"cid": {"exists": False}}, False),
        ({"size": 5.0}, True),
        ({"one": True}, False),
        ({"yes": 1}, False),
        ({"yes": [1, "true"]}, False),
        ({"yes": True}, True),
        ({"size": {"gt": 4, "lte": 5}}, True),
        ({"size": {"gt": 4, "lt": 5}}, False),
        ({"size": {"gt": "4"}}, False),
        ({"yes": {"gte": 0}}, False),
        ({"cid": {"prefix": "ba"}}, True),
        ({"size": {"prefix": "5"}}, False),
        ({"cid": {"gte": "b", "lt": "c"}}, True),
        ({"a.b": "literal"}, True),  # the key as it stands in data
        ({"data.dotted": "literal"}, True),  # before the way there
        ({"data.dotted": "walked"}, False),
        ({"nested.x": 1}, False),  # a way begins at the notification
        ({"data.nested.x": 1}, True),
        ({"data.list.0": 1}, False),  # lists are not walked
        ({"list": [1, 2]}, False),  # any of them
        ({"list": [[1, 2]]}, True),
        ({"list": [[1], [1, 2, 3]]}, False),
        ({"list": {"ne": [1, 2]}}, False),
        ({"list": []}, False),
        ({"nested": {"x": 1}}, True),
        ({"nested": {}}, False),
        ({"empty": {}}, True),
        ({"operators": {"gt": 5}}, False),  # taken for an operator
        ({"operators": [{"gt": 5}]}, True),
        ({"data": {"cid": "bafy"}}, False),  # all of data, or nothing
    ],
)
def test_examples(filters, passing):
    """The documented rules, one by one."""
    data = {
        "cid": "bafy",
        "size": 5,
        "one": 1,
        "yes": True,
        "source": "shadowed",
        "a.b": "literal",
        "data.dotted": "literal",
        "dotted": "walked",
        "nested": {"x": 1},
        "list": [1, 2],
        "empty": {},
        "operators": {"gt": 5},
    }
    notification = {"type": "notification", "notification_type": "pin_added", "data": data, "source": "root"}
    assert parse_filters(filters).passes(notification) is passing


def deep(levels, inner=0):
    """Lists in one another."""
    for _ in range(levels):
        inner = [inner]
    return inner


ENDLESS = {}
ENDLESS["a"] = ENDLESS
SHARED = 1
for _ in range(MAX_DEPTH - 1):
    SHARED = [SHARED] * MAX_LIST


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        ([], "not a list"),
        ("cid", "not a str"),
        (0, "not a int"),
        (False, "not a bool"),
        ({"a": {"gt": 1, "above": 2}}, "'above' is no operator"),
        ({"a": {"gt": True}}, "gt takes a number or text, not true"),
        ({"a": {"lte": None}}, "lte takes a number or text, not null"),
        ({"a": {"lt": [1]}}, r"lt takes a number or text, not \[1\]"),
        ({"a": {"prefix": 1}}, "prefix takes text"),
        ({"a": {"exists": 1}}, "exists takes true or false"),
        ({"a": {"exists": "no"}}, "exists takes true or false"),
        ({str(n): n for n in range(MAX_KEYS + 1)}, "33 filters; at most 32"),
        ({"k" * (MAX_KEY + 1): 1}, "513 characters; at most 512"),
        ({"a": "x" * MAX_JSON}, "bytes of JSON; at most 16384"),
        ({"a": "é" * (MAX_JSON // 2)}, "bytes of JSON; at most 16384"),
        ({"a": deep(MAX_DEPTH)}, "more than 8"),
        ({"a": deep(100_000)}, "more than 8"),
        (ENDLESS, "more than 8"),
        ({"a": SHARED}, "over 16384 bytes"),
        ({"a": [0] * (MAX_LIST + 1)}, "257 values; at most 256"),
        ({"a": {"b": [0] * (MAX_LIST + 1)}}, "257 values; at most 256"),
        ({"a": float("nan")}, "nan in the filters"),
        ({"a": [float("inf")]}, "inf in the filters"),
        ({"a": {"gt": -float("inf")}}, "-inf in the filters"),
        ({"a": 10**5000}, "cannot be written as JSON"),
        ({1: 2}, "key in the filters is not text"),
        ({"a": {None: 2}}, "key in the filters is not text"),
        ({"a": {1, 2}}, "a set in the filters"),
        ({"a": [b"x"]}, "a bytes in the filters"),
    ],
    ids=lambda _: "",
)
def test_bad_filters(filters, words):
    """Whatever is wrong with filters is named, in a short text."""
    with pytest.raises(BadRequestError, match=words) as caught:
        parse_filters(filters)
    assert len(str(caught.value)) < 400


def test_the_limits_themselves_are_taken():
    """What is just within each limit is a filter that works."""
    assert parse_filters({"a": deep(MAX_DEPTH - 1)}).passes({"data": {"a": deep(MAX_DEPTH - 2)}})
    assert parse_filters({"a": list(range(MAX_LIST))}).passes({"data": {"a": MAX_LIST - 1}})
    key = ".".join("k" * (MAX_KEY // 2)) + "."
    assert len(key) == MAX_KEY
    assert not parse_filters({key: 1}).passes({"data": {}})
    assert len(parse_filters({str(n): n for n in range(MAX_KEYS)}).to_json()) == MAX_KEYS
    long = "x" * (MAX_JSON - len('{"a":""}'))
    assert parse_filters({"a": long}).passes({"a": long})
    with pytest.raises(BadRequestError, match="16385 bytes"):
        parse_filters({"a": long + "x"})


@settings(max_examples=500)
@given(filter_objects | values)
@example({"a": {"gt": 1, "\ud800": 2}})
def test_parsing_raises_one_error_only(value):
    """Any JSON is either filters, which give back what was parsed, or a BadRequestError."""
    try:
        filters = parse_filters(value)
    except BadRequestError:
        return
    assert canonical(filters.to_json()) == canonical(value or {})


@given(filter_objects)
def test_equal_whatever_the_order_of_keys(value):
    """The same JSON with its keys in another order gives equal filters with the same hash, that pass the same."""

    def turned(part):
        if isinstance(part, dict):
            return {key: turned(part[key]) for key in reversed(part)}
        return [turned(item) for item in part] if isinstance(part, list) else part

    one, other = parse_filters(value), parse_filters(turned(value))
    assert one == other
    assert hash(one) == hash(other)
    assert one != parse_filters({"something": "else"})
    assert bool(one) is bool(value)


def test_none_and_an_empty_object_are_the_same():
    """No filters are false, equal to one another, and pass everything."""
    assert parse_filters(None) == parse_filters({}) == Filters()
    assert not Filters()
    assert Filters().passes({})


def test_later_changes_do_not_reach_filters():
    """Filters keep nothing of the object they were parsed from, nor of what they give back."""
    wanted = {"a": ["x"]}
    filters = parse_filters(wanted)
    wanted["a"].append("y")
    filters.to_json()["a"].append("y")
    assert filters.to_json() == {"a": ["x"]}
    assert not filters.passes({"data": {"a": "y"}})


@pytest.mark.parametrize(
    "notification",
    [
        {},
        {"data": None},
        {"data": [1]},
        {"data": "a"},
        {"data": {"a": deep(50_000)}},
        {"data": {"a": 10**6000}},
        {"data": {"a": float("nan")}},
        {"data": {"a": {"b": deep(50_000)}}},
        {"data": {"a": object()}},
    ],
    ids=lambda _: "",
)
def test_odd_notifications_raise_nothing(notification):
    """However deep, huge or strange what a notification holds is, filters say yes or no."""
    for wanted in [1, 1.5, "x", None, [1, "x"], [[1]], {"b": [1]}, *({name: 1.5} for name in ORDERS)]:
        for key in ("a", "data.a", "data.a.b"):
            assert parse_filters({key: wanted}).passes(notification) in (True, False)
    assert parse_filters({"data.a.b.c": {"exists": False}}).passes(notification)


def test_a_plain_key_takes_less_than_parsing_did():
    """Equality of one plain key costs less than parsing the message did; the best of some runs counts."""
    passes = parse_filters({"cid": "bafy"}).passes
    text = json.dumps(
        {"type": "notification", "notification_type": "pin_added", "data": {"cid": "bafy", "size": 5}}
    )
    notification = json.loads(text)
    ours = min(timeit.repeat(lambda: passes(notification), number=2000, repeat=9))
    parsing = min(timeit.repeat(lambda: json.loads(text), number=2000, repeat=9))
    assert ours < parsing
