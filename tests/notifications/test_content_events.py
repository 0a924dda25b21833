"""Events of content: from what nodes tell, what is sent and what comes; and how a client reports them."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from contextlib import aclosing

import pytest
from aiohttp import web

from ipfs_stream_nb.clients import reporting
from ipfs_stream_nb.clients.content import AsyncClient
from ipfs_stream_nb.clients.direct import DirectNode
from ipfs_stream_nb.clients.http import ServerHTTP
from ipfs_stream_nb.clients.reporting import EventReporter
from ipfs_stream_nb.clients.server import ServerInfo
from ipfs_stream_nb.content.blocks import BlockStore
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.content.observing import Happened, acting_user
from ipfs_stream_nb.errors import NotFoundError, TooLargeError
from ipfs_stream_nb.notifications import content_events, retrievals
from ipfs_stream_nb.notifications.content_events import ContentEvents
from ipfs_stream_nb.notifications.events import NotificationType
from ipfs_stream_nb.notifications.retrievals import Retrievals, Sent
from ipfs_stream_nb.transports.bidirectional import BidirectionalConversation, BidirectionalLimits
from ipfs_stream_nb.transports.stream import Part, sse_events, stream_content
from ipfs_stream_nb.transports.upload import UploadConversation, UploadLimits
from queue_connection import QueueConnection, talking
from recorder import Recorder, Told

A, B = CID.of(b"a"), CID.of(b"b")
MIB = 1 << 20
LIMITS = UploadLimits(max_size=8 * MIB, idle_timeout=30)


@pytest.fixture
async def node(tmp_path):
    async with await EmbeddedNode.open(tmp_path / "repo", min_free=0) as node:
        yield node


@pytest.fixture
async def emitted():
    return Recorder()


async def pieces(*parts):
    for part in parts:
        yield part


# -- what a node tells


async def test_each_act_is_an_event(emitted):
    """With the guide's facts; progress is not kept; the acting user owns it, and nobody what the whole store is about."""
    events = ContentEvents(emitted)
    added = {"size": 3, "kind": "file", "complete": True}
    progress = {"blocks": 1, "bytes": 2, "total_blocks": 2, "total_bytes": 4, "percent": 50.0}
    gone = {"blocks": 1, "bytes": 2}
    for happened in (
        Happened("added", A, "a.bin", added, "ada"),
        Happened("added", B, "", added),
        Happened("removed", A, "", gone),
        Happened("pinned", A),
        Happened("unpinned", A),
        Happened("pin_progress", A, "a.bin", progress, "ada"),
        Happened("pin_status", A, "", {"status": "failed", "error": "why"}),
        Happened("collected", None, "", gone, "ada"),
    ):
        events.observe(happened)
    a, b = {"cid": str(A)}, {"cid": str(B)}
    garbage = {"message": "garbage was collected", "operation": "gc"}
    assert emitted.told == [
        Told("content_added", a | {"name": "a.bin"} | added, "ada", True),
        Told("content_added", b | added, None, True),
        Told("content_removed", a | gone, None, True),
        Told("pin_added", a | {"name": ""}, None, True),
        Told("pin_removed", a, None, True),
        Told("pin_progress", a | {"name": "a.bin"} | progress, "ada", False),
        Told("pin_status_changed", a | {"status": "failed", "error": "why"}, None, True),
        Told("system_info", garbage | gone, None, True),
    ]


async def test_a_node_with_its_events(node, emitted):
    """An add, a second pin and a removal of a real node, in order."""
    node.observers.append(ContentEvents(emitted).observe)
    added = await node.add(pieces(b"hello"), name="h")
    await node.pin(added.cid, name="h")
    await node.remove(added.cid)
    assert [told.kind for told in emitted.told] == [
        "content_added",
        "pin_added",
        "pin_status_changed",
        "pin_removed",
        "content_removed",
    ]
    assert emitted.told[0].data == {
        "cid": str(added.cid),
        "name": "h",
        "size": 5,
        "kind": "file",
        "complete": True,
    }


# -- what is sent


def send(gathering, path=A, transport="http", size=100, **options):
    """One transfer of 100 bytes, whole."""
    sent = Sent()
    with gathering.sending(sent, path, transport, size=size, **options):
        sent.bytes_sent += 100


