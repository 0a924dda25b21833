"""The clients' method for live media: `webrtc`, and the stream that it gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ipfs_stream_nb.clients.http import ServerHTTP
from ipfs_stream_nb.clients.naming import Content, path_of
from ipfs_stream_nb.clients.results import hinted_methods
from ipfs_stream_nb.clients.transfer_stream import OpenStreams, Run
from ipfs_stream_nb.clients.webrtc import WebRTCClient
from ipfs_stream_nb.clients.webrtc_wish import read_wish
from ipfs_stream_nb.content.node import Node
from ipfs_stream_nb.errors import BadRequestError

if TYPE_CHECKING:  # see webrtc.py
    from ipfs_stream_nb.clients.sync import Session
    from ipfs_stream_nb.clients.webrtc_frames import Handler, LiveArray, LiveAudio, LiveFrame, LiveFrames
    from ipfs_stream_nb.clients.webrtc_times import Playback

T = TypeVar("T")


class WebRTCStream(AsyncIterator["LiveArray"]):
    """Content that is played live: `async with client.webrtc(cid) as stream: async for frame in stream`.

    Each frame is an array with its `time`: pictures, or for kind="audio" sound; see WebRTCClient. Who is slow misses some.
    """

    def __init__(self, client: WebRTCClient, begin: Callable[[], Awaitable[str]], *, video: bool) -> None:
        self._client = client
        self._begin = begin
        self._video = video
        self._pc_id: str | None = None
        self._frames: LiveFrames[Any] | None = None

    @property
    def pc_id(self) -> str:
        """Its name at the server. Raises BadRequestError before it is entered."""
        if self._pc_id is None:
            raise BadRequestError("this stream is not open: async with client.webrtc(…) as stream")
        return self._pc_id

    @property
    def playback(self) -> Playback:
        """`position` and `duration` in seconds, `state`: "playing", "paused", "ended" or "failed"."""
        return self._client.playback(self.pc_id)

    @property
    def dropped(self) -> int:
        """Frames that the loop over this stream was too slow for."""
        return 0 if self._frames is None else self._frames.dropped

    def __repr__(self) -> str:
        state = "not open" if self._pc_id is None else self._client.streams.get(self._pc_id, "closed")
        return f"<WebRTCStream: {state}>"

    async def __aenter__(self) -> Self:
        if self._pc_id is None:
            try:
                await self._client.connect()
                self._pc_id = await self._begin()
                self._frames = self._new_frames()
            except BaseException:
                await self.close()
                raise
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    def _new_frames(self) -> LiveFrames[Any]:
        return self.frames() if self._video else self.audio()

    def __aiter__(self) -> Self:
        if self._frames is None or self._frames.ended:
            self._frames = self._new_frames()
        return self

    async def __anext__(self) -> LiveArray:
        frame: LiveArray = await anext(self._frames or self._new_frames())
        return frame

    async def get(self, timeout: float | None = None) -> LiveArray | None:  # noqa: ASYNC109  # as queues have it
        """The next frame; None where none came in `timeout` seconds, and at the end."""
        frame: LiveArray | None = await (self._frames or self._new_frames()).get(timeout)
        return frame

    def frames(self) -> LiveFrames[LiveFrame]:
        """The pictures from now on, for one more reader."""
        return self._client.frames(self.pc_id)

    def audio(self) -> LiveFrames[LiveAudio]:
        """The sound from now on, for one more reader."""
        return self._client.audio(self.pc_id)

    async def seek(self, position: float) -> Playback:
        """Go on from `position` seconds; gives where it is."""
        return await self._client.seek(self.pc_id, position)

    async def pause(self) -> Playback:
        """Stand still; gives where it is."""
        return await self._client.pause(self.pc_id)

    async def resume(self) -> Playback:
        """Go on, after the end from the beginning; gives where it is."""
        return await self._client.resume(self.pc_id)

    async def set_quality(self, quality: str) -> str:
        """Have the video in another quality: see `WebRTCClient.set_quality`."""
        return await self._client.set_quality(self.pc_id, quality)

    async def get_stats(self) -> dict[str, Any]:
        """What the server measures, and what came: see `WebRTCClient.get_stats`."""
        return await self._client.get_stats(self.pc_id)

    async def close(self) -> None:
        """End it. Idempotent."""
        await self._client.close()


@hinted_methods
class WebRTCMethods(ABC):
    """The method of AsyncClient for live media."""

    _http: ServerHTTP
    _streams: OpenStreams

    @property
    @abstractmethod
    def node(self) -> Node:
        """The node interface below this client."""

    def webrtc(
        self,
        content: Content,
        *,
        kind: str = "video",
        frame_rate: float = 30,
        quality: str = "auto",
        audio: bool = True,
        start: float = 0.0,
        loop: bool = False,
        on_frame: Handler | None = None,
        on_audio: Handler | None = None,
        on_connection_change: Handler | None = None,
    ) -> WebRTCStream:
        """Content played live over WebRTC: `async with client.webrtc(cid) as stream: async for frame in stream`.

        Each frame is an array (height, width, 3) uint8 with its `time` in seconds of the content. The options are those of
        `WebRTCClient.request_stream`, the functions those of `WebRTCClient`; `stream.seek`, `pause` and `resume` steer it.

        Raises, on entry, NotFoundError, UnsupportedMediaError, BusyError, UnauthorizedError, UnreachableError.
        """
        self.node  # noqa: B018  # raises where the client is closed
        path = path_of(content)
        read_wish(path, kind, frame_rate, quality, audio=audio, start=start, loop=loop)
        client = self._streams.add(
            WebRTCClient.over(
                self._http,
                on_frame=on_frame,
                on_audio=on_audio,
                on_connection_change=on_connection_change,
            )
        )

        async def begin() -> str:
            fixed = await self.node.fixed(path)
            return await client.request_stream(
                fixed, kind, frame_rate, quality, audio=audio, start=start, loop=loop
            )

        return WebRTCStream(client, begin, video=kind == "video")


class BlockingWebRTCStream(Iterator["LiveArray"]):
    """Content that is played live: `with client.webrtc(cid) as stream: for frame in stream`, or `stream.get(timeout=5)`.

    Each frame is an array with its `time`: pictures, or for kind="audio" sound. Who is slow misses some. Ctrl-C ends the
    wait.
    """

    def __init__(self, run: Run, stream: WebRTCStream) -> None:
        self._run = run
        self._stream = stream

    def __enter__(self) -> Self:
        self._run(self._stream.__aenter__)
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        self._run(lambda: _iterated(self._stream))
        return self

    def __next__(self) -> LiveArray:
        frame: LiveArray | None = self._run(lambda: _next(self._stream))
        if frame is None:
            raise StopIteration
        return frame

    def __repr__(self) -> str:
        return repr(self._stream)

    def get(self, timeout: float | None = None) -> LiveArray | None:
        """The next frame; None where none came in `timeout` seconds, and at the end."""
        frame: LiveArray | None = self._run(lambda: self._stream.get(timeout))
        return frame

    @property
    def pc_id(self) -> str:
        """Its name at the server. Raises BadRequestError before it is entered."""
        return self._stream.pc_id

    @property
    def playback(self) -> Playback:
        """`position` and `duration` in seconds, `state`: "playing", "paused", "ended" or "failed"."""
        return self._stream.playback

    @property
    def dropped(self) -> int:
        """Frames that the loop over this stream was too slow for."""
        return self._stream.dropped

    def seek(self, position: float) -> Playback:
        """Go on from `position` seconds; gives where it is."""
        playback: Playback = self._run(lambda: self._stream.seek(position))
        return playback

    def pause(self) -> Playback:
        """Stand still; gives where it is."""
        playback: Playback = self._run(self._stream.pause)
        return playback

    def resume(self) -> Playback:
        """Go on, after the end from the beginning; gives where it is."""
        playback: Playback = self._run(self._stream.resume)
        return playback

    def set_quality(self, quality: str) -> str:
        """Have the video in another quality: see `WebRTCClient.set_quality`."""
        level: str = self._run(lambda: self._stream.set_quality(quality))
        return level

    def get_stats(self) -> dict[str, Any]:
        """What the server measures, and what came: see `WebRTCClient.get_stats`."""
        stats: dict[str, Any] = self._run(self._stream.get_stats)
        return stats

    def close(self) -> None:
        """End it. Idempotent."""
        with suppress(BadRequestError):  # the client was closed, which ended it
            self._run(self._stream.close)


async def _next(stream: WebRTCStream) -> LiveArray | None:
    return await anext(stream, None)


async def _iterated(stream: WebRTCStream) -> None:
    aiter(stream)


@hinted_methods
class BlockingWebRTCMethods(ABC):
    """The method of Client for live media."""

    @property
    @abstractmethod
    def _session(self) -> Session:
        """The client's connection."""

    def webrtc(
        self,
        content: Content,
        *,
        kind: str = "video",
        frame_rate: float = 30,
        quality: str = "auto",
        audio: bool = True,
        start: float = 0.0,
        loop: bool = False,
        on_frame: Handler | None = None,
        on_audio: Handler | None = None,
        on_connection_change: Handler | None = None,
    ) -> BlockingWebRTCStream:
        """Content played live over WebRTC: `with client.webrtc(cid) as stream: for frame in stream`.

        Each frame is an array (height, width, 3) uint8 with its `time` in seconds of the content. The options are those of
        `WebRTCClient.request_stream`, the functions those of `WebRTCClient`; `stream.seek`, `pause` and `resume` steer it.

        Raises, on entry, NotFoundError, UnsupportedMediaError, BusyError, UnauthorizedError, UnreachableError.
        """
        session = self._session

        async def made() -> WebRTCStream:
            return session.client.webrtc(
                content,
                kind=kind,
                frame_rate=frame_rate,
                quality=quality,
                audio=audio,
                start=start,
                loop=loop,
                on_frame=on_frame,
                on_audio=on_audio,
                on_connection_change=on_connection_change,
            )

        return BlockingWebRTCStream(session.loop.run, session.loop.run(made))
