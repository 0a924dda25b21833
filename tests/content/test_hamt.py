"""Sharded directories: lookups and listings step by step, and shards that are not what they should be."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from format_strategies import damaged, shards
from ipfs_stream_nb.content import unixfs
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.dag_pb import PBLink
from ipfs_stream_nb.content.directory import is_addressable
from ipfs_stream_nb.content.hamt import (
    HASH_BITS,
    ROOT,
    HamtLookup,
    HashPrefix,
    build_shards,
    hash_name,
    read_shard,
)
from ipfs_stream_nb.content.importer import Block, Profile
from ipfs_stream_nb.content.unixfs import UnixFSNode, UnixFSType
from ipfs_stream_nb.errors import BadRequestError, CorruptContentError, IPFSStreamError

A = CID.of(b"a")
# made by solving murmur3 for its second block: not a hash function against adversaries
SAME_HASH = ("Any two names with the same hash", "BcWe8jrL8Eb1px0v6FW|61iJ:XG1^} I")


def entries(names) -> list[PBLink]:
    return [PBLink(CID.of(name.encode()), name, len(name)) for name in names]


def find(name: str, root: CID, blocks: dict[CID, bytes]) -> PBLink | None:
    lookup, here = HamtLookup(name), root
    while isinstance(here, CID):
        here = lookup.step(unixfs.decode(blocks[here]))
    return here


def walk(root: CID, blocks: dict[CID, bytes]) -> list[PBLink]:
    found, todo = [], [(root, ROOT)]
    while todo:
        cid, prefix = todo.pop()
        node = unixfs.decode(blocks[cid])
        shard = read_shard(node, prefix)
        found += shard.entries
        todo += [(child.cid, child.prefix) for child in shard.children]
    return found


def by_cid(blocks: list[Block]) -> dict[CID, bytes]:
    return {block.cid: block.data for block in blocks}


def test_hashes_of_the_specification():
    """Two names of the specification's example stand in the slots that it gives for them."""
    assert hash_name("470.txt") >> 48 == 0x006E
    assert hash_name("742.txt") >> 48 == 0x00FF


@given(
    st.sets(st.text(min_size=1, max_size=12).filter(is_addressable), max_size=80),
    st.sampled_from([8, 16, 32, 64, 128, 256, 512, 1024]),
    st.text(max_size=5),
)
def test_every_name_is_found_and_listed(names, fanout, other):
    """Each entry is found by its name and listed once, no other is; each block hashes to its CID."""
    listed = entries(names)
    root, dag_size, blocks = build_shards(listed, Profile("p", shard_fanout=fanout))
    stored = by_cid(blocks)
    for cid, data in stored.items():
        cid.verify(data)
    assert sorted(walk(root, stored), key=str) == sorted(listed, key=str)
    for entry in listed:
        assert find(entry.name, root, stored) == entry
    if other not in names:
        assert find(other, root, stored) is None
    assert dag_size == sum(len(block.data) for block in blocks) + sum(entry.tsize for entry in listed)


@pytest.mark.parametrize("fanout", [8, 256, 1024])
def test_names_with_one_hash(fanout):
    """Names whose whole hashes are equal can't be in one sharded directory, and the error names them."""
    assert hash_name(SAME_HASH[0]) == hash_name(SAME_HASH[1])
    with pytest.raises(BadRequestError, match=r"have the same hash") as caught:
        build_shards(entries([*SAME_HASH, "other"]), Profile("p", shard_fanout=fanout))
    assert all(name in str(caught.value) for name in SAME_HASH)


def test_a_name_with_the_same_hash_is_not_found():
    """Looking up a name finds that name, not another one in its slot."""
    root, _, blocks = build_shards(entries([SAME_HASH[0]]), Profile("p"))
    assert find(SAME_HASH[1], root, by_cid(blocks)) is None


def test_names_that_are_not_utf8_have_their_slot():
    """A name of other bytes is hashed by its bytes, and listed for whoever passes over it."""
    odd = PBLink(A, "\udcff\udcfe", 1)
    root, _, blocks = build_shards([odd], Profile("p"))
    assert walk(root, by_cid(blocks)) == [odd]


