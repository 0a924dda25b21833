"""Clients of both kinds over real stores and real servers."""

import asyncio
from functools import partial

import pytest

from cutting_proxy import CuttingProxy
from far_client import connected
from ipfs_stream_nb.clients.content import AsyncClient
from ipfs_stream_nb.clients.remote import RemoteNode
from ipfs_stream_nb.clients.server import ServerInfo
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb_server.standalone import StandaloneServer
from kubo import running
from kubo_nodes import node_of


@pytest.fixture
def no_kernel(monkeypatch):
    """The tests' own process may be a child of a Jupyter server: that one is nobody's business here."""
    for name in ("JPY_PARENT_PID", "JUPYTERHUB_SERVICE_URL", "JUPYTERHUB_SERVICE_PREFIX"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def repo(tmp_path, monkeypatch, no_kernel):
    """An empty store, the default one of this test."""
    repo = tmp_path / "repo"
    monkeypatch.setenv("IPFS_STREAM_NB_REPO", str(repo))
    return repo


@pytest.fixture
def server(repo):
    """A real server over it."""
    with StandaloneServer(partial(EmbeddedNode.open, repo)) as server:
        yield server


@pytest.fixture(params=["embedded", "remote"])
async def client(request, repo, server):
    """The async client on the store itself, and over HTTP."""
    info = ServerInfo.at(server.url, server.token)
    node = RemoteNode(info) if request.param == "remote" else await EmbeddedNode.open(repo)
    async with AsyncClient(node, info) as client:
        yield client


@pytest.fixture(scope="module")
def own_kubo(tmp_path_factory):
    """A daemon that nobody else uses, with nothing pinned once a test begins."""
    with running(tmp_path_factory.mktemp("kubo") / "repo") as daemon:
        yield daemon


@pytest.fixture
def no_pins(own_kubo):
    """The daemon without pins: it pins an empty directory when it is made."""
    pins = own_kubo.run("pin", "ls", "--type=recursive", "--quiet").split()
    if pins:
        own_kubo.run("pin", "rm", *pins)
    return own_kubo


@pytest.fixture(params=["embedded", "remote", "kubo"])
async def node(request, repo):
    """The node interface on the store itself, over HTTP, and over a Kubo daemon."""
    if request.param == "embedded":
        node = await EmbeddedNode.open(repo)
    elif request.param == "remote":
        server = request.getfixturevalue("server")
        node = RemoteNode(ServerInfo.at(server.url, server.token))
    else:
        node = node_of(request.getfixturevalue("no_pins").api, repo, patience=1.0)
    yield node
    await node.close()
    await asyncio.sleep(0)  # closed connections leave on the next turn of the loop


@pytest.fixture
async def proxy(server):
    """A proxy before the server."""
    async with CuttingProxy(server.url) as proxy:
        yield proxy


@pytest.fixture
async def far(server, proxy):
    """A client that has only the proxy."""
    async with connected(proxy.url, server.token) as client:
        yield client
