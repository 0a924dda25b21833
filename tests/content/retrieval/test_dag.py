"""Pinning what is elsewhere."""

from __future__ import annotations

import pytest

from ipfs_stream_nb.content.blocks import BlockStore
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.content.retrieval.retriever import Retriever
from ipfs_stream_nb.content.retrieval.settings import RetrievalSettings
from ipfs_stream_nb.errors import NotFoundError, RetrievalError
from providers import StoreProvider

SETTINGS = RetrievalSettings(gateways=(), routers=(), max_retries=0)


def open_near(path, provider, **options):
    store = BlockStore.open(path / "near", min_free=0, **options)
    return EmbeddedNode(store, Retriever([provider], SETTINGS))


async def test_a_pin_fetches_all_of_it_and_knows_the_total(tmp_path, far, content):
    """Progress grows to a total that is true, and the content is here afterwards, with nobody to ask."""
    cid, data = content
    told = []
    async with open_near(tmp_path, StoreProvider(far), cache_quota=1_000_000) as node:
        await node.read(cid, 0, 600_000)
        assert (await node.pin(cid, name="film", progress=told.append)).name == "film"
    fetched = [step for step in told if step.total_blocks is not None]
    assert {(step.total_blocks, step.total_bytes) for step in fetched} == {(78, (await far.repo_stat()).size)}
    assert (fetched[-1].blocks, fetched[-1].bytes) == (78, (await far.repo_stat()).size)
    assert [step.blocks for step in fetched] == sorted(step.blocks for step in fetched)
    async with await EmbeddedNode.open(tmp_path / "near", min_free=0) as node:
        assert await node.read(cid, 0, len(data)) == data
        assert (await node.gc()).blocks == 0


async def test_a_directory_is_pinned_whole(tmp_path, far):
    """Directories, symlinks, empty files and files that occur twice."""
    tree = far.tree_writer(profile="unixfs-v0-2015")

    async def pieces(data):
        yield data

    await tree.add_file("a/one.bin", pieces(bytes(700_000)))
    await tree.add_file("b/same.bin", pieces(bytes(700_000)))
    await tree.add_file("b/empty", pieces(b""))
    await tree.add_symlink("link", "a/one.bin")
    cid = (await tree.finish()).cid
    async with open_near(tmp_path, StoreProvider(far)) as node:
        await node.pin(cid)
        assert [pin.cid for pin in await node.pins()] == [cid]
        assert await node.read(f"{cid}/link", 0, 10) == bytes(10)


async def test_a_pin_of_what_cannot_be_had_fails_and_pins_nothing(tmp_path, far, content):
    """The error names the block that is missing, and a second try goes on from what is here."""
    cid, _ = content
    leaf = (await far.reader.node(cid)).unixfs.links[40].cid

    def fault(asked, block):
        if asked == leaf:
            raise NotFoundError(f"{asked} is not here")
        return block

    provider = StoreProvider(far, fault=fault)
    async with open_near(tmp_path, provider) as node:
        with pytest.raises(RetrievalError, match=str(leaf)):
            await node.pin(cid)
        assert await node.pins() == []
        provider.fault = None
        provider.asked.clear()
    async with open_near(tmp_path, provider) as node:
        await node.pin(cid)
        assert len(provider.asked) < 78
