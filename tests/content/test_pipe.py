"""Pipes between a fetcher and a slower reader: bounded, ended, broken off, released."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.content.importer import import_bytes
from ipfs_stream_nb.content.pipe import (
    CHUNK_SIZE,
    MAX_BUFFER,
    IPFSResourceManager,
    Pipe,
    PipeClosedError,
)
from ipfs_stream_nb.errors import BadRequestError, NotFoundError, RetrievalError

SECONDS = 60
"""After which a test that waits has failed: not a machine that stands still for some of them."""


@pytest.fixture
async def node(tmp_path):
    async with await EmbeddedNode.open(tmp_path / "repo", min_free=0) as node:
        yield node


async def added(node, data):
    """Its CID, once it is in the node."""

    async def source():
        yield data

    return (await node.add(source())).cid


@settings(max_examples=150)
@given(
    writes=st.lists(st.binary(max_size=40), max_size=12),
    chunk=st.integers(1, 16),
    more=st.integers(0, 20),
    some=st.booleans(),
)
async def test_what_goes_in_comes_out(writes, chunk, more, some):
    """Whatever the sizes of writes, chunks and buffer: the same bytes, in chunks of the asked size but for the
    last one, never more of them waiting than the buffer may hold, and no standstill."""
    pipe = Pipe(chunk + more, chunk)
    seen = []

    async def fill():
        for data in writes:
            await pipe.write(data)
            assert pipe.buffered <= pipe.max_buffer
        pipe.end()

    async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as tasks:
        tasks.create_task(fill())
        while data := await (pipe.read_some() if some else pipe.read()):
            seen.append(data)
    assert b"".join(seen) == b"".join(writes)
    assert all(len(data) <= chunk for data in seen)
    if not some:
        assert all(len(data) == chunk for data in seen[:-1])
    assert not pipe.buffered


async def test_a_writer_waits_for_its_reader():
    """The writer stands still once `max_buffer` bytes are unread, and goes on when there is room."""
    pipe = Pipe(100, 10)
    written = asyncio.create_task(pipe.write(bytes(1000)))
    done, _ = await asyncio.wait([written], timeout=0.05)
    assert not done
    assert pipe.buffered == 100
    total = 0
    while total < 1000:
        total += len(await pipe.read())
        assert pipe.buffered <= 100
    await written


async def test_some_bytes_do_not_wait_for_a_whole_chunk():
    """`read_some` gives what is there at once; `read` waits for the chunk."""
    pipe = Pipe(100, 10)
    await pipe.write(b"abc")
    assert await pipe.read_some() == b"abc"
    await pipe.write(b"abc")
    reading = asyncio.create_task(pipe.read())
    done, _ = await asyncio.wait([reading], timeout=0.05)
    assert not done
    await pipe.write(b"defghijkl")
    assert await reading == b"abcdefghij"


async def test_an_error_comes_behind_what_was_written():
    """The writer's error reaches the reader, once all before it is read, and each time it asks; the first end holds."""
    pipe = Pipe()
    await pipe.write(b"before")
    pipe.end(NotFoundError("gone"))
    pipe.end()
    assert await pipe.read() == b"before"
    for _ in range(2):
        with pytest.raises(NotFoundError, match="gone"):
            await pipe.read()
    with pytest.raises(BadRequestError, match="ended"):
        await pipe.write(b"more")


async def test_closing_wakes_both_ends():
    """A writer that waits is told that its reader has gone; a reader that waits, that the pipe is closed."""
    full, empty = Pipe(10, 10), Pipe(10, 10)
    writing = asyncio.create_task(full.write(bytes(20)))
    reading = asyncio.create_task(empty.read())
    await asyncio.wait([writing, reading], timeout=0.05)
    for pipe in (full, empty):
        pipe.close()
        pipe.close()
    with pytest.raises(PipeClosedError):
        await writing
    with pytest.raises(BadRequestError, match="closed"):
        await reading
    assert full.buffered == 0


