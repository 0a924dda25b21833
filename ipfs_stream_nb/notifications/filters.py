"""Filters: which notifications a subscriber wants, by their fields (guide, "Filtering Notifications"; items 107 to 110).

Filters are an object `{key: wanted}`; a notification passes where each of them is met.

- A plain key is looked for in the notification's `data`, then in the notification itself. A key with dots is looked
  for in `data` as it stands, and is otherwise the way from the notification inwards: `data.cid`. Objects alone are
  walked, not lists. The first place that has the key counts.
- What is wanted is a value, or a list of values of which one must be there, or an object of operators, all of which
  must hold: `gt`, `gte`, `lt`, `lte` compare numbers with a number, and text with text by its code points; `prefix` is
  the start of a text; `ne` is any other value; `exists` says whether the key is there at all.
- A key that is not there meets nothing but `{"exists": false}`.
- Values are equal as JSON: true is not 1, 1 is 1.0, lists and objects are equal item by item.

An object with an operator's name among its keys is taken for operators, any other one, `{}` too, for a value. For the
value `{"gt": 5}` itself ask by a list, whose items are always values: `[{"gt": 5}]`.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from ipfs_stream_nb.errors import BadRequestError

MAX_KEYS: Final = 32
"""Keys of one subscriber's filters."""
MAX_KEY: Final = 512
"""Characters of a filter's key."""
MAX_JSON: Final = 16 << 10
"""Bytes of the JSON of all filters."""
MAX_DEPTH: Final = 8
"""Lists and objects in one another, the object of all filters included."""
MAX_LIST: Final = 256
"""Values of a list."""

