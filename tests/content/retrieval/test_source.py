"""Reading through a store and providers."""

from __future__ import annotations

import asyncio

import pytest

from ipfs_stream_nb.content.blocks import BlockStore
from ipfs_stream_nb.content.reading import ReadingNode
from ipfs_stream_nb.content.retrieval import source as module
from ipfs_stream_nb.content.retrieval.retriever import Retriever
from ipfs_stream_nb.content.retrieval.settings import RetrievalSettings
from ipfs_stream_nb.errors import NotFoundError
from providers import StoreProvider

SETTINGS = RetrievalSettings(gateways=(), routers=())


def open_near(path, provider, **options):
    store = BlockStore.open(path / "near", min_free=0, **options)
    return ReadingNode(store, Retriever([provider], SETTINGS))


async def test_what_is_not_here_is_fetched_and_the_second_read_is_local(tmp_path, far, content):
    """A file comes from a provider block by block, and is in the store afterwards."""
    cid, data = content
    provider = StoreProvider(far)
    async with open_near(tmp_path, provider) as node:
        assert await node.read(cid, 0, len(data)) == data
        assert len(provider.asked) == len(set(provider.asked)) == 78
    other = StoreProvider(far)
    async with open_near(tmp_path, other) as node:
        assert await node.read(cid, 0, len(data)) == data
        assert (await node.stat(cid)).size == len(data)
    assert other.asked == []


async def test_ranges_of_stored_and_of_fetched_blocks_make_one_answer(tmp_path, far, content):
    """What a server sends is taken from the store where a block is there, and fetched where it is not."""
    cid, data = content
    async with open_near(tmp_path, StoreProvider(far)) as node:
        await node.read(cid, 3_000_000, 2_000_000)
        await node.close()
    async with open_near(tmp_path, StoreProvider(far)) as node:
        parts = [part async for part in node.cat_stored(cid, 2_000_001, 5_000_000)]
        kinds = {type(part) for part in parts}
        assert len(kinds) == 2
        found = [part if isinstance(part, bytes) else await part.read() for part in parts]
        assert b"".join(found) == data[2_000_001:7_000_001]


async def test_a_range_costs_the_blocks_that_hold_it(tmp_path, far, content):
    """64 KiB in the middle cost one leaf and the root."""
    cid, data = content
    provider = StoreProvider(far)
    async with open_near(tmp_path, provider) as node:
        assert await node.read(cid, 10_000_000, 65_536) == data[10_000_000:10_065_536]
    assert len(provider.asked) == 2


async def test_with_no_room_in_the_cache_content_is_still_delivered(tmp_path, far, content):
    """A cache of no bytes keeps nothing, and reading works."""
    cid, data = content
    async with open_near(tmp_path, StoreProvider(far), cache_quota=0) as node:
        assert await node.read(cid, 0, len(data)) == data
        assert not await node.block_has(cid)


async def test_a_damaged_block_of_the_store_is_fetched_anew(tmp_path, far, content):
    """Bytes that rotted on the disk are replaced by a provider's."""
    cid, data = content
    async with open_near(tmp_path, StoreProvider(far)) as node:
        assert await node.read(cid, 0, len(data)) == data
    path = tmp_path / "near" / "data.mdb"
    stored = bytearray(path.read_bytes())
    at = stored.index(data[5_000_000:5_000_040])
    stored[at] ^= 1
    path.write_bytes(stored)
    provider = StoreProvider(far)
    async with open_near(tmp_path, provider) as node:
        assert await node.read(cid, 0, len(data)) == data
    assert len(provider.asked) == 1


async def test_what_nobody_has_is_not_found(tmp_path, far, content):
    """The error names the CID and who was asked."""
    cid, _ = content
    await far.remove(cid)
    async with open_near(tmp_path, StoreProvider(far, name="the far store")) as node:
        with pytest.raises(NotFoundError, match=f"{cid}.*the far store"):
            await node.stat(cid)


async def test_a_store_that_fails_in_a_way_of_its_own_holds_nobody_up(
    tmp_path, far, content, monkeypatch, caplog
):
    """Whatever goes wrong in writing, readers get their blocks and closing ends."""
    cid, data = content
    monkeypatch.setattr(module, "WAITING_BYTES", 1_000_000)
    async with open_near(tmp_path, StoreProvider(far)) as node:

        def fail(*_args):
            raise RuntimeError("cannot schedule new futures")

        node.store.cache = fail
        async with asyncio.timeout(20):
            assert await node.read(cid, 0, len(data)) == data
            await node.close()
    assert {record.exc_info[0] for record in caplog.records if record.exc_info} == {RuntimeError}


async def test_where_it_came_from_is_told(tmp_path, far, content):
    """The store knows the provider of each block that it keeps."""
    cid, _ = content
    async with open_near(tmp_path, StoreProvider(far, name="the far store")) as node:
        await node.read(cid, 0, 1_000_000)
        await node.close()
    with BlockStore.open(tmp_path / "near") as store:
        origins = store.origins(cid)
        assert [(origin.source, origin.blocks) for origin in origins.origins] == [("the far store", 5)]
        assert origins.missing == 73
