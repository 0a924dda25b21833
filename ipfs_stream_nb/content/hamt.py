"""Sharded directories (https://specs.ipfs.tech/unixfs/, HAMTDirectory): a trie over the hashes of the names.

Nothing here loads a block. A reader looks a name up with `HamtLookup`, giving it one decoded shard after the
other, or lists a directory with `read_shard`, shard by shard. Both tell which shard to load next.

Each shard uses the next log2(fanout) bits of a name's murmur3-x64 hash, highest bits first, as the slot. A
link's name begins with the slot in hex; what follows is the entry's name, or nothing for a deeper shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import mmh3

from ipfs_stream_nb.content import unixfs
from ipfs_stream_nb.content.cid import CID, DAG_PB
from ipfs_stream_nb.content.dag_pb import PBLink, name_to_bytes
from ipfs_stream_nb.content.importer import Block, Profile
from ipfs_stream_nb.content.unixfs import MURMUR3_X64_64, UnixFSNode, UnixFSType
from ipfs_stream_nb.errors import BadRequestError, CorruptContentError

HASH_BITS: Final = 64


class HashPrefix(NamedTuple):
    """The first `length` bits of a name's hash: where in the trie a shard stands."""

    bits: int = 0
    length: int = 0


ROOT: Final = HashPrefix()


class HamtChild(NamedTuple):
    """A deeper shard: load and decode it, and give it to `read_shard` with its prefix."""

    cid: CID
    tsize: int
    prefix: HashPrefix


class Shard(NamedTuple):
    """What one shard holds, in the order of its slots."""

    entries: list[PBLink]
    children: list[HamtChild]


def hash_name(name: str) -> int:
    """The 64 bits by which a name is placed."""
    return mmh3.hash64(name_to_bytes(name), x64arch=True, signed=False)[0]


class HamtLookup:
    """The search for one name, from the root shard downwards."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._hash = hash_name(name)
        self._used = 0

    def step(self, shard: UnixFSNode) -> PBLink | CID | None:
        """Look into the next shard: the entry (under its own name), the CID of the shard to go on with, or None
        where the directory has no such name. Raises CorruptContentError for a malformed shard."""
        width, digits = _shape(shard, self._used)
        slot = (self._hash >> (HASH_BITS - self._used - width)) & ((1 << width) - 1)
        self._used += width
        filled = int.from_bytes(shard.data, "big")
        if not filled >> slot & 1:
            return None
        link = shard.links[(filled & ((1 << slot) - 1)).bit_count()]
        name = _entry_name(link, slot, digits)
        if not name:
            return link.cid
        return PBLink(link.cid, name, link.tsize) if name == self._name else None


def read_shard(shard: UnixFSNode, prefix: HashPrefix = ROOT) -> Shard:
    """The entries and deeper shards of a shard that stands at `prefix`.

    Every entry must stand where its hash puts it, and no deeper shard may be empty: so no shard can be used
    in two places, and a listing never gives more entries than there are. Raises CorruptContentError.
    """
    width, digits = _shape(shard, prefix.length)
    if prefix.length and not shard.links:
        raise CorruptContentError("a shard of a directory is empty")
    entries, children = [], []
    filled = int.from_bytes(shard.data, "big")
    length = prefix.length + width
    for link in shard.links:
        slot = (filled & -filled).bit_length() - 1
        filled &= filled - 1
        bits = prefix.bits << width | slot
        name = _entry_name(link, slot, digits)
        if not name:
            children.append(HamtChild(link.cid, link.tsize, HashPrefix(bits, length)))
            continue
        if hash_name(name) >> (HASH_BITS - length) != bits:
            raise CorruptContentError(f"the entry {name!r} stands in the wrong slot of a sharded directory")
        entries.append(PBLink(link.cid, name, link.tsize))
    return Shard(entries, children)


def _shape(shard: UnixFSNode, used: int) -> tuple[int, int]:
    """The bits that a shard uses, and the hex digits of a slot."""
    if shard.type != UnixFSType.HAMT_SHARD or shard.fanout is None:
        raise CorruptContentError(f"a {shard.type.name.lower()} stands where a directory's shard should be")
    width = shard.fanout.bit_length() - 1
    if used + width > HASH_BITS:
        raise CorruptContentError("a sharded directory is deeper than its hashes have bits")
    return width, _digits(shard.fanout)


def _digits(fanout: int) -> int:
    return len(f"{fanout - 1:X}")


def _entry_name(link: PBLink, slot: int, digits: int) -> str:
    if link.name[:digits] != f"{slot:0{digits}X}":
        raise CorruptContentError(f"the link {link.name!r} of a directory shard is not in its slot {slot}")
    return link.name[digits:]


def build_shards(entries: Sequence[PBLink], profile: Profile) -> tuple[CID, int, list[Block]]:
    """The sharded directory of these entries, whose names must differ: its root, the bytes of all its blocks
    and of what the entries link to, and the blocks, deeper ones first.

    Raises BadRequestError where so many names share a hash that no trie can hold them.
    """
    hashed = sorted(((hash_name(entry.name), entry) for entry in entries), key=lambda pair: pair[0])
    blocks: list[Block] = []
    root = _build(hashed, 0, profile, blocks)
    return root.cid, root.tsize, blocks


def _build(hashed: list[tuple[int, PBLink]], used: int, profile: Profile, blocks: list[Block]) -> PBLink:
    width = profile.shard_fanout.bit_length() - 1
    if used + width > HASH_BITS:
        names = ", ".join(repr(entry.name) for _, entry in hashed[:3])
        raise BadRequestError(f"the names {names} have the same hash and cannot be in one sharded directory")
    shift, mask = HASH_BITS - used - width, profile.shard_fanout - 1
    digits = _digits(profile.shard_fanout)
    links, filled, start = [], 0, 0
    while start < len(hashed):
        slot = hashed[start][0] >> shift & mask
        stop = start + 1
        while stop < len(hashed) and hashed[stop][0] >> shift & mask == slot:
            stop += 1
        only = hashed[start][1]
        child = only if stop - start == 1 else _build(hashed[start:stop], used + width, profile, blocks)
        links.append(PBLink(child.cid, f"{slot:0{digits}X}{child.name}", child.tsize))
        filled |= 1 << slot
        start = stop
    data = unixfs.encode(
        UnixFSNode(
            UnixFSType.HAMT_SHARD,
            filled.to_bytes((filled.bit_length() + 7) // 8, "big"),
            hash_type=MURMUR3_X64_64,
            fanout=profile.shard_fanout,
            links=tuple(links),
        )
    )
    block = Block(CID.of(data, DAG_PB, profile.cid_version), data)
    blocks.append(block)
    return PBLink(block.cid, "", len(data) + sum(link.tsize for link in links))
