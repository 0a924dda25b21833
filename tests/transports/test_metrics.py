"""`/ws/metrics` over two queues."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time

import pytest

from ipfs_stream_nb.notifications import system
from ipfs_stream_nb.notifications.system import MetricsCollector
from ipfs_stream_nb.transports.metrics import monitor_system_metrics
from queue_connection import QueueConnection, talking


@pytest.fixture
def emitted():
    """What became an event."""
    return []


@pytest.fixture
async def collector(emitted, monkeypatch):
    """A collector of this real system, with a hundred samples a second, each with its number."""
    monkeypatch.setattr(system, "SAMPLE_SECONDS", 0.01)
    monkeypatch.setattr(system, "BASE_SECONDS", 0.01)
    numbers = itertools.count(1)
    collector = MetricsCollector(
        lambda _type, data, **_named: emitted.append(data), active=lambda: {"number": next(numbers)}
    )
    collector.start()
    yield collector
    await collector.close()


def watching(collector, room=0):
    """The conversation, beside the test."""
    link = QueueConnection(room)
    return talking(monitor_system_metrics(link, collector), link)


async def test_the_guides_message(collector, emitted):
    """{"type": "metrics", "timestamp", "metrics"} again and again; each became one event with the same data."""
    began = time.time()
    async with watching(collector) as link:
        heard = [await link.hear() for _ in range(3)]
    for message in heard:
        assert set(message) == {"type", "timestamp", "metrics"}
        assert message["type"] == "metrics"
        assert began <= message["timestamp"] <= time.time()
        assert message["metrics"] in json.loads(json.dumps(emitted))
    numbers = [message["metrics"]["active"]["number"] for message in heard]
    assert numbers == sorted(set(numbers))


async def test_all_clients_share_the_samples(collector, emitted):
    """Ten clients get the same ones, and cost no more samples or events than one."""
    links = [QueueConnection() for _ in range(10)]
    talks = [asyncio.create_task(monitor_system_metrics(link, collector)) for link in links]
    heard = [[await link.hear() for _ in range(3)] for link in links]
    for link in links:
        link.leave()
    await asyncio.wait(talks)
    assert all(talk.exception() for talk in talks)
    by_number = {}
    for message in itertools.chain(*heard):
        number = message["metrics"]["active"]["number"]
        assert by_number.setdefault(number, message) == message
    numbers = [data["active"]["number"] for data in emitted]
    assert numbers == sorted(set(numbers))
    assert collector._listeners == 0


async def test_a_slow_client_skips(collector, emitted):
    """What a client does not read is not kept for it: then it gets the newest."""
    async with watching(collector, room=1) as link:
        first = await link.hear()
        async with asyncio.timeout(10):
            while len(emitted) < 20:  # noqa: ASYNC110  # what comes is what is looked at
                await asyncio.sleep(0.01)
        waited = [await link.hear(), await link.hear()]  # in the queue, and on its way there
        newest = await link.hear()
    numbers = [message["metrics"]["active"]["number"] for message in [first, *waited, newest]]
    assert numbers == sorted(set(numbers))
    assert numbers[2] <= 15
    assert numbers[3] >= 20


async def test_ping(collector):
    """{"action": "ping"} is answered with a pong between the metrics."""
    async with watching(collector) as link:
        link.say({"action": "ping"})
        pong = await _other_than_metrics(link)
        assert pong["type"] == "pong"
        assert time.time() - 10 < pong["timestamp"] <= time.time()


@pytest.mark.parametrize(
    ("said", "code", "part"),
    [
        (b"ping", "bad_request", "binary"),
        ("ping", "bad_request", "not JSON"),
        ("[]", "bad_request", "JSON object"),
        ({}, "bad_request", "ping"),
        ({"action": "subscribe"}, "bad_request", "'subscribe'"),
        ({"action": ["ping"]}, "bad_request", "a list"),
        ({"action": {"x": 1}}, "bad_request", "a dict"),
        ("x" * 70_000, "too_large", "70000 characters"),
        ("[" * 50_000, "bad_request", "not JSON"),
    ],
)
async def test_anything_else(collector, said, code, part):
    """It is an error that says what was wrong; the metrics go on."""
    async with watching(collector) as link:
        link.say(said)
        error = await _other_than_metrics(link)
        assert (error["type"], error["code"]) == ("error", code)
        assert part in error["error"]
        assert (await link.hear())["type"] == "metrics"


async def test_a_client_that_leaves_before_the_first_sample(emitted):
    """Its conversation ends at once, though no sample can be had."""
    stuck = threading.Event()
    collector = MetricsCollector(lambda *_args, **_named: None, read_counters=stuck.wait)
    collector.start()
    try:
        async with watching(collector) as link:
            await asyncio.sleep(0.05)
            assert link.unread() == []
        assert collector._listeners == 0
    finally:
        await collector.close()
        stuck.set()


async def test_the_end_of_the_server(collector):
    """A collector that closes ends the conversation with code 1000."""
    async with watching(collector) as link:
        await link.hear()
        await collector.close()
        await link.rest()
        assert link.closed == (1000, "")


async def test_an_internal_error_is_not_told(collector, monkeypatch):
    """What goes wrong inside closes it with 1011, and its text goes to the log alone."""

    async def broken():
        raise RuntimeError("secret")
        yield

    monkeypatch.setattr(collector, "samples", broken)
    async with watching(collector) as link:
        (error,) = await link.rest()
    assert error["code"] == "internal"
    assert "secret" not in json.dumps(error)
    assert link.closed[0] == 1011
    assert [str(failure) for failure in link.failures] == ["secret"]


async def _other_than_metrics(link):
    while (message := await link.hear())["type"] == "metrics":
        pass
    return message
