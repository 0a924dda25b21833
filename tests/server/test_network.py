"""The server over a real Kubo daemon and its gateway: reading what is elsewhere, adding, pinning, and health."""

from __future__ import annotations

import json
import secrets
import signal

import pytest

from ipfs_stream_nb.content.car import CarDecoder
from ipfs_stream_nb.content.cid import CID
from kubo import free_ports, running

MIB = 1 << 20
QUICK = {"retrieval_answer_timeout": 1.0, "retrieval_max_retries": 0}
"""For what nobody has."""
PATIENT = {"retrieval_answer_timeout": 60.0, "retrieval_max_retries": 0}
"""For what the daemon has, however busy it is."""


@pytest.fixture
def far(kubo):
    """Content of seven blocks that only the daemon has, and its CID."""
    data = secrets.token_bytes(6 * MIB - 7)
    return data, kubo.run("add", "-Q", "--cid-version=1", "--chunker=size-1048576", data=data)


@pytest.fixture
def retrieval():
    """How long a source has."""
    return PATIENT


@pytest.fixture(params=["auto", "kubo", "embedded"])
def server_config(request, retrieval):
    """Each kind of node, over the daemon's RPC or its gateway; or the configuration of another fixture."""
    if request.param.endswith("_config"):
        return request.getfixturevalue(request.param)
    kubo = request.getfixturevalue("kubo")
    settings = {"node": request.param, "kubo_api": kubo.api, **retrieval}
    if request.param == "embedded":
        settings["gateways"] = [kubo.gateway]
    return {"IPFSStreamExtension": settings}


async def body_of(server, path, status=200, **headers):
    """An answer's body and headers."""
    async with server.request("GET", path, headers=headers) as answer:
        assert answer.status == status, await answer.text()
        return await answer.read(), answer.headers


async def given(server):
    """How many blocks the server's one source has given."""
    (source,) = (await server.json("GET", "ipfs-stream/health"))["node"]["sources"]
    return source["ok"]


async def blocks_of(car):
    """The blocks of a CAR."""
    decoder = CarDecoder()
    blocks = {block.cid: block.data for block in decoder.feed(car)}
    decoder.finish()
    for cid, data in blocks.items():
        cid.verify(data)
    return blocks


async def test_content_that_is_elsewhere(server, far):
    """GET, HEAD, ranges, blocks and CARs are those of content that is here."""
    data, cid = far
    part, headers = await body_of(server, f"ipfs/{cid}", 206, Range="bytes=3000000-3000999")
    assert part == data[3_000_000:3_001_000]
    assert headers["Content-Range"] == f"bytes 3000000-3000999/{len(data)}"
    assert (await body_of(server, f"ipfs/{cid}", 206, Range="bytes=-10"))[0] == data[-10:]
    async with server.request("HEAD", f"ipfs/{cid}") as answer:
        assert (answer.status, answer.headers["Content-Length"]) == (200, str(len(data)))
        assert answer.headers["ETag"] == f'"{cid}"'
    whole, _ = await body_of(server, f"ipfs/{cid}")
    assert whole == data
    block, _ = await body_of(server, f"ipfs/{cid}?format=raw")
    CID.parse(cid).verify(block)
    blocks = await blocks_of((await body_of(server, f"ipfs/{cid}?format=car"))[0])
    assert len(blocks) == 7
    part = await blocks_of(
        (await body_of(server, f"ipfs/{cid}?format=car&dag-scope=entity&entity-bytes=0:9"))[0]
    )
    assert len(part) == 2
    assert (await server.json("GET", f"ipfs-stream/stat/{cid}"))["size"] == len(data)


