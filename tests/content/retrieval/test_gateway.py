"""A real trustless gateway, Kubo's, and what can go wrong on the way to it."""

from __future__ import annotations

import asyncio
import email.utils
import gzip
import os
import socket
import time
from dataclasses import replace

import pytest

from fault_proxy import Fault, FaultProxy
from ipfs_stream_nb.content.car import CarDecoder, encode_header, encode_section
from ipfs_stream_nb.content.cid import CID, RAW
from ipfs_stream_nb.content.dag_pb import MAX_BLOCK
from ipfs_stream_nb.content.retrieval import gateway as module
from ipfs_stream_nb.content.retrieval.gateway import TrustlessGateway
from ipfs_stream_nb.content.retrieval.http import MAX_RETRY_AFTER, is_inner
from ipfs_stream_nb.content.retrieval.provider import FoundNowhereError, StalledError, TooSlowError
from ipfs_stream_nb.content.retrieval.settings import RetrievalSettings
from ipfs_stream_nb.errors import (
    BusyError,
    CorruptContentError,
    NotFoundError,
    RefusedError,
    RetrievalError,
    RetrievalTimeoutError,
    UnreachableError,
)

PATIENT = RetrievalSettings(answer_timeout=60, stall_timeout=60, block_timeout=60, connect_timeout=60)
"""Time for a busy machine to answer in."""
HASTE = {
    RetrievalTimeoutError: replace(PATIENT, answer_timeout=0.5),
    StalledError: replace(PATIENT, stall_timeout=0.5),
    TooSlowError: replace(PATIENT, block_timeout=1),
}
"""Little time for one thing alone, so that it is certain which of the errors comes."""


@pytest.fixture
async def proxy(kubo):
    async with FaultProxy(kubo.gateway) as proxy:
        yield proxy


@pytest.fixture
async def gateway(proxy):
    gateway = TrustlessGateway(proxy.url, PATIENT)
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
        (Fault(status=504), FoundNowhereError),
        (Fault(status=500), RetrievalError),
        (Fault(status=401), RefusedError),
        (Fault(status=403), RefusedError),
        (Fault(status=451), RefusedError),
        (Fault(status=206, body=b"part"), RetrievalError),
        (Fault(delay=1), RetrievalTimeoutError),
        (Fault(stall=1000), StalledError),
        (Fault(drip=0.02), TooSlowError),
        (Fault(cut=1000), RetrievalError),
        (Fault(cut=0), RetrievalError),
        (Fault(refuse=True), RetrievalError),
        (Fault(change=lambda _: bytes(MAX_BLOCK + 1)), RefusedError),
        (Fault(status=200, headers={"Content-Length": "99999999999"}), RefusedError),
        (Fault(status=200, headers={"Content-Encoding": "gzip"}, body=gzip.compress(b"x")), RetrievalError),
        (Fault(status=301, headers={"Location": "/elsewhere"}), RetrievalError),
        (Fault(status=301, headers={"Location": "ftp://example.org/"}), RetrievalError),
        (Fault(status=301, headers={"Location": "http://[bad/"}), RetrievalError),
        (Fault(status=301), RetrievalError),
    ],
)
async def test_every_failure_has_its_error(gateway, proxy, block, fault, error):
    """What passes, what does not, and what asks for patience are told apart."""
    proxy.rule = lambda _: fault
    gateway.settings = HASTE.get(error, PATIENT)
    with pytest.raises(error) as raised:
        await gateway.get(block[0])
    assert type(raised.value) is error
    proxy.rule = None
    gateway.settings = PATIENT
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
    with pytest.raises(RetrievalError, match="cut short"):
        _ = [block async for block in gateway.run(root, 0, len(data))]
    proxy.rule = lambda _: Fault(status=200, body=b"<html>" * 100)
    with pytest.raises(RetrievalError, match="cannot be read"):
        _ = [block async for block in gateway.run(root, 0, len(data))]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7),
        ("0", 0),
        ("-3", 0),
        ("99999", MAX_RETRY_AFTER),
        ("in 300 s", pytest.approx(300, abs=200)),
        ("soon", None),
        ("9" * 400, MAX_RETRY_AFTER),
        ("9" * 5000, MAX_RETRY_AFTER),
        ("-" + "9" * 400, 0),
        ("Fri, 31 Dec 99999999999 23:59:59 GMT", None),
        ("Mon, 01 Jan 2030 00:00:00 +99999999999999", None),
    ],
)
async def test_retry_after_is_seconds_or_a_date(gateway, proxy, block, value, seconds):
    """Both forms, within bounds; nonsense counts as nothing."""
    if value == "in 300 s":
        value = email.utils.formatdate(time.time() + 300, usegmt=True)
    proxy.rule = lambda _: Fault(status=429, headers={"Retry-After": value})
    with pytest.raises(BusyError) as raised:
        await gateway.get(block[0])
    assert raised.value.retry_after == seconds


