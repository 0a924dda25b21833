"""How encoded media is cut for RTP, as aiortc's own readers take it."""

from __future__ import annotations

import pytest
from aiortc.codecs.h264 import h264_depayload
from aiortc.codecs.vpx import VpxPayloadDescriptor, vp8_depayload
from hypothesis import given
from hypothesis import strategies as st

from ipfs_stream_nb.media.encoded import EncodedPacket, Payload
from ipfs_stream_nb.webrtc.payloads import MAX_PAYLOAD, Packetizer, h264_payloads, vp8_payloads

START = b"\0\0\0\1"


def nal_unit(head: int, body: bytes, copies: int) -> bytes:
    """One with the bytes that keep a start code out of it (H.264, section 7.4.1)."""
    body = b"\0".join(body.split(b"\0\0")) * copies
    return bytes((head,)) + b"\0\3".join(body.split(b"\0\0")) + b"\x80"


UNITS = st.lists(
    st.builds(
        nal_unit,
        st.builds(lambda nri, kind: nri << 5 | kind, st.integers(0, 3), st.integers(1, 23)),
        st.lists(st.sampled_from((0, 1, 3, 0xFF)), max_size=60).map(bytes),
        st.integers(1, 120),
    ),
    max_size=8,
)


def whole(data: bytes, payloads: list[Payload]) -> list[bytes]:
    return [prefix + data[start:end] for prefix, start, end in payloads]


@given(units=UNITS, long=st.booleans(), zeros=st.integers(0, 3))
def test_h264_comes_back_unit_by_unit(units, long, zeros):
    """RFC 6184: no payload is too large, small units share one, and put together again they are what they were."""
    data = b"".join((START if long else START[1:]) + unit for unit in units) + bytes(zeros)
    payloads = whole(data, h264_payloads(data))
    assert all(2 <= len(one) <= MAX_PAYLOAD for one in payloads)
    assert b"".join(map(h264_depayload, payloads)) == b"".join(START + unit for unit in units)
    if sum(2 + len(unit) for unit in units) < MAX_PAYLOAD:
        assert len(payloads) <= 1


def test_heads_of_h264():
    """The least that is shared has the highest importance of its units; a piece says whether it is the first or the last."""
    data = START + b"\x41a" + START + b"\x67b" + START + b"\x65" + bytes([7]) * 2 * MAX_PAYLOAD
    shared, *pieces = whole(data, h264_payloads(data))
    assert shared == b"\x78\0\2\x41a\0\2\x67b"
    assert [one[:2].hex() for one in pieces] == ["7c85", "7c05", "7c45"]
    sizes = [len(one) for one in pieces]
    assert max(sizes) - min(sizes) <= 2


@pytest.mark.parametrize("data", [b"", b"\0\0", START, START + START[1:], b"no start code"])
def test_nothing_in_it(data):
    """No unit, no payload."""
    assert h264_payloads(data) == []


@given(data=st.binary(min_size=1, max_size=4 * MAX_PAYLOAD), number=st.integers(0, 0x7FFF))
def test_vp8_comes_back(data, number):
    """RFC 7741: each payload bears the picture's ID, the first one says that it begins there."""
    payloads = whole(data, vp8_payloads(data, number))
    assert all(len(one) <= MAX_PAYLOAD for one in payloads)
    assert b"".join(map(vp8_depayload, payloads)) == data
    heads = [VpxPayloadDescriptor.parse(one)[0] for one in payloads]
    assert [one.picture_id for one in heads] == [number] * len(heads)
    assert [one.partition_start for one in heads] == [1] + [0] * (len(heads) - 1)


def test_viewers_share_what_is_the_same_for_all():
    """H.264 is cut once; VP8's picture IDs are each sender's own, go on by one, and wrap."""
    packet = EncodedPacket(START + b"\x65a", 0.0, 0.04, keyframe=True)
    ways = [Packetizer().way("video/H264") for _ in range(2)]
    assert ways[0](packet) is ways[1](packet)
    assert packet == EncodedPacket(packet.data, 0.0, 0.04, keyframe=True)
    packetizer = Packetizer()
    packetizer._picture_id = 0x7FFE
    ids = [int.from_bytes(packetizer.way("video/VP8")(packet)[0][0][2:], "big") for _ in range(2)]
    assert ids == [0xFFFF, 0x8000]
    assert packetizer.way("audio/opus")(packet) == [(b"", 0, len(packet.data))]
    assert packetizer.way("audio/PCMU") is None
