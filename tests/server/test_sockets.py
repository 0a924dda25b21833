"""The WebSockets of a real Jupyter server: the guide's clients, rights, bad input, limits, and what is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import random
import socket
import struct
from pathlib import Path
from typing import ClassVar

import pytest
from jupyter_server.auth import Authorizer
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, ConnectionClosedOK, InvalidStatus

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.importer import import_bytes
from ipfs_stream_nb.security.access import AccessPolicy, Action
from ipfs_stream_nb_server.handlers import sockets
from small_disks import small_disk

MIB = 1 << 20
SECONDS = 20
STANDSTILL = 5.0
"""A stall_timeout that is longer than a busy machine holds up a client which does read."""
METADATA = json.dumps({"filename": "a.bin"})
COMPLETE = json.dumps({"type": "complete"})
ANY = str(CID.of(b"any"))
PATHS = [f"ws/stream/{ANY}", "ws/upload", "ws/bidirectional"]


def dial(server, path, headers=None, **options):
    """A client of the `websockets` library, with Jupyter's token unless other headers are given."""
    headers = {"Authorization": f"token {server.token}"} if headers is None else headers
    return connect(
        f"ws://127.0.0.1:{server.port}/a%40b/{path}",
        additional_headers=headers,
        proxy=None,
        max_size=None,
        compression=None,
        open_timeout=SECONDS,
        **options,
    )


async def hear(link, *kinds):
    """The next JSON message of these types."""
    while True:
        async with asyncio.timeout(SECONDS):
            message = await link.recv()
        assert isinstance(message, str), f"a frame of {len(message)} bytes came where {kinds} was due"
        found = json.loads(message)
        if found["type"] in kinds:
            return found
        assert found["type"] in {"progress", "credit"}, found


async def rest(link):
    """All that comes until the server closes, JSON read, and the close code."""
    found = []
    with contextlib.suppress(ConnectionClosedOK):
        async with asyncio.timeout(SECONDS):
            while True:
                message = await link.recv()
                found.append(json.loads(message) if isinstance(message, str) else message)
    return found


async def closed(link):
    """All that comes until the server closes, however it does."""
    found = []
    try:
        async with asyncio.timeout(SECONDS):
            while True:
                message = await link.recv()
                found.append(json.loads(message) if isinstance(message, str) else message)
    except ConnectionClosed as error:
        return found, (error.rcvd.code if error.rcvd else None)


async def refused(server, path, status, headers=None, **options):
    """The JSON of a handshake that is refused with this status."""
    with pytest.raises(InvalidStatus) as error:
        async with dial(server, path, headers, **options):
            pass
    response = error.value.response
    assert response.status_code == status, response.body
    assert response.headers["Content-Type"] == "application/json"
    body = json.loads(response.body)
    assert (body["type"], body["error"]) == ("error", body["message"])
    return body


async def until(condition):
    """Wait for what the server does by itself; it has no event to await from outside."""
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110  # see above
            await asyncio.sleep(0.01)


async def settled(server):
    """Wait until the server has noticed that nobody is there any more."""
    await until(lambda: not (server.context.streams.active or server.context.adds.active))
    await until(lambda: not server.context._talks)


def tasks_and_files():
    """What a process runs and holds open."""
    names = [
        task.get_name()
        for task in asyncio.all_tasks()
        if task.get_name().startswith(("talk", "listen", "send"))
    ]
    return len(names), len(list(Path("/proc/self/fd").iterdir()))


@contextlib.asynccontextmanager
async def nothing_left(server):
    """Counts tasks, descriptors, uploads, and notes of the store before and after."""
    node = await server.node()

    def held():
        env = node.store._env
        with env.read() as txn:
            return [sum(1 for _ in txn.cursor(db)) for db in (env.db.transfers, env.db.uploads)]

    await server.json("GET", "ipfs-stream/health")
    before, held_before = tasks_and_files(), held()
    yield
    await settled(server)
    await node.uploads.expire(-1)
    assert node.uploads._open == {}
    assert held() == [held_before[0], 0]
    await until(lambda: tasks_and_files()[0] <= before[0] and tasks_and_files()[1] <= before[1] + 2)


# the guide's clients


