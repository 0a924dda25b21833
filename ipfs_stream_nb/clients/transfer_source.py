"""What is uploaded, to be read again from where the server has it."""

from __future__ import annotations

import asyncio
import io
import os
import stat
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any, Final

from ipfs_stream_nb.clients.sources import Source, open_source
from ipfs_stream_nb.content.cid import BytesLike
from ipfs_stream_nb.errors import BadRequestError

RETAINED: Final = 32 * 1024 * 1024
"""Bytes of a source that cannot be read twice which are kept until the server has them on its disk."""
LINGER_SECONDS: Final = 0.05
"""Seconds that small pieces wait for more of them, so that they go in one message."""

RESERVE: Final = 2 * 1024 * 1024
"""Bytes that are held back for a moment where all that is kept is sent: the server tells what is safe along with what
comes, a tenth of a second after it told last, and otherwise only once nothing came for half a second."""
RESERVE_SECONDS: Final = 0.11
"""That moment."""


class Replay(ABC):
    """One file's bytes. `read` goes forward but for what a lost connection took, and never below `release`."""

    label: str
    name: str
    size: int | None

    @abstractmethod
    async def read(self, offset: int, size: int) -> BytesLike:
        """At most `size` bytes from `offset`, b"" at the end. Raises what the source does."""

    def release(self, offset: int) -> None:  # noqa: B027  # what can seek keeps nothing
        """Bytes below `offset` are not asked for again."""

    async def close(self) -> None:  # noqa: B027  # bytes need no closing
        """Let go of the source. Idempotent."""


async def open_replay(source: Any, name: str | None) -> Replay:
    """Look at what is to be uploaded. Raises NotFoundError, and BadRequestError for what is no file's content."""
    taken = await asyncio.to_thread(open_source, source, name, hidden=False, sized=False)
    replay: Replay
    if taken.path is not None:
        file = await asyncio.to_thread(_open, taken.path)
        replay = FileReplay(file, 0, os.fstat(file.fileno()).st_size, own=True)
    elif isinstance(source, bytes | bytearray | memoryview):
        view = memoryview(source)
        replay = MemoryReplay(view.cast("B") if view.c_contiguous else memoryview(view.tobytes()))
    elif hasattr(source, "read") and not getattr(source, "readable", lambda: True)():
        raise BadRequestError('the file is open for writing alone; open it to read: open(path, "rb")')
    elif taken.size is not None and hasattr(source, "read") and not isinstance(source, io.TextIOBase):
        replay = FileReplay(source, source.tell(), taken.size, own=False)
    else:
        replay = WindowReplay(taken)
    replay.label, replay.name = taken.label, taken.name
    return replay


def _open(path: str) -> Any:
    mode = os.stat(path).st_mode  # noqa: PTH116  # one way for all names
    if stat.S_ISDIR(mode):
        raise BadRequestError(
            f"{path!r} is a directory, and an upload is one file; client.add takes directories"
        )
    if not stat.S_ISREG(mode):
        raise BadRequestError(f"{path!r} is a device, pipe or socket, and only files are uploaded")
    return open(path, "rb", buffering=0)  # noqa: PTH123  # closed by the replay


class MemoryReplay(Replay):
    """Bytes that are there."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self.size = len(view)

    async def read(self, offset: int, size: int) -> BytesLike:
        """See Replay."""
        await asyncio.sleep(0)  # a server that takes all at once leaves no other wait
        return self._view[offset : offset + size]


class FileReplay(Replay):
    """A file that can seek, from a position in it. `size` is what is sent, also where the file grows meanwhile."""

    def __init__(self, file: Any, start: int, size: int, *, own: bool) -> None:
        """`own`: it is closed with the replay."""
        self._file = file
        self._start = start
        self._own = own
        self._lock = threading.Lock()
        self.size: int = size

    async def read(self, offset: int, size: int) -> BytesLike:
        """See Replay."""
        size = min(size, self.size - offset)
        return await asyncio.to_thread(self._read, offset, size) if size > 0 else b""

    def _read(self, offset: int, size: int) -> bytes:
        with self._lock:  # a read that was given up may still be under way
            self._file.seek(self._start + offset)
            data = self._file.read(size)
        if not isinstance(data, bytes):
            raise BadRequestError(
                f"the file gave {type(data).__name__} and not bytes; open it in binary mode"
            )
        return data

    async def close(self) -> None:
        """See Replay."""
        if self._own:
            await asyncio.to_thread(self._close)

    def _close(self) -> None:
        with self._lock:
            self._file.close()


class WindowReplay(Replay):
    """What can be read once: kept from the first byte that may be asked for again, RETAINED at the most.

    It is read by a task of its own, since a read that a lost connection cancelled would lose bytes.
    """

    def __init__(self, source: Source) -> None:
        assert source.stream is not None  # noqa: S101  # what is no path has one
        self._stream: AsyncGenerator[BytesLike, None] = source.stream
        self.size = source.size
        self._held = bytearray()
        self._start = 0
        """The offset of the first byte held."""
        self._floor = 0
        """The first that may be asked for."""
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._full = self._ended = False
        self._error: BaseException | None = None
        self._task: asyncio.Task[None] | None = None

    async def read(self, offset: int, size: int) -> BytesLike:
        """See Replay."""
        if offset < self._floor:
            raise BadRequestError(
                f"the server asks for bytes from {offset} again, and those below {self._floor} are gone from here"
            )
        if self._task is None:
            self._task = asyncio.create_task(self._fill(), name="read what is uploaded")
        while not self._ended and self._end <= offset:
            await self._change()
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while not (self._ended or self._full or self._end >= offset + size):
                    await self._change()
        if self._full and self._end - offset <= RESERVE:
            with suppress(TimeoutError):
                async with asyncio.timeout(RESERVE_SECONDS):
                    while self._full:
                        await self._change()
        if self._end <= offset and self._error is not None:
            raise self._error
        if self._end < offset:
            raise BadRequestError(f"the source has {self._end} bytes, and the server has {offset} of it")
        begin = offset - self._start
        with memoryview(self._held) as held:
            return bytes(held[begin : begin + size])

    @property
    def _end(self) -> int:
        return self._start + len(self._held)

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def _fill(self) -> None:
        try:
            async with aclosing(self._stream) as stream:
                async for data in stream:
                    self._held += data
                    self._drop()
                    self._changed.set()
                    while len(self._held) >= RETAINED:
                        self._full = True
                        self._changed.set()
                        self._room.clear()
                        await self._room.wait()
                        self._full = False
                        self._changed.set()
        except BaseException as error:
            self._error = error
            if not isinstance(error, Exception):
                raise
        finally:
            self._ended = True
            self._changed.set()

    def release(self, offset: int) -> None:
        """See Replay."""
        self._floor = max(self._floor, offset)
        self._drop()

    def _drop(self) -> None:
        gone = min(self._floor - self._start, len(self._held))
        if gone > 0:
            del self._held[:gone]
            self._start += gone
            self._room.set()

    async def close(self) -> None:
        """See Replay."""
        if self._task is None:
            await self._stream.aclose()
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
