"""Daemons that stop in the middle, or only seem to go on: whoever waits is told within a time that has a name."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from ipfs_stream_nb.content.cid import CID, DAG_PB, RAW
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.content.kubo import provider, upload
from ipfs_stream_nb.content.kubo import rpc as module
from ipfs_stream_nb.errors import IPFSStreamError, RetrievalError, RetrievalTimeoutError, UnreachableError
from kubo import running
from kubo_nodes import node_of

MIB = 1 << 20
ROOT = CID.of(b"root", RAW)
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def dripping(first, drop):
    """Sends `drop` again and again."""

    async def answer(_, writer):
        writer.write(HEAD + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in first))
        while True:
            writer.write(b"%x\r\n%s\r\n" % (len(drop), drop))
            await writer.drain()
            await asyncio.sleep(0.02)

    return answer


async def drain(items):
    async for _ in items:
        pass


@pytest.mark.parametrize("drop", [b"\n", b" \n\n", b'{"Progress":3}\n'])
async def test_a_pin_that_only_seems_to_go_on_is_ended(rpc_to, monkeypatch, drop):
    """Blank lines and the same number of blocks are no progress."""
    monkeypatch.setattr(module, "PIN_STALL", 0.5)
    rpc = await rpc_to(dripping([b'{"Progress":3}\n'], drop))
    async with asyncio.timeout(50):
        with pytest.raises(RetrievalTimeoutError, match=r"0\.5 s"):
            await drain(rpc.pin_add(ROOT, ""))


@pytest.mark.parametrize("offline", [True, False])
async def test_a_block_that_drips_is_ended(rpc_to, monkeypatch, offline):
    """A byte now and then is no silence, and yet it ends."""
    monkeypatch.setattr(module, "MARGIN", 0.2)
    monkeypatch.setattr(module, "BLOCK_TRANSFER", 0.3)
    rpc = await rpc_to(dripping([], b"x"))
    async with asyncio.timeout(50):
        with pytest.raises(RetrievalTimeoutError, match=rf"whole of block {ROOT} after 0\.5 s"):
            await rpc.block_get(ROOT, offline=offline, patience=0)


async def test_other_answers_that_drip_are_ended(rpc_to, monkeypatch):
    """A JSON value, and lines that are blank."""
    monkeypatch.setattr("ipfs_stream_nb.content.kubo.transport.TRANSFER_TIMEOUT", 0.2)
    async with asyncio.timeout(50):
        with pytest.raises(RetrievalTimeoutError, match=r"not done with its answer to id after 0\.5 s"):
            await (await rpc_to(dripping([b"{"], b" "))).json("id", silence=0.3)
        with pytest.raises(RetrievalTimeoutError, match=r"silent for 0\.3 s at ping"):
            await (await rpc_to(dripping([], b"\n"))).ping("x", silence=0.3)


def sockets():
    """Our open sockets."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += str(entry.readlink()).startswith("socket:")
    return found


@pytest.fixture
def no_files(monkeypatch):
    """Blocks by the RPC alone: files are there though the daemon has stopped."""

    async def none(_):
        return None

    monkeypatch.setattr(provider, "find_files", none)


TIMES = "PIN_STALL", "SLOW_TIMEOUT", "ADD_TIMEOUT", "ANSWER_TIMEOUT", "MARGIN", "BLOCK_TRANSFER"


@contextlib.contextmanager
def short_times():
    """All times short for the length of a `with` block."""
    with pytest.MonkeyPatch.context() as patch:
        for name in TIMES:
            patch.setattr(module, name, 1)
        patch.setattr(upload, "UPLOAD_STALL", 1)
        yield


def stop(daemon):
    """By the time that this returns, all of its threads stand still."""
    daemon.signal(signal.SIGSTOP)
    os.waitid(os.P_ALL, 0, os.WSTOPPED | os.WNOWAIT)


async def stopped_add(node, daemon, _):
    async def source():
        for number in range(100):
            if number == 5:
                stop(daemon)
            yield os.urandom(MIB)

    await node.add(source())


async def stopped_small_add(node, daemon, _):
    async def source():
        yield b"a few bytes"
        stop(daemon)

    await node.add(source())


async def stopped_import(node, daemon, embedded):
    async def random():
        for _ in range(60):
            yield os.urandom(MIB)

    cid = (await embedded.add(random())).cid

    async def source():
        sent = 0
        async for piece in embedded.export_car(cid):
            sent += len(piece)
            if sent > 5 * MIB:
                stop(daemon)
            yield piece

    await node.import_car(source())


async def stopped_pin(node, daemon, _):
    await node.pin(CID.of(os.urandom(9), DAG_PB), progress=lambda _: stop(daemon))


async def stopped_cat(node, daemon, _):
    async def source():
        for _ in range(30):
            yield os.urandom(MIB)

    cid = (await node.add(source())).cid
    async for _ in node.cat(cid):
        stop(daemon)


async def stopped_gc(node, daemon, _):
    collect = node.rpc.repo_gc

    async def repo_gc():
        stop(daemon)
        return await collect()

    node.rpc.repo_gc = repo_gc
    try:
        await node.gc()
    finally:
        del node.rpc.repo_gc


@pytest.mark.parametrize(
    "work", [stopped_add, stopped_small_add, stopped_import, stopped_pin, stopped_cat, stopped_gc]
)
async def test_a_daemon_that_is_stopped_and_goes_on(tmp_path, no_files, work):
    """A clear error soon, the node as good as new when the daemon goes on, and nothing left over."""
    with running(tmp_path / "kubo") as daemon:
        async with await EmbeddedNode.open(tmp_path / "embedded", min_free=0) as embedded:
            tasks, open_before = asyncio.all_tasks(), sockets()
            async with node_of(daemon.api, tmp_path / "cache", patience=1) as node:
                since = time.monotonic()
                error = pytest.raises(IPFSStreamError, match=f"Kubo at {daemon.api}")
                with short_times(), error as raised:  # a busy daemon that goes on may take longer
                    await work(node, daemon, embedded)
                assert isinstance(raised.value, RetrievalTimeoutError | RetrievalError)
                assert time.monotonic() - since < 50  # the least of the true times is 60
                daemon.signal(signal.SIGCONT)
                data = os.urandom(3 * MIB)

                async def source():
                    yield data

                added = await node.add(source())
                assert added.cid in {pin.cid for pin in await node.pins()}
                assert len(await node.rpc.block_get(added.cid)) > 100
                await node.gc()
            async with node_of(daemon.api, tmp_path / "other") as node:
                assert b"".join([piece async for piece in node.cat(added.cid)]) == data
            for _ in range(1000):  # what was on its way to the daemon when it stopped goes there first
                if sockets() <= open_before:
                    break
                await asyncio.sleep(0.05)
            assert sockets() <= open_before
            assert not asyncio.all_tasks() - tasks


@pytest.mark.parametrize("way", ["add", "dag/import"])
async def test_a_daemon_that_is_killed(tmp_path, way):
    """By kill -9, while we wait for our own source."""
    with running(tmp_path / "kubo") as daemon:
        async with node_of(daemon.api, tmp_path / "cache") as node:

            async def source():
                for number in range(100):
                    if number == 5:
                        daemon.kill()
                    yield os.urandom(MIB)
                    await asyncio.sleep(0.01)

            with pytest.raises(RetrievalError, match=f"stopped in the middle of {way} .*still running"):
                if way == "add":
                    await node.add(source())
                else:
                    await node.rpc.dag_import(source(), pin=False)
            with pytest.raises(UnreachableError, match="ipfs daemon"):
                await node.pins()