async def test_the_guides_download(server, large):
    """recv_json, then binary frames until the connection closes: all of the content, in frames of 65536 bytes."""
    data, cid = large
    async with dial(server, f"ws/stream/{cid}") as link:
        metadata = json.loads(await link.recv())
        frames = [message for message in await rest(link) if isinstance(message, bytes)]
        assert link.close_code == 1000
    assert (metadata["type"], metadata["size"], metadata["chunk_size"]) == ("metadata", len(data), 65_536)
    assert b"".join(frames) == data
    assert {len(frame) for frame in frames[:-1]} == {65_536}
    assert len(frames[-1]) == len(data) % 65_536


async def test_a_part_of_a_path(server):
    """`?offset=` and `?length=` below a directory, with the hash of what was sent, and no progress if not wanted."""
    cid = await server.add(b"0123456789")
    body = {"entries": {"ä b.txt": cid}}
    folder = (await server.json("POST", "ipfs-stream/directories", 201, json=body))["cid"]
    path = f"ws/stream/{folder}/%C3%A4%20b.txt?offset=3&length=4&sha256=1&progress=0"
    async with dial(server, path) as link:
        metadata, data, complete = await rest(link)
    assert (metadata["filename"], metadata["offset"], metadata["length"]) == ("ä b.txt", 3, 4)
    assert metadata["mime_type"].startswith("text/plain")
    assert (data, complete["bytes_sent"], len(complete["sha256"])) == (b"3456", 4, 64)


@pytest.mark.parametrize("end", [b"", COMPLETE])
@pytest.mark.parametrize("reads", [True, False])
async def test_the_guides_upload(server, end, reads):
    """Metadata, frames and an end, without waiting for `ready`; a progress message may be read after each chunk, or
    nothing before the end."""
    data = random.Random(1).randbytes(MIB + 5)
    async with dial(server, "ws/upload") as link, asyncio.timeout(SECONDS):
        await link.send(METADATA)
        for at in range(0, len(data), 65_536):
            await link.send(data[at : at + 65_536])
            if reads and not at:
                assert json.loads(await link.recv())["type"] == "ready"
        await link.send(end)
        while "success" not in (result := json.loads(await link.recv())):
            assert result["type"] in {"ready", "progress"}
        assert await rest(link) == []
        assert link.close_code == 1000
    assert (result["cid"], result["size"]) == (str(import_bytes(data).root), len(data))
    pins = await server.json("GET", "ipfs-stream/pins")
    assert [pin["name"] for pin in pins["pins"]] == ["a.bin"]


async def test_the_older_two_way_client(server):
    """Commands without ids, bare frames, one at a time."""
    data = random.Random(1).randbytes(200_000)
    async with dial(server, "ws/bidirectional") as link:
        await hear(link, "welcome")
        await link.send(json.dumps({"command": "add", "filename": "x"}))
        await link.send(data)
        await link.send(COMPLETE)
        await hear(link, "ready")
        result = await hear(link, "result")
        await link.send(json.dumps({"command": "get", "path": result["cid"]}))
        assert (await hear(link, "metadata"))["size"] == len(data)
        got = b""
        while isinstance(message := await link.recv(), bytes):
            got += message
        assert (got, json.loads(message)["type"]) == (data, "complete")
        await link.send(json.dumps({"command": "close"}))
        assert [message["type"] for message in await rest(link)] == ["goodbye"]


async def test_gets_and_adds_at_once(server, large):
    """Over one socket, with ids and credit: both directions at the same time."""
    data, cid = large
    async with dial(server, "ws/bidirectional") as link, asyncio.timeout(SECONDS):
        await hear(link, "welcome")
        await link.send(json.dumps({"command": "get", "id": 1, "cid": cid}))
        await link.send(json.dumps({"command": "add", "id": 2, "size": len(data)}))
        room, sent, got, ended = 0, 0, b"", []
        order = []
        while len(ended) < 2:
            while room and sent < len(data):
                piece = data[sent : sent + min(room, 100_000)]
                await link.send(struct.pack(">I", 2) + piece)
                sent, room = sent + len(piece), room - len(piece)
                if sent == len(data):
                    await link.send(json.dumps({"command": "end", "id": 2}))
            message = await link.recv()
            if isinstance(message, bytes):
                assert message[:4] == b"\0\0\0\1"
                got += message[4:]
                order.append(1)
                await link.send(json.dumps({"command": "credit", "id": 1, "bytes": len(message) - 4}))
                continue
            message = json.loads(message)
            if message["id"] == 2:
                room += message.get("credit", 0) + (message["bytes"] if message["type"] == "credit" else 0)
                order.append(2)
            if message["type"] in {"complete", "result"}:
                ended.append(message)
    assert got == data
    assert {message.get("cid", cid) for message in ended} == {cid}
    assert order.index(2) < len(order) - order[::-1].index(1)
    assert order.index(1) < len(order) - order[::-1].index(2)


