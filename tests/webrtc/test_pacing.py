"""What a transport sends and when: its pace, its order, its budget of retransmissions, and its probes."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, VideoStreamTrack
from aiortc.rtp import RtpPacket

from ipfs_stream_nb.clients.webrtc_aiortc import prepare
from ipfs_stream_nb.webrtc import transport_cc
from ipfs_stream_nb.webrtc.congestion.feedback import ProbeCluster
from ipfs_stream_nb.webrtc.pacing import (
    BURST_SECONDS,
    MAX_PROBES,
    MIN_PROBE_PACKETS,
    TransportController,
)
from ipfs_stream_nb.webrtc.playout import value_of
from ipfs_stream_nb.webrtc.rtp_bytes import find_extension, ssrc_of
from ipfs_stream_nb.webrtc.send_queue import (
    HELD_SECONDS,
    LET_GO_SECONDS,
    MIN_QUEUE_BYTES,
    RTX_DEPTH_SECONDS,
    RTX_MIN_INTERVAL,
    RTX_SHARE,
    WINDOW_SECONDS,
    WIRE_BYTES,
    FlightWindow,
    RateMeter,
    RetransmissionBudget,
)
from webrtc.rtp_pair import Pair


def rtp(pair: Pair, kind: str, number: int, size: int = 1000) -> bytes:
    """A packet of a stream of the pair."""
    sender = pair.video if kind == "video" else pair.audio
    return RtpPacket(97 if kind == "video" else 96, 0, number, 0, sender._ssrc, bytes(size)).serialize()


async def test_the_pace_is_kept_over_any_stretch():
    """No more than rate and time allow, plus what may go at once; and all of it arrives in order."""
    rate = 3_000_000
    async with Pair() as pair:
        pair.controller.set_rate(rate, factor=1.0, rush=1.0)
        pair.track.give(*[20_000] * 16)
        await pair.until(lambda: pair.track.taken == 16 and len(pair.results) >= 250)
        sent = pair.results
        for first in range(len(sent)):
            total = 0
            for one in sent[first:]:
                assert total * 8 / rate <= one.sent_at - sent[first].sent_at + 2 * BURST_SECONDS + 1e-6
                total += one.size
        # a machine that stands still makes a few long gaps
        stretch = sum(min(after.sent_at - one.sent_at, 0.05) for one, after in pairwise(sent))
        assert sum(one.size for one in sent) * 8 / stretch > rate / 2
        numbers = [one.sequence_number for one in pair.of(pair.video._ssrc)]
        assert numbers == [numbers[0] + index & 0xFFFF for index in range(len(numbers))]
        assert {one.probe for one in sent} == {None}


async def test_what_has_no_rate_goes_at_once():
    """In the task of the sender, without one of its own."""
    async with Pair() as pair:
        pair.track.give(*[20_000] * 4)
        await pair.until(lambda: len(pair.results) >= 4 * 16)
        assert pair.controller._drain is None
        assert pair.controller.queue_bytes == pair.controller.queue_seconds == 0


async def test_a_sender_waits_while_the_queue_is_full():
    """The track is not asked for more; what waits is told in bytes and seconds. RTCP does not wait."""
    async with Pair() as pair:
        pair.controller.set_rate(50_000)
        pair.track.give(*[20_000] * 3)
        await pair.until(lambda: pair.controller.queue_bytes > MIN_QUEUE_BYTES)
        assert pair.track.taken == 1
        waiting = pair.controller.queue_bytes
        assert waiting <= MIN_QUEUE_BYTES + 1500
        assert pair.controller.queue_seconds == pytest.approx(waiting * 8 / (50_000 * 2.5))
        got = asyncio.Event()
        inner = pair.far_dtls._handle_rtcp_data

        async def note(data: bytes) -> None:
            got.set()
            await inner(data)

        pair.far_dtls._handle_rtcp_data = note
        await pair.dtls._send_rtp(bytes.fromhex("80c90001 00000001"))
        await asyncio.wait_for(got.wait(), 5)
        assert pair.controller.queue_bytes > MIN_QUEUE_BYTES / 2
        pair.controller.set_rate(None)
        await pair.until(lambda: pair.track.taken == 3 and not pair.controller.queue_bytes)


async def test_sound_goes_before_pictures():
    """Also before those that wait already; each kind keeps its own order."""
    async with Pair() as pair:
        pair.controller.set_rate(1_000_000, factor=1.0, rush=1.0)
        for number in range(15):
            await pair.dtls._send_rtp(rtp(pair, "video", number))
        at_once = 15 - len(pair.controller._video.packets)
        for number in range(2):
            await pair.dtls._send_rtp(rtp(pair, "audio", number, 100))
        await pair.until(lambda: len(pair.arrived) == 17)
        order = [(one.ssrc == pair.audio._ssrc, one.sequence_number) for one in pair.arrived]
        assert order[at_once : at_once + 2] == [(True, 0), (True, 1)]
        assert [number for audio, number in order if not audio] == list(range(15))


async def test_much_that_waits_is_rushed():
    """Faster than the pace, until little is left."""
    async with Pair() as pair:
        pair.controller.set_rate(1_000_000, factor=1.0, rush=4.0)
        assert pair.controller._pace() == 1_000_000
        for number in range(20):
            await pair.dtls._send_rtp(rtp(pair, "video", number))
        assert pair.controller._pace() == 4_000_000
        await pair.until(lambda: len(pair.arrived) == 20)
        assert pair.controller._pace() == 1_000_000


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf")])
async def test_a_rate_is_a_number_above_zero(rate):
    """Anything else is refused, and the rate before stays."""
    async with Pair() as pair:
        with pytest.raises(ValueError, match="above 0"):
            pair.controller.set_rate(rate)
        assert pair.controller._rate is None


async def test_retransmissions_keep_to_their_budget():
    """Packets that are asked for come once in a round trip, as RTX, and never more than a share of the rate."""
    rate = 400_000
    async with Pair() as pair:
        pair.drop = lambda packet: packet.ssrc == pair.video._ssrc and packet.sequence_number % 2 == 0
        pair.track.give(*[1200] * 60)
        await pair.until(lambda: len(pair.results) >= 58)  # of those at the ends nobody knows
        missing = [one.sequence_number + 1 & 0xFFFF for one in pair.of(pair.video._ssrc)[:-1]]
        pair.controller.set_rate(rate)
        began = time.monotonic()
        await pair.nack(*missing[:3])
        await pair.until(lambda: len(pair.of(pair.video._rtx_ssrc)) == 3)
        first = pair.of(pair.video._rtx_ssrc)
        assert [int.from_bytes(one.payload[:2], "big") for one in first] == missing[:3]
        assert {one.payload_type for one in first} == {98}
        await pair.nack(*missing)
        stats = pair.controller.stats
        await pair.until(lambda: stats.retransmitted + stats.retransmissions_dropped == 3 + len(missing))
        await pair.until(lambda: len(pair.of(pair.video._rtx_ssrc)) == stats.retransmitted)
        bytes_sent = sum(len(one.payload) + WIRE_BYTES for one in pair.of(pair.video._rtx_ssrc))
        allowed = RTX_SHARE * rate / 8 * (RTX_DEPTH_SECONDS + time.monotonic() - began)
        assert bytes_sent <= allowed + 1500
        assert stats.retransmissions_dropped > 10
        numbers = [one.sequence_number for one in pair.of(pair.video._rtx_ssrc)]
        assert numbers == [numbers[0] + index & 0xFFFF for index in range(len(numbers))]


async def test_what_was_given_up_is_not_sent_again(monkeypatch):
    """Once the video goes on with a key frame, NACKs for what was before it get nothing; those for what follows do."""
    monkeypatch.setattr("ipfs_stream_nb.webrtc.pacing.GIVEN_UP_SECONDS", 60.0)
    async with Pair() as pair:
        pair.controller.set_rate(2_000_000)
        pair.track.give(100, 100)
        await pair.until(lambda: len(pair.of(pair.video._ssrc)) == 2)
        pair.controller.drop_video(pair.video._ssrc)
        pair.track.give(100)
        await pair.until(lambda: len(pair.of(pair.video._ssrc)) == 3)
        before, at, after = (one.sequence_number for one in pair.of(pair.video._ssrc))
        await pair.nack(before, at, after)
        await pair.until(lambda: pair.of(pair.video._rtx_ssrc))
        (again,) = pair.of(pair.video._rtx_ssrc)
        assert int.from_bytes(again.payload[:2], "big") == after
        assert pair.controller.stats.retransmissions_dropped == 2


def test_a_packet_is_not_sent_twice_within_a_round_trip():
    """Later it is, while the budget lasts, and that grows with time up to its depth."""
    budget = RetransmissionBudget()
    budget.fill(1_000_000, 0.0)
    assert budget.allows((1, 1), 1000, 1_000_000, 0.0)
    assert not budget.allows((1, 1), 1000, 1_000_000, RTX_MIN_INTERVAL / 2)
    assert budget.allows((1, 2), 1000, 1_000_000, RTX_MIN_INTERVAL / 2)
    assert budget.allows((1, 1), 1000, 1_000_000, RTX_MIN_INTERVAL)
    budget.round_trip = 0.2
    assert not budget.allows((1, 1), 1000, 1_000_000, 0.1)
    granted = sum(budget.allows((2, number), 1000, 1_000_000, 100.0) for number in range(100))
    assert granted == 16  # 0.25 of 125,000 bytes a second, for half a second


async def test_a_retransmission_without_rtx_is_known_by_its_number(monkeypatch):
    """It never holds up who answers NACKs, even where the queue is full."""
    async with Pair() as pair:
        clock = SimpleNamespace(monotonic=lambda: 100.0)  # nothing of the queue is sent meanwhile
        monkeypatch.setattr("ipfs_stream_nb.webrtc.pacing.time", clock)
        pair.controller.set_rate(400_000, factor=0.3, rush=0.3)
        numbers = [65_534, 65_535, 0, 1, 2, 3, 4]
        for number in numbers:
            await pair.dtls._send_rtp(rtp(pair, "audio", number, 10))
        assert pair.controller._retransmissions.bytes == 0
        for number in numbers:
            await asyncio.wait_for(pair.dtls._send_rtp(rtp(pair, "audio", number)), 5)
        assert pair.controller._retransmissions.bytes > pair.controller._limit
        assert pair.controller.stats.retransmissions_dropped > 0


async def test_a_probe_is_sent_at_its_rate_and_tagged():
    """Packets of video once more, as RTX, with sequence numbers that go on; the media keeps its pace around it."""
    async with Pair() as pair:
        assert not pair.controller.can_probe
        assert not pair.controller.probe(ProbeCluster(1, 2_000_000, 0.03))
        pair.controller.set_rate(1_000_000)
        pair.track.give(5000)
        await pair.until(lambda: len(pair.results) == 4)
        assert pair.controller.probe(ProbeCluster(7, 4_000_000, 0.03))
        await pair.until(lambda: pair.controller.stats.probes == 1)
        await pair.until(lambda: sum(one.probe == 7 for one in pair.results) >= 4_000_000 * 0.03 / 8 / 1400)
        probe = [one for one in pair.results if one.probe == 7]
        total = sum(one.size for one in probe)
        assert 4_000_000 * 0.03 / 8 <= total <= 4_000_000 * 0.03 / 8 + 1500
        for index, one in enumerate(probe):
            early = sum(before.size for before in probe[:index]) * 8 / 4_000_000
            assert one.sent_at - probe[0].sent_at >= early - 0.002
        rtx = pair.of(pair.video._rtx_ssrc)
        assert len(rtx) == len(probe)
        assert pair.controller.stats.padding_bytes > 0
        assert pair.controller.stats.retransmitted == 0
        await pair.nack(pair.of(pair.video._ssrc)[0].sequence_number)
        await pair.until(lambda: len(pair.of(pair.video._rtx_ssrc)) == len(rtx) + 1)
        numbers = [one.sequence_number for one in pair.of(pair.video._rtx_ssrc)]
        assert numbers == [numbers[0] + index & 0xFFFF for index in range(len(numbers))]


async def test_probes_are_bounded():
    """In number, in time, and from below in packets."""
    async with Pair() as pair:
        pair.track.give(3000)
        await pair.until(lambda: len(pair.results) == 3)
        for cluster in (ProbeCluster(1, 0, 0.1), ProbeCluster(1, 1000, 0.0), ProbeCluster(1, 1000, 60.0)):
            with pytest.raises(ValueError, match="a probe"):
                pair.controller.probe(cluster)
        taken = [
            pair.controller.probe(ProbeCluster(number, 2_000_000, 0.001)) for number in range(MAX_PROBES + 1)
        ]
        assert taken == [True] * MAX_PROBES + [False]
        await pair.until(
            lambda: sum(one.probe is not None for one in pair.results) == MAX_PROBES * MIN_PROBE_PACKETS
        )


async def test_pictures_go_on_while_probes_are_sent(caplog):
    """aiortc's own receiver passes over packets that it had before."""
    near, far = (RTCPeerConnection(RTCConfiguration(iceServers=[])) for _ in range(2))
    negotiation = transport_cc.enable(near)
    near.addTransceiver(VideoStreamTrack(), "sendonly")
    tracks: list = []
    far.on("track", tracks.append)
    with caplog.at_level(logging.WARNING):
        await near.setLocalDescription()
        await far.setRemoteDescription(near.localDescription)
        prepare(far)
        await far.setLocalDescription()
        await near.setRemoteDescription(far.localDescription)
        results: list = []
        controller = TransportController(
            near.getTransceivers()[0].sender.transport, negotiation, results.extend
        )
        controller.set_rate(2_000_000)
        async with asyncio.timeout(10):
            await tracks[0].recv()
            assert controller.probe(ProbeCluster(1, 3_000_000, 0.02))
            times = [(await tracks[0].recv()).pts for _ in range(12)]
        assert [after - before for before, after in pairwise(times)] == pytest.approx([3000] * 11, abs=2)
        assert controller.stats.probes == 1
        assert any(one.probe == 1 and one.received_at is not None for one in results)
        await controller.close()
        await near.close()
        await far.close()
    assert caplog.records == []