async def test_only_if_cached_asks_nobody(server, far):
    """What is not here is a 412 then, at once, and stays where it is; what was read before is here."""
    data, cid = far
    headers = {"Cache-Control": "only-if-cached"}
    kind = server.extension.node
    if kind != "kubo":
        for path in (f"ipfs/{cid}", f"ipfs/{cid}?format=raw", f"ipfs/{cid}?format=car"):
            async with server.request("GET", path, headers=headers) as answer:
                assert answer.status == 412
        health = await server.json("GET", "ipfs-stream/health")
        assert [source["state"] for source in health["node"]["sources"]] == ["untried"]
        await body_of(server, f"ipfs/{cid}", 206, Range="bytes=0-9")
        await server.json("GET", f"ipfs-stream/sources/{cid}")  # which waits until it is written
        assert (await body_of(server, f"ipfs/{cid}", 206, Range="bytes=0-9", **headers))[0] == data[:10]
        had = await given(server)
        async with server.request("GET", f"ipfs/{cid}", headers=headers | {"Range": "bytes=-9"}) as answer:
            assert answer.status in {404, 412, 504}
        assert await given(server) == had
        await body_of(server, f"ipfs/{cid}")
        await server.json("GET", f"ipfs-stream/sources/{cid}")
        assert (await body_of(server, f"ipfs/{cid}", **headers))[0] == data
    absent = CID.of(secrets.token_bytes(9))
    async with server.request("GET", f"ipfs/{absent}", headers=headers) as answer:
        assert answer.status == 412


@pytest.mark.parametrize("retrieval", [QUICK])
async def test_what_nobody_has(server):
    """It is a 404 or a 504 in the protocol's shape, that says who was asked."""
    async with server.request("GET", f"ipfs/{CID.of(secrets.token_bytes(9))}") as answer:
        error = await answer.json()
    assert (answer.status, error["code"]) in {(404, "not_found"), (504, "timeout")}
    (source,) = (await server.json("GET", "ipfs-stream/health"))["node"]["sources"]
    assert source["name"] in error["error"]


async def test_adds_and_pins(server, kubo):
    """What is added is pinned: on the daemon for the kind "kubo", and in the own store otherwise, not on the daemon."""
    data = secrets.token_bytes(2 * MIB)
    cid = await server.add(data, name="mine")
    assert (await body_of(server, f"ipfs/{cid}"))[0] == data
    pins = (await server.json("GET", "ipfs-stream/pins"))["pins"]
    assert (cid, "mine") in [(pin["cid"], pin["name"]) for pin in pins]
    on_daemon = cid in kubo.run("pin", "ls", "--type=recursive")
    assert on_daemon == (server.extension.node == "kubo")
    await server.json("DELETE", f"ipfs-stream/pins/{cid}")
    assert cid not in kubo.run("pin", "ls", "--type=recursive")


async def test_a_pin_tells_how_far_it_is(server, far):
    """Lines of progress with a true total come before the pin, also where all has to be fetched first."""
    data, cid = far
    async with server.request("PUT", f"ipfs-stream/pins/{cid}?name=far") as answer:
        assert answer.status == 200
        *progress, result = [json.loads(line) async for line in answer.content]
    assert (result["type"], result["cid"], result["name"]) == ("result", cid, "far")
    if progress:
        assert (
            progress[-1]["total_bytes"] is None or len(data) < progress[-1]["total_bytes"] < len(data) + 999
        )
    await server.json("DELETE", f"ipfs-stream/pins/{cid}")


async def test_sources(server, far, kubo):
    """The route tells where blocks came from, as JSON."""
    data, cid = far
    await body_of(server, f"ipfs/{cid}")
    found = await server.json("GET", f"ipfs-stream/sources/{cid}")
    assert found["root"] == cid
    if server.extension.node != "kubo":  # which leaves what the daemon holds to it
        (origin,) = found["origins"]
        name = kubo.gateway if server.extension.node == "embedded" else f"Kubo at {kubo.api}"
        assert (origin["source"], origin["blocks"], found["missing"]) == (name, 7, 0)
        assert len(data) < origin["bytes"] < len(data) + 999
    assert (await server.json("GET", "ipfs-stream/sources/nonsense", 400))["code"] == "bad_cid"