# who may


async def login_cookie(server):
    """Jupyter's cookies, as a browser has them after the token was used once."""
    async with server.request("GET", "ipfs-stream/health") as answer:
        return "; ".join(f"{name}={morsel.coded_value}" for name, morsel in answer.cookies.items())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("headers", [{}, {"Authorization": "token wrong"}, {"Cookie": "username=forged"}])
async def test_no_credential(server, path, headers):
    """Without a credential the handshake is a 403 in JSON: no upgrade, no redirect."""
    assert (await refused(server, path, 403, headers))["code"] == "unauthorized"
    assert (await refused(server, path + "?token=wrong", 403, headers))["code"] == "unauthorized"


@pytest.mark.parametrize("path", PATHS)
async def test_credentials(server, path):
    """Header, query and cookie open the socket; a cookie that another site's page brings does not, a token does."""
    cookie = {"Cookie": await login_cookie(server)}
    here, elsewhere = f"http://127.0.0.1:{server.port}", "https://elsewhere.example"
    token = f"?token={server.token}"
    for headers, query in [
        ({"Authorization": f"token {server.token}"}, ""),
        ({}, token),
        (cookie, ""),
        (cookie | {"Origin": here}, ""),
        ({"Origin": elsewhere}, token),
        ({"Origin": elsewhere, "Authorization": f"token {server.token}"}, ""),
    ]:
        async with dial(server, path + query, headers):
            pass
    error = await refused(server, path, 403, cookie | {"Origin": elsewhere})
    assert error["code"] == "unauthorized"
    assert "cross-origin" in error["error"]
    await settled(server)


async def test_capabilities(server):
    """A token to read opens that CID's stream, one to add the upload, also for another site's page; neither opens
    anything else."""
    cid = await server.add(b"hello")
    grants = {"read": {"action": "read", "cid": cid}, "add": {"action": "add"}}
    tokens = {
        name: (await server.json("POST", "ipfs-stream/tokens", json=body))["token"]
        for name, body in grants.items()
    }
    origin = {"Origin": "https://elsewhere.example"}
    async with dial(server, f"ws/stream/{cid}?token={tokens['read']}", origin) as link:
        assert [message for message in await rest(link) if isinstance(message, bytes)] == [b"hello"]
    async with dial(server, f"ws/upload?token={tokens['add']}", origin) as link:
        for message in (METADATA, b"hello", b""):
            await link.send(message)
        assert (await rest(link))[-1]["cid"] == cid
    for path, name in [
        (f"ws/stream/{ANY}", "read"),
        ("ws/upload", "read"),
        ("ws/bidirectional", "read"),
        (f"ws/stream/{cid}", "add"),
        ("ws/bidirectional", "add"),
    ]:
        error = await refused(server, f"{path}?token={tokens[name]}", 403, {})
        assert "another action or CID" in error["error"]


class OnlyA(AccessPolicy):
    """May read A, and nothing else."""

    A: ClassVar[CID] = import_bytes(b"A").root

    async def allows(self, user, action, cid):
        return action is Action.READ and cid == self.A


@pytest.mark.parametrize("server_config", [{"IPFSStreamExtension": {"access_policy_class": OnlyA}}])
async def test_the_access_policy(server):
    """It is asked for the stream's CID and for adding before the upgrade, and for each command of the two-way socket."""
    node = await server.node()
    for data in (b"A", b"B"):
        writer = node.writer()
        await writer.write(data)
        await writer.finish()
    a, b = str(OnlyA.A), str(import_bytes(b"B").root)
    assert b in (await refused(server, f"ws/stream/{b}", 403))["error"]
    assert "add" in (await refused(server, "ws/upload", 403))["error"]
    async with dial(server, f"ws/stream/{a}") as link:
        assert (await rest(link))[-1]["type"] == "complete"
    async with dial(server, "ws/bidirectional") as link:
        await hear(link, "welcome")
        for command in (
            {"command": "get", "path": f"/ipfs/{b}"},
            {"command": "add"},
            {"command": "pin", "cid": a},
        ):
            await link.send(json.dumps(command | {"id": 1}))
            error = await hear(link, "error")
            assert (error["id"], error["code"]) == (1, "unauthorized")
        await link.send(json.dumps({"command": "get", "id": 1, "path": a}))
        assert (await hear(link, "metadata"))["size"] == 1


