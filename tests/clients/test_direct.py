"""Clients of a server that reads from others: straight from its store, through it, and over HTTP alone."""

from __future__ import annotations

import asyncio
import secrets
from functools import partial

import pytest

from ipfs_stream_nb.clients.connect import connect_async
from ipfs_stream_nb.clients.content import AsyncClient
from ipfs_stream_nb.clients.direct import DirectNode
from ipfs_stream_nb.clients.remote import RemoteNode
from ipfs_stream_nb.clients.server import ServerInfo
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.nodes import NodeSettings, open_node
from ipfs_stream_nb.content.retrieval.settings import RetrievalSettings
from ipfs_stream_nb.errors import NotFoundError
from ipfs_stream_nb_server.standalone import StandaloneServer

MIB = 1024 * 1024
pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def far(kubo):
    """Content of 12 blocks that only the Kubo gateway has: its bytes and its CID."""
    data = secrets.token_bytes(12 * MIB - 5)
    return data, CID.parse(kubo.run("add", "-Q", "--cid-version=1", "--chunker=size-1048576", data=data))


@pytest.fixture
def answer_timeout():
    """Long enough for what the gateway has, however busy it is."""
    return 30.0


@pytest.fixture
def server(repo, kubo, answer_timeout):
    """A server whose operator has set that gateway, and nothing else."""
    retrieval = RetrievalSettings((kubo.gateway,), (), answer_timeout=answer_timeout, max_retries=0)
    settings = NodeSettings("embedded", repo, min_free=0, retrieval=retrieval)
    with StandaloneServer(partial(open_node, settings)) as server:
        yield server


@pytest.fixture(params=["direct", "remote"])
async def client(request, server):
    """A client of it, by URL: on its store, and over HTTP."""
    async with connect_async(server.url, server.token) as client:
        assert isinstance(client.node, DirectNode)
        if request.param == "direct":
            yield client
        else:
            info = ServerInfo.at(server.url, server.token)
            async with AsyncClient(RemoteNode(info, fetches=True), info) as remote:
                yield remote
    await asyncio.sleep(0)  # closed connections leave on the next turn of the loop


async def fetched(client):
    """How many blocks the server's gateway has given."""
    (source,) = (await client.health())["node"]["sources"]
    return source["ok"]


async def test_what_is_elsewhere_is_read_once(client, far):
    """It is had through the server, whole and in parts, and stays in the store: the next read asks nobody."""
    data, cid = far
    assert await client.cat(cid, 5 * MIB, 1000) == data[5 * MIB : 5 * MIB + 1000]
    assert (await client.stat(cid)).size == len(data)
    assert await client.cat(cid) == data
    await client.sources(cid)  # which waits until all is written
    before = await fetched(client)
    assert await client.cat(cid) == data
    assert await fetched(client) == before
    file = await client.open(cid)
    assert await asyncio.to_thread(file.read) == data


async def test_sources_tell_where_blocks_came_from(client, kubo, far):
    """Each source with its blocks and bytes; what was not read is counted, and what was added here is told from it."""
    data, cid = far
    await client.cat(cid, 0, 10)
    origins = await client.sources(cid)
    (origin,) = origins.origins
    assert (origins.root, origin.source) == (cid, kubo.gateway)
    assert origin.blocks + origins.missing == 13
    assert origins.missing >= 8
    await client.cat(cid)
    origins = await client.sources(str(cid))
    (origin,) = origins.origins
    assert (origin.blocks, origins.missing) == (13, 0)
    assert len(data) < origin.bytes < len(data) + 2000
    assert kubo.gateway in origins._repr_html_()
    added = await client.add(b"from here")
    assert [origin.source for origin in (await client.sources(added)).origins] == ["added here"]


async def test_pins_fetch_what_is_missing(client, far):
    """The whole tree is fetched and kept, with a progress that knows its total."""
    data, cid = far
    seen = []

    class Bar:
        total = None

        def update(self, n):
            seen.append((n, self.total))

    pin = await client.pin(cid, name="far", progress=Bar())
    assert (pin.cid, pin.name) == (cid, "far")
    assert [kept.cid for kept in await client.pins()] == [cid]
    done, total = sum(n for n, _ in seen), seen[-1][1]
    assert len(data) < done == total < len(data) + 2000
    assert (await client.sources(cid)).missing == 0


@pytest.mark.parametrize("answer_timeout", [1.0])
async def test_errors_are_the_servers(client, kubo):
    """What nobody has is told in the server's words: who was asked."""
    absent = CID.of(secrets.token_bytes(10))
    with pytest.raises((NotFoundError, TimeoutError)) as caught:
        await client.cat(absent)
    assert str(caught.value).startswith(f"{absent} is not here, and ")
    assert str(caught.value).count(kubo.gateway) == 1


async def test_whether_a_block_is_here_fetches_nothing(client, far):
    """block_has is about the store, also over HTTP."""
    _, cid = far
    assert not await client.node.block_has(cid)
    assert await fetched(client) == 0
    await client.stat(cid)
    await client.sources(cid)
    assert await client.node.block_has(cid)


async def test_frames_of_a_video_that_is_elsewhere(client, kubo, tmp_path):
    """Frames from the middle come without the rest of the file."""
    from ipfs_stream_nb import samples  # noqa: PLC0415  # media take 0.2 s to import

    clip = samples.video(tmp_path / "clip.mp4", duration=4, width=160, height=90)
    cid = kubo.run("add", "-Q", "--cid-version=1", "--chunker=size-4096", str(clip))
    frames = await client.frames(cid, 2, 3, every=0.5)
    numbers = [samples.read_frame_number(picture) for picture in frames.array]
    assert numbers == [round(time * 30) for time in frames.times]
    assert (await client.sources(cid)).missing > 0


async def test_names_are_resolved_by_the_server(repo, publisher, publish):
    """Whatever takes a CID takes an IPNS name, too, which the server resolves."""
    cid = publisher.run("add", "-Q", "--cid-version=1", "-w", "--stdin-name=a.txt", data=b"named")
    name = publish(f"/ipfs/{cid}")
    settings = NodeSettings("auto", repo, kubo_api=publisher.api, retrieval=RetrievalSettings((), ()))
    with StandaloneServer(partial(open_node, settings)) as server:
        info = ServerInfo.at(server.url, server.token)
        async with (
            connect_async(server.url, server.token) as direct,
            AsyncClient(RemoteNode(info, fetches=True), info) as remote,
        ):
            for client in (direct, remote):
                assert await client.cat(f"ipns://{name}/a.txt") == b"named"
                assert str((await client.stat(f"/ipns/{name}")).cid) == cid
                assert [entry.name for entry in await client.ls(f"/ipns/{name}")] == ["a.txt"]
                assert f"/ipfs/{cid}/a.txt?token=" in await client.url(f"/ipns/{name}/a.txt")
                assert (await client.open(f"/ipns/{name}/a.txt")).size == 5
                assert await client.node.read(f"/ipns/{name}/a.txt", 1, 2) == b"am"
                assert (await client.pin(f"/ipns/{name}")).cid == CID.parse(cid)


async def test_a_server_without_sources_is_read_as_before(repo):
    """Where nobody is asked there is no way through the server, and an error tells what to do."""
    settings = NodeSettings("embedded", repo, retrieval=RetrievalSettings((), ()))
    with StandaloneServer(partial(open_node, settings)) as server:
        async with connect_async(server.url, server.token) as client:
            assert not isinstance(client.node, DirectNode)
            with pytest.raises(NotFoundError, match="nobody to fetch it from"):
                await client.cat(CID.of(b"absent"))
