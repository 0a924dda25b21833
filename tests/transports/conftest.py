"""A node for conversations."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest

from ipfs_stream_nb.content.embedded import EmbeddedNode


@pytest.fixture
async def node(tmp_path) -> AsyncIterator[EmbeddedNode]:
    """An empty one."""
    async with await EmbeddedNode.open(tmp_path / "repo", min_free=0) as node:
        yield node


@pytest.fixture
def add(node):
    """Adds bytes, and gives the CID's text."""

    async def adding(data: bytes) -> str:
        writer = node.writer()
        await writer.write(data)
        return str((await writer.finish()).cid)

    return adding


@pytest.fixture
async def large(add):
    """Random content of several blocks, and its CID."""
    data = random.Random(1).randbytes((2 << 20) + 12_345)
    return data, await add(data)
