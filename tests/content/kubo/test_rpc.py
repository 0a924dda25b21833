"""The RPC of a real daemon, and of what is none."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import tempfile

import pytest

from fault_proxy import Fault, FaultProxy
from ipfs_stream_nb.content.cid import CID, RAW
from ipfs_stream_nb.content.kubo import rpc as module
from ipfs_stream_nb.content.kubo.discovery import find_kubo
from ipfs_stream_nb.content.kubo.rpc import KuboRPC, go_seconds
from ipfs_stream_nb.errors import (
    BadRequestError,
    NotFoundError,
    RetrievalError,
    RetrievalTimeoutError,
    UnauthorizedError,
    UnreachableError,
)
from kubo import Kubo, running
from kubo_nodes import rpc_of

NOBODY = "12D3KooWCD4dhSj2m2sxgLfZ4XcxbtS5Ur3VHPf8z5eewgNffzpM"


async def pieces(data, size=100_000):
    for at in range(0, len(data), size):
        yield data[at : at + size]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("12.3ms", 0.0123),
        ("1m2.5s", 62.5),
        ("987µs", 987e-6),
        ("2h3m", 7380),
        ("5ns", 5e-9),
        ("n/a", None),
        ("", None),
        ("3", None),
        ("1x2s", None),
    ],
)
def test_durations_of_go_are_seconds(text, seconds):
    """As the daemon prints latencies."""
    assert go_seconds(text) == (None if seconds is None else pytest.approx(seconds))


async def test_a_daemon_says_who_it_is(rpc, kubo):
    """Version, peer id and repo."""
    assert await rpc.check() == "0.43.1"
    assert await rpc.id() == json.loads(kubo.run("id"))["ID"]
    assert (await rpc.repo_stat())["RepoPath"] == str(kubo.repo)


async def test_blocks_that_are_not_there(rpc):
    """Offline it says so at once; on its network it looks as long as it may."""
    cid = CID.of(os.urandom(9), RAW)
    with pytest.raises(NotFoundError):
        await rpc.block_get(cid, offline=True)
    with pytest.raises(RetrievalTimeoutError):
        await rpc.block_get(cid, patience=1)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda rpc: rpc.pin_rm(CID.of(b"never pinned", RAW)), NotFoundError),
        (lambda rpc: rpc.ping("nonsense"), BadRequestError),
        (lambda rpc: rpc.ping(NOBODY), RetrievalError),
        (lambda rpc: rpc.provide(CID.of(b"x", RAW)), RetrievalError),
        (
            lambda rpc: rpc.name_resolve("k51qzi5uqu5dgccx524mfjv7znyfsa6g013o6v4yvis9dxnrjbwojc62pt0450"),
            NotFoundError,
        ),
        (
            lambda rpc: rpc.routing_get(
                "/ipns/k51qzi5uqu5dgccx524mfjv7znyfsa6g013o6v4yvis9dxnrjbwojc62pt0450"
            ),
            NotFoundError,
        ),
        (lambda rpc: rpc.json("no/such/command"), RetrievalError),
        (lambda rpc: rpc.peering_add("nonsense"), BadRequestError),
    ],
)
async def test_the_daemons_complaints_have_their_kinds(rpc, call, error):
    """Each text of the daemon's becomes one of our errors, with the daemon's name in it."""
    with pytest.raises(error) as raised:
        await call(rpc)
    assert type(raised.value) is error or issubclass(type(raised.value), error)


async def test_peering_is_added_and_taken_away(rpc):
    """Peers that the daemon keeps connections to."""
    await rpc.peering_add(f"/ip4/127.0.0.1/tcp/9/p2p/{NOBODY}")
    assert NOBODY in await rpc.peering_ls()
    await rpc.peering_rm(NOBODY)
    assert NOBODY not in await rpc.peering_ls()


async def test_configuration_is_read_and_set(tmp_path):
    """Whole, by key, and one value for good."""
    with running(tmp_path / "kubo") as daemon:
        rpc = rpc_of(daemon.api)
        assert (await rpc.config())["Addresses"]["API"].endswith(str(daemon.api_port))
        await rpc.set_config("Peering.Peers", [{"ID": NOBODY, "Addrs": []}])
        assert (await rpc.config("Peering.Peers"))[0]["ID"] == NOBODY
        await rpc.close()


async def test_nobody_there(unused_tcp_port):
    """The text says how to start a daemon and how to say where it is."""
    rpc = rpc_of(f"http://127.0.0.1:{unused_tcp_port}")
    with pytest.raises(UnreachableError, match=r"ipfs daemon.*IPFS_API"):
        await rpc.check()
    await rpc.close()


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=404, body=b"<html>not here</html>"),
        Fault(status=200, body=b"<html>hello</html>"),
        Fault(status=200, body=b'{"hello": 1}'),
        Fault(status=200, body=b"[]"),
        Fault(status=200, body=b""),
        Fault(status=302, headers={"Location": "/elsewhere"}),
        Fault(status=500, body=b"oops"),
    ],
)
async def test_what_is_no_kubo_is_told(kubo, fault):
    """Another program on the port: a clear error, and no traceback of JSON."""
    async with FaultProxy(kubo.api, lambda _: fault) as proxy:
        rpc = rpc_of(proxy.url)
        with pytest.raises(RetrievalError, match="Kubo"):
            await rpc.check()
        await rpc.close()


async def test_one_that_is_too_old_is_refused(kubo):
    """A stand-in that says it is 0.34, which does not know all of our options."""
    body = json.dumps({"Version": "0.34.1"}).encode()
    async with FaultProxy(kubo.api, lambda _: Fault(status=200, body=body)) as proxy:
        rpc = rpc_of(proxy.url)
        with pytest.raises(RetrievalError, match=r"0\.34\.1.*0\.35"):
            await rpc.check()
        await rpc.close()


async def test_one_that_falls_silent_is_left(kubo):
    """A daemon that stops answering in the middle."""
    async with FaultProxy(kubo.api, lambda _: Fault(stall=0)) as proxy:
        rpc = rpc_of(proxy.url)
        with pytest.raises(RetrievalTimeoutError, match="silent"):
            await rpc.json("version", silence=0.3)
        await rpc.close()


async def test_one_that_breaks_off_is_told(kubo):
    """The connection ends in the middle of an answer."""
    cid = CID.parse(kubo.run("add", "-Q", "--cid-version=1", data=os.urandom(100_000)))
    async with FaultProxy(kubo.api, lambda _: Fault(cut=1000)) as proxy:
        rpc = rpc_of(proxy.url)
        with pytest.raises(RetrievalError, match="stopped in the middle of block/get"):
            await rpc.block_get(cid)
        await rpc.close()


async def test_authorisation_by_bearer_and_basic(tmp_path):
    """API.Authorizations of a real daemon: let in by either, refused without or with a wrong one."""
    daemon = Kubo(tmp_path / "kubo")
    paths = ["/api/v0"]
    daemon.configure(
        "API.Authorizations",
        {
            "one": {"AuthSecret": "bearer:right", "AllowedPaths": paths},
            "two": {"AuthSecret": "basic:me:right", "AllowedPaths": paths},
        },
    )
    try:
        daemon.start()
        for auth, good in (
            ("bearer:right", True),
            ("basic:me:right", True),
            ("bearer:wrong", False),
            (None, False),
        ):
            address = find_kubo(daemon.api, auth, {})
            assert address is not None
            rpc = KuboRPC(address)
            if good:
                assert await rpc.check() == "0.43.1"
                await rpc.add(pieces(bytes(5_000_000)), options={"pin": False})
            else:
                # all of it is sent before the answer: with more to come the daemon answers and soon resets the
                # connection, and a client that a busy machine keeps from reading finds no answer any more
                for call in (rpc.check(), rpc.add(pieces(bytes(5000)), options={})):
                    with pytest.raises(UnauthorizedError, match="kubo_auth") as raised:
                        await call
                    assert "wrong" not in str(raised.value)
            await rpc.close()
    finally:
        daemon.stop()


async def test_a_daemon_on_a_unix_socket(tmp_path):
    """It is found by its api file; when it is gone, the text names the socket."""
    daemon = Kubo(tmp_path / "kubo")
    with tempfile.TemporaryDirectory() as folder:  # a socket's path has room for 107 bytes
        daemon.configure("Addresses.API", f"/unix{folder}/api")
        try:
            daemon.start()
            address = find_kubo(environ={"IPFS_PATH": str(daemon.repo)})
            assert address is not None
            rpc = KuboRPC(address)
            assert await rpc.check() == "0.43.1"
            assert rpc.near
            await rpc.close()
            daemon.kill()
            with pytest.raises(UnreachableError, match=f"{folder}/api.*ipfs daemon"):
                await rpc.check()
            await rpc.close()
        finally:
            daemon.stop()


async def test_a_tree_that_is_not_whole_is_not_exported_as_one(rpc, kubo):
    """The daemon's CAR ends early without a word; it is asked, and the missing block is named."""
    data = os.urandom(600_000)
    cid = CID.parse(
        kubo.run("add", "-Q", "--pin=false", "--cid-version=1", "--chunker=size-262144", data=data)
    )
    assert (await rpc.dag_stat(cid))[0] == 4
    whole = b"".join([piece async for piece in rpc.dag_export(cid)])
    assert whole == kubo.run_binary("dag", "export", "--progress=false", str(cid))
    leaf = CID.of(data[262_144:524_288])
    kubo.run("block", "rm", str(leaf))
    with pytest.raises(NotFoundError, match=str(leaf)):
        async for _ in rpc.dag_export(cid):
            pass


