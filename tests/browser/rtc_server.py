"""A signaling server for the browser tests: real peers that play clips from memory, and signaling that can go wrong.

It also serves what the harness serves, so that a page has everything at one base URL.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import re
import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aioice.ice
import av
import numpy as np
from harness import BASE, STATIC, Content, Harness
from harness import Page as HarnessPage
from PIL import Image
from playwright.sync_api import Locator
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, StaticFileHandler
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from ipfs_stream_nb import samples
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.errors import NotFoundError
from ipfs_stream_nb.media.encoded import EncodedInfo, EncodedPacket, EncodedTrack
from ipfs_stream_nb.media.worker.pool import WorkerPool, WorkerSource
from ipfs_stream_nb.transports.connection import ConnectionClosedError
from ipfs_stream_nb.webrtc.manager import WebRTCStreamingManager
from ipfs_stream_nb.webrtc.signaling import SignalingConversation
from ipfs_stream_nb.webrtc.slots import PeerLimits

ROOT = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"
"""The folder of the clips, in which they are at `ROOT/name`."""
CLIP, SHORT, RATE = f"{ROOT}/clip.webm", f"{ROOT}/short.webm", 25
"""Paths of the clips, and their frames a second."""


def make_clips(folder: Path) -> Path:
    """Put the clips into a folder."""
    (folder / ROOT).mkdir()
    samples.video(folder / CLIP, width=320, height=180, duration=8, frame_rate=RATE)
    samples.video(folder / SHORT, width=320, height=180, duration=1.5, frame_rate=RATE)
    return folder


def frame_number(shows: Locator) -> int | None:
    """The number burnt into the picture that a video element shows now, or that a canvas holds."""
    data = shows.evaluate("""shows => { const canvas = document.createElement('canvas');
        const { videoWidth = shows.width, videoHeight = shows.height } = shows;
        Object.assign(canvas, { width: videoWidth, height: videoHeight });
        canvas.getContext('2d').drawImage(shows, 0, 0);
        return canvas.toDataURL('image/png').split(',')[1]; }""")
    return samples.read_frame_number(
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
    )


class Clip:
    """A webm file's packets, as an encoded source."""

    def __init__(self, path: Path) -> None:
        self._packets: dict[str, list[EncodedPacket]] = {}
        with av.open(io.BytesIO(path.read_bytes())) as container:
            tracks = {}
            for stream in container.streams:
                codec = stream.codec_context
                tracks[stream.type] = EncodedTrack(
                    stream.type, codec.name.removeprefix("lib"), codec.name, passthrough=True,
                    width=getattr(codec, "width", 0), height=getattr(codec, "height", 0), frame_rate=25.0,
                )  # fmt: skip
            for packet in container.demux():
                if packet.pts is not None and (time := float(packet.pts * packet.time_base)) >= 0:
                    length = float((packet.duration or 0) * packet.time_base) or 0.04
                    self._packets.setdefault(packet.stream.type, []).append(
                        EncodedPacket(bytes(packet), time, length, packet.is_keyframe)
                    )
            duration = float(container.duration / av.time_base)
        self.info = EncodedInfo(duration, tracks.get("video"), tracks.get("audio"))

    async def packets(
        self, kind: str, position: float = 0.0, rendition: object = None, aim: object = None
    ) -> AsyncGenerator[EncodedPacket, None]:
        packets = self._packets[kind]
        first = max(bisect_right([packet.time for packet in packets], position) - 1, 0)
        while kind == "video" and not packets[first].keyframe:
            first -= 1
        for packet in packets[first:]:
            yield packet

    async def close(self) -> None:
        pass


