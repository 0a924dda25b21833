"""Records as bytes, and the flows that packets belong to: for the process that shuttles packets, without numpy."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from link.model import Row

ROW = struct.Struct("<BBIIdddd")
"""Whether it went up, and a `Row`."""
TCP, UDP = 6, 17


def pack(rows: Iterable[Row], *, up: bool) -> bytes:
    return b"".join(ROW.pack(up, *row) for row in rows)


def flow_id(protocol: int, viewer_port: int) -> int:
    """The number of a flow in the records: IP's number of the protocol, and the port at the viewer's end."""
    return protocol << 16 | viewer_port


def flow_of(packet: bytes, *, up: bool) -> int:
    """The flow of an IP packet; 0 for what is neither IPv4 nor has ports."""
    if len(packet) < 20 or packet[0] >> 4 != 4 or packet[9] not in (TCP, UDP):
        return 0
    ports = 4 * (packet[0] & 15)
    port = packet[ports : ports + 2] if up else packet[ports + 2 : ports + 4]
    return flow_id(packet[9], int.from_bytes(port, "big"))