async def test_many_requests_are_one_event(emitted):
    """What one user asks for of one path over one transport, until there is a pause; others' are theirs."""
    gathering = Retrievals(emitted, quiet=0.05)
    for _ in range(40):
        send(gathering, f"/ipfs/{A}/film.mp4/", size=4000)
    send(gathering, A)
    send(gathering, A, "websocket")
    acting_user.set("ada")
    send(gathering, A)
    assert emitted.told == []
    told = await emitted.wait("content_retrieved", count=4)
    film, plain, socket, theirs = told
    assert film.data == {
        "cid": str(A),
        "path": f"{A}/film.mp4",
        "size": 4000,
        "transport": "http",
        "bytes": 4000,
        "requests": 40,
        "complete": True,
    }
    assert (plain.data["path"], plain.data["requests"], plain.owner) == (str(A), 1, None)
    assert socket.data["transport"] == "websocket"
    assert theirs.owner == "ada"
    assert all(one.keep for one in told)
    send(gathering, A)
    await emitted.wait("content_retrieved", count=5)


async def test_transfers_that_end_early(emitted):
    """What broke off is not complete; what ended before its first byte is not told, unless it was whole and empty."""
    gathering = Retrievals(emitted)
    for path, size in ((f"{A}/half", 50), (f"{A}/none", 0)):
        with contextlib.suppress(ConnectionError), gathering.sending(sent := Sent(), path, "http"):
            sent.bytes_sent = size
            raise ConnectionError
    with gathering.sending(Sent(), f"{A}/empty", "http"):
        pass
    gathering.close()
    assert [(told.data["path"], told.data["complete"]) for told in emitted.told] == [
        (f"{A}/half", False),
        (f"{A}/empty", True),
    ]


async def test_what_lasts_long_is_told_meanwhile(emitted):
    """What was sent since the last time, not complete; the end tells the rest, and the sum is all of it."""
    gathering = Retrievals(emitted, quiet=0.02, longest=0.05)
    sent = Sent()
    with gathering.sending(sent, A, "sse", size=1000):
        sent.bytes_sent = 300
        await emitted.wait("content_retrieved")
        sent.bytes_sent = 1000
    told = await emitted.wait("content_retrieved", count=2)
    assert [(one.data["bytes"], one.data["complete"], one.data["requests"]) for one in told] == [
        (300, False, 1),
        (700, True, 1),
    ]
    await asyncio.sleep(0.06)
    assert len(emitted.told) == 2


async def test_a_transfer_is_told_at_its_end(emitted):
    """However long it takes, as long as that is less than the longest; a pause in it is none between transfers."""
    gathering = Retrievals(emitted, quiet=0.01)
    with gathering.sending(sent := Sent(), A, "http"):
        sent.bytes_sent = 10
        await asyncio.sleep(0.05)
        assert emitted.told == []
        sent.bytes_sent = 20
    (told,) = await emitted.wait("content_retrieved")
    assert (told.data["bytes"], told.data["complete"]) == (20, True)


async def test_a_transfer_that_stands_still_is_not_told_again(emitted):
    """No bytes, no event."""
    gathering = Retrievals(emitted, quiet=0.01, longest=0.02)
    sent = Sent()
    with gathering.sending(sent, A, "http"):
        sent.bytes_sent = 10
        await emitted.wait("content_retrieved")
        await asyncio.sleep(0.1)
        assert len(emitted.told) == 1
    gathering.close()


async def test_single_blocks_are_gathered_whatever_they_are(emitted):
    """A client that fetches a file block by block does not fill the history; CARs keep their paths."""
    gathering = Retrievals(emitted)
    for number in range(300):
        send(gathering, CID.of(b"%d" % number), form="raw")
    send(gathering, B, form="car")
    gathering.close()
    raw, car = emitted.told
    assert (raw.data["format"], raw.data["requests"], raw.data["bytes"]) == ("raw", 300, 30_000)
    assert raw.data["cid"] == str(CID.of(b"0"))
    assert (car.data["format"], car.data["cid"]) == ("car", str(B))


async def test_what_is_gathered_is_bounded(emitted):
    """Over MAX_MERGED paths, each transfer is told by itself at its end; none is lost."""
    gathering = Retrievals(emitted)
    most = retrievals.MAX_MERGED
    for number in range(most + 5):
        send(gathering, f"{A}/{number}")
    assert len(emitted.told) == 5
    gathering.close()
    gathering.close()
    assert {told.data["path"] for told in emitted.told} == {f"{A}/{number}" for number in range(most + 5)}
    assert len(emitted.told) == most + 5
    send(gathering, f"{A}/after")
    gathering.close()


