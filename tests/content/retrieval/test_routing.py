"""Delegated routing: Kubo's own router, and routers that answer with all kinds of things."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from ipfs_stream_nb.content.cid import CID, RAW
from ipfs_stream_nb.content.ipns.name import Name
from ipfs_stream_nb.content.ipns.record import MAX_RECORD, MEDIA_TYPE, verify
from ipfs_stream_nb.content.retrieval.gateway import TrustlessGateway
from ipfs_stream_nb.content.retrieval.provider import TooSlowError
from ipfs_stream_nb.content.retrieval.retriever import Retriever
from ipfs_stream_nb.content.retrieval.routing import (
    GATEWAY_PROTOCOL,
    MAX_ANSWER,
    MAX_GATEWAYS,
    DelegatedRouter,
    DelegatedRouting,
    gateways_of,
)
from ipfs_stream_nb.content.retrieval.settings import RetrievalSettings
from ipfs_stream_nb.errors import BusyError, NotFoundError, RetrievalError

SETTINGS = RetrievalSettings(answer_timeout=60, stall_timeout=60, connect_timeout=60)
"""Time for a busy machine to answer in; tests of what takes too long have less of it for that alone."""
CID_OF_X = CID.of(b"x", RAW)
NDJSON = "application/x-ndjson"


@dataclass
class Served:
    """A router of the tests: `answer` makes its answers, `requests` keeps what was asked."""

    url: str = ""
    answer: Callable[[web.Request], web.StreamResponse] | None = None
    requests: list[web.Request] = field(default_factory=list)


@asynccontextmanager
async def serving() -> AsyncIterator[Served]:
    served = Served()

    async def handle(request: web.Request) -> web.StreamResponse:
        served.requests.append(request)
        answer = served.answer(request)
        return await answer if asyncio.iscoroutine(answer) else answer

    app = web.Application()
    app.router.add_get("/{path:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    served.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
    try:
        yield served
    finally:
        await runner.cleanup()


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as one:
        yield one


@pytest.fixture
async def routing(served) -> AsyncIterator[DelegatedRouting]:
    routing = DelegatedRouting([served.url], SETTINGS)
    yield routing
    await routing.close()


def peer(*addresses: str, protocols: list[str] | None = None) -> dict:
    return {
        "Schema": "peer",
        "ID": "12D3KooWPbnQy8wvD8s6SE8jVB71TWn3SPMtpQvbNe5S8yXt5oUB",
        "Addrs": list(addresses),
        "Protocols": [GATEWAY_PROTOCOL] if protocols is None else protocols,
    }


def lines(*providers: dict) -> web.Response:
    body = "".join(f"{json.dumps(provider)}\n" for provider in providers)
    return web.Response(text=body, content_type=NDJSON)


def listed(*providers: dict) -> web.Response:
    return web.json_response({"Providers": list(providers)})


# -- Kubo's router


async def test_a_real_router_is_understood(publisher):
    """Kubo names itself, who is no gateway: nobody is found, and that is no failure."""
    cid = CID.parse(publisher.run("add", "-Q", "--cid-version=1", data=os.urandom(100)))
    routing = DelegatedRouting([publisher.gateway], SETTINGS)
    assert await routing.providers(cid) == []
    (router,) = routing.routers
    assert (router.health.ok, router.health.failed) == (1, 0)
    await routing.close()


async def test_a_record_of_a_real_router(publisher, publish):
    """Kubo gives the record that it published, and says in text that it has no other."""
    name = publish("/ipfs/bafkqaddwgevxmmraojswg33smq")
    router = DelegatedRouter(publisher.gateway, SETTINGS)
    assert (
        verify(Name.parse(name), await router.ipns_record(name)).value == "/ipfs/bafkqaddwgevxmmraojswg33smq"
    )
    other = publisher.run("key", "gen", "unpublished")
    with pytest.raises(NotFoundError):
        await router.ipns_record(other)
    await router.close()


async def test_a_block_is_had_from_a_gateway_that_a_router_names(served, publisher):
    """The whole way: nobody has it, a router names a gateway, and its block is verified."""
    data = os.urandom(1000)
    cid = CID.parse(publisher.run("add", "-Q", "--cid-version=1", "--raw-leaves", data=data))
    port = publisher.gateway_port
    served.answer = lambda _request: lines(peer(f"/ip4/127.0.0.1/tcp/{port}/http"))
    settings = replace(SETTINGS, allow_inner_providers=True)
    retriever = Retriever([], settings, router=DelegatedRouting([served.url], settings))
    fetched = await retriever.get(cid)
    assert (fetched.data, fetched.provider) == (data, publisher.gateway)
    assert TrustlessGateway(fetched.provider, SETTINGS).name == fetched.provider
    await retriever.close()


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("address", ["/ip4/127.0.0.1/tcp/{port}/http", "http://127.0.0.1:{port}"])
async def test_a_router_of_the_inner_network_leads_nowhere_inside(served, allowed, address):
    """It passes on what strangers announce: the neighbour gets no request, unless the operator wants it to."""
    async with serving() as neighbour:
        neighbour.answer = lambda _request: web.Response(status=404)
        port = neighbour.url.rpartition(":")[2]
        served.answer = lambda _request: lines(peer(address.format(port=port)))
        settings = replace(SETTINGS, allow_inner_providers=allowed)
        retriever = Retriever([], settings, router=DelegatedRouting([served.url], settings))
        with pytest.raises(NotFoundError):
            await retriever.get(CID_OF_X)
        assert len(neighbour.requests) == allowed
        await retriever.close()


# -- what routers may answer


@pytest.mark.parametrize("answer", [lines, listed])
async def test_gateways_are_taken_from_lines_and_lists(routing, served, answer):
    """Both forms, with other peers and schemas among them; the request asks for gateways only."""
    served.answer = lambda _request: answer(
        {"Schema": "bitswap", "Addrs": ["/dns4/no.example/https"]},
        peer("/dns4/a.example/tcp/443/https", "/ip4/1.1.1.1/tcp/4001"),
        peer("/dns4/no.example/tcp/443/https", protocols=["transport-bitswap"]),
        peer("/dns/b.example/tcp/8443/tls/http", protocols=[]),
    )
    assert await routing.providers(CID_OF_X) == ["https://a.example", "https://b.example:8443"]
    (request,) = served.requests
    assert request.path == f"/routing/v1/providers/{CID_OF_X}"
    assert GATEWAY_PROTOCOL in request.query["filter-protocols"]
    assert request.headers["Accept"].startswith(NDJSON)


async def test_answers_are_remembered(routing, served):
    """Somebody and nobody: neither is asked for again at once. The codec and version of a CID do not count."""
    served.answer = lambda _request: lines(peer("/dns4/a.example/https"))
    assert await routing.providers(CID_OF_X) == await routing.providers(CID(1, 0x70, 0x12, CID_OF_X.digest))
    served.answer = lambda _request: web.Response(status=404)
    nothing = CID.of(b"nothing", RAW)
    assert await routing.providers(nothing) == await routing.providers(nothing) == []
    assert len(served.requests) == 2


async def test_a_cid_of_version_0_is_asked_for_as_version_1(routing, served):
    """The specification has it so."""
    served.answer = lambda _request: lines()
    cid = CID.parse("QmT78zSuBmuS4z925WZfrqQ1qHaJ56DQaTfyMUF7F8ff5o")
    await routing.providers(cid)
    assert served.requests[0].path.endswith(f"/{cid.v1()}")


@pytest.mark.parametrize(
    "answer",
    [
        lambda _request: web.Response(status=500),
        lambda _request: web.Response(text="<html>", content_type="text/html"),
        lambda _request: web.Response(text="[]", content_type="application/json"),
        lambda _request: web.Response(text='{"Providers": {"a": 1}}', content_type="application/json"),
        lambda _request: web.Response(text="[" * 100_000, content_type="application/json"),
        lambda _request: web.Response(body=b"\xff\xfe", content_type=NDJSON),
        lambda _request: web.Response(text="{" * 10, content_type=NDJSON),
        lambda _request: web.Response(body=b"x" * (MAX_ANSWER + 1), content_type="application/json"),
        lambda _request: web.Response(status=302, headers={"Location": "file:///etc/passwd"}),
    ],
)
async def test_nonsense_brings_nobody(routing, served, answer):
    """Whatever a router answers, nobody is found, and the block's own error is what a user sees."""
    served.answer = answer
    assert await routing.providers(CID_OF_X) == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (lambda number: json.dumps(peer(f"/dns4/g{number}.example/https")).encode() + b"\n", MAX_GATEWAYS),
        (lambda _number: b" " * (MAX_ANSWER // MAX_GATEWAYS), 0),
    ],
)
async def test_a_list_without_end_is_left(served, line, found):
    """Once there are enough gateways, or too many bytes, the rest is not waited for."""

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": NDJSON})
        await response.prepare(request)
        for number in range(MAX_GATEWAYS + 1):
            await response.write(line(number))
        await asyncio.Event().wait()
        return response

    served.answer = stream
    routing = DelegatedRouting([served.url], RetrievalSettings(answer_timeout=3600, stall_timeout=3600))
    assert await routing.providers(CID_OF_X) == [f"https://g{number}.example" for number in range(found)]
    await routing.close()