async def test_an_empty_block_is_a_whole_tree(rpc, kubo):
    """Kubo has no statistics for it."""
    cid = CID.parse(kubo.run("add", "-Q", "--cid-version=1", "--raw-leaves", data=b""))
    assert await rpc.dag_stat(cid) == (1, 0)
    car = b"".join([piece async for piece in rpc.dag_export(cid)])
    assert car == kubo.run_binary("dag", "export", "--progress=false", str(cid))


async def test_pins_are_listed_and_garbage_is_told_with_its_errors(tmp_path):
    """None, one by name; where a pinned block is lost, collecting fails and says which."""
    with running(tmp_path / "kubo") as daemon:
        rpc = rpc_of(daemon.api)
        for cid in await rpc.pin_ls():
            await rpc.pin_rm(cid)
        assert await rpc.pin_ls() == {}
        cid = CID.parse(
            daemon.run("add", "-Q", "--pin-name=mine", "--chunker=size-1000", data=os.urandom(3000))
        )
        assert await rpc.pin_ls() == {cid: "mine"}
        assert await rpc.repo_gc() == 1  # the empty directory that each new repo has
        name = base64.b32encode(cid.multihash).rstrip(b"=").decode()
        (file,) = daemon.repo.glob(f"blocks/*/{name}.data")
        file.unlink()
        with pytest.raises(RetrievalError, match="repo/gc"):
            await rpc.repo_gc()
        await rpc.close()


async def test_a_source_that_fails_is_told_by_its_own_error(rpc):
    """What goes wrong while an upload is read is not called the daemon's."""

    async def source():
        yield b"begin"
        raise BadRequestError("my own")

    with pytest.raises(BadRequestError, match="my own"):
        async for _ in rpc.upload("add", source=source()):
            pass


async def test_answers_are_bounded(kubo, monkeypatch):
    """Too long a line is an error."""
    monkeypatch.setattr("ipfs_stream_nb.content.kubo.transport.MAX_LINE", 1000)
    body = b'{"Name": "' + b"x" * 5000
    async with FaultProxy(kubo.api, lambda _: Fault(status=200, body=body)) as proxy:
        rpc = rpc_of(proxy.url)
        with pytest.raises(RetrievalError, match="line of over"):
            async for _ in rpc.lines("add"):
                pass
        await rpc.close()


async def test_cancelling_a_command_ends_it(rpc):
    """A look for a block that nobody has can be ended by whoever waits."""
    task = asyncio.create_task(rpc.block_get(CID.of(os.urandom(9), RAW)))
    await asyncio.wait([task], timeout=0.2)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert await rpc.version()
    assert module.BLOCK_TIMEOUT > 1
