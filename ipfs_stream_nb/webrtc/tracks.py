"""Tracks that play IPFS content: aiortc asks them for packets, which it sends as they are."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from fractions import Fraction
from typing import Any, Final, TypeVar

from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from av.frame import Frame
from av.packet import Packet

from ipfs_stream_nb.content.node import Node
from ipfs_stream_nb.errors import BadRequestError, IPFSStreamError
from ipfs_stream_nb.media.encoded import Aim, EncodedSource, EncodedTrack, TrackKind
from ipfs_stream_nb.webrtc.buffer import StreamEndedError
from ipfs_stream_nb.webrtc.clock import now
from ipfs_stream_nb.webrtc.lane import CLOCK_RATES, TimedPacket
from ipfs_stream_nb.webrtc.marks import Marker
from ipfs_stream_nb.webrtc.playback import Playback
from ipfs_stream_nb.webrtc.quality import live_rendition
from ipfs_stream_nb.webrtc.sources import Opener, open_alone

KINDS: Final[tuple[TrackKind, ...]] = ("video", "audio")
BITRATE_SECONDS: Final = 1.0
"""Over which the bitrate is measured."""
MAX_FRAME_RATE: Final = 240.0
HEIGHTS: Final = (16, 16384)
BITRATES: Final = (10_000, 100_000_000)
"""Lines and bit/s that can be asked for."""
AT_ONCE: Final = 0.5
"""Of what is sent: a rendition of less than that takes the place of the one before before its time, which is lost anyway."""
_TIME_BASES: Final = {kind: Fraction(1, rate) for kind, rate in CLOCK_RATES.items()}
_Given = TypeVar("_Given")
_log = logging.getLogger(__name__)


def track_kind(kind: object) -> TrackKind:
    """A track's kind. Raises BadRequestError."""
    for known in KINDS:
        if kind == known:
            return known
    raise BadRequestError(f"kind is video or audio, not {str(kind)[:80]!r}")


def checked_frame_rate(rate: object) -> float:
    """Frames a second. Raises BadRequestError."""
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= MAX_FRAME_RATE:
        raise BadRequestError(
            f"a frame rate is a number above 0, of at most {MAX_FRAME_RATE:g}, not {str(rate)[:80]!r}"
        )
    return rate


def _check_encoding(height: object, bitrate: object, frame_rate: object) -> None:
    """Raises BadRequestError for parameters that no video can be encoded with."""
    for name, value, (least, most) in (
        ("height", height, HEIGHTS),
        ("bitrate", bitrate, BITRATES),
        ("frame_rate", frame_rate, (0.1, MAX_FRAME_RATE)),
    ):
        whole = isinstance(value, int) or name == "frame_rate"
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and whole
        if value is not None and not (number and least <= value <= most):  # type: ignore[operator]
            raise BadRequestError(
                f"{name} is a number of {least:,} to {most:,}, or None; not {str(value)[:80]!r}"
            )


