"""How a media file is read: the limits on it, and the file object that PyAV gets in its place."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

from ipfs_stream_nb.errors import BadRequestError, CorruptContentError, RetrievalTimeoutError

CHUNK = 64 * 1024
"""Reads of the file start at multiples of this many bytes."""
READ_AHEAD = 4
"""Chunks that one read takes at most, once reading goes straight on."""
CACHED_CHUNKS = 64
"""Chunks that are kept (4 MiB): index and media data are read in turns."""


@dataclass(frozen=True)
class MediaLimits:
    """What a media file may cost. Each limit has a default for a notebook's kernel, and can be raised by a caller."""

    max_pixels: int = 2**26
    """Width × height of one picture: 8192²; 8K video has half of it. A decoded picture takes 1.5 to 4 bytes each."""
    max_streams: int = 64
    """Streams in one file; those after it are ignored by most demuxers, an error in others."""
    probe_bytes: int = 2**20
    """Bytes of packets that are looked at to learn the streams' properties."""
    probe_seconds: float = 2.0
    """Seconds of content that are looked at to learn the streams' properties."""
    stall_seconds: float = 60.0
    """Seconds of work (waiting for the file's bytes does not count) without anything to show for it."""
    max_result_bytes: int = 2**31
    """Bytes of the array that frames() or audio() gives."""


DEFAULT_LIMITS = MediaLimits()


class BinaryFile(Protocol):
    """What is needed of a file object: binary, seekable, with its size at the end."""

    def read(self, size: int = -1, /) -> bytes | None: ...
    def seek(self, offset: int, whence: int = 0, /) -> int: ...


class Reader:
    """The file as PyAV sees it: no name, no write, aligned reads with a small cache, errors kept for later.

    PyAV calls it from C, where an exception (KeyboardInterrupt above all) would be printed and lost, or come up in
    an unrelated call; so read() keeps it, says "end of file", and `raise_failure` raises it outside.
    """

    def __init__(self, file: BinaryFile, limits: MediaLimits) -> None:
        self._file, self._limits = file, limits
        try:
            self.size = file.seek(0, 2)
        except (AttributeError, TypeError, ValueError) as error:
            raise BadRequestError(
                f"Expected a binary, seekable file object, not {type(file).__name__}."
            ) from error
        self._position = 0
        self._chunks: OrderedDict[int, bytes] = OrderedDict()
        self._next, self._ahead = -1, 1
        self._failure: BaseException | None = None
        self._waited = 0.0
        self._since = time.monotonic()

    def read(self, size: int) -> bytes:
        """At most `size` bytes from the position on, fewer at the end of a chunk, none at the end or after a failure."""
        if self._failure is not None or not 0 <= self._position < self.size:
            return b""
        index, offset = divmod(self._position, CHUNK)
        try:
            self.check_stall()
            chunk = self._chunks.get(index) or self._fetch(index)
        except BaseException as error:  # noqa: BLE001 - raised again by raise_failure
            self._failure = error
            return b""
        self._chunks.move_to_end(index)
        piece = chunk[offset : offset + size]
        self._position += len(piece)
        return piece

    def seek(self, offset: int, whence: int = 0) -> int:
        """As io's; a position outside of the file is no error until it is read from."""
        position = offset + (0, self._position, self.size)[whence]
        if position < 0:
            return -1
        self._position = position
        return position

    def tell(self) -> int:
        return self._position

    def rewind(self) -> None:
        self._position = 0

    def progress(self) -> None:
        """Something came of the work: the stall clock starts anew."""
        self._since, self._waited = time.monotonic(), 0.0

    def check_stall(self) -> None:
        """Raise RetrievalTimeoutError if too much work was done for nothing."""
        limit = self._limits.stall_seconds
        if time.monotonic() - self._since - self._waited > limit:
            raise RetrievalTimeoutError(
                f"Decoding the content gave nothing in {limit:g} s of work; it was stopped."
            )

    def raise_failure(self) -> None:
        """Raise what read() met, if anything."""
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _fetch(self, index: int) -> bytes:
        """Read the chunk, and more after it the longer the reading goes straight on."""
        self._ahead = min(self._ahead * 2, READ_AHEAD) if index == self._next else 1
        start, stop = index * CHUNK, min((index + self._ahead) * CHUNK, self.size)
        before = time.monotonic()
        data = self._read_exactly(start, stop - start)
        self._waited += time.monotonic() - before
        self._next = index + self._ahead
        for place in range(0, len(data), CHUNK):
            self._chunks[index + place // CHUNK] = data[place : place + CHUNK]
        while len(self._chunks) > CACHED_CHUNKS:
            self._chunks.popitem(last=False)
        if index not in self._chunks:
            raise CorruptContentError(
                f"The content ends at byte {start}, before its size of {self.size} bytes."
            )
        return self._chunks[index]

    def _read_exactly(self, start: int, length: int) -> bytes:
        self._file.seek(start)
        parts = []
        while length > 0:
            part = self._file.read(length)
            if not part:
                break
            parts.append(bytes(part[:length]))
            length -= len(parts[-1])
        return parts[0] if len(parts) == 1 else b"".join(parts)


class PillowFile:
    """The reader for Pillow, which takes a short read for the end of the file."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.seek, self.tell = reader.seek, reader.tell

    def read(self, size: int = -1) -> bytes:
        wanted = size if size >= 0 else CHUNK * CACHED_CHUNKS  # a header is never larger
        parts = bytearray()
        while len(parts) < wanted and (part := self._reader.read(wanted - len(parts))):
            parts += part
        return bytes(parts)
