"""The extension in Jupyter: enabling it, its settings, and the life of its node."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
from traitlets import TraitError
from traitlets.config import Config

import ipfs_stream_nb_server
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.content.retrieval.settings import RetrievalSettings
from ipfs_stream_nb.errors import StoreError
from ipfs_stream_nb_server import context
from ipfs_stream_nb_server.app import IPFSStreamExtension
from ipfs_stream_nb_server.context import NodeHolder
from ipfs_stream_nb_server.limits import Limits
from raw_http import RawConnection

ENABLING = "jupyter_server_extension/jupyter-config/jupyter_server_config.d/ipfs_stream_nb_server.json"
LOG = logging.getLogger("tests")


def test_the_file_that_enables_it():
    """What pip puts into etc/jupyter names the package, and the package has the extension point."""
    config = json.loads((Path(__file__).parents[2] / ENABLING).read_text())
    (name,) = config["ServerApp"]["jpserver_extensions"]
    assert name == ipfs_stream_nb_server.__name__
    (point,) = ipfs_stream_nb_server._jupyter_server_extension_points()
    assert point == {"module": name, "app": IPFSStreamExtension}


def test_settings_are_documented():
    """Each setting has a help text, and the limits' defaults are those of Limits."""
    traits = IPFSStreamExtension.class_own_traits(config=True)
    assert len(traits) >= 13
    assert all(trait.help for trait in traits.values())
    for field in fields(Limits):
        assert traits[field.name].default_value == field.default
    settings = RetrievalSettings()
    patience = [name for name in traits if name.startswith("retrieval_")]
    assert len(patience) == 8
    for name in patience:
        assert traits[name].default_value == getattr(settings, name.removeprefix("retrieval_"))


def test_gateways_come_from_the_environment(monkeypatch):
    """Where nothing is set, gateways and routers are those of the environment; what is set stands before it."""
    monkeypatch.setenv("IPFS_STREAM_NB_GATEWAYS", "https://one.example, https://two.example")
    monkeypatch.setenv("IPFS_STREAM_NB_ROUTERS", "https://router.example")
    retrieval = IPFSStreamExtension()._node_settings().retrieval
    assert retrieval.gateways == ("https://one.example", "https://two.example")
    assert retrieval.routers == ("https://router.example",)
    config = Config({"IPFSStreamExtension": {"gateways": [], "retrieval_hedge_after": 0.5}})
    retrieval = IPFSStreamExtension(config=config)._node_settings().retrieval
    assert (retrieval.gateways, retrieval.hedge_after) == ((), 0.5)


@pytest.mark.parametrize(
    "server_config",
    [
        {
            "IPFSStreamExtension": {
                "node": "kubo",
                "kubo_api": "http://127.0.0.1:9",
                "kubo_auth": "bearer:hidden",
            }
        }
    ],
)
async def test_the_secret_for_kubo_is_in_no_log(server, caplog):
    """Neither what the server logs nor what it answers repeats it."""
    error = await server.json("GET", "ipfs-stream/pins", 503)
    assert "hidden" not in caplog.text + error["error"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"quota": -1},
        {"max_adds": 0},
        {"access_policy_class": "builtins.dict"},
        {"max_streams": "many"},
        {"node": "remote"},
        {"gateways": ["ipfs.io"]},
        {"routers": ["file:///etc"]},
        {"retrieval_answer_timeout": 0},
    ],
)
def test_wrong_settings_are_refused(wrong):
    """A value that makes no sense is an error when the server starts, not later."""
    with pytest.raises(TraitError):
        IPFSStreamExtension(config=Config({"IPFSStreamExtension": wrong}))


async def test_the_store_is_closed_with_the_server(server):
    """stop_extension closes the node; nothing of it can be used after, and stopping again does no harm."""
    node = await server.node()
    await server.extension.stop_extension()
    with pytest.raises(StoreError, match="closed"):
        node.store.stat()
    assert "shutting down" in (await server.json("GET", "ipfs-stream/pins", 503))["error"]
    await server.extension.stop_extension()


async def test_jupyters_start_opens_the_store(server):
    """The hook that Jupyter calls when its loop runs opens the store in the background."""
    assert server.context.nodes.node is None
    await server.extension._start_jupyter_server_extension(server.app)
    async with asyncio.timeout(20):
        await server.context.nodes._opening
    assert server.context.nodes.node is not None


async def test_a_store_that_cannot_be_opened(server, tmp_path, caplog, monkeypatch):
    """The server runs on without its store: 503 with the reason on each route, a line in the log, health says so;
    once the store is mended, the next request finds it."""
    repo = tmp_path / "repo"
    repo.mkdir()
    (repo / "data.mdb").write_bytes(b"this is no LMDB file" * 1000)
    monkeypatch.setattr(context, "REOPEN_AFTER", 0.0)
    for method, path in [
        ("GET", "ipfs/bafkqaaa"),
        ("POST", "ipfs"),
        ("GET", "ipfs-stream/pins"),
        ("GET", "ipfs-stream/stat/bafkqaaa"),
        ("POST", "ipfs-stream/gc"),
    ]:
        error = await server.json(method, path, 503, data=b"x" if path == "ipfs" else None)
        assert error["code"] == "retrieval_failed"
        assert str(repo) in error["error"]
    health = await server.json("GET", "ipfs-stream/health", 503)
    assert (health["status"], health["node"]) == ("unavailable", None)
    assert str(repo) in health["error"]
    assert f"No IPFS content can be served: {health['error']}" in caplog.text
    async with server.request("GET", "api/status") as answer:
        assert answer.status == 200
    (repo / "data.mdb").unlink()
    assert (await server.json("GET", "ipfs-stream/health"))["status"] == "ok"


