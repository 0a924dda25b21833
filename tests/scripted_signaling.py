"""A signaling server whose every message is in the hands of the test, with a real peer that sends numbered pictures."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from fractions import Fraction
from typing import Any, Self

from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription, VideoStreamTrack
from av.video.frame import VideoFrame
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from ipfs_stream_nb.clients.webrtc_aiortc import prepare
from ipfs_stream_nb.media.pattern import FramePainter
from ipfs_stream_nb.webrtc.marks import sender_origin

WELCOME = {"type": "welcome", "client_id": "c1", "capabilities": ["video", "audio"], "ice_servers": []}


class Pictures(VideoStreamTrack):
    """Frame n, 30 a second."""

    def __init__(self) -> None:
        super().__init__()
        self._painter = FramePainter(160, 96, Fraction(30))
        self.number = 0
        self.origin: int | None = None
        """The RTP timestamp of frame 0."""

    async def recv(self) -> VideoFrame:
        """The next one when it is due."""
        self.origin = sender_origin()
        pts, time_base = await self.next_timestamp()
        frame = VideoFrame.from_ndarray(self._painter.paint(self.number), format="rgba")
        frame.pts, frame.time_base = pts, time_base
        self.number += 1
        return frame


class Sender:
    """The server's side of one stream."""

    def __init__(self) -> None:
        self.pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.pictures = Pictures()
        self.pc.addTransceiver(self.pictures, "sendonly")
        self.channel = self.pc.createDataChannel("ipfs-stream")
        self.open = asyncio.Event()
        self.channel.on("open", self.open.set)
        prepare(self.pc)

    async def offer(self) -> str:
        """The offer's sdp."""
        await self.pc.setLocalDescription(await self.pc.createOffer())
        return self.pc.localDescription.sdp

    async def answer(self, sdp: str) -> None:
        """Take the answer."""
        await self.pc.setRemoteDescription(RTCSessionDescription(sdp, "answer"))

    async def mark(self, number: float, time: float | None) -> None:
        """Say that a picture shows the content at `time`."""
        await asyncio.wait_for(self.open.wait(), 10)  # by then pictures are sent
        assert self.pictures.origin is not None
        timestamp = (self.pictures.origin + round(number * 3000)) % (1 << 32)
        await self.say(type="timestamps", kind="video", rtp_timestamp=timestamp, time=time)

    async def say(self, **message: Any) -> None:
        """Send a message over the data channel."""
        await asyncio.wait_for(self.open.wait(), 10)
        self.channel.send(json.dumps(message))


class ScriptedSignaling:
    """`async with ScriptedSignaling() as server`: a real socket at `server.url`.

    `on[type]` is called with the server and each message of that type; what it returns is sent. Without one, a request gets
    the offer of a new Sender, an answer `connected`, and the rest what the protocol says.
    """

    def __init__(self) -> None:
        self.on: dict[str, Callable[[ScriptedSignaling, dict[str, Any]], Awaitable[Any]]] = {}
        self.welcome: Any = WELCOME
        self.heard: list[dict[str, Any]] = []
        self.senders: dict[str, Sender] = {}
        """By pc_id: "p1", "p2", …"""
        self._sockets: set[ServerConnection] = set()
        self._news = asyncio.Condition()

    async def __aenter__(self) -> Self:
        self._server = await serve(self._talk, "127.0.0.1", 0, compression=None)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/"
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._server.close()
        await self._server.wait_closed()
        for sender in self.senders.values():
            await sender.pc.close()

    async def _talk(self, socket: ServerConnection) -> None:
        self._sockets.add(socket)
        with contextlib.suppress(ConnectionClosed):
            await self._put(socket, self.welcome)
            async for text in socket:
                message = json.loads(text)
                self.heard.append(message)
                act = self.on.get(message["type"])
                await self._put(socket, await (act(self, message) if act else self._usual(message)))
                async with self._news:
                    self._news.notify_all()
        self._sockets.discard(socket)

    async def _put(self, socket: ServerConnection, what: Any) -> None:
        for one in what if isinstance(what, list) else [what]:
            if one is not None:
                await socket.send(one if isinstance(one, str | bytes) else json.dumps(one))

    async def _usual(self, message: dict[str, Any]) -> Any:
        pc_id = message.get("pc_id")
        match message["type"]:
            case "offer_request":
                return await self.offer()
            case "answer":
                await self.senders[pc_id].answer(message["sdp"])
                return {"type": "connected", "pc_id": pc_id}
            case "close":
                return {"type": "closed", "pc_id": pc_id}
            case "get_stats":
                return {"type": "stats", "connection_stats": {pc_id: {"rtt": 0.01}} if pc_id else {}}
            case _:
                return None

    async def offer(self, **more: Any) -> dict[str, Any]:
        """The offer of a new Sender."""
        pc_id = f"p{len(self.senders) + 1}"
        self.senders[pc_id] = Sender()
        sdp = await self.senders[pc_id].offer()
        return {"type": "offer", "pc_id": pc_id, "sdp": sdp, "sdpType": "offer", "ice_servers": [], **more}

    async def say(self, message: Any) -> None:
        """Send something to all."""
        for socket in self._sockets:
            await self._put(socket, message)

    async def until_heard(self, kind: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait for messages of a type; all that came."""
        async with asyncio.timeout(10), self._news:
            await self._news.wait_for(lambda: len(self.of(kind)) >= count)
        return self.of(kind)

    def of(self, kind: str) -> list[dict[str, Any]]:
        """What was heard of a type."""
        return [one for one in self.heard if one["type"] == kind]

    async def drop(self) -> None:
        """Cut all sockets off."""
        for socket in list(self._sockets):
            socket.transport.abort()