async def test_an_estimator_that_fails_does_not_end_the_connection(caplog):
    """It is said in the log, and packets go on."""
    async with Pair() as pair:

        def fail(_results: list) -> None:
            raise RuntimeError("a bad estimator")

        pair.controller._on_feedback = fail
        with caplog.at_level(logging.ERROR):
            pair.track.give(3000)
            await pair.until(lambda: any("of no use" in one.message for one in caplog.records))
        pair.track.give(3000)
        await pair.until(lambda: len(pair.arrived) == 6)


async def test_nothing_is_left_when_it_is_closed():
    """Whoever waits goes on, what waits is dropped, and what comes later passes by."""
    async with Pair() as pair:
        pair.controller.set_rate(50_000)
        pair.track.give(30_000)
        await pair.until(lambda: pair.controller.queue_bytes > MIN_QUEUE_BYTES)
        assert pair.controller.probe(ProbeCluster(1, 1_000_000, 0.5))
        await pair.controller.close()
        assert pair.controller.queue_bytes == 0
        assert pair.controller._drain is None
        assert not pair.controller.can_probe
        await pair.until(lambda: pair.arrived[-1].marker)


async def test_a_transport_that_closes_empties_the_queue():
    """No task is left that would send by it, and nobody waits for ever."""
    async with Pair() as pair:
        pair.controller.set_rate(50_000)
        pair.track.give(30_000)
        await pair.until(lambda: pair.controller.queue_bytes > MIN_QUEUE_BYTES)
        await pair.near.close()
        await pair.until(lambda: pair.controller._drain is None)
        assert pair.controller.queue_bytes == 0


