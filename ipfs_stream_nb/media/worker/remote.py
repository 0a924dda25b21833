"""The content as a file in the worker: its bytes come from the parent, in blocks that all cursors share."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

BLOCK: Final = 64 * 1024
"""Bytes of a block: the step in which media files are read (reader.CHUNK)."""

Fetch = Callable[[int, int], "Future[bytes]"]
"""Ask the parent for bytes: offset and length."""


class StoppedError(BaseException):
    """The cursor is no longer wanted."""


class Blocks:
    """Blocks of one content. Two cursors that need the same one at the same time fetch it once."""

    def __init__(self, fetch: Fetch, size: int, cache_bytes: int) -> None:
        self.size = size
        self._fetch, self._most = fetch, max(1, cache_bytes // BLOCK)
        self._kept: OrderedDict[int, Future[bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, offset: int, length: int, wait: Callable[[Future[bytes]], bytes]) -> bytes:
        """Some bytes, fewer at the end; `wait` gives a future's result. Raises what the parent answers."""
        stop = min(offset + length, self.size)
        if offset >= stop:
            return b""
        first, last = offset // BLOCK, (stop - 1) // BLOCK
        parts = [wait(future) for future in self._futures(first, last)]
        start = offset - first * BLOCK
        if len(parts) == 1:
            return parts[0][start : start + stop - offset]
        return b"".join(parts)[start : start + stop - offset]

    def _futures(self, first: int, last: int) -> list[Future[bytes]]:
        with self._lock:
            found = {index: self._kept.get(index) for index in range(first, last + 1)}
            for index, known in found.items():
                if known is not None and known.done() and known.exception() is not None:
                    found[index] = None  # it failed once: ask again
            missing = [index for index, known in found.items() if known is None]
            if missing:
                self._ask(missing[0], missing[-1])
            futures = []
            for index in range(first, last + 1):
                self._kept.move_to_end(index)
                futures.append(self._kept[index])
            while len(self._kept) > max(self._most, last - first + 1):
                self._kept.popitem(last=False)
        return futures

    def _ask(self, first: int, last: int) -> None:
        pieces: list[Future[bytes]] = [Future() for _ in range(first, last + 1)]
        self._kept.update(zip(range(first, last + 1), pieces, strict=True))
        start, stop = first * BLOCK, min((last + 1) * BLOCK, self.size)

        def cut(done: Future[bytes]) -> None:
            error = done.exception()
            for place, piece in enumerate(pieces):
                if error is not None:
                    piece.set_exception(error)
                else:
                    piece.set_result(done.result()[place * BLOCK : (place + 1) * BLOCK])

        self._fetch(start, stop - start).add_done_callback(cut)


class RemoteFile:
    """A file object for one cursor. It has no name, and ends when the cursor is stopped."""

    def __init__(self, blocks: Blocks, stopped: threading.Event) -> None:
        self._blocks, self.stopped = blocks, stopped
        self._position = 0

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """As io's."""
        self._position = offset + (0, self._position, self._blocks.size)[whence]
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        """As io's."""
        data = self._blocks.read(
            self._position, size if size >= 0 else self._blocks.size - self._position, self._wait
        )
        self._position += len(data)
        return data

    def _wait(self, future: Future[bytes]) -> bytes:
        while not self.stopped.is_set():
            try:
                return future.result(_PATIENCE)
            except TimeoutError:
                if future.done():
                    raise
        raise StoppedError


_PATIENCE = 0.2  # seconds until it is looked whether the cursor is still wanted
