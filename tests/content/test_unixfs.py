"""UnixFS nodes: what they mean, and sizes that lie."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from format_strategies import damaged, nodes
from ipfs_stream_nb.content import dag_pb, unixfs
from ipfs_stream_nb.content.cid import CID, DAG_PB, varint
from ipfs_stream_nb.content.dag_pb import PBLink, PBNode
from ipfs_stream_nb.content.unixfs import MAX_FILE_SIZE, UnixFSNode, UnixFSType, UnixTime
from ipfs_stream_nb.errors import CorruptContentError, IPFSStreamError, UnsupportedMediaError

LINK = PBLink(CID.of(b"abcd"), "", 4)


def block(message: bytes, *links: PBLink) -> bytes:
    return dag_pb.encode(PBNode(links, message))


@given(nodes)
def test_what_is_written_reads_back(node):
    """Every kind of node reads back as it was."""
    assert unixfs.decode(unixfs.encode(node)) == node


@settings(max_examples=600)
@given(
    st.binary(max_size=200)
    | st.binary(max_size=80).map(block)
    | damaged(nodes.map(unixfs.encode))
    | damaged(nodes.map(unixfs.encode_message)).map(block)
)
def test_any_bytes_are_read_or_refused(data):
    """Whatever the bytes, there is a node that adds up, or an error of ours."""
    try:
        node = unixfs.decode(data)
    except IPFSStreamError:
        return
    if node.type in {UnixFSType.FILE, UnixFSType.RAW}:
        assert node.file_size == len(node.data) + sum(node.block_sizes)
        assert len(node.block_sizes) == len(node.links)
    assert unixfs.decode(unixfs.encode(node)) == node


@pytest.mark.parametrize(
    ("cid", "node"),
    [
        ("QmbFMke1KXqnYyBBWxB74N4c5SBnJMVAiMNRcGu6x1AwQH", UnixFSNode(UnixFSType.FILE)),
        ("QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn", UnixFSNode(UnixFSType.DIRECTORY)),
        ("bafyaabakaieac", UnixFSNode(UnixFSType.DIRECTORY)),
        ("QmTB8BaCJdCH5H3k7GrxJsxgDNmNYGGR71C58ERkivXoj5", UnixFSNode(UnixFSType.SYMLINK, b"foo")),
        (
            "bafybeifx7yeb55armcsxwwitkymga5xf53dxiarykms3ygqic223w5sk3m",
            UnixFSNode(UnixFSType.FILE, b"Hello from IPFS Gateway Checker\n", 32),
        ),
    ],
)
def test_well_known_nodes(cid, node):
    """The nodes that the specification and every IPFS node know have their CIDs."""
    CID.parse(cid).verify(unixfs.encode(node))


@pytest.mark.parametrize("kind", [0, 2])
def test_leaves_of_either_type(kind):
    """A leaf of the type File or of the old type Raw holds its bytes."""
    node = unixfs.decode(block(bytes([8, kind]) + b"\x12\x02hi\x18\x02"))
    assert (node.data, node.file_size, node.links) == (b"hi", 2, ())


def test_block_sizes_may_be_packed():
    """Both protobuf forms of the repeated block sizes are read."""
    packed = unixfs.decode(block(b"\x08\x02\x18\x08\x22\x02\x04\x04", LINK, LINK))
    plain = unixfs.decode(block(b"\x08\x02\x18\x08\x20\x04\x20\x04", LINK, LINK))
    assert packed == plain
    assert packed.block_sizes == (4, 4)


def test_later_fields_are_passed_over():
    """Fields of a later version, of any wire type, don't keep a node from being read."""
    later = b"\x4a\x03abc\x50\x01\x5d\x00\x00\x00\x00\x61" + bytes(8)
    assert unixfs.decode(block(b"\x08\x01" + later)) == UnixFSNode(UnixFSType.DIRECTORY)


@pytest.mark.parametrize(
    ("message", "links", "why"),
    [
        (b"\x08\x02\x12\x02hi\x18\x03", (), "declares 3 bytes, and its parts have 2"),
        (b"\x08\x02\x12\x02hi\x18\x01", (), "declares 1 bytes"),
        (b"\x08\x02\x12\x02hi", (), "declares 0 bytes"),
        (b"\x08\x02\x18\x04", (LINK,), "1 links and 0 block sizes"),
        (b"\x08\x02\x18\x08\x20\x04\x20\x04", (LINK,), "1 links and 2 block sizes"),
        (b"\x08\x02\x18\x05\x20\x04", (LINK,), "declares 5 bytes"),
        (b"\x08\x02\x18\x04\x20\x04", (LINK._replace(name="x"),), "has a name"),
        (
            b"\x08\x02\x18" + varint(2**63) + b"\x20" + varint(2**63),
            (LINK,),
            "more than any file",
        ),
        (
            b"\x08\x02\x18\x00" + (b"\x20" + varint(2**63)) * 2,
            (LINK, LINK),
            "its parts have 18446744073709551616",
        ),
        (b"", (), "no type"),
        (b"\x18\x00", (), "no type"),
        (b"\x08\x06", (), "no UnixFS type 6"),
        (b"\x08\x02\x08\x02\x18\x00", (), "type stands twice"),
        (b"\x08\x02\x18\x00\x18\x00", (), "stands twice"),
        (b"\x0a\x01x", (), "wrong wire type"),
        (b"\x08\x02\x25\x00\x00\x00\x00", (), "wrong wire type"),
        (b"\x08\x01\x20\x04", (LINK,), "declares block sizes"),
        (b"\x08\x04\x12\x01a", (LINK,), "symlink has links"),
        (b"\x08\x01\x38" + varint(2**32), (), "over 32 bits"),
        (b"\x08\x01\x42\x00", (), "no seconds"),
        (b"\x08\x01\x42\x07\x08\x01\x15\x00\x00\x00\x00", (), "0 nanoseconds"),
        (b"\x08\x01\x42\x07\x08\x01\x15" + (10**9).to_bytes(4, "little"), (), "1000000000 nanoseconds"),
        (b"\x08\x01\x42\x04\x08\x01\x08\x01", (), "malformed"),
        (b"\x08\x01\x42\x02\x10\x01", (), "malformed"),
        (b"\x08\x02\x18\x80\x00", (), "shortest form"),
        (b"\x08\x02\x12\x09hi", (), "declares 9 bytes"),
    ],
)
def test_lies_and_malformed_messages(message, links, why):
    """Each is CorruptContentError, and the text says what is wrong."""
    with pytest.raises(CorruptContentError, match=why):
        unixfs.decode(block(message, *links))


