"""The peer connections of one viewer: made by an offer or an answer, changed, counted and closed."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from aiortc import RTCIceCandidate, RTCIceServer, RTCIceTransportPolicy, RTCPeerConnection

from ipfs_stream_nb.content.node import Node
from ipfs_stream_nb.errors import BadRequestError, NotFoundError, UnsupportedMediaError
from ipfs_stream_nb.notifications.emitting import Emit
from ipfs_stream_nb.transports.connection import error_message
from ipfs_stream_nb.webrtc.ice import (
    bundle_policy_of,
    has_turn,
    ice_servers_json,
    parse_candidate,
    transport_policy,
)
from ipfs_stream_nb.webrtc.peer_events import PeerEvents, Tell, ignore
from ipfs_stream_nb.webrtc.peer_media import Wanted
from ipfs_stream_nb.webrtc.peers import Peer, PeerSetup
from ipfs_stream_nb.webrtc.quality import checked_quality
from ipfs_stream_nb.webrtc.sdp import candidates_of
from ipfs_stream_nb.webrtc.slots import PeerLimits, PeerSlots
from ipfs_stream_nb.webrtc.sources import Opener, open_alone
from ipfs_stream_nb.webrtc.tracks import IPFSMediaStreamTrack, checked_frame_rate, track_kind

Offer = dict[str, Any]
"""pc_id, sdp, type, and more."""


class WebRTCStreamingManager:
    """Sends IPFS content to peers (guide, "Peer Connections"). One for each viewer's socket; `close_all_connections` at the
    end.

    Content is opened by `sources`, and goes out as packets, encoded at most once for all who watch it. Without
    `ice_servers` no server on the net is asked.
    """

    def __init__(
        self,
        ipfs_api: Node,
        ice_servers: Iterable[Mapping[str, Any] | RTCIceServer] | None = None,
        ice_transport_policy: str = "all",
        bundle_policy: str = "max-bundle",
        *,
        sources: Opener = open_alone,
        limits: PeerLimits | None = None,
        slots: PeerSlots | None = None,
        emit: Emit = ignore,
        owner: str | None = None,
        user: str | None = None,
        tell: Tell = ignore,
    ) -> None:
        """`slots` counts peers over several managers, by `user`; `owner` is whose its events are (None: everybody's); `tell`
        takes messages for the viewer that no call of his answers: `connected`, `ended`, `error`, `offer`. Raises
        BadRequestError."""
        self.ipfs_api = ipfs_api
        self.ice_servers = ice_servers_json(ice_servers)
        self.ice_transport_policy = transport_policy(ice_transport_policy)
        self.peer_connections: dict[str, RTCPeerConnection] = {}
        """By pc_id, as all of these."""
        self.media_relays: dict[str, Any] = {}
        """Empty: what many watch is shared as packets, before it comes to a track."""
        self.tracks: dict[str, list[IPFSMediaStreamTrack]] = {}
        self.connection_stats: dict[str, dict[str, Any]] = {}
        """As of the last `get_stats`."""
        self._setup = PeerSetup(
            ipfs_api, sources, self.ice_servers, bundle_policy_of(bundle_policy), limits or PeerLimits()
        )
        self._slots = slots or PeerSlots()
        self._emit = emit
        self._owner = owner
        self._user = user
        self._tell = tell
        self._peers: dict[str, Peer] = {}
        self._retries: set[asyncio.Task[None]] = set()
        self._closed = False

    # -- negotiation

    async def create_offer(  # noqa: PLR0917  # the guide's order, and the protocol's
        self,
        cid: str,
        kind: str = "video",
        frame_rate: float = 30,
        quality: str = "auto",
        audio: bool = True,
        start: float = 0.0,
        loop: bool = False,
    ) -> Offer:
        """Offer content: {pc_id, sdp, type, tracks}. Kind `video` offers its sound too, unless `audio` is false.

        Raises BadRequestError, BusyError at the limit of peers, and what opening content raises.
        """
        wanted = self._wanted(cid, kind, frame_rate, quality=quality, audio=audio, start=start, loop=loop)
        return await self._offer(wanted, self.ice_transport_policy)

    async def answer_offer(self, cid: str, sdp: str, **options: Any) -> tuple[str, str]:
        """Answer a viewer's offer (WHEP) with the kinds that it asks for and the content has: the pc_id and the answer's sdp.
        `options` as of `create_offer`. Raises BadRequestError, UnsupportedMediaError, and as `create_offer`."""
        peer = self._peer(self._wanted(cid, **options), self.ice_transport_policy)
        try:
            answer = await peer.accept(sdp)
        except BaseException as error:
            await self._give_up(peer, error)
            raise
        self._made(peer)
        return peer.id, answer.sdp

    async def handle_answer(self, pc_id: str, sdp: str, sdp_type: str = "answer") -> None:
        """Take a viewer's answer. Raises NotFoundError for a pc_id that is not this manager's, BadRequestError,
        UnsupportedMediaError where it takes none of our codecs: then the peer is closed."""
        if sdp_type != "answer":
            raise BadRequestError(f"an answer was due, not {str(sdp_type)[:80]!r}")
        peer = self.peer(pc_id)
        try:
            await peer.answer(sdp)
        except UnsupportedMediaError as error:
            await self._give_up(peer, error, "failed")
            raise

    async def handle_candidate(
        self,
        pc_id: str,
        candidate: str | None,
        sdp_mid: str | None = None,
        sdp_m_line_index: int | None = None,
    ) -> None:
        """Take one of a viewer's ICE candidates; None or empty: there are no more. Raises NotFoundError, BadRequestError,
        TooLargeError."""
        peer = self.peer(pc_id)
        parsed: RTCIceCandidate | None = None
        if candidate:
            parsed = parse_candidate(candidate)
            parsed.sdpMid, parsed.sdpMLineIndex = sdp_mid, sdp_m_line_index
        peer.candidates.add(parsed)

    async def add_content_track(
        self, pc_id: str, cid: str, kind: str = "video", frame_rate: float = 30
    ) -> Offer:
        """Add a track to a peer: a new offer with its `track_id`. Of content that plays already it joins in, in sync."""
        peer = self.peer(pc_id)
        wanted = self._wanted(cid, kind, frame_rate, quality=peer.events.quality, audio=False)
        description, sent = await peer.add_track(wanted)
        self._note(peer)
        return {
            "pc_id": pc_id,
            "sdp": description.sdp,
            "type": description.type,
            "track_id": sent.track.id,
        }

    async def remove_track(self, pc_id: str, track_id: str) -> Offer:
        """Take a track from a peer: a new offer. Raises NotFoundError."""
        peer = self.peer(pc_id)
        description = await peer.remove_track(track_id)
        self._note(peer)
        return {"pc_id": pc_id, "sdp": description.sdp, "type": description.type}

    # -- playing

    def set_quality(self, pc_id: str, quality: str) -> str:
        """Another level of quality for a peer's videos; its name. Raises NotFoundError, BadRequestError."""
        peer, level = self.peer(pc_id), checked_quality(quality)
        peer.media.set_quality(level)
        return level

    def seek(self, pc_id: str, position: float) -> dict[str, Any]:
        """Go on from `position` seconds; the `playback` message. Raises NotFoundError, BadRequestError."""
        peer = self.peer(pc_id)
        peer.media.seek(position)
        return peer.playback()

    def pause(self, pc_id: str) -> dict[str, Any]:
        """Stand still; the `playback` message."""
        peer = self.peer(pc_id)
        peer.media.pause()
        return peer.playback()

    def resume(self, pc_id: str) -> dict[str, Any]:
        """Go on; the `playback` message."""
        peer = self.peer(pc_id)
        peer.media.resume()
        return peer.playback()

    async def get_stats(self, pc_id: str | None = None) -> dict[str, dict[str, Any]]:
        """connection_stats by pc_id: of one peer, or of all. Raises NotFoundError."""
        peers = list(self._peers.values()) if pc_id is None else [self.peer(pc_id)]
        stats = {peer.id: await peer.stats() for peer in peers}
        self.connection_stats |= {one: facts for one, facts in stats.items() if one in self._peers}
        return stats

    def global_metrics(self) -> dict[str, Any]:
        """Of all peers of this server, and of this viewer's."""
        return {
            "peer_connections": self._slots.active,
            "max_peer_connections": self._slots.total,
            "own_peer_connections": len(self._peers),
            "bytes_sent": sum(peer.media.bytes_sent for peer in self._peers.values()),
        }

    # -- the end

    async def close_peer_connection(self, pc_id: str) -> None:
        """Close one. Raises NotFoundError."""
        await self.peer(pc_id).close()

    async def close_all_connections(self) -> None:
        """Close all; no more can be made. Idempotent."""
        self._closed = True
        for task in list(self._retries):
            task.cancel()
        await asyncio.gather(*(peer.close() for peer in list(self._peers.values())))
        if self._retries:
            await asyncio.wait(self._retries)

    # -- below

    def peer(self, pc_id: str) -> Peer:
        """The peer of an id. Raises NotFoundError, also for another manager's."""
        peer = self._peers.get(pc_id) if isinstance(pc_id, str) else None
        if peer is None:
            raise NotFoundError(f"you have no peer connection {str(pc_id)[:80]!r}; it may have been closed")
        return peer

    def _wanted(
        self,
        cid: str,
        kind: str = "video",
        frame_rate: float = 30,
        *,
        quality: str = "auto",
        audio: bool = True,
        start: float = 0.0,
        loop: bool = False,
    ) -> Wanted:
        if isinstance(start, bool) or not isinstance(start, (int, float)) or not 0 <= start < float("inf"):
            raise BadRequestError(f"start is a number of seconds of 0 or more, not {str(start)[:80]!r}")
        return Wanted(
            str(cid),
            track_kind(kind),
            checked_frame_rate(frame_rate),
            checked_quality(quality),
            bool(audio),
            start,
            bool(loop),
        )

    def _peer(self, wanted: Wanted, policy: RTCIceTransportPolicy) -> Peer:
        if self._closed:
            raise BadRequestError("the manager is closed")
        self._slots.take(self._user)
        events = PeerEvents(
            str(uuid.uuid4()), wanted.cid, wanted.kind, wanted.quality,
            emit=self._emit, owner=self._owner, tell=self._tell,
        )  # fmt: skip
        try:
            peer = Peer(self._setup, wanted, events, policy, closed=self._forget, unreachable=self._try_relay)
        except BaseException:
            self._slots.give_back(self._user)
            raise
        self._peers[peer.id] = peer
        self.peer_connections[peer.id] = peer.pc
        return peer

    def _forget(self, peer: Peer) -> None:
        if self._peers.pop(peer.id, None) is not None:
            self._slots.give_back(self._user)
        for known in (self.peer_connections, self.tracks, self.connection_stats):
            known.pop(peer.id, None)

    def _note(self, peer: Peer) -> None:
        self.tracks[peer.id] = [sent.track for sent in peer.media.tracks.values()]

    def _made(self, peer: Peer) -> None:
        self._note(peer)
        peer.events.created()

    async def _offer(self, wanted: Wanted, policy: RTCIceTransportPolicy) -> Offer:
        peer = self._peer(wanted, policy)
        try:
            description = await peer.offer()
        except BaseException as error:
            await self._give_up(peer, error)
            raise
        self._made(peer)
        return {
            "pc_id": peer.id,
            "sdp": description.sdp,
            "type": description.type,
            "candidates": candidates_of(description),
            "tracks": [
                {"track_id": sent.track.id, "kind": sent.facts.kind, "cid": sent.content.cid}
                for sent in peer.media.tracks.values()
            ],
        }

    async def _give_up(self, peer: Peer, error: BaseException, state: str = "closed") -> None:
        if isinstance(error, Exception):
            what = "connection could not be made" if state == "failed" else "content cannot be played"
            peer.events.error(what, error)
        await peer.close(state)

    def _try_relay(self, peer: Peer) -> None:
        """No direct way was found: offer the same once more over the relay, where there is one."""
        if (
            peer.policy is RTCIceTransportPolicy.RELAY
            or self._closed
            or self._tell is ignore
            or not has_turn(self.ice_servers)
        ):
            return
        task = asyncio.create_task(self._offer_relay(peer), name="offer by relay")
        self._retries.add(task)
        task.add_done_callback(self._retries.discard)

    async def _offer_relay(self, peer: Peer) -> None:
        await peer.close()  # its place among the user's peers is needed
        try:
            offer = await self._offer(peer.wanted, RTCIceTransportPolicy.RELAY)
        except Exception as error:  # noqa: BLE001  # told to the viewer
            self._tell(error_message(error) | {"pc_id": peer.id})
        else:
            self._tell(self.offer_message(offer) | {"replaces": peer.id})

    def offer_message(self, offer: Offer) -> dict[str, Any]:
        """An offer as the viewer gets it."""
        return {
            "type": "offer",
            "pc_id": offer["pc_id"],
            "sdp": offer["sdp"],
            "sdpType": offer["type"],
            "ice_servers": self.ice_servers,
            "tracks": offer["tracks"],
        }
