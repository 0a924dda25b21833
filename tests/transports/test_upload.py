"""Uploads, by a client written from the guide and by ones that misbehave, over two queues."""

from __future__ import annotations

import asyncio
import itertools
import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipfs_stream_nb.content import uploads
from ipfs_stream_nb.content.importer import PROFILES, import_bytes
from ipfs_stream_nb.transports import upload
from ipfs_stream_nb.transports.upload import UploadConversation, UploadLimits
from queue_connection import QueueConnection, talking

LIMITS = UploadLimits(max_size=64 << 20, idle_timeout=30)
METADATA = {"filename": "clip.bin"}
COMPLETE = {"type": "complete"}


def uploading(node, limits=LIMITS, room=0):
    """The conversation, beside the test."""
    link = QueueConnection(room)
    return talking(UploadConversation(link, node, limits).run(), link)


def frames_of(data, size):
    """It in frames."""
    return [data[at : at + size] for at in range(0, len(data), size)]


async def test_the_guides_sequence(node):
    """Metadata, frames without waiting for anything, an empty frame; `ready`, progress, and a result with `success`,
    `cid` and `size`; code 1000. The CID is that of `ipfs add`."""
    data = random.Random(1).randbytes(1_000_000)
    async with uploading(node) as link:
        link.say(METADATA, *frames_of(data, 65_536), b"")
        ready, *progress, result = await link.rest()
    assert ready == {"type": "ready", "upload_id": ready["upload_id"], "offset": 0}
    assert {message["type"] for message in progress} == {"progress"}
    assert progress[-1] == {
        "type": "progress",
        "upload_id": ready["upload_id"],
        "bytes_processed": len(data),
        "total_bytes": None,
        "percent": 100.0,
        "durable": len(data),
    }
    assert result.pop("timestamp") > 0
    assert result == {
        "type": "result",
        "success": True,
        "cid": str(import_bytes(data).root),
        "size": len(data),
        "dag_size": import_bytes(data).dag_size,
        "upload_id": ready["upload_id"],
    }
    assert link.closed == (1000, "")
    assert [(str(pin.cid), pin.name) for pin in await node.pins()] == [(result["cid"], "clip.bin")]


@pytest.mark.parametrize("profile", sorted(PROFILES))
async def test_all_that_can_be_said(node, profile):
    """A message of type metadata with everything in it, and `complete` at the end; without a pin, nothing is kept."""
    data = random.Random(1).randbytes(300_000)
    said = {
        "type": "metadata",
        "size": len(data),
        "mime_type": "video/mp4",
        "cid_profile": profile,
        "pin": False,
    }
    async with uploading(node) as link:
        link.say(METADATA | said, *frames_of(data, 300_000), COMPLETE)
        heard = await link.rest()
    assert heard[-1]["cid"] == str(import_bytes(data, profile).root)
    assert heard[-2]["percent"] == 100
    assert await node.pins() == []


@pytest.mark.parametrize("end", [b"", COMPLETE])
async def test_a_file_of_nothing(node, end):
    """No frames at all are the empty file."""
    async with uploading(node) as link:
        link.say({}, end)
        heard = await link.rest()
    assert heard[-1]["cid"] == str(import_bytes(b"").root)
    assert heard[-2]["percent"] == 100


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.integers(0, 3000),
    frames=st.lists(st.integers(1, 1000), min_size=1, max_size=20),
    cuts=st.lists(st.booleans(), max_size=20),
)
async def test_cut_anywhere(node, size, frames, cuts):
    """Whatever the frames, and wherever the connection is lost, a client that goes on from the offset of `ready` ends
    in the right CID, and no offset is below what was called durable."""
    data = random.Random(size).randbytes(size)
    told = {"size": size}
    durable = at = 0
    frames, cuts = itertools.cycle(frames), iter(cuts)
    while True:
        async with uploading(node) as link:
            link.say(METADATA | told)
            ready = await link.hear_type("ready")
            assert ready["offset"] >= durable
            at = ready["offset"]
            told = {"upload_id": ready["upload_id"]}
            cut = next(cuts, False)
            while at < size and not (cut and next(frames) % 3 == 0):
                frame = data[at : at + next(frames)]
                link.say(frame)
                at += len(frame)
            if cut:
                continue
            link.say(COMPLETE)
            heard = await link.rest()
        break
    assert heard[-1]["cid"] == str(import_bytes(data).root)
    assert heard[-1]["size"] == size


async def test_a_lost_connection_is_no_end(node):
    """Dropping the connection finishes nothing; what came is durable, and a new connection goes on behind it."""
    async with uploading(node) as link:
        link.say(METADATA, b"hello ")
        ready = await link.hear_type("ready")
        link.leave()
    assert await node.pins() == []
    async with uploading(node) as link:
        link.say({"upload_id": ready["upload_id"]}, b"world", b"")
        again, *_, result = await link.rest()
    assert again == ready | {"offset": 6}
    assert result["cid"] == str(import_bytes(b"hello world").root)
    assert [pin.name for pin in await node.pins()] == ["clip.bin"]


