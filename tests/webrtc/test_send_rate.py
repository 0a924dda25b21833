"""The rate that one peer is sent at: from what its receiver tells to what is encoded for it."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtp import RtcpPsfbPacket, RtcpRtpfbPacket, pack_remb_fci

from ipfs_stream_nb.webrtc.manager import WebRTCStreamingManager
from ipfs_stream_nb.webrtc.send_rate import OVERFLOW_SECONDS, QUEUE
from ipfs_stream_nb.webrtc.slots import PeerLimits
from ipfs_stream_nb.webrtc.tracks import BITRATE_SECONDS
from webrtc.packet_source import Sources, clip
from webrtc.viewer import Viewer, wait_until


class Heard:
    """The events that were emitted."""

    def __init__(self):
        self.changes = []

    def __call__(self, what, data, **_options):
        if what.value == "webrtc_quality_changed":
            self.changes.append(data)


@asynccontextmanager
async def watched(*, feedback: bool, **options):
    """A viewer of a clip in a loop: (viewer, manager, pc_id, events); with `feedback` it tells when packets came."""
    viewer, heard = Viewer(feedback=feedback), Heard()
    sources = Sources(webm=clip("webm"))
    manager = WebRTCStreamingManager(
        object(), sources=sources, limits=PeerLimits(allow_loopback=True), emit=heard
    )
    try:
        offer = await manager.create_offer("webm", loop=True, **options)
        await manager.handle_answer(offer["pc_id"], await viewer.answer(offer["sdp"]))
        await viewer.until(lambda: len(viewer.pictures) + len(viewer.sound) > 5)
        yield viewer, manager, offer["pc_id"], heard
    finally:
        await viewer.close()
        await manager.close_all_connections()
    assert sources.all_closed()


async def remb(viewer, manager, pc_id, bitrate):
    """Have the receiver say what it estimates."""
    sender = manager.peer_connections[pc_id].getSenders()[0]
    (video, *_) = viewer.pc.getReceivers()
    fci = pack_remb_fci(bitrate, [sender._ssrc])
    await video._send_rtcp(RtcpPsfbPacket(fmt=15, ssrc=1, media_ssrc=0, fci=fci))


async def test_the_receivers_estimate_leads_down():
    """A receiver without transport-wide feedback whose REMB is small gets a lower level, told with its reason; once."""
    async with watched(feedback=False) as (viewer, manager, pc_id, heard):
        source = manager.peer(pc_id).media.main.source
        await remb(viewer, manager, pc_id, 200_000)  # for the sound as well
        await wait_until(lambda: heard.changes)
        (change,) = heard.changes
        assert (change["quality"], change["previous"]) == ("very_low", "auto")
        assert change["reason"] in {"remb", "report"}  # both are looked at once a second
        assert change["pc_id"] == pc_id
        await wait_until(lambda: any(one[2] is not None for one in source.begun))
        stats = (await manager.get_stats(pc_id))[pc_id]
        assert stats["quality"] == "auto"
        assert stats["transport"] == "transcode"
        assert stats["adaptation_changes"] == 1
        assert stats["target_bitrate"] <= 200_000
        count = len(viewer.pictures)
        await viewer.until(lambda: len(viewer.pictures) > count + 10)


async def test_feedback_gives_an_estimate(monkeypatch):
    """With transport-wide feedback the estimate is of packets' arrivals, and a narrow REMB does not count."""
    async with watched(feedback=True) as (viewer, manager, pc_id, heard):
        peer, counted = manager.peer(pc_id), []
        rate, watch = peer._rate, next(iter(peer.media.tracks.values())).watch
        monkeypatch.setattr(rate.estimator, "on_remb", lambda *told: counted.append(told))
        await wait_until(lambda: rate.transport.feedback.taken > 5)
        assert rate.transport.negotiated
        await remb(viewer, manager, pc_id, 60_000)
        await wait_until(lambda: watch.rembs and rate.transport.feedback.taken > 30)
        assert counted == []
        stats = (await manager.get_stats(pc_id))[pc_id]
        assert stats["bandwidth_estimate"] > 0
        assert 0 < stats["rtt"] < 10
        assert [one for one in heard.changes if one["reason"] == "remb"] == []


