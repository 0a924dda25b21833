"""A real trustless gateway, Kubo's, and what can go wrong on the way to it."""

from __future__ import annotations

import asyncio
import email.utils
import os
import time

import pytest

from fault_proxy import Fault, FaultProxy
from ipfs_stream_nb.content.cid import CID, RAW
from ipfs_stream_nb.content.dag_pb import MAX_BLOCK
from ipfs_stream_nb.content.retrieval.gateway import TrustlessGateway
from ipfs_stream_nb.content.retrieval.http import MAX_RETRY_AFTER, GlobalResolver, is_inner
from ipfs_stream_nb.content.retrieval.settings import RetrievalSettings
from ipfs_stream_nb.errors import (
    BusyError,
    CorruptContentError,
    NotFoundError,
    RetrievalError,
    RetrievalTimeoutError,
    UnreachableError,
)

QUICK = RetrievalSettings(answer_timeout=0.5, stall_timeout=0.5, connect_timeout=2)


@pytest.fixture
async def proxy(kubo):
    async with FaultProxy(kubo.gateway) as proxy:
        yield proxy


@pytest.fixture
async def gateway(proxy):
    gateway = TrustlessGateway(proxy.url, QUICK)
    yield gateway
    await gateway.close()


@pytest.fixture
def block(kubo):
    """A block that Kubo has."""
    data = os.urandom(100_000)
    cid = CID.parse(kubo.run("add", "-Q", "--cid-version=1", data=data))
    return cid, data


async def test_a_block_is_had_as_raw(gateway, proxy, block):
    """The request says what is wanted in both ways that the specification knows."""
    cid, data = block
    assert await gateway.get(cid) == data
    (request,) = proxy.requests
    assert request.path == f"/ipfs/{cid}?format=raw"
    assert request.headers["accept"] == "application/vnd.ipld.raw"
    assert request.headers["user-agent"].startswith("ipfs_stream_nb/")


async def test_a_run_has_the_blocks_of_a_range(gateway, kubo):
    """A CAR of some bytes holds the way to them and the leaves that overlap them."""
    data = os.urandom(2_000_000)
    root = CID.parse(
        kubo.run("add", "-Q", "--cid-version=1", "--raw-leaves", "--chunker=size-262144", data=data)
    )
    blocks = [block async for block in gateway.run(root, 600_000, 900_000)]
    assert blocks[0].cid == root
    assert [block.data for block in blocks[1:]] == [data[524_288:786_432], data[786_432:1_048_576]]
    for cid, block in blocks:
        cid.verify(block)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(status=404), NotFoundError),
        (Fault(status=410), NotFoundError),
        (Fault(status=429), BusyError),
        (Fault(status=503, headers={"Retry-After": "7"}), BusyError),
        (Fault(status=503), RetrievalError),
        (Fault(status=504), RetrievalError),
        (Fault(status=500), RetrievalError),
        (Fault(status=451), RetrievalError),
        (Fault(status=206, body=b"part"), RetrievalError),
        (Fault(delay=1), RetrievalTimeoutError),
        (Fault(stall=1000), RetrievalTimeoutError),
        (Fault(cut=1000), RetrievalError),
        (Fault(cut=0), RetrievalError),
        (Fault(refuse=True), RetrievalError),
        (Fault(change=lambda _: bytes(MAX_BLOCK + 1)), RetrievalError),
        (Fault(status=200, headers={"Content-Length": "99999999999"}), RetrievalError),
        (Fault(status=301, headers={"Location": "/elsewhere"}), RetrievalError),
        (Fault(status=301, headers={"Location": "ftp://example.org/"}), RetrievalError),
        (Fault(status=301, headers={"Location": "http://[bad/"}), RetrievalError),
        (Fault(status=301), RetrievalError),
    ],
)
async def test_every_failure_has_its_error(gateway, proxy, block, fault, error):
    """What passes, what does not, and what asks for patience are told apart."""
    proxy.rule = lambda _: fault
    with pytest.raises(error) as raised:
        await gateway.get(block[0])
    assert type(raised.value) is error
    proxy.rule = None
    assert await gateway.get(block[0]) == block[1]


async def test_wrong_bytes_are_passed_on_for_the_hash_to_find(gateway, proxy, block):
    """A page of HTML with a 200 is as good as any other wrong block."""
    proxy.rule = lambda _: Fault(status=200, body=b"<html>", headers={"Content-Type": "text/html"})
    with pytest.raises(CorruptContentError):
        block[0].verify(await gateway.get(block[0]))


