"""What RTP packets carry of an encoded picture or piece of sound, told as places in its bytes: for all its viewers once."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Final

from ipfs_stream_nb.media.encoded import EncodedPacket, Payload

MAX_PAYLOAD: Final = 1300
"""Bytes, as aiortc has it: with all headers below 1,400, which every path carries."""
_STAP_A, _FU_A = 24, 28
_START: Final = b"\0\0\1"
_START_BIT, _END_BIT = 0x80, 0x40


def h264_payloads(data: bytes) -> list[Payload]:
    """An access unit in Annex B (RFC 6184): NAL units that are small share a packet (STAP-A, section 5.7.1), large ones are cut into
    pieces of like size (FU-A, section 5.8)."""
    payloads: list[Payload] = []
    small: list[tuple[int, int]] = []
    used = 1
    for start, end in _nal_units(data):
        size = end - start
        if small and used + 2 + size > MAX_PAYLOAD:
            payloads.append(_together(data, small))
            small, used = [], 1
        if size > MAX_PAYLOAD:
            payloads += _pieces(data[start], start + 1, end)
        else:
            small.append((start, end))
            used += 2 + size
    if small:
        payloads.append(_together(data, small))
    return payloads


def _nal_units(data: bytes) -> Iterator[tuple[int, int]]:
    """Where each begins and ends: start codes and the zeros before them are none of it (H.264, Annex B)."""
    at = data.find(_START)
    while at >= 0:
        start = at + len(_START)
        at = data.find(_START, start)
        end = len(data) if at < 0 else at
        while end > start and not data[end - 1]:
            end -= 1
        if end > start:
            yield start, end


def _together(data: bytes, units: list[tuple[int, int]]) -> Payload:
    if len(units) == 1:
        return b"", *units[0]
    heads = [data[start] for start, _ in units]
    head = max(one & 0x60 for one in heads) | max(one & 0x80 for one in heads) | _STAP_A
    parts = [bytes((head,))]
    for start, end in units:
        parts += (end - start).to_bytes(2, "big"), data[start:end]
    return b"".join(parts), 0, 0


def _pieces(head: int, start: int, end: int) -> Iterator[Payload]:
    indicator, kind = head & 0xE0 | _FU_A, head & 0x1F
    count = -((start - end) // (MAX_PAYLOAD - 2))
    size = -((start - end) // count)
    for at in range(start, end, size):
        first, last = at == start, at + size >= end
        bits = (_START_BIT if first else 0) | (_END_BIT if last else 0)
        yield bytes((indicator, kind | bits)), at, min(at + size, end)


def vp8_payloads(data: bytes, picture_id: int) -> list[Payload]:
    """A frame behind descriptors with a picture ID of 15 bits (RFC 7741, section 4.2)."""
    rest = (picture_id | 0x8000).to_bytes(2, "big")
    size = MAX_PAYLOAD - 4
    return [
        ((b"\x80\x80" if at else b"\x90\x80") + rest, at, min(at + size, len(data)))
        for at in range(0, len(data), size)
    ]


class Packetizer:
    """Cuts what one sender sends."""

    def __init__(self) -> None:
        self._picture_id = secrets.randbits(15)
        self._ways: dict[str, Callable[[EncodedPacket], list[Payload]]] = {
            "video/h264": self._h264,
            "video/vp8": self._vp8,
            "audio/opus": lambda packet: [(b"", 0, len(packet.data))],
        }

    def way(self, mime_type: str) -> Callable[[EncodedPacket], list[Payload]] | None:
        """How packets of a codec are cut; None: it is not ours."""
        return self._ways.get(mime_type.lower())

    def _h264(self, packet: EncodedPacket) -> list[Payload]:
        if not packet.payloads:
            packet.payloads.extend(h264_payloads(packet.data))
        return packet.payloads

    def _vp8(self, packet: EncodedPacket) -> list[Payload]:
        self._picture_id = self._picture_id + 1 & 0x7FFF
        return vp8_payloads(packet.data, self._picture_id)