class ReadOnly(Authorizer):
    """Jupyter's authorizer, which lets read and not write."""

    async def is_authorized(self, handler, user, action, resource):
        return action == "read" and resource == "ipfs"


@pytest.mark.parametrize("server_config", [{"ServerApp": {"authorizer_class": ReadOnly}}])
async def test_jupyters_authorizer(server):
    """Who may only read downloads; the upload's handshake and the commands that write are refused."""
    assert "write ipfs" in (await refused(server, "ws/upload", 403))["error"]
    async with dial(server, f"ws/stream/{ANY}") as link:
        assert (await closed(link))[0][0]["code"] == "not_found"
    async with dial(server, "ws/bidirectional") as link:
        await hear(link, "welcome")
        for command in ({"command": "add"}, {"command": "pin", "cid": ANY}):
            await link.send(json.dumps(command))
            assert (await hear(link, "error"))["code"] == "unauthorized"
        await link.send(json.dumps({"command": "get", "cid": ANY}))
        assert (await hear(link, "error"))["code"] == "not_found"


async def test_tokens_are_in_no_log(server, caplog):
    """Neither in the log of handshakes nor in that of conversations that fail."""
    with caplog.at_level("DEBUG"):
        for path in PATHS:
            async with dial(server, f"{path}?%74oken={server.token}", {}) as link:
                await link.send("nonsense")
        await settled(server)
    logged = "\n".join(
        record.getMessage() for record in caplog.records if not record.name.startswith("websockets.")
    )
    assert "ws/upload" in logged
    assert server.token not in logged


@pytest.mark.parametrize("path", PATHS)
async def test_what_is_no_handshake(server, path):
    """A plain GET is a 400 in JSON that says what is spoken here; it takes no slot."""
    for headers in (
        {},
        {"Upgrade": "websocket"},
        {"Connection": "Upgrade"},
        {"Upgrade": "h2c", "Connection": "Upgrade"},
    ):
        error = await server.json("GET", path, 400, headers=headers)
        assert (error["code"], "WebSocket" in error["error"]) == ("bad_request", True)
    headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "8"}
    async with server.request("GET", path, headers=headers | {"Sec-WebSocket-Key": "x"}) as answer:
        assert answer.status in {400, 426}
    await settled(server)


# bad input


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("nonsense", "bad_cid"),
        (f"{ANY}", "not_found"),
        ("{cid}?offset=11", "bad_request"),
        ("{cid}?offset=-1", "bad_request"),
        ("{cid}?offset=x", "bad_request"),
        (f"{{cid}}?offset={'9' * 30}", "bad_request"),
        ("{cid}?length=1e3", "bad_request"),
        ("{cid}?progress=maybe", "bad_request"),
        ("{cid}/sub", "not_a_directory"),
        ("{folder}", "is_directory"),
        ("{folder}/b", "not_found"),
    ],
)
async def test_what_cannot_be_streamed(server, path, code):
    """It is told over the socket, since a browser shows no refused handshake; then code 1008."""
    cid = await server.add(b"0123456789")
    body = {"entries": {"a": cid}}
    folder = (await server.json("POST", "ipfs-stream/directories", 201, json=body))["cid"]
    async with dial(server, "ws/stream/" + path.format(cid=cid, folder=folder)) as link:
        (error,), close_code = await closed(link)
    assert (error["code"], close_code) == (code, 1008)
    await settled(server)


async def test_a_store_that_cannot_be_had(start_server, tmp_path):
    """Before the upgrade, a 503 in JSON with the reason."""
    (tmp_path / "file").write_text("no directory")
    async with start_server(
        {"IPFSStreamExtension": {"repo_path": str(tmp_path / "file")}}, tmp_path
    ) as server:
        for path in PATHS:
            assert (await refused(server, path, 503))["code"] == "retrieval_failed"
        assert not server.context.streams.active