async def test_downloads_of_conversations(node, emitted):
    """WS /ws/stream, SSE and the two-way socket tell of each file, whole or not, and not of what is not there."""
    data = secrets.token_bytes(3 * MIB)
    cid = str((await node.add(pieces(data))).cid)
    events = ContentEvents(emitted)
    link = QueueConnection()
    async with talking(stream_content(link, node, cid, Part(), watcher=events.over("websocket")), link):
        await link.rest()
    link = QueueConnection()
    async with talking(stream_content(link, node, str(A), Part(), watcher=events.over("websocket")), link):
        await link.rest()
    async with aclosing(sse_events(node, cid, Part(MIB), None, events.over("sse"))) as chunks:
        assert [chunk async for chunk in chunks]
    async with aclosing(sse_events(node, f"/ipfs/{cid}", Part(), None, events.over("sse"))) as chunks:
        await anext(chunks)
        await anext(chunks)
    limits = BidirectionalLimits(LIMITS, 8, 30)

    async def anything(*_args):
        pass

    link = QueueConnection()
    talk = BidirectionalConversation(link, node, limits, anything, events.over("bidirectional"))
    async with talking(talk.run(), link):
        link.say({"command": "get", "id": 1, "path": cid, "length": 1000})
        link.say({"command": "get", "id": 2, "cid": str(A)}, {"command": "close"})
        await link.rest()
    events.close()
    told = [(one.data["transport"], one.data["bytes"], one.data["complete"]) for one in emitted.told]
    sse = 2 * MIB + 49_152
    assert told == [("websocket", 3 * MIB, True), ("sse", sse, False), ("bidirectional", 1000, True)]
    assert {(one.data["cid"], one.data["size"]) for one in emitted.told} == {(cid, 3 * MIB)}


# -- what comes


async def test_the_progress_of_an_upload(emitted, monkeypatch):
    """Not kept, some times a second, with the end where more was told before; an upload that is quick has none."""
    quick = ContentEvents(emitted).upload()
    step = {
        "upload_id": "u",
        "bytes_processed": 1,
        "total_bytes": 4,
        "percent": 25.0,
        "durable": 0,
        "type": "x",
    }
    whole = step | {"bytes_processed": 4, "percent": 100.0}
    quick.progress(step)
    quick.progress(whole)
    assert emitted.told == []
    monkeypatch.setattr(content_events, "UPLOAD_EVERY", 0.0)
    acting_user.set("ada")
    slow = ContentEvents(emitted).upload()
    slow.progress(step)
    monkeypatch.setattr(content_events, "UPLOAD_EVERY", 60.0)
    slow.progress(step | {"bytes_processed": 2})
    slow.progress(step | {"bytes_processed": 3})
    slow.progress(whole)
    slow.progress(whole)
    assert [told.data["bytes_processed"] for told in emitted.told] == [1, 2, 4]
    assert emitted.told[0] == Told(
        "custom_event",
        {
            "event": "upload_progress",
            "upload_id": "u",
            "bytes_processed": 1,
            "total_bytes": 4,
            "percent": 25.0,
        },
        "ada",
        False,
    )


async def test_a_failure_of_an_upload(emitted):
    """The user's, with the text of our errors alone."""
    acting_user.set("ada")
    upload = ContentEvents(emitted).upload()
    upload.failed(TooLargeError("it is too large"))
    upload.failed(KeyError("secret"))
    assert [(told.kind, told.data["error"], told.data["operation"]) for told in emitted.told] == [
        ("system_error", "it is too large", "upload"),
        ("system_error", "an internal error; the log has the details", "upload"),
    ]
    assert {told.owner for told in emitted.told} == {"ada"}


