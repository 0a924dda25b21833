"""How content is sent: to clients that are slow, that leave, that are many, and when something fails midway."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from ipfs_stream_nb.content.stored import StoredRange
from ipfs_stream_nb_server.handlers import streaming
from ipfs_stream_nb_server.sending import Sender
from raw_http import RawConnection

MIB = 1 << 20
STANDSTILL = 5.0
"""An answer_timeout that is longer than a busy machine holds up an answer that is being made."""


async def test_large_content_is_never_copied(server, large, monkeypatch):
    """A whole file goes from the store's map into the socket: no StoredRange is read into memory."""

    async def read(_self):
        pytest.fail("a block was copied")

    monkeypatch.setattr(StoredRange, "read", read)
    data, cid = large
    async with server.request("GET", f"ipfs/{cid}") as answer:
        assert await answer.read() == data


async def test_where_the_socket_cannot_be_had(server, large, monkeypatch):
    """Through TLS, bytes go the ordinary way, copied, and are the same; the connection is kept there too."""
    monkeypatch.setattr(Sender, "_can_bypass", lambda _self: False)
    data, cid = large
    async with await RawConnection.open(server, limit=16 * MIB) as connection:
        for _ in range(2):
            await connection.send_head("GET", f"ipfs/{cid}", Range="bytes=77-")
            assert (await connection.answer()).body == data[77:]


async def until(condition):
    """Wait for what the server does by itself; it has no event to await from outside."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # see above
            await asyncio.sleep(0.01)


async def settled(server):
    """Wait until the server has noticed that nobody reads any more."""
    await until(lambda: not server.context.streams.active)


def open_files():
    """How many descriptors this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_client_that_leaves_costs_nothing_more(server, large):
    """When it closes in the middle, its slot is free, and nothing is held open for it."""
    _, cid = large
    before = open_files()
    for _ in range(5):
        async with await RawConnection.open(server) as connection:
            await connection.send_head("GET", f"ipfs/{cid}")
            await connection.head()
        await settled(server)
    await asyncio.sleep(0)
    assert open_files() <= before + 2
    assert await server.json("DELETE", f"ipfs/{cid}")  # no lease is left


def anonymous_memory():
    """Bytes of memory that are this process's own."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


async def stalled_reader(server, cid):
    """A client that asks and then reads nothing, over a small window."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", server.port))
    head = f"GET /a%40b/ipfs/{cid}?token={server.token} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    await asyncio.get_running_loop().sock_sendall(sock, head.encode())
    return sock


@pytest.mark.parametrize("profile", ["unixfs-v1-2025", "unixfs-v0-2015"])
async def test_a_stalled_client_holds_up_nobody(server, large, profile):
    """While twenty clients read nothing, others are served, and not much piles up for them in memory: nothing
    where leaves are raw blocks, a few pieces each where they are not."""
    data, cid = large
    if profile != "unixfs-v1-2025":
        cid = await server.add(data, profile=profile)
    before = anonymous_memory()
    stalled = [await stalled_reader(server, cid) for _ in range(20)]
    await until(lambda: server.context.streams.active == 20)
    async with server.request("GET", f"ipfs/{cid}") as answer:
        assert await answer.read() == data
    assert (await server.json("GET", "ipfs-stream/health"))["active"]["streams"] == 20
    grown = anonymous_memory() - before - len(data)  # the test's own copy
    assert grown < 20 * 4 * MIB, f"{grown / MIB:.0f} MiB for {20 * len(data) / MIB:.0f} MiB that nobody reads"
    for sock in stalled:
        sock.close()
    await settled(server)


@pytest.mark.parametrize("server_config", [{"IPFSStreamExtension": {"stall_timeout": 1.0}}])
async def test_a_stalled_client_is_closed(server, large):
    """A client that takes nothing for the stall limit loses its connection; a slow one keeps it."""
    data, cid = large
    sock = await stalled_reader(server, cid)
    async with await RawConnection.open(server, limit=MIB) as slow:
        await slow.send_head("GET", f"ipfs/{cid}")
        await slow.head()
        received = 0
        while received < len(data):
            received += len(await slow.reader.read(MIB))
            await asyncio.sleep(0.1)  # a slow reader
    await settled(server)
    loop = asyncio.get_running_loop()
    total = 0
    with sock:
        while piece := await loop.sock_recv(sock, MIB):
            total += len(piece)
    assert total < len(data)


