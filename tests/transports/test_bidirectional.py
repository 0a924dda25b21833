"""Many transfers over one connection of two queues: none holds up another, and none outlives it."""

from __future__ import annotations

import asyncio
import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipfs_stream_nb.content import uploads
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.importer import import_bytes
from ipfs_stream_nb.errors import UnauthorizedError
from ipfs_stream_nb.security.access import Action
from ipfs_stream_nb.transports import bidirectional, upload
from ipfs_stream_nb.transports.bidirectional import (
    COMMANDS,
    WINDOW,
    BidirectionalConversation,
    BidirectionalLimits,
)
from ipfs_stream_nb.transports.transfer_ids import MAX_ID
from ipfs_stream_nb.transports.upload import UploadLimits
from queue_connection import QueueConnection, talking
from store_trees import stored_keys


def limits_of(**changed):
    """Limits for a test."""
    facts = {"max_transfers": 8, "stall_timeout": 10.0, "max_size": 64 << 20} | changed
    ours = UploadLimits(facts.pop("max_size"), facts["stall_timeout"])
    return BidirectionalLimits(ours, **facts)


async def allow(_action, _cid):
    """Everything."""


def conversing(node, limits=None, authorize=allow, room=0):
    """The conversation, beside the test."""
    link = QueueConnection(room)
    return talking(BidirectionalConversation(link, node, limits or limits_of(), authorize).run(), link)


def frame(number, data):
    """A binary message of a transfer."""
    return number.to_bytes(4, "big") + data


async def collect(link, count):
    """Read and give credit until so many transfers have ended: their messages by id, and the order of all ids."""
    messages, order = {}, []
    ended = 0
    while ended < count:
        message = await link.hear()
        assert message is not None
        if isinstance(message, bytes):
            number, message = int.from_bytes(message[:4], "big"), message[4:]
            link.say({"command": "credit", "id": number, "bytes": len(message)})
        else:
            number = message.get("id")
            ended += message["type"] in {"complete", "result", "error", "cancelled", "pin_result"}
        order.append((number, message))
        messages.setdefault(number, []).append(message)
    return messages, order


def content(messages):
    """The bytes among them."""
    return b"".join(message for message in messages if isinstance(message, bytes))


async def test_older_clients_take_turns(node):
    """Without ids: welcome; add, bare frames and `complete` or an empty frame; get and bare frames; pin; close and
    goodbye, code 1000."""
    data = random.Random(1).randbytes(300_000)
    async with conversing(node) as link:
        welcome = await link.hear_type("welcome")
        assert welcome["supported_commands"] == list(COMMANDS)
        assert welcome["message"]
        for end in ({"command": "complete"}, {"type": "complete"}, {"command": "end"}, b""):
            link.say({"command": "add", "filename": "a.bin"}, data[:200_000], data[200_000:], end)
            ready = await link.hear_type("ready")
            assert (ready["offset"], "id" in ready, "credit" in ready) == (0, False, False)
            result = await link.hear_type("result")
            assert (result["success"], result["size"]) == (True, len(data))
            assert result["cid"] == str(import_bytes(data).root)
        link.say({"command": "get", "path": result["cid"]})
        metadata = await link.hear_type("metadata")
        assert (metadata["size"], "id" in metadata) == (len(data), False)
        got = b""
        while not isinstance(message := await link.hear(), dict):
            assert len(message) == 65_536 or len(got) + len(message) == len(data)
            got += message
        assert (got, message["type"], message["bytes_sent"]) == (data, "complete", len(data))
        link.say({"command": "pin", "cid": result["cid"]})
        assert (await link.hear_type("pin_result"))["cid"] == result["cid"]
        link.say({"command": "close"})
        (goodbye,) = await link.rest()
    assert goodbye["type"] == "goodbye"
    assert link.closed == (1000, "")


