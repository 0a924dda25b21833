"""`IPFSUploadHandler`, as the guide uses it, over nodes that can resume and one that cannot."""

from __future__ import annotations

import asyncio
import random

import pytest

from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.content.importer import import_bytes
from ipfs_stream_nb.content.upload_handler import IPFSUploadHandler
from ipfs_stream_nb.errors import BadRequestError, NotFoundError


class Plain:
    """A node without resumable uploads, such as one behind a server."""

    def __init__(self, node):
        self._node = node

    def writer(self, *, profile=None):
        return self._node.writer(profile=profile)

    def get_metadata(self, path):
        return self._node.get_metadata(path)


@pytest.fixture
async def node(tmp_path):
    async with await EmbeddedNode.open(tmp_path / "repo", min_free=0) as node:
        yield node


@pytest.fixture(params=[True, False])
def api(node, request):
    """A node that can resume, and one that cannot."""
    return node if request.param else Plain(node)


@pytest.mark.parametrize("profile", [None, "unixfs-v0-2015"])
async def test_the_guides_use(node, api, profile):
    """add_chunk, get_progress and finalize as the guide has them; the CID is that of `ipfs add`."""
    data = random.Random(1).randbytes(700_000)
    handler = IPFSUploadHandler(api, profile=profile)
    for at in range(0, len(data), 65_536):
        await handler.add_chunk(data[at : at + 65_536])
        progress = handler.get_progress()
        assert progress["type"] == "progress"
        assert progress["bytes_processed"] == handler.bytes_processed == min(at + 65_536, len(data))
        assert progress["total_bytes"] is progress["percent"] is handler.percent_complete is None
        assert progress["durable"] <= progress["bytes_processed"]
    result = await handler.finalize()
    made = import_bytes(data, profile)
    assert result == {"cid": str(made.root), "size": len(data), "dag_size": made.dag_size}
    assert [(str(pin.cid), pin.name) for pin in await node.pins()] == [(result["cid"], "")]


async def test_progress_of_a_known_length(api):
    """With a declared size there are total_bytes and percent_complete."""
    handler = IPFSUploadHandler(api, filename="a.txt", total_bytes=8)
    assert (handler.total_bytes, handler.percent_complete, handler.bytes_processed) == (8, 0, 0)
    await handler.add_chunk(b"abc")
    assert handler.percent_complete == handler.get_progress()["percent"] == 37.5
    await handler.add_chunk(memoryview(b"defgh"))
    assert handler.percent_complete == 100
    assert (await handler.finalize())["size"] == handler.bytes_processed == 8


async def test_nothing_at_all(api):
    """A file without a chunk is the empty file; of no bytes all are there."""
    handler = IPFSUploadHandler(api, total_bytes=0)
    assert handler.percent_complete == 100
    assert (await handler.finalize())["cid"] == str(import_bytes(b"").root)


async def test_the_pin_has_the_file_s_name(node, api):
    """A named file's pin has its name; without a pin there is none."""
    handler = IPFSUploadHandler(api, filename="ä.txt")
    await handler.add_chunk(b"1")
    await handler.finalize()
    handler = IPFSUploadHandler(api, filename="b.txt")
    await handler.add_chunk(b"2")
    await handler.finalize(pin=False)
    assert [pin.name for pin in await node.pins()] == ["ä.txt"]


async def test_aborting_leaves_nothing(node, api):
    """Before, between and after chunks, and twice."""
    for count in range(3):
        handler = IPFSUploadHandler(api)
        for _ in range(count):
            await handler.add_chunk(bytes(100_000))
            await handler.checkpoint()
        await handler.abort()
        await handler.abort()
        if count:
            with pytest.raises(BadRequestError):
                await handler.add_chunk(b"more")
    await node.gc()
    assert (await node.repo_stat()).blocks == 0
    assert await node.uploads.list() == []


async def test_resuming_by_id(node):
    """A new handler with the id goes on at the durable byte, with the facts of the first; after the end it tells the
    result again."""
    first = IPFSUploadHandler(node, filename="a.txt", total_bytes=6)
    assert await first.start() == await first.start() == 0
    await first.add_chunk(b"abc")
    await first.suspend()
    second = IPFSUploadHandler(node, upload_id=first.upload_id)
    assert await second.start() == 3
    assert (second.filename, second.total_bytes, second.percent_complete) == ("a.txt", 6, 50)
    await second.add_chunk(b"def")
    result = await second.finalize()
    third = IPFSUploadHandler(node, upload_id=first.upload_id)
    assert await third.start() == third.bytes_processed == 6
    await third.checkpoint()
    assert await third.finalize() == result
    assert (result["cid"], result["size"]) == (str(import_bytes(b"abcdef").root), 6)


async def test_what_cannot_be_resumed(node):
    """An unknown id, and any id on a node that keeps none, are refused at the first use."""
    with pytest.raises(NotFoundError):
        await IPFSUploadHandler(node, upload_id="ab" * 16).add_chunk(b"x")
    with pytest.raises(BadRequestError, match="resumed"):
        await IPFSUploadHandler(Plain(node), upload_id="ab" * 16).add_chunk(b"x")


async def test_suspending_what_cannot_be_resumed(node):
    """It is given up."""
    handler = IPFSUploadHandler(Plain(node))
    await handler.add_chunk(b"x")
    await handler.suspend()
    with pytest.raises(BadRequestError):
        await handler.add_chunk(b"more")


async def test_chunks_at_once_are_of_one_upload(node):
    """Whoever comes first begins it; nothing is lost, and no other upload is begun."""
    handler = IPFSUploadHandler(node)
    await asyncio.gather(*[handler.add_chunk(b"a" * 1000) for _ in range(50)])
    assert (await handler.finalize())["cid"] == str(import_bytes(b"a" * 50_000).root)
    assert len(await node.uploads.list()) == 1


async def test_another_profile_does_not_go_on(node):
    """A resumed upload ends in the CID of the profile that it was begun with, so another one is refused."""
    handler = IPFSUploadHandler(node)
    await handler.add_chunk(b"abc")
    await handler.suspend()
    with pytest.raises(BadRequestError, match="begun with the profile 'unixfs-v1-2025'"):
        await IPFSUploadHandler(node, upload_id=handler.upload_id, profile="ipfs-v1").start()
    again = IPFSUploadHandler(node, upload_id=handler.upload_id, profile="unixfs-v1-2025")
    assert await again.start() == 3
    await again.abort()


@pytest.mark.parametrize("api", [None, "http://127.0.0.1:5001", 5])
def test_what_is_no_node_is_refused(api):
    """At once, and not when the first chunk comes."""
    with pytest.raises(BadRequestError, match="open_node"):
        IPFSUploadHandler(api)


@pytest.mark.parametrize("total", [-1, "5", 1.5])
def test_a_length_that_is_none_is_refused(node, total):
    """It would only be found out at the end."""
    with pytest.raises(BadRequestError, match="total_bytes"):
        IPFSUploadHandler(node, total_bytes=total)


async def test_a_chunk_is_bytes(node):
    """Text is refused, and the upload goes on."""
    handler = IPFSUploadHandler(node)
    with pytest.raises(BadRequestError, match="not str"):
        await handler.add_chunk("text")
    await handler.add_chunk(b"bytes")
    assert (await handler.finalize())["size"] == 5