async def test_the_rate_that_was_sent_is_what_the_receiver_counts():
    """Over the last second, in full steps of a tenth."""
    meter = RateMeter()
    for step in range(25):
        meter.add(100 + step / 10, 1000)
    assert meter.rate(102.5, 10) == pytest.approx(80_000)
    assert meter.rate(102.5, 1) == pytest.approx(80_000)
    assert meter.rate(103.0, 10) == pytest.approx(40_000)
    assert meter.rate(110.0, 10) == 0


async def test_pictures_wait_while_too_much_is_on_its_way(monkeypatch):
    """What is not told of for longer than feedback ever took stands in a queue: sound goes on, pictures when there is news;
    until then one packet now and then."""
    monkeypatch.setattr("ipfs_stream_nb.webrtc.send_queue.HELD_SECONDS", 60.0)
    async with Pair() as pair:
        pair.controller.set_rate(1_000_000)
        for _ in range(5):
            pair.track.give(3000)
            await asyncio.sleep(0.05)  # as feedback comes
        await pair.until(lambda: pair.controller.feedback.taken >= 3)
        handle, kept = pair.dtls._handle_rtcp_data, []

        async def keep(data):
            kept.append(data)

        pair.dtls._handle_rtcp_data = keep
        told = time.monotonic()
        pair.controller._window = FlightWindow()  # whatever times the machine made of those that came
        for at in (told - 0.05, told):
            pair.controller._window.heard(at, at - 0.02)
        pair.track.give(*[5000] * 20)
        window = 1_000_000 / 8 * (0.2 + WINDOW_SECONDS)
        await pair.until(lambda: pair.controller._is_full)
        held, since = pair.controller.history.in_flight, time.monotonic()
        assert MIN_QUEUE_BYTES < held < window
        heard = len(pair.of(pair.audio._ssrc))
        await pair.controller._send(rtp(pair, "audio", 1, 100))
        await pair.until(lambda: len(pair.of(pair.audio._ssrc)) > heard)
        history = pair.controller.history
        await pair.until(lambda: time.monotonic() - told > 0.6 and history.in_flight > held)
        most = (time.monotonic() - since) / LET_GO_SECONDS + 2
        assert history.in_flight - held < most * 1400  # one now and then
        pair.dtls._handle_rtcp_data = handle
        for data in kept:
            await handle(data)
        await pair.until(lambda: pair.track.taken == 25 and not pair.controller.queue_bytes)


