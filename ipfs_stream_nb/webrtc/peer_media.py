"""What one peer plays: contents, each with its clock, and the tracks that come of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from aiortc import RTCRtpTransceiver

from ipfs_stream_nb.content.node import Node
from ipfs_stream_nb.errors import BadRequestError, BusyError, NotFoundError, UnsupportedMediaError
from ipfs_stream_nb.media.encoded import Codec, EncodedSource, EncodedTrack, TrackKind
from ipfs_stream_nb.transports.connection import error_message
from ipfs_stream_nb.webrtc.adaptation import AdaptiveBitrateController
from ipfs_stream_nb.webrtc.packets import PacketSender
from ipfs_stream_nb.webrtc.peer_events import PeerEvents, Tell
from ipfs_stream_nb.webrtc.playback import Playback
from ipfs_stream_nb.webrtc.quality import AUTO, rendition_json, score
from ipfs_stream_nb.webrtc.sources import Opener
from ipfs_stream_nb.webrtc.stats import RtcpWatch, sender_stats
from ipfs_stream_nb.webrtc.tracks import IPFSMediaStreamTrack

BOTH: Final[tuple[TrackKind, ...]] = ("video", "audio")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a viewer asks for."""

    cid: str
    kind: TrackKind = "video"
    frame_rate: float = 30
    quality: str = "auto"
    audio: bool = True
    start: float = 0.0
    loop: bool = False


@dataclass(eq=False)
class Content:
    """A file with a clock of its own."""

    cid: str
    source: EncodedSource
    playback: Playback
    told: str = "playing"
    """The state that the client knows of."""


@dataclass(eq=False)
class SentTrack:
    """One track on its way out."""

    content: Content
    track: IPFSMediaStreamTrack
    facts: EncodedTrack
    controller: AdaptiveBitrateController | None = None
    """Of video."""
    transceiver: RTCRtpTransceiver | None = None
    watch: RtcpWatch | None = None
    flowing: bool = False
    began: float = field(default_factory=time.monotonic)

    @property
    def codec(self) -> Codec:
        """Of its packets."""
        return self.facts.codec

    @property
    def transport(self) -> str:
        """Whether the file's own packets go out."""
        as_it_is = self.content.playback.renditions.wanted is None or self.facts.kind == "audio"
        return "packets" if self.facts.passthrough and as_it_is else "transcode"


