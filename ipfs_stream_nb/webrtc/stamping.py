"""The last bytes of each packet: header extensions, and the sequence numbers of retransmissions."""

from __future__ import annotations

from collections import OrderedDict

from ipfs_stream_nb.webrtc.packets import KEPT
from ipfs_stream_nb.webrtc.playout import value_of
from ipfs_stream_nb.webrtc.rtp_bytes import (
    EXTENSION_BYTES,
    sequence_of,
    ssrc_of,
    with_extensions,
    with_sequence,
)
from ipfs_stream_nb.webrtc.send_queue import WIRE_BYTES
from ipfs_stream_nb.webrtc.transport_cc import SendHistory, Stream


class Stamper:
    """Stamps what leaves by one transport, and notes it in the history."""

    def __init__(self, history: SendHistory) -> None:
        self.playout_delay: float | None = None
        """Seconds that the receiver is asked to keep pictures; None: it is asked for nothing."""
        self._history = history
        self._rtx_next: dict[int, int] = {}
        self._kept: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        """By SSRC and sequence number, packets of streams that are retransmitted as they are: as they were, to the byte, since SRTP
        may use a nonce for one packet alone (RFC 7714, section 8.1)."""

    def stamped(self, data: bytes, stream: Stream, now: float, probe: int | None) -> tuple[bytes, int]:
        """A packet as it leaves, and its bytes on the wire."""
        if stream.kind == "retransmission":
            # padding is of the same stream, so that aiortc's own numbers would be used twice
            ssrc = ssrc_of(data)
            number = self._rtx_next.get(ssrc, sequence_of(data))
            self._rtx_next[ssrc] = number + 1 & 0xFFFF
            return self._extended(with_sequence(data, number), stream, now, probe)
        if stream.rtx_ssrc is not None:
            return self._extended(data, stream, now, probe)
        key = ssrc_of(data), sequence_of(data)
        if (before := self._kept.get(key)) is not None:
            return before, len(before) + WIRE_BYTES
        whole, size = self._extended(data, stream, now, probe)
        self._kept[key] = whole
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return whole, size

    def _extended(self, data: bytes, stream: Stream, now: float, probe: int | None) -> tuple[bytes, int]:
        added: list[tuple[int, bytes]] = []
        if stream.playout_delay_id is not None and self.playout_delay is not None:
            added.append((stream.playout_delay_id, value_of(self.playout_delay)))
        size = len(data) + WIRE_BYTES + EXTENSION_BYTES * len(added)
        if stream.extension_id is not None:
            size += EXTENSION_BYTES
            number = self._history.add(now, size, probe)
            added.append((stream.extension_id, number.to_bytes(2, "big")))
        return (with_extensions(data, *added) if added else data), size
