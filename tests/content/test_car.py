"""CARs: v1 and v2 in pieces of any size, cut, padded and hostile."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from format_strategies import cids, damaged
from ipfs_stream_nb.content.car import (
    MAX_HEADER,
    CarBlock,
    CarDecoder,
    encode_header,
    encode_section,
    encode_section_prefix,
)
from ipfs_stream_nb.content.cid import CID, DAG_PB, varint
from ipfs_stream_nb.content.dag_pb import MAX_BLOCK
from ipfs_stream_nb.errors import CorruptContentError, IPFSStreamError, TooLargeError

PRAGMA_V2 = bytes.fromhex("0aa16776657273696f6e02")
A, B = CarBlock(CID.of(b"a"), b"a"), CarBlock(CID.of(b"bb", DAG_PB, 0), b"bb")


def car_v1(roots, blocks) -> bytes:
    return encode_header(roots) + b"".join(encode_section(*block) for block in blocks)


def car_v2(payload: bytes, gap: bytes = b"", index: bytes = b"", **header: int) -> bytes:
    offset = header.get("offset", 51 + len(gap))
    size = header.get("size", len(payload))
    at = header.get("index_at", offset + size if index else 0)
    fields = b"".join(value.to_bytes(8, "little") for value in (offset, size, at))
    return PRAGMA_V2 + bytes(16) + fields + gap + payload + index


def decode(data: bytes, *steps: int) -> tuple[CarDecoder, list[CarBlock]]:
    """Feed all of `data` in pieces of the sizes given, over and over."""
    decoder, blocks, at, turn = CarDecoder(), [], 0, 0
    while at < len(data):
        step = steps[turn % len(steps)] if steps else len(data)
        blocks += decoder.feed(data[at : at + step])
        at, turn = at + step, turn + 1
    decoder.finish()
    return decoder, blocks


car_blocks = st.lists(st.builds(CarBlock, cids, st.binary(max_size=300)), max_size=6)
pieces = st.lists(st.integers(1, 400), min_size=1, max_size=4)


@given(st.lists(cids, max_size=4), car_blocks, pieces, st.integers(0, 40))
def test_v1_in_any_pieces(roots, blocks, steps, zeros):
    """Roots and blocks come out as they went in, however the bytes arrive, with zeros behind them too."""
    decoder, found = decode(car_v1(roots, blocks) + bytes(zeros), *steps)
    assert decoder.version == 1
    assert decoder.roots == tuple(roots)
    assert found == blocks


@given(st.lists(cids, max_size=3), car_blocks, pieces, st.binary(max_size=60), st.binary(max_size=60))
def test_v2_in_any_pieces(roots, blocks, steps, gap, index):
    """The data of a CARv2 comes out alone: what stands before it, and the index, are passed over."""
    decoder, found = decode(car_v2(car_v1(roots, blocks), gap, index), *steps)
    assert decoder.version == 2
    assert decoder.roots == tuple(roots)
    assert found == blocks


def test_known_header():
    """The header that go-car writes for one root."""
    root = CID.parse("bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4")
    assert encode_header([root]).hex() == (
        "3aa265726f6f747381d82a58250001551220"
        "a948904f2f0f479b8f8197694b30184b0d2ed1c1cd2a1ec0fb85d299a192a447"
        "6776657273696f6e01"
    )


@pytest.mark.parametrize("count", [0, 1, 23, 24, 255, 256, 20_000])
def test_any_number_of_roots(count):
    """Up to 20,000 roots fit a header."""
    roots = tuple(CID.of(str(i).encode()) for i in range(count))
    assert decode(encode_header(roots))[0].roots == roots


def test_a_section_without_a_copy():
    """The prefix alone lets a writer send a block after it without joining the two."""
    assert encode_section_prefix(A.cid, 1) + A.data == encode_section(*A)


@pytest.mark.parametrize("steps", [(), (1,)])
def test_every_cut_of_a_v1(steps):
    """A CAR that is cut anywhere but between two sections is refused at its end."""
    data = car_v1([A.cid], [A, B])
    whole = {len(data), len(data) - len(encode_section(*B)), len(encode_header([A.cid]))}
    for stop in range(len(data)):
        if stop in whole:
            decode(data[:stop], *steps)
        else:
            with pytest.raises(CorruptContentError, match="cut short"):
                decode(data[:stop], *steps)


def test_every_cut_of_a_v2():
    """A CARv2 knows its length, so every cut before its index is noticed."""
    data = car_v2(car_v1([A.cid], [A, B]), b"gap", b"index")
    for stop in range(len(data) - len(b"index")):
        with pytest.raises(CorruptContentError, match="cut short"):
            decode(data[:stop])
    decode(data[:-1])


@pytest.mark.parametrize("steps", [(), (1,), (7,)])
def test_bytes_after_padding(steps):
    """Zeros may follow the last section, and only zeros."""
    with pytest.raises(CorruptContentError, match="padding"):
        decode(car_v1([A.cid], [A]) + bytes(9) + b"x", *steps)
    padded = car_v2(car_v1([A.cid], [A]) + bytes(9), index=b"index")
    assert decode(padded, *steps)[1] == [A]


def header(cbor: bytes) -> bytes:
    return varint(len(cbor)) + cbor


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        b"GIF89a" + bytes(100),
        header(b"\xa0"),
        header(b"\x80"),
        header(b"\x01"),
        header(b"\xa1\x67version\x01"),
        header(b"\xa1\x67version\x03") + bytes(60),
        header(b"\xa2\x65roots\x80\x67version\x02"),
        header(b"\xa2\x65roots\x81\x01\x67version\x01"),
        header(b"\xa2\x65roots\xa0\x67version\x01"),
        header(b"\xa2\x65roots\x81\x58\x24" + bytes(A.cid) + b"\x67version\x01"),
        header(b"\xa2\x65roots\x9f\xff\x67version\x01"),
        header(b"\xa2\x65roots\x80\x67version\x01\x00"),
        header(b"\x81" * 500_000),
        b"\x80\x00",
        b"\xff" * 11,
        encode_header([A.cid]) + b"\x81\x00a",
        encode_header([A.cid]) + b"\x02ab",
        encode_header([A.cid]) + b"\x23" + bytes(A.cid)[:-1],
        encode_header([A.cid]) + varint(25) + b"\x01\x55\x11\x14" + bytes(21),
        encode_header([A.cid]) + varint(10) + bytes(A.cid)[:10],
        car_v2(car_v1([A.cid], [A]), offset=50),
        car_v2(car_v1([A.cid], [A]), offset=0),
        car_v2(car_v1([A.cid], [A]), size=0),
        car_v2(car_v1([A.cid], [A]), index_at=60),
        car_v2(car_v1([A.cid], [A]), size=len(car_v1([A.cid], [A])) - 1) + bytes(99),
        car_v2(car_v1([A.cid], [A]), size=5) + bytes(99),
        car_v2(car_v1([A.cid], [A]) + b"\x80") + b"\x01",
        car_v2(car_v2(car_v1([A.cid], [A]))),
    ],
    ids=range(29),
)
def test_what_is_no_car(data):
    """Other files, other versions, malformed headers, sections and CARv2 headers are CorruptContentError."""
    for steps in ((), (1,)):
        if steps and len(data) > 1000:
            continue
        with pytest.raises(CorruptContentError):
            decode(data, *steps)


def test_a_section_over_the_end_of_a_v2():
    """A section that reaches over the declared data is refused at once, not waited for."""
    payload = car_v1([A.cid], [A])
    with pytest.raises(CorruptContentError, match="reaches over the end"):
        CarDecoder().feed(car_v2(payload, size=len(payload) - 1) + bytes(99))
    with pytest.raises(CorruptContentError, match="reaches over the end"):
        CarDecoder().feed(car_v2(payload + b"\x80"))


@pytest.mark.parametrize("wrong", [{"offset": 50}, {"size": 0}, {"index_at": 60}])
def test_v2_headers_that_overlap(wrong):
    """Data inside of the header, no data, and an index inside of the data are named as such."""
    with pytest.raises(CorruptContentError, match="CARv2 header places"):
        CarDecoder().feed(car_v2(car_v1([A.cid], [A]), **wrong))


def test_limits_come_before_memory():
    """A header or block that declares more than is allowed is refused before its bytes are waited for."""
    with pytest.raises(TooLargeError, match=f"at most {MAX_HEADER}"):
        CarDecoder().feed(varint(MAX_HEADER + 1))
    decoder = CarDecoder()
    decoder.feed(encode_header([A.cid]))
    with pytest.raises(TooLargeError, match="block of 1099511627776 bytes"):
        decoder.feed(varint(2**40))
    with pytest.raises(TooLargeError, match=f"at most {MAX_BLOCK}"):
        CarDecoder().feed(encode_header([]) + encode_section(A.cid, bytes(MAX_BLOCK + 1)))


def test_the_largest_block():
    """A block of exactly the limit is read."""
    data = bytes(MAX_BLOCK)
    assert decode(car_v1([], [CarBlock(CID.of(data), data)]), 65_536)[1][0].data == data


def test_the_decoder_keeps_one_section():
    """Between two pieces the decoder holds no more than the section that is not complete."""
    decoder = CarDecoder()
    blocks = [CarBlock(CID.of(bytes([i]) * 1000), bytes([i]) * 1000) for i in range(200)]
    data = car_v1([A.cid], blocks)
    for at in range(0, len(data), 700):
        decoder.feed(data[at : at + 700])
        assert len(decoder._buffer) < 1100
    decoder.feed(b"\0")
    for _ in range(10):
        decoder.feed(bytes(10_000))
        assert not decoder._buffer


@settings(max_examples=500)
@given(
    st.binary(max_size=200)
    | st.binary(max_size=200).map(lambda data: encode_header([A.cid]) + data)
    | st.binary(max_size=60).map(header)
    | damaged(st.builds(car_v1, st.lists(cids, max_size=2), car_blocks))
    | damaged(st.builds(car_v2, st.builds(car_v1, st.lists(cids, max_size=2), car_blocks))),
    pieces,
)
def test_any_bytes_are_read_or_refused(data, steps):
    """No bytes bring out anything but blocks or errors of ours, the same however they are cut up."""
    results = []
    for sizes in (steps, ()):
        try:
            decoder, blocks = decode(data, *sizes)
            results.append((decoder.roots, blocks))
        except IPFSStreamError as error:
            results.append(type(error))
    assert results[0] == results[1]
