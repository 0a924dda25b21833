"""WebRTCStreamingManager against a second aiortc peer in this process."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from types import SimpleNamespace

import psutil
import pytest
from aiortc import RTCConfiguration, RTCIceTransportPolicy, RTCPeerConnection, RTCRtpReceiver
from aiortc.rtp import RTCP_PSFB_PLI, RtcpPsfbPacket, pack_remb_fci

from ipfs_stream_nb.clients.webrtc_frames import rtp_timestamp
from ipfs_stream_nb.errors import (
    BadRequestError,
    BusyError,
    CorruptContentError,
    NotFoundError,
    TooLargeError,
    UnsupportedMediaError,
)
from ipfs_stream_nb.media.encoded import Rendition
from ipfs_stream_nb.webrtc.adaptation import AdaptiveBitrateController
from ipfs_stream_nb.webrtc.ice import mend
from ipfs_stream_nb.webrtc.manager import WebRTCStreamingManager
from ipfs_stream_nb.webrtc.slots import PeerLimits, PeerSlots
from webrtc.packet_source import Sources, clip
from webrtc.viewer import Viewer, wait_until

LIMITS = PeerLimits(allow_loopback=True)
STATS = {
    "created_at", "state", "cid", "kind", "frame_rate", "quality", "ice_candidates_added", "streams_active",
    "bytes_sent", "frames_sent", "frames_dropped", "rtt", "packet_loss", "jitter", "bandwidth_estimate",
    "target_bitrate", "connection_quality_score", "buffer_health", "adaptation_changes", "last_quality_update",
    "transport",
}  # fmt: skip


@pytest.fixture(autouse=True)
def all_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stands still looks like a slow network. What follows from one other tests tell: pictures that are left out
    (test_playback), and another level (test_send_rate)."""
    monkeypatch.setattr("ipfs_stream_nb.webrtc.playback.LATE", 60.0)
    monkeypatch.setattr(AdaptiveBitrateController, "add_sample", lambda _controller, _stats: None)


class Told:
    """What the manager tells its viewer by itself."""

    def __init__(self) -> None:
        self.all: list[dict] = []
        self._news = asyncio.Event()

    def __call__(self, message: dict) -> None:
        self.all.append(message)
        self._news.set()

    async def until(self, kind: str, seconds: float = 10) -> dict:
        async with asyncio.timeout(seconds):
            while True:
                for message in self.all:
                    if message["type"] == kind:
                        return message
                self._news.clear()
                await self._news.wait()


async def settled(count: Callable[[], int]) -> int:
    """The count once it has stood for 0.3 s, and nothing is on its way; what never stops fails."""
    async with asyncio.timeout(10):
        stood = -1
        while stood != count():  # nothing tells of what does not come
            stood = count()
            await asyncio.sleep(0.3)
    return stood


@asynccontextmanager
async def managing(sources: Sources, **options):
    """A manager and its Told; at the end nothing is left."""
    before = asyncio.all_tasks()
    told, slots = Told(), options.pop("slots", PeerSlots())
    manager = WebRTCStreamingManager(
        object(), sources=sources, tell=told, slots=slots, **{"limits": LIMITS, **options}
    )
    try:
        yield manager, told
    finally:
        await manager.close_all_connections()
    assert slots.active == 0
    assert not manager.peer_connections
    assert not manager.tracks
    assert not manager.connection_stats
    assert sources.all_closed()
    async with asyncio.timeout(5):
        while left := asyncio.all_tasks() - before:
            await asyncio.wait(left)


@asynccontextmanager
async def watching(manager, cid="webm", **options):
    """A viewer who plays; the viewer and the pc_id."""
    viewer = Viewer()
    try:
        offer = await manager.create_offer(cid, **options)
        await manager.handle_answer(offer["pc_id"], await viewer.answer(offer["sdp"]))
        yield viewer, offer["pc_id"]
    finally:
        await viewer.close()