async def test_health_tells_the_sources(server, far, kubo):
    """Each source with its kind, state and counts; the node's kind, peers and cache."""
    _, cid = far
    await body_of(server, f"ipfs/{cid}")
    await server.json("GET", f"ipfs-stream/sources/{cid}")
    health = await server.json("GET", "ipfs-stream/health")
    node = health["node"]
    kind = server.extension.node
    assert (health["status"], node["state"], node["peers"]) == ("ok", "ok", 0)
    assert node["kind"] == ("kubo" if kind == "kubo" else "embedded")
    assert node["direct"] is (kind != "kubo")
    (source,) = node["sources"]
    assert source["kind"] == ("gateway" if kind == "embedded" else "kubo")
    if kind != "kubo":
        assert (source["state"], source["ok"]) == ("ok", 7)
        assert (node["cache_blocks"], node["cache_quota"]) == (7, 10 << 30)
    else:
        assert node["repo"] == str(kubo.repo)


GONE = f"http://127.0.0.1:{free_ports(1)[0]}"


@pytest.fixture
def gone_config():
    """A node over a daemon that is not there."""
    return {"IPFSStreamExtension": {"node": "kubo", "kubo_api": GONE}}


@pytest.mark.parametrize("server_config", ["gone_config"], indirect=True)
async def test_a_kubo_that_is_not_there(server):
    """The server runs; each request says that no daemon answers where it was looked for."""
    error = await server.json("GET", "ipfs-stream/pins", 503)
    assert f"no Kubo daemon answers at {GONE}" in error["error"]
    health = await server.json("GET", "ipfs-stream/health", 503)
    assert health["status"] == "unavailable"
    assert "ipfs daemon" in health["error"]


@pytest.fixture
def own_kubo(tmp_path):
    """A daemon that may be stopped."""
    with running(tmp_path / "kubo") as node:
        yield node


@pytest.fixture
def own_config(own_kubo):
    """A node over it."""
    return {"IPFSStreamExtension": {"node": "kubo", "kubo_api": own_kubo.api, **QUICK}}


@pytest.fixture
def slow_config(own_kubo):
    """A node over its gateway, with a server that waits for an answer for a second."""
    settings = {"node": "embedded", "gateways": [own_kubo.gateway], "answer_timeout": 1.0}
    return {"IPFSStreamExtension": settings}


@pytest.mark.parametrize("server_config", ["slow_config"], indirect=True)
async def test_an_answer_that_takes_too_long_tells_who_was_asked(server, own_kubo):
    """The server's own limit is a 504 that names the sources."""
    own_kubo.signal(signal.SIGSTOP)
    try:
        error = await server.json("GET", f"ipfs/{CID.of(b'slow')}", 504)
    finally:
        own_kubo.signal(signal.SIGCONT)
    assert error["code"] == "timeout"
    assert "answer_timeout" in error["error"]
    assert f"looked for at {own_kubo.gateway} (untried)" in error["error"]


@pytest.mark.parametrize("server_config", ["own_config"], indirect=True)
async def test_health_is_quick_where_the_daemon_hangs(server, own_kubo, monkeypatch):
    """A daemon that stops answering is told as such, and what the server knows itself is there."""
    assert (await server.json("GET", "ipfs-stream/health"))["node"]["state"] == "ok"
    monkeypatch.setattr("ipfs_stream_nb_server.handlers.health.DAEMON_TIMEOUT", 0.3)
    own_kubo.signal(signal.SIGSTOP)
    try:
        health = await server.json("GET", "ipfs-stream/health")
    finally:
        own_kubo.signal(signal.SIGCONT)
    assert health["node"]["state"] == "its daemon did not answer within 0.3 s"
    assert (health["node"]["peers"], health["node"]["kind"]) == (None, "kubo")
    assert "repo" not in health["node"]
    assert health["node"]["sources"][0]["kind"] == "kubo"
    assert health["limits"]["max_adds"] == 32


@pytest.mark.parametrize("server_config", ["own_config"], indirect=True)
async def test_health_tells_that_the_daemon_ended(server, own_kubo):
    """Where nobody listens any more it says so at once."""
    await server.node()
    own_kubo.stop()
    state = (await server.json("GET", "ipfs-stream/health"))["node"]["state"]
    assert f"no Kubo daemon answers at {own_kubo.api}" in state
