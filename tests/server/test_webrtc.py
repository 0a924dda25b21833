"""WebRTC at a real Jupyter server: signaling, WHEP, rights, limits, events, and what is left behind."""

from __future__ import annotations

import asyncio
import itertools
import json
from http import HTTPStatus

import pytest
from aiortc import RTCPeerConnection, RTCSessionDescription
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from ipfs_stream_nb import samples
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.security.access import AccessPolicy

SECONDS = 30
LOOPBACK = {"IPFSStreamExtension": {"allow_loopback_peers": True}}


@pytest.fixture
def server_config():
    """All of these peers are on this machine."""
    return LOOPBACK


@pytest.fixture(autouse=True)
def loopback(monkeypatch):
    """aioice leaves 127.0.0.1 out by itself."""
    monkeypatch.setattr("aioice.ice.get_host_addresses", lambda **_kwargs: ["127.0.0.1"])


@pytest.fixture
async def clip(server):
    """A short clip in the server's store."""
    data = samples.video(kind="webm", width=160, height=120, duration=4.0, frame_rate=25)
    return await server.add(data)


def dial(server):
    """A signaling socket."""
    return connect(
        f"ws://127.0.0.1:{server.port}/a%40b/ws/webrtc",
        additional_headers={"Authorization": f"token {server.token}"},
        proxy=None,
    )


async def hear(link, *kinds):
    """The next message of these types."""
    async with asyncio.timeout(SECONDS):
        while True:
            message = json.loads(await link.recv())
            if not kinds or message["type"] in kinds:
                return message


async def answered(link, offer):
    """A peer connection that has answered an offer."""
    peer = RTCPeerConnection()
    await peer.setRemoteDescription(RTCSessionDescription(offer["sdp"], "offer"))
    await peer.setLocalDescription(await peer.createAnswer())
    await link.send(
        json.dumps(
            {"type": "answer", "pc_id": offer["pc_id"], "sdp": peer.localDescription.sdp, "sdpType": "answer"}
        )
    )
    return peer


def track_of(peer, kind):
    """What comes of a kind."""
    return next(each.receiver.track for each in peer.getTransceivers() if each.receiver.track.kind == kind)


async def picture(track):
    """The next picture as an array."""
    async with asyncio.timeout(SECONDS):
        return (await track.recv()).to_ndarray(format="rgb24")


async def gone(server):
    """Wait until nothing is left of any peer."""
    async with asyncio.timeout(SECONDS):
        while server.context.peers.active:  # noqa: ASYNC110  # it has no event to await from outside
            await asyncio.sleep(0.02)


async def test_a_clip_plays(server, clip):
    """Offer, answer, pictures with their frame numbers in order; its events; and nothing is left at the end."""
    async with dial(server) as link:
        welcome = await hear(link, "welcome")
        assert welcome["message"] == "IPFS WebRTC signaling server connected"
        assert welcome["capabilities"] == ["video", "audio"]
        await link.send(json.dumps({"type": "offer_request", "cid": clip}))
        offer = await hear(link, "offer", "error")
        assert offer["sdpType"] == "offer", offer
        peer = await answered(link, offer)
        try:
            await hear(link, "connected")
            assert (await server.json("GET", "ipfs-stream/health"))["active"]["peer_connections"] == 1
            track = track_of(peer, "video")
            numbers = [samples.read_frame_number(await picture(track)) for _ in range(25)]
            assert all(0 <= second - first <= 2 for first, second in itertools.pairwise(numbers))
            await link.send(json.dumps({"type": "get_stats"}))
            stats = (await hear(link, "stats"))["connection_stats"][offer["pc_id"]]
            assert stats["transport"] == "packets"
            assert stats["frames_sent"] >= 20
            await link.send(json.dumps({"type": "close", "pc_id": offer["pc_id"]}))
            await hear(link, "closed")
        finally:
            await peer.close()
    await gone(server)
    manager = await server.context.feed.ready()
    async with asyncio.timeout(SECONDS):
        kinds: set[str] = set()
        while not {"webrtc_connection_established", "webrtc_connection_closed"} <= kinds:
            events = await manager.get_history(50, user={"id": "x", "permissions": {"webrtc": True}})
            kinds = {event["notification_type"] for event in events}
            await asyncio.sleep(0.02)
    assert {"webrtc_connection_created", "webrtc_stream_started", "webrtc_stream_ended"} <= kinds


