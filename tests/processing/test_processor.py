"""ContentProcessor: progress, results, and ends of all sorts."""

import asyncio
import time
from contextlib import aclosing
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ipfs_stream_nb.errors import BadRequestError, UnsupportedMediaError
from ipfs_stream_nb.processing import job, processor
from ipfs_stream_nb.processing.processor import MAX_AT_ONCE, ContentProcessor


@pytest.fixture
def long(clip):
    """A video whose transcode takes long enough to be stopped."""
    return clip(width=640, height=480, duration=3.0, grain=20)


async def test_progress(node, add, clip, monkeypatch):
    """Progress rises, comes no more often than it should, tells seconds and size, and ends with 100."""
    monkeypatch.setattr(job, "PROGRESS_EVERY", 0.05)
    data = clip(width=320, height=240)
    work = ContentProcessor(node, "transcode")
    told, tell = [], work._tell
    monkeypatch.setattr(work, "_tell", lambda update: (told.append(update), tell(update)))
    updates, times = [], []
    async for update in work.process(await add(node, data)):
        updates.append(update)
        times.append(time.monotonic())
    percents = [update["percent"] for update in updates]
    assert percents == sorted(percents)
    assert percents[-1] == 100.0
    assert all(percent <= 99.0 for percent in percents[:-1])
    assert len(told) > 2  # of which a slow reader may miss some
    assert len(updates) <= (times[-1] - times[0]) / 0.05 + 3
    assert all(update["total_bytes"] == len(data) for update in updates)
    assert updates[-1]["seconds"] == (await work.get_result())["duration"]


async def test_a_slow_reader_gets_the_newest(node, add, clip):
    """The work does not wait for who reads its progress, and the last update is never lost."""
    work = ContentProcessor(node, "transcode", height=60)
    updates = work.process(await add(node, clip()))
    async with aclosing(updates):
        await anext(updates)
        result = await work.get_result()
        assert [update["percent"] async for update in updates] == [100.0]
    assert await work.get_result() == result


async def test_the_result_is_waited_for(node, add):
    """get_result waits for work that goes on, in another task too, and gives the same again."""
    work = ContentProcessor(node, "checksums")
    with pytest.raises(BadRequestError, match="there is no result before the work"):
        await work.get_result()
    cid = await add(node, b"x")

    async def run():
        async for _ in work.process(cid):
            pass

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    assert (await work.get_result())["size"] == 1
    await task
    with pytest.raises(BadRequestError, match="has been used"):
        await anext(work.process(cid))


async def test_a_failure_is_raised_twice(node, add):
    """Both the loop and get_result raise what went wrong."""
    work = ContentProcessor(node, "probe")
    with pytest.raises(UnsupportedMediaError):
        async for _ in work.process(await add(node, b"text")):
            pass
    with pytest.raises(UnsupportedMediaError):
        await work.get_result()


async def test_leaving_the_loop_early(node, add, long, scratch_files):
    """Who leaves the loop ends the work: no thread goes on, no temporary file and nothing in the node is left."""
    cid = await add(node, long)
    before = (await node.repo_stat()).blocks, scratch_files()
    work = ContentProcessor(node, "transcode")
    async with aclosing(work.process(cid)) as updates:
        await anext(updates)
        assert scratch_files() == before[1] + 1
        start = time.process_time()  # a thread that went on would take much of it
    # a thread is free again, at once
    await asyncio.wrap_future(processor._workers.submit(int))
    assert time.process_time() - start < 1.0
    assert ((await node.repo_stat()).blocks, scratch_files()) == before
    assert await node.pins() == []
    with pytest.raises(BadRequestError, match="stopped before its end"):
        await work.get_result()


async def test_a_cancelled_add_leaves_nothing(node, add, clip, scratch_files, monkeypatch):
    """Cancelled while the result goes into the node, no part of it stays there."""
    cid = await add(node, clip())
    before = (await node.repo_stat()).blocks, scratch_files()
    adding = asyncio.Event()
    whole = node.add

    async def slow(source, **options):
        async def pieces():
            yield await anext(source)
            adding.set()
            await asyncio.Event().wait()

        return await whole(pieces(), **options)

    monkeypatch.setattr(node, "add", slow)
    work = ContentProcessor(node, "transcode")

    async def run():
        async with aclosing(work.process(cid)) as updates:
            async for _ in updates:
                pass

    task = asyncio.create_task(run())
    await adding.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ((await node.repo_stat()).blocks, scratch_files()) == before
    assert await node.pins() == []


async def test_work_that_waits_for_bytes_can_be_cancelled(held, add, clip):
    """A read that never ends does not hold up the end."""
    work = ContentProcessor(held, "probe")
    cid = await add(held, clip())
    task = asyncio.ensure_future(anext(work.process(cid)))
    await held.held.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(BadRequestError, match="stopped"):
        await work.get_result()


async def test_only_so_many_at_once(held, node, add):
    """More work than there are threads waits for its turn, and can be ended while it waits."""
    busy = await add(held, np.random.default_rng(1).bytes(100))
    tasks = []
    for _ in range(MAX_AT_ONCE):
        held.held.clear()
        work = ContentProcessor(held, "checksums")
        tasks.append(asyncio.ensure_future(anext(work.process(busy))))
        await held.held.wait()
    cid = await add(node, b"waits")
    ended = ContentProcessor(node, "checksums").process(cid)
    waits = ContentProcessor(node, "checksums").process(cid)
    first, second = asyncio.ensure_future(anext(ended)), asyncio.ensure_future(anext(waits))
    done, _ = await asyncio.wait([first, second], timeout=0.3)
    assert not done
    first.cancel()
    await asyncio.wait([first])
    assert first.cancelled()
    for task in tasks:
        task.cancel()
    assert (await second)["bytes_processed"] == 5
    await asyncio.wait(tasks)
    await waits.aclose()


async def test_a_full_disk_for_the_temporary_file(monkeypatch):
    """The operating system's own word for a full disk becomes ours."""
    file = job.Scratch()
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.write(b"x")
        file.check()
    opened = partial(Path("/dev/full").open, "wb+", buffering=0)
    monkeypatch.setattr(job.tempfile, "TemporaryFile", lambda **_: opened())
    full = job.Scratch()
    assert full.write(b"x") == 1
    with pytest.raises(job.DiskFullError, match="is full"):
        full.check()
    full.close()