class Workers:
    """A store and media workers, as a server has them."""

    def __init__(self, node: EmbeddedNode) -> None:
        self._node, self._pool = node, WorkerPool()
        self._cids: dict[Path, str] = {}

    async def add(self, file: Path) -> None:
        """Put a file into the store."""

        async def pieces() -> AsyncGenerator[bytes, None]:
            yield await asyncio.to_thread(file.read_bytes)

        self._cids[file] = str((await self._node.add(pieces())).cid)

    async def open(self, file: Path) -> WorkerSource:
        return await self._pool.open(self._node, self._cids[file])

    async def warm(self) -> None:
        await self._pool.warm()

    async def close(self) -> None:
        await self._pool.close()
        await self._node.close()


@dataclass
class Signaling:
    """The knobs of the signaling server, and what it has seen."""

    folder: Path
    blocked: bool = False
    """Whether neither side hears of an address of the other."""
    early: bool = False
    """Whether the candidates leave the description, and come before it."""
    ice_servers: list[dict[str, Any]] = field(default_factory=list)
    refuse: dict[str, str] = field(default_factory=dict)
    """Codes of errors, by the type of message that they answer."""
    silent: set[str] = field(default_factory=set)
    """Types of messages without an answer."""
    received: list[dict[str, Any]] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)
    sockets: list[Any] = field(default_factory=list)
    workers: Workers | None = None
    """Who opens the clips, if they are not to come from memory."""

    def count(self, kind: str) -> int:
        return Counter(message["type"] for message in self.received)[kind]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.received if message["type"] == kind]

    def on_loop(self, work: Any) -> Any:
        """Run a coroutine function in the server's thread."""
        return asyncio.run_coroutine_threadsafe(work(), self.loop).result(20)

    def wait_for(self, kind: str) -> None:
        """Wait for a message of a type without a look at the page, which the browser would take for a click."""
        for _ in range(1000):
            if self.count(kind):
                return
            time.sleep(0.01)
        raise AssertionError(f"no {kind} came")

    def cut(self) -> None:
        """Cut all sockets, without a word."""

        async def cut() -> None:
            for socket in self.sockets:
                if socket.ws_connection is not None:
                    socket.ws_connection.stream.close()

        self.on_loop(cut)

    def tell(self, message: dict[str, Any]) -> None:
        """Send the newest socket a message."""

        async def tell() -> None:
            await self.sockets[-1].write_message(message)

        self.on_loop(tell)

    @property
    def peers(self) -> int:
        return sum(len(socket.manager.peer_connections) for socket in self.sockets)


class Socket(WebSocketHandler):
    """The real conversation, behind the knobs."""

    def initialize(self, signaling: Signaling, harness: Harness) -> None:
        self.signaling, self.harness = signaling, harness

    def check_origin(self, origin: str) -> bool:
        return True

    def prepare(self) -> None:
        if self.harness.needs_token and self.get_query_argument("token", "") not in self.harness.tokens:
            self.set_status(403)
            self.finish({"type": "error", "message": "The token has run out.", "code": "unauthorized"})

    def open(self) -> None:
        one = self.signaling
        one.queries.append(self.request.query)
        self.inbox: asyncio.Queue[str | None] = asyncio.Queue()
        conversation = SignalingConversation(self)
        self.manager = WebRTCStreamingManager(
            None, one.ice_servers, sources=self._open, limits=PeerLimits(allow_loopback=True),
            tell=conversation.tell,
        )  # fmt: skip
        self.task = asyncio.create_task(self.serve(conversation))
        one.sockets.append(self)  # complete: another thread looks at it

    async def serve(self, conversation: SignalingConversation) -> None:
        with contextlib.suppress(ConnectionClosedError):
            await conversation.run(self.manager)

    async def _open(self, _node: object, path: str) -> Any:
        file = self.signaling.folder / path
        if not file.exists():
            raise NotFoundError(f"there is no {path}")
        workers = self.signaling.workers
        return await (asyncio.to_thread(Clip, file) if workers is None else workers.open(file))

    def on_message(self, text: str | bytes) -> None:
        self.inbox.put_nowait(text)

    def on_close(self) -> None:
        self.inbox.put_nowait(None)

    # what the conversation sees

    async def receive(self) -> str:
        while (text := await self.inbox.get()) is not None:
            one, message = self.signaling, json.loads(text)
            kind = message["type"]
            one.received.append(message)
            if code := one.refuse.get(kind):
                await self.write_message(
                    {"type": "error", "error": f"no {kind} here", "code": code, "request": kind}
                )
            elif kind == "answer":
                return json.dumps({**message, "sdp": self._seen(message["sdp"])})
            elif kind not in one.silent and not (kind == "candidate" and one.blocked):
                return text
        raise ConnectionClosedError

    async def send_json(self, message: dict[str, Any]) -> None:
        one, kind = self.signaling, message["type"]
        if kind == "candidate" and (one.blocked or one.early):
            return
        if kind == "offer":
            lines = re.findall(r"^a=(candidate.*?)\r$", message["sdp"], re.MULTILINE) if one.early else []
            for line in dict.fromkeys(lines):
                await self.write_message(
                    {"type": "candidate", "pc_id": message["pc_id"], "candidate": line, "sdpMid": "0"}
                )
            message = {**message, "sdp": self._seen(message["sdp"], hide=one.early)}
        with contextlib.suppress(WebSocketClosedError):
            await self.write_message(message)

    def failed(self, error: Exception) -> None:
        self.signaling.failures.append(error)

    def _seen(self, sdp: str, *, hide: bool = False) -> str:
        hide = hide or self.signaling.blocked
        return re.sub(r"^a=(candidate|end-of-candidates).*\r\n", "", sdp, flags=re.MULTILINE) if hide else sdp