@pytest.mark.parametrize(("cid", "codec"), [("webm", "VP8"), ("mp4", "H264")])
async def test_plays(sources, events, cid, codec):
    """Pictures arrive in order and decode to the clip's own, with their sound, as packets of the negotiated codec, and the
    end is told."""
    async with (
        managing(sources, emit=events, owner="anna") as (manager, told),
        watching(manager, cid, start=0.0) as (viewer, pc_id),
    ):
        await viewer.until(lambda: 60 in viewer.numbers())
        numbers = viewer.numbers()
        assert numbers == list(range(len(numbers)))
        (sender, *_) = manager.peer_connections[pc_id].getSenders()
        assert sender.track is manager.tracks[pc_id][0]
        assert f"{codec}/90000" in manager.peer_connections[pc_id].localDescription.sdp
        (other,) = {"VP8", "H264"} - {codec}
        assert f"{other}/90000" not in manager.peer_connections[pc_id].localDescription.sdp
        assert (await told.until("ended")) == {"type": "ended", "pc_id": pc_id}
        stats = (await manager.get_stats())[pc_id]
        assert stats.keys() >= STATS
        assert stats["transport"] == "packets"
        assert stats["state"] == "connected"
        assert stats["frames_sent"] >= 90
        assert manager.connection_stats[pc_id] == stats
    kinds = ["video", "audio"] if cid == "webm" else ["video"]
    assert events.types() == [
        "webrtc_connection_created",
        "webrtc_connection_established",
        *["webrtc_stream_started"] * len(kinds),
        *["webrtc_stream_ended"] * len(kinds),
        "webrtc_connection_closed",
    ]
    assert all(options == {"source": "ipfs_stream_nb", "owner": "anna"} for _, _, options in events.all)
    assert sorted(one["kind"] for one in events.of("webrtc_stream_started")) == sorted(kinds)
    for ended in events.of("webrtc_stream_ended"):
        assert ended.keys() == {
            "pc_id", "cid", "kind", "track_id", "duration", "bytes_sent", "frames_sent", "state"
        }  # fmt: skip
        assert ended["state"] == "ended"
        assert 2.5 < ended["duration"] < 60  # seconds: 3.0 on an idle machine
    (closed,) = events.of("webrtc_connection_closed")
    assert closed["state"] == "closed"
    assert closed["bytes_sent"] == stats["bytes_sent"]


async def test_sync(sources):
    """A click of the sound arrives with the picture of its second: their RTP times are those of the file."""
    async with managing(sources) as (manager, _), watching(manager) as (viewer, _pc_id):
        await viewer.until(lambda: 45 in viewer.numbers() and len(viewer.sound) > 80)
        picture = next(pts for _, number, pts in viewer.pictures if number == 30) / 90_000
        click = next(pts for _, pts, loudest in viewer.sound if loudest > 0.3 and pts > 24_000) / 48_000
        assert click == pytest.approx(picture, abs=0.04)


async def test_seek_pause_resume(sources):
    """The picture of a position is decoded by the viewer soon after the seek, with those before it that it is built upon, which
    at their pace would take almost a second; a pause holds; the data channel tells."""
    sources.clips["long"] = clip("webm", 6.0, audio=False)  # of which no stop of the machine takes the rest
    async with managing(sources) as (manager, _), watching(manager, "long") as (viewer, pc_id):
        await viewer.until(lambda: 8 in viewer.numbers())
        delays = []
        for position in (0.9, 4.9, 0.9):
            count, asked = len(viewer.pictures), asyncio.get_running_loop().time()
            answer = manager.seek(pc_id, position)
            assert (answer["position"], answer["state"], answer["duration"]) == (position, "playing", 6.0)
            first, sought = int(position) * 30, round(position * 30)

            def arrives(first=first, sought=sought, count=count):
                numbers = viewer.numbers()[count:]  # behind what was on its way
                return first in numbers and sought in numbers[numbers.index(first) :]

            await viewer.until(arrives)
            numbers = viewer.numbers()[count:]
            begin = numbers.index(first)
            assert begin <= 120  # what was on its way, or waited while a machine stood still
            assert numbers[begin:][:28] == list(range(first, sought + 1))
            delays.append(viewer.pictures[count + begin + 27][0] - asked)
        assert min(delays) < 0.7  # 0.05 on an idle machine
        assert manager.pause(pc_id)["state"] == "paused"
        count = await settled(lambda: len(viewer.pictures))
        await viewer.until(
            lambda: any(one["type"] == "playback" and one["state"] == "paused" for one in viewer.messages)
        )
        assert manager.resume(pc_id)["state"] == "playing"
        await viewer.until(lambda: len(viewer.pictures) > count + 3)
        assert viewer.numbers()[count] - viewer.numbers()[count - 1] == 1
        pts = [one[2] for one in viewer.pictures]
        assert pts == sorted(set(pts))