async def test_a_whep_player(server, clip):
    """POST an offer, get an answer and a Location; pictures come; DELETE ends it."""
    peer = RTCPeerConnection()
    peer.addTransceiver("video", direction="recvonly")
    peer.addTransceiver("audio", direction="recvonly")
    await peer.setLocalDescription(await peer.createOffer())
    headers = {"Content-Type": "application/sdp"}
    async with server.request(
        "POST", f"whep/{clip}", data=peer.localDescription.sdp, headers=headers
    ) as answer:
        body = await answer.text()
        assert answer.status == HTTPStatus.CREATED, body
        assert answer.headers["Content-Type"] == "application/sdp"
        location = answer.headers["Location"]
    await peer.setRemoteDescription(RTCSessionDescription(body, "answer"))
    try:
        assert samples.read_frame_number(await picture(track_of(peer, "video"))) >= 0
    finally:
        where = location.removeprefix("/a%40b/")
        async with server.request(
            "PATCH",
            where,
            data="a=end-of-candidates\r\n",
            headers={"Content-Type": "application/trickle-ice-sdpfrag"},
        ) as answer:
            assert answer.status == HTTPStatus.NO_CONTENT, await answer.text()
        async with server.request("DELETE", where) as answer:
            assert answer.status == HTTPStatus.OK
        async with server.request("DELETE", where) as answer:
            assert answer.status == HTTPStatus.NOT_FOUND
        await peer.close()
    await gone(server)


async def test_what_is_no_media(server):
    """Text, a directory and absent content are refused with the reason, and the socket lives on."""
    text = await server.add(b"hello")
    async with dial(server) as link:
        await hear(link, "welcome")
        for cid, code in (
            (text, "unsupported_media"),
            ("nonsense", "bad_cid"),
            (str(CID.of(b"x")), "not_found"),
        ):
            await link.send(json.dumps({"type": "offer_request", "cid": cid}))
            assert (await hear(link, "error"))["code"] == code
        await link.send(json.dumps({"type": "ping"}))
        await hear(link, "pong")
    for cid, status in ((text, HTTPStatus.UNSUPPORTED_MEDIA_TYPE), ("nonsense", HTTPStatus.BAD_REQUEST)):
        async with server.request(
            "POST", f"whep/{cid}", data="v=0", headers={"Content-Type": "application/sdp"}
        ) as answer:
            assert answer.status in (status, HTTPStatus.BAD_REQUEST)
    async with server.request("POST", f"whep/{text}", data="{}") as answer:
        assert answer.status == HTTPStatus.UNSUPPORTED_MEDIA_TYPE


async def test_a_capability_token(server, clip):
    """A token for one content opens signaling for it alone, where the URL names it."""
    body = {"action": "read", "cid": clip}
    token = (await server.json("POST", "ipfs-stream/tokens", json=body))["token"]
    address = f"ws://127.0.0.1:{server.port}/a%40b/ws/webrtc?token={token}"
    for query in ("", f"&cid={CID.of(b'x')}", "&cid=nonsense"):
        with pytest.raises(InvalidStatus):
            async with connect(address + query, proxy=None):
                pass
    async with connect(f"{address}&cid={clip}", proxy=None) as link:
        await hear(link, "welcome")
        await link.send(json.dumps({"type": "offer_request", "cid": str(CID.of(b"x"))}))
        assert (await hear(link, "error"))["code"] == "unauthorized"
        await link.send(json.dumps({"type": "offer_request", "cid": clip}))
        await hear(link, "offer")
    await gone(server)


class Nothing(AccessPolicy):
    """May read nothing."""

    async def allows(self, user, action, cid):
        return cid is None


@pytest.mark.parametrize(
    "server_config",
    [{"IPFSStreamExtension": {"access_policy_class": Nothing}}],
)
async def test_rights(server):
    """The policy is asked about the content that a client names."""
    cid = str(CID.of(b"x"))
    async with dial(server) as link:
        await hear(link, "welcome")
        await link.send(json.dumps({"type": "offer_request", "cid": cid}))
        assert (await hear(link, "error"))["code"] == "unauthorized"
    async with server.request(
        "POST", f"whep/{cid}", data="v=0", headers={"Content-Type": "application/sdp"}
    ) as answer:
        assert answer.status == HTTPStatus.FORBIDDEN
