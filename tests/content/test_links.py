"""The links of a block, by its codec."""

from __future__ import annotations

import libipld
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from format_strategies import cids, damaged, nodes
from ipfs_stream_nb.content import unixfs
from ipfs_stream_nb.content.cid import CID, DAG_CBOR, DAG_PB
from ipfs_stream_nb.content.dag_pb import MAX_BLOCK, MAX_LINKS
from ipfs_stream_nb.content.links import links_of
from ipfs_stream_nb.errors import CorruptContentError, IPFSStreamError, TooLargeError

CBOR = CID.of(b"", DAG_CBOR)
PB = CID.of(b"", DAG_PB)
A = CID.of(b"a")


def tag_42(cid: CID) -> bytes:
    raw = b"\0" + bytes(cid)
    head = bytes([0x40 | len(raw)]) if len(raw) < 24 else bytes([0x58, len(raw)])
    return b"\xd8\x2a" + head + raw


@given(nodes)
def test_links_of_dag_pb(node):
    """A dag-pb block's links in order, from bytes and from a memoryview."""
    data = unixfs.encode(node)
    expected = [link.cid for link in node.links]
    assert links_of(PB, data) == links_of(PB, memoryview(data)) == expected


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(max_size=9)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(plain, st.lists(cids, max_size=4))
def test_links_of_dag_cbor(value, links):
    """The CIDs of a DAG-CBOR block, wherever they stand, in order, and byte strings of the same bytes are none."""
    around = libipld.encode_dag_cbor(value)
    body = b"".join(tag_42(cid) for cid in links)
    data = b"\x83" + around + bytes([0x80 | len(links)]) + body + b"\x58\x24" + bytes(A)
    assert links_of(CBOR, data) == links
    assert links_of(CBOR, memoryview(data)) == links


def test_other_codecs_have_no_links():
    """Raw bytes and codecs that are not read have none, even where they look like dag-pb."""
    assert links_of(A, unixfs.encode(unixfs.decode(b"\x0a\x02\x08\x01"))) == []
    assert links_of(CID.of(b"", 0x0129), b'{"/":"bafy"}') == []


@settings(max_examples=400)
@given(st.sampled_from([CBOR, PB]), st.binary(max_size=100) | damaged(plain.map(libipld.encode_dag_cbor)))
def test_any_bytes_have_links_or_are_refused(cid, data):
    """No bytes bring out anything but a list or an error of ours."""
    try:
        links = links_of(cid, data)
    except IPFSStreamError:
        return
    assert all(isinstance(link, CID) for link in links)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x81",
        b"\x82\x00",
        b"\x00\x00",
        b"\x9f\xff",
        b"\x5f\x41a\xff",
        b"\x1c",
        b"\x19\x01",
        b"\x9b" + b"\xff" * 8,
        b"\xbb" + b"\xff" * 8,
        b"\x5b" + b"\xff" * 8,
        b"\xd8\x2b\x00",
        b"\xc0\x00",
        b"\xd8\x2a\x00",
        b"\xd8\x2a",
        b"\xd8\x2a\xd8\x2a\x41\x00",
        b"\xd8\x2a\x58\x25\x01" + bytes(A),
        b"\xd8\x2a\x58\x25\x00" + bytes(A)[:-1],
        b"\xd8\x2a\x43\x00ab",
    ],
)
def test_malformed_dag_cbor(data):
    """Cut blocks, absurd counts, indefinite lengths, other tags and bad CIDs are CorruptContentError."""
    with pytest.raises(CorruptContentError):
        links_of(CBOR, data)


@pytest.mark.parametrize(
    "data", [b"\x43ab", b"\x5b" + b"\xff" * 8, b"\x62a", b"\x82\x00", b"\x9b" + b"\xff" * 8]
)
def test_cut_dag_cbor_is_called_cut(data):
    """A string or list that declares more than is there is named as cut."""
    with pytest.raises(CorruptContentError, match="cut short"):
        links_of(CBOR, data)


def test_depth_costs_nothing():
    """A million arrays inside each other are walked without recursion."""
    assert links_of(CBOR, b"\x81" * 1_000_000 + tag_42(A)) == [A]


def test_limits():
    """A block over the size, or with more links than allowed, gives TooLargeError."""
    with pytest.raises(TooLargeError):
        links_of(CBOR, bytes(MAX_BLOCK + 1))
    small = tag_42(CID(1, 0x55, 0, b""))
    count = MAX_LINKS + 1
    with pytest.raises(TooLargeError):
        links_of(CBOR, b"\x9a" + count.to_bytes(4, "big") + small * count)


def test_a_large_leaf_is_not_read_through():
    """The links of a dag-pb leaf of 1 MiB come from its first bytes: no copy, and in microseconds."""
    leaf = unixfs.encode(unixfs.UnixFSNode(unixfs.UnixFSType.FILE, bytes(2**20), 2**20))

    class Counting(bytes):
        copied = 0

        def __getitem__(self, key):
            found = super().__getitem__(key)
            Counting.copied += len(found) if isinstance(key, slice) else 1
            return found

    assert links_of(PB, Counting(leaf)) == []
    assert Counting.copied < 20
