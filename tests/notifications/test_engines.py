"""What all engines do alike: order, ids, history and live events, bounds, ends."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from itertools import accumulate

import pytest

from ipfs_stream_nb.errors import StoreError
from ipfs_stream_nb.notifications.events import Event, Record


def event(n=0, **more):
    return Event("custom_event", {"n": n}, **more)


def numbers(records):
    return [record.message()["data"]["n"] for record in records]


async def publish(engine, count, start=0):
    return await asyncio.gather(*(engine.publish(event(start + n)) for n in range(count)))


async def test_ids_are_dense_and_in_the_order_of_the_calls(engine):
    """Many at once get ids from 1 on, as they were called, and the log holds them in that order."""
    assert await publish(engine, 3000) == list(range(1, 3001))
    records = await engine.read(0, 5000)
    assert [record.id for record in records] == list(range(1, 3001))
    assert numbers(records) == list(range(3000))


async def test_a_record_is_what_was_published(engine, follow):
    """Every field comes back as it was, from the log and live, strange users' names among them."""
    events = [
        event(1, timestamp=1e10 / 3),
        Event(
            "system_error",
            {"text": "ä \x1e\x1f \0 \n"},
            "a source",
            "Zoë \x1f\x1e ' x00",
            "system_notification",
        ),
        Event("pin_added", {}, None, ""),
        event(2, timestamp=2.0**32 + 2.0**-20),
    ]
    live = follow(engine)
    ids = [await engine.publish(each) for each in events]
    wanted = [Record.of(each, number) for each, number in zip(events, ids, strict=True)]
    await live.until(lambda records: len(records) == len(events))
    assert await engine.read(0, 10) == wanted == live.records


async def test_read_gives_the_oldest_after_an_id_and_read_back_the_newest_below(engine):
    """Both at most `limit`, in order; nothing beyond the ends or for a limit of 0."""
    await publish(engine, 1000)
    for after, limit in (
        (0, 1),
        (0, 1000),
        (0, 5000),
        (10, 300),
        (999, 5),
        (1000, 5),
        (5000, 5),
        (3, 0),
        (1 << 70, 5),
    ):
        found = [record.id for record in await engine.read(after, limit)]
        assert found == list(range(after + 1, 1001))[:limit]
    for before, limit in (
        (1, 5),
        (0, 5),
        (2, 5),
        (1001, 300),
        (1 << 70, 5),
        (500, 10),
        (500, 5000),
        (500, 0),
    ):
        below = [record.id for record in await engine.read_back(before, limit)]
        assert below == ([number for number in range(1, 1001) if number < before][-limit:] if limit else [])


async def test_a_page_has_no_more_bytes_than_are_asked_for(engine):
    """The oldest after an id, or the newest below one, that have room together; one of them whatever its size."""
    events = [Event("custom_event", {"n": n, "filling": "x" * (n % 7 * 5000)}) for n in range(60)]
    await asyncio.gather(*map(engine.publish, events))
    sizes = [len(each.body) for each in events]
    for max_bytes in (0, sizes[0], sizes[0] + sizes[1], 60_000, 500_000, sum(sizes) - 1, sum(sizes)):
        for bound in (0, 1, 30, 59, 60):
            room = max(1, sum(total <= max_bytes for total in accumulate(sizes[bound:])))
            found = [record.id for record in await engine.read(bound, 100, max_bytes)]
            assert found == list(range(bound + 1, 61))[:room]
            room = max(1, sum(total <= max_bytes for total in accumulate(reversed(sizes[:bound]))))
            found = [record.id for record in await engine.read_back(bound + 1, 100, max_bytes)]
            assert found == list(range(1, bound + 1))[-room:]
    assert len(await engine.read(0, 7, 10**6)) == len(await engine.read_back(61, 7, 10**6)) == 7


async def test_history_then_live_none_missing_and_none_twice(engine, follow):
    """Whoever subscribes while others publish gets each event after `since` once, in order."""
    await publish(engine, 500)
    followers = [follow(engine, since) for since in (0, 123, 500)]
    for start in range(500, 5000, 250):
        await publish(engine, 250, start)
        followers.append(follow(engine, start))
    for follower in followers:
        await follower.until(lambda records: records and records[-1].id == 5000)
        assert follower.ids == list(range(follower.ids[0], 5001))
    assert [follower.ids[0] for follower in followers[:3]] == [1, 124, 501]