class PeerMedia:
    """The contents and tracks of one peer. `on_mark` gets their marks (Marker), `on_all_over` is called when nothing of it can be played any more."""

    def __init__(
        self,
        node: Node,
        opener: Opener,
        events: PeerEvents,
        *,
        on_change: Callable[[], None],
        on_mark: Tell,
        on_all_over: Callable[[], None],
    ) -> None:
        self.contents: list[Content] = []
        self.tracks: dict[str, SentTrack] = {}
        """By track id."""
        self.adaptation_changes = 0
        self.last_quality_update: float | None = None
        """Seconds since the epoch."""
        self._node = node
        self._opener = opener
        self._events = events
        self._on_change = on_change
        self._on_mark = on_mark
        self._on_all_over = on_all_over
        self._bytes_of_removed = 0
        self._closed = False

    @property
    def main(self) -> Content:
        """The content that the peer was made for. Raises NotFoundError."""
        if not self.contents:
            raise NotFoundError("the peer connection plays nothing")
        return self.contents[0]

    @property
    def bytes_sent(self) -> int:
        """Bytes of packets in all."""
        sent = sum(one.track.get_stats()["bytes_sent"] for one in self.tracks.values())
        return self._bytes_of_removed + int(sent)

    async def open(self, wanted: Wanted, kinds: tuple[TrackKind, ...] | None = None) -> list[SentTrack]:
        """Open content and make its tracks: those of `kinds` that it has, or what is wanted. Raises what the opener raises, and
        UnsupportedMediaError for content without any of them."""
        source = await self._opener(self._node, wanted.cid)
        try:
            if self._closed:
                raise BadRequestError("the peer connection is closed")  # noqa: TRY301
            there = tuple(kind for kind in BOTH if getattr(source.info, kind) is not None)
            needed = (wanted.kind,) if kinds is None else kinds
            if not set(needed) & set(there):
                has = f"it has {' and '.join(there)}" if there else "nor anything else that can be played"
                raise UnsupportedMediaError(f"the content has no {' or '.join(needed)}; {has}")  # noqa: TRY301
            if kinds is None:
                kinds = BOTH if wanted.kind == "video" and wanted.audio else (wanted.kind,)
            content = self._content(wanted, source, tuple(kind for kind in kinds if kind in there))
        except BaseException:
            await source.close()
            raise
        tracks = [self._track(content, kind, wanted) for kind in content.playback.kinds]
        content.playback.prepare()  # the first packets are read while the connection comes up
        return tracks

    def _content(self, wanted: Wanted, source: EncodedSource, kinds: tuple[TrackKind, ...]) -> Content:
        playback = Playback(
            source, kinds, position=wanted.start, loop=wanted.loop, hold=True,
            on_change=lambda: self._changed(content),
            on_refusal=self._refused,
        )  # fmt: skip
        content = Content(wanted.cid, source, playback)
        self.contents.append(content)
        return content

    async def add(self, wanted: Wanted) -> SentTrack:
        """One more track: of content that plays already, in sync with it, or of another one. As `open`."""
        for content in self.contents:
            if content.cid == wanted.cid and wanted.kind not in content.playback.kinds:
                content.playback.add(wanted.kind)
                return self._track(content, wanted.kind, wanted)
        (track,) = await self.open(wanted, (wanted.kind,))
        return track

    def _track(self, content: Content, kind: TrackKind, wanted: Wanted) -> SentTrack:
        facts = getattr(content.source.info, kind)

        def first() -> None:
            self._flows(sent)

        track = IPFSMediaStreamTrack(
            ipfs_api=self._node, cid=content.cid, kind=kind, frame_rate=wanted.frame_rate,
            playback=content.playback, on_first=first, on_mark=self._on_mark,
        )  # fmt: skip
        sent = SentTrack(content, track, facts)
        if kind == "video":
            sent.controller = AdaptiveBitrateController(track, at_source=True, on_change=self._adapted)
            sent.controller.set_quality(wanted.quality)
        self.tracks[track.id] = sent
        return sent

    def attach(self, sent: SentTrack, transceiver: RTCRtpTransceiver) -> None:
        """Say by which transceiver a track goes out."""
        sent.transceiver = transceiver
        PacketSender(transceiver.sender)
        sent.watch = RtcpWatch(transceiver.sender, sent.content.playback.refresh)

    async def remove(self, track_id: object) -> SentTrack:
        """Take a track away. Raises NotFoundError."""
        sent = self.tracks.pop(track_id, None) if isinstance(track_id, str) else None
        if sent is None:
            raise NotFoundError(
                f"there is no track {str(track_id)[:80]!r}; these are: {', '.join(self.tracks)}"
            )
        sent.track.stop()
        self._stops(sent, "removed")
        self._bytes_of_removed += sent.track.get_stats()["bytes_sent"]
        playback = sent.content.playback
        await playback.remove(sent.facts.kind)
        if not playback.kinds:
            self.contents.remove(sent.content)
            await playback.close()
            await sent.content.source.close()
        return sent

    # -- what the viewer does

    def seek(self, position: float) -> None:
        """Go on from there, in all contents. Raises BadRequestError."""
        for content in self._alive():
            content.playback.seek(position)

    def pause(self) -> None:
        """Stand still."""
        for content in self._alive():
            content.playback.pause()

    def resume(self) -> None:
        """Go on."""
        for content in self._alive():
            content.playback.resume()

    def set_quality(self, quality: str) -> None:
        """Another level for all videos, or `auto`. It is told of where it is another one."""
        alive = self._alive()
        changed = quality != self._events.quality
        self._events.quality = quality
        for sent in self.tracks.values():
            if sent.controller is not None and sent.content in alive:
                sent.controller.set_quality(quality)
        if changed:
            self._tell_quality(quality, "set")

    def _refused(self, error: BusyError) -> None:
        """No more renditions are made: the one before goes on."""
        self._events.tell(error_message(error) | {"pc_id": self._events.pc_id})
        for sent in self.tracks.values():
            if sent.controller is not None:
                sent.controller.refused(sent.content.playback.renditions.wanted)
        self._events.quality = AUTO
        self._tell_quality(AUTO, "refused")

    def _adapted(self, level: str, reason: str) -> None:
        self.adaptation_changes += 1
        self._tell_quality(level, reason)

    def _tell_quality(self, quality: str, reason: str) -> None:
        self.last_quality_update = time.time()
        main = self.main
        self._events.quality_changed(
            quality, reason, **rendition_json(main.playback.renditions.wanted, main.source.info)
        )

    def _alive(self) -> list[Content]:
        """The contents that can be played. Raises BadRequestError."""
        self.main  # noqa: B018  # raises where there is none
        alive = [content for content in self.contents if content.playback.error is None]
        if not alive:
            raise BadRequestError("the content could not be played to the end; ask for it anew")
        return alive

    # -- what becomes of it

    def _changed(self, content: Content) -> None:
        state, before = content.playback.state, content.told
        content.told = state
        mine = [one for one in self.tracks.values() if one.content is content]
        if state == "ended" and before != state:
            for sent in mine:
                self._stops(sent, "ended")
            if all(one.playback.state == "ended" for one in self.contents):
                self._events.tell({"type": "ended", "pc_id": self._events.pc_id})
        elif state == "failed" and before != state:
            error = content.playback.error or Exception()
            self._events.error("playback failed", error, content.cid)
            self._events.tell(error_message(_told(error)) | {"pc_id": self._events.pc_id})
            for sent in mine:
                self._stops(sent, "failed")
            if all(one.playback.state == "failed" for one in self.contents):
                self._on_all_over()
        elif before == "ended":
            for sent in mine:
                self._flows(sent)
        self._on_change()

    def _flows(self, sent: SentTrack) -> None:
        if not sent.flowing:
            sent.flowing, sent.began = True, time.monotonic()
            self._events.stream_started(sent.content.cid, sent.facts.kind, sent.track.id, sent.transport)

    def _stops(self, sent: SentTrack, state: str) -> None:
        if sent.flowing:
            sent.flowing = False
            stats = sent.track.get_stats()
            self._events.stream_ended(
                sent.content.cid, sent.facts.kind, sent.track.id,
                duration=round(time.monotonic() - sent.began, 3), state=state,
                bytes_sent=stats["bytes_sent"], frames_sent=stats["frames_sent"],
            )  # fmt: skip

    @property
    def _transport(self) -> str:
        """How the pictures go out; where there are none, the sound."""
        videos = [one for one in self.tracks.values() if one.controller is not None]
        every = {one.transport for one in videos or self.tracks.values()}
        return "transcode" if "transcode" in every else "packets"

    async def stats(self) -> dict[str, Any]:
        """The part of connection_stats that is about media and its way to the receiver."""
        reports = [
            await sender_stats(one.transceiver.sender) for one in self.tracks.values() if one.transceiver
        ]
        tracks = [one.track.get_stats() for one in self.tracks.values()]
        rtt = max((one.rtt for one in reports if one.rtt is not None), default=None)
        loss = max((one.packet_loss for one in reports if one.packet_loss is not None), default=None)
        estimates = [one.watch.bandwidth_estimate for one in self.tracks.values() if one.watch]
        main = self.contents[0] if self.contents else None
        rendition = main.playback.renditions.wanted if main else None
        return {
            "streams_active": sum(one.flowing for one in self.tracks.values()),
            "bytes_sent": self.bytes_sent,
            "frames_sent": sum(one["frames_sent"] for one in tracks),
            "frames_dropped": sum(one["frames_dropped"] for one in tracks),
            "bitrate": sum(one["bitrate"] for one in tracks),
            "latency": max((one["latency"] for one in tracks), default=0.0),
            "rtt": rtt,
            "packet_loss": loss,
            "jitter": max((one.jitter for one in reports if one.jitter is not None), default=None),
            "bandwidth_estimate": max((one for one in estimates if one is not None), default=None),
            "target_bitrate": rendition.bitrate if rendition else None,
            "connection_quality_score": score(rtt, loss),
            "buffer_health": min((one.playback.buffer_health for one in self.contents), default=1.0),
            "adaptation_changes": self.adaptation_changes,
            "last_quality_update": self.last_quality_update,
            "transport": self._transport,
        }

    async def close(self, state: str) -> None:
        """End all tracks, and close what they played; what is opened from now on is closed again."""
        self._closed = True
        for sent in self.tracks.values():
            sent.track.stop()
            self._stops(sent, state)
        for content in self.contents:
            await content.playback.close()
            await content.source.close()


def _told(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else Exception()