async def test_watching_the_rate():
    """A viewer who asks gets `quality` messages as often, until he no longer does; what makes no sense is passed over."""
    async with watched(feedback=True) as (viewer, manager, pc_id, _):
        await viewer.until(lambda: viewer.messages)  # the channel is open
        for nonsense in ("", "{", "[]", '{"type": "watch"}', '{"type": "watch", "every": -1}', "[" * 900,
                         '{"type": "watch", "every": NaN}', '{"type": "watch", "every": 1%s}' % ("0" * 400), '{"type": "watch", "every": "x"}', "x" * 5000):  # fmt: skip
            viewer.channel.send(nonsense)
        viewer.channel.send(json.dumps({"type": "watch", "every": 1e9}))
        viewer.channel.send(json.dumps({"type": "watch", "every": 0.001}))

        def told():
            return [one for one in viewer.messages if one["type"] == "quality"]

        await viewer.until(lambda: len(told()) > 8)
        first, *_, last = told()
        assert last["time"] - first["time"] >= 0.08 * (len(told()) - 1)  # ten a second at the most
        assert first["level"] == "source"
        assert first["target_bitrate"] is None
        assert first["height"] == 180
        assert {
            "rtt",
            "jitter",
            "queue_delay",
            "packet_loss",
            "sent_bitrate",
            "position",
            "state",
        } <= first.keys()
        viewer.channel.send(json.dumps({"type": "watch", "every": 0}))
        await wait_until(lambda: not manager.peer(pc_id)._reporter._watched)

        async def more_positions():
            def positions():
                return len([one for one in viewer.messages if one["type"] == "playback"])

            before = positions()
            await viewer.until(lambda: positions() > before + 2)

        await more_positions()  # behind those that were on their way
        count = len(told())
        await more_positions()
        assert len(told()) == count


async def test_a_held_level():
    """One with all the source's lines is the source as it is while that is carried, and else encoded to what is."""
    async with watched(feedback=False, quality="low") as (viewer, manager, pc_id, heard):
        count = len(viewer.pictures)
        await viewer.until(lambda: len(viewer.pictures) > count + 30)
        stats = (await manager.get_stats(pc_id))[pc_id]
        assert (stats["quality"], stats["transport"]) == ("low", "packets")  # the clip has 180 lines
        assert heard.changes == []
        async with asyncio.timeout(10):
            while not heard.changes or stats["target_bitrate"] > 90_000:
                await remb(viewer, manager, pc_id, 90_000)  # aiortc sends some of its own in between
                await asyncio.sleep(0.1)
                stats = (await manager.get_stats(pc_id))[pc_id]
        assert (stats["quality"], stats["transport"]) == ("low", "transcode")


@pytest.mark.parametrize("kind", ["video", "audio"])
async def test_what_is_asked_for_once_more_is_bounded(kind):
    """Whatever a receiver says that it has lost, and with sound alone too, little more is sent for it."""
    async with watched(feedback=True, kind=kind) as (viewer, manager, pc_id, _):
        rate = manager.peer(pc_id)._rate
        sender = manager.peer_connections[pc_id].getSenders()[0]
        (receiver, *_) = viewer.pc.getReceivers()
        every = list(range(0, 65_536, 7)) * 3
        before = time.process_time()
        for _ in range(20):
            await sender._handle_rtcp_packet(
                RtcpRtpfbPacket(fmt=1, ssrc=1, media_ssrc=sender._ssrc, lost=every)
            )
        assert time.process_time() - before < 1  # not 28,000 looked for in each
        bitrate = rate.estimator.target
        assert rate.transport.stats.retransmitted * 1200 * 8 < bitrate
        assert receiver is not None


async def test_remb_that_is_cut_short():
    """It is passed over, and the connection goes on."""
    async with watched(feedback=False) as (viewer, manager, pc_id, _):
        sender = manager.peer_connections[pc_id].getSenders()[0]
        fci = bytearray(pack_remb_fci(90_000, [sender._ssrc]))
        fci[4] = 200  # sources that do not follow
        await sender._handle_rtcp_packet(RtcpPsfbPacket(fmt=15, ssrc=1, media_ssrc=0, fci=bytes(fci)))
        assert manager.peer(pc_id).media.tracks[sender.track.id].watch.rembs == 0
        count = len(viewer.pictures)
        await viewer.until(lambda: len(viewer.pictures) > count + 5)


async def test_the_data_channel_opens_on_a_path_that_loses(monkeypatch):
    """Where the first packets of it are lost, the channel opens a second later, not three."""
    sending, lost, timeouts = RTCDtlsTransport._send_data, [], []

    async def send(dtls, data):
        if dtls in lost:
            await sending(dtls, data)
        else:
            lost.append(dtls)
            timeouts.append(dtls._data_receiver._rto)  # seconds until it is sent again

    monkeypatch.setattr(RTCDtlsTransport, "_send_data", send)
    async with watched(feedback=True) as (viewer, *_):
        await viewer.until(lambda: viewer.messages)
    assert len(lost) == 2
    assert timeouts[0] == 1.0  # ours, who opens it


