"""The protobuf wire format (https://protobuf.dev/programming-guides/encoding/), as far as dag-pb and UnixFS need it.

Stricter than protobuf itself: a varint must be in its shortest form and fit 64 bits, so that one value has one
encoding. Buffers are `bytes` or a memoryview; nothing is copied but what is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ipfs_stream_nb.errors import CorruptContentError

VARINT: Final = 0
FIXED64: Final = 1
BYTES: Final = 2
FIXED32: Final = 5
_FIXED_BYTES: Final = {FIXED64: 8, FIXED32: 4}
_MAX_UINT64: Final = 2**64 - 1
_MAX_VARINT_BYTES: Final = 10


def read_varint(buffer: bytes | memoryview, at: int, end: int) -> tuple[int, int]:
    """The number at `at` and the position after it. Raises CorruptContentError."""
    if at < end and buffer[at] < 0x80:
        return buffer[at], at + 1
    value = shift = 0
    for position in range(at, min(at + _MAX_VARINT_BYTES, end)):
        byte = buffer[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if byte == 0 or value > _MAX_UINT64:
                raise CorruptContentError("a number in the block is not in its shortest form or over 64 bits")
            return value, position + 1
        shift += 7
    raise CorruptContentError("a number in the block is cut short or too long")


def read_span(buffer: bytes | memoryview, at: int, end: int) -> tuple[int, int]:
    """Where the bytes of a length-delimited field, whose length stands at `at`, begin and stop."""
    length, start = read_varint(buffer, at, end)
    if length > end - start:
        raise CorruptContentError(f"a field of the block declares {length} bytes, and {end - start} are left")
    return start, start + length


def fields(buffer: bytes | memoryview, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Each field of a message as (number, wire type, a, b).

    `a` is the value of a varint or fixed field (`b` is 0), and `a` to `b` is where a length-delimited one's
    bytes stand. Raises CorruptContentError for what is cut, and for groups, which nobody writes.
    """
    while at < end:
        tag, at = read_varint(buffer, at, end)
        number, wire_type = tag >> 3, tag & 7
        if number == 0:
            raise CorruptContentError("a field of the block has the number 0")
        if wire_type == VARINT:
            value, at = read_varint(buffer, at, end)
            yield number, wire_type, value, 0
        elif wire_type == BYTES:
            start, at = read_span(buffer, at, end)
            yield number, wire_type, start, at
        elif wire_type in _FIXED_BYTES:
            size = _FIXED_BYTES[wire_type]
            if size > end - at:
                raise CorruptContentError("a field of the block is cut short")
            yield number, wire_type, int.from_bytes(buffer[at : at + size], "little"), 0
            at += size
        else:
            raise CorruptContentError(
                f"a field of the block has the wire type {wire_type}, which is not known"
            )
