"""Hypothesis strategies for CIDs, links, UnixFS nodes and damaged blocks, shared by the tests of the formats."""

from __future__ import annotations

from hypothesis import strategies as st

from ipfs_stream_nb.content.cid import CID, DAG_CBOR, DAG_PB, IDENTITY, RAW, SHA2_256
from ipfs_stream_nb.content.dag_pb import PBLink
from ipfs_stream_nb.content.unixfs import UnixFSNode, UnixFSType, UnixTime

uint64 = st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1))
digests = st.binary(min_size=32, max_size=32)
cids = st.one_of(
    st.builds(CID, st.just(0), st.just(DAG_PB), st.just(SHA2_256), digests),
    st.builds(CID, st.just(1), st.sampled_from([RAW, DAG_PB, DAG_CBOR, 0x0129]), st.just(SHA2_256), digests),
    st.builds(CID, st.just(1), st.just(RAW), st.just(IDENTITY), st.binary(max_size=128)),
    st.builds(CID, st.just(1), st.just(RAW), st.just(0xB220), digests),
)
any_names = st.one_of(
    st.text(max_size=20),
    st.binary(max_size=20).map(lambda raw: raw.decode("utf-8", "surrogateescape")),
).filter(lambda name: name == name.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape"))
links = st.builds(PBLink, cids, any_names, uint64)

times = st.builds(UnixTime, st.integers(-(2**63), 2**63 - 1), st.integers(0, 999_999_999))
_metadata = {"raw_mode": st.none() | st.integers(0, 2**32 - 1), "modified": st.none() | times}


@st.composite
def files(draw) -> UnixFSNode:
    """A file node with data of its own, children, or both."""
    sizes = tuple(draw(st.lists(st.integers(0, 2**40), max_size=6)))
    data = draw(st.binary(max_size=50))
    return UnixFSNode(
        draw(st.sampled_from([UnixFSType.FILE, UnixFSType.RAW])),
        data,
        len(data) + sum(sizes),
        sizes,
        links=tuple(PBLink(draw(cids), "", draw(uint64)) for _ in sizes),
        **{name: draw(values) for name, values in _metadata.items()},
    )


@st.composite
def shards(draw) -> UnixFSNode:
    """A shard whose bitfield fits its links."""
    fanout = draw(st.sampled_from([8, 16, 256, 1024]))
    slots = sorted(draw(st.sets(st.integers(0, fanout - 1), max_size=12)))
    field = sum(1 << slot for slot in slots)
    digits = len(f"{fanout - 1:X}")
    return UnixFSNode(
        UnixFSType.HAMT_SHARD,
        field.to_bytes((field.bit_length() + 7) // 8, "big"),
        hash_type=0x22,
        fanout=fanout,
        links=tuple(
            PBLink(draw(cids), f"{slot:0{digits}X}{draw(any_names)}", draw(uint64)) for slot in slots
        ),
    )


directories = st.builds(
    UnixFSNode, st.just(UnixFSType.DIRECTORY), links=st.lists(links, max_size=5).map(tuple), **_metadata
)
symlinks = st.builds(UnixFSNode, st.just(UnixFSType.SYMLINK), st.binary(min_size=1, max_size=60), **_metadata)
metadata = st.builds(UnixFSNode, st.just(UnixFSType.METADATA), st.binary(max_size=60))
nodes = st.one_of(files(), shards(), directories, symlinks, metadata)


@st.composite
def damaged(draw, valid: st.SearchStrategy[bytes]) -> bytes:
    """A valid encoding with bytes changed, taken out, put in, repeated or cut."""
    data = bytearray(draw(valid))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        change = draw(st.sampled_from(["flip", "drop", "insert", "cut", "repeat"]))
        if change == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif change == "drop":
            del data[at : at + draw(st.integers(1, 4))]
        elif change == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=4))
        elif change == "cut":
            del data[at:]
        elif change == "repeat":
            data[at:at] = data[at : at + draw(st.integers(1, 40))]
    return bytes(data)
