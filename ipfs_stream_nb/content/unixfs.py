"""UnixFS 1 and 1.5 (https://specs.ipfs.tech/unixfs/): what a dag-pb block means as part of a file system.

Sizes are checked as far as one block shows them: a file node's length is its own data and its children's
declared lengths together. Whether a child is as long as declared is for the reader of the child to see: it
compares the child's `file_size` (a raw leaf's length) with the parent's `block_sizes`. With that, no tree of
blocks can give more bytes than its root says, and children of length 0 need not be read at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, NamedTuple

from ipfs_stream_nb.content import dag_pb
from ipfs_stream_nb.content.cid import BytesLike, varint
from ipfs_stream_nb.content.dag_pb import PBLink
from ipfs_stream_nb.content.protobuf import BYTES, FIXED32, VARINT, fields, read_varint
from ipfs_stream_nb.errors import CorruptContentError, UnsupportedMediaError

MAX_FILE_SIZE: Final = 2**63 - 1
"""Bytes: what a signed 64-bit offset can reach, as in every file system."""
MAX_FANOUT: Final = 1024
"""Slots of a HAMT shard; the specification's limit."""
MURMUR3_X64_64: Final = 0x22
PERMISSION_BITS: Final = 0o7777
_MAX_NANOS: Final = 999_999_999
_MAX_UINT32: Final = 2**32 - 1


class UnixFSType(IntEnum):
    """The `Type` of a UnixFS node. RAW is an old leaf, read as a FILE is."""

    RAW = 0
    DIRECTORY = 1
    FILE = 2
    METADATA = 3
    SYMLINK = 4
    HAMT_SHARD = 5


class UnixTime(NamedTuple):
    """Seconds since the epoch (before it where negative), and nanoseconds counted upwards from there."""

    seconds: int
    nanos: int = 0


@dataclass(frozen=True, slots=True)
class UnixFSNode:
    """A decoded node: `data` is a file's own bytes, a symlink's target, or a shard's bitfield (big-endian).

    `file_size` and `block_sizes` (one per link) are bytes of a FILE or RAW node, 0 and empty for the others.
    """

    type: UnixFSType
    data: bytes = b""
    file_size: int = 0
    block_sizes: tuple[int, ...] = ()
    hash_type: int | None = None
    fanout: int | None = None
    raw_mode: int | None = None
    """All 32 bits of the mode as written; `mode` gives those that mean something."""
    modified: UnixTime | None = None
    links: tuple[PBLink, ...] = ()

    @property
    def mode(self) -> int | None:
        """The permission bits, if the writer kept them."""
        return None if self.raw_mode is None else self.raw_mode & PERMISSION_BITS

    @property
    def mtime(self) -> float | None:
        """Seconds since the epoch, if the writer kept them."""
        return None if self.modified is None else self.modified.seconds + self.modified.nanos / 1e9


def decode(block: BytesLike) -> UnixFSNode:
    """Read a dag-pb block as UnixFS.

    Raises CorruptContentError for what is malformed or lies about its sizes, TooLargeError over the limits,
    and UnsupportedMediaError for a dag-pb block that holds no UnixFS at all.
    """
    links, data = dag_pb.split(block)
    if data is None:
        raise UnsupportedMediaError("the block is dag-pb without data, so not a UnixFS file or directory")
    node = _read_message(data, tuple(links))
    if node.type in {UnixFSType.FILE, UnixFSType.RAW}:
        _check_file(node)
    elif node.block_sizes:
        raise CorruptContentError(f"a UnixFS {node.type.name.lower()} declares block sizes, which files have")
    elif node.type == UnixFSType.HAMT_SHARD:
        _check_shard(node)
    elif node.type == UnixFSType.SYMLINK and links:
        raise CorruptContentError("a UnixFS symlink has links, and none may")
    return node


ENVELOPE_BYTES: Final = 32
"""A file's dag-pb leaf has fewer bytes than this around its content; two links alone have more."""
_LEAF_TYPES: Final = {int(UnixFSType.RAW), int(UnixFSType.FILE)}


def leaf_span(block: BytesLike) -> tuple[int, int] | None:
    """Where the content of a file's leaf stands in its dag-pb block, with nothing copied.

    None for everything but the one form that writers give plain leaves: type, data, size. `decode` reads them all.
    """
    view = memoryview(block)
    end = len(view)
    try:
        length, at = read_varint(view, 1, end)
        size, start = read_varint(view, at + 3, end)
        stop = start + size
        declared, last = read_varint(view, stop + 1, end)
        plain = (
            (view[0], view[at], view[at + 2], view[stop]) == (0x0A, 0x08, 0x12, 0x18)
            and view[at + 1] in _LEAF_TYPES
            and at + length == last == end
            and declared == size
        )
    except (IndexError, CorruptContentError):
        return None
    return (start, stop) if plain else None


_BLOCK_SIZES: Final = 4
_TYPES: Final = {int(kind): kind for kind in UnixFSType}
_FIELDS: Final = {
    1: ("type", VARINT),
    2: ("data", BYTES),
    3: ("file_size", VARINT),
    5: ("hash_type", VARINT),
    6: ("fanout", VARINT),
    7: ("raw_mode", VARINT),
    8: ("modified", BYTES),
}


