"""Server-sent events of a real Jupyter server: the guide's names, resumption, errors, limits."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path

import pytest

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.transports import stream
from raw_http import RawConnection

MIB = 1 << 20
SECONDS = 20
ANY = str(CID.of(b"any"))


def open_files():
    """How many descriptors this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def until(condition):
    """Wait for what the server does by itself; it has no event to await from outside."""
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110  # see above
            await asyncio.sleep(0.01)


def parsed(text):
    """Events as the HTML standard reads them: (event, data, id); comments and `retry` are left out."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if "data" in fields:
            found.append((fields.get("event", "message"), fields["data"], fields.get("id")))
    return found


def content(events):
    """The bytes of the chunks."""
    return b"".join(base64.b64decode(data, validate=True) for event, data, _ in events if event == "chunk")


async def events_of(server, path, **kwargs):
    """All events of an answer."""
    async with server.request("GET", f"sse/stream/{path}", **kwargs) as answer:
        assert answer.status == 200, await answer.text()
        return parsed(await answer.text())


async def test_the_guides_events(server, large):
    """`metadata`, `chunk`, `complete`, with the headers that proxies and browsers need, and ids to resume by."""
    data, cid = large
    async with server.request("GET", f"sse/stream/{cid}") as answer:
        headers, text = answer.headers, await answer.text()
    assert headers["Content-Type"] == "text/event-stream"
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Accel-Buffering"] == "no"
    assert text.startswith("retry: 1000\n")
    events = parsed(text)
    assert [event for event, _, _ in events] == ["metadata", *["chunk"] * (len(events) - 2), "complete"]
    metadata = json.loads(events[0][1])
    assert (metadata["cid"], metadata["size"], metadata["mime_type"]) == (
        cid,
        len(data),
        "application/octet-stream",
    )
    assert content(events) == data
    assert json.loads(events[-1][1]) == {"success": True, "bytes_sent": len(data)}
    assert events[-1][2] == str(len(data))


@pytest.mark.parametrize("data", [b"", b"x"])
async def test_small_files(server, data):
    """No chunk where there is nothing."""
    events = await events_of(server, await server.add(data))
    assert len(events) == 2 + len(data)
    assert content(events) == data


async def test_resuming(server, large):
    """`Last-Event-ID`, in the header or the query, goes on behind that event; at the end there is a 204, which ends an
    EventSource."""
    data, cid = large
    events = await events_of(server, cid)
    for number in (0, 1, 5, len(events) - 3):
        seen = events[number][2]
        for query, headers in (("", {"Last-Event-ID": seen}), (f"?last_event_id={seen}", {})):
            rest = await events_of(server, cid + query, headers=headers)
            assert content(rest) == data[int(seen) :]
            assert json.loads(rest[0][1])["offset"] == int(seen)
    async with server.request("GET", f"sse/stream/{cid}", headers={"Last-Event-ID": events[-1][2]}) as answer:
        assert (answer.status, await answer.read()) == (204, b"")


async def test_resuming_a_part(server):
    """With offset and length, ids are the file's offsets, and the end is the part's."""
    cid = await server.add(bytes(range(256)) * 1000)
    path = f"{cid}?offset=1000&length=100000"
    events = await events_of(server, path)
    assert content(events) == (bytes(range(256)) * 1000)[1000:101_000]
    assert events[-1][2] == "101000"
    rest = await events_of(server, path, headers={"Last-Event-ID": "50152"})
    assert content(rest) == (bytes(range(256)) * 1000)[50_152:101_000]
    for last, status in [("101000", 204), ("999", 400), ("x", 400), ("-1", 400), ("²", 400), ("9" * 40, 400)]:
        headers = {"Last-Event-ID": last}
        async with server.request("GET", f"sse/stream/{path}", headers=headers) as answer:
            assert answer.status == status, last


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("nonsense", 400, "bad_cid"),
        (ANY, 404, "not_found"),
        ("{cid}?offset=11", 400, "bad_request"),
        ("{cid}?offset=x", 400, "bad_request"),
        ("{cid}?length=-1", 400, "bad_request"),
        ("{folder}", 400, "is_directory"),
        ("{folder}/b", 404, "not_found"),
        ("{folder}/a/b", 404, "not_a_directory"),
    ],
)
async def test_what_cannot_be_streamed(server, path, status, code):
    """What is wrong from the start is an HTTP status with the protocol's JSON: an EventSource does not come again."""
    cid = await server.add(b"0123456789")
    folder = (await server.json("POST", "ipfs-stream/directories", 201, json={"entries": {"a": cid}}))["cid"]
    error = await server.json("GET", "sse/stream/" + path.format(cid=cid, folder=folder), status)
    assert error["code"] == code


