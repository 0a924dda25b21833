"""What is known of a provider, and what follows from it."""

from __future__ import annotations

import pytest

from ipfs_stream_nb.content.retrieval import health
from ipfs_stream_nb.content.retrieval.health import Health
from ipfs_stream_nb.content.retrieval.provider import FoundNowhereError, StalledError, TooSlowError
from ipfs_stream_nb.errors import (
    BusyError,
    CorruptContentError,
    NotFoundError,
    RefusedError,
    RetrievalError,
    RetrievalTimeoutError,
    UnreachableError,
)


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_the_quicker_one_is_asked_first():
    """The score is the median latency; an untried one stands between quick and slow ones."""
    quick, slow, untried = Health(), Health(), Health()
    for seconds in (0.1, 0.2, 9.0):
        quick.answered(seconds)
    slow.overtaken(2.0)
    assert [quick.score, slow.score] == [0.2, 2.0]
    assert quick.score < untried.score < slow.score


def test_failures_in_a_row_sink_it_and_then_it_rests():
    """Each failure counts until an answer comes; the rest grows with each repetition."""
    clock = Clock()
    one = Health(clock)
    for number in range(health.MAX_FAILURES):
        assert one.resting == 0
        one.failure("HTTP 500", about=b"%d" % number)
    assert one.resting == health.REST_SECONDS
    clock.now += health.REST_SECONDS
    assert one.resting == 0
    one.failure("HTTP 500", about=b"another")
    assert one.resting == 2 * health.REST_SECONDS
    clock.now += 1000
    one.answered(0.1)
    assert one.score == 0.1
    one.failure("no route", about=b"x", unreachable=True)
    assert one.resting == health.REST_SECONDS


def test_rests_are_bounded():
    """However often it fails, it is tried again after some minutes."""
    clock = Clock()
    one = Health(clock)
    for _ in range(20):
        one.failure("gone", about=b"x", unreachable=True)
        assert 0 < one.resting <= health.MAX_REST_SECONDS
        clock.now += one.resting


def test_wrong_bytes_cost_a_long_rest():
    """Whoever sends other bytes than were asked for is left alone."""
    clock = Clock()
    one = Health(clock)
    one.wrong_bytes("does not hash")
    assert one.resting == health.CORRUPT_SECONDS
    assert one.describe()["state"] == "resting"
    assert one.describe()["corrupt"] == 1


def test_it_rests_as_long_as_it_asks_for():
    """Retry-After is kept to."""
    one = Health(Clock())
    one.busy("HTTP 429", 42)
    assert one.resting == 42


def test_what_it_does_not_have_is_no_failure():
    """Saying no is an answer."""
    one = Health()
    one.failure("late", about=b"x")
    one.has_not()
    assert one.score == health.UNTRIED_SECONDS
    assert one.describe()["missing"] == 1


def test_it_is_described_for_people():
    """State, latency in milliseconds, and the reason for as long as it matters."""
    one = Health(Clock())
    assert one.describe()["state"] == "untried"
    one.answered(0.25)
    told = one.describe()
    assert (told["state"], told["latency_ms"], told["ok"], told["reason"]) == ("ok", 250.0, 1, "")


def test_being_overtaken_early_says_nothing():
    """One that was asked a moment before somebody else answered is not thought quick for it."""
    one = Health()
    one.overtaken(0.01)
    assert one.latency is None
    one.answered(2.0)
    one.overtaken(1.0)
    assert one.latency == 2.0
    one.overtaken(4.0)
    assert one.latency == 3.0


def test_what_fails_together_is_one_failure():
    """Requests that were under way at once; one that began later counts anew."""
    clock = Clock()
    one = Health(clock)
    for _ in range(20):
        one.failure("no route", about=b"x", unreachable=True, began=clock.now - 1)
    assert (one.failed, one.resting) == (20, health.REST_SECONDS)
    clock.now += health.REST_SECONDS
    one.failure("no route", about=b"x", unreachable=True, began=clock.now)
    assert one.resting == 2 * health.REST_SECONDS


def test_what_was_long_ago_no_longer_counts():
    """Latencies and failures: whoever sank gets a chance."""
    clock = Clock()
    one = Health(clock)
    one.answered(9.0)
    one.failure("HTTP 500", about=b"x")
    assert one.score == 9.0 + health.FAILURE_SECONDS
    clock.now += health.RECENT_SECONDS + 1
    assert one.score == health.UNTRIED_SECONDS


def test_what_was_at_hand_ends_a_row_of_failures():
    """It is an answer, which tells nothing of how long a search takes."""
    one = Health()
    one.failure("late", about=b"x")
    one.answered(None)
    assert (one.ok, one.latency, one.score) == (1, None, health.UNTRIED_SECONDS)


def test_a_block_counts_once():
    """However often it is asked for: one block that a provider has trouble with says nothing of the others."""
    one = Health(Clock())
    for _ in range(100):
        one.failure("HTTP 500", about=b"x")
    assert (one.failed, one.resting) == (100, 0)
    assert one.score == health.UNTRIED_SECONDS + health.FAILURE_SECONDS
    for number in range(health.MAX_FAILURES):
        one.failure("HTTP 500", about=b"%d" % number)
    one.clock.now += one.resting
    one.failure("HTTP 500", about=b"0")
    assert one.resting == 0


def test_look_ups_in_vain_bring_no_rest():
    """They weigh less than failures, and after many in a row it is asked for one block at a time until it gives one."""
    clock = Clock()
    one = Health(clock)
    for number in range(100):
        assert one.usable
        one.note(RetrievalTimeoutError("late"), about=b"%d" % number)
        with one.asked():
            assert one.usable == (number + 1 < health.MAX_LOOKUPS)
    assert one.resting == 0
    lookups = health.LOOKUP_SECONDS * health.MAX_LOOKUPS
    assert one.score == health.UNTRIED_SECONDS + lookups
    assert (one.describe()["state"], one.describe()["reason"]) == ("ok", "late")
    one.answered(0.1)
    with one.asked():
        assert one.usable
    assert one.score == 0.1


@pytest.mark.parametrize(
    ("error", "resting"),
    [
        (UnreachableError("no route"), health.REST_SECONDS),
        (CorruptContentError("other bytes"), health.CORRUPT_SECONDS),
        (BusyError("429", retry_after=7), 7),
        (BusyError("429"), health.BUSY_SECONDS),
        (RetrievalError("HTTP 500"), health.REST_SECONDS),
        (StalledError("it stopped"), health.REST_SECONDS),
        (TooSlowError("a trickle"), health.REST_SECONDS),
        (NotFoundError("404"), 0),
        (FoundNowhereError("504"), 0),
        (RetrievalTimeoutError("no answer"), 0),
        (RefusedError("451"), 0),
    ],
)
def test_what_is_the_contents_fault_brings_no_rest(error, resting):
    """After failures with some blocks it rests for what is its own fault alone."""
    one = Health(Clock())
    for number in range(health.MAX_FAILURES):
        if not one.resting:
            one.note(error, about=b"%d" % number)
    assert one.resting == resting


def test_a_near_one_is_tried_again_soon():
    """A daemon of this machine that was not there may just be starting; it never rests for longer."""
    clock = Clock()
    one = Health(clock, near=True)
    for number in range(8):
        one.failure("nobody answers", about=bytes([number]), unreachable=True)
        assert 0 < one.resting <= health.NEAR_REST_SECONDS
        clock.now += health.NEAR_REST_SECONDS
        assert not one.resting