@contextlib.contextmanager
def serving(folder: Path, *, workers: bool = False) -> Iterator[tuple[Harness, Signaling]]:
    """The server, in a thread; its peers are found on the loopback address alone. With `workers` the clips come by media
    workers out of a store."""
    harness, signaling = Harness(folder), Signaling(folder)
    started = threading.Event()

    async def main() -> None:
        signaling.loop, stop = asyncio.get_running_loop(), asyncio.Event()
        signaling.stop = stop
        application = Application(
            [
                (f"{BASE}ws/webrtc", Socket, {"signaling": signaling, "harness": harness}),
                (f"{BASE}ipfs/(.*)", Content, {"harness": harness}),
                (rf"{BASE}([a-z-]+\.(?:js|css))", StaticFileHandler, {"path": str(STATIC)}),
                (BASE, HarnessPage),
            ],
            log_function=lambda _: None,
        )
        if workers:
            signaling.workers = Workers(await EmbeddedNode.open(folder / "repo"))
            for clip in (folder / ROOT).iterdir():
                await signaling.workers.add(clip)
            await signaling.workers.warm()
        server = HTTPServer(application)
        sockets = bind_sockets(0, "127.0.0.1")
        server.add_sockets(sockets)
        harness.origin = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
        started.set()
        await stop.wait()
        server.stop()
        await server.close_all_connections()
        for socket in signaling.sockets:
            socket.inbox.put_nowait(None)
            await socket.task
        if signaling.workers is not None:
            await signaling.workers.close()

    host_addresses = aioice.ice.get_host_addresses
    aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"]
    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    try:
        assert started.wait(20), "the signaling server did not start"
        yield harness, signaling
    finally:
        signaling.loop.call_soon_threadsafe(signaling.stop.set)
        thread.join(20)
        aioice.ice.get_host_addresses = host_addresses
        assert not thread.is_alive()


@contextlib.contextmanager
def without_quirks(harness: Harness, signaling: Signaling) -> Iterator[None]:
    """The knobs are where they were at first; afterwards no peer may be left."""
    for one, fresh in ((harness, Harness(harness.folder)), (signaling, Signaling(signaling.folder))):
        for name in vars(fresh).keys() - {"origin", "folder", "sockets", "open", "workers"}:
            setattr(one, name, getattr(fresh, name))
    yield
    for _ in range(250):
        if not signaling.peers:
            break
        time.sleep(0.02)
    assert signaling.peers == 0
