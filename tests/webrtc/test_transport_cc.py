"""Transport-wide feedback: its bytes, its negotiation in one connection alone, and what it says of packets."""

from __future__ import annotations

import logging
import re

import aiortc
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection
from aiortc.codecs import CODECS, HEADER_EXTENSIONS
from aiortc.rtcrtpparameters import RTCRtpHeaderExtensionParameters, RTCRtpParameters
from aiortc.rtp import HeaderExtensionsMap, RtcpRrPacket, RtpPacket
from hypothesis import given
from hypothesis import strategies as st

from ipfs_stream_nb.webrtc import transport_cc
from ipfs_stream_nb.webrtc.congestion.feedback import PacketResult
from ipfs_stream_nb.webrtc.feedback_reader import FeedbackReader
from ipfs_stream_nb.webrtc.rtp_bytes import (
    as_retransmission,
    find_extension,
    original_sequence,
    restamped,
    with_extensions,
    with_sequence,
)
from ipfs_stream_nb.webrtc.transport_cc import (
    ABS_SEND_TIME,
    EXTENSION,
    MAX_HISTORY,
    PLAYOUT_DELAY,
    SendHistory,
)
from ipfs_stream_nb.webrtc.transport_feedback import (
    MAX_STATUSES,
    TransportFeedback,
    feedback_for,
    split_rtcp,
    unwrap,
)
from webrtc.rtp_pair import Pair

DELTA = st.one_of(st.none(), st.integers(0, 255), st.integers(-0x8000, 0x7FFF))
RUNS = st.lists(st.tuples(DELTA, st.integers(1, 40)), min_size=1, max_size=20).map(
    lambda runs: tuple(delta for delta, times in runs for _ in range(times))
)
FEEDBACK = st.builds(
    TransportFeedback,
    st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 0xFFFF),
    st.integers(0, 2**24 - 1), st.integers(0, 255), RUNS,
)  # fmt: skip


def body_of(packet: bytes) -> bytes:
    bodies, rest = split_rtcp(packet)
    assert rest == b""
    (body,) = bodies
    return body


@given(FEEDBACK)
def test_feedback_comes_back_as_it_was(feedback):
    """Runs, vectors, small and large deltas, and padding to whole words."""
    packet = feedback.pack()
    assert len(packet) % 4 == 0
    assert TransportFeedback.parse(body_of(packet)) == feedback


@given(
    st.one_of(
        st.binary(max_size=80), st.tuples(FEEDBACK, st.integers(0, 80)).map(lambda t: t[0].pack()[4:][: t[1]])
    )
)
def test_hostile_bytes_give_a_value_error(data):
    """Or feedback of no more packets than are read; nothing else is raised."""
    try:
        feedback = TransportFeedback.parse(data)
    except ValueError:
        return
    assert 0 < len(feedback.deltas) <= MAX_STATUSES


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "0000 0000 0000 0000 0001 ffff 000000 00 1fff 1fff 1fff 1fff 1fff 1fff 1fff 1fff 0007",
            "65535 packets",
        ),
        ("0000 0000 0000 0000 0001 0000 000000 00", "0 packets"),
        ("0000 0000 0000 0000 0001 0001 000000 00 6001", "reserved"),
        ("0000 0000 0000 0000 0001 0001 000000 00 0000", "empty run"),
        ("0000 0000 0000 0000 0001 0002 000000 00 2002 01", "deltas"),
        ("0000 0000 0000 0000 0001 0008 000000 00 c000", "chunks"),
        ("0000 0000", "head"),
    ],
    ids=["too many", "none", "reserved symbol", "empty run", "short deltas", "short chunks", "short head"],
)
def test_feedback_that_cannot_be_is_refused(words, message):
    """With the reason."""
    with pytest.raises(ValueError, match=message):
        TransportFeedback.parse(bytes.fromhex(words))