def _read_message(message: memoryview, links: tuple[PBLink, ...]) -> UnixFSNode:
    values, block_sizes = _read_fields(message)
    kind = values.pop("type", None)
    if kind not in _TYPES:
        raise CorruptContentError(
            "a UnixFS node has no type" if kind is None else f"there is no UnixFS type {kind}"
        )
    if values.get("raw_mode", 0) > _MAX_UINT32:
        raise CorruptContentError("a UnixFS mode has over 32 bits")
    if "modified" in values:
        values["modified"] = _read_time(values["modified"])
    if kind not in {UnixFSType.FILE, UnixFSType.RAW}:
        values.pop("file_size", None)  # some writers put a 0, and it means nothing
    values["data"] = bytes(values.get("data", b""))
    return UnixFSNode(type=_TYPES[kind], links=links, block_sizes=tuple(block_sizes), **values)


def _read_fields(message: memoryview) -> tuple[dict[str, Any], list[int]]:
    values: dict[str, Any] = {}
    block_sizes: list[int] = []
    for number, wire_type, a, b in fields(message, 0, len(message)):
        if number == _BLOCK_SIZES:
            _read_block_sizes(message, wire_type, a, b, block_sizes)
            continue
        if number not in _FIELDS:
            continue  # a later version's; protobuf readers pass over what they don't know
        name, expected = _FIELDS[number]
        if wire_type != expected:
            raise CorruptContentError(f"the UnixFS field {name} has the wrong wire type {wire_type}")
        if name in values:
            raise CorruptContentError(f"the UnixFS field {name} stands twice")
        values[name] = a if wire_type == VARINT else message[a:b]
    return values, block_sizes


def _read_block_sizes(message: memoryview, wire_type: int, a: int, b: int, sizes: list[int]) -> None:
    if wire_type == VARINT:
        sizes.append(a)
    elif wire_type == BYTES:  # "packed", which protobuf readers must take too
        while a < b:
            size, a = read_varint(message, a, b)
            sizes.append(size)
    else:
        raise CorruptContentError(f"the UnixFS block sizes have the wrong wire type {wire_type}")


def _read_time(message: memoryview) -> UnixTime:
    parts: dict[int, int] = {}
    for number, wire_type, value, _ in fields(message, 0, len(message)):
        if number not in {1, 2}:
            continue
        if wire_type != (VARINT if number == 1 else FIXED32) or number in parts:
            raise CorruptContentError("a UnixFS modification time is malformed")
        parts[number] = value
    if 1 not in parts:
        raise CorruptContentError("a UnixFS modification time has no seconds")
    if 2 in parts and not 1 <= parts[2] <= _MAX_NANOS:
        raise CorruptContentError(
            f"a UnixFS modification time has {parts[2]} nanoseconds; 1 to {_MAX_NANOS} are allowed"
        )
    seconds = parts[1] - 2**64 if parts[1] >= 2**63 else parts[1]
    return UnixTime(seconds, parts.get(2, 0))


def _check_file(node: UnixFSNode) -> None:
    if len(node.block_sizes) != len(node.links):
        raise CorruptContentError(
            f"a UnixFS file has {len(node.links)} links and {len(node.block_sizes)} block sizes; each link needs one"
        )
    total = len(node.data) + sum(node.block_sizes)
    if total != node.file_size:
        raise CorruptContentError(
            f"a UnixFS file declares {node.file_size} bytes, and its parts have {total}"
        )
    if total > MAX_FILE_SIZE:
        raise CorruptContentError(f"a UnixFS file declares {total} bytes, more than any file can have")
    if any(link.name for link in node.links):
        raise CorruptContentError("a link of a UnixFS file has a name, as only a directory's have")


def _check_shard(node: UnixFSNode) -> None:
    fanout = node.fanout or 0
    if not 8 <= fanout <= MAX_FANOUT or fanout & (fanout - 1):
        raise CorruptContentError(
            f"a directory shard has the fanout {node.fanout}; powers of two from 8 to {MAX_FANOUT} are allowed"
        )
    if node.hash_type != MURMUR3_X64_64:
        raise CorruptContentError(
            f"a directory shard is hashed with {node.hash_type}, not murmur3-x64-64 (0x22)"
        )
    if len(node.data) > fanout // 8:
        raise CorruptContentError(
            f"a directory shard's bitfield has {len(node.data)} bytes, over {fanout // 8}"
        )
    slots = int.from_bytes(node.data, "big").bit_count()
    if slots != len(node.links):
        raise CorruptContentError(f"a directory shard fills {slots} slots and has {len(node.links)} links")


def encode(node: UnixFSNode) -> bytes:
    """The canonical dag-pb block of a node, field for field as `ipfs add` writes it."""
    return dag_pb.encode(dag_pb.PBNode(node.links, encode_message(node)))


def encode_message(node: UnixFSNode) -> bytes:
    """The UnixFS message alone."""
    parts = [b"\x08", varint(node.type)]
    if node.data:
        parts += (b"\x12", varint(len(node.data)), node.data)
    if node.type in {UnixFSType.FILE, UnixFSType.RAW}:
        parts += (b"\x18", varint(node.file_size))
    for size in node.block_sizes:
        parts += (b"\x20", varint(size))
    for tag, value in ((b"\x28", node.hash_type), (b"\x30", node.fanout), (b"\x38", node.raw_mode)):
        if value is not None:
            parts += (tag, varint(value))
    if node.modified is not None:
        seconds, nanos = node.modified
        time = b"\x08" + varint(seconds % 2**64)
        if nanos:
            time += b"\x15" + nanos.to_bytes(4, "little")
        parts += (b"\x42", varint(len(time)), time)
    return b"".join(parts)
