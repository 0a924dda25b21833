"""`WS /ws/webrtc` over queues, with an aiortc peer as the viewer."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager

import pytest

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.errors import UnauthorizedError
from ipfs_stream_nb.transports.connection import POLICY, ConnectionClosedError
from ipfs_stream_nb.webrtc.signaling import MAX_UNSENT, handle_webrtc_signaling
from ipfs_stream_nb.webrtc.slots import PeerLimits, PeerSlots
from queue_connection import QueueConnection, talking
from webrtc.packet_source import Sources
from webrtc.viewer import Viewer, wait_until

WEBM = "bafkreibme22gw2h7y2h7tg2fhqotaqjucnbc24deqo72b6mkl2egezxhvy"
MP4 = "bafkreifzjut3te7nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"
OTHER = "bafkreie7q3iidccmpvszul7kudcvvuavuo7u6gzlbobczuk5nqk3b4akba"
ICE = [{"urls": ["turn:turn.example.com:3478"], "username": "u", "credential": "p"}]


@asynccontextmanager
async def signaling(sources: Sources, **options):
    """A client that has heard the welcome."""
    clips = {
        WEBM: sources.clips["webm"],
        MP4: sources.clips["mp4"],
        f"{WEBM}/a/b.webm": sources.clips["webm"],
    }
    sources.clips = clips
    slots = options.setdefault("slots", PeerSlots())
    options.setdefault("limits", PeerLimits(allow_loopback=True))
    connection = options.pop("connection", None) or QueueConnection()
    async with talking(
        handle_webrtc_signaling(connection, object(), sources=sources, **options), connection
    ) as client:
        client.welcome = await client.hear()
        yield client
    assert slots.active == 0
    assert sources.all_closed()


async def hear(client: QueueConnection, *kinds: str) -> dict:
    """The next message of these types; candidates are passed over."""
    while True:
        message = await client.hear()
        if message["type"] in kinds:
            return message
        assert message["type"] == "candidate", message


async def play(client: QueueConnection, viewer: Viewer, **request) -> str:
    """Ask for content and connect; the pc_id."""
    client.say({"type": "offer_request", "cid": WEBM} | request)
    offer = await hear(client, "offer")
    client.say(
        {
            "type": "answer",
            "pc_id": offer["pc_id"],
            "sdp": await viewer.answer(offer["sdp"]),
            "sdpType": "answer",
        }
    )
    assert (await hear(client, "connected"))["pc_id"] == offer["pc_id"]
    return offer["pc_id"]


@pytest.fixture
async def viewer():
    made = Viewer()
    yield made
    await made.close()


async def test_welcome(sources):
    """The welcome is the guide's, and names the servers for the viewer's own side."""
    async with signaling(sources) as client:
        welcome = client.welcome
        assert len(welcome.pop("client_id")) == 36
        assert welcome == {
            "type": "welcome",
            "message": "IPFS WebRTC signaling server connected",
            "capabilities": ["video", "audio"],
            "notification_support": True,
            "ice_servers": [],
        }


async def test_guide_client(sources, viewer):
    """The guide's player: a cid alone, an offer and candidates after it, an answer, pictures, and the end."""
    async with signaling(sources) as client:
        client.say({"type": "offer_request", "cid": WEBM, "kind": "video", "frameRate": 30})
        offer = await client.hear()
        assert offer.keys() >= {"type", "pc_id", "sdp", "sdpType", "ice_servers"}
        assert offer["sdpType"] == "offer"
        candidate = await client.hear()
        assert candidate["type"] == "candidate"
        assert candidate["pc_id"] == offer["pc_id"]
        assert candidate["candidate"].startswith("candidate:")
        assert (candidate["sdpMid"], candidate["sdpMLineIndex"]) == ("0", 0)
        answer = await viewer.answer(offer["sdp"])
        client.say({"type": "answer", "pc_id": offer["pc_id"], "sdp": answer, "sdpType": "answer"})
        assert (await client.hear())["type"] == "connected"
        await viewer.until(lambda: viewer.numbers()[-1:] >= [30])
        ended = await client.hear()
        assert (ended["type"], ended["pc_id"]) == ("ended", offer["pc_id"])


