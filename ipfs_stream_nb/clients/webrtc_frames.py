"""Live pictures and sound as numpy arrays: from a track's decoded frames to whoever takes them, who may be slow."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import Any, Final, Generic, NamedTuple, Self, TypeVar, cast
from weakref import WeakSet

import numpy as np
import numpy.typing as npt
from aiortc import RTCRtpReceiver
from aiortc.mediastreams import MediaStreamError
from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from ipfs_stream_nb.clients.webrtc_times import Timeline
from ipfs_stream_nb.errors import IPFSStreamError
from ipfs_stream_nb.media.encoded import TrackKind
from ipfs_stream_nb.media.picture import _colorspace as colorspace_of
from ipfs_stream_nb.media.picture import png
from ipfs_stream_nb.webrtc.lane import CLOCK_RATES

WAITING: Final[dict[TrackKind, int]] = {"video": 4, "audio": 50}
"""Frames that wait for each who takes them: what a burst brings at once, or a second of sound. The oldest gives way."""
_MAPPER: Final = "_RTCRtpReceiver__timestamp_mapper"
"""Where aiortc keeps the timestamp from which it counts."""
FIRST_MARK_SECONDS: Final = 0.2
"""Seconds that the first frame waits for the data channel, which comes up a little later than the media."""
SKIP_SECONDS: Final = 1.0
"""Seconds after a seek in which frames from before it may still come: the mark for those after it comes sooner."""

log = logging.getLogger(__name__)


class LiveArray(np.ndarray[Any, Any]):
    """An array that knows its `time`; what is cut out of it has the same one."""

    time: float
    """Seconds of the content; NaN where it is not known."""
    pc_id: str
    """Of the stream that brought it."""

    def __array_finalize__(self, obj: object) -> None:
        self.time = getattr(obj, "time", float("nan"))
        self.pc_id = getattr(obj, "pc_id", "")

    @classmethod
    def of(cls, array: npt.NDArray[Any], time: float, pc_id: str) -> Self:
        """`array` with its time; the memory is the same."""
        made = array.view(cls)
        made.time, made.pc_id = time, pc_id
        return made

    @property
    def array(self) -> npt.NDArray[Any]:
        """The same memory as a plain array."""
        return self.view(np.ndarray)


class LiveFrame(LiveArray):
    """One picture: (height, width, 3) uint8 RGB, contiguous, with its `time` in seconds of the content.

    Its memory is its own, and stays as it is.
    """

    def _repr_png_(self) -> bytes | None:
        return png(np.ascontiguousarray(self.array)) if self.ndim == 3 and self.dtype == np.uint8 else None


class LiveAudio(LiveArray):
    """Some 20 ms of sound: (n, 2) int16 at `rate` Hz, and the `time` of its first sample in seconds of the content."""

    rate: Final = 48_000


Live = TypeVar("Live", bound=LiveArray)
Handler = Callable[..., object]
"""Called with a frame, or a pc_id and a state; may be a coroutine function."""


class Decoded(NamedTuple):
    """A frame as it came."""

    frame: VideoFrame | AudioFrame
    time: float
    pc_id: str
    mark: int
    """The number of the server's mark that its time is by."""