@pytest.mark.parametrize("server_config", [{"IPFSStreamExtension": {"max_message_size": MIB}}])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("fragments", [1, 50])
async def test_a_giant_message(server, path, fragments):
    """A message over max_message_size, in one frame or many, ends its connection with 1009, which the client sees
    though it is busy sending; an upload keeps what came before it."""
    async with nothing_left(server):
        async with dial(
            server, path.replace(ANY, await server.add(bytes(9 * MIB))), write_limit=1024
        ) as link:
            if "upload" in path:
                await link.send(METADATA)
                await link.send(b"hello")
                ready = await hear(link, "ready")
            piece = bytes(20 * MIB // fragments)
            with contextlib.suppress(ConnectionClosed):
                await link.send([piece] * fragments if fragments > 1 else piece)
            _, close_code = await closed(link)
            assert close_code == 1009
        if "upload" in path:
            async with dial(server, path) as link:
                await link.send(json.dumps({"upload_id": ready["upload_id"]}))
                assert (await hear(link, "ready"))["offset"] == 5


@pytest.mark.parametrize(
    "server_config", [{"IPFSStreamExtension": {"max_add_size": 1_000_000, "quota": 5_000_000}}]
)
async def test_too_much(server):
    """Over max_add_size, declared or not, and over the store's quota: the reason, and 1009, also for a client that goes
    on sending; what was too large leaves nothing."""
    async with nothing_left(server):
        for first, code in [({"size": 1_000_001}, "too_large"), ({}, "too_large")]:
            async with dial(server, "ws/upload") as link:
                await link.send(json.dumps(first))
                with contextlib.suppress(ConnectionClosed):
                    for _ in range(40):
                        await link.send(bytes(100_000))
                heard, close_code = await closed(link)
            assert [m["code"] for m in heard if m["type"] == "error"] == [code]
            assert close_code == 1009
        assert (await server.json("GET", "ipfs-stream/health"))["node"]["blocks"] == 0


@pytest.mark.parametrize("server_config", [{"IPFSStreamExtension": {"quota": 3_000_000}}])
async def test_a_quota(server):
    """An upload that passes the store's quota ends with the reason and 1009; another one that fits is taken."""
    async with nothing_left(server):
        async with dial(server, "ws/upload") as link:
            await link.send(METADATA)
            with contextlib.suppress(ConnectionClosed):
                for number in range(10):
                    await link.send(random.Random(number).randbytes(500_000))
                await link.send(b"")
            heard, close_code = await closed(link)
        (error,) = [message for message in heard if message["type"] == "error"]
        assert (error["code"], close_code) == ("quota_exceeded", 1009)
        assert "quota of 3,000,000" in error["error"]
        node = await server.node()
        await node.uploads.expire(-1)
        async with dial(server, "ws/upload") as link:
            await link.send(METADATA)
            await link.send(bytes(1_000_000))
            await link.send(b"")
            assert (await rest(link))[-1]["success"] is True


async def test_a_full_disk(start_server, tmp_path):
    """A disk that fills up in the middle of an upload is told with 1009; downloads go on, and so does the upload once
    there is room."""
    data = random.Random(1).randbytes(11 * MIB)
    with small_disk(tmp_path / "disk") as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(5 * MIB))
        async with start_server(
            {"IPFSStreamExtension": {"repo_path": str(disk / "repo")}}, tmp_path
        ) as server:
            cid = await server.add(b"hello")
            async with dial(server, "ws/upload") as link:
                await link.send(METADATA)
                upload_id = (await hear(link, "ready"))["upload_id"]
                with contextlib.suppress(ConnectionClosed):
                    for at in range(0, len(data), 500_000):
                        await link.send(data[at : at + 500_000])
                    await link.send(b"")
                heard, close_code = await closed(link)
            (error,) = [message for message in heard if message["type"] == "error"]
            assert (error["code"], close_code) == ("quota_exceeded", 1009)
            async with dial(server, f"ws/stream/{cid}") as link:
                assert (await rest(link))[1] == b"hello"
            ballast.unlink()
            async with dial(server, "ws/upload") as link:
                await link.send(json.dumps({"upload_id": upload_id}))
                offset = (await hear(link, "ready"))["offset"]
                for at in range(offset, len(data), 500_000):
                    await link.send(data[at : at + 500_000])
                await link.send(b"")
                assert (await rest(link))[-1]["cid"] == str(import_bytes(data).root)