async def test_what_came_before_a_stall_counts(served):
    """A router that searches on has said something already."""

    async def stall(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": NDJSON})
        await response.prepare(request)
        await response.write(json.dumps(peer("/dns4/a.example/https")).encode() + b"\n{")
        await asyncio.Event().wait()
        return response

    served.answer = stall
    routing = DelegatedRouting([served.url], replace(SETTINGS, stall_timeout=0.3))
    assert await routing.providers(CID_OF_X) == ["https://a.example"]
    await routing.close()


async def test_the_first_router_that_knows_somebody_counts(served):
    """One stalls, one fails, one knows nobody, one knows; the stalled one is left, and its request ended."""
    async with serving() as knowing, serving() as failing, serving() as empty:
        asked, left = asyncio.Event(), asyncio.Event()

        async def wait(_request: web.Request) -> web.Response:
            asked.set()
            try:
                await asyncio.Event().wait()
            finally:
                left.set()
            return web.Response()

        async def know(_request: web.Request) -> web.Response:
            await asked.wait()
            return lines(peer("/dns4/a.example/https"))

        served.answer, knowing.answer = wait, know
        failing.answer = lambda _request: web.Response(status=500)
        empty.answer = lambda _request: lines()
        before = asyncio.all_tasks()
        routing = DelegatedRouting([one.url for one in (served, failing, empty, knowing)], SETTINGS)
        assert await routing.providers(CID_OF_X) == ["https://a.example"]
        assert not [task for task in asyncio.all_tasks() - before if task.get_name().startswith("route")]
        await routing.close()


async def test_a_router_that_wants_rest_gets_it(routing, served):
    """429 with Retry-After, and one that cannot be reached, are not asked at the next block."""
    served.answer = lambda _request: web.Response(status=429, headers={"Retry-After": "60"})
    assert await routing.providers(CID_OF_X) == []
    assert await routing.providers(CID.of(b"y", RAW)) == []
    assert len(served.requests) == 1


async def test_what_a_router_does_not_find_takes_nothing_from_others(routing, served):
    """Twenty blocks that it finds nowhere, one after the other: the next one is asked for, too."""
    served.answer = lambda _request: web.Response(status=504)
    for number in range(20):
        assert await routing.providers(CID.of(b"%d" % number, RAW)) == []
    served.answer = lambda _request: lines(peer("/dns4/a.example/https"))
    assert await routing.providers(CID_OF_X) == ["https://a.example"]


async def test_a_surprise_of_one_router_is_not_that_of_the_others(served, caplog):
    """It counts as its failure, and the log has the traceback."""
    served.answer = lambda _request: lines(peer("/dns4/a.example/https"))
    routing = DelegatedRouting([served.url, served.url], SETTINGS)

    async def fail(_cid: CID) -> list[str]:
        raise OverflowError

    routing.routers[0].providers = fail
    assert await routing.providers(CID_OF_X) == ["https://a.example"]
    assert routing.routers[0].health.failed == 1
    assert [record.exc_info[0] for record in caplog.records] == [OverflowError]
    await routing.close()


@pytest.mark.parametrize("question", ["providers", "records"])
async def test_questions_at_once_are_few(served, question):
    """A hundred at once share as many connections as the settings say."""
    now = most = 0

    async def answer(_request: web.Request) -> web.Response:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.005)
        now -= 1
        return web.Response(status=404)

    served.answer = answer
    router = DelegatedRouter(served.url, SETTINGS)
    if question == "providers":
        asking = [router.providers(CID.of(b"%d" % number, RAW)) for number in range(100)]
    else:
        asking = [router.ipns_record("k51x") for _ in range(100)]
    await asyncio.gather(*asking, return_exceptions=True)
    assert len(served.requests) == 100
    assert most == SETTINGS.max_requests
    await router.close()