class FrameMaker:
    """Makes arrays of decoded frames, in any one thread at a time."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def __call__(self, decoded: Decoded) -> LiveArray:
        """A new array with a frame."""
        frame, time, pc_id, _ = decoded
        if isinstance(frame, VideoFrame):
            rgb = self._reformatter.reformat(frame, format="rgb24", src_colorspace=colorspace_of(frame))
            return LiveFrame.of(np.ascontiguousarray(rgb.to_ndarray()), time, pc_id)
        # aiortc's decoders give packed 16-bit stereo
        return LiveAudio.of(frame.to_ndarray().reshape(-1, len(frame.layout.channels)), time, pc_id)


class Outlet:
    """Where one who takes a track's frames gets them: bounded, the latest win. For one event loop."""

    def __init__(self, most: int) -> None:
        self._waiting: deque[Decoded] = deque(maxlen=most)
        self._changed = asyncio.Event()
        self.dropped = 0
        """Frames that were not taken in time."""
        self.ended = False
        self.error: IPFSStreamError | None = None
        """What the track ended with."""

    def put(self, decoded: Decoded) -> bool:
        """Put one in; gives whether another one gave way."""
        if self.ended:
            return False
        full = len(self._waiting) == self._waiting.maxlen
        self.dropped += full
        self._waiting.append(decoded)
        self._changed.set()
        return full

    def end(self, error: IPFSStreamError | None = None) -> None:
        """Nothing more comes. Idempotent."""
        if not self.ended:
            self.ended, self.error = True, error
            self._changed.set()

    def skip(self, mark: int) -> None:
        """Let go of those whose time is by a mark of this number or before; they are not counted."""
        _skip(self._waiting, mark)

    async def get(self) -> Decoded | None:
        """The next one; None at the end. Nothing is lost where the wait is cancelled."""
        while not self._waiting:
            if self.ended:
                return None
            self._changed.clear()
            await self._changed.wait()
        return self._waiting.popleft()


class LiveFrames(AsyncIterator[Live], Generic[Live]):
    """Frames of one stream as they come: `async for frame in client.frames(pc_id)`. It ends with the content.

    Who is slow misses some: `dropped` tells how many.
    """

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet
        self._make = FrameMaker()

    @property
    def dropped(self) -> int:
        """Frames that were not taken in time."""
        return self._outlet.dropped

    @property
    def ended(self) -> bool:
        """Whether no more frames come."""
        return self._outlet.ended

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Live:
        item = await self._outlet.get()
        if item is not None:
            return cast("Live", await asyncio.to_thread(self._make, item))
        if self._outlet.error is not None:
            raise type(self._outlet.error)(str(self._outlet.error))
        raise StopAsyncIteration

    async def get(self, timeout: float | None = None) -> Live | None:  # noqa: ASYNC109  # as queues have it
        """The next frame; None where none came in `timeout` seconds, and at the end."""
        try:
            async with asyncio.timeout(timeout):
                return await anext(self, None)
        except TimeoutError as error:
            if isinstance(error, IPFSStreamError):
                raise
            return None


def _skip(waiting: deque[Decoded], mark: int) -> None:
    kept = [decoded for decoded in waiting if decoded.mark > mark]
    waiting.clear()
    waiting.extend(kept)