async def test_wrong_messages_disturb_nobody(server, large):
    """A dozen connections full of nonsense, and one download and one upload among them that do not notice."""
    data, cid = large
    chooser = random.Random(1)

    async def nonsense(path):
        async with dial(server, path, max_queue=None) as link:
            with contextlib.suppress(ConnectionClosed):
                for _ in range(20):
                    await link.send(
                        chooser.choice(
                            [
                                "x",
                                "{}",
                                "[]",
                                '{"command":"get","id":1}',
                                '{"type":"x"}',
                                b"",
                                b"1234567",
                                b"\0\0\0\1x",
                            ]
                        )
                    )
            await link.close()

    async def download():
        async with dial(server, f"ws/stream/{cid}") as link:
            return b"".join(message for message in await rest(link) if isinstance(message, bytes))

    async def upload():
        async with dial(server, "ws/upload") as link:
            await link.send(METADATA)
            for at in range(0, len(data), 300_000):
                await link.send(data[at : at + 300_000])
            await link.send(b"")
            return (await rest(link))[-1]["cid"]

    async with nothing_left(server):
        noise = [nonsense(path) for path in PATHS for _ in range(4)]
        got, added, *_ = await asyncio.gather(download(), upload(), *noise)
    assert got == data
    assert added == cid


async def test_a_thousand_tiny_frames(server):
    """They get few answers and the right CID."""
    async with dial(server, "ws/upload") as link:
        await link.send(METADATA)
        for _ in range(1000):
            await link.send(b"x")
        await link.send(b"")
        heard = await rest(link)
    assert heard[-1]["cid"] == str(import_bytes(b"x" * 1000).root)
    assert len(heard) < 100


async def test_cut_again_and_again(server):
    """An upload whose socket is cut thirty times ends in the right CID, and no byte is sent again that was durable."""
    data = random.Random(3).randbytes(3 * MIB)
    chooser = random.Random(3)
    said, durable, cuts = {"size": len(data)}, 0, 0
    async with nothing_left(server):
        while True:
            async with dial(server, "ws/upload", close_timeout=0.01) as link:
                await link.send(json.dumps(said))
                ready = await hear(link, "ready")
                said = {"upload_id": ready["upload_id"]}
                assert ready["offset"] >= durable
                durable = at = ready["offset"]
                stop = len(data) if cuts == 30 else min(len(data), at + chooser.randrange(200_000))
                while at < stop:
                    piece = data[at : min(stop, at + chooser.choice([1, 100, 9999, 100_000]))]
                    await link.send(piece)
                    at += len(piece)
                if cuts == 30:
                    await link.send(COMPLETE)
                    result = (await rest(link))[-1]
                    break
                cuts += 1
                link.transport.abort()
        assert result["cid"] == str(import_bytes(data).root)


# who comes, stays away, and leaves


@pytest.mark.parametrize("path", ["ws/stream/{}", "ws/upload", "ws/bidirectional"])
async def test_clients_that_vanish(server, large, path):
    """Connections that are dropped in the middle, without a word, leave nothing behind."""
    _, cid = large
    async with nothing_left(server):
        for _ in range(5):
            async with dial(server, path.format(cid), close_timeout=0.01) as link:
                if "stream" in path:
                    await link.recv()
                elif "upload" in path:
                    await link.send(METADATA)
                    await link.send(bytes(500_000))
                    await hear(link, "ready")
                else:
                    await link.send(json.dumps({"command": "get", "id": 1, "cid": cid}))
                    await link.send(json.dumps({"command": "add", "id": 2}))
                    await link.send(struct.pack(">I", 2) + bytes(500_000))
                    await hear(link, "welcome")
                link.transport.abort()
            await settled(server)
    await server.json("DELETE", f"ipfs/{cid}")  # no lease is left