async def test_control(sources, viewer):
    """seek, pause, resume, set_quality, get_stats, ping and close have the protocol's answers."""
    async with signaling(sources) as client:
        pc_id = await play(client, viewer, frame_rate=25, start=1.0, quality="high", loop=True)
        client.say({"type": "seek", "pc_id": pc_id, "position": 2.0})
        client.say({"type": "pause", "pc_id": pc_id}, {"type": "resume", "pc_id": pc_id})
        answers = [await client.hear() for _ in range(3)]
        assert [(one["type"], one["state"]) for one in answers] == [
            ("playback", "playing"),
            ("playback", "paused"),
            ("playback", "playing"),
        ]
        sought, stopped, goes_on = (one["position"] for one in answers)
        assert sought == 2.0 <= stopped == goes_on
        assert {one["duration"] for one in answers} == {3.014}
        client.say({"type": "set_quality", "pc_id": pc_id, "quality": "low"})
        answer = await client.hear()
        assert (answer["type"], answer["quality"], answer["success"]) == ("quality_result", "low", True)
        client.say({"type": "get_stats", "pc_id": pc_id, "include_global": True}, {"type": "get_stats"})
        one, everything = await client.hear(), await client.hear()
        assert one["connection_stats"][pc_id]["frame_rate"] == 25
        assert one["connection_stats"][pc_id]["quality"] == "low"
        assert one["global_metrics"]["peer_connections"] == 1
        assert "global_metrics" not in everything
        assert everything["connection_stats"].keys() == {pc_id}
        client.say({"type": "ping"}, {"type": "pong"}, {"action": "ping"})
        for _ in range(2):
            pong = await client.hear()
            assert (pong["type"], pong["timestamp"] > 0) == ("pong", True)
        client.say({"type": "close", "pc_id": pc_id}, {"type": "close"})
        assert (await client.hear())["type"] == "closed"
        assert (await client.hear())["type"] == "closed_all"


async def test_tracks(sources, viewer):
    """Tracks are added and removed by further offers on the same connection."""
    async with signaling(sources) as client:
        pc_id = await play(client, viewer, audio=False)
        client.say({"type": "add_track", "pc_id": pc_id, "cid": WEBM, "kind": "audio", "frameRate": 30})
        offer = await hear(client, "track_offer")
        assert (offer["pc_id"], offer["sdpType"]) == (pc_id, "offer")
        client.say(
            {"type": "answer", "pc_id": pc_id, "sdp": await viewer.answer(offer["sdp"]), "sdpType": "answer"}
        )
        await viewer.until(lambda: len(viewer.sound) > 5)
        client.say({"type": "remove_track", "pc_id": pc_id, "track_id": offer["track_id"]})
        offer = await hear(client, "track_offer")
        client.say(
            {"type": "answer", "pc_id": pc_id, "sdp": await viewer.answer(offer["sdp"]), "sdpType": "answer"}
        )
        client.say({"type": "ping"})
        assert (await client.hear())["type"] == "pong"


async def test_malformed(sources):
    """What is malformed gets an error that says what was wrong; the connection lives on."""
    wrong = [
        "no json",
        b"binary",
        "[]",
        '{"type": 5}',
        "{}",
        '{"type": "dance"}',
        '{"type": "offer_request"}',
        '{"type": "offer_request", "cid": 7}',
        '{"type": "offer_request", "cid": "not-a-cid"}',
        {"type": "offer_request", "cid": WEBM, "kind": "smell"},
        {"type": "offer_request", "cid": WEBM, "frameRate": "fast"},
        {"type": "offer_request", "cid": WEBM, "audio": "yes"},
        {"type": "offer_request", "cid": WEBM, "start": -5},
        {"type": "offer_request", "cid": WEBM, "quality": []},
        {"type": "answer", "sdp": "v=0"},
        {"type": "candidate", "pc_id": 5},
        {"type": "candidate", "pc_id": "x", "candidate": 5},
        {"type": "candidate", "pc_id": "x", "candidate": "c", "sdpMid": 5},
        {"type": "candidate", "pc_id": "x", "candidate": "c", "sdpMLineIndex": "0"},
        {"type": "get_stats", "include_global": 1},
        {"type": "seek", "pc_id": []},
    ]
    async with signaling(sources) as client:
        for message in wrong:
            client.say(message)
            error = await client.hear()
            assert error["type"] == "error", message
            assert error["code"] in {"bad_request", "bad_cid"}, message
            assert error["error"] == error["message"]
        client.say("x" * 100_000, {"type": "ping"})
        assert (await client.hear())["code"] == "too_large"
        assert (await client.hear())["type"] == "pong"
        assert not sources.opened