class IPFSMediaStreamTrack(MediaStreamTrack):
    """A live track of one kind: of the media file at `cid`, or a relay of `track` (guide, "Media Stream Tracks").

    `recv` gives av packets in RTP's clock of its kind (90 kHz, 48 kHz), each when it is due. Content is opened at the first
    `recv`. Its own frame rate is kept, and `frame_rate` says what was asked for. What fails ends the track: `recv` then
    raises MediaStreamError, `error` holds the reason and `on_error` is called with it, once.
    """

    kind: str

    def __init__(
        self,
        track: MediaStreamTrack | None = None,
        ipfs_api: Node | None = None,
        cid: str | None = None,
        kind: str = "video",
        frame_rate: float = 30,
        *,
        sources: Opener = open_alone,
        playback: Playback | None = None,
        on_error: Callable[[BaseException], None] = lambda _error: None,
        on_first: Callable[[], None] = lambda: None,
        on_mark: Callable[[dict[str, Any]], None] = lambda _message: None,
    ) -> None:
        """`sources` opens the content; `playback` is given instead where several tracks share a clock, and is not closed by
        `stop`. `on_first` is called when the first packet goes out, `on_mark` with each mark (Marker). Raises BadRequestError."""
        super().__init__()
        self.kind = track_kind(track.kind if track is not None else kind)
        self.frame_rate = checked_frame_rate(frame_rate)
        if track is None and playback is None and (ipfs_api is None or cid is None):
            raise BadRequestError("a track is needed to relay, or ipfs_api and cid, or a playback of them")
        self.track = track
        self.ipfs_api = ipfs_api
        self.cid = cid
        self.error: BaseException | None = None
        self.playback = playback
        self._sources = sources
        self._source: EncodedSource | None = None
        """What this track has opened itself."""
        self._on_error = on_error
        self._on_first = on_first
        self._marker = Marker(track_kind(self.kind))
        self._on_mark = on_mark
        self._encoding: tuple[int | None, int | None, float | None] | None = None
        """What was asked for before the content was open."""
        self._closing: asyncio.Task[None] | None = None
        self._recent: deque[tuple[float, int]] = deque()
        """Times and sizes of the latest packets."""
        self._recent_bytes = 0
        self._frames_sent = self._frames_dropped = self._bytes_sent = 0
        self._latency = 0.0

    async def recv(self) -> Packet[Any] | Frame:
        """The next packet, once it is due; of a relayed track whatever it gives. Raises MediaStreamError at the end."""
        return self._packet(await self.next()) if self.track is None else await self._relayed(self.track)

    async def _relayed(self, track: MediaStreamTrack) -> Packet[Any] | Frame:
        frame: Packet[Any] | Frame = await self._while_live(track.recv)
        self._sent(len(bytes(frame)) if isinstance(frame, Packet) else 0, 0.0)
        return frame

    async def next(self) -> TimedPacket:
        """What `recv` makes an av packet of, of a track that relays none. Raises MediaStreamError at the end."""
        timed = await self._while_live(self._timed)
        if (mark := self._marker.mark(timed)) is not None:
            self._on_mark(mark)
            await asyncio.sleep(0)  # the message goes out first
        self._sent(len(timed.packet.data), timed.latency)
        return timed

    async def _timed(self) -> TimedPacket:
        if self.playback is None:
            self.playback = await self._open()
            if self._encoding is not None:
                self.set_encoding_parameters(*self._encoding)
        return await self.playback.next(track_kind(self.kind))

    async def _while_live(self, give: Callable[[], Awaitable[_Given]]) -> _Given:
        """What `give` gives; its end and its failures are the track's."""
        if self.readyState != "live":
            raise MediaStreamError
        try:
            given = await give()
        except (StreamEndedError, MediaStreamError):
            self.stop()
            raise MediaStreamError from None
        except Exception as error:
            self._fail(error)
            raise MediaStreamError(str(error)) from error
        if self.readyState != "live":  # stopped meanwhile
            raise MediaStreamError
        return given

    @property
    def facts(self) -> EncodedTrack | None:
        """What the content's track is; None until it is open, and for a relayed track."""
        return None if self.playback is None else getattr(self.playback.source.info, self.kind)

    def set_encoding_parameters(
        self, height: int | None = None, bitrate: int | None = None, frame_rate: float | None = None
    ) -> None:
        """Encode the video just in time: with `height` lines at most (None: all), at `bitrate` bit/s, with `frame_rate` frames a
        second at most (None: all). Where the height stays, bit and frame rate follow at once, without a key frame. All None:
        the content as it is. Raises BadRequestError for what cannot be, and where there is no video of ours."""
        _check_encoding(height, bitrate, frame_rate)
        if self.track is not None or self.kind != "video":
            raise BadRequestError("there is no video of ours whose encoding could be set")
        facts, playback = self.facts, self.playback
        if facts is None or playback is None:
            self._encoding = (height, bitrate, frame_rate)  # for when it is open
            return
        if height is None and bitrate is None and frame_rate is None:
            playback.set_rendition(None)
            return
        rendition, aim = live_rendition(height, facts), playback.renditions.aim
        bitrate = bitrate or rendition.bitrate or 0
        if aim is not None and playback.renditions.wanted == rendition:
            aim.bitrate, aim.frame_rate = bitrate, frame_rate
        else:
            if aim is not None:  # what goes on until then must not take more
                aim.bitrate = min(aim.bitrate, bitrate)
            at_once = bitrate < AT_ONCE * self.get_stats()["bitrate"]
            playback.set_rendition(rendition, Aim(bitrate, frame_rate), at_once=at_once)

    def _packet(self, timed: TimedPacket) -> Packet[Any]:
        kind = track_kind(self.kind)
        packet = Packet(timed.packet.data)
        packet.time_base = _TIME_BASES[kind]
        packet.pts = packet.dts = timed.ticks
        packet.duration = round(timed.packet.duration * CLOCK_RATES[kind])
        packet.is_keyframe = timed.packet.keyframe
        return packet

    async def _open(self) -> Playback:
        assert self.ipfs_api is not None and self.cid is not None  # noqa: S101, PT018  # asked for
        self._source = await self._sources(self.ipfs_api, self.cid)
        if self.readyState != "live":
            self._close_soon()
            raise StreamEndedError
        return Playback(self._source, (track_kind(self.kind),))

    def _fail(self, error: BaseException) -> None:
        if self.error is None:
            self.error = error
            if not isinstance(error, IPFSStreamError):
                _log.error("a %s track of %s failed", self.kind, self.cid, exc_info=error)
            self._on_error(error)
        self.stop()

    def _sent(self, size: int, latency: float) -> None:
        at = now()
        self._frames_sent += 1
        self._bytes_sent += size
        self._latency += (latency - self._latency) / min(self._frames_sent, 30)
        self._recent.append((at, size))
        self._recent_bytes += size
        self._forget_old(at)
        if self._frames_sent == 1:
            self._on_first()

    def _forget_old(self, at: float) -> None:
        while self._recent and at - self._recent[0][0] > BITRATE_SECONDS:
            self._recent_bytes -= self._recent.popleft()[1]

    def get_stats(self) -> dict[str, Any]:
        """frames_sent, frames_dropped, bytes_sent, bitrate (bit/s over the last second) and latency (mean seconds that packets
        were late)."""
        if self._recent:
            self._forget_old(now())
        return {
            "frames_sent": self._frames_sent,
            "frames_dropped": self._frames_dropped + self._left_out,
            "bytes_sent": self._bytes_sent,
            "bitrate": round(self._recent_bytes * 8 / BITRATE_SECONDS),
            "latency": self._latency,
        }

    @property
    def _left_out(self) -> int:
        return self.playback.frames_dropped if self.playback is not None and self.kind == "video" else 0

    def stop(self) -> None:
        """End the track, and close what it has opened. Idempotent."""
        super().stop()
        self._close_soon()

    def _close_soon(self) -> None:
        if self._source is not None and self._closing is None:
            self._closing = asyncio.create_task(self._close(self._source), name="close a track's source")

    async def _close(self, source: EncodedSource) -> None:
        if self.playback is not None:
            await self.playback.close()
        await source.close()

    async def closed(self) -> None:
        """Wait until what a stopped track had opened is closed."""
        if self._closing is not None:
            await asyncio.wait([self._closing])
