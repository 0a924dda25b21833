"""One stream that is received: its peer connection, its tracks, and where it is."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal

from aiortc import (
    RTCBundlePolicy,
    RTCConfiguration,
    RTCDataChannel,
    RTCIceCandidate,
    RTCIceTransportPolicy,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamTrack

from ipfs_stream_nb.clients.webrtc_aiortc import prepare
from ipfs_stream_nb.clients.webrtc_frames import Handler, Outlet, TrackReader, deliver
from ipfs_stream_nb.clients.webrtc_link import Message, Signaling, within
from ipfs_stream_nb.clients.webrtc_times import Playback, PlaybackClock
from ipfs_stream_nb.errors import BadRequestError, IPFSStreamError, RetrievalError, UnreachableError
from ipfs_stream_nb.media.encoded import TrackKind
from ipfs_stream_nb.webrtc.ice import (
    IceServers,
    candidate_json,
    has_turn,
    ice_servers_json,
    ice_servers_of,
    parse_candidate,
)
from ipfs_stream_nb.webrtc.reporting import LABEL
from ipfs_stream_nb.webrtc.tracks import KINDS

State = Literal["new", "connecting", "connected", "failed", "closed"]

CONNECT_SECONDS: Final = 40.0
"""Seconds from an offer until media flows: longer than the server's own patience, which tells what it waited for."""
RELAY_SECONDS: Final = 10.0
"""Seconds in which a server that has a relay comes with another offer, where no direct way was found."""
LAST_FRAMES: Final = 0.5
"""Seconds after the end of the content in which frames may still be on their way."""
MAX_UNHANDLED: Final = 256
"""Messages of a stream that wait while it connects; above that the socket is not read."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StreamSetup:
    """What all streams of a client have in common."""

    on_state: Callable[[str, State], None]
    """Takes a pc_id and its state; quick."""
    handlers: Mapping[TrackKind, Handler | None]
    ice_servers: IceServers | None
    """None: those that the server names."""
    policy: RTCIceTransportPolicy


class Stream:
    """A stream over a signaling connection. `connected` is done once media can flow, or it is known that it cannot."""

    def __init__(self, signaling: Signaling, setup: StreamSetup, start: float) -> None:
        self.pc_id: str | None = None
        self.signaling = signaling
        self.state: State = "new"
        self.error: IPFSStreamError | None = None
        """What it ended with, if not `close`."""
        self.connected: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.clock = PlaybackClock(start)
        self.readers: dict[TrackKind, TrackReader] = {}
        self._setup = setup
        self._start = start
        self._pc: RTCPeerConnection | None = None
        self._messages: asyncio.Queue[Message] = asyncio.Queue(MAX_UNHANDLED)
        self._relay = False
        """Whether the server may come with another offer, over a relay."""
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing: asyncio.Task[None] | None = None
        self._spawn(self._work(), "WebRTC stream")

    # -- messages

    def rename(self, pc_id: str) -> None:
        """Be known by the pc_id of an offer; another one than before, where it comes in the place of an earlier offer."""
        before, self.pc_id = self.pc_id, pc_id
        if before is not None:
            self._setup.on_state(before, "closed")
            self.state = "new"

    async def take(self, message: Message) -> None:
        """Take a message of the server's; they are handled in order."""
        told = Playback.read(message) if message.get("type") == "playback" else None
        if told is not None:
            self._playback(told)
        elif message.get("type") == "connected" and not self.connected.done():
            self._playback(Playback.read(message) or Playback(self._start, "playing", None))
            self._settle(None)
        elif message.get("type") == "ended":
            self._end_soon()
        elif message.get("type") == "closed":
            self._close_soon()
        elif message.get("type") in {"offer", "candidate"}:
            await self._messages.put(message)

    def fail(self, error: IPFSStreamError) -> bool:
        """Take an error that is no command's: before it is connected, the end; afterwards what the end is told with."""
        if self._closing is not None:
            return False
        self.error = error
        if not self.connected.done():
            if self._relay and isinstance(error, RetrievalError | TimeoutError):
                self._relay = False
                self._after(RELAY_SECONDS, functools.partial(self._settle, error))
            else:
                self._settle(error)
        return True

    def cut(self, error: IPFSStreamError) -> None:
        """The signaling connection is gone: media that flows goes on for as long as it does."""
        self._settle(error)

    def _settle(self, error: IPFSStreamError | None) -> None:
        if not self.connected.done():
            self._no_timer()
            if error is None:
                self.error = None
                self.connected.set_result(None)
                self._to("connected")
            else:
                self.connected.set_exception(error)
                self.connected.exception()  # whoever waited for it may have left
                self._close_soon(error)

    async def _work(self) -> None:
        while True:
            message = await self._messages.get()
            try:
                if message["type"] == "offer":
                    await self._answer(message)
                elif message["type"] == "candidate":
                    await self.add_candidate(
                        message.get("candidate"), message.get("sdpMid"), message.get("sdpMLineIndex")
                    )
            except IPFSStreamError as error:
                if not self.fail(error):  # it was closed meanwhile
                    log.debug("%s: %s", self, error)

    async def _answer(self, offer: Message) -> None:
        """Take an offer. Another one, over a relay, takes the place of what could not be connected."""
        if self._pc is not None:
            await self._pc.close()
        self._no_timer()
        servers = self._setup.ice_servers
        if servers is None:
            servers = ice_servers_json(offer.get("ice_servers"))
        self._relay = has_turn(servers) and "replaces" not in offer
        if self._setup.policy is RTCIceTransportPolicy.RELAY and not has_turn(servers):
            raise UnreachableError(
                "ice_transport_policy is relay, and there is no TURN server; give ice_servers"
            )
        pc = self._pc = RTCPeerConnection(
            RTCConfiguration(ice_servers_of(servers), self._setup.policy, RTCBundlePolicy.MAX_BUNDLE)
        )
        pc.on("track", functools.partial(self._track, pc))
        pc.on("datachannel", self._channel)
        pc.on("connectionstatechange", functools.partial(self._pc_state, pc))
        found: asyncio.Queue[RTCIceCandidate | None] = asyncio.Queue()
        pc.on("icecandidate", found.put_nowait)
        self._to("connecting")
        self._after(CONNECT_SECONDS, self._too_late)
        try:
            await pc.setRemoteDescription(RTCSessionDescription(offer["sdp"], "offer"))
            if not pc.getTransceivers():
                raise BadRequestError("it offers no media")  # noqa: TRY301
            prepare(pc)
            await pc.setLocalDescription(await pc.createAnswer())
        except Exception as error:
            log.debug("an offer was not understood", exc_info=error)
            raise RetrievalError(f"the server's offer was not understood: {error}") from None
        if self._closing is None:
            answer = pc.localDescription
            await self.signaling.send(
                {"type": "answer", "pc_id": self.pc_id, "sdp": answer.sdp, "sdpType": answer.type}
            )
            if pc.iceGatheringState != "complete" or not found.empty():
                self._spawn(self._tell_candidates(str(self.pc_id), found), "candidates of servers")

    async def _tell_candidates(self, pc_id: str, found: asyncio.Queue[RTCIceCandidate | None]) -> None:
        """Send our own candidates that STUN and TURN servers give, as they come; an empty one ends them."""
        with suppress(RetrievalError):  # without signaling, media has to do with those that are known
            while (candidate := await found.get()) is not None:
                await self.signaling.send({"type": "candidate", "pc_id": pc_id, **candidate_json(candidate)})
            await self.signaling.send({"type": "candidate", "pc_id": pc_id, "candidate": ""})

    async def add_candidate(self, candidate: object, mid: str | None, index: int | None) -> None:
        """Take an ICE candidate of the other side; None or empty: there are no more. Raises BadRequestError."""
        if candidate is not None and not isinstance(candidate, str):
            raise BadRequestError(
                f"a candidate is text, or None at the end, not a {type(candidate).__name__}"
            )
        parsed: RTCIceCandidate | None = None
        if candidate:
            parsed = parse_candidate(candidate)
            parsed.sdpMid, parsed.sdpMLineIndex = mid, index if mid is not None else index or 0
        if self._pc is None or self._pc.remoteDescription is None:
            raise BadRequestError("there is no offer yet that this candidate could belong to")
        try:
            await self._pc.addIceCandidate(parsed)
        except ValueError as error:  # after the last one
            log.debug("%s: a candidate was not taken: %s", self, error)

    # -- the peer connection

    def _pc_state(self, pc: RTCPeerConnection) -> None:
        if pc is not self._pc:
            return
        if pc.connectionState in {"failed", "closed"} and self.connected.done():
            lost = UnreachableError("the connection was lost") if pc.connectionState == "failed" else None
            self._close_soon(self.error or lost)
        # before it is connected, the server says what was wrong

    def _track(self, pc: RTCPeerConnection, track: MediaStreamTrack) -> None:
        kind = next((kind for kind in KINDS if kind == track.kind), None)
        receiver = next((one for one in pc.getReceivers() if one.track is track), None)
        if kind is None or receiver is None:
            return
        reader = self.readers.get(kind)
        if reader is None:
            reader = self.readers[kind] = TrackReader(kind, str(self.pc_id), self._start)
            handler = self._setup.handlers[kind]
            if handler is not None:
                name = "on_frame" if kind == "video" else "on_audio"
                self._spawn(deliver(reader.outlet(early=False), handler, name), name)
        reader.pc_id = str(self.pc_id)  # another one, over a relay
        self._spawn(reader.read(receiver), f"{kind} track")

    def _channel(self, channel: RTCDataChannel) -> None:
        if channel.label == LABEL:
            channel.on("message", self._data)

    def _data(self, data: str | bytes) -> None:
        try:
            message = json.loads(data)
        except ValueError:
            return
        if not isinstance(message, dict):
            return
        if message.get("type") == "playback" and (told := Playback.read(message)) is not None:
            self._playback(told)
        elif message.get("type") == "timestamps" and message.get("kind") in self.readers:
            self.readers[message["kind"]].mark(message)

    def _playback(self, told: Playback) -> None:
        self.clock.take(told)
        now = asyncio.get_running_loop().time()
        for reader in self.readers.values():
            reader.times.hint(told, now)
        if told.state == "ended":
            self._end_soon()
        elif self.connected.done():
            self._no_timer()

    def _end_soon(self) -> None:
        """The content is over: its last frames come, then nothing, unless it is played again."""
        self._after(LAST_FRAMES, self._content_over)

    def _content_over(self) -> None:
        for reader in self.readers.values():
            reader.end_outlets()

    def _too_late(self) -> None:
        self._settle(UnreachableError(f"no media came within {CONNECT_SECONDS:g} s of the offer"))

    # -- those who take its frames

    def outlet(self, kind: TrackKind) -> Outlet:
        """Where one more gets the frames of a kind. Raises BadRequestError where it has none."""
        reader = self.readers.get(kind)
        if reader is None:
            has = " and ".join(self.readers) or "nothing"
            raise BadRequestError(f"the stream {self.pc_id} has no {kind}; it has {has}")
        return reader.outlet()

    def marked(self) -> dict[TrackKind, int]:
        """How many marks of each kind have come, for `skip`."""
        return {kind: reader.times.marked for kind, reader in self.readers.items()}

    def skip(self, marked: Mapping[TrackKind, int]) -> None:
        """Let go of the frames that are by these marks: the server has gone elsewhere."""
        for kind, mark in marked.items():
            self.readers[kind].skip(mark)

    def received(self) -> dict[str, Any]:
        """How many frames of each kind have come, and how many of them were not taken in time."""
        return {
            kind: {"frames": reader.received, "dropped": reader.dropped}
            for kind, reader in self.readers.items()
        }

    # -- its life

    def __repr__(self) -> str:
        return f"<stream {self.pc_id}: {self.state}>"

    def _to(self, state: State) -> None:
        if self.state != state and self.pc_id is not None:
            self.state = state
            self._setup.on_state(self.pc_id, state)

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        self._no_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, act)

    def _no_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _spawn(self, work: Any, name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s: %s failed", self, task.get_name(), exc_info=error)

    def _close_soon(self, error: IPFSStreamError | None = None) -> None:
        if self._closing is None:
            self.error = error
            self._closing = asyncio.create_task(self._close(), name="close a WebRTC stream")

    async def close(self, caller: asyncio.Task[Any] | None = None) -> None:
        """End it on this side. `caller` may be a function that it called, which goes on. Idempotent."""
        if caller is not None:
            self._tasks.discard(caller)
        self._close_soon()
        assert self._closing is not None  # noqa: S101  # just begun
        await asyncio.wait([self._closing])

    async def _close(self) -> None:
        self._no_timer()
        self.signaling.forget(self)
        if not self.connected.done():
            self.connected.set_exception(BadRequestError("the stream was closed"))
            self.connected.exception()
        if self._pc is not None:
            await self._pc.close()
        self._to("failed" if self.error is not None else "closed")
        for reader in self.readers.values():
            reader.end(self.error)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until_connected(stream: Stream) -> None:
    """Wait until media flows. Raises what keeps it from that."""
    limit = 2 * CONNECT_SECONDS + RELAY_SECONDS
    await within(limit, asyncio.shield(stream.connected), "no media came")