async def measurements(rate, monkeypatch):
    """When the content's bit rate was told to the controller of the one video, once it has been; grows. The source goes on, though
    a machine that stands still looks like a network that does not carry it."""
    ((_, controller),) = rate._videos
    monkeypatch.setattr(controller, "add_sample", lambda _stats: None)
    measured = []
    monkeypatch.setattr(controller, "measured", lambda bitrate: measured.append(time.monotonic()))
    await wait_until(lambda: measured)
    return measured


async def test_content_is_measured_where_all_of_it_goes_out(monkeypatch):
    """What is sent after frames were left out is less than the content takes, and says nothing for a second."""
    async with watched(feedback=True) as (_viewer, manager, pc_id, _):
        rate = manager.peer(pc_id)._rate
        ((sent, _),) = rate._videos
        measured = await measurements(rate, monkeypatch)
        left_out = time.monotonic()
        sent.track.playback.frames_dropped += 1
        measured.clear()
        await wait_until(lambda: measured)
        assert measured[0] - left_out > BITRATE_SECONDS


async def test_tracks_that_are_removed_say_nothing():
    """Where REMB alone comes, its videos' removal leaves the rate as it is, and the connection is looked after further on."""
    async with watched(feedback=False) as (viewer, manager, pc_id, _):
        rate = manager.peer(pc_id)._rate
        await remb(viewer, manager, pc_id, 3_000_000)
        await wait_until(lambda: any(look.rembs for look in rate._looks.values()))
        target = rate.estimator.target
        for sent in list(manager.peer(pc_id).media.tracks.values()):
            offer = await manager.remove_track(pc_id, sent.track.id)
            await manager.handle_answer(pc_id, await viewer.answer(offer["sdp"]))
            await rate._read_reports(time.monotonic())
        assert manager.peer(pc_id).media.tracks == {}
        assert rate.estimator.target >= target


async def test_what_a_queue_had_no_room_for_is_not_waited_for(monkeypatch):
    """Losses that a full queue made are repeated and let go; only where packets are lost without one are pictures kept longer."""
    async with watched(feedback=True) as (_, manager, pc_id, _heard):
        rate = manager.peer(pc_id)._rate

        def look(after: float, packet_loss: float, queue_delay: float) -> tuple[int, float | None]:
            path = SimpleNamespace(packet_loss=packet_loss, queue_delay=queue_delay, rtt=0.05, reason="delay")
            with monkeypatch.context() as patched:
                patched.setattr(rate, "estimator", path)
                rate._follow_loss(began + after)
            return rate.transport.repeats, rate.transport.stamper.playout_delay

        began = time.monotonic() + OVERFLOW_SECONDS
        assert look(0.0, 0.1, QUEUE) == (1, None)
        assert look(0.1, 0.1, QUEUE / 2) == (2, None)
        assert look(OVERFLOW_SECONDS - 0.1, 0.1, 0.0) == (2, None)
        assert look(OVERFLOW_SECONDS + 0.1, 0.0, 0.0) == (1, None)
        assert look(OVERFLOW_SECONDS + 0.2, 0.1, 0.0) == (2, pytest.approx(0.3))


async def test_a_look_that_fails_is_not_the_last(monkeypatch, caplog):
    """It is told of once, whatever it was, and the rate follows the network further on."""
    async with watched(feedback=True) as (_viewer, manager, pc_id, _):
        rate = manager.peer(pc_id)._rate
        failures, looks, tick = [], [], rate.estimator.tick

        def fail(_now):
            failures.append(1)
            raise ZeroDivisionError("on purpose")

        monkeypatch.setattr(rate.estimator, "tick", fail)
        await wait_until(lambda: len(failures) > 2)
        monkeypatch.setattr(rate.estimator, "tick", lambda now: (looks.append(now), tick(now)))
        await wait_until(lambda: len(looks) > 2)
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError]


async def test_a_pause_is_no_measure_of_the_content(monkeypatch):
    """What goes out in the second after a pause is less than the content takes."""
    async with watched(feedback=True) as (_viewer, manager, pc_id, _):
        rate = manager.peer(pc_id)._rate
        measured = await measurements(rate, monkeypatch)
        manager.pause(pc_id)
        await asyncio.sleep(BITRATE_SECONDS)
        measured.clear()
        resumed = time.monotonic()
        manager.resume(pc_id)
        await wait_until(lambda: measured)
        assert measured[0] - resumed > BITRATE_SECONDS