async def test_data_channel(sources):
    """The channel tells the position four times a second, statistics once a second from real RTCP, and events."""
    async with managing(sources) as (manager, _), watching(manager, loop=True) as (viewer, pc_id):
        loop = asyncio.get_running_loop()
        await viewer.until(lambda: viewer.messages)
        began = loop.time()

        def positions():
            return [one["position"] for one in viewer.messages if one["type"] == "playback"]

        def rtcp_known():
            stats = [one["connection_stats"][pc_id] for one in viewer.messages if one["type"] == "stats"]
            return [one for one in stats if one["rtt"] is not None]

        stats = (await viewer.until(rtcp_known))[0]
        await viewer.until(lambda: len(positions()) > 8)
        assert len(positions()) <= (loop.time() - began) * 4 + 5
        assert statistics.median(b - a for a, b in pairwise(positions())) == pytest.approx(0.25, abs=0.1)
        assert 0 < stats["rtt"] < 10  # seconds, in which a machine may stand still
        assert 0 <= stats["packet_loss"] < 0.2
        assert 0 <= stats["jitter"] < 1
        assert 0 <= stats["connection_quality_score"] <= 100
        assert stats["buffer_health"] > 0
        manager.set_quality(pc_id, "very_low")
        (event,) = await viewer.until(
            lambda: [
                one for one in viewer.messages if one["type"] == "notification" and "previous" in one["data"]
            ]
        )
        assert event["notification_type"] == "webrtc_quality_changed"


async def test_late_pictures_by_rtcp(sources):
    """A viewer's PLI gets the pictures from the last keyframe on; its REMB limits the bandwidth."""
    sources.clips["long"] = clip("webm", 6.0, audio=False)
    async with managing(sources) as (manager, _), watching(manager, "long") as (viewer, pc_id):
        await viewer.until(lambda: 20 in viewer.numbers())
        (video, *_) = viewer.pc.getReceivers()
        assert isinstance(video, RTCRtpReceiver)
        sender = manager.peer_connections[pc_id].getSenders()[0]
        manager.pause(pc_id)
        count = await settled(lambda: len(viewer.pictures))
        last = int(manager.tracks[pc_id][0].playback.position) * 30  # 0, or where a slow machine is by now
        lost = RtcpPsfbPacket(fmt=RTCP_PSFB_PLI, ssrc=1, media_ssrc=sender._ssrc)
        estimate = RtcpPsfbPacket(fmt=15, ssrc=1, media_ssrc=0, fci=pack_remb_fci(600_000, [sender._ssrc]))
        await video._send_rtcp(lost)
        await video._send_rtcp(estimate)
        await viewer.until(lambda: last in viewer.numbers()[count:])
        manager.resume(pc_id)
        await viewer.until(lambda: viewer.numbers()[-1] >= last + 40)
        assert viewer.numbers()[count:].count(last) == 1
        async with asyncio.timeout(10):
            while (await manager.get_stats(pc_id))[pc_id]["bandwidth_estimate"] > 610_000:
                await asyncio.sleep(0.1)  # reports are looked at once a second
                await video._send_rtcp(estimate)  # aiortc sends some of its own