def shard(field: bytes, fanout: int | None = 256, hash_type: int | None = 0x22, links: int = 1) -> bytes:
    return unixfs.encode(
        UnixFSNode(
            UnixFSType.HAMT_SHARD,
            field,
            hash_type=hash_type,
            fanout=fanout,
            links=tuple(LINK._replace(name=f"{slot:02X}") for slot in range(links)),
        )
    )


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (shard(b"\x01", fanout=None), "fanout None"),
        (shard(b"\x01", fanout=0), "fanout 0"),
        (shard(b"\x01", fanout=4), "fanout 4"),
        (shard(b"\x01", fanout=100), "fanout 100"),
        (shard(b"\x01", fanout=2048), "fanout 2048"),
        (shard(b"\x01", fanout=2**60), "fanout 1152921504606846976"),
        (shard(b"\x01", hash_type=0x12), "hashed with 18"),
        (shard(b"\x01", hash_type=None), "hashed with None"),
        (shard(b"\x03"), "fills 2 slots and has 1 links"),
        (shard(b""), "fills 0 slots and has 1 links"),
        (shard(b"\x01" + bytes(32)), "has 33 bytes, over 32"),
    ],
)
def test_shards_that_cannot_be(data, why):
    """Fanouts over the limit or not powers of two, other hashes, and bitfields that don't fit are refused."""
    with pytest.raises(CorruptContentError, match=why):
        unixfs.decode(data)


def test_bitfield_may_keep_its_leading_zeros():
    """A bitfield of full width is the same as one without its leading zero bytes."""
    assert unixfs.decode(shard(bytes(31) + b"\x01")).links == unixfs.decode(shard(b"\x01")).links


def test_mode_and_mtime():
    """UnixFS 1.5: permission bits without the reserved ones, times before the epoch and with nanoseconds."""
    node = UnixFSNode(UnixFSType.DIRECTORY, raw_mode=0o100755, modified=UnixTime(-2, 500_000_000))
    read = unixfs.decode(unixfs.encode(node))
    assert read.raw_mode == 0o100755
    assert read.mode == 0o755
    assert read.mtime == -1.5
    assert unixfs.decode(block(b"\x08\x01")).mtime is None
    assert unixfs.decode(block(b"\x08\x01")).mode is None


def test_no_unixfs_inside():
    """A dag-pb block without data is not UnixFS; with other data it is corrupt."""
    with pytest.raises(UnsupportedMediaError):
        unixfs.decode(b"")
    with pytest.raises(CorruptContentError):
        unixfs.decode(b"\x0a\x00")
    with pytest.raises(CorruptContentError):
        unixfs.decode(bytes.fromhex("0a050001020304"))


def test_the_largest_file():
    """A file may declare up to 2^63 - 1 bytes."""
    node = UnixFSNode(UnixFSType.FILE, file_size=MAX_FILE_SIZE, block_sizes=(MAX_FILE_SIZE,), links=(LINK,))
    assert unixfs.decode(unixfs.encode(node)).file_size == MAX_FILE_SIZE


def test_directory_ignores_a_file_size():
    """A directory has no length, whatever a writer put there."""
    assert unixfs.decode(block(b"\x08\x01\x18\x63")).file_size == 0
    assert CID.of(block(b"\x08\x01"), DAG_PB, 0) == CID.parse(
        "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn"
    )


@given(st.binary(min_size=1, max_size=300), st.sampled_from([UnixFSType.FILE, UnixFSType.RAW]), st.randoms())
def test_the_span_of_a_leaf_is_its_content(data, kind, rng):
    """Where a leaf's bytes stand in its block; of a damaged one it says nothing, or what decoding says."""
    block = unixfs.encode(UnixFSNode(kind, data, len(data)))
    start, stop = unixfs.leaf_span(block)
    assert block[start:stop] == data
    spoilt = bytearray(block)
    spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
    for other in (bytes(spoilt), block[: rng.randrange(len(block))], block + b"\0"):
        span = unixfs.leaf_span(other)
        if span is not None:
            assert unixfs.decode(other).data == other[slice(*span)]


@given(nodes)
def test_only_plain_leaves_have_a_span(node):
    """Whatever else a block is, it is left to decode."""
    span = unixfs.leaf_span(unixfs.encode(node))
    plain = UnixFSNode(node.type, node.data, node.file_size)
    leaf = bool(node.data) and node == plain and node.type in {UnixFSType.FILE, UnixFSType.RAW}
    assert (span is not None) == leaf