async def test_who_reads_slowly_gets_all(engine):
    """A subscriber that stops reading while 6,000 events come reads them later, in order."""
    async with aclosing(engine.subscribe(0)) as batches:
        await engine.publish(event())
        got = [record.id for record in await anext(batches)]
        for _ in range(6):
            await publish(engine, 1000)
        while len(got) < 6001:
            got += [record.id for record in await anext(batches)]
    assert got == list(range(1, 6002))


async def test_a_cursor_of_the_future_waits_for_what_is_after_it(engine, follow):
    """Of what comes then, only ids above it are sent."""
    follower = follow(engine, 5)
    await publish(engine, 8)
    await follower.until(lambda records: len(records) == 3)
    assert follower.ids == [6, 7, 8]


async def test_what_is_announced_goes_to_who_is_there_and_is_not_kept(engine, follow):
    """It comes with id 0, to all who are subscribed, in its place among live events, and leaves no trace."""
    await engine.publish(event(1))
    early = follow(engine)
    await early.until(lambda records: len(records) == 1)
    await engine.announce(event(2))
    await early.until(lambda records: len(records) == 2)
    await engine.publish(event(3))
    late = follow(engine)
    await early.until(lambda records: len(records) == 3)
    await late.until(lambda records: len(records) == 2)
    assert (early.ids, numbers(early.records)) == ([1, 0, 2], [1, 2, 3])
    assert numbers(late.records) == [1, 3]
    assert early.records[1] == Record.of(
        Event("custom_event", {"n": 2}, timestamp=early.records[1].timestamp)
    )
    assert numbers(await engine.read(0, 10)) == [1, 3]


async def test_the_front_is_trimmed_and_bounds_say_so(engine_factory, follow):
    """Only the newest `max_events` are left; reading and subscribing from before begin with the oldest of them."""
    engine = engine_factory(max_events=10)
    await engine.open()
    assert (bounds := await engine.bounds()).first == 1
    assert bounds.last == 0
    await publish(engine, 25)
    await engine.trim()
    assert ((await engine.bounds()).first, (await engine.bounds()).last) == (16, 25)
    assert [record.id for record in await engine.read(0, 100)] == list(range(16, 26))
    assert [record.id for record in await engine.read_back(26, 100)] == list(range(16, 26))
    follower = follow(engine, 3)
    await follower.until(lambda records: len(records) == 10)
    await publish(engine, 1)
    await follower.until(lambda records: len(records) == 11)
    assert follower.ids == list(range(16, 27))
    await engine.close()


async def test_a_log_goes_on_when_it_is_opened_again(engine_factory):
    """The same epoch and events, and the next id."""
    first, second = engine_factory(), engine_factory()
    await first.open()
    await publish(first, 5)
    before = await first.bounds()
    await first.close()
    await second.open()
    assert await second.bounds() == before
    assert await second.publish(event()) == 6
    assert [record.id for record in await second.read(0, 10)] == [1, 2, 3, 4, 5, 6]
    assert second.take_setbacks() == []
    await second.close()


async def test_an_epoch_fits_into_an_sse_id(engine):
    """It has no `-`, which parts it from the id there."""
    assert set((await engine.bounds()).epoch) <= set(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._"
    )
    assert (await engine.bounds()).epoch


async def test_close_commits_what_waits_and_ends_subscriptions(engine_factory, follow):
    """What is being published is committed or refused, subscribers end, and nothing hangs; closing again does nothing."""
    engine = engine_factory()
    await engine.open()
    follower = follow(engine)
    await engine.publish(event())
    pending = [asyncio.create_task(engine.publish(event(n))) for n in range(1000)]
    await asyncio.sleep(0)
    await engine.close()
    results = await asyncio.gather(*pending, return_exceptions=True)
    ids = [result for result in results if isinstance(result, int)]
    assert ids == list(range(2, len(ids) + 2))
    assert all(isinstance(result, int | StoreError) for result in results)
    await follower.ended()
    await engine.close()
    with pytest.raises(StoreError):
        await engine.publish(event())
    with pytest.raises(StoreError):
        await engine.read(0, 1)
    again = engine_factory()
    await again.open()
    assert (await again.bounds()).last == len(ids) + 1
    await again.close()


async def test_publishers_that_are_cancelled_break_nothing(engine):
    """Whether their events are in the log or not, ids stay dense and others are served."""
    tasks = [asyncio.create_task(engine.publish(event(n))) for n in range(100)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    kept = await asyncio.gather(*tasks[1::2])
    assert kept == sorted(kept)
    last = await engine.publish(event(100))
    records = await engine.read(0, 1000)
    assert [record.id for record in records] == list(range(1, last + 1))
    by_number = dict(zip(numbers(records), (record.id for record in records), strict=True))
    assert [by_number[n] for n in range(1, 100, 2)] == kept