async def test_redirects_are_followed(kubo, block):
    """A subdomain gateway sends us elsewhere."""
    async with FaultProxy(kubo.gateway) as target, FaultProxy(kubo.gateway) as first:
        first.rule = lambda request: Fault(status=307, headers={"Location": target.url + request.path})
        gateway = TrustlessGateway(first.url, PATIENT)
        assert await gateway.get(block[0]) == block[1]
        await gateway.close()
        assert len(first.requests) == len(target.requests) == 1


async def test_redirects_end(gateway, proxy, block):
    """A circle is left after some rounds."""
    proxy.rule = lambda request: Fault(status=302, headers={"Location": request.path})
    with pytest.raises(RetrievalError, match="redirects over"):
        await gateway.get(block[0])
    assert len(proxy.requests) == 6


async def test_redirects_have_one_deadline(gateway, proxy, block):
    """One that sends us on and on, each time in good time, has no more time than one that does not answer."""
    proxy.rule = lambda request: Fault(delay=0.2, status=302, headers={"Location": request.path})
    gateway.settings = HASTE[RetrievalTimeoutError]
    with pytest.raises(RetrievalTimeoutError):
        await gateway.get(block[0])
    assert len(proxy.requests) <= 3


async def test_a_trickle_of_anything_has_an_end(gateway, proxy, block):
    """What is no block has the time that an answer has to begin, however steadily its bytes come."""
    proxy.rule = lambda _: Fault(drip=0.02)
    async with gateway.request(f"ipfs/{block[0]}", {"format": "raw"}, {}) as response:
        gateway.settings = HASTE[RetrievalTimeoutError]
        with pytest.raises(TooSlowError, match=r"all of a list was not there after 0.5 s"):
            await gateway.read(response, 1 << 20, "a list")


async def test_a_car_is_taken_apart_in_small_parts(gateway, proxy, monkeypatch):
    """A MiB of the smallest sections is thousands of blocks: nothing else runs while one part is read."""
    blocks = [b"%d" % number for number in range(20_000)]
    root = CID.of(blocks[0], RAW)
    car = encode_header([root]) + b"".join(encode_section(CID.of(block, RAW), block) for block in blocks)
    fed = []

    class Watched(CarDecoder):
        def feed(self, data):
            fed.append(len(data))
            return super().feed(data)

    monkeypatch.setattr(module, "CarDecoder", Watched)
    proxy.rule = lambda _: Fault(status=200, body=car)
    assert [block.data async for block in gateway.run(root, 0, 10)] == blocks
    assert sum(fed) == len(car)
    assert max(fed) <= 64 * 1024


INNER = [
    "127.0.0.1",
    "127.1",
    "2130706433",
    "0.0.0.0",
    "localhost",
    "a.localhost",
    "10.1.2.3",
    "100.64.0.1",
    "192.168.0.1",
    "169.254.169.254",
    "224.0.0.1",
    "[::1]",
    "[::]",
    "[fe80::1]",
    "[fd00::1]",
    "[ff02::1]",
    "[::ffff:127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
    "[64:ff9b:1::7f00:1]",
    "[::127.0.0.1]",
    "[::808:808]",
    "[::ffff:0:7f00:1]",
    "[fec0::1]",
    "kubo",
    "box.local",
    "metadata.google.internal.",
]


class Public(TrustlessGateway):
    """One that is taken for a public one, though it is at a loopback address."""

    is_inner = False


