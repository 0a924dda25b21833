"""What aiortc has no settings for: addresses found in time, pictures shown at once, nothing left behind."""

from __future__ import annotations

from typing import Final

from aiortc import RTCPeerConnection, RTCRtpReceiver
from aiortc.jitterbuffer import JitterBuffer, JitterFrame

from ipfs_stream_nb.webrtc.ice import mend

_BUFFER: Final = "_RTCRtpReceiver__jitter_buffer"


def prepare(pc: RTCPeerConnection) -> None:
    """Make a connection fit for use, once its tracks are known and before it connects."""
    mend(pc)
    for transceiver in pc.getTransceivers():
        if transceiver.kind == "video":
            _show_at_once(transceiver.receiver)


class MarkedJitterBuffer(JitterBuffer):
    """A buffer of video packets that goes by RTP's marker bit, which ends a picture (RFC 7741, 4.1; RFC 6184, 5.1).

    aiortc's holds each one back until the next one's first packet is there, so that the last picture, and the one that is
    sought while paused, would never be seen.
    """

    def _remove_frame(self, sequence_number: int) -> JitterFrame | None:
        frame = super()._remove_frame(sequence_number)
        return self._whole() if frame is None else frame

    def _whole(self) -> JitterFrame | None:
        """The first picture, if all of its packets are there."""
        data: list[bytes] = []
        timestamp: int | None = None
        for count in range(self.capacity):
            packet = self._packets[((self._origin or 0) + count) % self.capacity]
            if packet is None or timestamp not in {None, packet.timestamp}:
                return None
            timestamp = packet.timestamp
            data.append(packet._data)  # type: ignore[attr-defined]  # noqa: SLF001  # where aiortc keeps it
            if packet.marker:
                self.remove(count + 1)
                return JitterFrame(b"".join(data), timestamp)
        return None


def _show_at_once(receiver: RTCRtpReceiver) -> None:
    if isinstance(getattr(receiver, _BUFFER, None), JitterBuffer):
        setattr(receiver, _BUFFER, MarkedJitterBuffer(capacity=512, is_video=True))