async def test_gets_and_adds_at_once(node, add):
    """Several gets and adds go on at the same time and interleaved, each with its own bytes in their order."""
    there = {number: random.Random(number).randbytes((2 << 20) + number) for number in range(3)}
    coming = {number: random.Random(number).randbytes((2 << 20) + number) for number in range(3, 6)}
    cids = {number: await add(data) for number, data in there.items()}
    async with conversing(node) as link:
        await link.hear_type("welcome")
        for number, cid in cids.items():
            link.say({"command": "get", "id": number, "cid": cid})
        for number, data in coming.items():
            link.say({"command": "add", "id": number, "size": len(data)})
        for at in range(0, max(map(len, coming.values())), 100_000):
            link.say(*(frame(number, data[at : at + 100_000]) for number, data in coming.items()))
        link.say(*({"command": "end", "id": number} for number in coming))
        messages, order = await collect(link, 6)
    for number, data in there.items():
        metadata, *rest = messages[number]
        assert (metadata["type"], metadata["credit"]) == ("metadata", WINDOW)
        assert content(rest) == data
        assert rest[-1]["bytes_sent"] == len(data)
    for number, data in coming.items():
        ready, *rest = messages[number]
        assert (ready["type"], ready["credit"]) == ("ready", WINDOW)
        assert rest[-1]["cid"] == str(import_bytes(data).root)
        assert sum(message["bytes"] for message in rest if message["type"] == "credit") <= len(data)
    ends = {number: max(at for at, (one, _) in enumerate(order) if one == number) for number in messages}
    starts = {number: min(at for at, (one, _) in enumerate(order) if one == number) for number in messages}
    assert max(starts.values()) < min(ends.values())


async def test_a_stalled_get_slows_nobody(node, large):
    """A get that gets no credit stops after its window; another get and an add go to their end meanwhile."""
    data, cid = large
    async with conversing(node) as link:
        await link.hear_type("welcome")
        link.say({"command": "get", "id": 1, "path": cid})
        got = 0
        while got < WINDOW:
            message = await link.hear()
            got += len(message) - 4 if isinstance(message, bytes) else 0
        assert got == WINDOW
        link.say({"command": "get", "id": 2, "path": cid}, {"command": "add", "id": 3})
        for at in range(0, len(data), 1 << 18):
            link.say(frame(3, data[at : at + (1 << 18)]))
        link.say({"command": "end", "id": 3})
        messages, _ = await collect(link, 2)
        assert content(messages[2]) == data
        assert messages[3][-1]["cid"] == cid
        assert not [message for message in messages.get(1, []) if isinstance(message, bytes)]
        link.say({"command": "credit", "id": 1, "bytes": len(data)})
        messages, _ = await collect(link, 1)
        assert content(messages[1]) == data[WINDOW:]


async def test_credit_is_kept_to(node, large):
    """However it is given, never more is sent than was allowed."""
    data, cid = large
    async with conversing(node) as link:
        await link.hear_type("welcome")
        link.say({"command": "get", "id": 1, "path": cid})
        allowed, got = WINDOW, 0
        chooser = random.Random(1)
        while got < len(data):
            message = await link.hear()
            if not isinstance(message, bytes):
                continue
            got += len(message) - 4
            assert got <= allowed
            if got == allowed:
                more = chooser.choice([0, 1, 5, 70_000, 900_000])
                allowed += more
                link.say({"command": "credit", "id": 1, "bytes": more})
                if not more:
                    await asyncio.sleep(0)
                    link.say({"command": "credit", "id": 1, "bytes": 200_000})
                    allowed += 200_000
        assert (await link.hear_type("complete"))["bytes_sent"] == len(data)


async def test_time_outs_of_single_transfers(node, large):
    """A get without credit and an add without bytes end with `timeout`, the connection and the others do not."""
    _, cid = large
    async with conversing(node, limits_of(stall_timeout=0.1)) as link:
        await link.hear_type("welcome")
        link.say({"command": "get", "id": 1, "path": cid}, {"command": "add", "id": 2})
        errors = {}
        while len(errors) < 2:
            message = await link.hear()
            if isinstance(message, dict) and message["type"] == "error":
                errors[message["id"]] = message
        assert {number: error["code"] for number, error in errors.items()} == {1: "timeout", 2: "timeout"}
        assert "credit" in errors[1]["error"]
        link.say({"command": "get", "id": 1, "path": cid, "length": 10})
        assert (await collect(link, 1))[0][1][-1]["bytes_sent"] == 10