@pytest.mark.parametrize("host", INNER)
def test_a_public_gateway_leads_nowhere_inside(host):
    """Redirects to addresses of an inner network are refused, however they are written."""
    gateway = Public("https://gateway.example", PATIENT)
    with pytest.raises(RetrievalError, match="inner network"):
        gateway._redirected(gateway.url, f"https://{host}/x")


@pytest.mark.parametrize("host", ["1.1.1.1", "[2606:4700::1111]", "[64:ff9b::101:101]", "ipfs.io"])
def test_public_hosts_are_none_of_an_inner_network(host):
    """By address, by an IPv4 address in an IPv6 one, by name."""
    assert not is_inner(host)


async def test_nothing_is_sent_to_where_a_public_gateway_must_not_lead(kubo, monkeypatch, block):
    """Neither by address nor by a name that stands for one: the server there sees no request."""
    lookup = socket.getaddrinfo

    def inside(host, *args, **options):
        return lookup("127.0.0.1" if host == "inside.example" else host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", inside)
    async with FaultProxy(kubo.gateway) as target, FaultProxy(kubo.gateway) as first:
        gateway = Public(first.url, PATIENT)
        port = target.url.rpartition(":")[2]
        for host, text in (("127.0.0.1", "inner network"), ("inside.example", "no public address")):
            first.rule = lambda request, host=host: Fault(
                status=302, headers={"Location": f"http://{host}:{port}{request.path}"}
            )
            with pytest.raises(RetrievalError, match=text):
                await gateway.get(block[0])
        assert target.requests == []
        trusted = TrustlessGateway(first.url, PATIENT)
        assert await trusted.get(block[0]) == block[1]
        assert len(target.requests) == 1
        await gateway.close()
        await trusted.close()


async def test_the_operators_proxy_may_be_inside(kubo, monkeypatch, block):
    """What is public is asked for through the proxy of the environment, whose name leads to this machine."""
    async with FaultProxy(kubo.gateway) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.replace("127.0.0.1", "localhost"))
        monkeypatch.setenv("no_proxy", "")
        proxy.rule = lambda _: Fault(status=200, body=block[1])
        gateway = TrustlessGateway("http://gateway.example", PATIENT)
        assert await gateway.get(block[0]) == block[1]
        assert proxy.requests[0].path.startswith("http://gateway.example/ipfs/")
        await gateway.close()


async def test_a_subdomain_gateway_on_this_machine(kubo, block):
    """Kubo sends us from localhost to CID.ipfs.localhost, which the system's resolver need not know."""
    gateway = TrustlessGateway(f"http://localhost:{kubo.gateway_port}", PATIENT)
    assert await gateway.get(block[0]) == block[1]
    await gateway.close()


def test_https_is_not_left():
    """A redirect to http is refused."""
    gateway = TrustlessGateway("https://gateway.example", PATIENT)
    with pytest.raises(RetrievalError, match="https to http"):
        gateway._redirected(gateway.url, "http://gateway.example/")


async def test_nobody_there_is_told_at_once(unused_tcp_port):
    """A port that nobody listens on, and a name that does not exist."""
    for url in (f"http://127.0.0.1:{unused_tcp_port}", "http://no-such-host.invalid", "http://kubo:1"):
        gateway = TrustlessGateway(url, PATIENT)
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


async def test_closing_ends_what_is_under_way(gateway, proxy, kubo):
    """Who waits for a block, and who is in the middle of a run, is told; nothing is opened again."""
    data = os.urandom(4_000_000)
    root = CID.parse(kubo.run("add", "-Q", "--cid-version=1", "--raw-leaves", data=data))
    blocks = gateway.run(root, 0, len(data))
    await anext(blocks)
    proxy.rule = lambda _: Fault(delay=60)
    waiting = asyncio.create_task(gateway.get(root))
    async with proxy.asked:
        await proxy.asked.wait_for(lambda: len(proxy.requests) == 2)
    await gateway.close()
    with pytest.raises(RetrievalError):
        await waiting
    with pytest.raises(RetrievalError):
        _ = [block async for block in blocks]
    with pytest.raises(RetrievalError, match="closed"):
        await gateway.get(root)