async def raw_socket(server, path, window=4096):
    """A client that has shaken hands and reads nothing, over a small window."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", server.port))
    head = (
        f"GET /a%40b/{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: token {server.token}\r\n"
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    await loop.sock_sendall(sock, head.encode())
    return sock


def client_frame(data, opcode=1):
    """One frame of a client, with a mask that changes nothing."""
    size = (
        struct.pack(">B", 0x80 | len(data)) if len(data) < 126 else struct.pack(">BH", 0x80 | 126, len(data))
    )
    return bytes([0x80 | opcode]) + size + bytes(4) + data


@pytest.mark.parametrize("server_config", [{"IPFSStreamExtension": {"stall_timeout": STANDSTILL}}])
async def test_a_client_that_never_reads_is_closed(server, large):
    """After stall_timeout it loses its connection; one that reads slowly keeps it."""
    data, cid = large
    async with nothing_left(server):
        with await raw_socket(server, f"ws/stream/{cid}"):
            await until(lambda: server.context.streams.active == 1)
            async with dial(server, f"ws/stream/{cid}", max_queue=1) as link:
                got = 0
                async for message in link:
                    got += len(message) if isinstance(message, bytes) else 0
                    if got % MIB < 65_536:
                        await asyncio.sleep(STANDSTILL / 8)  # a slow reader: nine times
            assert got == len(data)
            await until(lambda: not server.context.streams.active)


@pytest.mark.parametrize("server_config", [{"IPFSStreamExtension": {"stall_timeout": 1.0}}])
async def test_a_client_that_never_writes_is_closed(server):
    """An upload without a word for stall_timeout is told so and closed, and can be resumed."""
    async with nothing_left(server), dial(server, "ws/upload") as link:
        await link.send(METADATA)
        await link.send(b"hello")
        heard, close_code = await closed(link)
        assert heard[-1]["code"] == "timeout"
        assert heard[-2]["durable"] == 5
        assert close_code == 1011


@pytest.mark.parametrize("server_config", [{"IPFSStreamExtension": {"stall_timeout": 2.0}}])
async def test_cancelling_does_not_pile_up(server, large):
    """A client that never reads, and begins and cancels all the time, has no more written for it than one message, and
    is closed like any other that stands still."""
    _, cid = large
    commands = [{"command": "get", "id": 1, "cid": cid}, *[{"command": "cancel", "id": 1}] * 3]
    message = b"".join(client_frame(json.dumps(command).encode()) for command in commands)
    most = 0
    async with nothing_left(server):
        with await raw_socket(server, "ws/bidirectional") as sock:
            loop = asyncio.get_running_loop()
            await until(lambda: server.context._talks)
            (talk,) = server.context._talks
            handler = talk.get_coro().cr_frame.f_locals["self"]
            with contextlib.suppress(OSError):
                while not talk.done():
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.05):
                            await loop.sock_sendall(sock, message)
                    stream = handler.ws_connection and handler.ws_connection.stream
                    if stream is not None and stream._write_buffer is not None:  # None once it is closed
                        most = max(most, len(stream._write_buffer))
            await until(talk.done)
    assert 0 < most < 256 * 1024


@pytest.mark.parametrize(
    "server_config",
    [{"IPFSStreamExtension": {"max_streams": 2, "max_adds": 1, "max_streams_per_user": 2}}],
)
async def test_slots(server):
    """Over the limits the handshake is a 503 in JSON; uploads have limits of their own; what ends makes room."""
    async with contextlib.AsyncExitStack() as stack:
        for path in ("ws/bidirectional", "ws/bidirectional", "ws/upload"):
            await stack.enter_async_context(dial(server, path))
        assert "2 downloads" in (await refused(server, PATHS[0], 503))["error"]
        error = await refused(server, "ws/upload", 503)
        assert (error["code"], "1 uploads" in error["error"]) == ("busy", True)
        active = (await server.json("GET", "ipfs-stream/health"))["active"]
        assert (active["streams"], active["uploads"]) == (2, 1)
    await settled(server)
    async with dial(server, "ws/upload"), dial(server, "ws/bidirectional"):
        pass


@pytest.mark.parametrize("server_config", [{"IPFSStreamExtension": {"max_adds_per_user": 1}}])
async def test_slots_of_one_user(server):
    """One user has a limit, whether the browser's cookie or a kernel's token says who it is."""
    cookie = {"Cookie": await login_cookie(server)}
    async with dial(server, "ws/upload", cookie):
        for headers in (cookie, None):
            assert "one user" in (await refused(server, "ws/upload", 503, headers))["error"]


async def test_pings(server, monkeypatch):
    """The server pings in its interval, also one that is idle; a client that does not answer keeps its connection."""
    monkeypatch.setattr(sockets.SocketHandler, "ping_interval", 0.02)
    with await raw_socket(server, "ws/bidirectional") as sock:
        loop = asyncio.get_running_loop()
        received = b""
        async with asyncio.timeout(SECONDS):
            while received.count(b"\x89\x00") < 5:
                received += await loop.sock_recv(sock, 4096)
        assert b'"welcome"' in received
    assert sockets.PING_SECONDS == 30
    await settled(server)


async def test_an_upload_outlives_the_server(start_server, tmp_path):
    """A server that is stopped leaves an upload so that the next one goes on with it; its client is told."""
    async with start_server({}, tmp_path) as server, contextlib.AsyncExitStack() as stack:
        link = await stack.enter_async_context(dial(server, "ws/upload", close_timeout=0.01))
        await link.send(METADATA)
        await link.send(b"hello ")
        upload_id = (await hear(link, "ready"))["upload_id"]
        await until(lambda: any(task.get_name() for task in server.context._talks))
        await hear(link, "progress")
    async with start_server({}, tmp_path) as server, dial(server, "ws/upload") as link:
        await link.send(json.dumps({"upload_id": upload_id}))
        assert (await hear(link, "ready"))["offset"] == 6
        await link.send(b"world")
        await link.send(b"")
        assert (await rest(link))[-1]["cid"] == str(import_bytes(b"hello world").root)


@pytest.mark.parametrize("server_config", [{"IPFSStreamExtension": {"upload_ttl": 1.0}}])
async def test_abandoned_uploads_go(server):
    """After upload_ttl what nobody came back to is gone, blocks and all, by the server itself."""
    node = await server.node()
    async with dial(server, "ws/upload", close_timeout=0.01) as link:
        await link.send(METADATA)
        await link.send(random.Random(1).randbytes(3 * MIB))
        await hear(link, "ready")
        link.transport.abort()
    await settled(server)
    assert node.store.stat().blocks > 0
    server.context.start()  # on a busy machine they would have gone before this is seen
    await until(lambda: node.store.stat().blocks == 0)
    assert await node.uploads.list() == []


async def test_a_bug_is_logged(server, large, caplog, monkeypatch):
    """An error that is ours is told as internal with 1011, and stands in the log with its traceback."""

    async def broken(*_args, **_kwargs):
        raise RuntimeError("the house's secret")

    monkeypatch.setattr(sockets, "stream_content", broken)
    async with dial(server, f"ws/stream/{large[1]}") as link:
        (error,), close_code = await closed(link)
    assert (error["code"], close_code) == ("internal", 1011)
    assert "secret" not in error["error"]
    assert "RuntimeError: the house's secret" in caplog.text


def anonymous_memory():
    """Bytes of memory that are this process's own."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


