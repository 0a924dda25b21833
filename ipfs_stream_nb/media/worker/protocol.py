"""What a worker and its parent say to each other: messages with a length, a kind and a number, over one socket.

Neither side trusts the other with more than bytes and JSON. The number is that of a cursor (from 1; 0 is the worker as a
whole), or in READ and BYTES that of the read.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Any, Final

from ipfs_stream_nb.errors import IPFSStreamError
from ipfs_stream_nb.media.encoded import EncodedPacket

HEADER: Final = struct.Struct("!IBI")
"""Bytes of the body, kind, number."""
MORE: Final = struct.Struct("!dIId")
"""Go on until this time (s), for at most so many bytes, at so many bit/s and frames a second; 0 each: as ordered."""
READ: Final = struct.Struct("!QI")
"""Offset and length."""
COUNT: Final = struct.Struct("!I")
"""Packets and frames that were damaged so far."""
_PACKET: Final = struct.Struct("!dd?I")

MAX_BODY: Final = 16 * 2**20
"""Bytes of a message at most."""
MAX_PACKET: Final = 8 * 2**20
"""Bytes of one packet at most."""
MAX_BATCH: Final = 1024
"""Packets that one MORE gives at most."""
MAX_ERROR: Final = 500
"""Characters of an error's text."""


class Kind(IntEnum):
    """Of a message; those from READY on come from the worker."""

    OPEN = 1
    """JSON: {"size": bytes of the content}. Answered by INFO or FAILED."""
    START = 2
    """A new cursor, JSON: {"kind", "position", "after", "height", "bitrate", "aim"}."""
    MORE = 3
    """Answered by PACKETS, any number of times, and then PAUSED, ENDED or FAILED."""
    STOP = 4
    """Forget the cursor; not answered."""
    BYTES = 5
    """What was asked for by READ."""
    NO_BYTES = 6
    """The JSON of the error instead."""
    READY = 16
    """Everything is imported, and the sandbox is shut."""
    INFO = 17
    """EncodedInfo as JSON."""
    PACKETS = 18
    PAUSED = 19
    """The MORE is done; COUNT."""
    ENDED = 20
    """There are no more packets; COUNT."""
    FAILED = 21
    """JSON of an error."""
    READ = 22
    """The worker needs bytes of the content."""
    ALIVE = 23
    """Decoding on the way to the position that was asked for: it takes long, but it goes on."""


def message(kind: Kind, number: int = 0, body: bytes = b"") -> bytes:
    """A message as it is sent."""
    return HEADER.pack(len(body), kind, number) + body


def to_json(value: Any) -> bytes:
    """A body of JSON."""
    return json.dumps(value, separators=(",", ":")).encode()


def error_body(error: IPFSStreamError) -> bytes:
    """An error as a body of JSON; the other side makes it of the same kind again."""
    return to_json({"code": error.code, "error": str(error)[:MAX_ERROR]})


def pack(packets: Sequence[EncodedPacket]) -> bytes:
    """Packets as a body of PACKETS."""
    parts: list[bytes] = []
    for one in packets:
        parts += _PACKET.pack(one.time, one.duration, one.keyframe, len(one.data)), one.data
    return b"".join(parts)


def unpack(body: bytes) -> Iterator[EncodedPacket]:
    """The packets of a body. Raises ValueError for one that is not whole, and for times that are no times."""
    at = 0
    while at < len(body):
        if at + _PACKET.size > len(body):
            raise ValueError("a packet's header is cut short")
        time, duration, keyframe, size = _PACKET.unpack_from(body, at)
        at += _PACKET.size
        if not (0 <= time < math.inf and 0 <= duration < math.inf and size <= len(body) - at):
            raise ValueError(f"a packet of {size} bytes at {time} s, {duration} s long")
        yield EncodedPacket(body[at : at + size], time, duration, keyframe)
        at += size
