"""How far is read ahead: little at first and after a seek, more as reading goes on."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import aclosing

import pytest

from ipfs_stream_nb.content import unixfs
from ipfs_stream_nb.content.blocks import BlockStore
from ipfs_stream_nb.content.car import CarBlock
from ipfs_stream_nb.content.cid import CID, DAG_PB
from ipfs_stream_nb.content.dag_pb import PBLink
from ipfs_stream_nb.content.reading import ReadingNode
from ipfs_stream_nb.content.retrieval import ahead
from ipfs_stream_nb.content.retrieval.retriever import Retriever
from ipfs_stream_nb.content.retrieval.settings import RetrievalSettings
from ipfs_stream_nb.content.unixfs import UnixFSNode, UnixFSType
from providers import StoreProvider

LEAF = 256 * 1024
SETTINGS = RetrievalSettings(gateways=(), routers=(), hedge_after=60)
"""A run whose next block is late on a busy machine is no run that brings nothing."""


def open_near(path, *providers):
    return ReadingNode(BlockStore.open(path / "near", min_free=0), Retriever(providers, SETTINGS))


async def test_the_first_block_is_fetched_alone(tmp_path, far, content):
    """Whoever reads the beginning of an open range and stops has caused one leaf and its root."""
    cid, data = content
    provider = StoreProvider(far)
    async with open_near(tmp_path, provider) as node:
        pieces = node.cat(cid)
        assert await anext(pieces) == data[:LEAF]
        await pieces.aclose()
    assert len(provider.asked) <= 3


async def test_a_player_that_seeks_costs_what_it_reads(tmp_path, far, content):
    """Head, tail, middle: each place costs its own blocks and the next one at most."""
    cid, data = content
    provider = StoreProvider(far)
    async with open_near(tmp_path, provider) as node:
        for place in (0, len(data) - 100_000, 9_000_000):
            pieces = node.cat(cid, place)
            assert (await anext(pieces))[:100] == data[place : place + 100]
            await pieces.aclose()
    assert len(provider.asked) <= 1 + 3 * 2


async def test_long_reading_becomes_a_run(tmp_path, far, content):
    """After some MiB in a row the next stretch is asked for at once, and no block of it twice."""
    cid, data = content
    provider = StoreProvider(far, runs=True)
    async with open_near(tmp_path, provider) as node:
        assert b"".join([piece async for piece in node.cat(cid)]) == data
    assert len(provider.run_ranges) == 1
    start, stop = provider.run_ranges[0]
    assert stop == len(data)
    assert len(provider.asked) <= 1 + -(-start // LEAF) + ahead.WINDOW[0][1]


async def test_a_run_that_breaks_off_is_replaced_by_blocks(tmp_path, far, content):
    """Wrong bytes inside of a run are not delivered; the rest comes block by block or by another run."""
    cid, data = content
    seen = 0

    def fault(_cid, block):
        nonlocal seen
        seen += 1
        return bytes(len(block)) if seen == 30 else block

    bad = StoreProvider(far, runs=True, fault=fault, name="bad")
    async with open_near(tmp_path, bad, StoreProvider(far, runs=True, name="good")) as node:
        assert b"".join([piece async for piece in node.cat(cid)]) == data


async def test_what_nobody_asked_for_is_not_kept(tmp_path, far, content):
    """A run that holds right blocks of other content ends there; reading goes on without it."""
    cid, data = content
    stranger = b"a stranger" * 100

    class Stuffing(StoreProvider):
        async def _run(self, cid, start, stop):
            blocks = super()._run(cid, start, stop)
            yield await anext(blocks)
            yield CarBlock(CID.of(stranger), stranger)
            async for block in blocks:
                yield block

    provider = Stuffing(far, runs=True)
    async with open_near(tmp_path, provider) as node:
        assert b"".join([piece async for piece in node.cat(cid)]) == data
        assert provider.run_ranges
        assert not await node.block_has(CID.of(stranger))


async def test_a_run_waits_for_its_reader(tmp_path, far, content):
    """A reader that stops taking pieces is followed by a bounded number of bytes."""
    cid, _ = content
    provider = StoreProvider(far, runs=True)
    async with open_near(tmp_path, provider) as node:
        pieces = node.cat(cid)
        taken = 0
        while not provider.run_ranges:
            taken += len(await anext(pieces))
        run = asyncio.all_tasks()
        (task,) = [task for task in run if task.get_name().startswith("run of")]
        before = -1
        while provider.bytes != before:  # until nothing more comes
            before = provider.bytes
            for _ in range(200):
                await asyncio.sleep(0)
            await asyncio.wait([task], timeout=0.05)
        assert not task.done()
        assert provider.bytes <= taken + ahead.RUN_AHEAD + 12 * LEAF
        await pieces.aclose()
        assert task.done()


async def test_short_reads_in_a_row_are_fetched_ahead(tmp_path, far, content):
    """A reader that takes ranges one after the other finds the next ones fetched; a seek drops that."""
    cid, data = content
    provider = StoreProvider(far)
    async with open_near(tmp_path, provider) as node:
        at = 0
        while at < 4_000_000:
            assert await node.read(cid, at, 65_536) == data[at : at + 65_536]
            at += 65_536
        running = [task for task in asyncio.all_tasks() if task.get_name().startswith("read ahead")]
        await asyncio.gather(*running)  # there is none where it was quicker than the last read
        asked = len(provider.asked)
        assert await node.read(cid, at, 65_536) == data[at : at + 65_536]
        assert len(provider.asked) == asked
        await node.read(cid, 15_000_000, 10)
        assert not [
            task
            for task in asyncio.all_tasks()
            if task.get_name().startswith("read ahead") and not task.cancelling()
        ]


class Endless(StoreProvider):
    """Begins a run, and then sends one of its blocks for ever."""

    taken = 0

    async def _run(self, cid, start, stop):
        async with aclosing(super()._run(cid, start, stop)) as blocks:
            yield await anext(blocks)
            block = await anext(blocks)
        while True:
            self.taken += 1
            yield block


async def test_a_run_that_repeats_itself_is_left(tmp_path, far, content):
    """A right block that is sent without end is taken a few times; reading goes on block by block."""
    cid, data = content
    provider = Endless(far, runs=True)
    async with open_near(tmp_path, provider) as node:
        async with asyncio.timeout(20):
            assert b"".join([piece async for piece in node.cat(cid)]) == data
    assert 0 < len(provider.run_ranges) <= ahead.RUN_ATTEMPTS
    assert provider.taken <= (ahead.REPEATS + 2) * len(provider.run_ranges)


async def test_a_run_that_brings_nothing_is_waited_for_once(tmp_path, far, content):
    """One wait in vain ends it, and the next run is far away."""
    cid, data = content

    class Silent(StoreProvider):
        async def _run(self, _cid, start, stop):
            self.run_ranges.append((start, stop))
            await asyncio.Event().wait()
            yield

    provider = Silent(far, runs=True)
    settings = RetrievalSettings((), (), hedge_after=0.3)
    store = BlockStore.open(tmp_path / "near", min_free=0)
    async with ReadingNode(store, Retriever([provider], settings)) as node:
        waits = []
        arrival = ahead._Run.arrival

        async def timed(self, cid):
            start = asyncio.get_running_loop().time()
            came = await arrival(self, cid)
            waits.append(asyncio.get_running_loop().time() - start)
            return came

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ahead._Run, "arrival", timed)
            assert b"".join([piece async for piece in node.cat(cid)]) == data
    assert len(provider.run_ranges) == 1
    assert sum(wait > 0.2 for wait in waits) <= ahead.WINDOW[0][1]


class Given:
    """A provider of one run of these blocks, which come all at once."""

    kind, near, name = "gateway", False, "given"

    def __init__(self, blocks):
        self.blocks = blocks
        self.taken = 0
        self.turn = 0
        """To be set to the number of the event loop's turn."""
        self.turns = Counter()
        """Blocks that were taken in each turn."""

    async def run(self, _cid, _start, _stop):
        for block in self.blocks:
            self.taken += 1
            self.turns[self.turn] += 1
            yield block

    async def close(self):
        pass


