"""The routes without a Jupyter server."""

# ruff: noqa: S310  # the URLs are those of servers that were started here

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import pytest

from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb_server import standalone
from ipfs_stream_nb_server.standalone import StandaloneServer


@pytest.fixture
def server(tmp_path):
    """A standalone server over a store of its own."""
    with StandaloneServer(lambda: EmbeddedNode.open(tmp_path / "repo", min_free=0)) as running:
        yield running


def ask(server, method, path, data=None, token=None, **headers):
    """Status, headers and body of an answer."""
    request = urllib.request.Request(server.url + path, data, headers, method=method)
    request.add_header("Authorization", f"token {server.token if token is None else token}")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def test_add_and_get(server):
    """It listens on loopback, and serves what it is given."""
    assert server.url.startswith("http://127.0.0.1:")
    status, _, body = ask(server, "POST", "ipfs", b"hello" * 100_000)
    assert status == 201
    status, headers, content = ask(server, "GET", f"ipfs/{json.loads(body)['cid']}")
    assert (status, content) == (200, b"hello" * 100_000)
    assert headers["Content-Security-Policy"] == "default-src 'none'; sandbox"


def test_its_token_is_needed(server):
    """Its own random token opens it; another, none, or a foreign Host header do not, and none redirects."""
    for token, host in [("wrong", None), ("", None), (None, "evil.example")]:
        headers = {"Host": host} if host else {}
        status, _, body = ask(server, "GET", "ipfs-stream/health", token=token, **headers)
        assert (status, json.loads(body)["code"]) == (403, "unauthorized")
    assert ask(server, "GET", "ipfs-stream/health")[0] == 200
    assert StandaloneServer().token != server.token


def test_capabilities(server):
    """It grants capability tokens, and takes them."""
    cid = json.loads(ask(server, "POST", "ipfs", b"hello")[2])["cid"]
    body = json.dumps({"action": "read", "cid": cid}).encode()
    token = json.loads(ask(server, "POST", "ipfs-stream/tokens", body)[2])["token"]
    assert ask(server, "GET", f"ipfs/{cid}?token={token}", token="none")[2] == b"hello"


async def test_beside_a_running_loop(server):
    """A notebook's kernel has a loop that runs: the server has its own, so blocking calls to it work there."""
    assert ask(server, "GET", "ipfs-stream/health")[0] == 200
    assert asyncio.get_running_loop().is_running()


def test_start_and_stop(tmp_path):
    """Starting and stopping twice does no harm; after the stop nobody listens and no thread is left."""
    threads = set(threading.enumerate())
    server = StandaloneServer(lambda: EmbeddedNode.open(tmp_path / "repo"))
    server.start()
    url = server.url
    assert server.start().url == url
    server.stop()
    server.stop()
    assert server.url == ""
    assert set(threading.enumerate()) <= threads
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=5)
    with server:  # and again
        assert ask(server, "GET", "ipfs-stream/health")[0] == 200


def test_no_port(monkeypatch):
    """What keeps it from listening is raised by start()."""

    def fail(*_args):
        raise OSError("no port")

    monkeypatch.setattr(standalone, "bind_sockets", fail)
    server = StandaloneServer()
    before = set(threading.enumerate())
    with pytest.raises(OSError, match="no port"):
        server.start()
    assert "ipfs-stream-server" not in {thread.name for thread in set(threading.enumerate()) - before}


def test_a_store_that_cannot_be_opened(tmp_path):
    """It starts all the same, and says what is wrong."""
    file = tmp_path / "file"
    file.write_bytes(b"")
    with StandaloneServer(lambda: EmbeddedNode.open(file)) as server:
        status, _, body = ask(server, "GET", "ipfs-stream/health")
    assert status == 503
    assert str(file) in json.loads(body)["error"]


def test_it_does_not_keep_the_process(tmp_path):
    """A program that ends without stopping it ends, quietly, also with all warnings on."""
    program = """
import sys, urllib.request
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb_server.standalone import StandaloneServer
server = StandaloneServer(lambda: EmbeddedNode.open(sys.argv[1])).start()
request = urllib.request.Request(server.url + "ipfs-stream/health")
request.add_header("Authorization", f"token {server.token}")
print(urllib.request.urlopen(request).status)
"""
    # not asyncio's debug mode, which -X dev has too: on a busy machine it would be heard on stderr
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-W", "error", "-c", program, str(tmp_path / "repo")],
        env=os.environ | {"PYTHONASYNCIODEBUG": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "200\n"
    assert done.stderr == ""