class TrackReader:
    """Reads one track to its end, whether anybody takes its frames or not: they never pile up."""

    def __init__(self, kind: TrackKind, pc_id: str, start: float) -> None:
        """`start`: seconds of the content at which it begins."""
        self.kind = kind
        self.pc_id = pc_id
        self.times = Timeline(start, CLOCK_RATES[kind])
        self.received = 0
        """Frames that have been decoded."""
        self.dropped = 0
        """Frames that somebody wanted and did not take in time."""
        self._early: deque[Decoded] | None = deque(maxlen=WAITING[kind])
        """What came before the first one asked for frames; None once that is so."""
        self._outlets: WeakSet[Outlet] = WeakSet()
        self._over: tuple[IPFSStreamError | None] | None = None
        self._marked = asyncio.Event()
        self._skipped = (-1, 0.0)
        """The last mark whose frames are from before a seek, and until when they may come."""

    def outlet(self, *, early: bool = True) -> Outlet:
        """Where one more gets the frames from now on; with `early` the first one those at the beginning too. Let go of, it is
        closed."""
        outlet = Outlet(WAITING[self.kind])
        if early and self._early is not None:
            for decoded in self._early:
                outlet.put(decoded)
            self._early = None
        if self._over is None:
            self._outlets.add(outlet)
        else:
            outlet.end(*self._over)
        return outlet

    async def read(self, receiver: RTCRtpReceiver) -> None:
        """Read until the track ends."""
        try:
            while True:
                frame = cast("VideoFrame | AudioFrame", await receiver.track.recv())
                self.received += 1
                if self.received == 1:
                    await self._first_mark()
                now, timestamp = asyncio.get_running_loop().time(), rtp_timestamp(receiver, frame)
                time, mark = self.times.take(timestamp, now), self.times.mark_of(timestamp).number
                last, until = self._skipped
                if time is not None and (mark > last or now > until):
                    self._hand_out(Decoded(frame, time, self.pc_id, mark))
        except MediaStreamError:
            pass

    async def _first_mark(self) -> None:
        """Wait for the server's first mark, which comes with the first frame, if it makes any."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_MARK_SECONDS):
                await self._marked.wait()

    def mark(self, message: Mapping[str, Any]) -> None:
        """Take what the server says of a frame's time."""
        self.times.mark(message)
        self._marked.set()

    def skip(self, mark: int) -> None:
        """Let go of the frames from before a seek, those on their way as well: they are by a mark of this number or before, if
        the server makes any."""
        if self.times.marked:
            self._skipped = (mark, asyncio.get_running_loop().time() + SKIP_SECONDS)
        for waiting in list(self._outlets):
            waiting.skip(mark)
        if self._early is not None:
            _skip(self._early, mark)

    def _hand_out(self, decoded: Decoded) -> None:
        if self._early is not None:
            self._early.append(decoded)
        for outlet in list(self._outlets):
            self.dropped += outlet.put(decoded)

    def end_outlets(self) -> None:
        """End those who read now: the content is over, though it may be played again."""
        self._early = None
        for outlet in list(self._outlets):
            outlet.end()

    def end(self, error: IPFSStreamError | None) -> None:
        """Nothing more comes, for anybody. Idempotent."""
        if self._over is None:
            self._over, self._early = (error,), None
            for outlet in list(self._outlets):
                outlet.end(error)


def rtp_timestamp(receiver: RTCRtpReceiver, frame: VideoFrame | AudioFrame) -> int:
    """The timestamp in the RTP headers of a frame's packets. aiortc's frames count from the first one that is whole, which need
    not be the first one that was sent."""
    origin = getattr(receiver, _MAPPER)._origin or 0  # noqa: SLF001
    return int(origin + (frame.pts or 0)) % (1 << 32)


async def deliver(outlet: Outlet, handler: Handler, name: str) -> None:
    """Call a function with each frame of an outlet. What it raises is logged, once for each row of failures."""
    make, failed = FrameMaker(), False
    while (decoded := await outlet.get()) is not None:
        try:
            await call(handler, await asyncio.to_thread(make, decoded))
            failed = False
        except Exception:
            if not failed:
                log.exception("%s failed; what it fails with next is not logged until it works again", name)
            failed = True


async def call(handler: Handler, *arguments: object) -> None:
    """Call a coroutine function on the event loop, and any other in a thread, so that it may take its time."""
    called: Any = getattr(handler, "__call__", None)  # noqa: B004  # an object may be called, too
    if inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(called):
        result: object = handler(*arguments)
    else:
        result = await asyncio.to_thread(handler, *arguments)
    if inspect.isawaitable(result):
        await result


class Teller:
    """Calls a function with each change, in order."""

    def __init__(self, handler: Handler) -> None:
        self._changes: asyncio.Queue[tuple[str, str] | None] = asyncio.Queue()
        self._task = asyncio.create_task(self._tell(handler), name="on_connection_change")

    def tell(self, pc_id: str, state: str) -> None:
        """Have one told when it is its turn."""
        self._changes.put_nowait((pc_id, state))

    async def _tell(self, handler: Handler) -> None:
        while (change := await self._changes.get()) is not None:
            try:
                await call(handler, *change)
            except Exception:
                log.exception("on_connection_change failed")

    async def close(self, seconds: float) -> None:
        """Have what there is told, for so long. Idempotent."""
        self._changes.put_nowait(None)
        if self._task is asyncio.current_task():  # the function itself closes the client
            return
        await asyncio.wait([self._task], timeout=seconds)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