def test_the_drafts_layout_is_read():
    """A run of two small deltas, a vector of two-bit symbols with a large one, by hand from the draft's figures."""
    body = bytes.fromhex("00000001 00000002 fffe 0005 000010 07 2002 d800 04 08 ff fffc 00".replace(" ", ""))
    feedback = TransportFeedback.parse(body)
    assert (feedback.sender_ssrc, feedback.media_ssrc) == (1, 2)
    assert (feedback.base, feedback.reference, feedback.count) == (0xFFFE, 16, 7)
    assert feedback.deltas == (4, 8, 255, -4, None)


@given(st.integers(-(2**40), 2**40), st.integers(-0x7FFF, 0x7FFF))
def test_numbers_unwrap_to_the_nearest(near, step):
    """Forwards and backwards, past the wrap."""
    assert unwrap((near + step) & 0xFFFF, near, 16) == near + step


@given(
    st.integers(0, 2**20),
    st.lists(st.tuples(st.integers(1, 40), st.integers(-20, 400)), min_size=1, max_size=900),
    st.floats(0, 1e6),
)
def test_a_history_hears_of_each_packet_what_the_receiver_saw(first, steps, began):
    """Whatever is missing or out of order in time, over any number of messages and past all wraps."""
    arrivals: dict[int, float] = {}
    number, now = first - 1, began
    for step, milliseconds in steps:
        number, now = number + step, max(now + milliseconds / 1000, 0.0)
        arrivals[number] = now
    span = min(number - first + 1, MAX_HISTORY)
    history = SendHistory()
    history._next = number - span + 1
    for sent in range(number - span + 1, number + 1):
        assert history.add(float(sent), 100, None) == sent & 0xFFFF
    told: dict[float, PacketResult] = {}
    for message in feedback_for(arrivals, first, sender_ssrc=1, media_ssrc=2, count=250):
        for one in history.results(TransportFeedback.parse(body_of(message.pack()))):
            assert one.sent_at not in told
            told[one.sent_at] = one
    known = [one for one in range(number - span + 1, number + 1) if float(one) in told]
    assert {one for one in arrivals if one > number - span} <= set(known)
    shift = {
        round((told[float(one)].received_at - arrivals[one]) / 1073741.824)
        for one in known
        if one in arrivals
    }
    assert len(shift) <= 1
    for one in known:
        received = told[float(one)].received_at
        assert (received is None) == (one not in arrivals)
        if received is not None:
            assert received - arrivals[one] - shift.copy().pop() * 1073741.824 == pytest.approx(0, abs=0.0002)
    assert history.feedback_lost == 0


def test_a_packet_that_comes_late_is_told_twice():
    """First as lost, then as received; told again it is no news. Feedback that is missing is counted."""
    history = SendHistory()
    for number in range(3):
        history.add(float(number), 100, number)
    first = TransportFeedback(1, 2, 0, 5, 0, (0, None, 4))
    assert history.results(first) == [
        PacketResult(0.0, 0.32, 100, 0), PacketResult(1.0, None, 100, 1), PacketResult(2.0, 0.321, 100, 2),
    ]  # fmt: skip
    assert history.results(first) == []
    late = TransportFeedback(1, 2, 1, 5, 3, (8, 0))
    assert history.results(late) == [PacketResult(1.0, 0.322, 100, 1)]
    assert history.feedback_lost == 2
    assert history.results(TransportFeedback(1, 2, 9, 5, 4, (0,) * 50)) == []


def test_the_receivers_clock_goes_on_where_its_reference_wraps():
    """After 2^24 units of 64 ms, and back again for what comes out of order."""
    history = SendHistory()
    for number in range(3):
        history.add(float(number), 100, None)
    times = [
        history.results(TransportFeedback(1, 2, number, reference, number, (0,)))[0].received_at
        for number, reference in enumerate((2**24 - 1, 1, 2**24 - 2))
    ]
    assert [one - times[0] for one in times] == pytest.approx([0, 0.128, -0.064])


def test_the_history_is_bounded():
    """Of packets that leave it untold it keeps the number."""
    history = SendHistory()
    for number in range(MAX_HISTORY + 10):
        history.add(float(number), 100, None)
    assert len(history._sent) == MAX_HISTORY
    assert history.unreported == 10