@pytest.mark.parametrize("seconds", [60.0, 0.0])
async def test_an_add_that_drips(node, monkeypatch, seconds):
    """Bytes that come slowly are taken as they come: they count against the time-out, and pauses make them durable, unless writing
    has; both is told."""
    monkeypatch.setattr(uploads, "CHECKPOINT_SECONDS", seconds)
    monkeypatch.setattr(upload, "IDLE_CHECKPOINT", 0.02)
    async with conversing(node) as link:
        await link.hear_type("welcome")
        link.say({"command": "add", "id": 1})
        upload_id = (await link.hear_type("ready"))["upload_id"]
        for number in range(4):
            link.say(frame(1, b"drip"))
            while (await link.hear_type("progress"))["durable"] != 4 * (number + 1):
                pass
        link.leave()
    assert (await node.uploads.resume(upload_id)).durable == 16


async def test_adds_resume(node):
    """An add whose connection is lost is gone on with by its upload_id, over this or the other socket."""
    data = random.Random(1).randbytes(500_000)
    async with conversing(node) as link:
        await link.hear_type("welcome")
        link.say({"command": "add", "id": 9, "filename": "a.bin"}, frame(9, data[:300_000]))
        ready = await link.hear_type("ready")
        while (await link.hear_type("progress"))["bytes_processed"] < 300_000:
            pass
    async with conversing(node) as link:
        await link.hear_type("welcome")
        link.say({"command": "add", "id": 1, "upload_id": ready["upload_id"]})
        assert (await link.hear_type("ready"))["offset"] == 300_000
        link.say(frame(1, data[300_000:]), {"command": "end", "id": 1})
        assert (await link.hear_type("result"))["cid"] == str(import_bytes(data).root)
    assert [pin.name for pin in await node.pins()] == ["a.bin"]


@pytest.mark.parametrize("kind", ["get", "add"])
@pytest.mark.parametrize("when", ["at once", "in the middle", "twice"])
async def test_cancelling(node, large, kind, when):
    """A cancelled transfer answers `cancelled`, leaves nothing, and its id is free again; also where `cancel` comes
    right behind the command, or again."""
    _, cid = large
    before = stored_keys(node.store)
    async with conversing(node) as link:
        await link.hear_type("welcome")
        link.say({"command": kind, "id": 5, "path": cid})
        if when != "at once":
            await link.hear_type("metadata", "ready")
            if kind == "add":
                link.say(*(frame(5, random.Random(number).randbytes(1 << 20)) for number in range(3)))
        link.say(*[{"command": "cancel", "id": 5}] * (2 if when == "twice" else 1))
        messages, _ = await collect(link, 1)
        assert messages[5][-1]["type"] == "cancelled"
        link.say({"command": "get", "id": 5, "path": cid, "length": 3})
        messages, _ = await collect(link, 2 if when == "twice" and None in messages else 1)
        link.say({"command": "close"})
        assert (await link.rest())[-1]["type"] == "goodbye"
    assert await node.uploads.list() == []
    assert stored_keys(node.store) == before


async def test_cancel_and_leave(node):
    """A client that cancels and is gone at once leaves nothing either."""
    async with conversing(node) as link:
        await link.hear_type("welcome")
        link.say({"command": "add", "id": 5}, *(frame(5, bytes([number]) * (1 << 20)) for number in range(3)))
        await link.hear_type("ready")
        link.say({"command": "cancel", "id": 5})
        link.leave()
    assert node.uploads._open == {}
    await node.uploads.expire(-1)  # it may have found the client gone before it read of the cancelling
    assert await node.uploads.list() == []
    assert (await node.repo_stat()).blocks == 0


