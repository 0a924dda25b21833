"""How a media file is read: the limits on it, and the file object that PyAV gets in its place."""

from __future__ import annotations

import struct
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

from ipfs_stream_nb.errors import BadRequestError, CorruptContentError, RetrievalTimeoutError

CHUNK = 64 * 1024
"""Reads of the file start at multiples of this many bytes."""
READ_AHEAD = 8
"""Chunks that one read takes at most: half of what was read straight on before, so that little is read in vain."""
CACHED_CHUNKS = 64
"""Chunks that are kept (4 MiB): index and media data are read in turns."""
_EBML, _SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"
_TRUN_PER_SAMPLE = 0xF00  # the flags of trun that say which fields each sample has
_SMALLEST_BOX, _LARGEST_BOX = 16, 2**26
_COUNTS_OVERLAP = 19  # bytes of the chunk before, for a box that begins there


@dataclass(frozen=True)
class MediaLimits:
    """What a media file may cost. Each limit has a default for a notebook's kernel, and can be raised by a caller."""

    max_pixels: int = 2**26
    """Width × height of a picture file: 8192². Decoded, a pixel takes 3 to 4 bytes, or 8 where it has 16 bits."""
    max_video_pixels: int = 2**25
    """Width × height of video: 8K has 33 million. A decoder holds up to 17 pictures, and one more for each thread."""
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
        self._next, self._run = -1, 0
        self._failure: BaseException | None = None
        self._waited = 0.0
        self._since = time.monotonic()
        self.missed = 0
        """The furthest place, at the end of the file or behind it, where there was nothing to read."""
        self.watch_counts = True
        """Whether an MP4's index is looked at as it passes by, see `check_counts`."""

    def read(self, size: int) -> bytes:
        """At most `size` bytes from the position on, fewer at the end of a chunk, none at the end or after a failure."""
        if self._failure is not None or self._position >= self.size:
            self.missed = max(self.missed, self._position)
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

    def head(self, size: int) -> bytes:
        """The file's first bytes; the position is then behind them."""
        self.rewind()
        head = self.read(size)
        self.raise_failure()
        return head

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
        self._run = self._run if index == self._next else 0
        count = max(1, min(self._run // 2, READ_AHEAD))
        start, stop = index * CHUNK, min((index + count) * CHUNK, self.size)
        before = time.monotonic()
        data = self._read_exactly(start, stop - start)
        self._waited += time.monotonic() - before
        if len(data) < stop - start:
            raise CorruptContentError(
                f"The content ends at byte {start + len(data)}, before its size of {self.size} bytes."
            )
        if self.watch_counts:
            check_counts(self._chunks.get(index - 1, b"")[-_COUNTS_OVERLAP:] + data, self.size)
        self._next, self._run = index + count, self._run + count
        for place in range(0, len(data), CHUNK):
            self._chunks[index + place // CHUNK] = data[place : place + CHUNK]
        while len(self._chunks) > CACHED_CHUNKS:
            self._chunks.popitem(last=False)
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


def check_counts(data: bytes, size: int) -> None:
    """Raise CorruptContentError if MP4 boxes in `data` count more samples than the content, of `size` bytes, can hold.

    FFmpeg believes such a count and makes an index of some 70 bytes for each: 3 KB could ask for all memory there is.
    Only the counts that no table backs are of interest: those of samples that share one size (ISO 14496-12: 8.7.3
    stsz, 8.8.8 trun).
    """
    for name in (b"stsz", b"trun"):
        at = data.find(name, 4)
        while at >= 0:
            box, _, flags, first, second = struct.unpack_from(
                ">IIIII", data[at - 4 : at + 16].ljust(20, b"\0")
            )
            # Media data can hold the four letters by chance; a box's size before them is then unlikely.
            if box <= 1 or _SMALLEST_BOX <= box <= _LARGEST_BOX:
                shared, count = (first, second) if name == b"stsz" else (not flags & _TRUN_PER_SAMPLE, first)
                if shared * count > size:
                    raise CorruptContentError(
                        f"The content's index ({name.decode()}) lists more than it can hold."
                    )
            at = data.find(name, at + 4)


def check_length(head: bytes, size: int) -> None:
    """Raise CorruptContentError for a WebM or Matroska file that is shorter than its segment says (RFC 8794, RFC 9559).

    Its demuxer would take the end of the file for the end of the video.
    """
    if not head.startswith(_EBML):
        return
    body, length = _ebml_size(head, len(_EBML))
    start = body + (length or 0)
    if head[start : start + len(_SEGMENT)] == _SEGMENT:
        body, length = _ebml_size(head, start + len(_SEGMENT))
        if length is not None and body + length > size:
            raise CorruptContentError(
                f"The content is cut short: it has {size} bytes, and its header says {body + length}."
            )


def _ebml_size(data: bytes, at: int) -> tuple[int, int | None]:
    """Where an element's body begins, and its size; None is for one of unknown size (RFC 8794, section 4)."""
    first = data[at] if at < len(data) else 0
    width = 9 - first.bit_length()
    value = int.from_bytes(data[at : at + width], "big") & ((1 << 7 * width) - 1)
    return at + width, None if value == (1 << 7 * width) - 1 else value


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