async def test_a_wish_for_how_long_pictures_are_kept_goes_with_each():
    """Once there is one; sound has none."""
    async with Pair() as pair:
        (delay_id,) = {
            one.playout_delay_id for one in pair.negotiation.streams.values() if one.kind == "video"
        }
        sent, inner = [], pair.controller._inner_send

        async def send(data):
            sent.append(find_extension(data, delay_id, 3) and data)
            await inner(data)

        pair.controller._inner_send = send
        pair.track.give(100)
        await pair.until(lambda: pair.track.taken == 1 and pair.of(pair.video._ssrc))
        assert not any(sent)
        pair.controller.stamper.playout_delay = 0.25
        await pair.controller._send(rtp(pair, "audio", 1, 100))
        assert sent.pop() is None
        pair.track.give(100)
        await pair.until(lambda: len(pair.of(pair.video._ssrc)) > 1)
        (data,) = filter(None, sent)
        at = find_extension(data, delay_id, 3)
        assert data[at : at + 3] == value_of(0.25)


def test_feedback_that_comes_in_bundles():
    """A receiver that tells of several times at once, each quarter of a second, gets as much more on its way."""
    window = FlightWindow()
    now = 100.0
    for _ in range(20):
        now += 0.25
        for packet in range(8):
            window.heard(now + packet / 1e4, now - 0.29 + packet * 0.03)
    allowed = 1_000_000 / 8 * (0.08 + 0.25 + WINDOW_SECONDS)
    assert not window.is_full(round(0.95 * allowed), 1_000_000, now)
    assert window.is_full(round(1.1 * allowed), 1_000_000, now)
    assert not window.is_full(10**9, 1_000_000, now + 2 * HELD_SECONDS)