async def test_leaving_right_behind_a_command(node, large):
    """Commands whose client has gone before they began leave nothing running."""
    for command in ("get", "add", "pin"):
        async with conversing(node) as link:
            link.say({"command": command, "id": 1, "path": large[1]})
            link.leave()
    assert node.uploads._open == {}


async def test_closing_waits_for_what_can_end(node, large, monkeypatch):
    """`close` lets transfers end that need nothing more, and breaks off the others; an add can be resumed."""
    _, cid = large
    heard = {}
    # how long is waited matters to the add alone, which ends by that: a get may take its time on a busy machine
    for seconds, said in [
        (60, [{"command": "get", "id": 1, "path": cid, "length": 1000}]),
        (0.2, [{"command": "add", "id": 2}, frame(2, b"hello")]),
    ]:
        monkeypatch.setattr(bidirectional, "CLOSE_SECONDS", seconds)
        async with conversing(node) as link:
            link.say(*said, {"command": "close"})
            heard[said[0]["command"]] = [
                message["type"] for message in await link.rest() if isinstance(message, dict)
            ]
    assert heard["get"][-2:] == ["complete", "goodbye"]
    assert "result" not in heard["add"]
    assert heard["add"][-1] == "goodbye"
    (record,) = await node.uploads.list()
    assert (record.durable, record.result) == (5, None)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("nonsense", "not JSON"),
        ("[]", "JSON object"),
        ('{"command":' * 20_000, "characters"),
        ('{"command":' * 5_000, "not JSON"),
        ('{"command":' + "[" * 960 + "]" * 960 + "}", "is"),
        ({"command": "fly", "id": 3}, "'fly' is no command"),
        ({"id": 3}, "'None' is no command"),
        ({"command": ["get"], "id": 3}, "a list is no command"),
        ({"command": "get", "id": "3"}, "id is a whole number"),
        ({"command": "get", "id": -1}, "id is a whole number"),
        ({"command": "get", "id": MAX_ID + 1}, "4 bytes"),
        ({"command": "get", "id": 3}, "path or cid is missing"),
        ({"command": "get", "id": 3, "path": 5}, "path or cid is missing"),
        ({"command": "get", "id": 3, "path": "nonsense"}, "nonsense"),
        ({"command": "get", "id": 3, "path": "x" * 10_000}, "10000 characters"),
        ({"command": "get", "id": 3, "path": f"{CID.of(b'x')}/\ud800"}, "surrogate"),
        ({"command": "get", "id": 3, "path": "/ipns/example.org"}, "ipns"),
        ({"command": "pin", "id": 3, "cid": "nonsense"}, "nonsense"),
        ({"command": "cancel", "id": 3}, "no transfer 3"),
        ({"command": "cancel"}, "no transfer without an id"),
        ({"command": "end", "id": 3}, "no add 3"),
        ({"command": "end"}, "no add without an id"),
        ({"command": "credit", "id": 3}, "credit needs bytes"),
        ({"command": "credit", "id": 3, "bytes": -5}, "bytes is a whole number"),
        (frame(3, b"stray"), "no add 3 under way for the 5 bytes"),
        (frame(3, b""), "no add 3"),
        (b"", "4 bytes; this one has 0"),
        (b"abc", "4 bytes; this one has 3"),
    ],
)
async def test_what_is_wrong(node, large, message, words):
    """Each wrong message gets an error that says what is wrong, with the id where it names one; a get that is under way
    goes on, and the connection takes the next command."""
    data, cid = large
    async with conversing(node) as link:
        await link.hear_type("welcome")
        link.say({"command": "get", "id": 7, "path": cid}, message)
        named = (
            message[:4] == frame(3, b"") if isinstance(message, bytes) else '"id": 3' in json.dumps(message)
        )
        messages, _ = await collect(link, 2)
        (error,) = [one for one in messages[3 if named else None] if one["type"] == "error"]
        assert error["code"] in {"bad_request", "bad_cid", "too_large"}
        assert words in error["error"]
        assert content(messages[7]) == data
        link.say({"command": "get", "id": 3, "path": cid, "length": 1})
        assert (await collect(link, 1))[0][3][-1]["type"] == "complete"


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ({"command": "get", "path": str(import_bytes(b"not here").root)}, "not_found"),
        ({"command": "get", "offset": 1 << 40}, "bad_request"),
        ({"command": "get", "offset": -1}, "bad_request"),
        ({"command": "get", "length": "all"}, "bad_request"),
        ({"command": "add", "size": -1}, "bad_request"),
        ({"command": "add", "size": 1 << 40}, "too_large"),
        ({"command": "add", "cid_profile": "nonsense"}, "bad_request"),
        ({"command": "add", "upload_id": "ab" * 16}, "not_found"),
        ({"command": "add", "upload_id": {}}, "bad_request"),
        ({"command": "pin", "cid": str(import_bytes(b"not here").root)}, "not_found"),
    ],
)
@pytest.mark.parametrize("number", [4, None])
async def test_what_fails(node, large, command, code, number):
    """A transfer that cannot be done ends with its error, under its id or without one, and its id is free again."""
    named = {} if number is None else {"id": number}
    async with conversing(node) as link:
        await link.hear_type("welcome")
        link.say(({} if "cid" in command else {"path": large[1]}) | command | named)
        error = await link.hear_type("error")
        assert (error["code"], error.get("id")) == (code, number)
        link.say({"command": "get", "path": large[1], "length": 0} | named)
        assert (await link.hear_type("metadata"))["length"] == 0
        assert (await link.hear_type("complete")).get("id") == number
    assert await node.uploads.list() == []


