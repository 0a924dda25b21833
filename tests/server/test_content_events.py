"""Events of content at a real Jupyter server: what each route emits, once, for whom, and with what."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections import Counter

import pytest
from jupyter_server.auth import IdentityProvider, User
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from ipfs_stream_nb.clients.content import AsyncClient
from ipfs_stream_nb.clients.server import ServerInfo
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.content.importer import import_bytes
from ipfs_stream_nb.notifications import content_events
from ipfs_stream_nb.notifications.content_events import ContentEvents
from ipfs_stream_nb.notifications.retrievals import Retrievals
from recorder import Recorder

MIB = 1 << 20
RAW = {"format": "raw"}
KEPT = ("content_added", "content_removed", "pin_added", "pin_removed", "pin_status_changed", "system_error")


@pytest.fixture
async def told(server):
    """What the server emits of content."""
    recorder = Recorder()
    events = server.context.content_events = ContentEvents(recorder)
    events.retrievals = Retrievals(recorder, quiet=60.0)  # a busy machine's pause is none between requests
    (await server.node()).observers[:] = [events.observe]
    yield recorder
    events.close()


def kinds(recorder):
    """What was emitted but for retrievals and progress, in order."""
    return [told.kind for told in recorder.of(*KEPT)]


def dial(server, path, headers=None):
    """A WebSocket."""
    return connect(
        f"ws://127.0.0.1:{server.port}/a%40b/{path}",
        additional_headers=headers or {"Authorization": f"token {server.token}"},
        proxy=None,
        max_size=None,
        compression=None,
    )


async def ended(link):
    """All that comes until the server closes, however it does."""
    with contextlib.suppress(ConnectionClosed):
        async for _ in link:
            pass


def retrieved(server, told):
    """What was retrieved, by transport and format, without waiting for a pause."""
    server.context.content_events.close()
    found = [one.data for one in told.of("content_retrieved")]
    told.told.clear()
    return found


async def test_an_add_and_what_follows(server, told):
    """POST, pin, unpin and DELETE: one event for each thing that happens."""
    cid = await server.add(b"hello", name="h.txt")
    added, pinned = told.of(*KEPT)  # a busy machine has told of progress, too
    assert (added.kind, pinned.kind) == ("content_added", "pin_added")
    assert added.data == {"cid": cid, "name": "h.txt", "size": 5, "kind": "file", "complete": True}
    assert pinned.data == {"cid": cid, "name": "h.txt"}
    await server.json("DELETE", f"ipfs-stream/pins/{cid}")
    async with server.request("PUT", f"ipfs-stream/pins/{cid}") as answer:
        await answer.read()
    await server.json("DELETE", f"ipfs/{cid}")
    assert kinds(told)[2:] == [
        "pin_removed",
        "pin_added",
        "pin_status_changed",
        "pin_removed",
        "content_removed",
    ]
    assert told.told[-1].data["bytes"] == 5


async def test_each_way_to_add(server, told):
    """A wrapped file, a form, a directory of what is here, and the two sockets: one content_added each."""
    await server.add(secrets.token_bytes(10), wrap="1", name="a", pin="0")
    boundary = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x/y"\r\n\r\nz\r\n--b--\r\n'
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    cid = (await server.json("POST", "ipfs?pin=0", 201, data=boundary, headers=form))["cid"]
    await server.json("POST", "ipfs-stream/directories?pin=0", 201, json={"entries": {"d": cid}})
    assert [one.data["kind"] for one in told.of("content_added")] == ["directory"] * 3
    told.told.clear()
    async with dial(server, "ws/upload") as link:
        await link.send(json.dumps({"filename": "s"}))
        await link.send(secrets.token_bytes(10))
        await link.send(b"")
        await ended(link)
    async with dial(server, "ws/bidirectional") as link:
        for message in ({"command": "add", "id": 1}, b"\0\0\0\1two", {"command": "end", "id": 1}):
            await link.send(message if isinstance(message, bytes) else json.dumps(message))
        async with asyncio.timeout(10):
            async for message in link:
                if json.loads(message)["type"] == "result":
                    break
        pinned = str(CID.of(b"not here"))
        await link.send(json.dumps({"command": "pin", "id": 2, "cid": pinned}))
        await link.send(json.dumps({"command": "close"}))
        await ended(link)
    assert kinds(told) == ["content_added", "pin_added"] * 2 + ["pin_status_changed"]
    assert told.of("pin_status_changed")[0].data["status"] == "failed"


async def test_what_is_read_over_http(server, told, large):
    """The file, its ranges, a block, a CAR and a listing's index; not HEAD, 304, a listing, what is not there, or 416."""
    data, cid = large
    told.told.clear()

    async def get(path, **options):
        async with server.request("GET", path, **options) as answer:
            await answer.read()
            return answer.status

    assert await get(f"ipfs/{cid}", headers={"If-None-Match": f'"{cid}"'}) == 304
    assert await get(f"ipfs/{cid}", headers={"Range": f"bytes={len(data)}-"}) == 416
    assert await get(f"ipfs/{CID.of(b'nowhere')}") == 404
    async with server.request("HEAD", f"ipfs/{cid}") as answer:
        assert answer.status == 200
    listed = str((await (await server.node()).add_directory({"a b": CID.parse(cid)})).cid)
    assert await get(f"ipfs/{listed}/") == 200
    assert await get(f"ipfs/{listed}/?format=json") == 200
    assert retrieved(server, told) == []
    assert await get(f"ipfs/{cid}") == 200
    for start in range(0, 100_000, 1000):
        assert await get(f"ipfs/{cid}", headers={"Range": f"bytes={start}-{start + 999}"}) == 206
    assert await get(f"ipfs/{listed}/a%20b", headers={"Range": "bytes=0-1,5-6"}) == 206
    assert await get(f"ipfs/{cid}", params=RAW) == 200
    assert await get(f"ipfs/{cid}", params={"format": "car"}) == 200
    whole, some, block, car = retrieved(server, told)
    assert whole == {
        "cid": cid,
        "path": cid,
        "size": len(data),
        "transport": "http",
        "bytes": len(data) + 100_000,
        "requests": 101,
        "complete": True,
    }
    assert (some["cid"], some["path"], some["requests"]) == (listed, f"{listed}/a b", 1)
    assert (block["format"], block["bytes"]) == ("raw", len(import_bytes(data).blocks[-1].data))
    assert car["format"] == "car"
    assert car["bytes"] > len(data)
    assert "size" not in car


