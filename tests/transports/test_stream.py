"""Downloads, by a client written from the guide, over two queues: no framework, no socket."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.importer import import_bytes
from ipfs_stream_nb.content.stream import CHUNK_SIZE
from ipfs_stream_nb.errors import BadRequestError, IsDirectoryError, NotFoundError, RetrievalError
from ipfs_stream_nb.transports import stream
from ipfs_stream_nb.transports.stream import (
    SSE_CHUNK,
    Part,
    event,
    sse_events,
    stream_content,
    with_keep_alive,
)
from queue_connection import QueueConnection, talking


def download(node, path, part=Part(), room=0, **options):  # noqa: B008  # a Part is frozen
    """The conversation, beside the test."""
    link = QueueConnection(room)
    return talking(stream_content(link, node, path, part, **options), link)


async def test_the_guides_sequence(node, large):
    """Metadata as JSON first; then binary frames of 65536 bytes, the last one short; `complete`; code 1000."""
    data, cid = large
    began = time.time()
    async with download(node, cid) as link:
        metadata, *frames = await link.rest()
    complete = frames.pop()
    frames = [frame for frame in frames if isinstance(frame, bytes)]
    assert metadata["type"] == "metadata"
    assert began <= metadata.pop("timestamp") <= time.time()
    assert {key: metadata[key] for key in ("cid", "path", "size", "content_length", "offset", "length")} == {
        "cid": cid,
        "path": cid,
        "size": len(data),
        "content_length": len(data),
        "offset": 0,
        "length": len(data),
    }
    assert metadata["mime_type"] == metadata["content_type"] == "application/octet-stream"
    assert metadata["chunk_size"] == CHUNK_SIZE == 65_536
    assert b"".join(frames) == data
    assert {len(frame) for frame in frames[:-1]} == {65_536}
    assert 0 < len(frames[-1]) < 65_536
    assert complete.pop("timestamp") >= began
    assert complete == {"type": "complete", "bytes_sent": len(data)}
    assert link.closed == (1000, "")


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537])
async def test_small_files(node, add, size):
    """Empty files have no frame; whole frames have no short one behind them."""
    cid = await add(bytes(size))
    async with download(node, cid) as link:
        first, *frames, last = await link.rest()
    assert (first["type"], last["type"]) == ("metadata", "complete")
    assert [len(frame) for frame in frames] == [65_536] * (size // 65_536) + [size % 65_536] * bool(
        size % 65_536
    )


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(offset=st.integers(0, 1 << 21), length=st.none() | st.integers(0, 1 << 21) | st.just(10**30))
async def test_parts(node, add, offset, length):
    """Any offset and length give those bytes, fewer at the end, and their hash; an offset behind the end is refused
    with code 1008."""
    data = bytes(range(256)) * 5000
    async with download(node, await add(data), Part(offset, length), sha256=True) as link:
        heard = await link.rest()
    if offset > len(data):
        assert [message["code"] for message in heard] == ["bad_request"]
        assert link.closed[0] == 1008
        return
    wanted = data[offset:] if length is None else data[offset : offset + length]
    assert b"".join(frame for frame in heard if isinstance(frame, bytes)) == wanted
    assert (heard[0]["offset"], heard[0]["length"]) == (offset, len(wanted))
    assert heard[-1]["sha256"] == hashlib.sha256(wanted).hexdigest()
    assert heard[-1]["bytes_sent"] == len(wanted)


@pytest.mark.parametrize(("progress", "due"), [(True, True), (False, False)])
async def test_progress(node, large, monkeypatch, progress, due):
    """Progress comes between the frames where it is due, says how much went before it, and can be had without."""
    monkeypatch.setattr(stream, "PROGRESS_SECONDS", 0)
    data, cid = large
    async with download(node, cid, progress=progress) as link:
        _, *heard, _ = await link.rest()
    told = [message for message in heard if isinstance(message, dict)]
    assert bool(told) is due
    seen = 0
    for message in heard:
        if isinstance(message, bytes):
            seen += len(message)
            continue
        assert message["bytes_sent"] == seen
        assert message["total_bytes"] == len(data)
        assert message["percent"] == round(100 * seen / len(data), 2)
        assert message["rate"] > 0


async def test_progress_is_seldom(node, large):
    """Not more often than every 250 ms."""
    _, cid = large
    began = time.monotonic()
    async with download(node, cid) as link:
        heard = await link.rest()
    told = [message for message in heard if isinstance(message, dict) and message["type"] == "progress"]
    assert len(told) <= (time.monotonic() - began) / 0.25


async def test_what_cannot_be_streamed(node, add):
    """A CID that is not here, what is none, a directory and a path to nowhere: the error, then its close code."""
    folder = await node.add_directory({"a": CID.parse(await add(b"x"))})
    for path, code in [
        (str(import_bytes(b"not here").root), "not_found"),
        ("nonsense", "bad_cid"),
        ("", "bad_cid"),
        (str(folder.cid), "is_directory"),
        (f"{folder.cid}/b", "not_found"),
        (f"{folder.cid}/a/b", "not_a_directory"),
    ]:
        async with download(node, path) as link:
            (error,) = await link.rest()
        assert (error["type"], error["code"]) == ("error", code), path
        assert error["error"] == error["message"] == link.closed[1] or len(error["error"]) > 100
        assert link.closed[0] == 1008
        assert len(link.failures) == 1


async def test_an_internal_error_is_not_told(node, large, monkeypatch):
    """A bug's text stays in the log."""

    async def broken(_path):
        raise RuntimeError("the house's secret")

    monkeypatch.setattr(node, "get_metadata", broken)
    async with download(node, large[1]) as link:
        (error,) = await link.rest()
    assert (error["code"], "secret" in error["error"]) == ("internal", False)
    assert link.closed[0] == 1011
    assert isinstance(link.failures[0], RuntimeError)