async def test_uploads_of_conversations(node, emitted, monkeypatch):
    """One content_added each, by the socket of one upload and the two-way one; failures; and none for who leaves."""
    monkeypatch.setattr(content_events, "UPLOAD_EVERY", 0.0)
    events = ContentEvents(emitted)
    node.observers.append(events.observe)

    def upload(link):
        return talking(UploadConversation(link, node, LIMITS, events.over("websocket")).run(), link)

    async with upload(QueueConnection()) as link:
        link.say({"filename": "a", "size": 5}, b"hello", b"")
        await link.rest()
    assert [told.kind for told in emitted.told if told.keep] == ["content_added", "pin_added"]
    assert emitted.of("custom_event")[-1].data["percent"] == 100.0
    emitted.told.clear()
    async with upload(QueueConnection()) as link:
        link.say({"filename": "a"}, b"hello")
        await link.hear_type("ready")
    assert emitted.told == []
    async with upload(QueueConnection()) as link:
        link.say({"filename": "a"}, bytes(5 * MIB), bytes(5 * MIB))
        await link.rest()
    (failure,) = emitted.of("system_error")
    assert "at most" in failure.data["error"] or "over" in failure.data["error"]
    emitted.told.clear()

    async def anything(*_args):
        pass

    link = QueueConnection()
    limits = BidirectionalLimits(LIMITS, 8, 30)
    talk = BidirectionalConversation(link, node, limits, anything, events.over("bidirectional"))
    async with talking(talk.run(), link):
        link.say({"command": "add", "id": 1, "filename": "b", "size": 3})
        link.say({"command": "add", "id": 2, "size": 9 * MIB})
        await link.hear_type("welcome")
        link.say(b"\0\0\0\1abc", {"command": "end", "id": 1})
        await link.hear_type("error", "ready")
        await link.hear_type("error", "ready")
        await link.hear_type("result")
    kinds = [told.kind for told in emitted.told if told.keep]
    assert kinds == ["content_added", "pin_added"]


# -- reports of clients that have the store


class Site:
    """A server that takes events, or does not."""

    def __init__(self):
        self.batches = []
        self.came = asyncio.Event()
        self.status = 200
        self.hangs = False

    async def take(self, request):
        self.batches.append((await request.json())["events"])
        self.came.set()
        if self.hangs:
            await asyncio.sleep(60)
        return web.json_response({"ids": [], "epoch": "e"}, status=self.status)

    @property
    def events(self):
        return [event for batch in self.batches for event in batch]

    async def wait(self, count):
        """Its events, once there are so many."""
        async with asyncio.timeout(10):
            while len(self.events) < count:
                self.came.clear()
                await self.came.wait()
        return self.events


@pytest.fixture
async def site(unused_port):
    """A site, with its address as `url`."""
    site = Site()
    app = web.Application(client_max_size=MIB)
    app.router.add_post("/ipfs-stream/events", site.take)
    runner = web.AppRunner(app, shutdown_timeout=0.01)
    await runner.setup()
    server = web.TCPSite(runner, "127.0.0.1", unused_port)
    await server.start()
    site.url = f"http://127.0.0.1:{unused_port}/"
    yield site
    await runner.cleanup()


@pytest.fixture
def unused_port():
    """A port that nobody listens on."""
    import socket  # noqa: PLC0415

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
async def http(unused_port):
    """The way to the site, whether it is there or not."""
    http = ServerHTTP(ServerInfo.at(f"http://127.0.0.1:{unused_port}/", "t"))
    yield http
    await http.close()
    await asyncio.sleep(0)  # closed connections leave on the next turn of the loop


def report(reporter, number, **options):
    """Emit a small event."""
    reporter.emit(NotificationType.CUSTOM_EVENT, {"number": number}, source="test", **options)


async def test_reports_come_in_batches_and_in_order(site, http):
    """What is emitted at once goes together, at most BATCH_EVENTS in a request; what is not to be kept says so."""
    reporter = EventReporter(http)
    for number in range(reporting.BATCH_EVENTS + 10):
        report(reporter, number)
    report(reporter, -1, keep=False)
    events = await site.wait(reporting.BATCH_EVENTS + 11)
    assert [event["data"]["number"] for event in events] == [*range(reporting.BATCH_EVENTS + 10), -1]
    assert [event.get("keep", True) for event in events[-2:]] == [True, False]
    assert events[0] == {"notification_type": "custom_event", "data": {"number": 0}, "source": "test"}
    assert [len(batch) for batch in site.batches] == [reporting.BATCH_EVENTS, 11]
    report(reporter, 1000)
    await reporter.close()
    await reporter.close()
    assert site.events[-1]["data"] == {"number": 1000}
    assert reporter.dropped == 0
    report(reporter, 1001)
    assert reporter.dropped == 1


