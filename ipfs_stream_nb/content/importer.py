"""Files to blocks, with the CIDs that `ipfs add` gives: fixed-size chunks under a balanced tree.

The caller cuts the bytes (`Profile.chunk_size`), makes each leaf with `encode_leaf` on any thread, and hands
the leaves in order to a `DagBuilder`, which gives back the inner nodes as they fill up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from ipfs_stream_nb.content import unixfs
from ipfs_stream_nb.content.cid import CID, DAG_PB, BytesLike, varint
from ipfs_stream_nb.content.dag_pb import MAX_LINKS, PBLink
from ipfs_stream_nb.content.unixfs import MAX_FANOUT, UnixFSNode, UnixFSType
from ipfs_stream_nb.errors import BadRequestError

MAX_CHUNK: Final = 2 * 1024 * 1024 - 256
"""Bytes of a chunk, as `ipfs add` limits it: a leaf with its envelope stays under bitswap's 2 MiB."""
SHARDING_THRESHOLD: Final = 256 * 1024

DirectoryEstimate = Literal["block-bytes", "links-bytes"]


@dataclass(frozen=True, slots=True)
class Profile:
    """The settings that make a CID out of bytes (IPIP-499, https://specs.ipfs.tech/ipips/ipip-0499/).

    A directory is sharded when its size is *more* than `sharding_threshold` bytes. By `directory_estimate`
    that size is `block-bytes`, the plain directory's whole block, or `links-bytes`, the older rule: the bytes
    of the names and of the binary CIDs alone. Sources: IPIP-499, and the two profiles in boxo v0.43.0,
    ipld/unixfs/io/profile.go, with the comparison in directory.go.
    """

    name: str
    cid_version: Literal[0, 1] = 1
    chunk_size: int = 1024 * 1024
    """Bytes of every leaf but the last."""
    max_links: int = 1024
    """Children of an inner node of a file."""
    raw_leaves: bool = True
    """Leaves as bare bytes (CIDv1 always), not in a dag-pb envelope."""
    directory_estimate: DirectoryEstimate = "block-bytes"
    sharding_threshold: int = SHARDING_THRESHOLD
    shard_fanout: int = 256

    def __post_init__(self) -> None:
        """Raises BadRequestError for settings that give no tree."""
        if self.cid_version not in {0, 1}:
            raise BadRequestError(f"cid_version is 0 or 1, not {self.cid_version!r}")
        if not 1 <= self.chunk_size <= MAX_CHUNK:
            raise BadRequestError(f"chunk_size is 1 to {MAX_CHUNK} bytes, not {self.chunk_size!r}")
        if not 2 <= self.max_links <= MAX_LINKS:
            raise BadRequestError(f"max_links is 2 to {MAX_LINKS}, not {self.max_links!r}")
        if self.directory_estimate not in {"block-bytes", "links-bytes"}:
            raise BadRequestError(
                f"directory_estimate is 'block-bytes' or 'links-bytes', not {self.directory_estimate!r}"
            )
        fanout = self.shard_fanout
        if not 8 <= fanout <= MAX_FANOUT or fanout & (fanout - 1):
            raise BadRequestError(f"shard_fanout is a power of two from 8 to {MAX_FANOUT}, not {fanout!r}")


DEFAULT_PROFILE: Final = "unixfs-v1-2025"
PROFILES: Final = {
    profile.name: profile
    for profile in (
        Profile(DEFAULT_PROFILE),
        Profile("unixfs-v0-2015", 0, 256 * 1024, 174, raw_leaves=False, directory_estimate="links-bytes"),
        # `ipfs add --cid-version=1` as it was before there were profiles
        Profile("ipfs-v1", 1, 256 * 1024, 174, raw_leaves=True, directory_estimate="links-bytes"),
    )
}


def get_profile(profile: str | Profile | None = None) -> Profile:
    """A profile by its name; None is the default. Raises BadRequestError for a name that is not known."""
    if isinstance(profile, Profile):
        return profile
    found = PROFILES.get(DEFAULT_PROFILE if profile is None else profile)
    if found is None:
        raise BadRequestError(f"there is no profile {profile!r}; known are {', '.join(PROFILES)}")
    return found


class Block(NamedTuple):
    """A block with the CID that was made from its bytes."""

    cid: CID
    data: BytesLike


