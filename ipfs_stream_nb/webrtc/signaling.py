"""`WS /ws/webrtc`: offers, answers, candidates and what a viewer does, over any connection."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

from ipfs_stream_nb.content.node import Node
from ipfs_stream_nb.content.resolver import parse_path
from ipfs_stream_nb.content.uploads import to_the_end
from ipfs_stream_nb.errors import BadRequestError, BusyError, IPFSStreamError
from ipfs_stream_nb.notifications.emitting import Emit
from ipfs_stream_nb.security.access import Action
from ipfs_stream_nb.transports.connection import (
    POLICY,
    Authorize,
    Connection,
    ConnectionClosedError,
    content_path,
    error_message,
    read_json,
    shown,
)
from ipfs_stream_nb.webrtc.manager import Offer, WebRTCStreamingManager
from ipfs_stream_nb.webrtc.peer_events import ignore
from ipfs_stream_nb.webrtc.slots import PeerLimits, PeerSlots
from ipfs_stream_nb.webrtc.sources import Opener, open_alone

MAX_OPENING: Final = 4
"""Contents that one client has opened at once; further requests wait unread."""
MAX_UNSENT: Final = 256
"""Messages that wait for a client which does not read, before the connection is closed."""

_Message = dict[str, Any]
Answers = list[_Message]


async def handle_webrtc_signaling(
    websocket: Connection,
    ipfs_api: Node,
    *,
    sources: Opener = open_alone,
    authorize: Authorize | None = None,
    ice_servers: Iterable[Mapping[str, Any]] | None = None,
    ice_transport_policy: str = "all",
    limits: PeerLimits | None = None,
    slots: PeerSlots | None = None,
    emit: Emit = ignore,
    owner: str | None = None,
    user: str | None = None,
) -> None:
    """Serve a client's socket until it goes, and close all that it has opened (guide, "Signaling Protocol").

    `authorize` is asked to READ each content; the rest as of WebRTCStreamingManager. Raises ConnectionClosedError.
    """
    conversation = SignalingConversation(websocket, authorize)
    manager = WebRTCStreamingManager(
        ipfs_api, ice_servers, ice_transport_policy,
        sources=sources, limits=limits, slots=slots, emit=emit, owner=owner, user=user, tell=conversation.tell,
    )  # fmt: skip
    await conversation.run(manager)


class SignalingConversation:
    """Takes a client's messages in order. Those that open content go on beside the others, each to its own answer."""

    def __init__(self, websocket: Connection, authorize: Authorize | None = None) -> None:
        self._websocket = websocket
        self._authorize = authorize
        self._unsent: asyncio.Queue[_Message] = asyncio.Queue()
        self._opening = asyncio.Semaphore(MAX_OPENING)
        self._tasks: set[asyncio.Task[None]] = set()
        self._lagging = asyncio.Event()

    def tell(self, message: _Message) -> None:
        """Send a message when it is its turn. Neither waits nor raises."""
        if self._unsent.qsize() >= MAX_UNSENT:
            self._lagging.set()
        else:
            self._unsent.put_nowait(message)

    async def run(self, manager: WebRTCStreamingManager) -> None:
        """Serve until the client goes; then all its peers are closed. Raises ConnectionClosedError."""
        self.tell(
            {
                "type": "welcome",
                "client_id": str(uuid.uuid4()),
                "message": "IPFS WebRTC signaling server connected",
                "capabilities": ["video", "audio"],
                "notification_support": True,
                "ice_servers": manager.ice_servers,
            }
        )
        work = [
            asyncio.create_task(self._send(), name="signaling sender"),
            asyncio.create_task(self._receive(manager), name="signaling receiver"),
            asyncio.create_task(self._give_up(), name="signaling watch"),
        ]
        try:
            done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await to_the_end(self._end([*work, *self._tasks], manager))

    async def _end(self, tasks: list[asyncio.Task[None]], manager: WebRTCStreamingManager) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await manager.close_all_connections()

    async def _send(self) -> None:
        while True:
            await self._websocket.send_json(await self._unsent.get())

    async def _give_up(self) -> None:
        await self._lagging.wait()
        await self._websocket.close(POLICY, f"{MAX_UNSENT} messages were left unread")
        raise ConnectionClosedError

    async def _receive(self, manager: WebRTCStreamingManager) -> None:
        while True:
            message = await self._websocket.receive()
            facts: _Message = {}
            try:
                facts = read_json(message, f"a message ({', '.join(_KINDS)})")
                kind = facts.get("type", facts.get("action"))
                act = _KINDS.get(kind) if isinstance(kind, str) else None
                if act is None:
                    what = "it has no type" if kind is None else f"{shown(kind)} is no type"
                    raise BadRequestError(f"{what} of message; these are: {', '.join(_KINDS)}")  # noqa: TRY301
                if act in _SLOW:
                    await self._opening.acquire()
                    self._begin(act, manager, facts)
                else:
                    self._say(await act(self, manager, facts))
            except Exception as error:  # noqa: BLE001  # told to the client, and noted by the connection
                self._refuse(error, facts)

    def _begin(self, act: _Act, manager: WebRTCStreamingManager, facts: _Message) -> None:
        task = asyncio.create_task(self._work(act, manager, facts), name="signaling request")
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._opening.release()

    async def _work(self, act: _Act, manager: WebRTCStreamingManager, facts: _Message) -> None:
        try:
            self._say(await act(self, manager, facts))
        except Exception as error:  # noqa: BLE001  # as in _receive
            self._refuse(error, facts)

    def _refuse(self, error: Exception, facts: _Message) -> None:
        if isinstance(error, ConnectionClosedError):
            raise error
        if not isinstance(error, BusyError):  # a flood of requests is no news
            self._websocket.failed(error)
        pc_id = facts.get("pc_id")
        request = facts.get("type")
        self.tell(
            error_message(error if isinstance(error, IPFSStreamError) else Exception())
            | ({"pc_id": pc_id} if isinstance(pc_id, str) and len(pc_id) <= 80 else {})
            | ({"request": request} if isinstance(request, str) and request in _KINDS else {})
        )

    def _say(self, answers: Answers) -> None:
        for answer in answers:
            self.tell(answer)

    # -- what a client says

    async def _offer_request(self, manager: WebRTCStreamingManager, facts: _Message) -> Answers:
        offer = await manager.create_offer(
            await self._content(facts),
            facts.get("kind", "video"),
            _frame_rate(facts),
            facts.get("quality", "auto"),
            _flag(facts, "audio", default=True),
            facts.get("start") or 0.0,
            _flag(facts, "loop", default=False),
        )
        return [manager.offer_message(offer), *_candidates(offer)]

    async def _answer(self, manager: WebRTCStreamingManager, facts: _Message) -> Answers:
        await manager.handle_answer(_pc_id(facts), facts.get("sdp", ""), facts.get("sdpType", "answer"))
        return []

    async def _candidate(self, manager: WebRTCStreamingManager, facts: _Message) -> Answers:
        mid, index = facts.get("sdpMid"), facts.get("sdpMLineIndex")
        candidate = facts.get("candidate")
        if isinstance(candidate, dict):  # a whole RTCIceCandidate, as JSON.stringify makes it
            mid, index = candidate.get("sdpMid", mid), candidate.get("sdpMLineIndex", index)
            candidate = candidate.get("candidate")
        if candidate is not None and not isinstance(candidate, str):
            raise BadRequestError(f"candidate is text, or null at the end, not {shown(candidate)}")
        if mid is not None and not isinstance(mid, str):
            raise BadRequestError(f"sdpMid is text, not {shown(mid)}")
        if index is not None and (isinstance(index, bool) or not isinstance(index, int)):
            raise BadRequestError(f"sdpMLineIndex is a whole number, not {shown(index)}")
        await manager.handle_candidate(_pc_id(facts), candidate, mid, index)
        return []

    async def _add_track(self, manager: WebRTCStreamingManager, facts: _Message) -> Answers:
        manager.peer(_pc_id(facts))  # before anything is opened for it
        offer = await manager.add_content_track(
            _pc_id(facts), await self._content(facts), facts.get("kind", "video"), _frame_rate(facts)
        )
        return [_track_offer(offer)]

    async def _remove_track(self, manager: WebRTCStreamingManager, facts: _Message) -> Answers:
        return [_track_offer(await manager.remove_track(_pc_id(facts), facts.get("track_id", "")))]

    async def _set_quality(self, manager: WebRTCStreamingManager, facts: _Message) -> Answers:
        pc_id = _pc_id(facts)
        quality = manager.set_quality(pc_id, facts.get("quality", ""))
        return [{"type": "quality_result", "pc_id": pc_id, "quality": quality, "success": True}]

    async def _seek(self, manager: WebRTCStreamingManager, facts: _Message) -> Answers:
        return [manager.seek(_pc_id(facts), facts.get("position", ""))]

    async def _pause(self, manager: WebRTCStreamingManager, facts: _Message) -> Answers:
        return [manager.pause(_pc_id(facts))]

    async def _resume(self, manager: WebRTCStreamingManager, facts: _Message) -> Answers:
        return [manager.resume(_pc_id(facts))]

    async def _get_stats(self, manager: WebRTCStreamingManager, facts: _Message) -> Answers:
        pc_id = None if facts.get("pc_id") is None else _pc_id(facts)
        message = {"type": "stats", "connection_stats": await manager.get_stats(pc_id)}
        if _flag(facts, "include_global", default=False):
            message["global_metrics"] = manager.global_metrics()
        return [message]

    async def _close(self, manager: WebRTCStreamingManager, facts: _Message) -> Answers:
        if facts.get("pc_id") is None:
            for pc_id in list(manager.peer_connections):
                await manager.peer(pc_id).close()
            return [{"type": "closed_all"}]
        pc_id = _pc_id(facts)
        await manager.close_peer_connection(pc_id)
        return [{"type": "closed", "pc_id": pc_id}]

    async def _ping(self, _manager: WebRTCStreamingManager, _facts: _Message) -> Answers:
        return [{"type": "pong", "timestamp": time.time()}]

    async def _pong(self, _manager: WebRTCStreamingManager, _facts: _Message) -> Answers:
        return []

    async def _content(self, facts: _Message) -> str:
        path = content_path(facts)
        root, _ = parse_path(path)
        if self._authorize is not None:
            await self._authorize(Action.READ, root)
        return path