def test_packets_of_a_burst_have_times_of_their_own():
    """So that what is told of one of them later is news, though all were sent at once."""
    history = SendHistory()
    for _ in range(3):
        history.add(7.0, 100, None)
    (first,) = history.results(TransportFeedback(1, 2, 0, 5, 0, (0,)))
    second, third = history.results(TransportFeedback(1, 2, 1, 5, 1, (4, 4)))
    assert 7.0 == first.sent_at < second.sent_at < third.sent_at < 7.001


def test_what_is_on_its_way():
    """All that was sent since the latest packet that was told of, lost or not, but for probes."""
    history = SendHistory()
    for number, probe in enumerate((None, None, 1, None)):
        history.add(float(number), 100, probe)
    assert history.in_flight == 300
    history.results(TransportFeedback(1, 2, 0, 5, 0, (0, None)))
    assert history.in_flight == 100
    history.results(TransportFeedback(1, 2, 3, 5, 1, (0,)))
    history.results(TransportFeedback(1, 2, 1, 5, 2, (0,)))
    assert history.in_flight == 0


def extensions(**ids: int) -> HeaderExtensionsMap:
    uris = {"mid": "urn:ietf:params:rtp-hdrext:sdes:mid", "stamp": ABS_SEND_TIME, "number": EXTENSION}
    found = HeaderExtensionsMap()
    found.configure(
        RTCRtpParameters(
            headerExtensions=[
                RTCRtpHeaderExtensionParameters(number, uris[name]) for name, number in ids.items()
            ]
        )
    )
    return found


@given(
    st.sampled_from([None, "0", "a long name of a media section"]),
    st.sampled_from([None, 0, 0xFFFFFF]),
    st.lists(st.integers(0, 2**32 - 1), max_size=2),
    st.binary(min_size=1, max_size=30),
    st.integers(0, 0xFFFF),
)
def test_serialized_packets_change_as_parsed_ones_would(mid, stamp, sources, payload, number):
    """A transport's number beside another extension, a sequence number and a new time, in one-byte and two-byte extensions or without any."""
    packet = RtpPacket(97, 1, 77, 1234, 5678, payload)
    packet.csrc = sources
    packet.extensions.mid, packet.extensions.abs_send_time = mid, stamp
    ids = extensions(mid=1, stamp=3, number=4)
    delay = payload[:16]
    data = with_extensions(packet.serialize(ids), (5, delay), (4, number.to_bytes(2, "big")))
    at = find_extension(data, 4, 2)
    assert at is not None
    assert int.from_bytes(data[at : at + 2], "big") == number
    at = find_extension(data, 5, len(delay))
    assert at is not None
    assert data[at : at + len(delay)] == delay
    found = RtpPacket.parse(restamped(with_sequence(data, 99), 3), ids)
    assert found.extensions.transport_sequence_number == number
    assert (found.sequence_number, found.extensions.mid, found.csrc) == (99, mid, sources)
    assert (found.timestamp, found.ssrc, found.payload, found.marker) == (1234, 5678, payload, 1)
    assert (found.extensions.abs_send_time is None) == (stamp is None)
    again = as_retransmission(data, 98, 4321)
    assert original_sequence(again) == 77
    rtx = RtpPacket.parse(again, ids)
    assert (rtx.payload_type, rtx.ssrc, rtx.payload) == (98, 4321, b"\0\x4d" + payload)


@given(st.binary(min_size=12, max_size=40), st.integers(1, 14))
def test_an_extension_is_sought_in_any_bytes(data, extension_id):
    """Without an error, and never found past the end."""
    at = find_extension(data, extension_id, 2)
    assert at is None or at + 2 <= len(data)


def feedback_lines(sdp: str) -> tuple[list[str], list[str]]:
    return re.findall(r"a=extmap:\d+ \S*transport-wide\S*", sdp), re.findall(
        r"a=rtcp-fb:\d+ transport-cc", sdp
    )