async def test_a_client_that_does_not_read_is_waited_for(node, large):
    """While it reads nothing, no more is read for it than is on its way; and its leaving ends all of it."""
    _, cid = large
    async with download(node, cid, room=2) as link:
        await link.hear_type("metadata")
        await asyncio.sleep(0.05)  # nothing is to happen meanwhile
        assert len(link.unread()) <= 2
    assert link.closed is None


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    takes=st.lists(st.integers(0, 20), min_size=1),
    offset=st.integers(0, 1 << 21),
    quick=st.integers(0, 1 << 21),
)
async def test_a_client_that_is_slow_now_and_then(node, large, takes, offset, quick):
    """However many frames it takes at once, or none, it gets every byte once, in whole frames, and their hash."""
    data, cid = large
    takes = iter(takes * 100)
    link = QueueConnection(take=lambda count: min(count, next(takes, count)))
    stream.QUICK_BYTES, before = quick, stream.QUICK_BYTES
    try:
        async with talking(stream_content(link, node, cid, Part(offset), sha256=True), link):
            heard = await link.rest()
    finally:
        stream.QUICK_BYTES = before
    frames = [frame for frame in heard if isinstance(frame, bytes)]
    assert b"".join(frames) == data[offset:]
    assert {len(frame) for frame in frames[:-1]} <= {65_536}
    assert heard[-1]["sha256"] == hashlib.sha256(data[offset:]).hexdigest()
    assert heard[-1]["bytes_sent"] == len(data) - offset


