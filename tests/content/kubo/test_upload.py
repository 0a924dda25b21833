"""Files on their way to a daemon that dies, stops or has heard enough; and their sources, which are left alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from contextlib import aclosing

import pytest

from ipfs_stream_nb.content.blocks import BlockStore
from ipfs_stream_nb.content.cid import CID, RAW
from ipfs_stream_nb.content.importer import get_profile
from ipfs_stream_nb.content.kubo import upload
from ipfs_stream_nb.content.kubo.node import KuboNode
from ipfs_stream_nb.content.kubo.provider import KuboProvider
from ipfs_stream_nb.content.kubo.writers import KuboFileWriter
from ipfs_stream_nb.content.retrieval.retriever import Retriever
from ipfs_stream_nb.errors import BadRequestError, RetrievalError, RetrievalTimeoutError, UnauthorizedError
from kubo_nodes import SETTINGS

MIB = 1 << 20


async def many(count=100, pause=0.002):
    """Pieces that take a while each, so that whoever asks for one may be ended in the middle."""
    for _ in range(count):
        yield bytes(MIB)
        await asyncio.sleep(pause)


async def different(count):
    """Blocks that are not alike."""
    for _ in range(count):
        yield os.urandom(MIB)


async def dies(reader, writer):
    """Takes some of what is sent, and is gone."""
    await reader.readexactly(3 * MIB)
    writer.transport.abort()


async def stops(reader, writer):
    """Takes some of what is sent, and then nothing more, as by SIGSTOP."""
    await reader.readexactly(MIB)
    writer.transport.pause_reading()
    await asyncio.Event().wait()


async def refuses(_, writer):
    """Answers before it has read anything."""
    writer.write(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    await writer.drain()
    await asyncio.Event().wait()


class Source:
    """A source that tells whether somebody is in it."""

    def __init__(self, pause=0.002):
        self.inside = self.closed = False
        self.begun = asyncio.Event()
        self.pause = pause

    async def pieces(self):
        try:
            for _ in range(100):
                self.inside = True
                self.begun.set()
                await asyncio.sleep(self.pause)
                self.inside = False
                yield bytes(MIB)
        finally:
            self.inside, self.closed = False, True


@contextlib.asynccontextmanager
async def node_over(rpc, path):
    async with KuboNode(
        BlockStore.open(path, min_free=0), Retriever([KuboProvider(rpc)], SETTINGS), rpc
    ) as node:
        yield node


WAYS = {
    "add": lambda rpc, source: rpc.add(source, options={}),
    "dag/import": lambda rpc, source: rpc.dag_import(source, pin=False),
}


@pytest.mark.parametrize("command", WAYS)
@pytest.mark.parametrize("pause", [0, 0.002, 60])
async def test_a_daemon_that_dies_is_told_and_the_source_left(rpc_to, command, pause, monkeypatch):
    """Its source can be closed at once, wherever the request was: nobody is in it any more."""

    async def gone(_, writer):
        writer.transport.abort()

    for answer in [dies] * 5 if pause < 1 else [gone]:
        source = Source(pause)
        async with aclosing(source.pieces()) as pieces:
            with pytest.raises(RetrievalError, match=f"stopped in the middle of {command}.*still running"):
                await WAYS[command](await rpc_to(answer), pieces)
            assert not source.inside
        assert source.closed


async def test_a_writer_says_that_the_daemon_died(rpc_to):
    """While it is written, or in the end; and aborting after it raises nothing."""
    for _ in range(10):
        writer = KuboFileWriter(await rpc_to(dies), get_profile(None))
        with pytest.raises(RetrievalError, match=r"stopped in the middle of add.*still running"):
            async for piece in many():
                await writer.write(piece)
        await writer.abort()


async def test_a_block_that_is_put_when_the_daemon_dies(rpc_to):
    """It is told by the command's name."""

    async def gone(reader, writer):
        await reader.readexactly(10)
        writer.transport.abort()

    with pytest.raises(RetrievalError, match=r"stopped in the middle of block/put.*still running"):
        await (await rpc_to(gone)).block_put(bytes(MIB), codec="raw")


