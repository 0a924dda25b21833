"""dag-pb: canonical writing, strict reading."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from format_strategies import damaged, links
from ipfs_stream_nb.content import dag_pb
from ipfs_stream_nb.content.cid import CID, DAG_PB, varint
from ipfs_stream_nb.content.dag_pb import MAX_BLOCK, MAX_LINKS, PBLink, PBNode
from ipfs_stream_nb.errors import CorruptContentError, IPFSStreamError, TooLargeError

A = CID.of(b"a")
HASH = b"\x0a\x24" + bytes(A)
LINK = HASH + b"\x12\x01n" + b"\x18\x07"
nodes = st.builds(PBNode, st.lists(links, max_size=5).map(tuple), st.none() | st.binary(max_size=200))


def field(tag: int, value: bytes) -> bytes:
    return bytes([tag]) + varint(len(value)) + value


def link(body: bytes) -> bytes:
    return field(0x12, body)


@given(nodes)
def test_what_is_written_reads_back(node):
    """Any node reads back as it was, from bytes and from a memoryview."""
    block = dag_pb.encode(node)
    assert dag_pb.decode(block) == node
    assert dag_pb.decode(memoryview(block)) == node
    assert dag_pb.encode(dag_pb.decode(block)) == block


@settings(max_examples=400)
@given(st.binary(max_size=300) | damaged(nodes.map(dag_pb.encode)))
def test_any_bytes_are_read_or_refused(data):
    """Whatever the bytes, there is a node or an error of ours; a node with links first writes the same again."""
    try:
        node = dag_pb.decode(data)
    except IPFSStreamError:
        return
    assert dag_pb.decode(dag_pb.encode(node)) == node


# Blocks of the dag-pb fixtures that the UnixFS specification lists, with the CIDs it gives for them
FIXTURES = {
    "bafybeihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku": "",
    "bafybeihyivpglm6o6wrafbe36fp5l67abmewk7i2eob5wacdbhz7as5obe": "12240a2212207521fe19c374a97759226dc5c0c8e674e73"
    "950e81b211f7dd3b6b30883a08a51",
    "bafybeibh647pmxyksmdm24uad6b5f7tx4dhvilzbg2fiqgzll4yek7g7y4": "12340a2212208ab7a6c5e74737878ac73863cb76739d15d"
    "4666de44e5756bf55a2f9e9ab5f431209736f6d65206c696e6b1880c2d72f12370a2212208ab7a6c5e74737878ac73863cb76739d15d46"
    "66de44e5756bf55a2f9e9ab5f44120f736f6d65206f74686572206c696e6b18080a09736f6d652064617461",
    "bafybeibazl2z4vqp2tmwcfag6wirmtpnomxknqcgrauj7m2yisrz3qjbom": "0a050001020304",
    "bafybeiaqfni3s5s2k2r6rgpxz4hohdsskh44ka5tk6ztbjerqpvxwfkwaq": "0a00",
    "bafybeia53f5n75ituvc3yupuf7tdnxf6fqetrmo2alc6g6iljkmk7ys5mm": "120b0a09015500050001020304",
    "bafybeifq4hcxma3kjljrpxtunnljtc6tvbkgsy3vldyfpfbx2lij76niyu": "12160a090155000500010203041209736f6d65206e616d65",
    "bafybeie7fstnkm4yshfwnmpp7d3mlh4f4okmk7a54d6c3ffr755q7qzk44": "120d0a090155000500010203041200",
    "bafybeiezymjvhwfuharanxmzxwuomzjjuzqjewjolr4phaiyp6l7qfwo64": "12140a0901550005000102030418ffffffffffffff0f",
    "bafybeichjs5otecmbvwh5azdr4jc45mp2qcofh2fr54wjdxhz4znahod2i": "120d0a090155000500010203041800",
    "bafybeia2qk4u55f2qj7zimmtpulejgz7urp7rzs44cvledcaj42gltkk3u": "0a03010203",
    "bafybeidrg2f6slbv4yzydqtgmsi2vzojajnt7iufcreynfpxndca4z5twm": "120b0a09015500050001020304120e0a090155000500010"
    "20304120161120e0a09015500050001020304120161",
    "bafybeieube7zxmzoc5bgttub2aqofi6xdzimv5munkjseeqccn36a6v6j4": "120e0a09015500050001020304120161120e0a090155000"
    "50001020304120161",
}


@pytest.mark.parametrize("cid", FIXTURES)
def test_blocks_of_the_specification(cid):
    """The codec's own fixtures are read, absent and empty fields, repeated names and large sizes alike."""
    block = bytes.fromhex(FIXTURES[cid])
    CID.parse(cid).verify(block)
    node = dag_pb.decode(block)
    assert len(node.links) == block.count(b"\x01\x55\x00\x05") + block.count(b"\x12\x20")
    assert node.data is None or block.endswith(node.data)