async def test_a_run_that_is_cut_says_so(gateway, proxy, kubo):
    """Blocks that came are given, then the error."""
    data = os.urandom(1_000_000)
    root = CID.parse(
        kubo.run("add", "-Q", "--cid-version=1", "--raw-leaves", "--chunker=size-262144", data=data)
    )
    proxy.rule = lambda _: Fault(cut=600_000)
    got = []
    with pytest.raises(RetrievalError):
        async for block in gateway.run(root, 0, len(data)):
            got.append(block)
    assert len(got) == 3
    proxy.rule = lambda _: Fault(truncate=600_000)
    with pytest.raises(CorruptContentError):
        _ = [block async for block in gateway.run(root, 0, len(data))]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7),
        ("0", 0),
        ("-3", 0),
        ("99999", MAX_RETRY_AFTER),
        (email.utils.formatdate(time.time() + 300, usegmt=True), pytest.approx(300, abs=200)),
        ("soon", None),
    ],
)
async def test_retry_after_is_seconds_or_a_date(gateway, proxy, block, value, seconds):
    """Both forms, within bounds; nonsense counts as nothing."""
    proxy.rule = lambda _: Fault(status=429, headers={"Retry-After": value})
    with pytest.raises(BusyError) as raised:
        await gateway.get(block[0])
    assert raised.value.retry_after == seconds


async def test_redirects_are_followed_without_the_token(kubo, block):
    """A subdomain gateway sends us elsewhere; what is meant for one origin is not told to another."""
    async with FaultProxy(kubo.gateway) as target, FaultProxy(kubo.gateway) as first:
        first.rule = lambda request: Fault(status=307, headers={"Location": target.url + request.path})
        gateway = TrustlessGateway(first.url, QUICK, headers={"Authorization": "token secret"})
        assert await gateway.get(block[0]) == block[1]
        await gateway.close()
        assert first.requests[0].headers["authorization"] == "token secret"
        assert "authorization" not in target.requests[0].headers


async def test_redirects_end(gateway, proxy, block):
    """A circle is left after some rounds."""
    proxy.rule = lambda request: Fault(status=302, headers={"Location": request.path})
    with pytest.raises(RetrievalError, match="redirects over"):
        await gateway.get(block[0])
    assert len(proxy.requests) == 6


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "10.1.2.3",
        "192.168.0.1",
        "169.254.169.254",
        "[::1]",
        "[fe80::1]",
        "a.localhost",
    ],
)
def test_a_public_gateway_leads_nowhere_inside(host):
    """Redirects to addresses of an inner network are refused, before anything is sent."""
    gateway = TrustlessGateway("https://gateway.example", QUICK)
    with pytest.raises(RetrievalError, match="inner network"):
        gateway._redirected(gateway.url, f"https://{host}/x")


def test_https_is_not_left():
    """A redirect to http is refused."""
    gateway = TrustlessGateway("https://gateway.example", QUICK)
    with pytest.raises(RetrievalError, match="https to http"):
        gateway._redirected(gateway.url, "http://gateway.example/")


async def test_names_of_inner_addresses_are_not_resolved():
    """DNS that answers with a loopback address answers nothing."""
    resolver = GlobalResolver()
    with pytest.raises(OSError, match="no public address"):
        await resolver.resolve("localhost", 80)
    await resolver.close()
    assert is_inner("::1")
    assert not is_inner("1.1.1.1")
    assert not is_inner("ipfs.io")


async def test_nobody_there_is_told_at_once(unused_tcp_port):
    """A port that nobody listens on, and a name that does not exist."""
    for url in (f"http://127.0.0.1:{unused_tcp_port}", "http://no-such-host.invalid"):
        gateway = TrustlessGateway(url, QUICK)
        with pytest.raises(UnreachableError):
            await gateway.get(CID.of(b"x", RAW))
        await gateway.close()


async def test_a_reader_that_leaves_ends_the_request(gateway, proxy, kubo):
    """A run that is closed early leaves no task and no connection."""
    data = os.urandom(4_000_000)
    root = CID.parse(kubo.run("add", "-Q", "--cid-version=1", "--raw-leaves", data=data))
    before = asyncio.all_tasks()
    blocks = gateway.run(root, 0, len(data))
    await anext(blocks)
    await blocks.aclose()
    await gateway.close()
    assert {task for task in asyncio.all_tasks() - before if "FaultProxy" not in repr(task)} == set()