async def test_nothing_is_held_for_a_slow_client(node, large, monkeypatch):
    """Once it does not take a whole batch, what was read ahead is let go of, before it is waited for."""
    monkeypatch.setattr(stream, "QUICK_BYTES", 0)
    _, cid = large
    opened = []
    cat = node.cat

    async def counted(*args):
        opened.append(1)
        try:
            async for piece in cat(*args):
                yield piece
        finally:
            opened.pop()

    monkeypatch.setattr(node, "cat", counted)
    held = []
    link = QueueConnection(take=lambda count: count // 2)

    async def drained():
        held.append(len(opened))
        link._take = lambda count: count

    link.drained = drained
    async with talking(stream_content(link, node, cid, Part()), link):
        await link.rest()
    assert held == [0]


async def test_a_client_that_talks_is_told(node, large):
    """Each of its messages gets an error, and the download goes on."""
    data, cid = large
    async with download(node, cid, room=3) as link:
        await link.hear_type("metadata")
        link.say("hello", b"binary", {"type": "metadata"})
        heard = await link.rest()
    errors = [
        message["code"] for message in heard if isinstance(message, dict) and message["type"] == "error"
    ]
    assert errors == ["bad_request"] * 3
    assert b"".join(frame for frame in heard if isinstance(frame, bytes)) == data


# server-sent events


async def events_of(generator):
    """Parsed as the HTML standard has it: (event, data, id)."""
    found = []
    async for text in generator:
        assert text.endswith("\n\n")
        fields = {}
        for line in text.rstrip("\n").split("\n"):
            name, _, value = line.partition(": ")
            assert name not in fields
            fields[name] = value
        found.append(fields)
    return found


async def test_the_guides_events(node, large):
    """`metadata` as JSON, `chunk` as base64, `complete` with success; each with the offset behind it as id."""
    data, cid = large
    first, *chunks, last = await events_of(sse_events(node, cid, Part()))
    assert (first["event"], first["id"], first["retry"]) == ("metadata", "0", "1000")
    assert json.loads(first["data"])["size"] == len(data)
    at = 0
    for chunk in chunks:
        piece = base64.b64decode(chunk["data"], validate=True)
        at += len(piece)
        assert (chunk["event"], chunk["id"]) == ("chunk", str(at))
        assert len(piece) == SSE_CHUNK or at == len(data)
    assert base64.b64decode("".join(chunk["data"] for chunk in chunks), validate=True) == data
    assert (last["event"], last["id"]) == ("complete", str(len(data)))
    assert json.loads(last["data"]) == {"success": True, "bytes_sent": len(data)}


async def test_events_resume_anywhere(node, add):
    """From whichever id, the rest comes and nothing twice."""
    data = bytes(range(256)) * 1000
    cid = await add(data)
    whole = await events_of(sse_events(node, cid, Part()))
    for seen in whole:
        rest = await events_of(sse_events(node, cid, Part(int(seen["id"]))))
        got = b"".join(base64.b64decode(one["data"]) for one in rest if one["event"] == "chunk")
        assert got == data[int(seen["id"]) :]


async def test_events_of_what_is_not_there(node, add):
    """What is wrong from the start is raised before the first event."""
    folder = await node.add_directory({"a": CID.parse(await add(b"x"))})
    for path, part, error in [
        (str(import_bytes(b"not here").root), Part(), NotFoundError),
        (str(folder.cid), Part(), IsDirectoryError),
        (f"{folder.cid}/a", Part(2), BadRequestError),
    ]:
        events = sse_events(node, path, part)
        with pytest.raises(error):
            await anext(events)


async def test_an_error_in_the_middle_is_an_event(node, large, monkeypatch):
    """It comes as `error` with the protocol's message, behind what was had before; whoever asked is told as well."""
    data, cid = large
    cat = node.cat

    async def breaking(*args):
        async for piece in cat(*args):
            yield piece
            raise RetrievalError("the far end has gone")

    monkeypatch.setattr(node, "cat", breaking)
    told = []
    *before, last = await events_of(sse_events(node, cid, Part(), told.append))
    assert last["event"] == "error"
    assert json.loads(last["data"])["code"] == "retrieval_failed"
    assert "id" not in last  # the reconnection resumes behind the last chunk
    got = b"".join(base64.b64decode(one["data"]) for one in before if one["event"] == "chunk")
    assert got == data[: len(got)]
    assert [str(error) for error in told] == ["the far end has gone"]


async def test_keep_alive(monkeypatch):
    """Comments come where nothing else does, but not before the first event: until then an error can be an answer."""
    monkeypatch.setattr(stream, "KEEP_ALIVE_SECONDS", 0.01)
    go = asyncio.Event()
    closed = []

    async def slow(error=None):
        try:
            await asyncio.sleep(0.05)
            if error:
                raise error
            yield event("a", "1")
            await go.wait()
            yield event("b", "2")
        finally:
            closed.append(1)

    seen = []
    async for text in with_keep_alive(slow()):
        seen.append(text)
        if len(seen) == 3:
            go.set()
    comments = [text for text in seen if text.startswith(":")]
    assert len(comments) >= 2
    assert [text for text in seen if text not in comments] == [event("a", "1"), event("b", "2")]
    assert seen[0] == event("a", "1")
    with pytest.raises(NotFoundError):
        await anext(with_keep_alive(slow(NotFoundError("gone"))))
    left = with_keep_alive(slow())
    go.clear()
    await anext(left)
    await anext(left)
    await left.aclose()
    assert len(closed) == 3


async def test_no_events():
    """A generator without any is no error."""

    async def nothing():
        return
        yield

    assert [text async for text in with_keep_alive(nothing())] == []
