"""dag-pb blocks (https://ipld.io/specs/codecs/dag-pb/spec/): links with names and sizes, and a piece of data.

Reading is as strict as the specification lets it be: a link has its fields once and in order, nothing unknown
stands anywhere, and the links stand together. The data may come before or after them, as old blocks have it;
writing puts the links first, which is the canonical form.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from ipfs_stream_nb.content.cid import CID, BytesLike, varint
from ipfs_stream_nb.content.protobuf import read_span, read_varint
from ipfs_stream_nb.errors import BadCIDError, CorruptContentError, TooLargeError

MAX_BLOCK: Final = 4 * 1024 * 1024
"""Bytes of a block that is read at all. Bitswap carries 2 MiB; some writers of CARs go above."""
MAX_LINKS: Final = 65_536
"""Links of one block: a 2 MiB directory of the time before sharding has up to some 45,000."""

_HASH, _NAME, _TSIZE = 0x0A, 0x12, 0x18  # PBLink: fields 1, 2 and 3 with their wire types
_DATA, _LINK = 0x0A, 0x12  # PBNode: fields 1 and 2


class PBLink(NamedTuple):
    """A link. `name` that is not UTF-8 holds its bytes as lone surrogates (`os.fsencode`'s way, PEP 383);
    `tsize` is the bytes of all blocks below, as the writer claims."""

    cid: CID
    name: str
    tsize: int


@dataclass(frozen=True, slots=True)
class PBNode:
    """A decoded block. `data` is None where the field is absent."""

    links: tuple[PBLink, ...] = ()
    data: bytes | None = None


def decode(block: BytesLike) -> PBNode:
    """Read a block. Raises CorruptContentError for anything else than dag-pb, TooLargeError over the limits."""
    links, data = split(block)
    return PBNode(tuple(links), None if data is None else bytes(data))


def split(block: BytesLike) -> tuple[list[PBLink], memoryview | None]:
    """The links, and a view of the data inside the block: for callers that don't want a copy of it."""
    end = len(block)
    if end > MAX_BLOCK:
        raise TooLargeError(f"a block has at most {MAX_BLOCK} bytes, this one has {end}")
    buffer = block if isinstance(block, bytes) else memoryview(block).cast("B")
    links: list[PBLink] = []
    cids: dict[bytes, CID] = {}  # a block may link to the same one tens of thousands of times
    data: memoryview | None = None
    links_ended = False
    at = 0
    while at < end:
        tag = buffer[at]
        start, at = read_span(buffer, at + 1, end)
        if tag == _LINK and not links_ended:
            if len(links) >= MAX_LINKS:
                raise TooLargeError(f"a block has at most {MAX_LINKS} links, this one has more")
            links.append(_read_link(buffer, start, at, cids))
        elif tag == _DATA and data is None:
            data = memoryview(buffer)[start:at]
            links_ended = bool(links)
        else:
            raise CorruptContentError(
                f"not a dag-pb block: an unknown, repeated or misplaced field (tag {tag:#04x}) at byte {start}"
            )
    return links, data


def _read_link(buffer: bytes | memoryview, at: int, end: int, cids: dict[bytes, CID]) -> PBLink:
    name, tsize = "", 0
    if at == end or buffer[at] != _HASH:
        raise CorruptContentError("not a dag-pb block: a link does not begin with its CID")
    start, at = read_span(buffer, at + 1, end)
    raw = bytes(buffer[start:at])
    try:
        cid = cids.get(raw) or cids.setdefault(raw, CID.parse(raw))
    except BadCIDError as error:
        raise CorruptContentError(f"a link of the block has no usable CID: {error}") from None
    if at < end and buffer[at] == _NAME:
        start, at = read_span(buffer, at + 1, end)
        name = str(buffer[start:at], "utf-8", "surrogateescape")
    if at < end and buffer[at] == _TSIZE:
        tsize, at = read_varint(buffer, at + 1, end)
    if at != end:
        raise CorruptContentError("not a dag-pb block: a link has unknown, repeated or misplaced fields")
    return PBLink(cid, name, tsize)


def encode(node: PBNode) -> bytes:
    """The canonical block, with the links in the order that the node has them in.

    A directory's writer sorts them by the bytes of their names; the names and Tsizes are always written, empty
    and zero too, as `ipfs add` does.
    """
    parts = [encode_links(node.links)]
    if node.data is not None:
        parts += (b"\x0a", varint(len(node.data)), node.data)
    return b"".join(parts)


def encode_links(links: Iterable[PBLink]) -> bytes:
    """The links' part of a block."""
    parts: list[bytes] = []
    for cid, name, tsize in links:
        hash_bytes = bytes(cid)
        name_bytes = name_to_bytes(name)
        fields = (b"\x0a", varint(len(hash_bytes)), hash_bytes, b"\x12", varint(len(name_bytes)), name_bytes)
        link = b"".join((*fields, b"\x18", varint(tsize)))
        parts += (b"\x12", varint(len(link)), link)
    return b"".join(parts)


def name_to_bytes(name: str) -> bytes:
    """A link's name as it stands in the block."""
    return name.encode("utf-8", "surrogateescape")