def test_the_window_follows_a_path_that_becomes_longer():
    """Within a second; a clock with coarse steps, by which a round trip takes no time, harms nothing."""
    window = FlightWindow()
    for tick in range(40):
        window.heard(100 + tick / 20, 100 + tick / 20 + 1e-6)
    assert window.round_trip == 0.0
    for tick in range(40, 61):
        window.heard(100 + tick / 20, 100 + tick / 20 - 0.3)
    assert window.round_trip == pytest.approx(0.3)


def test_an_outage_says_nothing_of_how_often_feedback_comes():
    """After it no more may be on its way than before."""
    window = FlightWindow()
    for tick in [*range(20), *range(80, 82)]:
        window.heard(100 + tick / 20, 100 + tick / 20 - 0.05)
    allowed = 1_000_000 / 8 * (0.05 + 0.05 + WINDOW_SECONDS)
    assert window.is_full(round(1.1 * allowed), 1_000_000, 104.05)


def test_a_packet_now_and_then_while_nothing_is_heard():
    """Feedback that is overdue may wait for packets to tell of."""
    window = FlightWindow()
    for tick in range(10):
        window.heard(100 + tick / 20, 100 + tick / 20 - 0.05)
    heard, window.sent_at = 100.45, 100.45
    full = [window.is_full(10**6, 1_000_000, heard + late) for late in (0.1, 0.14, 0.2)]
    assert full == [True, False, False]
    window.sent_at = heard + 0.2
    assert window.is_full(10**6, 1_000_000, heard + 0.22)
    assert not window.is_full(10**6, 1_000_000, heard + 0.201 + LET_GO_SECONDS)


