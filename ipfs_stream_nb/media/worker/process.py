"""The parent's side of one worker: the subprocess, what it asks for, what it gives, and its end when it stands still."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Final, cast, get_args

from ipfs_stream_nb.errors import (
    CorruptContentError,
    IPFSStreamError,
    RetrievalError,
    error_from_json,
)
from ipfs_stream_nb.media.encoded import Aim, Codec, EncodedInfo, EncodedPacket, EncodedTrack, TrackKind
from ipfs_stream_nb.media.worker.limits import WorkerLimits
from ipfs_stream_nb.media.worker.order import Order
from ipfs_stream_nb.media.worker.protocol import (
    COUNT,
    HEADER,
    MAX_BODY,
    MAX_PACKET,
    MORE,
    READ,
    Kind,
    error_body,
    message,
    to_json,
    unpack,
)

ReadAt = Callable[[int, int], Awaitable[bytes]]
"""Bytes of the content: offset and length."""
OnPackets = Callable[[list[EncodedPacket]], None]

MAX_READ: Final = 2**20
"""Bytes that a worker may ask for at once."""
MAX_READS: Final = 4096
"""Reads that may wait: one that seeks quickly through slow content leaves many behind."""
MAX_NAME: Final = 32
"""Characters of a codec's name."""
TICK_SECONDS: Final = 0.5
"""Between two looks at whether the worker goes on."""
_KEPT_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH")