async def test_a_read_that_is_cancelled_loses_nothing():
    """Giving up waiting takes no bytes along."""
    pipe = Pipe(100, 10)
    await pipe.write(b"abc")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await pipe.read()
    pipe.end()
    assert await pipe.read() == b"abc"


@pytest.mark.parametrize(("max_buffer", "chunk"), [(10, 11), (10, 0), (0, 0), (10, -1)])
def test_sizes_that_make_no_sense(max_buffer, chunk):
    """A chunk of nothing, or over the buffer, is refused."""
    with pytest.raises(BadRequestError, match="chunk_size"):
        Pipe(max_buffer, chunk)


async def test_the_guides_use(node):
    """The guide's example: a pipe with its sizes, a fetcher beside it, `async for`; all of the content comes."""
    data = random.Random(1).randbytes((6 << 20) + 77)
    cid = await added(node, data)
    with IPFSResourceManager(node) as resources:
        pipe = resources.create_pipe(max_buffer=5 * 1024 * 1024, chunk_size=32 * 1024)
        fetching = asyncio.create_task(resources.fetch_content_to_pipe(cid, pipe))
        got, most = [], 0
        async with asyncio.timeout(SECONDS):
            async for chunk in pipe:
                got.append(chunk)
                most = max(most, pipe.buffered)
    await fetching
    assert b"".join(got) == data
    assert {len(chunk) for chunk in got[:-1]} == {CHUNK_SIZE}
    assert most <= MAX_BUFFER


@pytest.mark.parametrize("own", [True, False])
async def test_an_error_of_the_fetch_reaches_the_reader(node, own):
    """A CID that is not here raises at the reader, and neither hangs nor ends as if it were whole; also where the
    manager was given no node."""
    cid = import_bytes(b"not here").root
    async with IPFSResourceManager(node if own else None) as resources, asyncio.timeout(SECONDS):
        pipe = resources.create_pipe()
        fetching = resources.fetch(cid, pipe)
        with pytest.raises(NotFoundError if own else BadRequestError):
            await pipe.read()
        await fetching


async def test_a_cancelled_fetch_is_no_end(node):
    """A reader whose fetcher was cancelled gets an error, not a short file."""
    cid = await added(node, bytes(1 << 20))
    async with IPFSResourceManager(node) as resources, asyncio.timeout(SECONDS):
        pipe = resources.create_pipe(1000, 1000)
        fetching = resources.fetch(cid, pipe)
        assert await pipe.read() == bytes(1000)
        fetching.cancel()
        with pytest.raises(RetrievalError, match="cancelled"):
            while await pipe.read():
                pass


@pytest.mark.parametrize("waits", [True, False])
async def test_leaving_the_block_releases_everything(node, waits):
    """A reader that leaves early ends its fetchers, lets go of what is buffered, and the content can be removed."""
    cid = await added(node, bytes(3 << 20))
    before = asyncio.all_tasks()
    resources = IPFSResourceManager(node)

    async def leave_early():
        pipe = resources.create_pipe()
        fetching = resources.fetch(cid, pipe)
        await pipe.read()
        return pipe, fetching

    if waits:
        async with resources:
            pipe, fetching = await leave_early()
        assert fetching.done()
    else:
        with resources:
            pipe, fetching = await leave_early()
        await asyncio.wait([fetching], timeout=SECONDS)
    assert pipe.buffered == 0
    assert asyncio.all_tasks() <= before
    resources.release()
    await node.unpin(cid)
    assert (await node.gc()).blocks > 0


async def test_leaving_the_loop_tells_the_writer():
    """`break` out of `async for` closes the pipe, so that a writer does not wait for nobody."""
    pipe = Pipe(10, 10)
    writing = asyncio.create_task(pipe.write(bytes(100)))
    async with aclosing(pipe.__aiter__()) as chunks:
        async for _ in chunks:
            break
    with pytest.raises(PipeClosedError):
        await writing