@pytest.mark.parametrize("server_config", [{"IPFSStreamExtension": {"max_streams_per_user": 256}}])
@pytest.mark.parametrize("kind", ["stream", "bidirectional"])
async def test_a_hundred_clients_that_never_read(server, kind):
    """They take less than 50 MB of the server's memory together, and another client is served at once."""
    seconds = float(os.environ.get("IPFS_STREAM_NB_NEVER_READ", "1"))
    data = random.Random(1).randbytes(20 * MIB)
    cid = await server.add(data)
    async with dial(server, f"ws/stream/{cid}") as link:
        await rest(link)
    gc.collect()
    before = anonymous_memory()
    begin = client_frame(json.dumps({"command": "get", "cid": cid}).encode())
    path = f"ws/stream/{cid}" if kind == "stream" else "ws/bidirectional"
    stalled = []
    loop = asyncio.get_running_loop()
    for _ in range(100):
        stalled.append(await raw_socket(server, path))
        if kind == "bidirectional":
            await loop.sock_sendall(stalled[-1], begin)
    await until(lambda: server.context.streams.active == 100)
    most, served, until_then = 0, [], loop.time() + seconds
    while loop.time() < until_then or len(served) < 2:
        began, got = loop.time(), 0
        async with dial(server, f"ws/stream/{cid}", max_queue=2) as link:
            async for message in link:
                got += len(message) if isinstance(message, bytes) else 0
        served.append(loop.time() - began)
        assert got == len(data)
        most = max(most, anonymous_memory() - before)
    print(
        f"{kind}: {most / 1e6:.1f} MB for 100 clients in {seconds:g} s; another one's 20 MiB took {min(served):.2f} to "
        f"{max(served):.2f} s, {len(served)} times"
    )
    for sock in stalled:
        sock.close()
    await settled(server)
    assert most < 50e6