async def test_quality(sources, events):
    """A level asks the source for a rendition, never above it, and is told where it is another one."""
    async with managing(sources, emit=events) as (manager, _), watching(manager) as (_viewer, pc_id):
        assert manager.set_quality(pc_id, "very_high") == "very_high"  # the clip has 180 lines
        assert manager.set_quality(pc_id, "very_high") == "very_high"
        assert manager.tracks[pc_id][0].playback.renditions.wanted is None
        info = sources.opened[0].info
        object.__setattr__(info.video, "height", 720)
        try:
            manager.set_quality(pc_id, "medium")
            assert manager.tracks[pc_id][0].playback.renditions.wanted == Rendition(480, 1_000_000)
            stats = (await manager.get_stats(pc_id))[pc_id]
            assert (stats["transport"], stats["target_bitrate"]) == ("transcode", 1_000_000)
            manager.set_quality(pc_id, "auto")
        finally:
            object.__setattr__(info.video, "height", 180)
        with pytest.raises(BadRequestError, match="very_low"):
            manager.set_quality(pc_id, "best")
    changes = [(one["previous"], one["quality"]) for one in events.of("webrtc_quality_changed")]
    assert changes == [("auto", "very_high"), ("very_high", "medium"), ("medium", "auto")]
    assert events.of("webrtc_quality_changed")[1] == {
        "pc_id": pc_id, "cid": "webm", "quality": "medium", "previous": "very_high", "height": 480,
        "bitrate": 1_000_000, "reason": "set",
    }  # fmt: skip


async def test_kinds(sources):
    """Video brings its sound unless it is unwanted; audio comes alone; what is not there is refused."""
    async with managing(sources) as (manager, _):
        for kind, audio, expected in (
            ("video", True, ["video", "audio"]),
            ("video", False, ["video"]),
            ("audio", True, ["audio"]),
        ):
            offer = await manager.create_offer("webm", kind=kind, audio=audio)
            assert [one["kind"] for one in offer["tracks"]] == expected
            assert [line[2:7] for line in offer["sdp"].splitlines() if line.startswith("m=")] == [
                *expected,
                "appli",
            ]
        with pytest.raises(UnsupportedMediaError, match="no audio; it has video"):
            await manager.create_offer("silent", kind="audio")
        with pytest.raises(NotFoundError):
            await manager.create_offer("missing")


async def test_renegotiation(sources, events):
    """Sound of the same content joins in sync, other content beside it; a track that is taken away stops, the rest plays."""
    async with (
        managing(sources, emit=events) as (manager, _),
        watching(manager, audio=False, loop=True) as (viewer, pc_id),
    ):
        await viewer.until(lambda: 5 in viewer.numbers())
        offer = await manager.add_content_track(pc_id, "webm", "audio")
        with pytest.raises(BusyError, match="waits for its answer"):
            await manager.add_content_track(pc_id, "mp4")
        await manager.handle_answer(pc_id, await viewer.answer(offer["sdp"]))
        await viewer.until(lambda: len(viewer.sound) > 10)
        assert len(sources.opened) == 1
        second = await manager.add_content_track(pc_id, "mp4")
        await manager.handle_answer(pc_id, await viewer.answer(second["sdp"]))
        await wait_until(lambda: len(viewer.tracks) == 3)
        assert len(manager.tracks[pc_id]) == 3
        third = await manager.remove_track(pc_id, offer["track_id"])
        await manager.handle_answer(pc_id, await viewer.answer(third["sdp"]))
        sounds = await settled(lambda: len(viewer.sound))
        count = len(viewer.pictures)
        await viewer.until(lambda: len(viewer.pictures) > count + 10)
        assert len(viewer.sound) == sounds
        removed = events.of("webrtc_stream_ended")
        assert [(one["track_id"], one["state"]) for one in removed] == [(offer["track_id"], "removed")]
        with pytest.raises(NotFoundError):
            await manager.remove_track(pc_id, offer["track_id"])
        fourth = await manager.remove_track(pc_id, second["track_id"])
        await manager.handle_answer(pc_id, await viewer.answer(fourth["sdp"]))
        assert sources.opened[1].closed
        for _ in range(LIMITS.max_tracks - 3):
            added = await manager.add_content_track(pc_id, "mp4")
            await manager.handle_answer(pc_id, await viewer.answer(added["sdp"]))
        with pytest.raises(TooLargeError, match="tracks"):
            await manager.add_content_track(pc_id, "mp4")