@pytest.mark.parametrize(
    "message",
    [
        {"type": "answer", "sdp": "v=0", "sdpType": "answer"},
        {"type": "candidate", "candidate": "", "sdpMid": "0"},
        {"type": "add_track", "cid": WEBM},
        {"type": "remove_track", "track_id": "x"},
        {"type": "set_quality", "quality": "low"},
        {"type": "seek", "position": 1},
        {"type": "pause"},
        {"type": "resume"},
        {"type": "get_stats"},
        {"type": "close"},
    ],
)
async def test_other_peoples_peers(sources, message):
    """A pc_id belongs to the socket that made it."""
    async with signaling(sources) as owner:
        owner.say({"type": "offer_request", "cid": WEBM})
        pc_id = (await hear(owner, "offer"))["pc_id"]
        other = QueueConnection()
        async with talking(handle_webrtc_signaling(other, object(), sources=sources), other) as client:
            await client.hear()
            client.say(message | {"pc_id": pc_id})
            error = await client.hear()
            assert (error["code"], error["pc_id"], error["request"]) == ("not_found", pc_id, message["type"])
        owner.say({"type": "seek", "pc_id": pc_id, "position": 1})
        assert (await hear(owner, "playback"))["position"] == 1


async def test_content_errors(sources):
    """Content that is not there, is no media for the kind, or may not be read: each its code, and nothing left open."""

    async def authorize(_action, root: CID) -> None:
        if str(root) == MP4:
            raise UnauthorizedError("you may not read this")

    async with signaling(sources, authorize=authorize) as client:
        for request, code in (
            ({"cid": OTHER}, "not_found"),
            ({"cid": MP4}, "unauthorized"),
            ({"cid": WEBM + "/c"}, "not_found"),
            ({"cid": WEBM + "/a/b.webm", "kind": "smell"}, "bad_request"),
        ):
            client.say({"type": "offer_request"} | request)
            assert (await client.hear())["code"] == code
        client.say({"type": "offer_request", "path": f"{WEBM}/a/b.webm"})
        assert (await hear(client, "offer"))["pc_id"]


async def test_internal_errors(sources):
    """An error of ours is told without its text, which goes to the log."""

    async def broken(_node, _path):
        raise RuntimeError("a secret")

    connection = QueueConnection()
    async with talking(handle_webrtc_signaling(connection, object(), sources=broken), connection) as client:
        await client.hear()
        client.say({"type": "offer_request", "cid": WEBM})
        error = await client.hear()
        assert error["code"] == "internal"
        assert "secret" not in json.dumps(error)
    assert isinstance(connection.failures[0], RuntimeError)


async def test_slow_content_holds_up_nothing(sources):
    """While content is opened the socket answers other messages; a flood of requests waits unread."""
    sources.wait.clear()
    async with signaling(sources) as client:
        client.say({"type": "offer_request", "cid": WEBM}, {"type": "ping"})
        assert (await client.hear())["type"] == "pong"
        for _ in range(200):
            client.say({"type": "offer_request", "cid": WEBM})

        def requests():
            return len([task for task in asyncio.all_tasks() if task.get_name() == "signaling request"])

        await wait_until(lambda: requests() == 4)
        await asyncio.sleep(0.05)
        assert requests() == 4
        sources.wait.set()
        kinds = []
        while len(kinds) < 201:
            message = await client.hear()
            if message["type"] in {"offer", "error"}:
                kinds.append(message.get("code", message["type"]))
        assert kinds.count("offer") == 16
        assert kinds.count("busy") == 185


async def test_unread_messages(sources):
    """A client that sends and never reads is closed before its answers pile up."""
    connection = QueueConnection(room=4)
    work = asyncio.ensure_future(handle_webrtc_signaling(connection, object(), sources=sources))
    connection.say(*[{"type": "ping"}] * (MAX_UNSENT + 20))
    await wait_until(lambda: connection.closed)
    assert connection.closed[0] == POLICY
    connection.leave()
    with pytest.raises(ConnectionClosedError):
        await work


async def test_viewer_vanishes(sources, events, viewer):
    """A socket that goes takes its peers with it, and each is told once."""
    async with signaling(sources, emit=events, owner="anna") as client:
        await play(client, viewer)
        await viewer.until(lambda: viewer.pictures)
        client.leave()
    assert events.types().count("webrtc_connection_closed") == 1
    assert {options["owner"] for _, _, options in events.all} == {"anna"}


async def test_ice_servers(sources):
    """Configured servers go to the client with the welcome and with each offer."""
    async with signaling(sources, ice_servers=ICE) as client:
        assert client.welcome["ice_servers"] == ICE
        client.say({"type": "offer_request", "cid": WEBM})
        assert (await hear(client, "offer"))["ice_servers"] == ICE