def tree_of(leaves):
    """A file of these leaves, as the blocks of a run."""
    blocks = [CarBlock(CID.of(leaf), leaf) for leaf in leaves]
    links = tuple(PBLink(block.cid, "", len(block.data)) for block in blocks)
    sizes = tuple(len(leaf) for leaf in leaves)
    node = UnixFSNode(UnixFSType.FILE, file_size=sum(sizes), block_sizes=sizes, links=links)
    data = unixfs.encode(node)
    return [CarBlock(CID.of(data, DAG_PB), data), *blocks]


async def test_a_run_of_tiny_blocks_leaves_others_their_turn(tmp_path):
    """Two thousand that come at once: the event loop turns meanwhile."""
    blocks = tree_of([b"%d" % number for number in range(2000)])
    store = BlockStore.open(tmp_path / "near", min_free=0)
    provider = Given(blocks)
    async with ReadingNode(store, Retriever([provider], SETTINGS)) as node:
        run = ahead._Run(node._fetching, blocks[0].cid, 0, 10_000, "given")
        while not run._task.done():
            provider.turn += 1
            await asyncio.sleep(0)
        assert run._came == len(blocks)
        assert max(provider.turns.values()) <= 20
        await run.close()


async def test_tiny_blocks_count_for_more_than_their_bytes(tmp_path, monkeypatch):
    """A run of them waits for its reader, too."""
    monkeypatch.setattr(ahead, "RUN_AHEAD", 100 * ahead.SECTION_BYTES)
    blocks = tree_of([b"%d" % number for number in range(2000)])
    provider = Given(blocks)
    store = BlockStore.open(tmp_path / "near", min_free=0)
    async with ReadingNode(store, Retriever([provider], SETTINGS)) as node:
        run = ahead._Run(node._fetching, blocks[0].cid, 0, 10_000_000, "given")
        run.advance(len(blocks[0].data))
        await asyncio.wait([run._task], timeout=0.3)
        assert not run._task.done()
        assert provider.taken <= 102
        await run.close()


async def test_random_reads_are_not_followed(tmp_path, far, content):
    """Ranges that do not join cost no block that nobody asked for."""
    cid, data = content
    provider = StoreProvider(far)
    async with open_near(tmp_path, provider) as node:
        for place in range(300_000, 19_000_000, 1_000_000):
            assert await node.read(cid, place, 1000) == data[place : place + 1000]
        assert len(provider.asked) <= 1 + 19 * 2