async def test_an_offer_has_it_for_all_codecs_and_nothing_else_is_changed():
    """Two connections of one process: the one that it is enabled for, and one that knows nothing of it."""
    ours, other = (RTCPeerConnection(RTCConfiguration(iceServers=[])) for _ in range(2))
    assert transport_cc.enable(ours) is transport_cc.enable(ours)
    for pc in (ours, other):
        pc.addTransceiver("video", "sendonly")
        pc.addTransceiver("audio", "sendonly")
    before = repr((CODECS, HEADER_EXTENSIONS))
    offer, plain = (await ours.createOffer()).sdp, (await other.createOffer()).sdp
    extmaps, codecs = feedback_lines(offer)
    assert extmaps == [f"a=extmap:4 {EXTENSION}"] * 2
    delays = re.findall(r"a=extmap:\d+ \S*playout-delay", offer)
    assert delays == [f"a=extmap:5 {PLAYOUT_DELAY}"]  # of the video alone
    assert len(codecs) == len(set(codecs)) == 3 + 4
    assert feedback_lines(plain) == ([], [])
    assert repr((CODECS, HEADER_EXTENSIONS)) == before

    def bare(sdp: str) -> list[str]:
        mine = {*extmaps, *codecs, *delays}
        changing = r"[0-9a-f]{8}-\S+|a=(ssrc|ice|finger|o=)\S*.*|^o=.*"
        return [re.sub(changing, "", line) for line in sdp.splitlines() if line not in mine]

    assert bare(offer) == bare(plain)
    await ours.close()
    await other.close()


async def answer_to(sdp: str) -> tuple[str, transport_cc.Negotiation]:
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    negotiation = transport_cc.enable(pc)
    pc.addTransceiver("video", "sendonly")
    await pc.setRemoteDescription(aiortc.RTCSessionDescription(sdp, "offer"))
    answer = (await pc.createAnswer()).sdp
    await pc.close()
    return answer, negotiation


async def test_an_answer_has_what_the_offer_has():
    """By the offer's id; without it where the offer lacks the extension, the feedback, or has an id that does not fit."""
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    transport_cc.enable(pc)
    pc.addTransceiver("video", "recvonly")
    await pc.setLocalDescription()
    offer = pc.localDescription.sdp
    await pc.close()
    answer, negotiation = await answer_to(
        offer.replace("extmap:4", "extmap:9").replace("extmap:5", "extmap:6")
    )
    assert f"a=extmap:6 {PLAYOUT_DELAY}" in answer
    assert [one.playout_delay_id for one in negotiation.streams.values() if one.kind == "video"] == [6]
    extmaps, codecs = feedback_lines(answer)
    assert extmaps == [f"a=extmap:9 {EXTENSION}"]
    assert len(codecs) == 3
    assert "goog-remb" in answer
    assert "nack pli" in answer
    assert negotiation.negotiated
    for missing in (
        offer.replace(f"a=extmap:4 {EXTENSION}\r\n", ""),
        re.sub(r"a=rtcp-fb:\d+ transport-cc\r\n", "", offer),
        offer.replace("extmap:4", "extmap:15"),
    ):
        answer, negotiation = await answer_to(missing)
        assert feedback_lines(answer) == ([], [])
        assert not negotiation.negotiated


async def test_an_aiortc_with_other_insides_is_refused_loudly(monkeypatch, caplog):
    """Once, by its version; connections then work without feedback."""
    monkeypatch.delattr(aiortc.RTCDtlsTransport, "_handle_rtcp_data")
    transport_cc._unfit.cache_clear()
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    try:
        with caplog.at_level(logging.ERROR):
            assert transport_cc.enable(pc) is None
            assert transport_cc.enable(pc) is None
    finally:
        transport_cc._unfit.cache_clear()
    (record,) = caplog.records
    assert f"aiortc {aiortc.__version__} has no RTCDtlsTransport._handle_rtcp_data" in record.message
    pc.addTransceiver("video", "sendonly")
    assert feedback_lines((await pc.createOffer()).sdp) == ([], [])
    await pc.close()