async def test_credentials(server):
    """Without one it is a 403; a token to read this CID opens it and nothing else."""
    cid = await server.add(b"hello")
    token = (await server.json("POST", "ipfs-stream/tokens", json={"action": "read", "cid": cid}))["token"]
    async with server.anonymous("GET", f"sse/stream/{cid}?token={token}") as answer:
        assert content(parsed(await answer.text())) == b"hello"
    for path in (f"sse/stream/{cid}", f"sse/stream/{ANY}?token={token}"):
        async with server.anonymous("GET", path) as answer:
            assert answer.status == 403


async def test_keep_alive(server, monkeypatch):
    """Comments come while nothing else does, but not before the first event, whose errors are still an answer."""
    monkeypatch.setattr(stream, "KEEP_ALIVE_SECONDS", 0.02)
    node = await server.node()
    cid = await server.add(b"hello")
    get_metadata, cat, go = node.get_metadata, node.cat, asyncio.Event()

    async def slow_metadata(path):
        await asyncio.sleep(0.1)
        return await get_metadata(path)

    async def slow_cat(*args):
        await go.wait()
        async for piece in cat(*args):
            yield piece

    monkeypatch.setattr(node, "get_metadata", slow_metadata)
    monkeypatch.setattr(node, "cat", slow_cat)
    async with server.request("GET", f"sse/stream/{ANY}") as answer:
        assert answer.status == 404
    async with server.request("GET", f"sse/stream/{cid}") as answer, asyncio.timeout(SECONDS):
        text = ""
        while text.count(": still here\n\n") < 3:
            text += (await answer.content.readany()).decode()
        go.set()
        text += (await answer.content.read()).decode()
    assert text.startswith("retry: ")
    assert content(parsed(text)) == b"hello"


async def test_clients_that_leave(server, large):
    """A client that goes in the middle costs nothing more: its slot, its lease and its tasks are free."""
    _, cid = large
    files = open_files()
    before = len(asyncio.all_tasks())
    for _ in range(5):
        async with await RawConnection.open(server) as connection:
            await connection.send_head("GET", f"sse/stream/{cid}")
            await connection.head()
            await connection.reader.readline()
        await until(lambda: not server.context.streams.active)
    await until(lambda: len(asyncio.all_tasks()) <= before)
    assert open_files() <= files + 2
    await server.json("DELETE", f"ipfs/{cid}")


@pytest.mark.parametrize("server_config", [{"IPFSStreamExtension": {"stall_timeout": 1.0, "max_streams": 1}}])
async def test_a_client_that_never_reads(server, large):
    """It holds a slot, over which the next is a 503; after stall_timeout it is closed."""
    data, cid = large
    async with await RawConnection.open(server, limit=4096) as connection:
        await connection.send_head("GET", f"sse/stream/{cid}")
        await until(lambda: server.context.streams.active == 1)
        async with server.request("GET", f"sse/stream/{cid}") as answer:
            assert (answer.status, (await answer.json())["code"]) == (503, "busy")
        await until(lambda: not server.context.streams.active)
    assert content(await events_of(server, cid)) == data
