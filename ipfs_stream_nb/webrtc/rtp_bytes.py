"""Serialized RTP packets (RFC 3550, header extensions by RFC 8285), changed without parsing them: it is done for each one."""

from __future__ import annotations

import time
from typing import Final

HEADER: Final = 12
EXTENSION_BYTES: Final = 4
"""By which a packet with header extensions grows by one more of 2 or 3 bytes."""
_ONE_BYTE_PROFILE: Final = 0xBEDE
_ONE_BYTE: Final = 0xBE
"""The first byte of the profile of extensions with one-byte heads."""


def ssrc_of(data: bytes) -> int:
    """The SSRC of a packet."""
    return int.from_bytes(data[8:12], "big")


def sequence_of(data: bytes) -> int:
    """The sequence number of a packet."""
    return data[2] << 8 | data[3]


def with_sequence(data: bytes, number: int) -> bytes:
    """The packet with another sequence number."""
    return data[:2] + number.to_bytes(2, "big") + data[4:]


def with_extensions(data: bytes, *added: tuple[int, bytes]) -> bytes:
    """The packet with more header extensions: each an id of 1 to 14, and a value of 1 to 16 bytes."""
    first = data[0]
    start = HEADER + 4 * (first & 0x0F)
    has = first & 0x10
    one_byte = not has or data[start] == _ONE_BYTE
    elements = b"".join(
        [
            (bytes((id_ << 4 | len(value) - 1,)) if one_byte else bytes((id_, len(value)))) + value
            for id_, value in added
        ]
    )
    # zeros between elements are padding (RFC 8285, section 4.2): more can be put behind what fills the last word
    elements += bytes(-len(elements) % 4)
    words = len(elements) // 4
    if not has:
        head = (_ONE_BYTE_PROFILE << 16 | words).to_bytes(4, "big")
        return b"".join((bytes((first | 0x10,)), data[1:start], head, elements, data[start:]))
    before = data[start + 2] << 8 | data[start + 3]
    end = start + 4 + 4 * before
    return b"".join(
        (data[: start + 2], (before + words).to_bytes(2, "big"), data[start + 4 : end], elements, data[end:])
    )


def find_extension(data: bytes, extension_id: int, length: int) -> int | None:
    """Where the value of a header extension begins; None: the packet has none of that id and length."""
    start = HEADER + 4 * (data[0] & 0x0F)
    if not data[0] & 0x10 or start + 4 > len(data):
        return None
    one_byte = data[start] == _ONE_BYTE
    end = start + 4 + 4 * (data[start + 2] << 8 | data[start + 3])
    at = start + 4
    if end > len(data):
        return None
    while at < end:
        head = data[at]
        at += 1
        if not head:
            continue
        if one_byte:
            found, size = head >> 4, (head & 0x0F) + 1
        elif at == end:
            return None
        else:
            found, size = head, data[at]
            at += 1
        if found == extension_id:
            return at if size == length and at + size <= end else None
        at += size
    return None


def restamped(data: bytes, extension_id: int) -> bytes:
    """The packet with abs-send-time (6.18 fixed point seconds) of now, if it has one."""
    at = find_extension(data, extension_id, 3)
    if at is None:
        return data
    return data[:at] + abs_send_time() + data[at + 3 :]


def abs_send_time() -> bytes:
    """The value of the header extension of that name, of now."""
    # NTP's epoch is a multiple of 64 s away from Unix's, which is where this wraps
    return (int(time.time() * (1 << 18)) & 0xFFFFFF).to_bytes(3, "big")


def as_retransmission(data: bytes, payload_type: int, ssrc: int) -> bytes:
    """The packet as RTX (RFC 4588, section 4), with a sequence number that is still to be set."""
    start = HEADER + 4 * (data[0] & 0x0F)
    if data[0] & 0x10:
        start += 4 + 4 * (data[start + 2] << 8 | data[start + 3])
    head = data[:1] + bytes((data[1] & 0x80 | payload_type,)) + data[2:8] + ssrc.to_bytes(4, "big")
    return head + data[HEADER:start] + data[2:4] + data[start:]


def original_sequence(data: bytes) -> int:
    """The sequence number of the packet that an RTX packet repeats."""
    start = HEADER + 4 * (data[0] & 0x0F)
    if data[0] & 0x10:
        start += 4 + 4 * (data[start + 2] << 8 | data[start + 3])
    return int.from_bytes(data[start : start + 2], "big")
