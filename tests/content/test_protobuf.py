"""The protobuf wire format, stricter than protobuf."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfs_stream_nb.content.cid import varint
from ipfs_stream_nb.content.protobuf import BYTES, FIXED32, FIXED64, VARINT, fields, read_span, read_varint
from ipfs_stream_nb.errors import CorruptContentError


@given(st.integers(0, 2**64 - 1), st.binary(max_size=3))
def test_varints_of_64_bits(value, before):
    """Any 64-bit number reads back, with the position after it."""
    data = before + varint(value)
    assert read_varint(data + b"\xff", len(before), len(data)) == (value, len(data))


@pytest.mark.parametrize(
    "data", [b"", b"\x80", b"\x80\x00", b"\x81\x80\x00", b"\xff" * 9 + b"\x02", b"\xff" * 11]
)
def test_varints_that_are_no_numbers(data):
    """Cut, padded and over-long varints are refused."""
    with pytest.raises(CorruptContentError):
        read_varint(data, 0, len(data))


def test_a_span_stays_inside():
    """A length that reaches over the end is refused, whatever follows in the buffer."""
    assert read_span(b"\x02ab", 0, 3) == (1, 3)
    with pytest.raises(CorruptContentError, match="declares 3 bytes, and 2 are left"):
        read_span(b"\x03abcdef", 0, 3)


def test_fields_of_each_wire_type():
    """Each field comes with its number, wire type, and value or place."""
    data = b"\x08\x05\x12\x02hi\x1d\x01\x00\x00\x00\x21\x02\x00\x00\x00\x00\x00\x00\x00"
    assert list(fields(data, 0, len(data))) == [
        (1, VARINT, 5, 0),
        (2, BYTES, 4, 6),
        (3, FIXED32, 1, 0),
        (4, FIXED64, 2, 0),
    ]


@pytest.mark.parametrize(
    "data", [b"\x0b", b"\x0c", b"\x0e\x00", b"\x0f", b"\x00\x00", b"\x1d\x01", b"\x21", b"\x08"]
)
def test_groups_unknown_types_and_cuts(data):
    """Groups, wire types that don't exist, the field number 0 and cut values are refused."""
    with pytest.raises(CorruptContentError):
        list(fields(data, 0, len(data)))
