"""The guide's resilient stream."""

from __future__ import annotations

import random

import pytest

from ipfs_stream_nb.content import resilience
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.content.resilience import ResilienceContentStream
from ipfs_stream_nb.errors import (
    BadCIDError,
    BadRequestError,
    IsDirectoryError,
    NotFoundError,
    RetrievalError,
)

CONTENT = random.Random(5).randbytes(3_000_000)


@pytest.fixture
async def node(tmp_path):
    async with await EmbeddedNode.open(tmp_path / "repo", min_free=0) as node:
        yield node


@pytest.fixture
def at_once(monkeypatch):
    """Retries do not wait."""
    monkeypatch.setattr(resilience, "RETRY_DELAY", 0)


class Cutting:
    """A node whose reads break off: a stand-in for a network that does."""

    kind = "cutting"

    def __init__(self, node, cuts):
        self.node = node
        self.cuts = cuts
        self.asked = []

    async def get_metadata(self, path):
        return await self.node.get_metadata(path)

    async def cat(self, path, offset=0, length=None):
        self.asked.append((offset, length))
        cut = self.cuts.pop(0) if self.cuts else None
        if isinstance(cut, Exception):
            raise cut
        async for piece in self.node.cat(path, offset, length):
            if cut is not None and offset + len(piece) > cut:
                yield piece[: max(cut - offset, 0)]
                raise RetrievalError("cut")
            offset += len(piece)
            yield piece


async def add(node):
    async def pieces():
        yield CONTENT

    return (await node.add(pieces())).cid


async def read(stream, **options):
    return b"".join([chunk async for chunk in stream.iter_chunks(**options)])


async def test_cuts_at_100_random_offsets_leave_no_trace(node, at_once):
    """A stream that is cut again and again equals the original, to the byte."""
    cid = await add(node)
    cuts = sorted(random.Random(1).sample(range(1, len(CONTENT)), 100))
    api = Cutting(node, list(cuts))
    stream = ResilienceContentStream(api, cid)
    assert await read(stream) == CONTENT
    assert [offset for offset, _ in api.asked] == [0, *cuts]
    assert stream.current_source == "local"


@pytest.mark.parametrize("api", [None, "http://127.0.0.1:5001", b""])
def test_what_is_no_node_is_refused(api):
    """The address of a daemon, or nothing, in the place of a node."""
    with pytest.raises(BadRequestError, match="open_node"):
        ResilienceContentStream(api, "bafy")


async def test_a_part_is_resumed_within_its_length(node, at_once):
    """After a cut no more is asked for than what is left of the range."""
    cid = await add(node)
    api = Cutting(node, [1_500_000])
    stream = ResilienceContentStream(api, cid)
    assert await read(stream, offset=1_000_000, length=1_000_000) == CONTENT[1_000_000:2_000_000]
    assert api.asked == [(1_000_000, 1_000_000), (1_500_000, 500_000)]


async def test_failures_in_a_row_are_counted_up_to_the_limit(node, at_once):
    """After max_retries retries without a byte in between the error is raised."""
    cid = await add(node)
    api = Cutting(node, [RetrievalError("down")] * 10)
    stream = ResilienceContentStream(api, cid, max_retries=3)
    with pytest.raises(RetrievalError, match="down"):
        await read(stream)
    assert len(api.asked) == 4


@pytest.mark.parametrize(
    ("path", "error"), [("nonsense", BadCIDError), ("{dir}", IsDirectoryError), ("{dir}/none", NotFoundError)]
)
async def test_what_no_retry_can_mend_is_raised_at_once(node, path, error):
    """A bad CID, a directory and a missing entry are asked for once."""
    tree = node.tree_writer()
    await tree.add_symlink("a", "b")
    cid = (await tree.finish()).cid
    stream = ResilienceContentStream(node, path.format(dir=cid))
    with pytest.raises(error):
        await read(stream)
    assert stream.current_source == "local"


async def test_a_consumer_error_is_its_own(node):
    """What goes wrong in the body of the loop is not retried."""
    stream = ResilienceContentStream(node, await add(node))
    with pytest.raises(ZeroDivisionError):
        async for _ in stream.iter_chunks():
            raise ZeroDivisionError
    assert stream.retry_count == 0


async def test_gateways_take_over_at_the_exact_byte(node, kubo, at_once, monkeypatch):
    """A node that fails for good after half of it is replaced by a verified gateway."""
    monkeypatch.setenv("IPFS_STREAM_NB_GATEWAYS", kubo.gateway)
    cid = kubo.run("add", "-Q", data=CONTENT)
    assert cid == str((await node.add(_pieces(), profile="unixfs-v0-2015")).cid)
    api = Cutting(node, [1_234_567, *[RetrievalError("down")] * 10])
    stream = ResilienceContentStream(api, cid, max_retries=2)
    assert stream.gateways == [kubo.gateway]
    assert await read(stream) == CONTENT
    assert stream.current_source == "gateway"


async def test_a_store_without_it_is_filled_by_gateways(tmp_path, kubo, at_once, monkeypatch):
    """Content that the embedded node does not have comes from gateways, and is kept."""
    monkeypatch.setenv("IPFS_STREAM_NB_GATEWAYS", kubo.gateway)
    cid = kubo.run("add", "-Q", data=CONTENT)
    async with await EmbeddedNode.open(tmp_path / "empty", min_free=0) as node:
        assert await read(ResilienceContentStream(node, cid)) == CONTENT
        assert await node.read(cid, 0, len(CONTENT)) == CONTENT
        with pytest.raises(NotFoundError):
            await read(
                ResilienceContentStream(node, kubo.run("add", "-Qn", data=b"nowhere"), use_gateways=False)
            )


async def _pieces():
    yield CONTENT


async def test_a_negative_number_of_retries_is_refused(node):
    """The text says what is possible."""
    with pytest.raises(BadRequestError, match="0 or more"):
        ResilienceContentStream(node, "x", max_retries=-1)