_Act = Callable[[SignalingConversation, WebRTCStreamingManager, _Message], Awaitable[Answers]]
_KINDS: Final[dict[str, _Act]] = {
    "offer_request": SignalingConversation._offer_request,  # noqa: SLF001  # its own table
    "answer": SignalingConversation._answer,  # noqa: SLF001
    "candidate": SignalingConversation._candidate,  # noqa: SLF001
    "add_track": SignalingConversation._add_track,  # noqa: SLF001
    "remove_track": SignalingConversation._remove_track,  # noqa: SLF001
    "set_quality": SignalingConversation._set_quality,  # noqa: SLF001
    "seek": SignalingConversation._seek,  # noqa: SLF001
    "pause": SignalingConversation._pause,  # noqa: SLF001
    "resume": SignalingConversation._resume,  # noqa: SLF001
    "get_stats": SignalingConversation._get_stats,  # noqa: SLF001
    "close": SignalingConversation._close,  # noqa: SLF001
    "ping": SignalingConversation._ping,  # noqa: SLF001
    "pong": SignalingConversation._pong,  # noqa: SLF001
}
_SLOW: Final = {_KINDS[kind] for kind in ("offer_request", "add_track")}


def _pc_id(facts: _Message) -> str:
    pc_id = facts.get("pc_id")
    if not isinstance(pc_id, str):
        raise BadRequestError(f"pc_id is the text that came with the offer, not {shown(pc_id)}")
    return pc_id


def _frame_rate(facts: _Message) -> Any:
    """The guide writes it in one way on the wire and in the other in Python."""
    return facts.get("frameRate", facts.get("frame_rate", 30))


def _flag(facts: _Message, name: str, *, default: bool) -> bool:
    value = facts.get(name, default)
    if not isinstance(value, bool):
        raise BadRequestError(f"{name} is true or false, not {shown(value)}")
    return value


def _candidates(offer: Offer) -> Answers:
    return [{"type": "candidate", "pc_id": offer["pc_id"], **one} for one in offer["candidates"]]


def _track_offer(offer: Offer) -> _Message:
    message = {"type": "track_offer", "pc_id": offer["pc_id"], "sdp": offer["sdp"], "sdpType": offer["type"]}
    return message | ({"track_id": offer["track_id"]} if "track_id" in offer else {})