async def test_a_node_says_that_the_daemon_died(rpc_to, tmp_path):
    """In an import of a CAR, and in handing over a tree of our store."""
    async with node_over(await rpc_to(dies), tmp_path / "cache") as node:
        embedded = super(KuboNode, node)
        tree = embedded.tree_writer()
        await tree.add_file("big", different(10))
        root = (await tree.finish(pin=False)).cid
        for _ in range(5):
            with pytest.raises(RetrievalError, match=r"stopped in the middle of dag/import.*still running"):
                await node.hand_over(root, pin=False, name="")
            async with aclosing(node.export_car(root)) as car:
                with pytest.raises(
                    RetrievalError, match=r"stopped in the middle of dag/import.*still running"
                ):
                    await node.import_car(car)


@pytest.mark.parametrize("command", WAYS)
async def test_a_daemon_that_takes_nothing_more_is_left(rpc_to, command, monkeypatch):
    """By the time that is allowed, whatever the command's silence; no task is left over."""
    monkeypatch.setattr(upload, "UPLOAD_STALL", 0.3)
    source, before = Source(), asyncio.all_tasks()
    rpc = await rpc_to(stops)
    async with aclosing(source.pieces()) as pieces, asyncio.timeout(10):
        with pytest.raises(RetrievalTimeoutError, match=f"took nothing more .* at {command}, for 0.3 s"):
            await WAYS[command](rpc, pieces)
        assert not source.inside
    await rpc.close()
    left = {task for task in asyncio.all_tasks() - before if "serve" not in repr(task)}
    assert not left


async def test_the_end_of_a_file_is_waited_for_no_longer(rpc_to, monkeypatch):
    """All was taken by the buffers between us and the daemon: its silence counts."""
    monkeypatch.setattr("ipfs_stream_nb.content.kubo.rpc.ADD_TIMEOUT", 0.3)
    with pytest.raises(RetrievalTimeoutError, match=r"silent for 0\.3 s at add"):
        await (await rpc_to(stops)).add(many(1), options={})


async def test_what_is_left_in_buffers_at_the_end_is_not_waited_for(monkeypatch):
    """Every piece was asked for, and the last of them goes nowhere: aiohttp counts no silence yet."""
    monkeypatch.setattr(upload, "UPLOAD_STALL", 0.2)
    form = upload.Multipart(different(2))

    async def send():
        assert len(b"".join([piece async for piece in form])) > 2 * MIB
        await asyncio.Event().wait()

    sending = asyncio.create_task(send())
    async with asyncio.timeout(10):
        with pytest.raises(upload.StalledError):
            await form.watch(sending, 0.1)
    await form.close()
    assert sending.cancelled()


async def test_a_piece_that_is_taken_at_the_last_moment_raises_nothing_else(monkeypatch):
    """The time is up, and whoever waits does not know it yet."""
    monkeypatch.setattr(upload, "UPLOAD_STALL", 0.1)
    form = upload.Multipart(different(20))

    async def send():
        async for _ in form:
            time.sleep(0.15)  # noqa: ASYNC251  # the loop is late
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    sending = asyncio.create_task(send())
    with pytest.raises(upload.StalledError):
        await form.watch(asyncio.Event().wait(), 0.1)
    await form.close()
    assert form.error is None
    assert sending.cancelled()


async def test_a_slow_source_is_no_stalled_daemon(rpc, monkeypatch):
    """Only the daemon's time is counted."""
    monkeypatch.setattr(upload, "UPLOAD_STALL", 0.5)  # a busy daemon takes 0.1 s for a piece
    assert (await rpc.add(many(2, pause=0.7), options={"cid-version": 1}))[1] > 2 * MIB


async def test_an_early_answer_ends_the_upload(rpc_to):
    """The source is left as well."""
    source = Source()
    rpc = await rpc_to(refuses)
    async with aclosing(source.pieces()) as pieces:
        with pytest.raises(UnauthorizedError):
            await rpc.add(pieces, options={})
        assert not source.inside


async def test_cancelling_an_upload_leaves_its_source(rpc):
    """In the middle of a piece."""
    source = Source(pause=30)
    async with aclosing(source.pieces()) as pieces:
        task = asyncio.create_task(rpc.add(pieces, options={}))
        await source.begun.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert not source.inside


async def test_a_source_that_fails_is_told_in_all_ways(rpc):
    """Its own error, at its first piece or a later one."""

    async def failing(count):
        for _ in range(count):
            yield bytes(100)
        raise BadRequestError("my own")

    for count in (0, 1, 50):
        for way in WAYS.values():
            with pytest.raises(BadRequestError, match="my own"):
                await way(rpc, failing(count))
    assert await rpc.block_put(b"x", codec="raw") == CID.of(b"x", RAW)