async def test_a_trickle_of_a_list_has_an_end(served):
    """A list that is not in lines must be whole in the time for an answer."""

    async def trickle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        router.settings = replace(SETTINGS, answer_timeout=0.3)  # from here on: it has begun in time
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.02)

    served.answer = trickle
    router = DelegatedRouter(served.url, SETTINGS)
    with pytest.raises(TooSlowError):
        await router.providers(CID_OF_X)
    await router.close()


async def test_nobody_to_ask(unused_tcp_port):
    """No routers, and one that is not there, find nobody."""
    for urls in ([], [f"http://127.0.0.1:{unused_tcp_port}"]):
        routing = DelegatedRouting(urls, SETTINGS)
        assert await routing.providers(CID_OF_X) == []
        await routing.close()
        await routing.close()


async def test_a_lookup_that_is_given_up_leaves_nothing(served, routing):
    """Cancelling ends the requests."""
    asked = asyncio.Event()

    async def wait(_request: web.Request) -> web.Response:
        asked.set()
        await asyncio.Event().wait()
        return web.Response()

    served.answer = wait
    task = asyncio.create_task(routing.providers(CID_OF_X))
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("route")]


async def test_records_are_bounded(served):
    """More than 10 KiB are not read, other types are no record, and errors are those of every source."""
    router = DelegatedRouter(served.url, SETTINGS)
    answers = [
        (web.Response(body=bytes(MAX_RECORD + 1), content_type=MEDIA_TYPE), RetrievalError),
        (web.Response(text="no such record"), NotFoundError),
        (web.Response(status=404), NotFoundError),
        (web.Response(status=500), RetrievalError),
        (web.Response(status=429, headers={"Retry-After": "9"}), BusyError),
    ]
    for answer, error in answers:
        served.answer = lambda _request, answer=answer: answer
        with pytest.raises(error):
            await router.ipns_record("k51x")
    assert served.requests[0].path == "/routing/v1/ipns/k51x"
    assert served.requests[0].headers["Accept"] == MEDIA_TYPE
    await router.close()