async def test_a_request_has_a_bound_in_bytes(site, http):
    """Long events go in several requests; one that is too long is dropped."""
    reporter = EventReporter(http)
    long = "x" * (reporting.MAX_EVENT_BYTES - 100)
    for _ in range(20):
        reporter.emit(NotificationType.CUSTOM_EVENT, {"long": long})
    reporter.emit(NotificationType.CUSTOM_EVENT, {"long": "x" * reporting.MAX_EVENT_BYTES})
    await site.wait(20)
    assert [len(batch) for batch in site.batches] == [16, 4]
    await reporter.close()
    assert reporter.dropped == 1


async def test_a_server_that_is_away_costs_nothing(http, monkeypatch):
    """Events are dropped and counted, the waiting ones are bounded, and closing is quick."""
    reporter = EventReporter(http)
    for number in range(reporting.MAX_WAITING + 7):
        report(reporter, number)
    assert reporter.dropped == 7
    async with asyncio.timeout(30):
        await reporter.close()
    assert reporter.dropped == reporting.MAX_WAITING + 7


async def test_a_server_that_refuses_and_comes_back(site, http, monkeypatch):
    """What it did not take is lost; what comes later is sent."""
    monkeypatch.setattr(reporting, "AWAY_SECONDS", 0.01)
    reporter = EventReporter(http)
    site.status = 403
    report(reporter, 1)
    await site.wait(1)
    site.status = 200
    report(reporter, 2)
    await site.wait(2)
    await reporter.close()
    assert reporter.dropped == 1


async def test_closing_waits_a_little_and_no_longer(site, http, monkeypatch):
    """A server that does not answer, within a minute, does not hold up who closes."""
    monkeypatch.setattr(reporting, "CLOSE_SECONDS", 0.1)
    site.hangs = True
    reporter = EventReporter(http)
    report(reporter, 1)
    await site.wait(1)
    report(reporter, 2)
    async with asyncio.timeout(30):
        await reporter.close()
    assert reporter.dropped == 2


async def test_a_client_on_the_store_reports(site, node, tmp_path, monkeypatch):
    """Its adds, pins and removals, and what it read, once each, by the time it is closed; failures are none of it."""
    # a busy machine's pause is none between what was read
    monkeypatch.setitem(Retrievals.__init__.__kwdefaults__, "quiet", 60.0)
    data = secrets.token_bytes(2 * MIB)
    async with AsyncClient(node, ServerInfo.at(site.url, "t")) as client:
        added = await client.add(data, name="a.bin", progress=False)
        assert await client.cat(added) == data
        assert await client.cat(added, 10, 20) == data[10:30]
        file = await client.open(added)
        assert await asyncio.to_thread(file.read) == data
        car = await client.export_car(added, progress=False)
        size = await client.export_car(added, tmp_path / "a.car", progress=False)
        with pytest.raises(NotFoundError):
            await client.cat(A)
        await client.unpin(added)
    await asyncio.sleep(0)
    kinds = [event["notification_type"] for event in site.events]
    assert kinds == ["content_added", "pin_added", "pin_removed", "content_retrieved", "content_retrieved"]
    read, exported = (event["data"] for event in site.events[3:])
    assert read["cid"] == str(added)
    assert (read["transport"], read["bytes"], read["complete"]) == ("direct", 4 * MIB + 20, True)
    assert (exported["format"], exported["requests"], exported["bytes"]) == ("car", 2, len(car) + size)


async def test_an_add_does_not_wait_for_the_server(node, http):
    """With nobody there, everything works, and closes at once."""
    async with asyncio.timeout(10), AsyncClient(node, http.server) as client:
        added = await client.add(b"hello", progress=False)
        assert await client.cat(added) == b"hello"


async def test_a_pin_that_the_server_makes(tmp_path, emitted):
    """A client's node that lacks a part has its server pin it, which tells of that; the client tells nothing."""
    far = await EmbeddedNode.open(tmp_path / "far", min_free=0)
    here = Recorder()
    store = BlockStore.open(tmp_path / "near", min_free=0)
    async with DirectNode(store, far) as near:  # a server's node in place of the way to it
        added = await far.add(pieces(b"hello"), pin=False)
        own = await near.add(pieces(b"own"), pin=False)
        near.observers.append(ContentEvents(here).observe)
        far.observers.append(ContentEvents(emitted).observe)
        await near.pin(added.cid)
        assert here.told == []
        assert [told.kind for told in emitted.told] == ["pin_added", "pin_status_changed"]
        await near.pin(own.cid)
    assert [told.kind for told in here.told] == ["pin_added", "pin_status_changed"]
    assert len(emitted.told) == 2