async def test_failing_content(sources, events):
    """Content that breaks in the middle is told once, and its peer is closed as failed."""
    sources.clips["long"] = clip("webm", 6.0)
    async with managing(sources, emit=events) as (manager, told):
        async with watching(manager, "long") as (viewer, pc_id):
            await viewer.until(lambda: 20 in viewer.numbers())
            sources.opened[0].failure = CorruptContentError("a block does not hash to its CID")
            error = await told.until("error")
            assert (error["code"], error["pc_id"]) == ("corrupt_content", pc_id)
            await wait_until(lambda: not manager.peer_connections)
        assert len([one for one in told.all if one["type"] == "error"]) == 1
    (event,) = events.of("webrtc_error")
    assert event == {
        "pc_id": pc_id, "cid": "long", "error": "playback failed", "error_text": "a block does not hash to its CID",
        "error_code": "corrupt_content",
    }  # fmt: skip
    assert {one["state"] for one in events.of("webrtc_stream_ended")} == {"failed"}
    (closed,) = events.of("webrtc_connection_closed")
    assert closed["state"] == "failed"


async def test_no_common_codec(sources, events):
    """An answer without our codec is refused, and the peer closed."""
    async with managing(sources, emit=events) as (manager, _):
        viewer = Viewer()
        offer = await manager.create_offer("mp4")
        answer = await viewer.answer(offer["sdp"])
        with pytest.raises(UnsupportedMediaError, match="no common codec"):
            await manager.handle_answer(offer["pc_id"], answer.replace("H264/90000", "VP9/90000"))
        assert not manager.peer_connections
        await viewer.close()
    assert events.of("webrtc_error")[0]["error_code"] == "unsupported_media"
    assert events.of("webrtc_connection_closed")[0]["state"] == "failed"


async def test_bad_answers(sources):
    """Malformed answers, those for nobody's peer, and second ones are clear errors; the right one still works."""
    async with managing(sources) as (manager, _):
        viewer = Viewer()
        offer = await manager.create_offer("webm")
        answer, pc_id = await viewer.answer(offer["sdp"]), offer["pc_id"]
        for wrong in (
            "",
            "hello",
            offer["sdp"],
            answer.replace("a=mid:1", "a=mid:9"),
            answer.split("m=audio")[0],
        ):
            with pytest.raises(BadRequestError):
                await manager.handle_answer(pc_id, wrong)
        with pytest.raises(BadRequestError, match="an answer was due"):
            await manager.handle_answer(pc_id, answer, "offer")
        with pytest.raises(NotFoundError):
            await manager.handle_answer("somebody else's", answer)
        await manager.handle_answer(pc_id, answer)
        with pytest.raises(BadRequestError, match="no offer waits"):
            await manager.handle_answer(pc_id, answer)
        await viewer.until(lambda: viewer.pictures)
        await viewer.close()


async def test_trickle(sources):
    """Candidates that come one by one, before the answer and after it, bring the connection up; forbidden ones are passed
    over, too many refused."""
    async with managing(sources) as (manager, _):
        viewer = Viewer()
        offer = await manager.create_offer("webm")
        pc_id = offer["pc_id"]
        assert offer["candidates"][0]["candidate"].startswith("candidate:")
        answer = await viewer.answer(offer["sdp"])
        lines = answer.splitlines()
        candidates = [line.removeprefix("a=") for line in lines if line.startswith("a=candidate")]
        bare = [line for line in lines if not line.startswith(("a=candidate", "a=end-of-candidates"))]
        await manager.handle_candidate(pc_id, candidates[0], "0", 0)
        await manager.handle_answer(pc_id, "\r\n".join(bare) + "\r\n")
        peer = manager.peer(pc_id)
        for address in ("224.0.0.1", "0.0.0.0", "example.com"):
            await manager.handle_candidate(pc_id, f"candidate:1 1 udp 1 {address} 9 typ host", "0", 0)
        assert peer.candidates.added == 1
        for wrong in (("candidate:1 1", "0", 0), (candidates[0], "7", 0), (candidates[0], None, 99)):
            with pytest.raises(BadRequestError):
                await manager.handle_candidate(pc_id, *wrong)
        name = "candidate:1 1 udp 1 0a1b2c3d-0000-4000-8000-000000000000.local 9 typ host"
        await manager.handle_candidate(pc_id, name, "0", 0)
        await manager.handle_candidate(pc_id, "", "0", 0)
        await manager.handle_candidate(pc_id, None)
        await viewer.until(lambda: viewer.pictures)
        with pytest.raises(TooLargeError):
            for port in range(1000, 1100):
                await manager.handle_candidate(
                    pc_id, f"candidate:1 1 udp 1 192.0.2.1 {port} typ host", "0", 0
                )
        await viewer.close()


