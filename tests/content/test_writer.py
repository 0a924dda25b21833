"""The way in: buffers that are used again, bounded work ahead, failures."""

from __future__ import annotations

import asyncio

import pytest

from ipfs_stream_nb.content import writer
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.content.importer import Profile, import_bytes
from ipfs_stream_nb.content.writer import BATCH_BYTES, BlockSink, Buffers, FileImport, StoreFileWriter
from ipfs_stream_nb.errors import QuotaExceededError

SMALL = Profile("small", chunk_size=1000, max_links=10)


@pytest.fixture
async def node(tmp_path):
    async with await EmbeddedNode.open(tmp_path / "repo") as node:
        yield node


def test_buffers_are_used_again():
    """A buffer that came back is given out again; short chunks have memory of their own size."""
    buffers = Buffers(1000)
    whole = buffers.take()
    memory = whole.obj
    buffers.give(whole)
    assert buffers.take(900).obj is memory
    short = buffers.take(10)
    assert len(short.obj) == 10
    buffers.give(short)
    assert buffers.take(10).obj is not short.obj
    buffers.give(b"no view")
    buffers.give(memoryview(b"not writable"))
    assert len(buffers.take().obj) == 1000


@pytest.mark.parametrize("raw_leaves", [True, False])
async def test_used_buffers_hold_no_other_chunks_bytes(node, raw_leaves):
    """However the buffers go round, every leaf has its own bytes."""
    profile = Profile("small", chunk_size=1000, max_links=10, raw_leaves=raw_leaves)
    content = bytes(i * i % 253 for i in range(25_300))
    for _ in range(3):
        file = StoreFileWriter(node.store, node._executor, profile)
        for at in range(0, len(content), 333):
            await file.write(bytearray(content[at : at + 333]))
        added = await file.finish()
        assert added.cid == import_bytes(content, profile).root
    assert await node.read(added.cid, 0, len(content)) == content


async def test_a_directory_of_small_files_waits_in_little_memory(node, tmp_path, monkeypatch):
    """Small files that wait for one batch do not each hold a buffer of a whole chunk."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(200):
        (folder / f"{number}.txt").write_text(str(number))
    sizes = []
    take = Buffers.take

    def counted(self, length=None):
        view = take(self, length)
        sizes.append(len(view.obj))
        return view

    monkeypatch.setattr(Buffers, "take", counted)
    await node.add_path(str(folder))
    assert len(sizes) == 200
    assert max(sizes) < 10


async def test_leaves_ahead_are_bounded(node, monkeypatch):
    """No more than LEAVES_AHEAD leaves are being made for one file."""
    monkeypatch.setattr(writer, "LEAVES_AHEAD", 2)
    sink = BlockSink(node.store.transfer(), node._executor, SMALL)
    file = FileImport(sink)
    for number in range(20):
        await file.leaf(lambda number=number: sink.encode(b"%d" % number), 2)
        assert len(file._leaves) <= 2
    await file.abort()
    await sink.abort()


async def test_a_leaf_that_fails_ends_the_file(node):
    """An error in a hashing thread reaches whoever writes, and aborting waits for the other threads."""
    sink = BlockSink(node.store.transfer(), node._executor, SMALL)
    file = FileImport(sink)
    started, go_on = asyncio.Event(), []
    loop = asyncio.get_running_loop()

    def slow():
        loop.call_soon_threadsafe(started.set)
        while not go_on:
            pass
        go_on.append("ended")
        return sink.encode(b"slow")

    def broken():
        raise OSError("the disk is gone")

    await file.leaf(broken, 1)
    await file.leaf(slow, 1)
    with pytest.raises(OSError, match="disk is gone"):
        await file.finish()
    await started.wait()
    go_on.append("go")
    await file.abort()
    assert go_on[-1] == "ended"
    await sink.abort()


async def test_a_full_quota_is_told_and_leaves_earlier_content(tmp_path):
    """Passing the quota half way raises QuotaExceededError, and what was there before is still there."""
    async with await EmbeddedNode.open(tmp_path / "repo", quota=2 * BATCH_BYTES) as node:
        before = await node.add_path(str(__file__))

        async def endless():
            number = 0
            while True:
                number += 1
                yield number.to_bytes(4) * 250_000

        with pytest.raises(QuotaExceededError, match="quota"):
            await node.add(endless())
        assert await node.block_has(before.cid)
        await node.gc()
        assert (await node.repo_stat()).blocks == 1