class Worker:
    """A subprocess. Made by `start`; `ready` before it is used; ends by `close`, or by itself, see `ended`."""

    def __init__(self, process: Process, connection: socket.socket, limits: WorkerLimits) -> None:
        self._process, self._limits = process, limits
        self._connection = connection
        self._read_at: ReadAt | None = None
        self._size = 0
        self._taps: dict[int, Tap] = {}
        self._numbers = 0
        self._reads: set[asyncio.Task[None]] = set()
        self._reading = asyncio.Semaphore(2 * limits.cursors + 2)
        """For as many as its cursors can use at once."""
        self._ready: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._info: asyncio.Future[EncodedInfo] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._busy: dict[int, float] = {}
        """Seconds for which each cursor (0 is the opening) owes an answer."""
        self.error: IPFSStreamError | None = None
        """Why it ended."""
        self.ended = asyncio.Event()
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._watch())]

    @classmethod
    async def start(cls, limits: WorkerLimits) -> Worker:
        """Start the subprocess; it is not waited for. Raises RetrievalError where that fails."""
        ours, theirs = socket.socketpair()
        try:
            ours.setblocking(False)
            # not through a thread: on Linux a child ends with the thread that made it (PR_SET_PDEATHSIG)
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "ipfs_stream_nb.media.worker.main",
                str(os.getpid()), json.dumps(asdict(limits)),
                stdin=theirs.fileno(), stdout=DEVNULL, env=_environment(), cwd="/", start_new_session=True,
            )  # fmt: skip
        except BaseException as error:
            ours.close()
            if isinstance(error, OSError):
                raise RetrievalError(f"A media worker could not be started: {error.strerror}.") from error
            raise
        finally:
            theirs.close()
        return cls(process, ours, limits)

    @property
    def pid(self) -> int:
        """Of the subprocess."""
        return self._process.pid

    async def ready(self) -> bool:
        """Wait until it can be used; whether system calls are filtered. Raises what ended it."""
        try:
            async with asyncio.timeout(self._limits.start_seconds):
                return await asyncio.shield(self._ready)
        except TimeoutError:
            self._end(RetrievalError(f"A media worker was not ready in {self._limits.start_seconds:g} s."))
            raise cast("IPFSStreamError", self.error) from None

    async def open(self, read_at: ReadAt, size: int) -> EncodedInfo:
        """Give it a content, once. Raises what media.source.open_media does, and what ended the worker."""
        self._check()
        self._read_at, self._size = read_at, size
        self._info = asyncio.get_running_loop().create_future()
        self._busy[0] = 0.0
        self._send(Kind.OPEN, 0, to_json({"size": size}))
        return await self._info

    def tap(self, order: Order, on_packets: OnPackets) -> Tap:
        """Begin to read at a place. Raises what ended the worker."""
        self._check()
        self._numbers += 1
        tap = self._taps[self._numbers] = Tap(self, self._numbers, on_packets)
        self._send(Kind.START, self._numbers, to_json(asdict(order)))
        return tap

    async def close(self) -> None:
        """End the subprocess, and wait until it is gone. Idempotent."""
        self._end(RetrievalError("The media worker was closed."))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._reads, return_exceptions=True)
        if self._writer is not None:
            self._writer.close()
            with suppress(ConnectionError):
                await self._writer.wait_closed()
        else:
            self._connection.close()
        await self._process.wait()

    def _check(self) -> None:
        if self.error is not None:
            raise self.error

    def _end(self, error: IPFSStreamError) -> None:
        """Kill it, and tell all who wait."""
        if self.error is not None:
            return
        self.error = error
        with suppress(ProcessLookupError):
            self._process.kill()
        for future in (self._ready, self._info):
            if future is not None and not future.done():
                future.set_exception(error)
                future.exception()  # nobody may be waiting
        for tap in self._taps.values():
            tap.failed(error)
        self._taps.clear()
        for task in self._reads:
            task.cancel()
        self.ended.set()

    def _send(self, kind: Kind, number: int, body: bytes = b"") -> None:
        if self._writer is not None and self.error is None:
            self._writer.write(message(kind, number, body))

    async def _listen(self) -> None:
        try:
            reader, self._writer = await asyncio.open_connection(sock=self._connection)
            while True:
                size, kind, number = HEADER.unpack(await reader.readexactly(HEADER.size))
                if size > MAX_BODY:
                    raise ValueError(f"a message of {size} bytes")  # noqa: TRY301 - told below
                self._take(Kind(kind), number, await reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError):
            where = "while it started" if not self._ready.done() else "on this content"
            self._end(CorruptContentError(f"The media worker failed {where}."))
        except (ValueError, KeyError, TypeError, AttributeError):  # it says what no worker of ours would
            self._end(CorruptContentError("The media worker failed on this content, and was stopped."))

    def _take(self, kind: Kind, number: int, body: bytes) -> None:
        if number in self._busy and kind != Kind.READ:
            self._busy[number] = 0.0
        if kind == Kind.READ:
            self._take_read(number, *READ.unpack(body))
        elif kind == Kind.READY:
            self._ready.set_result(bool(json.loads(body)["filtered"]))
        elif kind in (Kind.INFO, Kind.FAILED) and number == 0:
            self._busy.pop(0, None)
            info = cast("asyncio.Future[EncodedInfo]", self._info)
            if info.done():  # the opener has left
                return
            if kind == Kind.INFO:
                info.set_result(_info_of(json.loads(body)))
            else:
                info.set_exception(error_from_json(json.loads(body)))
        elif number in self._taps:  # others were closed meanwhile
            self._taps[number].take(kind, body)

    def _take_read(self, number: int, offset: int, length: int) -> None:
        if (
            length > MAX_READ
            or offset + length > self._size
            or len(self._reads) >= MAX_READS  # those of cursors that were stopped are among them
        ):
            raise ValueError("a read that no worker of ours would ask for")
        task = asyncio.create_task(self._answer(number, offset, length))
        self._reads.add(task)
        task.add_done_callback(self._reads.discard)

    async def _answer(self, number: int, offset: int, length: int) -> None:
        try:
            async with self._reading:
                data = await cast("ReadAt", self._read_at)(offset, length)
        except IPFSStreamError as error:
            self._send(Kind.NO_BYTES, number, error_body(error))
        except Exception as error:  # noqa: BLE001 - the worker is told, and goes on
            text = f"The content could not be read ({type(error).__name__})."
            self._send(Kind.NO_BYTES, number, error_body(RetrievalError(text)))
        else:
            self._send(Kind.BYTES, number, data)
        if self._writer is not None:
            with suppress(ConnectionError):  # _listen tells
                await self._writer.drain()

    async def _watch(self) -> None:
        """Count the time in which it neither answers nor waits for bytes."""
        before = time.monotonic()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = time.monotonic()
            for number in self._busy:
                if not self._reads:
                    # a loop that was held up itself proves nothing
                    self._busy[number] += min(now - before, 2 * TICK_SECONDS)
            before = now
            if max(self._busy.values(), default=0.0) > self._limits.stall_seconds:
                self._end(
                    CorruptContentError(
                        f"The media worker gave nothing in {self._limits.stall_seconds:g} s on this content, "
                        "and was stopped."
                    )
                )
                return

    def _ask(self, number: int, until: float, most: int, aim: Aim | None) -> None:
        self._check()
        self._busy[number] = 0.0
        bitrate, frame_rate = (aim.bitrate, aim.frame_rate or 0.0) if aim is not None else (0, 0.0)
        self._send(Kind.MORE, number, MORE.pack(until, most, bitrate, frame_rate))

    def _answered(self, number: int) -> None:
        self._busy.pop(number, None)

    def _forget(self, number: int) -> None:
        self._busy.pop(number, None)
        if self._taps.pop(number, None) is not None:
            self._send(Kind.STOP, number)