async def test_a_download_that_is_left(server, told):
    """What was sent until then, and that it is not complete."""
    server.context.content_events.retrievals = Retrievals(told, quiet=0.05)
    cid = await server.add(secrets.token_bytes(64 * MIB))
    told.told.clear()
    async with server.request("GET", f"ipfs/{cid}") as answer:
        await answer.content.readexactly(3 * MIB)
        answer.close()
    (left,) = [one.data for one in await told.wait("content_retrieved")]
    assert left["complete"] is False
    assert MIB <= left["bytes"] < 64 * MIB


async def test_what_is_read_over_the_others(server, told, large):
    """/ws/stream, /sse/stream and the two-way socket's get."""
    data, cid = large
    told.told.clear()
    async with dial(server, f"ws/stream/{cid}") as link:
        await ended(link)
    async with server.request("GET", f"sse/stream/{cid}?length=1000") as answer:
        await answer.read()
    async with dial(server, "ws/bidirectional") as link:
        await link.send(json.dumps({"command": "get", "id": 1, "cid": cid, "length": 10}))
        await link.send(json.dumps({"command": "close"}))
        await ended(link)
    found = {one["transport"]: (one["bytes"], one["complete"]) for one in retrieved(server, told)}
    assert found == {
        "websocket": (len(data), True),
        "sse": (1000, True),
        "bidirectional": (10, True),
    }


async def test_the_progress_of_uploads(server, told, monkeypatch):
    """By POST and over the socket: not kept, and the end of it."""
    monkeypatch.setattr(content_events, "UPLOAD_EVERY", 0.0)
    data = secrets.token_bytes(2 * MIB)
    await server.add(data)
    async with dial(server, "ws/upload") as link:
        await link.send(json.dumps({"size": 3}))
        await link.send(b"abc")
        await link.send(b"")
        await ended(link)
    steps = told.of("custom_event")
    assert {(one.data["event"], one.keep) for one in steps} == {("upload_progress", False)}
    post = [one.data for one in steps if one.data["total_bytes"] == len(data)]
    assert (post[-1]["bytes_processed"], post[-1]["percent"]) == (len(data), 100.0)
    assert steps[-1].data["bytes_processed"] == 3
    assert len({one.data["upload_id"] for one in steps}) == 2


