"""A KuboNode over the session's daemon, with a cache of its own."""

from __future__ import annotations

import pytest

from kubo_nodes import node_of, rpc_of


@pytest.fixture
async def node(kubo, tmp_path):
    async with node_of(kubo.api, tmp_path / "cache") as node:
        yield node


@pytest.fixture
async def rpc(kubo):
    rpc = rpc_of(kubo.api)
    yield rpc
    await rpc.close()
