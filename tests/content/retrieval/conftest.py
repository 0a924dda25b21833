"""Two stores: what the far one has, the near one can only have from providers."""

from __future__ import annotations

import random

import pytest

from ipfs_stream_nb.content.embedded import EmbeddedNode

CONTENT = random.Random(3).randbytes(20_000_000)


@pytest.fixture
async def far(tmp_path):
    async with await EmbeddedNode.open(tmp_path / "far", min_free=0) as node:
        yield node


@pytest.fixture
async def content(far):
    """A file of 77 raw blocks under one node, on the far side: its CID and its bytes."""

    async def pieces():
        yield CONTENT

    return (await far.add(pieces(), profile="ipfs-v1")).cid, CONTENT