@pytest.mark.parametrize("server_config", [{"IPFSStreamExtension": {"max_streams": 3}}])
async def test_too_many_streams_are_busy(server, large):
    """Over the limit for all, a 503 that says so and when to come again; what runs goes on."""
    _, cid = large
    stalled = [await stalled_reader(server, cid) for _ in range(3)]
    await until(lambda: server.context.streams.active == 3)
    async with server.request("GET", f"ipfs/{cid}") as answer:
        assert answer.status == 503
        assert answer.headers["Retry-After"] == "1"
        error = await answer.json()
        assert error["code"] == "busy"
        assert "3 downloads" in error["error"]
    for sock in stalled:
        sock.close()
    await settled(server)
    async with server.request("GET", f"ipfs/{cid}") as answer:
        assert answer.status == 200


async def test_an_error_while_sending_is_logged(server, large, monkeypatch, caplog):
    """A bug in the middle of an answer breaks the connection and stands in the log, with its traceback."""
    _, cid = large

    async def fail(_self, _pieces):
        raise RuntimeError("a bug")

    monkeypatch.setattr(streaming.Sender, "send", fail)
    async with await RawConnection.open(server) as connection:
        await connection.send_head("GET", f"ipfs/{cid}")
        assert (await connection.head()).status == 200
        assert await connection.reader.read() == b""
    assert "RuntimeError: a bug" in caplog.text
    assert server.context.streams.active == 0


# answers that have not begun


@pytest.fixture
async def stuck(server, large, monkeypatch):
    """The store answers no request for a block; `given_up` counts those that nobody waits for any more."""
    node = await server.node()

    class Stuck:
        asked = given_up = 0

        async def get(self, *_args):
            Stuck.asked += 1
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                Stuck.given_up += 1

        size = get

    monkeypatch.setattr(node.reader, "source", Stuck())
    return Stuck


REQUESTS = [
    ("GET", "ipfs/{}"),
    ("HEAD", "ipfs/{}"),
    ("GET", "ipfs/{}?format=car"),
    ("GET", "ipfs-stream/stat/{}"),
    ("GET", "ipfs-stream/ls/{}?kinds=1"),
]


@pytest.mark.parametrize(("method", "path"), REQUESTS)
async def test_leaving_before_the_answer(server, large, stuck, method, path):
    """While its answer is being made a request holds a slot that health shows; when its client leaves, the work
    for it is given up and the slot is free."""
    async with await RawConnection.open(server) as connection:
        await connection.send_head(method, path.format(large[1]))
        await until(lambda: stuck.asked)
        assert (await server.json("GET", "ipfs-stream/health"))["active"]["streams"] == 1
        assert not stuck.given_up
    await settled(server)
    assert stuck.given_up == stuck.asked


@pytest.mark.parametrize("server_config", [{"IPFSStreamExtension": {"max_streams": 1}}])
async def test_answers_that_have_not_begun_count(server, large, stuck):
    """Over the limit, the next is a 503 at once."""
    async with await RawConnection.open(server) as connection:
        await connection.send_head("GET", f"ipfs-stream/stat/{large[1]}")
        await until(lambda: stuck.asked)
        for method, path in REQUESTS:
            async with server.request(method, path.format(large[1])) as answer:
                assert answer.status == 503
                assert answer.headers["Retry-After"] == "1"


@pytest.mark.parametrize("server_config", [{"IPFSStreamExtension": {"answer_timeout": 1.0}}])
@pytest.mark.parametrize(("method", "path"), REQUESTS)
async def test_an_answer_that_does_not_begin(server, large, stuck, method, path):
    """After answer_timeout, a 504 that says so, and nothing goes on for it."""
    async with server.request(method, path.format(large[1])) as answer:
        assert answer.status == 504
        if method == "GET":
            error = await answer.json()
            assert error["code"] == "timeout"
            assert "answer_timeout" in error["error"]
    await settled(server)
    assert stuck.given_up == stuck.asked


@pytest.mark.parametrize("server_config", [{"IPFSStreamExtension": {"answer_timeout": STANDSTILL}}])
async def test_an_answer_that_has_begun_may_take_longer(server, large):
    """answer_timeout is not for the sending."""
    data, cid = large
    async with await RawConnection.open(server, limit=MIB) as slow:
        await slow.send_head("GET", f"ipfs/{cid}")
        assert (await slow.head()).status == 200
        for at in range(0, len(data), MIB):
            assert await slow.reader.readexactly(min(MIB, len(data) - at)) == data[at : at + MIB]
            await asyncio.sleep(STANDSTILL / 8)  # a slow reader: ten times