@pytest.mark.parametrize("way", ["deleted", "moved away", "replaced"])
async def test_a_store_that_is_lost(server, tmp_path, caplog, monkeypatch, way):
    """When the store's directory goes away under the running server: 503 with the reason, no traceback, no other
    try within REOPEN_AFTER; after it, the directory that is there then is used, without a restart."""
    repo, aside = tmp_path / "repo", tmp_path / "aside"
    cid = await server.add(b"text")
    node = await server.node()
    repo.rename(aside)
    if way == "deleted":
        shutil.rmtree(aside)
    if way == "replaced":
        await (await EmbeddedNode.open(repo)).close()
    error = await server.json("POST", "ipfs", 503, data=b"x")
    assert str(repo) in error["error"]
    async with asyncio.timeout(20):
        await server.context.nodes._opening
    health = await server.json("GET", "ipfs-stream/health", 503)
    assert (health["status"], health["node"]) == ("unavailable", None)
    assert str(repo) in health["error"]
    assert (await server.json("GET", f"ipfs/{cid}", 503))["error"] == health["error"]
    if way == "moved away":
        aside.rename(repo)
    monkeypatch.setattr(server.context.nodes, "_retry_at", 0.0)
    assert await server.add(b"more")
    assert await server.node() is not node
    async with server.request("GET", f"ipfs/{cid}") as answer:
        assert answer.status == (200 if way == "moved away" else 404)
    assert "Traceback" not in caplog.text


async def test_a_health_check_finds_a_lost_store(server, tmp_path):
    """Health says 503 with the reason at once; a store that is whole again after that is found again."""
    await server.node()
    shutil.rmtree(tmp_path / "repo")
    health = await server.json("GET", "ipfs-stream/health", 503)
    assert str(tmp_path / "repo") in health["error"]
    async with asyncio.timeout(20):
        await server.context.nodes._opening
    assert server.context.nodes.node is None


async def test_a_node_that_is_closed_under_requests(server, large):
    """What is under way then is a 503, or a broken connection where the answer has begun; nobody is left waiting."""
    _, cid = large
    node = await server.node()
    gate = asyncio.Event()

    async def body():
        yield b"x" * 3_000_000
        await gate.wait()
        yield b"x" * 3_000_000

    adding = asyncio.create_task(server.json("POST", "ipfs", 503, data=body()))
    async with asyncio.timeout(20):
        while not server.context.adds.active:  # noqa: ASYNC110  # no event tells of it
            await asyncio.sleep(0.01)
        async with await RawConnection.open(server) as connection:
            await connection.send_head("GET", f"ipfs/{cid}")
            assert (await connection.head()).status == 200
            await node.close()
            gate.set()
            assert "closed" in (await adding)["error"]
            with contextlib.suppress(ConnectionResetError):
                while await connection.reader.read(1 << 20):
                    pass
        while server.context.adds.active or server.context.streams.active:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_an_error_of_a_store_that_answers(server, monkeypatch):
    """A StoreError about one thing does not take the store from all others."""
    node = await server.node()

    async def broken():
        raise StoreError("a damaged page")

    monkeypatch.setattr(node, "pins", broken)
    assert "damaged page" in (await server.json("GET", "ipfs-stream/pins", 503))["error"]
    async with asyncio.timeout(20):
        assert await server.context.nodes._opening is None
    assert server.context.nodes.node is node


# the holder by itself


async def test_opened_once_for_all(tmp_path):
    """Many requests at once wait for one opening; one that is given up does not end it."""
    opened = 0
    gate = asyncio.Event()

    async def opener():
        nonlocal opened
        opened += 1
        await gate.wait()
        return await EmbeddedNode.open(tmp_path)

    holder = NodeHolder(opener, LOG)
    waiting = [asyncio.create_task(holder.get()) for _ in range(5)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    gate.set()
    nodes = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(nodes[0], asyncio.CancelledError)
    assert set(nodes[1:]) == {holder.node}
    assert opened == 1
    await holder.close()


async def test_a_failure_is_not_tried_again_at_once(monkeypatch):
    """Within REOPEN_AFTER, requests get the reason without another try; each error of another kind is told."""
    tries = []

    async def opener():
        tries.append(1)
        if len(tries) == 1:
            raise PermissionError(13, "Permission denied", "/repo")
        raise RuntimeError("a secret")

    holder = NodeHolder(opener, LOG)
    for _ in range(3):
        with pytest.raises(StoreError, match="Permission denied: /repo"):
            await holder.get()
    assert len(tries) == 1
    holder._retry_at = 0.0
    with pytest.raises(StoreError, match="log") as caught:
        await holder.get()
    assert "secret" not in str(caught.value)
    await holder.close()


async def test_closing_while_opening(tmp_path):
    """A server that stops while its store is being opened closes it all the same."""
    gate = asyncio.Event()

    async def opener():
        await gate.wait()
        return await EmbeddedNode.open(tmp_path)

    holder = NodeHolder(opener, LOG)
    opening = holder.start()
    closing = asyncio.create_task(holder.close())
    await asyncio.sleep(0)
    gate.set()
    await closing
    assert opening.done()
    assert holder.node is None
    with pytest.raises(StoreError, match="shutting down"):
        await holder.get()