# -- addresses


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("/dns4/a.example/tcp/443/https", "https://a.example"),
        ("/dns6/a.example/tcp/8443/https", "https://a.example:8443"),
        ("/dns/a.example/https", "https://a.example"),
        ("/dns/a.example/tcp/443/tls/http", "https://a.example"),
        ("/dns/a.example/tcp/443/tls/sni/a.example/http", "https://a.example"),
        (
            "/dns/a.example/tcp/443/tls/http/p2p/12D3KooWPbnQy8wvD8s6SE8jVB71TWn3SPMtpQvbNe5S8yXt5oUB",
            "https://a.example",
        ),
        ("/ip4/1.1.1.1/tcp/443/https", "https://1.1.1.1"),
        ("/ip6/2606:4700:4700::1111/tcp/443/https", "https://[2606:4700:4700::1111]"),
        ("https://a.example/", "https://a.example"),
        ("https://a.example:8443", "https://a.example:8443"),
    ],
)
def test_addresses_become_base_urls(address, url):
    """HTTP over TLS in every way that multiaddrs have for it, and URLs."""
    assert gateways_of(peer(address)) == [url]


INNER = [
    "/dns4/a.example/tcp/80/http",
    "http://a.example",
    "/ip4/127.0.0.1/tcp/443/https",
    "/ip4/10.1.2.3/tcp/443/https",
    "/ip4/169.254.169.254/tcp/443/https",
    "/ip6/::1/tcp/443/https",
    "/ip6/fd00::1/tcp/443/https",
    "/dns4/localhost/tcp/443/https",
    "https://127.0.0.1/",
    "https://[::ffff:127.0.0.1]/",
]


@pytest.mark.parametrize("address", INNER)
def test_inner_addresses_and_plain_http_are_for_who_wants_them(address):
    """Nobody who is named can send this server into its own network, nor have it read in the clear."""
    assert gateways_of(peer(address)) == []
    assert len(gateways_of(peer(address), inner=True)) == 1


@pytest.mark.parametrize(
    "address",
    [
        "",
        "/",
        "/ip4/1.1.1.1/tcp/4001",
        "/ip4/1.1.1.1/udp/4001/quic-v1",
        "/dns4/a.example/tcp/443/wss",
        "/dnsaddr/a.example/https",
        "/dns4/a.example/tcp/443/https/p2p-circuit",
        "/dns4/a.example/tcp/99999/https",
        "/dns4/a.example/tcp/0/https",
        "/ip4/1.1.1.1/tcp/443/tls/sni/a.example/http",
        "/dns4/a@b.example/https",
        "/dns4/a.example?/https",
        "https://user:secret@a.example/",
        "https://@a.example/",
        "https://a.example:8443/base",
        "https://a.example//",
        "https://a.example/api/shutdown/",
        "https://a.example/#x",
        "https://a.example/?q",
        "https://a.example:99999/",
        "ftp://a.example/",
        "https://",
        5,
        None,
    ],
)
def test_other_addresses_are_passed_over(address):
    """What is not reached by HTTP, or cannot be said by a base URL, is left out."""
    assert gateways_of(peer(address, "/dns4/b.example/https"), inner=True) == ["https://b.example"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["Schema", "Addrs", "Protocols", "x"]), inner)
    ),
    max_leaves=10,
)


@given(JSON | st.builds(peer, st.text(max_size=60)), st.booleans())
def test_any_record_is_understood_or_passed_over(record, inner):
    """No JSON, and no address, brings anything but URLs."""
    assert all(url.startswith(("http://", "https://")) for url in gateways_of(record, inner=inner))