async def test_limits(sources):
    """Peers are counted by user and in all, over several managers; 10,000 requests open nothing beyond that."""
    slots = PeerSlots(total=3, per_user=2)
    async with (
        managing(sources, slots=slots, user="anna") as (anna, _),
    ):
        other = WebRTCStreamingManager(object(), sources=sources, slots=slots, user="ben", limits=LIMITS)
        first = await anna.create_offer("webm")
        await anna.create_offer("webm")
        for _ in range(10_000):
            with pytest.raises(BusyError, match="you have 2"):
                await anna.create_offer("webm")
        assert len(sources.opened) == 2
        await other.create_offer("webm")
        with pytest.raises(BusyError, match="3 peer connections"):
            await other.create_offer("webm")
        await anna.close_peer_connection(first["pc_id"])
        await other.create_offer("webm")
        assert other.global_metrics()["peer_connections"] == 3
        await other.close_all_connections()
        await other.close_all_connections()
        with pytest.raises(BadRequestError, match="closed"):
            await other.create_offer("webm")
        with pytest.raises(NotFoundError):
            await anna.close_peer_connection(first["pc_id"])


async def test_nobody_answers(sources, events):
    """A peer whose viewer does not connect in time is closed as failed, and says so."""
    limits = PeerLimits(connect_seconds=0.2, allow_loopback=True)
    async with managing(sources, emit=events, limits=limits) as (manager, told):
        offer = await manager.create_offer("webm")
        error = await told.until("error")
        assert (error["code"], error["pc_id"]) == ("timeout", offer["pc_id"])
        await wait_until(lambda: not manager.peer_connections)
    assert events.types() == [
        "webrtc_connection_created",
        "webrtc_error",
        "webrtc_connection_closed",
    ]


def without_candidates(sdp: str) -> str:
    """A description by whose maker nobody can be reached."""
    left = [line for line in sdp.splitlines() if not line.startswith(("a=candidate", "a=end-of"))]
    return "\r\n".join(left) + "\r\n"