_ABSENT: Final = object()
_ORDER: Final = {"gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le}
OPERATORS: Final = (*_ORDER, "ne", "prefix", "exists")

Check = Callable[[Any], bool]
"""Whether a value is as wanted; _ABSENT stands for a value that is not there."""
Test = Callable[[dict[str, Any], dict[str, Any]], bool]
"""Whether a notification, given with its data, meets one filter."""


@dataclass(frozen=True, slots=True)
class Filters:
    """What parse_filters made. Equal where the JSON is, in whatever order its keys are; false where there are none."""

    text: str = "{}"
    """Their JSON, keys in order."""
    _tests: tuple[Test, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        tests = tuple(_test(key, wanted) for key, wanted in self.to_json().items())
        object.__setattr__(self, "_tests", tests)

    def __bool__(self) -> bool:
        return bool(self._tests)

    def passes(self, notification: dict[str, Any]) -> bool:
        """Whether a notification (the wire's message, parsed) meets them all. Never raises."""
        data = notification.get("data")
        if not isinstance(data, dict):
            data = {}
        for test in self._tests:  # noqa: SIM110  # a generator would take twice as long
            if not test(notification, data):
                return False
        return True

    def to_json(self) -> dict[str, Any]:
        """The object that was parsed, made anew each time."""
        parsed: dict[str, Any] = json.loads(self.text)
        return parsed


def parse_filters(value: object) -> Filters:
    """The filters that a client sent; None and {} are none. Raises BadRequestError, which names what is wrong."""
    if value is None:
        return Filters()
    if not isinstance(value, dict):
        raise BadRequestError(f"filters are an object of keys and values, not a {type(value).__name__}")
    if len(value) > MAX_KEYS:
        raise BadRequestError(f"there are {len(value)} filters; at most {MAX_KEYS} are taken")
    _check_bounds(value)
    for key in value:
        if len(key) > MAX_KEY:
            raise BadRequestError(
                f"the filter key {key[:40]!r}… has {len(key)} characters; at most {MAX_KEY} are taken"
            )
    try:
        text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    except ValueError as error:  # an integer of thousands of digits
        raise BadRequestError(f"the filters cannot be written as JSON: {error}") from None
    size = len(text.encode(errors="surrogatepass"))
    if size > MAX_JSON:
        raise BadRequestError(f"the filters have {size} bytes of JSON; at most {MAX_JSON} are taken")
    return Filters(text)


def _check_bounds(filters: dict[Any, Any]) -> None:
    """Raise BadRequestError for what is not JSON, or is too deep or has too much in it to be encoded at all."""
    todo: list[tuple[Any, int]] = [(filters, 1)]
    count = 0
    while todo:
        value, depth = todo.pop()
        if isinstance(value, (list, dict)):
            count += len(value)
            if depth > MAX_DEPTH:
                raise BadRequestError(f"the filters are nested more than {MAX_DEPTH} lists and objects deep")
            if count > MAX_JSON:  # each takes a byte and more
                raise BadRequestError(
                    f"the filters have over {MAX_JSON} bytes of JSON, which are the most taken"
                )
            if isinstance(value, list) and len(value) > MAX_LIST:
                raise BadRequestError(
                    f"a list in the filters has {len(value)} values; at most {MAX_LIST} are taken"
                )
            if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
                raise BadRequestError("a key in the filters is not text")
            todo.extend(
                (inner, depth + 1) for inner in (value.values() if isinstance(value, dict) else value)
            )
        elif isinstance(value, float) and not math.isfinite(value):
            raise BadRequestError(f"{value} in the filters: numbers must be finite")
        elif value is not None and not isinstance(value, (str, int, float)):
            raise BadRequestError(f"a {type(value).__name__} in the filters: values must be JSON")


def _test(key: str, wanted: Any) -> Test:
    """One filter."""
    if isinstance(wanted, list):
        check = _any_of(wanted)
    elif isinstance(wanted, dict) and not wanted.keys().isdisjoint(OPERATORS):
        check = _all_hold(key, wanted)
    else:
        check = _equals(wanted)
    parts = key.split(".")

    def at_plain_key(root: dict[str, Any], data: dict[str, Any]) -> bool:
        value = data.get(key, _ABSENT)
        return check(root.get(key, _ABSENT) if value is _ABSENT else value)

    def at_dotted_key(root: dict[str, Any], data: dict[str, Any]) -> bool:
        value = data.get(key, _ABSENT)
        if value is _ABSENT:
            value = root
            for part in parts:
                if not isinstance(value, dict):
                    return check(_ABSENT)
                value = value.get(part, _ABSENT)
        return check(value)

    return at_plain_key if len(parts) == 1 else at_dotted_key


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _equals(wanted: Any) -> Check:
    """Equality as JSON. As deep as what is wanted, whatever it is compared with."""
    if isinstance(wanted, str):
        return lambda value: value == wanted
    if wanted is None or isinstance(wanted, bool):
        return lambda value: value is wanted
    if isinstance(wanted, list):
        items = [_equals(item) for item in wanted]
        return lambda value: (
            isinstance(value, list)
            and len(value) == len(items)
            and all(check(item) for check, item in zip(items, value, strict=True))
        )
    if isinstance(wanted, dict):
        members = {name: _equals(member) for name, member in wanted.items()}
        return lambda value: (
            isinstance(value, dict)
            and value.keys() == members.keys()
            and all(check(value[name]) for name, check in members.items())
        )
    return lambda value: value == wanted and not isinstance(value, bool)


def _any_of(wanted: list[Any]) -> Check:
    """Whether a value is one of these."""
    texts = frozenset(item for item in wanted if isinstance(item, str))
    numbers = frozenset(item for item in wanted if _is_number(item))
    others = [_equals(item) for item in wanted if not isinstance(item, str) and not _is_number(item)]

    def check(value: Any) -> bool:
        if isinstance(value, str):
            return value in texts
        if _is_number(value):
            return value in numbers
        return any(equal(value) for equal in others)

    return check


def _all_hold(key: str, wanted: dict[str, Any]) -> Check:
    """Whether all operators hold. Raises BadRequestError."""
    checks = [_operation(key, name, operand) for name, operand in wanted.items()]
    return checks[0] if len(checks) == 1 else lambda value: all(check(value) for check in checks)


def _operation(key: str, name: str, operand: Any) -> Check:
    """Whether one operator holds. Raises BadRequestError."""
    if name in _ORDER:
        compare = _ORDER[name]
        if isinstance(operand, str):
            return lambda value: isinstance(value, str) and compare(value, operand)
        if _is_number(operand):
            return lambda value: _is_number(value) and compare(value, operand)
        right = "a number or text"
    elif name == "ne":
        equal = _equals(operand)
        return lambda value: value is not _ABSENT and not equal(value)
    elif name == "prefix":
        if isinstance(operand, str):
            return lambda value: isinstance(value, str) and value.startswith(operand)
        right = "text"
    elif name == "exists":
        if isinstance(operand, bool):
            return lambda value: (value is not _ABSENT) is operand
        right = "true or false"
    else:
        raise BadRequestError(
            f"filter {key[:80]!r}: {name[:80]!r} is no operator; these are: {', '.join(OPERATORS)}. "
            "To compare with the object itself, put it into a list"
        )
    raise BadRequestError(
        f"filter {key[:80]!r}: {name} takes {right}, not {json.dumps(operand, ensure_ascii=False)[:80]}"
    )