def encode_leaf(chunk: BytesLike, profile: Profile) -> Block:
    """One leaf, hashed. A raw leaf's data is `chunk` itself, not a copy, so don't change it afterwards."""
    if profile.raw_leaves:
        return Block(CID.of(chunk), chunk)
    size = varint(len(chunk))
    head = b"\x08\x02\x12" + size if len(chunk) else b"\x08\x02"
    tail = b"\x18" + size
    length = varint(len(head) + len(chunk) + len(tail))
    data = b"".join((b"\x0a", length, head, chunk, tail))
    return Block(CID.of(data, DAG_PB, profile.cid_version), data)


class Child(NamedTuple):
    """A link of an inner node, with the file's bytes below it and those of its blocks."""

    cid: CID
    file_bytes: int
    dag_bytes: int


Levels = tuple[tuple[Child, ...], ...]
"""The children of the one open node on each level of a DAG that is being built, leaves first."""


def pack_levels(levels: Levels) -> list[list[list[str | int]]]:
    """The levels as JSON."""
    return [[[str(child.cid), child.file_bytes, child.dag_bytes] for child in level] for level in levels]


def unpack_levels(value: list[list[list[Any]]]) -> Levels:
    """The inverse of `pack_levels`."""
    return tuple(tuple(Child(CID.parse(child[0]), *child[1:]) for child in level) for level in value)


class DagBuilder:
    """A balanced tree over leaves that come in order: every leaf is at the same depth.

    It remembers the children of the one open node on each level, so a file of any length takes memory for
    depth x max_links links only.
    """

    def __init__(self, profile: Profile, levels: Levels = ((),)) -> None:
        """`levels`: those of a builder of the same profile, whose work goes on here."""
        self._profile = profile
        self._levels = [list(level) for level in levels]

    @property
    def levels(self) -> Levels:
        """All that it remembers: what it has closed is in the blocks that it gave."""
        return tuple(tuple(level) for level in self._levels)

    @property
    def file_bytes(self) -> int:
        """The bytes of all leaves that were taken."""
        return sum(child.file_bytes for level in self._levels for child in level)

    def add_leaf(self, cid: CID, file_bytes: int, block_bytes: int) -> list[Block]:
        """Take the next leaf, of `file_bytes` in a block of `block_bytes`; gives the nodes that are now full."""
        self._levels[0].append(Child(cid, file_bytes, block_bytes))
        blocks = []
        level = 0
        while len(self._levels[level]) == self._profile.max_links:
            blocks.append(self._close(level))
            level += 1
        return blocks

    def finish(self) -> tuple[list[Block], CID, int, int]:
        """The last blocks, the root's CID, the file's bytes, and the bytes of all blocks (the root's Tsize).

        The root's block is the last in the list, unless the file is a single leaf, which the caller has. A file
        without any leaf is an empty leaf, whose block is given here.
        """
        blocks = []
        if self._levels == [[]]:
            empty = encode_leaf(b"", self._profile)
            blocks.append(empty)
            self.add_leaf(empty.cid, 0, len(empty.data))
        level = 0
        while level < len(self._levels) - 1 or len(self._levels[level]) > 1:
            if self._levels[level]:
                blocks.append(self._close(level))
            level += 1
        root = self._levels[level][0]
        return blocks, root.cid, root.file_bytes, root.dag_bytes

    def _close(self, level: int) -> Block:
        children, self._levels[level] = self._levels[level], []
        if level + 1 == len(self._levels):
            self._levels.append([])
        size = sum(child.file_bytes for child in children)
        data = unixfs.encode(
            UnixFSNode(
                UnixFSType.FILE,
                file_size=size,
                block_sizes=tuple(child.file_bytes for child in children),
                links=tuple(PBLink(child.cid, "", child.dag_bytes) for child in children),
            )
        )
        block = Block(CID.of(data, DAG_PB, self._profile.cid_version), data)
        dag_bytes = len(data) + sum(child.dag_bytes for child in children)
        self._levels[level + 1].append(Child(block.cid, size, dag_bytes))
        return block


class Imported(NamedTuple):
    """A whole file as blocks, leaves before the nodes above them."""

    root: CID
    blocks: list[Block]
    file_size: int
    dag_size: int


def import_bytes(data: BytesLike, profile: str | Profile | None = None) -> Imported:
    """Import bytes that are in memory anyway; the leaves are views of `data`."""
    profile = get_profile(profile)
    view = memoryview(data).cast("B")
    builder = DagBuilder(profile)
    blocks = []
    for at in range(0, len(view), profile.chunk_size):
        chunk = view[at : at + profile.chunk_size]
        leaf = encode_leaf(chunk, profile)
        blocks += [leaf, *builder.add_leaf(leaf.cid, len(chunk), len(leaf.data))]
    rest, root, file_size, dag_size = builder.finish()
    return Imported(root, blocks + rest, file_size, dag_size)
