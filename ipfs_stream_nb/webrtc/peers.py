"""One viewer's peer connection, from its offer to its end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from aiortc import (
    RTCBundlePolicy,
    RTCConfiguration,
    RTCIceTransportPolicy,
    RTCPeerConnection,
    RTCRtpTransceiver,
    RTCSessionDescription,
)
from aiortc.sdp import SessionDescription

from ipfs_stream_nb.content.node import Node
from ipfs_stream_nb.content.uploads import to_the_end
from ipfs_stream_nb.errors import (
    BadRequestError,
    BusyError,
    IPFSStreamError,
    RetrievalTimeoutError,
    TooLargeError,
    UnreachableError,
)
from ipfs_stream_nb.transports.connection import error_message
from ipfs_stream_nb.webrtc import transport_cc
from ipfs_stream_nb.webrtc.candidates import Candidates
from ipfs_stream_nb.webrtc.ice import IceServers, ice_servers_of, mend
from ipfs_stream_nb.webrtc.peer_events import PeerEvents
from ipfs_stream_nb.webrtc.peer_media import BOTH, PeerMedia, SentTrack, Wanted
from ipfs_stream_nb.webrtc.reporting import Reporter, open_channel
from ipfs_stream_nb.webrtc.sdp import check_codec, codec_preferences, has_kind, read_description
from ipfs_stream_nb.webrtc.send_rate import SendRate
from ipfs_stream_nb.webrtc.slots import PeerLimits
from ipfs_stream_nb.webrtc.sources import Opener

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PeerSetup:
    """What all peers of a manager have in common."""

    node: Node
    sources: Opener
    ice_servers: IceServers
    bundle_policy: RTCBundlePolicy
    limits: PeerLimits


class Peer:
    """A peer connection that sends content. `closed` is called once it is gone, `unreachable` when no way to a viewer who
    has answered was found; both are quick."""

    def __init__(
        self,
        setup: PeerSetup,
        wanted: Wanted,
        events: PeerEvents,
        policy: RTCIceTransportPolicy,
        *,
        closed: Callable[[Peer], None],
        unreachable: Callable[[Peer], None],
    ) -> None:
        self.id = events.pc_id
        self.wanted = wanted
        self.events = events
        self.policy = policy
        self.created_at = time.time()
        self.established = False
        self.media = PeerMedia(
            setup.node, setup.sources, events,
            on_change=self._playback_changed, on_mark=self._mark, on_all_over=lambda: self._close_soon("failed"),
        )  # fmt: skip
        self.pc = RTCPeerConnection(
            RTCConfiguration(ice_servers_of(setup.ice_servers), policy, setup.bundle_policy)
        )
        self.pc.on("connectionstatechange", self._state_changed)
        self._negotiation = transport_cc.enable(self.pc)
        self._rate: SendRate | None = None
        self._setup = setup
        self._closed = closed
        self._unreachable = unreachable
        self._negotiating = asyncio.Lock()
        self.candidates = Candidates(self.pc, setup.limits, setup.bundle_policy, events, self._spawn)
        self._reporter: Reporter | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing: asyncio.Task[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None

    # -- descriptions

    async def offer(self) -> RTCSessionDescription:
        """Open the content and offer its tracks. Raises what opening raises; then the peer must be closed."""
        async with self._negotiating:
            for sent in await self.media.open(self.wanted):
                self._send(sent)
            self._open_channel()
            self.candidates.trickle()
            description = await self._describe()
            self._expect_media()
            return description

    async def accept(self, sdp: object) -> RTCSessionDescription:
        """Open the content and answer an offer with those of its tracks that it has room for. Raises UnsupportedMediaError for
        a codec that the offer lacks."""
        async with self._negotiating:
            description, parsed = self._read(sdp, "offer")
            kinds = tuple(
                kind for kind in BOTH if has_kind(parsed, kind) and (kind == "video" or self.wanted.audio)
            )
            if not kinds:
                raise BadRequestError("the offer has no section that receives video or audio")
            tracks = {sent.facts.kind: sent for sent in await self.media.open(self.wanted, kinds)}
            self.events.kind = next(iter(tracks))
            for media in parsed.media:  # in the offer's order: the first section's transport serves all
                sent = tracks.pop(media.kind, None)  # type: ignore[call-overload]
                if sent is not None:
                    check_codec(media, sent.codec)
                    self._send(sent)
            if any(media.kind == "application" for media in parsed.media):
                self._open_channel()
            await self._apply(description)
            answer = await self._describe()
            self._expect_media()
            return answer

    async def answer(self, sdp: object) -> None:
        """Take the answer to the latest offer. Raises BadRequestError, and UnsupportedMediaError where it takes none of our
        codecs."""
        async with self._negotiating:
            description, parsed = self._read(sdp, "answer")
            if self.pc.signalingState != "have-local-offer":
                raise BadRequestError("no offer waits for an answer")
            self._check_codecs(parsed)
            await self._apply(description)
        self.candidates.answered()

    async def add_track(self, wanted: Wanted) -> tuple[RTCSessionDescription, SentTrack]:
        """Offer one more track. Raises what opening raises, BusyError while an offer waits for its answer."""
        async with self._negotiating:
            self._check_stable()
            if len(self.pc.getTransceivers()) >= self._setup.limits.max_tracks:
                raise TooLargeError(
                    f"a peer connection has at most {self._setup.limits.max_tracks} tracks in its life; make another one"
                )
            sent = await self.media.add(wanted)
            self._send(sent)
            return await self._describe(), sent

    async def remove_track(self, track_id: object) -> RTCSessionDescription:
        """Offer to go on without a track. Raises NotFoundError, BusyError while an offer waits for its answer."""
        async with self._negotiating:
            self._check_stable()
            sent = await self.media.remove(track_id)
            if sent.transceiver is not None:
                sent.transceiver.sender.replaceTrack(None)
                sent.transceiver.direction = "inactive"
            return await self._describe()

    def _send(self, sent: SentTrack) -> None:
        transceiver: RTCRtpTransceiver = self.pc.addTransceiver(sent.track, "sendonly")
        transceiver.setCodecPreferences(codec_preferences(sent.codec))
        dtls = transceiver.receiver.transport
        ice = dtls.transport._connection  # noqa: SLF001  # aiortc hides it
        # aiortc ends alike when the viewer says goodbye and when nothing more is heard of him
        dtls.on("statechange", lambda: self._transport_changed(dtls.state, lost=ice._closing))  # noqa: SLF001
        self.media.attach(sent, transceiver)

    def _read(self, sdp: object, kind: str) -> tuple[RTCSessionDescription, SessionDescription]:
        limits = self._setup.limits
        return read_description(
            sdp, kind, allow_loopback=limits.allow_loopback, max_candidates=limits.max_candidates
        )

    def _check_codecs(self, parsed: SessionDescription) -> None:
        sections = {media.rtp.muxId: media for media in parsed.media}
        for sent in self.media.tracks.values():
            mid = sent.transceiver.mid if sent.transceiver else None
            if mid is not None and mid in sections:
                check_codec(sections[mid], sent.codec)

    async def _apply(self, description: RTCSessionDescription) -> None:
        try:
            await self.pc.setRemoteDescription(description)
        except Exception as error:  # noqa: BLE001  # whatever a description makes aiortc raise
            self._check_open()
            _log.debug("a description was refused", exc_info=error)
            raise BadRequestError(f"the {description.type} does not fit: {str(error)[:200]}") from None

    async def _describe(self) -> RTCSessionDescription:
        mend(self.pc)
        try:
            await self.pc.setLocalDescription()
        except Exception:
            self._check_open()
            raise
        self._check_open()
        return self.pc.localDescription

    def _check_open(self) -> None:
        if self._closing is not None:
            raise BadRequestError("the peer connection is closed") from None

    def _check_stable(self) -> None:
        if self.pc.signalingState != "stable":
            raise BusyError("an offer of this peer connection waits for its answer")

    # -- life

    def playback(self) -> dict[str, Any]:
        """The `playback` message. Raises NotFoundError where nothing is played any more."""
        return {"type": "playback", "pc_id": self.id} | self.media.main.playback.to_json()

    async def stats(self) -> dict[str, Any]:
        """connection_stats of this peer."""
        wanted = self.wanted
        return {
            "created_at": self.created_at,
            "state": "closed" if self._closing else self.pc.connectionState,
            "cid": wanted.cid,
            "kind": wanted.kind,
            "frame_rate": wanted.frame_rate,
            "quality": self.events.quality,
            "ice_candidates_added": self.candidates.added,
            **await self.media.stats(),
            **({} if self._rate is None else self._rate.stats()),
        }

    def _open_channel(self) -> None:
        channel = open_channel(self.pc)
        self._reporter = Reporter(channel, self._playback_or_none, self._stats_message, self._quality_message)
        self.events.mirror = self._reporter.send

    def _playback_or_none(self) -> dict[str, Any]:
        if self.media.contents:
            return self.playback()
        return {"type": "playback", "pc_id": self.id, "position": 0.0, "state": "ended", "duration": None}

    async def _stats_message(self) -> dict[str, Any]:
        return {"type": "stats", "connection_stats": {self.id: await self.stats()}}

    def _quality_message(self) -> dict[str, Any] | None:
        return None if self._rate is None else self._rate.sample()

    def _playback_changed(self) -> None:
        if self._reporter is not None:
            self._reporter.changed()

    def _mark(self, message: dict[str, Any]) -> None:
        if self._reporter is not None:
            self._reporter.mark(message)

    def _expect_media(self) -> None:
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(self._setup.limits.connect_seconds, self._too_late)

    def _too_late(self) -> None:
        seconds = self._setup.limits.connect_seconds
        self._fail("connection timed out", RetrievalTimeoutError(f"no media could flow within {seconds:g} s"))

    def _state_changed(self) -> None:
        state = self.pc.connectionState
        if state == "connected" and not self.established and self._closing is None:
            self.established = True
            self._no_deadline()
            self.events.established()
            self.events.tell(self._playback_or_none() | {"type": "connected"})
            self._control_rate()
            if self._reporter is not None:
                self._spawn(self._reporter.run())
        elif state == "failed":
            what = "connection was lost" if self.established else "connection could not be made"
            self._fail(what, UnreachableError("no way to the viewer was found, or none is left"))
        elif state == "closed":
            self._close_soon("closed")

    def _control_rate(self) -> None:
        """Have everything sent as the network allows, and retransmissions within a budget; one transport serves all."""
        senders = [one.transceiver.sender for one in self.media.tracks.values() if one.transceiver]
        if senders and self._negotiation is not None:
            self._rate = SendRate(self.media, senders[0].transport, self._negotiation)
            self._spawn(self._rate.run())

    def _transport_changed(self, state: str, *, lost: bool) -> None:
        if state == "closed" and lost and self.established:
            self._fail("connection was lost", UnreachableError("nothing more was heard of the viewer"))

    def _fail(self, what: str, error: IPFSStreamError) -> None:
        if self._closing is None:
            self.events.error(what, error)
            self.events.tell(error_message(error) | {"pc_id": self.id})
            self._close_soon("failed")
            if not self.established and self.pc.remoteDescription is not None:
                self._unreachable(self)

    def _no_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        if self._closing is not None:
            work.close()
            return
        task = asyncio.create_task(work, name=f"peer {self.id}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a task of peer %s failed", self.id, exc_info=error)

    def _close_soon(self, state: str) -> None:
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(state), name=f"close peer {self.id}")

    async def close(self, state: str = "closed") -> None:
        """End it and all that it has begun. Idempotent."""
        self._close_soon(state)
        assert self._closing is not None  # noqa: S101  # just begun
        await to_the_end(_wait(self._closing))

    async def _close(self, state: str) -> None:
        self._no_deadline()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        try:
            if tasks:
                await asyncio.wait(tasks)
            if self._rate is not None:
                await self._rate.close()
            await self.media.close("failed" if state == "failed" else "ended")
            await self.pc.close()
        except Exception:  # noqa: BLE001  # it is gone all the same
            _log.exception("peer %s did not close well", self.id)
        finally:
            self.events.closed(state, self.media.bytes_sent)
            self._closed(self)


async def _wait(task: asyncio.Task[None]) -> None:
    await asyncio.wait([task])
