"""What all conversations read and say alike."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfs_stream_nb.errors import (
    BadRequestError,
    BusyError,
    DiskFullError,
    IPFSStreamError,
    NotFoundError,
    QuotaExceededError,
    RetrievalError,
    TooLargeError,
    UnauthorizedError,
)
from ipfs_stream_nb.transports import connection
from ipfs_stream_nb.transports.connection import (
    MAX_REASON,
    MAX_TEXT,
    close_code,
    close_reason,
    error_message,
    integer,
    read_json,
    refuse,
    shown,
    text,
)
from queue_connection import QueueConnection

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_objects_are_read(value):
    """Whatever JSON object is sent is read."""
    raw = json.dumps(value)
    assert json.dumps(read_json(raw, "x")) == raw


@given(st.text() | st.binary() | VALUES.map(json.dumps))
def test_all_else_is_refused(message):
    """Any other text or bytes is a BadRequestError that says what was due."""
    try:
        is_object = isinstance(message, str) and isinstance(json.loads(message), dict)
    except ValueError:
        is_object = False
    if not is_object:
        with pytest.raises(BadRequestError, match="a test was due"):
            read_json(message, "a test")


@pytest.mark.parametrize(
    "message", ['{"a":' * 10_000, "[" * 60_000, '{"a":' + "9" * 5000 + "}", '"' + "x" * 60_000]
)
def test_deep_and_long_json(message):
    """What Python's reader gives up on is refused like any other text."""
    with pytest.raises(BadRequestError, match="not JSON"):
        read_json(message, "a test")
    with pytest.raises(TooLargeError):
        read_json(" " * (MAX_TEXT + 1), "a test")


@given(VALUES)
def test_fields(value):
    """A number is a whole one of 0 or more, a text one without control characters; all else is refused by name."""
    message = {"field": value}
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        assert integer(message, "field") == value
    elif value is not None:
        with pytest.raises(BadRequestError, match="field"):
            integer(message, "field")
    if value is None or (isinstance(value, str) and len(value) <= 50 and value.isprintable()):
        assert text(message, "field", 50, default="none") == ("none" if value is None else value)
    elif not isinstance(value, str) or len(value) > 50 or not value.replace("\xad", "").isprintable():
        with contextlib.suppress(BadRequestError):
            read = text(message, "field", 50)
            assert value == read == value.encode().decode()
            assert not any(letter < " " or "\x7f" <= letter < "\xa0" for letter in read)


@given(VALUES)
def test_a_value_is_shown_in_short(value):
    """Whatever it is, an error's text about it is short, and can be written as UTF-8."""
    assert len(shown(value).encode()) < 1000


def test_deep_values_are_shown():
    """A list that is nearly too deep to be read can be named in an error all the same."""
    for depth in range(900, 1000):
        try:
            value = read_json('{"a":' + "[" * depth + "]" * depth + "}", "x")["a"]
        except BadRequestError:
            break
        assert shown(value) == "a list"


def test_half_a_surrogate_pair():
    """JSON can spell what UTF-8 cannot: it is refused where it comes in."""
    with pytest.raises(BadRequestError, match="surrogate"):
        text(read_json(r'{"a":"x\ud800"}', "x"), "a", 50)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TooLargeError("x"), 1009),
        (QuotaExceededError("x"), 1009),
        (DiskFullError("x"), 1009),
        (UnauthorizedError("x"), 1008),
        (BadRequestError("x"), 1008),
        (NotFoundError("x"), 1008),
        (BusyError("x"), 1011),
        (RetrievalError("x"), 1011),
        (IPFSStreamError("x"), 1011),
        (ValueError("x"), 1011),
    ],
)
async def test_a_refusal(error, code):
    """An error's message, then the close code that goes with it; an internal error's text stays with us."""
    link = QueueConnection()
    await refuse(link, error, extra=1)
    message, end = await link.hear(), await link.hear()
    assert end is None
    assert message == error_message(error) | {"extra": 1, "timestamp": message["timestamp"]}
    assert close_code(error) == code == link.closed[0]
    assert link.closed[1] == message["error"]
    hidden = type(error) in {IPFSStreamError, ValueError}
    assert (message["code"] == "internal") is hidden
    assert (message["error"] == message["message"] == "x") is not hidden
    assert link.failures == [error]


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=30, max_size=200))
def test_a_reason_fits_a_close_frame(words):
    """However long and in whatever script, it is cut to what fits, between characters."""
    reason = close_reason(BadRequestError(words))
    assert len(reason.encode()) <= MAX_REASON < 124
    assert words.startswith(reason)


def test_a_refusal_to_nobody():
    """Where the client has gone, nothing is raised."""
    assert connection.close_reason(ValueError("secret")).startswith("an internal error")