async def test_another_video_is_not_given_up():
    """Packets of one stream that wait are dropped, and those of others are not."""
    async with Pair() as pair:
        pair.controller.set_rate(50_000)
        ssrc = pair.video._ssrc
        pair.negotiation.streams[7] = replace(pair.negotiation.streams[ssrc], rtx_ssrc=None)
        other = RtpPacket(97, 0, 1, 0, 7, bytes(900)).serialize()
        for number in range(4):
            await pair.controller._send(rtp(pair, "video", number, 900))
        await pair.controller._send(other)
        pair.controller.drop_video(ssrc)
        assert [ssrc_of(data) for data, *_ in pair.controller._video.packets] == [7]
        pair.controller.drop_video(99)


async def test_a_repeat_without_rtx_is_the_same_to_the_byte():
    """SRTP would otherwise use a nonce twice."""
    async with Pair() as pair:
        sent, inner = [], pair.controller._inner_send

        async def send(data):
            sent.append(data)
            await inner(data)

        pair.controller._inner_send = send
        for number in (5, 6, 5):
            await pair.controller._send(rtp(pair, "audio", number, 50))
        first, _, again = sent
        assert again == first


async def test_without_retransmissions_there_is_nothing_to_probe_with():
    """A receiver that takes them no more after all ends probes, and nothing that waits is lost."""
    async with Pair() as pair:
        pair.controller.set_rate(1_000_000)
        pair.track.give(3000)
        await pair.until(lambda: pair.controller.can_probe)
        del pair.negotiation.streams[pair.video._rtx_ssrc]
        assert not pair.controller.probe(ProbeCluster(1, 2_000_000, 0.03))
