"""`WebRTCClient`: media of IPFS content live, as numpy arrays, over WebRTC."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from ipfs_stream_nb.clients.http import ServerHTTP
from ipfs_stream_nb.clients.live import LiveClient
from ipfs_stream_nb.clients.naming import Content
from ipfs_stream_nb.clients.results import hinted, hinted_methods
from ipfs_stream_nb.clients.webrtc_wish import position_of, read_wish
from ipfs_stream_nb.errors import BadRequestError, IPFSStreamError, RetrievalError

if TYPE_CHECKING:  # aiortc and PyAV take half a second to import, which only who connects pays
    from ipfs_stream_nb.clients.webrtc_frames import Handler, LiveAudio, LiveFrame, LiveFrames, Teller
    from ipfs_stream_nb.clients.webrtc_link import Message, Signaling
    from ipfs_stream_nb.clients.webrtc_stream import Stream, StreamSetup
    from ipfs_stream_nb.clients.webrtc_times import Playback

ClientState = Literal["new", "connected", "disconnected", "closed"]

CLOSE_SECONDS: Final = 5.0
"""Seconds that the server has to answer that a stream is closed."""
TELL_SECONDS: Final = 1.0
"""Seconds that on_connection_change has, at the end, to take the last changes."""


@hinted_methods
class WebRTCClient(LiveClient):
    """Receives video and sound of content by CID: `pc_id = await client.request_stream(cid)`.

    Each picture is an array (height, width, 3) uint8 RGB with its `time` in seconds of the content, and goes to
    `on_frame`, or to `async for frame in client.frames(pc_id)`. Sound is (n, 2) int16 at 48 kHz with a `time`, and goes to
    `on_audio` or `client.audio(pc_id)`. Who is slow misses the oldest, and what nobody takes is let go of.

    Functions are called one at a time for each stream and kind, off the way of what comes: coroutine functions on the
    event loop, all others in a thread, so that they may take their time. What they raise is logged.

    Media does not need the signaling connection: where that is lost, media goes on for as long as the server sends it (ours
    ends it soon), but cannot be steered any more. The next `request_stream` connects anew.

    A desktop application has its own loop, so that this one runs in a thread:

        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        client = WebRTCClient(url, on_frame=handle_frame)      # called in a thread: have a signal bring it to the window
        asyncio.run_coroutine_threadsafe(client.connect(), loop).result()
        asyncio.run_coroutine_threadsafe(client.request_stream(cid), loop)
        …
        asyncio.run_coroutine_threadsafe(client.close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)

    With Qt, `handle_frame` emits a Signal(object) of a QObject with the frame; its slot in the window's thread makes
    `QImage(frame.data, width, height, 3 * width, QImage.Format_RGB888)` and keeps `frame` for as long as that is shown.
    """

    @hinted
    def __init__(
        self,
        api_url: str | None = None,
        on_frame: Handler | None = None,
        on_connection_change: Handler | None = None,
        *,
        token: str | None = None,
        on_audio: Handler | None = None,
        ice_servers: Iterable[Mapping[str, Any]] | None = None,
        ice_transport_policy: str = "all",
    ) -> None:
        """`api_url`: a server, as for `connect`; without it the one that `connect` finds.

        `on_frame(frame)` and `on_audio(samples)` take what all streams of this client bring, which have their `pc_id`;
        `on_connection_change(pc_id, state)` is told "connecting", "connected", and at the end "closed" or "failed".
        `ice_servers`: STUN and TURN servers as a browser takes them, instead of those that the server names;
        `ice_transport_policy`: "all", or "relay" for nothing but TURN.
        """
        handlers = {"on_frame": on_frame, "on_audio": on_audio, "on_connection_change": on_connection_change}
        for name, handler in handlers.items():
            if handler is not None and not callable(handler):
                raise BadRequestError(f"{name} is a function, not a {type(handler).__name__}")
        if ice_transport_policy not in {"all", "relay"}:
            raise BadRequestError(f"ice_transport_policy is all or relay, not {ice_transport_policy!r}")
        super().__init__(api_url, token)
        self._on_frame = on_frame
        self._on_audio = on_audio
        self._on_change = on_connection_change
        self._ice_servers = None if ice_servers is None else list(ice_servers)
        self._policy = ice_transport_policy
        self._setup: StreamSetup | None = None
        self._signaling: Signaling | None = None
        self._connecting = asyncio.Lock()
        self._streams: set[Stream] = set()
        self._teller: Teller | None = None
        self._closed = False

    @classmethod
    def over(cls, http: ServerHTTP, **options: Any) -> Self:
        """A client of a connection that there is."""
        client = cls(**options)
        client._http = http
        return client

    # -- what it is

    @property
    def state(self) -> ClientState:
        """ "new", "connected", "disconnected" (the server is lost; the next stream connects anew) or "closed"."""
        if self._closed:
            return "closed"
        if self._signaling is None:
            return "new"
        return "disconnected" if self._signaling.lost else "connected"

    @property
    def connected(self) -> bool:
        """Whether the server is there at this moment."""
        return self.state == "connected"

    @property
    def streams(self) -> dict[str, str]:
        """The streams' states by pc_id: "connecting" or "connected"."""
        return {one.pc_id: one.state for one in self._streams if one.pc_id is not None}

    def __repr__(self) -> str:
        where = f" to {self._http.server.url}" if self._http is not None else ""
        count = len(self._streams)
        return f"<WebRTCClient{where}: {self.state}, {count} stream{'' if count == 1 else 's'}>"

    # -- its life

    async def connect(self) -> None:
        """Connect to the server. Where it is connected already, that is all.

        Raises RetrievalError where no server answers, UnauthorizedError, and NotFoundError for a server without the
        extension.
        """
        await self._connected()

    async def _connected(self) -> Signaling:
        # half a second, of which the loop is spared
        link = await asyncio.to_thread(_import)
        async with self._connecting:
            if self._closed:
                raise self._unusable()
            if self._signaling is not None and not self._signaling.lost:
                return self._signaling
            if self._signaling is not None:
                await self._signaling.close()
            self._prepare()
            try:
                self._signaling = await link.open(await self._find())
            except BaseException:
                if self._signaling is None:
                    await self._release()
                raise
            return self._signaling

    def _prepare(self) -> None:
        from ipfs_stream_nb.clients.webrtc_frames import Teller  # noqa: PLC0415  # see TYPE_CHECKING
        from ipfs_stream_nb.clients.webrtc_stream import StreamSetup  # noqa: PLC0415  # see TYPE_CHECKING
        from ipfs_stream_nb.webrtc.ice import ice_servers_json, transport_policy  # noqa: PLC0415

        if self._setup is None:
            servers = None if self._ice_servers is None else ice_servers_json(self._ice_servers)
            handlers = {"video": self._on_frame, "audio": self._on_audio}
            self._setup = StreamSetup(self._changed, handlers, servers, transport_policy(self._policy))  # type: ignore[arg-type]
        if self._teller is None and self._on_change is not None:
            self._teller = Teller(self._on_change)

    async def close(self, pc_id: str | None = None) -> None:
        """End a stream; without a pc_id all of them, and the client. Idempotent but for a pc_id that there is not.

        No function is called any more; one that runs at this moment ends by itself.
        """
        if pc_id is not None:
            await self._close_stream(self._stream(pc_id), asyncio.current_task())
            return
        self._closed = True
        await self.close_all_connections()
        async with self._connecting:
            if self._signaling is not None:
                await self._signaling.close()
            if self._teller is not None:
                await self._teller.close(TELL_SECONDS)
            await self._release()

    async def close_all_connections(self) -> None:
        """End all streams. More can be requested."""
        caller = asyncio.current_task()
        await asyncio.gather(*(self._close_stream(stream, caller) for stream in list(self._streams)))

    async def _close_stream(self, stream: Stream, caller: asyncio.Task[Any] | None) -> None:
        known = stream.pc_id
        await stream.close(caller)
        self._streams.discard(stream)
        if known is not None and not stream.signaling.lost:
            with suppress(IPFSStreamError, TimeoutError):  # it is over for us, whatever the server says
                async with asyncio.timeout(CLOSE_SECONDS):
                    await stream.signaling.ask({"type": "close", "pc_id": known}, "closed")

    async def abandon(self) -> None:
        """End it because the client that it is of ends."""
        await self.close()

    # -- streams

    async def request_stream(
        self,
        cid: Content,
        kind: str = "video",
        frame_rate: float = 30,
        quality: str = "auto",
        *,
        audio: bool = True,
        start: float = 0.0,
        loop: bool = False,
    ) -> str:
        """Have content played, from `start` seconds on; gives the pc_id of the stream, once media flows.

        `kind`: "video", which brings the sound too unless `audio` is false, or "audio"; `quality`: "auto", "very_low",
        "low", "medium", "high" or "very_high"; `loop`: again and again.

        Raises BadCIDError, NotFoundError, UnsupportedMediaError for content that has no such media, BusyError where the
        server has no room for more streams, UnauthorizedError, and UnreachableError where media finds no way.
        """
        message = read_wish(cid, kind, frame_rate, quality, audio=audio, start=start, loop=loop)
        if self._signaling is None:
            raise self._unusable()
        signaling = await self._connected()
        from ipfs_stream_nb.clients.webrtc_stream import Stream, until_connected  # noqa: PLC0415  # see TYPE_CHECKING

        if self._setup is None or self._closed:
            raise self._unusable()
        stream = Stream(signaling, self._setup, message["start"])
        self._streams.add(stream)
        try:
            await signaling.request(message, stream)
            await until_connected(stream)
        except BaseException:
            await self._close_stream(stream, None)
            raise
        assert stream.pc_id is not None  # noqa: S101  # an offer has one
        return stream.pc_id

    def frames(self, pc_id: str) -> LiveFrames[LiveFrame]:
        """A stream's pictures from now on: `async for frame in client.frames(pc_id)`; it ends with the content.

        Raises BadRequestError for an unknown pc_id, and for a stream without video.
        """
        from ipfs_stream_nb.clients.webrtc_frames import LiveFrames  # noqa: PLC0415  # see TYPE_CHECKING

        return LiveFrames(self._stream(pc_id).outlet("video"))

    def audio(self, pc_id: str) -> LiveFrames[LiveAudio]:
        """A stream's sound from now on, 20 ms at a time: `async for samples in client.audio(pc_id)`.

        Raises BadRequestError for an unknown pc_id, and for a stream without sound.
        """
        from ipfs_stream_nb.clients.webrtc_frames import LiveFrames  # noqa: PLC0415  # see TYPE_CHECKING

        return LiveFrames(self._stream(pc_id).outlet("audio"))

    def playback(self, pc_id: str) -> Playback:
        """Where a stream is: `position` and `duration` in seconds, `state`: "playing", "paused", "ended" or "failed"."""
        return self._stream(pc_id).clock.now

    async def seek(self, pc_id: str, position: float) -> Playback:
        """Go on from `position` seconds; gives where it is. Frames from before it do not come any more."""
        message = {"type": "seek", "pc_id": pc_id, "position": position_of(position)}
        stream = self._stream(pc_id)
        marked = stream.marked()
        await stream.signaling.ask(message, "playback")
        stream.skip(marked)
        return stream.clock.now

    async def pause(self, pc_id: str) -> Playback:
        """Stand still; gives where it is."""
        return await self._told("pause", pc_id)

    async def resume(self, pc_id: str) -> Playback:
        """Go on, after the end from the beginning; gives where it is."""
        return await self._told("resume", pc_id)

    async def _told(self, what: str, pc_id: str) -> Playback:
        await self._ask({"type": what, "pc_id": pc_id}, "playback")
        return self.playback(pc_id)

    async def set_quality(self, pc_id: str, quality: str) -> str:
        """Have the video in another quality: "very_low", "low", "medium", "high", "very_high" or "auto"; gives which it is."""
        answer = await self._ask(
            {"type": "set_quality", "pc_id": pc_id, "quality": quality}, "quality_result"
        )
        if not answer.get("success"):
            raise RetrievalError(f"the server did not set the quality to {quality!r}")
        return str(answer.get("quality", quality))

    async def get_stats(self, pc_id: str | None = None, *, include_global: bool = False) -> dict[str, Any]:
        """What the server measures of a stream (see its protocol: rtt and jitter in s, packet_loss 0 to 1, bit/s, …), and
        `received`: the frames of each kind that came, and that were not taken in time.

        Without a pc_id: of all streams, by pc_id. `include_global` adds what the server tells of all its streams as
        `global_metrics`.
        """
        signaling = self._signaling if pc_id is None else self._stream(pc_id).signaling
        if signaling is None or self._closed:
            raise self._unusable()
        message: Message = {"type": "get_stats", "include_global": include_global}
        if pc_id is not None:
            message["pc_id"] = pc_id
        answer = await signaling.ask(message, "stats")
        stats: dict[str, Any] = dict(answer.get("connection_stats") or {})
        for stream in self._streams:
            if stream.pc_id in stats:
                stats[stream.pc_id] |= {"received": stream.received()}
        if pc_id is not None:
            stats = stats.get(pc_id, {})
        return stats | ({"global_metrics": answer.get("global_metrics")} if include_global else {})

    async def add_ice_candidate(
        self,
        pc_id: str,
        candidate: str | Mapping[str, Any] | None,
        sdp_mid: str | None = None,
        sdp_mline_index: int | None = None,
    ) -> None:
        """Take one more address at which the server can be reached: "candidate:…", or the same as a browser's dictionary.

        None or "": there are no more. Those that come over the signaling connection are taken by themselves.
        """
        if isinstance(candidate, Mapping):
            sdp_mid = candidate.get("sdpMid", sdp_mid)
            sdp_mline_index = candidate.get("sdpMLineIndex", sdp_mline_index)
            candidate = candidate.get("candidate")
        await self._stream(pc_id).add_candidate(candidate, sdp_mid, sdp_mline_index)

    async def _ask(self, message: Message, answer: str) -> Message:
        return await self._stream(message["pc_id"]).signaling.ask(message, answer)

    def _stream(self, pc_id: str) -> Stream:
        if self._closed:
            raise self._unusable()
        for stream in self._streams:
            if stream.pc_id == pc_id and stream.connected.done():
                return stream
        known = ", ".join(self.streams) or "none"
        raise BadRequestError(
            f"{str(pc_id)[:80]!r} is no stream of this client, or it has ended; there is {known}"
        )

    def _unusable(self) -> BadRequestError:
        if self._closed:
            return BadRequestError("this WebRTC client is closed; make another")
        return BadRequestError("this WebRTC client is not connected: await client.connect() first")

    def _changed(self, pc_id: str, state: str) -> None:
        if state in {"closed", "failed"}:
            self._streams = {one for one in self._streams if one.pc_id != pc_id}
        if self._teller is not None:
            self._teller.tell(pc_id, state)


def _import() -> type[Signaling]:
    from ipfs_stream_nb.clients.webrtc_link import Signaling  # noqa: PLC0415

    return Signaling