async def test_a_result_that_was_not_heard(node):
    """A client that lost the connection at the end resumes and gets the same result, without sending anything again."""
    async with uploading(node) as link:
        link.say(METADATA, b"hello", b"")
        heard = await link.rest()
    async with uploading(node) as link:
        link.say({"upload_id": heard[0]["upload_id"]}, b"more", COMPLETE)
        ready, error, *_, result = await link.rest()
    assert ready["offset"] == 5
    assert "finished" in error["error"]
    assert result | {"timestamp": 0} == heard[-1] | {"timestamp": 0}


async def test_leaving_after_complete_still_ends_it(node):
    """Once `complete` was said the file is finished, whether or not anybody hears of it."""
    async with uploading(node) as link:
        link.say(METADATA, b"hello", COMPLETE)
        ready = await link.hear_type("ready")
        link.leave()
    assert (await node.uploads.resume(ready["upload_id"])).finished is not None


async def test_taking_over_a_live_connection(node):
    """A second connection with the id has all that the first one sent; the first is told and closed."""
    async with uploading(node) as first, uploading(node) as second:
        first.say(METADATA, b"hello ")
        ready = await first.hear_type("ready")
        await first.hear_type("progress")  # so that it was taken
        second.say({"upload_id": ready["upload_id"]})
        assert (await second.hear_type("ready"))["offset"] == 6
        first.say(b"there")
        error = await first.hear_type("error")
        assert (error["code"], error["upload_id"]) == ("busy", ready["upload_id"])
        assert "another connection" in error["error"]
        second.say(b"world", COMPLETE)
        assert (await second.rest())[-1]["cid"] == str(import_bytes(b"hello world").root)


async def test_cancelling(node):
    """`cancel` leaves nothing, and its id is not found any more."""
    async with uploading(node) as link:
        link.say(METADATA, bytes(3 << 20), {"type": "cancel"})
        heard = await link.rest()
    ready, last = heard[0], heard[-1]
    assert (last["type"], last["upload_id"]) == ("cancelled", ready["upload_id"])
    assert link.closed[0] == 1000
    assert (await node.repo_stat()).blocks == 0
    assert await node.uploads.list() == []
    async with uploading(node) as link:
        link.say({"upload_id": ready["upload_id"]})
        (error,) = await link.rest()
    assert error["code"] == "not_found"
    assert link.closed[0] == 1008


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"frame first", "binary message of 11 bytes came where the metadata"),
        (b"", "binary message of 0 bytes"),
        ("nonsense", "not JSON"),
        ("[]", "JSON object"),
        ('{"filename":' * 5000, "not JSON"),
        (COMPLETE, "'complete' came where the metadata"),
        ({"type": ["metadata"]}, "a list came"),
        ({"size": -1}, "size is a whole number"),
        ({"size": "1"}, "size is a whole number"),
        ({"size": 1.0}, "size is a whole number"),
        ({"size": True}, "size is a whole number"),
        ({"filename": 5}, "filename is text"),
        ({"filename": "a" * 5000}, "filename has 5000 characters"),
        ({"filename": "a\nb"}, "control characters"),
        ({"filename": "\ud800"}, "surrogate"),
        ({"mime_type": "a" * 5000}, "mime_type"),
        ({"cid_profile": "nonsense"}, "nonsense"),
        ({"cid_profile": ["x"]}, "cid_profile is text"),
        ({"upload_id": 5}, "upload_id is text"),
        ({"upload_id": "xyz"}, "upload_id is the 32 hexadecimal digits"),
        ({"pin": "yes"}, "pin is true or false"),
    ],
)
async def test_what_is_wrong_before_the_metadata(node, message, words):
    """Each wrong beginning gets an error that says what is wrong; the connection lives on, and a right one is taken."""
    async with uploading(node) as link:
        link.say(message)
        error = await link.hear_type("error")
        assert error["code"] == "bad_request"
        assert words in error["error"]
        link.say(METADATA, b"hello", b"")
        assert (await link.rest())[-1]["cid"] == str(import_bytes(b"hello").root)
    assert len(await node.uploads.list()) == 1


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("hello", "not JSON"),
        ({"type": "metadata"}, "'metadata' is no message of an upload"),
        ({}, "'None' is no message"),
        ({"type": {}}, "a dict is no message"),
        ('{"type":' + "[" * 960 + "]" * 960 + "}", "message"),
    ],
)
async def test_text_where_binary_is_due(node, message, words):
    """Text that is neither `complete` nor `cancel` is answered with an error, and changes nothing."""
    async with uploading(node) as link:
        link.say(METADATA, b"hel", message, b"lo", b"")
        ready = await link.hear_type("ready")
        error = await link.hear_type("error")
        assert error["upload_id"] == ready["upload_id"]
        assert words in error["error"]
        assert (await link.rest())[-1]["cid"] == str(import_bytes(b"hello").root)


