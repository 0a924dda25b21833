"""Transport-wide congestion control feedback on the wire: RTPFB with format 15
(draft-holmer-rmcat-transport-wide-cc-extensions-01, section 3.1)."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

RTPFB: Final = 205
FORMAT: Final = 15
MAX_STATUSES: Final = 8192
"""Packets of which one feedback packet may tell: more is not read, for a few bytes can claim 65,535."""
MAX_ARRIVALS: Final = 400
"""Arrivals in one feedback packet of ours, which keeps it below 1200 bytes."""
TICK: Final = 0.00025
"""Seconds of a delta's unit."""
REFERENCE_TICKS: Final = 256
"""Ticks of the reference time's unit, which is 64 ms."""
REFERENCE_BITS: Final = 24
_NOT_RECEIVED: Final = 0
_SMALL: Final = 1
_LARGE: Final = 2
_MAX_RUN: Final = 0x1FFF
_HEAD: Final = struct.Struct("!LLHHL")


def unwrap(value: int, near: int, bits: int) -> int:
    """The number nearest to `near` whose lowest bits are `value`."""
    half = 1 << (bits - 1)
    return near + ((value - near + half) & ((1 << bits) - 1)) - half


@dataclass(frozen=True, slots=True)
class TransportFeedback:
    """One feedback packet."""

    sender_ssrc: int
    media_ssrc: int
    base: int
    """Transport sequence number of the first packet it tells of, 16 bit."""
    reference: int
    """Units of 64 ms, 24 bit."""
    count: int
    """Of the feedback packets of this transport, 8 bit."""
    deltas: tuple[int | None, ...]
    """Per packet: ticks since the arrival before it, at first since the reference; None: it has not arrived."""

    def pack(self) -> bytes:
        """The whole RTCP packet."""
        body = _HEAD.pack(
            self.sender_ssrc, self.media_ssrc, self.base, len(self.deltas), self.reference << 8 | self.count
        )
        body += b"".join(struct.pack("!H", chunk) for chunk in _chunks([_symbol(one) for one in self.deltas]))
        body += b"".join(
            struct.pack("!B" if 0 <= one <= 0xFF else "!h", one) for one in self.deltas if one is not None
        )
        spare = -len(body) % 4
        if spare:
            body += bytes(spare - 1) + bytes((spare,))  # RTCP's padding ends with its own length
        return struct.pack("!BBH", 0x80 | bool(spare) << 5 | FORMAT, RTPFB, len(body) // 4) + body

    @classmethod
    def parse(cls, body: bytes, most: int = MAX_STATUSES) -> TransportFeedback:
        """From what follows RTCP's header, without padding, where it tells of `most` packets at the most. Raises ValueError."""
        if len(body) < _HEAD.size:
            raise ValueError("transport feedback is cut short in its head")
        sender_ssrc, media_ssrc, base, statuses, times = _HEAD.unpack_from(body)
        if not 0 < statuses <= most:
            raise ValueError(f"transport feedback tells of {statuses} packets; 1 to {most} are read")
        symbols, at = _symbols(body, statuses)
        deltas: list[int | None] = []
        end = len(body)
        for symbol in symbols:
            if symbol == _NOT_RECEIVED:
                deltas.append(None)
                continue
            if at + symbol > end:
                raise ValueError("transport feedback is cut short in its deltas")
            if symbol == _SMALL:
                deltas.append(body[at])
            else:
                deltas.append(int.from_bytes(body[at : at + 2], "big", signed=True))
            at += symbol  # a small delta has one byte, a large one two
        return cls(sender_ssrc, media_ssrc, base, times >> 8, times & 0xFF, tuple(deltas))


def _symbol(delta: int | None) -> int:
    if delta is None:
        return _NOT_RECEIVED
    return _SMALL if 0 <= delta <= 0xFF else _LARGE


def _symbols(body: bytes, statuses: int) -> tuple[list[int], int]:
    """The symbols of all packets, and where the deltas begin."""
    symbols: list[int] = []
    at = _HEAD.size
    while len(symbols) < statuses:
        if at + 2 > len(body):
            raise ValueError("transport feedback is cut short in its chunks")
        chunk = body[at] << 8 | body[at + 1]
        at += 2
        if not chunk & 0x8000:
            run = min(chunk & _MAX_RUN, statuses - len(symbols))
            if not run:
                raise ValueError("transport feedback has an empty run")
            symbols += [chunk >> 13] * run
        elif chunk & 0x4000:
            symbols += [chunk >> shift & 3 for shift in range(12, -1, -2)]
        else:
            symbols += [chunk >> shift & 1 for shift in range(13, -1, -1)]
    del symbols[statuses:]
    if 3 in symbols:
        raise ValueError("transport feedback has a reserved symbol")
    return symbols, at


def _chunks(symbols: Sequence[int]) -> Iterator[int]:
    """Runs where they are long, vectors of 14 or 7 symbols elsewhere."""
    at = 0
    while at < len(symbols):
        symbol, run = symbols[at], 1
        while at + run < len(symbols) and symbols[at + run] == symbol and run < _MAX_RUN:
            run += 1
        small = _LARGE not in islice(symbols, at, at + 14)
        room = 14 if small else 7
        if run >= min(room, len(symbols) - at):
            yield symbol << 13 | run
            at += run
            continue
        vector, bits = (0x8000, 1) if small else (0xC000, 2)
        for place, one in enumerate(symbols[at : at + room]):
            vector |= one << bits * (room - 1 - place)
        yield vector
        at += room


def feedback_for(
    arrivals: Mapping[int, float], first: int, *, sender_ssrc: int, media_ssrc: int, count: int
) -> list[TransportFeedback]:
    """What is to be told of the packets from number `first` on: `arrivals` has their times in seconds, by the unwrapped
    number. `count` is the first one's."""
    found: list[TransportFeedback] = []
    deltas: list[int | None] = []
    base, reference, last, received = first, 0, 0, 0

    def finish() -> None:
        if received:
            found.append(
                TransportFeedback(
                    sender_ssrc, media_ssrc, base & 0xFFFF, reference & 0xFFFFFF,
                    count + len(found) & 0xFF, tuple(deltas),
                )
            )  # fmt: skip

    for number in sorted(one for one in arrivals if one >= first):
        ticks = round(arrivals[number] / TICK)
        missing = number - base - len(deltas)
        if received and not (
            received < MAX_ARRIVALS
            and len(deltas) + missing < MAX_STATUSES
            and -0x8000 <= ticks - last <= 0x7FFF
        ):
            finish()
            base, deltas, received = base + len(deltas), [], 0
        if not received:
            base = base if number - base < MAX_STATUSES else number
            missing = number - base
            reference = ticks // REFERENCE_TICKS
            last = reference * REFERENCE_TICKS
        deltas += [None] * missing
        deltas.append(ticks - last)
        last, received = ticks, received + 1
    finish()
    return found


def split_rtcp(data: bytes) -> tuple[list[bytes], bytes]:
    """The bodies of the transport feedback in a compound RTCP packet, and the packet without them. Raises ValueError."""
    bodies: list[bytes] = []
    rest = b""
    at = 0
    while at < len(data):
        if at + 4 > len(data) or data[at] >> 6 != 2:
            raise ValueError("no RTCP packet")
        end = at + 4 + 4 * (data[at + 2] << 8 | data[at + 3])
        if end > len(data):
            raise ValueError("an RTCP packet is cut short")
        if data[at + 1] == RTPFB and data[at] & 0x1F == FORMAT:
            padding = data[end - 1] if data[at] & 0x20 else 0
            if padding > end - at - 4:
                raise ValueError("an RTCP packet's padding is longer than itself")
            bodies.append(data[at + 4 : end - padding])
        else:
            rest += data[at:end]
        at = end
    return bodies, rest