@pytest.mark.parametrize("server_config", [{"IPFSStreamExtension": {"max_add_size": MIB}}])
async def test_uploads_that_fail(server, told):
    """system_error with the text; a request that is refused before it is an upload is none."""
    headers = {"Content-Type": "application/vnd.ipld.car"}
    await server.json("POST", "ipfs", 400, data=b"no CAR", headers=headers)
    await server.json("POST", "ipfs?pin=maybe", 400, data=b"x")
    async with server.anonymous("POST", "ipfs", data=b"x") as answer:
        assert answer.status == 403
    async with dial(server, "ws/upload") as link:
        await link.send(json.dumps({"filename": "s"}))
        await link.send(bytes(2 * MIB))
        await ended(link)
    car, long = failures = told.of(*KEPT)
    assert {(one.kind, one.data["operation"]) for one in failures} == {("system_error", "upload")}
    assert "CAR" in car.data["error"]
    assert str(MIB) in long.data["error"]


class Named(IdentityProvider):
    """Knows users by a header."""

    def get_user(self, handler):
        name = handler.request.headers.get("X-User")
        handler._token_authenticated = True
        return None if name is None else User(name)


@pytest.mark.parametrize("server_config", [{"ServerApp": {"identity_provider_class": Named}}])
async def test_where_there_are_users_each_has_its_own_events(server, told):
    """Adds, pins, uploads and retrievals are those of whoever made the request, at once and interleaved."""

    async def act(name):
        user = {"X-User": name}
        cid = (await server.json("POST", "ipfs", 201, data=name.encode(), headers=user))["cid"]
        async with server.request("PUT", f"ipfs-stream/pins/{cid}", headers=user) as answer:
            await answer.read()
        async with server.request("GET", f"ipfs/{cid}", headers=user) as answer:
            await answer.read()
        async with server.request("GET", f"sse/stream/{cid}", headers=user) as answer:
            await answer.read()
        async with dial(server, "ws/upload", user) as link:
            await link.send(json.dumps({"filename": name}))
            await link.send(f"{name} again".encode())
            await link.send(b"")
            await ended(link)
        async with dial(server, f"ws/stream/{cid}", user) as link:
            await ended(link)

    await asyncio.gather(act("ada"), act("bob"))
    server.context.content_events.close()
    for name in ("ada", "bob"):
        mine = [one.kind for one in told.of(*KEPT, "content_retrieved") if one.owner == name]
        assert Counter(mine) == {
            "content_added": 2,
            "pin_added": 2,
            "pin_status_changed": 1,
            "content_retrieved": 3,
        }
    assert {one.owner for one in told.told} == {"ada", "bob"}


async def heard(server, count):
    """What the server's own notifications get of content from here on, and an event for when there is so much."""
    await server.node()
    manager, records, came = await server.context.feed.ready(), [], asyncio.Event()

    def listen(record):
        if record.notification_type.startswith(("content_", "pin_")):
            records.append(record)
        if len(records) >= count:
            came.set()

    manager.listeners.append(listen)
    return records, came


async def test_the_servers_own_feed(server):
    """What happens is in the server's notifications, and belongs to nobody where there is one person alone."""
    records, came = await heard(server, 3)
    cid = await server.add(b"hello")
    async with server.request("GET", f"ipfs/{cid}") as answer:
        await answer.read()
    server.context.content_events.close()
    async with asyncio.timeout(10):
        await came.wait()
    assert [record.notification_type for record in records] == [
        "content_added",
        "pin_added",
        "content_retrieved",
    ]
    assert {record.message()["data"]["cid"] for record in records} == {cid}
    assert {record.owner for record in records} == {None}


async def test_a_client_that_opens_the_store_is_heard(server):
    """What it adds and reads with no request to the server comes there too, once."""
    records, came = await heard(server, 3)
    node = await EmbeddedNode.open((await server.node()).store.path, min_free=0)
    info = ServerInfo.at(server.url(""), server.token)
    async with AsyncClient(node, info) as client:
        added = await client.add(b"hello", progress=False)
        assert await client.cat(added) == b"hello"
    async with asyncio.timeout(10):
        await came.wait()
    assert {record.notification_type for record in records} == {
        "content_added",
        "pin_added",
        "content_retrieved",
    }
    assert {record.message()["data"]["cid"] for record in records} == {str(added)}