def test_fields_of_the_specification():
    """One fixture's links and data, field by field."""
    node = dag_pb.decode(
        bytes.fromhex(FIXTURES["bafybeibh647pmxyksmdm24uad6b5f7tx4dhvilzbg2fiqgzll4yek7g7y4"])
    )
    assert node.data == b"some data"
    assert [(entry.name, entry.tsize) for entry in node.links] == [
        ("some link", 100_000_000),
        ("some other link", 8),
    ]
    assert {entry.cid.version for entry in node.links} == {0}


def test_data_may_come_first():
    """Old blocks have their data before the links; it is read, and written after them."""
    node = PBNode((PBLink(A, "n", 7),), b"d")
    assert dag_pb.decode(field(0x0A, b"d") + link(LINK)) == node
    assert dag_pb.encode(node) == link(LINK) + field(0x0A, b"d")


@pytest.mark.parametrize(
    "block",
    [
        field(0x0A, b"a") + field(0x0A, b"b"),
        link(LINK) + field(0x0A, b"") + link(LINK),
        field(0x1A, b"x"),
        b"\x08\x01",
        b"\x10\x01",
        b"\x8a\x00\x01x",
        b"\x0a",
        b"\x0a\x02x",
        b"\x0a\x81\x00x",
        link(LINK) + b"\0",
        link(b""),
        link(b"\x12\x01n" + HASH),
        link(b"\x12\x01n\x18\x07"),
        link(HASH + b"\x18\x07\x12\x01n"),
        link(HASH + HASH),
        link(HASH + b"\x12\x01n\x12\x01n"),
        link(LINK + b"\x18\x07"),
        link(HASH + b"\x20\x07"),
        link(HASH + b"\x1a\x01x"),
        link(HASH + b"\x18"),
        link(HASH + b"\x18\x87\x00"),
        link(HASH + b"\x12\x05n"),
        link(b"\x0a\x02ab"),
        link(field(0x0A, bytes(A)[:-1])),
        link(field(0x0A, bytes(A) + b"\0")),
        link(field(0x0A, b"\x01\x55\x11\x14" + bytes(20))),
    ],
)
def test_what_canonical_dag_pb_forbids(block):
    """Repeated, misplaced, unknown and cut fields, padded numbers and bad CIDs are CorruptContentError."""
    with pytest.raises(CorruptContentError):
        dag_pb.decode(block)


def test_names_that_are_not_utf8_keep_their_bytes():
    """A name of other bytes is readable, and written with the same bytes again."""
    block = link(HASH + b"\x12\x02\xff\xfe\x18\x00")
    node = dag_pb.decode(block)
    assert node.links[0].name == "\udcff\udcfe"
    assert dag_pb.encode(node) == block


def test_limits_are_named():
    """A block or a number of links over the limit gives TooLargeError with the limit."""
    with pytest.raises(TooLargeError, match=str(MAX_BLOCK)):
        dag_pb.decode(bytes(MAX_BLOCK + 1))
    small = link(field(0x0A, b"\x01\x55\x00\x00"))
    assert len(dag_pb.decode(small * MAX_LINKS).links) == MAX_LINKS
    with pytest.raises(TooLargeError, match=str(MAX_LINKS)):
        dag_pb.decode(small * (MAX_LINKS + 1))


def test_split_copies_no_data():
    """The data of a leaf is a view into the block."""
    block = bytearray(field(0x0A, b"payload"))
    found, data = dag_pb.split(block)
    assert not found
    block[-1] = ord("!")
    assert bytes(data) == b"payloa!"


def test_version_of_links_is_kept():
    """CIDv0 and CIDv1 of the same bytes stay what they are."""
    old, new = CID.of(b"x", DAG_PB, 0), CID.of(b"x", DAG_PB, 1)
    node = dag_pb.decode(dag_pb.encode(PBNode((PBLink(old, "", 0), PBLink(new, "", 0)))))
    assert [entry.cid for entry in node.links] == [old, new]