def shard(links: dict[int, tuple[str, CID]], fanout: int = 256) -> UnixFSNode:
    digits = len(f"{fanout - 1:X}")
    field = sum(1 << slot for slot in links)
    return UnixFSNode(
        UnixFSType.HAMT_SHARD,
        field.to_bytes((field.bit_length() + 7) // 8, "big"),
        hash_type=0x22,
        fanout=fanout,
        links=tuple(
            PBLink(cid, f"{slot:0{digits}X}{name}", 1) for slot, (name, cid) in sorted(links.items())
        ),
    )


def test_an_entry_in_the_wrong_slot():
    """An entry whose hash leads elsewhere is refused in a listing; its own slot does not have it."""
    slot = hash_name("name") >> 56
    wrong = shard({(slot + 1) % 256: ("name", A)})
    with pytest.raises(CorruptContentError, match="wrong slot"):
        read_shard(wrong)
    assert HamtLookup("name").step(wrong) is None
    assert read_shard(shard({slot: ("name", A)})).entries == [PBLink(A, "name", 1)]


def test_a_shard_in_two_places():
    """A shard used for two slots would list its entries twice: the second place is refused."""
    slot = hash_name("name") >> 48 & 0xFF
    inner = shard({slot: ("name", A)})
    place = HashPrefix(hash_name("name") >> 56, 8)
    assert len(read_shard(inner, place).entries) == 1
    with pytest.raises(CorruptContentError, match="wrong slot"):
        read_shard(inner, HashPrefix((place.bits + 1) % 256, 8))


def test_empty_shards_are_for_empty_directories_only():
    """The root may be empty; a deeper shard that is empty would be a place to go round in."""
    assert read_shard(shard({})) == ([], [])
    with pytest.raises(CorruptContentError, match="empty"):
        read_shard(shard({}), HashPrefix(0, 8))


@pytest.mark.parametrize("fanout", [8, 256, 1024])
def test_the_hash_ends(fanout):
    """A trie that is deeper than its hashes have bits ends in CorruptContentError, in lookups and listings."""
    bits = fanout.bit_length() - 1
    endless = shard(dict.fromkeys(range(fanout), ("", A)), fanout)
    lookup, prefix = HamtLookup("name"), ROOT
    for _ in range(HASH_BITS // bits):
        assert lookup.step(endless) == A
        prefix = read_shard(endless, prefix).children[0].prefix
    with pytest.raises(CorruptContentError, match="deeper"):
        lookup.step(endless)
    with pytest.raises(CorruptContentError, match="deeper"):
        read_shard(endless, prefix)


@pytest.mark.parametrize("name", ["", "0", "01", "1", "0G", "00name", "ff", "FFF"])
def test_link_names_that_are_not_their_slot(name):
    """A link must begin with its slot's number: two upper-case hex digits for a fanout of 256."""
    node = UnixFSNode(
        UnixFSType.HAMT_SHARD, b"\x02\0", hash_type=0x22, fanout=256, links=(PBLink(A, name, 1),)
    )
    with pytest.raises(CorruptContentError, match=r"slot 9|wrong slot"):
        read_shard(node)


def test_other_nodes_are_no_shards():
    """A file or plain directory where a shard should be is CorruptContentError."""
    for kind in (UnixFSType.FILE, UnixFSType.DIRECTORY, UnixFSType.SYMLINK):
        with pytest.raises(CorruptContentError, match=f"a {kind.name.lower()} stands"):
            HamtLookup("x").step(UnixFSNode(kind))
        with pytest.raises(CorruptContentError):
            read_shard(UnixFSNode(kind))


@settings(max_examples=300)
@given(damaged(shards().map(unixfs.encode)) | shards().map(unixfs.encode), st.text(max_size=5))
def test_any_shard_is_read_or_refused(data, name):
    """Damaged shards bring out nothing but results or errors of ours."""
    for step in (lambda node: HamtLookup(name).step(node), read_shard):
        try:
            step(unixfs.decode(data))
        except IPFSStreamError:
            continue
