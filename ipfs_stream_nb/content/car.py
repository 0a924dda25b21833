"""CAR files: v1 (https://ipld.io/specs/transport/car/carv1/) and v2 (…/carv2/), read and written.

The decoder is fed with what arrives and gives the blocks that are complete. It does not hash them: whoever takes
a block calls `cid.verify(block)` before using it. A v2's index is passed over, since nobody here would believe it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import libipld

from ipfs_stream_nb.content.cid import CID, DAG_CBOR, BytesLike, varint
from ipfs_stream_nb.content.dag_pb import MAX_BLOCK
from ipfs_stream_nb.content.links import links_of
from ipfs_stream_nb.content.protobuf import read_varint
from ipfs_stream_nb.errors import BadCIDError, CorruptContentError, TooLargeError

MAX_HEADER: Final = 1024 * 1024
"""Bytes of a header: room for some 25,000 roots."""
MAX_CID_BYTES: Final = 160
"""Bytes of a binary CID: an identity CID of 128 bytes with the largest codec has fewer."""
_MAX_VARINT: Final = 10
_PRAGMA_V2: Final = bytes.fromhex("0aa16776657273696f6e02")
_HEADER_V2_BYTES: Final = 40


class CarBlock(NamedTuple):
    """A section of a CAR: a block that is claimed to have this CID."""

    cid: CID
    data: bytes


class CarDecoder:
    """Takes a CAR in pieces of any size; keeps no more than one section (`MAX_BLOCK`) and the piece in hand."""

    def __init__(self) -> None:
        self.version: int | None = None
        """1 or 2, once it is known."""
        self.roots: tuple[CID, ...] = ()
        """The roots that the header names, once it is read."""
        self._buffer = bytearray()
        self._skip = 0  # bytes to pass over before the v1 part begins
        self._payload: int | None = None  # bytes left of the v1 part; None: up to the end
        self._header_read = False
        self._padding = False

    def feed(self, data: BytesLike) -> list[CarBlock]:
        """The blocks that `data` completes, not verified.

        Raises CorruptContentError for what is no CAR, TooLargeError for a header or block over the limits.
        """
        self._buffer += data
        if self.version is None and not self._read_version():
            return []
        dropped = min(self._skip, len(self._buffer))
        del self._buffer[:dropped]
        self._skip -= dropped
        if self._skip:
            return []
        blocks = []
        at = 0
        while not self._padding and (span := self._next_span(at)) is not None:
            start, stop = span
            if self._payload is not None:
                self._payload -= stop - at
            if not self._header_read:
                self.roots = _read_header(bytes(self._buffer[start:stop]))
                self._header_read = True
            elif start == stop:
                self._padding = True
            else:
                blocks.append(_read_section(self._buffer, start, stop))
            at = stop
        del self._buffer[:at]
        self._drop_rest()
        return blocks

    def finish(self) -> None:
        """Say that nothing follows. Raises CorruptContentError where the CAR is cut."""
        if not self._header_read or self._skip or (self._payload is None and self._buffer) or self._payload:
            raise CorruptContentError("the CAR is cut short: its last part is missing")

    def _read_version(self) -> bool:
        head = self._buffer[: len(_PRAGMA_V2)]
        if head != _PRAGMA_V2[: len(head)]:
            self.version = 1
            return True
        end = len(_PRAGMA_V2) + _HEADER_V2_BYTES
        if len(self._buffer) < end:
            return False
        self.version = 2
        offset, size, index = (int.from_bytes(self._buffer[at : at + 8], "little") for at in (27, 35, 43))
        if offset < end or size == 0 or (index and index < offset + size):
            raise CorruptContentError(
                "the CARv2 header places its data outside of the file, or over its index"
            )
        self._skip, self._payload = offset, size
        return True

    def _next_span(self, at: int) -> tuple[int, int] | None:
        """Where the section whose length stands at `at` has its bytes; None where they are not all here."""
        available = len(self._buffer) - at
        if self._payload is not None:
            available = min(available, self._payload)
        if available == 0:
            return None
        head = self._buffer[at : at + min(available, _MAX_VARINT)]
        complete = any(byte < 0x80 for byte in head)
        if not complete and len(head) < _MAX_VARINT:
            self._check_reach(len(head) + 1)
            return None
        length, size = read_varint(memoryview(head), 0, len(head))
        limit = MAX_BLOCK + MAX_CID_BYTES if self._header_read else MAX_HEADER
        if length > limit:
            what = "block" if self._header_read else "header"
            raise TooLargeError(f"the CAR has a {what} of {length} bytes; at most {limit} are read")
        if size + length > available:
            self._check_reach(size + length)
            return None
        return at + size, at + size + length

    def _check_reach(self, needed: int) -> None:
        if self._payload is not None and needed > self._payload:
            raise CorruptContentError("a section of the CAR reaches over the end of its CARv2 data")

    def _drop_rest(self) -> None:
        """Throw away what may follow the last section: zeros in a CARv1, the index in a CARv2."""
        if self._padding:
            zeros = len(self._buffer) if self._payload is None else min(self._payload, len(self._buffer))
            if any(self._buffer[:zeros]):
                raise CorruptContentError("a CAR's zero padding is followed by other bytes")
            del self._buffer[:zeros]
            if self._payload is not None:
                self._payload -= zeros
        if self._payload == 0:
            self._buffer.clear()


def _read_header(data: bytes) -> tuple[CID, ...]:
    try:
        links = links_of(_HEADER_CID, data)
        header = libipld.decode_dag_cbor(data)
    except (CorruptContentError, ValueError, RecursionError) as error:
        raise CorruptContentError(f"not a CAR: its header is malformed ({error})") from None
    version = header.get("version") if isinstance(header, dict) else None
    if version != 1:
        raise CorruptContentError(f"not a CAR of version 1 or 2: its header has the version {version!r:.40}")
    if header.get("roots") != [bytes(cid) for cid in links]:
        raise CorruptContentError("not a CAR: its header has no list of roots")
    return tuple(links)


_HEADER_CID: Final = CID.of(b"", DAG_CBOR)  # only its codec matters


def _read_section(buffer: bytearray, start: int, stop: int) -> CarBlock:
    head = bytes(buffer[start : min(stop, start + MAX_CID_BYTES)])
    try:
        cid, size = CID.read(head)
    except BadCIDError as error:
        raise CorruptContentError(f"a section of the CAR has no usable CID: {error}") from None
    if stop - start - size > MAX_BLOCK:
        raise TooLargeError(
            f"the CAR has a block of {stop - start - size} bytes; at most {MAX_BLOCK} are read"
        )
    return CarBlock(cid, bytes(memoryview(buffer)[start + size : stop]))


def encode_header(roots: Sequence[CID]) -> bytes:
    """The beginning of a CARv1."""
    links = b"".join(_encode_link(bytes(root)) for root in roots)
    header = b"\xa2\x65roots" + _cbor_head(0x80, len(roots)) + links + b"\x67version\x01"
    return varint(len(header)) + header


def encode_v2_prefix(data_bytes: int) -> bytes:
    """What stands before a CARv1 of `data_bytes` to make it a CARv2 without an index."""
    offset = len(_PRAGMA_V2) + _HEADER_V2_BYTES
    sizes = b"".join(value.to_bytes(8, "little") for value in (offset, data_bytes, 0))
    return _PRAGMA_V2 + bytes(16) + sizes


def _encode_link(cid: bytes) -> bytes:
    return b"\xd8\x2a" + _cbor_head(0x40, len(cid) + 1) + b"\0" + cid


def _cbor_head(major: int, value: int) -> bytes:
    if value < 24:
        return bytes([major | value])
    size = 1 if value < 2**8 else 2 if value < 2**16 else 4
    return bytes([major | 23 + size.bit_length()]) + value.to_bytes(size, "big")


def encode_section_prefix(cid: CID, size: int) -> bytes:
    """What stands before a block of `size` bytes in a CAR."""
    head = bytes(cid)
    return varint(len(head) + size) + head


def encode_section(cid: CID, block: BytesLike) -> bytes:
    """A block as a section of a CAR."""
    return b"".join((encode_section_prefix(cid, len(block)), block))