async def test_ids_in_use(node, large):
    """An id is taken until its transfer has ended, also for another kind; the one that has it goes on."""
    data, cid = large
    async with conversing(node) as link:
        await link.hear_type("welcome")
        link.say({"command": "get", "id": 0, "path": cid}, {"command": "add", "id": 0})
        messages, _ = await collect(link, 1)
        assert "0 is in use" in messages[0][-1]["error"]
        messages, _ = await collect(link, 1)
        assert content(messages[0]).endswith(data[-1000:])
        link.say({"command": "get", "path": cid}, {"command": "get", "path": cid})
        while (message := await link.hear()) and (isinstance(message, bytes) or message["type"] != "error"):
            pass
        assert "without an id is in use" in message["error"]


async def test_too_many_transfers(node, large):
    """Over the limit the next is refused as busy, under its id."""
    async with conversing(node, limits_of(max_transfers=2)) as link:
        await link.hear_type("welcome")
        link.say(*({"command": "get", "id": number, "path": large[1]} for number in range(3)))
        while isinstance(message := await link.hear(), bytes) or message["type"] != "error":
            pass
        assert (message["id"], message["code"]) == (2, "busy")


@pytest.mark.parametrize("lie", ["longer", "shorter", "over the limit"])
async def test_sizes_that_lie(node, lie):
    """An add that is not as long as it said ends with an error; over the server's limit, nothing of it stays."""
    said = {"longer": {"size": 5}, "shorter": {"size": 7}, "over the limit": {}}[lie]
    limits = limits_of(max_size=5) if lie == "over the limit" else limits_of(max_size=10)
    async with conversing(node, limits) as link:
        await link.hear_type("welcome")
        link.say({"command": "add", "id": 1} | said, frame(1, b"123456"), {"command": "end", "id": 1})
        error = (await collect(link, 1))[0][1][-1]
        assert error["code"] == ("too_large" if lie == "over the limit" else "bad_request")
    assert len(await node.uploads.list()) == (0 if lie == "over the limit" else 1)


