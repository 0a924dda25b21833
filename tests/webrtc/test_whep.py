"""WHEP with an aiortc peer as the player."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
from aiortc import RTCSessionDescription

from ipfs_stream_nb.errors import (
    BadRequestError,
    BusyError,
    NotFoundError,
    UnsupportedMediaError,
)
from ipfs_stream_nb.webrtc.sdp import candidates_of
from ipfs_stream_nb.webrtc.slots import PeerLimits, PeerSlots
from ipfs_stream_nb.webrtc.whep import RestartError, WhepSessions
from webrtc.packet_source import Sources
from webrtc.viewer import Viewer


@asynccontextmanager
async def serving(sources: Sources, **options):
    before, slots = asyncio.all_tasks(), options.setdefault("slots", PeerSlots())
    options.setdefault("limits", PeerLimits(allow_loopback=True))
    sessions = WhepSessions(object(), sources=sources, **options)
    try:
        yield sessions
    finally:
        await sessions.close()
    assert slots.active == 0
    async with asyncio.timeout(5):
        while left := asyncio.all_tasks() - before:
            await asyncio.wait(left)


async def offer(viewer: Viewer, *kinds: str, channel: bool = False) -> str:
    for kind in kinds or ("video", "audio"):
        viewer.pc.addTransceiver(kind, "recvonly")
    if channel:
        viewer.pc.createDataChannel("x")
    await viewer.pc.setLocalDescription()
    return viewer.pc.localDescription.sdp


@pytest.fixture
async def viewer():
    made = Viewer()
    yield made
    await made.close()


@pytest.mark.parametrize(
    ("cid", "kinds", "channel"),
    [
        ("webm", ("video", "audio"), False),
        ("webm", ("audio", "video"), True),
        ("mp4", ("video", "audio"), False),
    ],
)
async def test_plays(sources, events, viewer, cid, kinds, channel):  # noqa: PLR0917  # what it is run with
    """A player's offer is answered with what the content has of it, in any order; pictures come, DELETE ends it."""
    async with serving(sources, emit=events, ice_servers=[{"urls": "stun:192.0.2.1"}]) as sessions:
        answer = await sessions.post(
            cid, await offer(viewer, *kinds, channel=channel), owner="anna", start=1.0
        )
        assert answer.status == 201
        assert answer.headers["Content-Type"] == "application/sdp"
        assert answer.headers["Link"] == ['<stun:192.0.2.1>; rel="ice-server"']
        await viewer.pc.setRemoteDescription(RTCSessionDescription(answer.body, "answer"))
        await viewer.until(lambda: 40 in viewer.numbers())
        if cid == "webm":
            await viewer.until(lambda: len(viewer.sound) > 5)
        if channel:
            await viewer.until(lambda: viewer.messages)
        assert events.all[0][2]["owner"] == "anna"
        with pytest.raises(NotFoundError):
            await sessions.delete(answer.session, cid=cid, user="somebody else")
        with pytest.raises(NotFoundError):
            await sessions.delete(answer.session, cid="silent")  # whose reader has no rights on this one
        assert (await sessions.delete(answer.session, cid=cid)).status == 200
        with pytest.raises(NotFoundError):
            await sessions.delete(answer.session, cid=cid)
    assert events.types()[-1] == "webrtc_connection_closed"
    assert sources.all_closed()


async def test_trickle(sources, viewer):
    """Candidates come by PATCH; an ICE restart is refused as the standard says."""
    async with serving(sources) as sessions:
        sdp = await offer(viewer)
        candidates = [one["candidate"] for one in candidates_of(viewer.pc.localDescription)]
        bare = [
            line for line in sdp.splitlines() if not line.startswith(("a=candidate", "a=end-of-candidates"))
        ]
        answer = await sessions.post("webm", "\r\n".join(bare) + "\r\n")
        await viewer.pc.setRemoteDescription(RTCSessionDescription(answer.body, "answer"))
        ufrag = next(line for line in bare if line.startswith("a=ice-ufrag"))
        lines = [ufrag, "m=video 9 UDP/TLS/RTP/SAVPF 0", "a=mid:0", *(f"a={one}" for one in candidates)]
        patched = await sessions.patch(
            answer.session, "\r\n".join([*lines, "a=end-of-candidates", ""]), cid="webm"
        )
        assert patched.status == 204
        await viewer.until(lambda: viewer.pictures)
        with pytest.raises(RestartError) as caught:
            await sessions.patch(answer.session, "a=ice-ufrag:another\r\na=ice-pwd:x\r\n", cid="webm")
        assert caught.value.status == 422
        with pytest.raises(BadRequestError):
            await sessions.patch(answer.session, "a=candidate:nonsense\r\n", cid="webm")
        with pytest.raises(NotFoundError):
            await sessions.patch("nobody's", "", cid="webm")


async def test_refusals(sources, viewer):
    """Offers that are none, have no common codec or receive nothing, unknown content and too many sessions: nothing stays."""
    async with serving(sources, slots=PeerSlots(1, 1)) as sessions:
        good = await offer(viewer, "video")
        for wrong, error in (
            ("hello", BadRequestError),
            (good.replace("a=recvonly", "a=sendonly"), BadRequestError),
            (good.replace("VP8/90000", "VP9/90000"), UnsupportedMediaError),
            (good.replace("m=video", "m=audio").replace("VP8/90000", "opus/48000/2"), UnsupportedMediaError),
        ):
            with pytest.raises(error):
                await sessions.post("silent", wrong)
        with pytest.raises(NotFoundError):
            await sessions.post("missing", good)
        assert not sessions._managers
        await sessions.post("silent", good)
        with pytest.raises(BusyError):
            await sessions.post("silent", good)
