"""The CIDs that a block links to: what pinning, garbage collection and CAR export walk along."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ipfs_stream_nb.content import dag_pb
from ipfs_stream_nb.content.cid import CID, DAG_CBOR, DAG_PB, BytesLike
from ipfs_stream_nb.content.dag_pb import MAX_BLOCK, MAX_LINKS
from ipfs_stream_nb.errors import BadCIDError, CorruptContentError, TooLargeError

_BYTE_STRING, _TEXT, _ARRAY, _MAP, _TAG = range(2, 7)  # CBOR major types, RFC 8949 section 3.1
_MORE_ITEMS: Final = {_ARRAY: 1, _MAP: 2}
_CID_TAG: Final = 42


def links_of(cid: CID, block: BytesLike) -> list[CID]:
    """The links in a block, in order, repeated where the block repeats them; none for raw and other codecs.

    Takes a memoryview as well and copies no payload, so a leaf costs its first bytes only. Raises
    CorruptContentError for a block that is not of its codec, TooLargeError over the limits.
    """
    if cid.codec == DAG_PB:
        return [link.cid for link in dag_pb.split(block)[0]]
    if cid.codec == DAG_CBOR:
        return _cbor_links(block)
    return []


def _cbor_links(block: BytesLike) -> list[CID]:
    """The CIDs (byte strings with the tag 42) of a DAG-CBOR block (https://ipld.io/specs/codecs/dag-cbor/spec/).

    libipld decodes a CID to bytes, which can't be told from a byte string, and so is of no use here.
    """
    view = memoryview(block).cast("B")
    if len(view) > MAX_BLOCK:
        raise TooLargeError(f"a block has at most {MAX_BLOCK} bytes, this one has {len(view)}")
    links: list[CID] = []
    tagged = False
    for major, value, at in _cbor_items(view):
        if tagged:
            if major != _BYTE_STRING:
                raise CorruptContentError("a CID in a DAG-CBOR block is not a byte string")
            if len(links) >= MAX_LINKS:
                raise TooLargeError(f"a block has at most {MAX_LINKS} links, this one has more")
            links.append(_cbor_cid(bytes(view[at : at + value])))
        tagged = major == _TAG
        if tagged and value != _CID_TAG:
            raise CorruptContentError(f"a DAG-CBOR block has the tag {value}, and only {_CID_TAG} is allowed")
    return links


def _cbor_items(view: memoryview) -> Iterator[tuple[int, int, int]]:
    """Each item's major type, argument, and the position after its head; checks that they fill the block.

    CBOR is a sequence of heads, each saying how many items follow, so one pass with a count of what is still
    due sees all of them, however deep they stand.
    """
    due, at = 1, 0
    while due:
        major, value, at = _cbor_head(view, at)
        yield major, value, at
        due += _MORE_ITEMS.get(major, 0) * value - 1 if major != _TAG else 0
        if major in {_BYTE_STRING, _TEXT}:
            at += value
        if at > len(view):
            raise CorruptContentError("a DAG-CBOR block is cut short")
    if at != len(view):
        raise CorruptContentError(f"{len(view) - at} bytes follow the end of a DAG-CBOR block")


def _cbor_head(view: memoryview, at: int) -> tuple[int, int, int]:
    """Major type, argument, and the position after the head."""
    if at >= len(view):
        raise CorruptContentError("a DAG-CBOR block is cut short")
    major, low = view[at] >> 5, view[at] & 31
    at += 1
    if low < 24:
        return major, low, at
    size = 1 << (low - 24)
    if low > 27:
        raise CorruptContentError("a DAG-CBOR block has an item of indefinite length, which is not allowed")
    if size > len(view) - at:
        raise CorruptContentError("a DAG-CBOR block is cut short")
    return major, int.from_bytes(view[at : at + size], "big"), at + size


def _cbor_cid(data: bytes) -> CID:
    if data[:1] != b"\0":
        raise CorruptContentError("a CID in a DAG-CBOR block lacks its leading zero byte")
    try:
        return CID.parse(data[1:])
    except BadCIDError as error:
        raise CorruptContentError(f"a link of a DAG-CBOR block has no usable CID: {error}") from None