class Tap:
    """One place of a worker's content that is read on."""

    def __init__(self, worker: Worker, number: int, on_packets: OnPackets) -> None:
        self._worker, self._number, self._on_packets = worker, number, on_packets
        self._answer: asyncio.Future[bool] | None = None
        self._credit, self._last = 0, 0.0
        self._error: IPFSStreamError | None = None
        self.damaged = 0
        """Packets and frames of the file that could not be decoded."""

    async def more(self, until: float, most: int, aim: Aim | None = None) -> bool:
        """Get packets up to a time (s), at most so many bytes, as `aim` allows; False once there are no more. One call at a
        time."""
        if self._error is not None:
            raise self._error
        self._credit = most + MAX_PACKET
        self._answer = asyncio.get_running_loop().create_future()
        self._worker._ask(self._number, until, most, aim)  # noqa: SLF001 - its other half
        return await self._answer

    def close(self) -> None:
        """Let the worker forget it. Idempotent."""
        self._worker._forget(self._number)  # noqa: SLF001 - its other half

    def failed(self, error: IPFSStreamError) -> None:
        """End `more` with an error."""
        self._error = error
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    def take(self, kind: Kind, body: bytes) -> None:
        """A message for it. Raises ValueError for what was not asked for."""
        if self._answer is None or self._answer.done():
            if kind == Kind.FAILED:
                self._error = error_from_json(json.loads(body))
                return
            if self._answer is not None and self._answer.cancelled():
                return
            raise ValueError(f"{kind.name} that nobody asked for")
        if kind == Kind.PACKETS:
            self._credit -= len(body)
            if self._credit < -MAX_BODY:
                raise ValueError("more packets than were asked for")
            packets = list(unpack(body))
            for packet in packets:
                if packet.time < self._last:
                    raise ValueError("time that runs backwards")
                self._last = packet.time
            self._on_packets(packets)
        elif kind in (Kind.PAUSED, Kind.ENDED):
            (self.damaged,) = COUNT.unpack(body)
            self._done(kind == Kind.PAUSED)
        elif kind == Kind.FAILED:
            self._worker._answered(self._number)  # noqa: SLF001 - its other half
            self.failed(error_from_json(json.loads(body)))

    def _done(self, more: bool) -> None:
        self._worker._answered(self._number)  # noqa: SLF001 - its other half
        cast("asyncio.Future[bool]", self._answer).set_result(more)


def _environment() -> dict[str, str]:
    """Nothing of the server's but where Python and its libraries are: no token, no proxy."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return kept | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OPENBLAS_NUM_THREADS": "1",  # numpy is used for little; each thread would cost address space
        "MALLOC_ARENA_MAX": "4",  # as do arenas
    }


def _info_of(body: dict[str, Any]) -> EncodedInfo:
    """What a worker tells, with each value of its type. Raises ValueError, TypeError or KeyError for anything else."""
    duration = body["duration"]
    video, audio = (body[kind] and _track_of(kind, body[kind]) for kind in ("video", "audio"))
    return EncodedInfo(None if duration is None else float(duration), video, audio)


def _track_of(kind: TrackKind, body: dict[str, Any]) -> EncodedTrack:
    if body["codec"] not in get_args(Codec):
        raise ValueError("a codec that is not ours")
    return EncodedTrack(
        kind=kind,
        codec=body["codec"],
        source_codec=str(body["source_codec"])[:MAX_NAME],
        passthrough=bool(body["passthrough"]),
        width=int(body["width"]),
        height=int(body["height"]),
        frame_rate=float(body["frame_rate"]),
        bitrate=int(body["bitrate"]),
    )