async def test_sizes_that_lie(node):
    """Ending before all is there is an error, and the rest is still taken; more than was declared is not taken, nor is
    the file finished without it: the client has another one than it said."""
    async with uploading(node) as link:
        link.say({"size": 5}, b"hel", b"")
        await link.hear_type("ready")
        error = await link.hear_type("error")
        assert "5 bytes were declared, and 3 came" in error["error"]
        link.say(b"lo", COMPLETE)
        assert (await link.rest())[-1]["cid"] == str(import_bytes(b"hello").root)
    async with uploading(node) as link:
        link.say({"size": 5}, b"hello", b"!", COMPLETE)
        ready = await link.hear_type("ready")
        for words in ("5 bytes were declared, and 6 came", "more bytes came"):
            assert words in (await link.hear_type("error"))["error"]
        link.say({"type": "cancel"})
        assert (await link.rest())[-1]["upload_id"] == ready["upload_id"]
    assert [one.result is not None for one in await node.uploads.list()] == [True]


async def test_too_large(node):
    """Over the limit an upload is refused with code 1009, declared or not, and leaves nothing."""
    limits = UploadLimits(max_size=1000, idle_timeout=30)
    for messages in ([{"size": 1001}], [{}, bytes(600), bytes(401)]):
        async with uploading(node, limits) as link:
            link.say(*messages)
            heard = await link.rest()
        assert heard[-1]["code"] == "too_large"
        assert "1000" in heard[-1]["error"]
        assert link.closed[0] == 1009
    assert await node.uploads.list() == []
    assert (await node.repo_stat()).blocks == 0
    async with uploading(node, limits) as link:
        link.say({"size": 1000}, bytes(1000), b"")
        assert (await link.rest())[-1]["success"] is True


async def test_too_many_unfinished(node, monkeypatch):
    """Over the store's limit it is busy, with code 1011."""
    monkeypatch.setattr(uploads, "MAX_UNFINISHED", 0)
    async with uploading(node) as link:
        link.say(METADATA)
        (error,) = await link.rest()
    assert error["code"] == "busy"
    assert link.closed[0] == 1011


async def test_a_client_that_never_writes(node):
    """Without a word for idle_timeout it is closed with the reason; before the metadata and after it."""
    limits = UploadLimits(max_size=1000, idle_timeout=0.05)
    for messages in ([], [METADATA], [METADATA, b"hello"]):
        async with uploading(node, limits) as link:
            link.say(*messages)
            heard = await link.rest()
        assert heard[-1]["code"] == "timeout"
        assert link.closed[0] == 1011
    again = await node.uploads.resume(heard[0]["upload_id"])
    assert again.durable == 5


async def test_a_pause_makes_it_durable(node, monkeypatch):
    """While no frame comes, what came is made durable, and said to be."""
    monkeypatch.setattr(upload, "IDLE_CHECKPOINT", 0.02)
    async with uploading(node) as link:
        link.say(METADATA, b"hello")
        while (told := await link.hear_type("ready", "progress")).get("durable") != 5:
            assert told["type"] == "ready" or told["durable"] == 0
        link.say(b"", b"")
        assert (await link.rest())[-1]["success"] is True


async def test_progress_is_seldom(node):
    """A thousand tiny frames do not get a thousand answers, and the last answer has all of them."""
    async with uploading(node) as link:
        link.say(METADATA, *[b"x"] * 1000, b"")
        loop = asyncio.get_running_loop()
        began = loop.time()
        _, *progress, result = await link.rest()
        assert len(progress) <= (loop.time() - began) / 0.1 + 3
    assert progress[-1]["bytes_processed"] == progress[-1]["durable"] == 1000
    assert result["cid"] == str(import_bytes(b"x" * 1000).root)


async def test_a_client_that_does_not_read(node):
    """One that sends without ever reading loses nothing as long as there is room for the few answers."""
    data = random.Random(2).randbytes(2 << 20)
    async with uploading(node, room=4) as link:
        link.say(METADATA, *frames_of(data, 1 << 20), b"")
        await asyncio.sleep(0.05)  # it reads nothing meanwhile
        assert (await link.rest())[-1]["cid"] == str(import_bytes(data).root)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=20),
            st.text(max_size=20),
            st.dictionaries(
                st.sampled_from(["type", "command", "size", "filename", "upload_id", "pin", "cid_profile"]),
                st.sampled_from(
                    ["complete", "cancel", "metadata", "", None, 0, 5, -1, [], {}, True, "ipfs-v1"]
                ),
            ).map(json.dumps),
        ),
        max_size=15,
    )
)
async def test_any_messages(node, messages):
    """Whatever is sent in whatever order, every answer is one of the protocol's, none is an internal error, and
    nothing stays open."""
    async with uploading(node) as link:
        link.say(*messages)
        link.say({"type": "cancel"})
        await asyncio.sleep(0)
        for _ in range(3):
            link.say({}, {"type": "cancel"})
        heard = await link.rest()
    assert link.failures == [] or all(hasattr(error, "code") for error in link.failures)
    for message in heard:
        assert message["type"] in {"ready", "progress", "result", "error", "cancelled"}
        assert message.get("code") != "internal"
    assert node.uploads._open == {}
