"""Nodes by settings: who is asked for what, over a real Kubo daemon and its gateway."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import subprocess

import pytest

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.content.kubo.node import KuboNode
from ipfs_stream_nb.content.nodes import NodeSettings, open_node
from ipfs_stream_nb.content.retrieval import health
from ipfs_stream_nb.content.retrieval.settings import RetrievalSettings
from ipfs_stream_nb.errors import (
    BadRequestError,
    NotFoundError,
    RetrievalError,
    RetrievalTimeoutError,
    StoreError,
    UnreachableError,
)
from kubo import free_ports
from listening import stop_accepting

NOBODY = RetrievalSettings(gateways=(), routers=())


@contextlib.asynccontextmanager
async def opened(repo, *, gateways=(), answer_timeout=60.0, **settings):
    """A node over an own store with these settings."""
    retrieval = RetrievalSettings(gateways=gateways, routers=(), answer_timeout=answer_timeout, max_retries=0)
    node = await open_node(NodeSettings(repo=repo, min_free=0, retrieval=retrieval, **settings))
    try:
        yield node
    finally:
        await node.close()


@contextlib.asynccontextmanager
async def silent_listener():
    """The URL of something that takes connections and never answers."""
    ended = asyncio.Event()

    async def serve(_reader, writer):
        await ended.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        await stop_accepting(server)
        ended.set()
        server.close()
        await server.wait_closed()


@pytest.fixture
def _long_rests(monkeypatch):
    """A daemon that rests is not asked again before the test has seen it, however busy the machine is."""
    monkeypatch.setattr(health, "NEAR_REST_SECONDS", 600.0)


@pytest.fixture
def only_in_kubo(kubo):
    """Content of three blocks that only the daemon has, and its CID."""
    data = secrets.token_bytes(600_000)
    return data, CID.parse(kubo.run("add", "-Q", "--cid-version=1", "--chunker=size-262144", data=data))


async def read(node, cid):
    return await node.read(cid, 0, 1 << 24)


async def test_with_nobody_to_ask_nothing_is_fetched(tmp_path):
    """No gateway is set and no Kubo is found: the node reads its store alone, as if there were no network."""
    async with opened(tmp_path) as node:
        assert isinstance(node, EmbeddedNode)
        assert (node.kind, node.retriever, node.fetches) == ("embedded", None, False)
        with pytest.raises(NotFoundError, match="this node does not have"):
            await read(node, CID.of(b"nobody has this"))


@pytest.mark.parametrize("way", ["setting", "variable", "file"])
async def test_auto_asks_a_kubo_that_is_found(kubo, only_in_kubo, tmp_path, monkeypatch, way):
    """However the daemon is found, what it has can be read, is kept here, and is known to come from it."""
    data, cid = only_in_kubo
    settings = {}
    if way == "setting":
        settings["kubo_api"] = kubo.api
    elif way == "variable":
        monkeypatch.setenv("IPFS_API", kubo.api)
    else:
        monkeypatch.setenv("IPFS_PATH", str(kubo.repo))
    async with opened(tmp_path / "repo", **settings) as node:
        assert (node.kind, node.fetches) == ("embedded", True)
        assert await read(node, cid) == data
        origins = await node.sources(cid)
        assert ([origin.source for origin in origins.origins], origins.missing) == (
            [f"Kubo at {kubo.api}"],
            0,
        )
    async with opened(tmp_path / "repo", kind="embedded") as alone:
        assert await read(alone, cid) == data


async def test_auto_gives_kubo_nothing(kubo, tmp_path):
    """What is added stays in the own store: the daemon would announce it to the world."""
    async with opened(tmp_path, kubo_api=kubo.api) as node:
        async with contextlib.aclosing(_pieces(secrets.token_bytes(1000))) as source:
            added = await node.add(source)
        assert [pin.cid for pin in await node.pins()] == [added.cid]
    with pytest.raises(subprocess.CalledProcessError):
        kubo.run("block", "stat", "--offline", str(added.cid))


async def _pieces(data):
    yield data


async def test_embedded_asks_no_kubo(only_in_kubo, kubo, tmp_path, monkeypatch):
    """The kind "embedded" leaves a daemon alone that could be found."""
    monkeypatch.setenv("IPFS_API", kubo.api)
    async with opened(tmp_path, kind="embedded") as node:
        assert node.retriever is None


@pytest.mark.usefixtures("_long_rests")
async def test_a_gateway_gives_what_kubo_cannot(kubo, only_in_kubo, tmp_path):
    """A daemon that is found and does not run is no error: the gateways are asked, and it rests."""
    data, cid = only_in_kubo
    gone = f"http://127.0.0.1:{free_ports(1)[0]}"
    async with opened(tmp_path, kubo_api=gone, gateways=(kubo.gateway,)) as node:
        assert await read(node, cid) == data
        (first, second) = node.retriever.describe()
        assert (first["name"], first["kind"], first["state"]) == (f"Kubo at {gone}", "kubo", "resting")
        assert (second["name"], second["state"], second["ok"]) == (kubo.gateway, "ok", 4)
        assert [origin.source for origin in (await node.sources(cid)).origins] == [kubo.gateway]


@pytest.mark.usefixtures("_long_rests")
async def test_a_kubo_that_hangs_is_passed_over(kubo, only_in_kubo, tmp_path, monkeypatch):
    """A daemon that takes connections and never answers costs one short wait, and then rests."""
    monkeypatch.setattr("ipfs_stream_nb.content.kubo.rpc.MARGIN", 0.2)
    data, cid = only_in_kubo
    async with (
        silent_listener() as url,
        opened(tmp_path, kubo_api=url, gateways=(kubo.gateway,)) as node,
    ):
        assert await read(node, cid) == data
        (first, second) = node.retriever.describe()
        assert (first["state"], first["failed"], second["ok"]) == ("resting", 1, 4)


async def test_what_nobody_has_tells_who_was_asked(kubo, tmp_path):
    """The error names every source that was tried."""
    async with opened(tmp_path, kubo_api=kubo.api, gateways=(kubo.gateway,), answer_timeout=2.0) as node:
        with pytest.raises((NotFoundError, RetrievalError, RetrievalTimeoutError)) as caught:
            await read(node, CID.of(secrets.token_bytes(10)))
    assert f"Kubo at {kubo.api}" in str(caught.value)
    assert kubo.gateway in str(caught.value)


async def test_offline_has_only_what_is_here(kubo, only_in_kubo, tmp_path):
    """The offline view asks nobody, shares the store, and leaves the node as it is."""
    data, cid = only_in_kubo
    async with opened(tmp_path, kubo_api=kubo.api) as node:
        with pytest.raises(NotFoundError):
            await node.offline().stat(cid)
        with pytest.raises(NotFoundError):
            await node.offline().block_get(cid)
        assert await read(node, cid) == data
        await node.sources(cid)  # which waits until it is written
        assert await read(node.offline(), cid) == data
        assert node.fetches


async def test_names_are_resolved_by_kubo(publisher, publish, tmp_path):
    """A path below an IPNS name is one below the CID that it stands for; without a network names stand for nothing."""
    cid = publisher.run("add", "-Q", "--cid-version=1", "-w", "--stdin-name=a.txt", data=b"named")
    name = publish(f"/ipfs/{cid}")
    async with opened(tmp_path, kubo_api=publisher.api) as node:
        assert await node.fixed(f"/ipns/{name}/a.txt") == f"/ipfs/{cid}/a.txt"
        assert await node.read(f"/ipns/{name}/a.txt", 0, 100) == b"named"
        assert str((await node.stat(f"ipns://{name}")).cid) == cid
        with pytest.raises(BadRequestError, match="IPNS name"):
            await node.offline().fixed(f"/ipns/{name}")
    async with opened(tmp_path) as node:
        with pytest.raises(BadRequestError, match="IPNS name"):
            await node.stat(f"/ipns/{name}")


async def test_kubo_holds_what_is_added(kubo, tmp_path):
    """The kind "kubo" adds and pins on the daemon."""
    data = random.Random(5).randbytes(300_000)
    async with opened(tmp_path, kind="kubo", kubo_api=kubo.api) as node:
        assert isinstance(node, KuboNode)
        assert (node.kind, node.fetches) == ("kubo", True)
        async with contextlib.aclosing(_pieces(data)) as source:
            added = await node.add(source, name="here")
        assert await read(node, added.cid) == data
    assert kubo.run_binary("cat", str(added.cid)) == data
    assert str(added.cid) in kubo.run("pin", "ls", "--type=recursive")


async def test_kubo_that_is_not_there_is_an_error(tmp_path):
    """Without a daemon there is no such node, and the error says how to get one; no store is made."""
    with pytest.raises(UnreachableError, match=r"no Kubo daemon was found.*ipfs daemon.*kubo_api"):
        await open_node(NodeSettings("kubo", tmp_path / "repo", retrieval=NOBODY))
    gone = f"http://127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(UnreachableError, match=f"no Kubo daemon answers at {gone}"):
        await open_node(NodeSettings("kubo", tmp_path / "repo", kubo_api=gone, retrieval=NOBODY))
    assert not (tmp_path / "repo").exists()


async def test_kubo_that_never_answers_is_an_error(tmp_path, monkeypatch):
    """A port that takes connections and says nothing is told after a while."""
    monkeypatch.setattr("ipfs_stream_nb.content.nodes.KUBO_TIMEOUT", 0.2)
    async with silent_listener() as url:
        with pytest.raises(UnreachableError, match=r"did not answer within 0\.2 s"):
            await open_node(NodeSettings("kubo", tmp_path, kubo_api=url, retrieval=NOBODY))


async def test_a_store_that_cannot_be_opened(kubo, tmp_path):
    """It is a StoreError, with nothing left open."""
    (tmp_path / "data.mdb").write_bytes(b"this is no LMDB file" * 1000)
    with pytest.raises(StoreError, match=str(tmp_path)):
        await open_node(NodeSettings("kubo", tmp_path, kubo_api=kubo.api, retrieval=NOBODY))


def test_settings_that_make_no_sense():
    """A kind that is none, and an address that is none, are told with what would be right."""
    with pytest.raises(BadRequestError, match="auto, embedded, kubo, not 'remote'"):
        NodeSettings("remote")
    with pytest.raises(BadRequestError, match="address of a Kubo RPC"):
        asyncio.run(open_node(NodeSettings(kubo_api="ftp://x", retrieval=NOBODY)))


def test_the_secret_is_in_no_repr():
    """How Kubo lets us in is not shown."""
    assert "hidden" not in repr(NodeSettings(kubo_auth="bearer:hidden", retrieval=NOBODY))


def test_the_environment_names_the_gateways(monkeypatch):
    """Settings that nothing else is said for take gateways and routers from the environment."""
    monkeypatch.setitem(os.environ, "IPFS_STREAM_NB_GATEWAYS", "https://one.example, https://two.example")
    assert NodeSettings().retrieval.gateways == ("https://one.example", "https://two.example")