@pytest.mark.parametrize("relay", [True, False])
async def test_relay_only_retry(sources, monkeypatch, relay):
    """Where no direct way is found and there is a relay, the same is offered once more over that alone; without one, not."""
    monkeypatch.setattr("ipfs_stream_nb.webrtc.gathering.RELAY_SECONDS", 0.3)
    turn = [{"urls": "turn:127.0.0.1:9?transport=udp", "username": "a", "credential": "b"}]
    viewer = Viewer()
    async with managing(sources, ice_servers=turn if relay else None) as (manager, told):
        offer = await manager.create_offer("webm")
        answer = without_candidates(await viewer.answer(without_candidates(offer["sdp"])))
        await manager.handle_answer(offer["pc_id"], answer)
        manager.peer(
            offer["pc_id"]
        )._too_late()  # as a timer does, which is not to run while the machine stands still
        await told.until("error")
        if relay:
            again = await told.until("offer")
            assert again["replaces"] == offer["pc_id"] != again["pc_id"]
            assert again["ice_servers"] == manager.ice_servers
            assert manager.peer(again["pc_id"]).policy is RTCIceTransportPolicy.RELAY
            assert "typ host" not in again["sdp"]
            manager.peer(again["pc_id"])._too_late()
        await wait_until(lambda: not manager.peer_connections)
        await asyncio.sleep(0.3)  # none comes after that
        assert not manager.peer_connections
        assert len([one for one in told.all if one["type"] == "offer"]) == relay
        await viewer.close()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers are waited for for longer than a machine stands still."""
    for name in ("GATHER_SECONDS", "RELAY_SECONDS"):
        monkeypatch.setattr(f"ipfs_stream_nb.webrtc.gathering.{name}", 60.0)


async def test_dead_servers_do_not_hold_up(sources, patient):
    """Without configured servers none is asked; a dead STUN server does not hold an offer up."""
    async with managing(sources) as (manager, _):
        peer = manager.peer((await manager.create_offer("webm"))["pc_id"])
        gatherer = peer.pc.getTransceivers()[0].receiver.transport.transport.iceGatherer
        assert gatherer._connection.stun_server is None
    async with managing(sources, ice_servers=[{"urls": "stun:192.0.2.1:3478"}]) as (manager, _):
        async with asyncio.timeout(20):
            await manager.create_offer("webm")


async def test_viewer_leaves(sources):
    """A viewer that closes its connection is noticed at once."""
    async with managing(sources) as (manager, _):
        async with watching(manager) as (viewer, _pc_id):
            await viewer.until(lambda: viewer.pictures)
        await wait_until(lambda: not manager.peer_connections)


async def test_closing_while_opening(sources):
    """Closing everything while content is still opened leaves nothing open."""
    sources.wait.clear()
    async with managing(sources) as (manager, _):
        making = asyncio.ensure_future(manager.create_offer("webm"))
        await asyncio.sleep(0.05)
        await manager.close_all_connections()
        sources.wait.set()
        with pytest.raises(BadRequestError):
            await making


async def test_cancelled_while_opening(sources):
    """A request that is cancelled gives its place back."""
    sources.wait.clear()
    async with managing(sources) as (manager, _):
        making = asyncio.ensure_future(manager.create_offer("webm"))
        await asyncio.sleep(0.05)
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making
        sources.wait.set()


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "smell"},
        {"frame_rate": -1},
        {"quality": "ultra"},
        {"start": -1},
        {"start": float("nan")},
        {"start": "0"},
    ],
)
async def test_bad_requests(sources, wrong):
    """What cannot be meant is refused before anything is opened."""
    async with managing(sources) as (manager, _):
        with pytest.raises(BadRequestError):
            await manager.create_offer("webm", **wrong)
        assert not sources.opened


async def test_many_viewers_come_and_go(sources):
    """Viewers that come, seek and leave leave nothing behind."""
    async with managing(sources) as (manager, _):
        for round_ in range(3):
            async with watching(manager, "mp4" if round_ % 2 else "webm") as (viewer, pc_id):
                await viewer.until(lambda v=viewer: v.pictures)
                manager.seek(pc_id, 2.0)
                await viewer.until(lambda v=viewer: max(v.numbers()) >= 60)
            await asyncio.sleep(0)


async def test_viewer_vanishes(sources, events, monkeypatch):
    """A viewer that goes without a word is noticed when it no longer consents, and its peer is closed as failed."""
    monkeypatch.setattr("aioice.ice.CONSENT_INTERVAL", 0.05)
    monkeypatch.setattr("aioice.stun.RETRY_RTO", 0.05)
    async with managing(sources, emit=events) as (manager, told), watching(manager) as (viewer, pc_id):
        await viewer.until(lambda: viewer.pictures)
        transport = viewer.pc.getTransceivers()[0].receiver.transport.transport
        for protocol in transport._connection._protocols:
            protocol.datagram_received = lambda *_args: None
        error = await told.until("error")
        assert (error["code"], error["pc_id"]) == ("retrieval_failed", pc_id)
        await wait_until(lambda: not manager.peer_connections)
    assert events.of("webrtc_error")[0]["error"] == "connection was lost"
    assert events.of("webrtc_connection_closed")[0]["state"] == "failed"


def open_sockets() -> int:
    """UDP sockets of this process."""
    return len(psutil.Process().net_connections("udp"))


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("how", ["closed", "cancelled"])
async def test_ended_while_gathering(sources, patient, how, seconds):
    """A peer that is closed, or whose request is cancelled, while a dead relay keeps its offer waiting leaves no socket open,
    and the end does not wait for the relay."""
    before = open_sockets()
    relay = {"urls": "turn:192.0.2.1:3478", "username": "a", "credential": "b"}
    async with managing(sources, ice_servers=[relay], ice_transport_policy="relay") as (manager, _):
        making = asyncio.ensure_future(manager.create_offer("webm"))
        await wait_until(lambda: open_sockets() > before)
        await asyncio.sleep(seconds)
        async with asyncio.timeout(20):  # a relay that never answers is asked for half a minute
            if how == "closed":
                await manager.close_all_connections()
                assert open_sockets() == before
            else:
                making.cancel()
            with pytest.raises(BadRequestError if how == "closed" else asyncio.CancelledError):
                await making
    assert open_sockets() == before


async def test_closed_at_any_step_of_gathering(monkeypatch):
    """However few steps of the loop a mended connection has had to open its sockets, none is left when it is closed."""
    monkeypatch.setattr("aioice.ice.get_host_addresses", lambda **_kwargs: ["127.0.0.1", "127.0.0.2"])
    before, seen = open_sockets(), set()
    for steps in range(16):
        pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        pc.addTransceiver("video")
        mend(pc)
        describing = asyncio.ensure_future(pc.setLocalDescription())
        for _ in range(steps):
            await asyncio.sleep(0)
        seen.add(open_sockets() - before)
        await pc.close()
        assert open_sockets() == before
        await asyncio.wait([describing])
        describing.exception()  # where it was not done
        assert open_sockets() == before
    assert seen >= {0, 2}


async def test_closed_while_connecting(sources):
    """A peer that is closed at any moment of its connecting leaves no task and no socket."""
    before = open_sockets()
    for step in range(25):
        async with managing(sources) as (manager, _):
            viewer = Viewer()
            try:
                offer = await manager.create_offer("webm")
                await manager.handle_answer(offer["pc_id"], await viewer.answer(offer["sdp"]))
                for _ in range(step * 4):
                    await asyncio.sleep(0)
                await asyncio.sleep(0.004 * step)
                await manager.close_peer_connection(offer["pc_id"])
            finally:
                await viewer.close()
    assert open_sockets() == before


async def test_timestamps_tell_what_every_picture_shows(sources):
    """Whatever is sought, each picture's place follows from the marks, those only for the decoder have none, and marks are few;
    they come though the channel opens after the first packets."""
    sources.clips["short"] = clip("webm", audio=False, gop=20)
    async with managing(sources) as (manager, _), watching(manager, "short", start=0.3) as (viewer, pc_id):
        await viewer.until(lambda: viewer.numbers()[-1:] > [15])
        for place in (2.5, 1.1):
            count = len(viewer.pictures)
            manager.seek(pc_id, place)
            frame = round(place * 30)
            await viewer.until(
                lambda n=frame, c=count: n in viewer.numbers()[c:] and viewer.numbers()[-1] >= n + 5
            )
        marks = [one for one in viewer.messages if one["type"] == "timestamps"]
        (receiver,) = viewer.pc.getReceivers()
        pictures = [
            (number, rtp_timestamp(receiver, SimpleNamespace(pts=pts))) for _, number, pts in viewer.pictures
        ]
    assert {one["kind"] for one in marks} == {"video"}
    assert len(marks) < 12
    shown = []
    for number, timestamp in pictures:
        since = [(timestamp - one["rtp_timestamp"] + (1 << 31)) % (1 << 32) - (1 << 31) for one in marks]
        mark, ticks = [(one, ticks) for one, ticks in zip(marks, since, strict=True) if ticks >= 0][-1]
        if mark["time"] is not None:
            shown.append(number)
            assert mark["time"] + ticks / 90_000 == pytest.approx(number / 30, abs=0.004)
    jumps = [after for before, after in pairwise(shown) if abs(after - before) > 5]
    assert (shown[0], jumps) == (9, [75, 33])