async def test_each_packet_is_accounted_for():
    """Those that a path drops are told as lost, all others as received, in the order of sending."""
    async with Pair() as pair:
        pair.drop = lambda packet: packet.extensions.transport_sequence_number % 7 == 3
        for count in range(1, 31):  # one by one: the socket would lose some of all at once
            pair.track.give(5000)
            await pair.until(
                lambda due=4 * count: len(pair.results) >= due - 1
            )  # a lost one is told of later
        await pair.until(lambda: len(pair.results) >= 120)
        assert len(pair.results) == len({one.sent_at for one in pair.results})
        lost = [index for index, one in enumerate(pair.results) if one.received_at is None]
        assert lost == [index for index in range(len(pair.results)) if index % 7 == 3]
        assert [one.sent_at for one in pair.results] == sorted(one.sent_at for one in pair.results)
        received = [one.received_at for one in pair.results if one.received_at is not None]
        assert received == sorted(received)
        assert pair.controller.feedback.invalid == pair.controller.history.feedback_lost == 0


async def test_hostile_feedback_is_dropped_and_counted():
    """What stands beside it in a compound packet still reaches aiortc, and so does what is no RTCP at all."""
    async with Pair() as pair:
        seen: list[bytes] = []
        inner = pair.controller._inner_rtcp

        async def note(data: bytes) -> None:
            seen.append(data)
            await inner(data)

        pair.controller._inner_rtcp = note
        report = bytes(RtcpRrPacket(1))
        bad = bytes.fromhex("8fcd0002 00000001 00000002")
        await pair.far_dtls._send_rtp(report + bad)
        await pair.until(lambda: pair.controller.feedback.invalid == 1)
        assert seen == [report]
        await pair.far_dtls._send_rtp(bytes.fromhex("8fcd0009 00000001"))
        await pair.until(lambda: len(seen) == 2)
        assert pair.controller.feedback.taken == 0


async def test_a_receiver_without_feedback_gets_packets_without_numbers():
    """As stock aiortc sends them, but paced."""
    async with Pair(ours=False) as pair:
        assert not pair.controller.negotiated
        pair.controller.set_rate(2_000_000)
        pair.track.give(5000, 5000)
        await pair.until(lambda: len(pair.arrived) == 8)
        assert {one.extensions.transport_sequence_number for one in pair.arrived} == {None}
        assert pair.results == []


async def test_our_offer_after_an_answer_gives_no_id_twice():
    """The other side's ids may be those that aiortc offers for something else."""
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    transport_cc.enable(pc)
    pc.addTransceiver("video", "recvonly")
    await pc.setLocalDescription()
    offer = pc.localDescription.sdp.replace("extmap:4", "extmap:14").replace("extmap:1 ", "extmap:4 ")
    await pc.close()
    ours = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    transport_cc.enable(ours)
    ours.addTransceiver("video", "sendonly")
    await ours.setRemoteDescription(
        aiortc.RTCSessionDescription(offer.replace("extmap:14", "extmap:1"), "offer")
    )
    await ours.setLocalDescription(await ours.createAnswer())
    ids = re.findall(r"a=extmap:(\d+)", (await ours.createOffer()).sdp)
    assert len(ids) == len(set(ids)) == 4
    await ours.close()


def test_feedback_of_more_than_there_can_be_is_not_read():
    """A few bytes claim thousands of packets: a datagram full of that costs as much as one does, and a second as much as a few."""
    reader = FeedbackReader(SendHistory())
    small = TransportFeedback(1, 2, 0, 5, 0, (0,)).pack()
    assert reader.read(small, 100.0) == ([[]], b"")
    many = TransportFeedback(1, 2, 0, 5, 1, (None,) * (MAX_STATUSES - 1)).pack()
    for _ in range(5):
        reader.read(many * 10, 100.0)
    assert (reader.taken, reader.invalid) == (2, 49)
    reader.read(many, 101.0)
    assert reader.taken == 3
