"""A seekable file over a CID, for everything that reads files: PyAV, pandas, zipfile, shutil."""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from ipfs_stream_nb.errors import BadRequestError

READ_SIZE: Final = 64 * 1024
"""Bytes of a piece: small reads are answered from aligned pieces of this size, large ones are fetched as they are."""
CACHED_PIECES: Final = 64
"""Pieces kept, 4 MiB: media readers go to and fro between an index and the data."""
SEQUENTIAL_BYTES: Final = 1024 * 1024
"""After so many bytes in a row, AHEAD_PIECES are fetched at once: a seek stays cheap, and a long read quick."""
AHEAD_PIECES: Final = 16

ReadAt = Callable[[int, int], bytes]


class ContentFile(io.RawIOBase):
    """A read-only binary file. Made by `client.open(cid)`; safe to share between threads, which share its position.

    It has no `.name`, since some readers take that for a local path.
    """

    def __init__(self, read_at: ReadAt, size: int, *, label: str = "") -> None:
        """`read_at(offset, length)` gives verified bytes; `label` is shown in the repr."""
        super().__init__()
        self._read_at = read_at
        self._size = size
        self._label = label
        self._position = 0
        self._pieces: OrderedDict[int, bytes] = OrderedDict()
        self._run_end = 0
        self._run_bytes = 0
        self._lock = threading.RLock()
        self.bytes_fetched = 0
        """Bytes asked of the node so far: what reading this file has cost."""

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"at {self._position:,} of {self._size:,} bytes"
        return f"<ContentFile {self._label} {state}>"

    @property
    def size(self) -> int:
        """The file's length in bytes."""
        return self._size

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def write(self, _data: object, /) -> int:
        """Raise io.UnsupportedOperation: content by CID does not change."""
        raise io.UnsupportedOperation("content by CID is read-only; add a changed copy with client.add")

    def tell(self) -> int:
        """The position of the next read."""
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move, also past the end, where reads give nothing. Raises BadRequestError before the start."""
        self._check_open()
        if whence not in {os.SEEK_SET, os.SEEK_CUR, os.SEEK_END}:
            raise BadRequestError(f"whence is 0, 1 or 2, not {whence}")
        with self._lock:
            target = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
            if target < 0:
                raise BadRequestError(f"cannot seek to {target}, before the start of the file")
            self._position = target
            return target

    def read(self, size: int | None = -1, /) -> bytes:
        """`size` bytes, fewer only at the end of the file; all that is left for -1 or None."""
        self._check_open()
        with self._lock:
            left = max(0, self._size - self._position)
            wanted = left if size is None or size < 0 else min(size, left)
            parts = []
            while wanted > 0:
                part = self._some(self._position, wanted)
                self._position += len(part)
                wanted -= len(part)
                parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # the stub's Buffer is 3.12's
        """Fill the buffer, short only at the end of the file."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        """All that is left."""
        return self.read()

    def _some(self, position: int, wanted: int) -> bytes:
        """At least one byte at `position`: from a kept piece, or fetched."""
        start = position - position % READ_SIZE
        piece = self._pieces.get(start)
        if piece is not None:
            self._pieces.move_to_end(start)
        elif wanted >= READ_SIZE:
            return self._fetch(position, wanted)
        else:
            piece = self._fetch_pieces(start)
        return piece[position - start : position - start + wanted]

    def _fetch_pieces(self, start: int) -> bytes:
        """The piece at `start`, and those behind it where reading goes straight on."""
        count = AHEAD_PIECES if start == self._run_end and self._run_bytes >= SEQUENTIAL_BYTES else 1
        data = self._fetch(start, min(count * READ_SIZE, self._size - start))
        for at in range(0, len(data), READ_SIZE):
            self._pieces[start + at] = data[at : at + READ_SIZE]
            self._pieces.move_to_end(start + at)
        while len(self._pieces) > CACHED_PIECES:
            self._pieces.popitem(last=False)
        return self._pieces[start]

    def _fetch(self, offset: int, length: int) -> bytes:
        data = self._read_at(offset, length)
        self.bytes_fetched += len(data)
        self._run_bytes = len(data) + (self._run_bytes if offset == self._run_end else 0)
        self._run_end = offset + length
        if len(data) != length:
            raise EOFError(f"{self._label} ended {length - len(data)} bytes early")
        return data

    def close(self) -> None:
        """Drop what is kept. Idempotent."""
        self._pieces.clear()
        super().close()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("this file is closed")
