"""The RTP packets of one aiortc sender, made as bytes.

aiortc makes each of several objects, which costs a server more than to encrypt and to send it, and keeps the last 128, which
at 10 Mbit/s is no round trip across an ocean. What it is made to do here concerns the one sender alone.
"""

from __future__ import annotations

import logging
import secrets
import struct
import time
from typing import Any, Final

import aiortc
from aiortc import RTCRtpSender
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from aiortc.rtp import HeaderExtensions

from ipfs_stream_nb.media.encoded import Payload
from ipfs_stream_nb.webrtc.marks import sender_origin
from ipfs_stream_nb.webrtc.payloads import Packetizer
from ipfs_stream_nb.webrtc.rtp_bytes import abs_send_time, as_retransmission, sequence_of, with_sequence
from ipfs_stream_nb.webrtc.tracks import IPFSMediaStreamTrack

KEPT: Final = 512
"""Packets that can be sent once more."""
_HEADER: Final = struct.Struct("!BBHLL")
_EXTENSIONS: Final = struct.Struct("!HH")
_NTP_EPOCH: Final = 2_208_988_800
"""Seconds from 1900, where NTP's time begins, to 1970."""
_MID, _EXTENSIONS_MAP, _RTX_TYPE, _NTP_TIME, _RTP_TIME, _OCTETS, _PACKETS = _OWN = tuple(
    f"_RTCRtpSender__{name}"
    for name in (
        *("mid", "rtp_header_extensions_map", "rtx_payload_type"),
        *("ntp_timestamp", "rtp_timestamp", "octet_count", "packet_count"),
    )
)
_NEEDED: Final = ("_next_encoded_frame", "_retransmit", "_enabled", "_ssrc", "_rtx_ssrc", *_OWN)
_SENT: Final = b"\xff\xff\xff"
"""Where the time goes when a packet is sent: an extension's value of this kind that no other bytes of extensions can be."""
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
        self._state = vars(sender)
        """aiortc's own, which its reports are made of."""
        self._packetizer = Packetizer()
        self._next = sender._next_encoded_frame  # noqa: SLF001  # aiortc has no setting for any of it
        self._number = secrets.randbits(15)
        """The next sequence number; in the lower half at first, so that SRTP cannot mistake its first round (RFC 3711, section 3.3.1)."""
        self._repeats = secrets.randbits(15)
        """The same of retransmissions."""
        self._origin: int | None = None
        """What is added to timestamps: aiortc's own number, since marks are made by that (Marker)."""
        self._kept: dict[int, bytes] = {}
        """By sequence number, modulo KEPT."""
        self._usual: list[bytes] | None = None
        """Header extensions of what has no loudness, split where abs-send-time is."""
        sender._next_encoded_frame = self._send_next  # type: ignore[method-assign]  # noqa: SLF001
        sender._retransmit = self._retransmit  # type: ignore[method-assign]  # noqa: SLF001

    async def _send_next(self, codec: RTCRtpCodecParameters) -> None:
        data, payloads, ticks, audio_level = await self._next_payloads(codec)
        if not payloads:
            return
        sender, state, ssrc = self._sender, self._state, self._sender._ssrc  # noqa: SLF001
        if self._origin is None:
            self._origin = sender_origin() or secrets.randbits(32)
        extensions = self._extensions(audio_level)
        first = 0x90 if extensions else 0x80
        timestamp = (self._origin + ticks) & 0xFFFFFFFF
        state[_NTP_TIME], state[_RTP_TIME] = int((time.time() + _NTP_EPOCH) * (1 << 32)), timestamp
        kind, rest, octets = codec.payloadType, len(payloads), 0
        assert kind is not None  # noqa: S101  # it was agreed upon
        send, kept = sender.transport._send_rtp, self._kept  # noqa: SLF001
        for prefix, start, end in payloads:
            rest -= 1
            number = self._number
            head = _HEADER.pack(first, kind if rest else kind | 0x80, number, timestamp, ssrc)
            kept[number % KEPT] = packet = b"".join((head, extensions, prefix, data[start:end]))
            octets += len(prefix) + end - start
            self._number = number + 1 & 0xFFFF
            # False: its video was dropped while this waited, and the picture is given up
            if await send(packet) is False:
                break
        state[_OCTETS] += octets
        state[_PACKETS] += len(payloads) - rest

    async def _next_payloads(
        self, codec: RTCRtpCodecParameters
    ) -> tuple[bytes, list[Payload], int, int | None]:
        """What is to be sent next, of which bytes, with its timestamp and loudness: of a track of ours as it is, of any other as
        aiortc encodes or cuts it."""
        track, way = self._sender.track, self._packetizer.way(codec.mimeType)
        if way is not None and isinstance(track, IPFSMediaStreamTrack) and track.track is None:
            timed = await track.next()
            payloads = way(timed.packet) if self._sender._enabled else []  # noqa: SLF001
            return timed.packet.data, payloads, timed.ticks, None
        frame = await self._next(codec)
        if frame is None:
            return b"", [], 0, None
        return b"", [(one, 0, 0) for one in frame.payloads], frame.timestamp, frame.audio_level

    def _extensions(self, audio_level: int | None) -> bytes:
        """The header extensions of a frame's packets, with a time: which waits is stamped anew when it goes."""
        if audio_level is not None:
            return self._with_values((False, -audio_level)).replace(_SENT, abs_send_time())
        if self._usual is None:
            self._usual = self._with_values(None).split(_SENT)
        return abs_send_time().join(self._usual)

    def _with_values(self, audio_level: tuple[bool, int] | None) -> bytes:
        values = HeaderExtensions(
            abs_send_time=int.from_bytes(_SENT, "big"), mid=self._state[_MID], audio_level=audio_level
        )
        profile, value = self._state[_EXTENSIONS_MAP].set(values)
        return _EXTENSIONS.pack(profile, len(value) // 4) + value if value else b""

    async def _retransmit(self, sequence_number: int) -> None:
        data = self._kept.get(sequence_number % KEPT)
        if data is None or sequence_of(data) != sequence_number:
            return
        payload_type = self._state[_RTX_TYPE]
        if payload_type is not None:
            data = as_retransmission(data, payload_type, self._sender._rtx_ssrc)  # noqa: SLF001
            data = with_sequence(data, self._repeats)
            self._repeats = self._repeats + 1 & 0xFFFF
        await self._sender.transport._send_rtp(data)  # noqa: SLF001
