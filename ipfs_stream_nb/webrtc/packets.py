"""The RTP packets of one aiortc sender, made as bytes.

aiortc makes each of several objects, which costs a server more than to encrypt and to send it, and keeps the last 128, which
at 10 Mbit/s is no round trip across an ocean. What it is made to do here concerns the one sender alone.
"""

from __future__ import annotations

import logging
import secrets
import struct
from typing import Any, Final

import aiortc
from aiortc import RTCRtpSender
from aiortc.clock import current_ntp_time
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from aiortc.rtp import HeaderExtensions

from ipfs_stream_nb.webrtc.marks import sender_origin
from ipfs_stream_nb.webrtc.rtp_bytes import as_retransmission, sequence_of, with_sequence

KEPT: Final = 512
"""Packets that can be sent once more."""
_HEADER: Final = struct.Struct("!BBHLL")
_EXTENSIONS: Final = struct.Struct("!HH")
_PRIVATE: Final = "_RTCRtpSender__"
_NEEDED: Final = (
    *("_next_encoded_frame", "_retransmit", "_ssrc", "_rtx_ssrc"),
    *(
        _PRIVATE + name
        for name in (
            *("mid", "rtp_header_extensions_map", "rtx_payload_type"),
            *("ntp_timestamp", "rtp_timestamp", "octet_count", "packet_count"),
        )
    ),
)
_log = logging.getLogger(__name__)


class PacketSender:
    """Sends what an RTCRtpSender's track gives, and once more what is asked for again.

    aiortc's own loop asks for the next frame, gets it sent, and hears that there was none; that it begins, ends and fails is
    left to it.
    """

    def __init__(self, sender: RTCRtpSender) -> None:
        """To be made before the sender begins to send. Where aiortc's insides are not those that this is made for, it says so in the
        log as an error, and does nothing."""
        missing = [name for name in _NEEDED if not hasattr(sender, name)]
        if missing:
            _log.error(
                "aiortc %s has no %s: its packets are made by itself", aiortc.__version__, ", ".join(missing)
            )
            return
        self._sender: Any = sender
        self._next = sender._next_encoded_frame  # noqa: SLF001  # aiortc has no setting for any of it
        self._number = secrets.randbits(15)
        """The next sequence number; in the lower half at first, so that SRTP cannot mistake its first round (RFC 3711, section 3.3.1)."""
        self._repeats = secrets.randbits(15)
        """The same of retransmissions."""
        self._origin: int | None = None
        """What is added to timestamps: aiortc's own number, since marks are made by that (Marker)."""
        self._kept: dict[int, bytes] = {}
        """By sequence number, modulo KEPT."""
        sender._next_encoded_frame = self._send_next  # type: ignore[method-assign]  # noqa: SLF001
        sender._retransmit = self._retransmit  # type: ignore[method-assign]  # noqa: SLF001

    async def _send_next(self, codec: RTCRtpCodecParameters) -> None:
        frame = await self._next(codec)
        if frame is None:
            return
        sender, ssrc = self._sender, self._sender._ssrc  # noqa: SLF001
        if self._origin is None:
            self._origin = sender_origin() or secrets.randbits(32)
        ntp = current_ntp_time()
        extensions = self._extensions(ntp, frame.audio_level)
        first = 0x90 if extensions else 0x80
        timestamp = (self._origin + frame.timestamp) & 0xFFFFFFFF
        self._set("ntp_timestamp", ntp)
        self._set("rtp_timestamp", timestamp)
        kind, rest = codec.payloadType, len(frame.payloads)
        assert kind is not None  # noqa: S101  # it was agreed upon
        send, kept = sender.transport._send_rtp, self._kept  # noqa: SLF001
        for payload in frame.payloads:
            rest -= 1
            number = self._number
            head = _HEADER.pack(first, kind if rest else kind | 0x80, number, timestamp, ssrc)
            kept[number % KEPT] = data = b"".join((head, extensions, payload))
            self._number = number + 1 & 0xFFFF
            await send(data)
        self._set("octet_count", self._get("octet_count") + sum(map(len, frame.payloads)))
        self._set("packet_count", self._get("packet_count") + len(frame.payloads))

    def _extensions(self, ntp: int, audio_level: int | None) -> bytes:
        """The header extensions of a frame's packets, with a time: which waits is stamped anew when it goes."""
        values = HeaderExtensions(
            abs_send_time=(ntp >> 14) & 0xFFFFFF,
            mid=self._get("mid"),
            audio_level=None if audio_level is None else (False, -audio_level),
        )
        profile, value = self._get("rtp_header_extensions_map").set(values)
        return _EXTENSIONS.pack(profile, len(value) // 4) + value if value else b""

    async def _retransmit(self, sequence_number: int) -> None:
        data = self._kept.get(sequence_number % KEPT)
        if data is None or sequence_of(data) != sequence_number:
            return
        payload_type = self._get("rtx_payload_type")
        if payload_type is not None:
            data = as_retransmission(data, payload_type, self._sender._rtx_ssrc)  # noqa: SLF001
            data = with_sequence(data, self._repeats)
            self._repeats = self._repeats + 1 & 0xFFFF
        await self._sender.transport._send_rtp(data)  # noqa: SLF001

    def _get(self, name: str) -> Any:
        return getattr(self._sender, _PRIVATE + name)

    def _set(self, name: str, value: int) -> None:
        setattr(self._sender, _PRIVATE + name, value)