async def test_frames_for_an_add_that_has_failed(node):
    """What was on its way when an add failed is refused by its id, and is not taken for another transfer."""
    async with conversing(node, limits_of(max_size=5)) as link:
        await link.hear_type("welcome")
        link.say({"command": "add", "id": 1}, frame(1, b"123456"))
        assert (await collect(link, 1))[0][1][-1]["code"] == "too_large"
        link.say(frame(1, b"more"))
        error = await link.hear_type("error")
        assert (error["id"], error["code"]) == (1, "bad_request")
        link.say({"command": "add", "id": 1}, frame(1, b"123"), {"command": "end", "id": 1})
        assert (await link.hear_type("ready"))["id"] == 1
        assert (await link.hear_type("result"))["size"] == 3


async def test_every_command_is_asked_about(node, large):
    """The policy is asked about each command with its action and root; a refusal is that command's alone."""
    _, cid = large
    asked = []

    async def authorize(action, root):
        asked.append((action, root))
        if action is not Action.READ:
            raise UnauthorizedError(f"you may not {action}")

    async with conversing(node, authorize=authorize) as link:
        await link.hear_type("welcome")
        link.say({"command": "add", "id": 1}, {"command": "pin", "id": 2, "cid": cid}, frame(1, b"x"))
        for number, code in ((1, "unauthorized"), (2, "unauthorized"), (1, "bad_request")):
            error = await link.hear_type("error")
            assert (error["id"], error["code"]) == (number, code)
        link.say({"command": "get", "id": 1, "path": f"/ipfs/{cid}", "length": 1})
        assert (await collect(link, 1))[0][1][-1]["type"] == "complete"
    assert asked == [(Action.ADD, None), (Action.PIN, CID.parse(cid)), (Action.READ, CID.parse(cid))]


async def test_an_internal_error_is_one_transfer_s(node, large, monkeypatch):
    """A bug in one transfer is told as internal, and kept from the client; others go on."""
    data, cid = large

    async def broken(_root):
        raise RuntimeError("the house's secret")

    monkeypatch.setattr(node, "pin", broken)
    async with conversing(node) as link:
        await link.hear_type("welcome")
        link.say({"command": "get", "id": 1, "path": cid}, {"command": "pin", "id": 2, "cid": cid})
        messages, _ = await collect(link, 2)
        assert messages[2][-1]["code"] == "internal"
        assert "secret" not in messages[2][-1]["error"]
        assert content(messages[1]) == data
    assert [type(error) for error in link.failures] == [RuntimeError]


WORDS = st.sampled_from(
    [*COMMANDS, "complete", "fly", None, 0, 1, 2, -1, 1 << 33, 1 << 20, [], {}, "", str(CID.of(b"x"))]
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=6).map(lambda data: b"\0\0\0\1" + data),
            st.binary(max_size=8),
            st.dictionaries(
                st.sampled_from(
                    ["command", "type", "id", "cid", "path", "bytes", "size", "offset", "upload_id"]
                ),
                WORDS,
                min_size=1,
            ).map(json.dumps),
            st.sampled_from(
                [
                    json.dumps({"command": command} | extra)
                    for command in ("add", "end", "cancel", "credit", "get", "pin")
                    for extra in ({}, {"id": 1}, {"id": 1, "cid": str(CID.of(b"x"))})
                ]
            ),
        ),
        max_size=25,
    )
)
async def test_any_messages(node, messages):
    """Whatever is sent in whatever order, every answer is one of the protocol's, none is an internal error, and nothing
    stays open when the client has gone."""
    async with conversing(node) as link:
        link.say(*messages)
        await asyncio.sleep(0)
        link.say({"command": "close"})
        bidirectional.CLOSE_SECONDS, before = 0.05, bidirectional.CLOSE_SECONDS
        try:
            heard = await link.rest()
        finally:
            bidirectional.CLOSE_SECONDS = before
    for message in heard:
        if isinstance(message, dict):
            assert message["type"] in {
                *("welcome", "goodbye", "metadata", "ready", "progress", "complete", "result", "pin_result"),
                *("error", "cancelled", "credit"),
            }
            assert message.get("code") != "internal", message
    assert node.uploads._open == {}
