"""Directories and symlinks as blocks, and the entries of a plain directory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ipfs_stream_nb.content import unixfs
from ipfs_stream_nb.content.cid import CID, DAG_PB
from ipfs_stream_nb.content.dag_pb import PBLink, name_to_bytes
from ipfs_stream_nb.content.hamt import build_shards
from ipfs_stream_nb.content.importer import Block, Profile
from ipfs_stream_nb.content.unixfs import UnixFSNode, UnixFSType
from ipfs_stream_nb.errors import BadRequestError

MAX_NAME_BYTES: Final = 1024
"""UTF-8 bytes of a name that is written; file systems allow 255."""
MAX_TARGET_BYTES: Final = 4096
"""UTF-8 bytes of a symlink's target that is written: PATH_MAX of Linux."""


def check_name(name: str) -> None:
    """Raise BadRequestError for a name that no path could lead to (UnixFS specification, "Restricted Names"),
    that is not valid Unicode, or that is too long."""
    if name in {"", ".", ".."} or "/" in name or "\0" in name:
        raise BadRequestError(f"{name!r} cannot be the name of a directory's entry: no path could lead to it")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise BadRequestError(f"the name {name!r} is not valid Unicode; rename it to add it") from None
    if size > MAX_NAME_BYTES:
        raise BadRequestError(
            f"the name {name[:20]!r}… has {size} bytes; at most {MAX_NAME_BYTES} are allowed"
        )


def is_addressable(name: str) -> bool:
    """Whether a path can lead to an entry of this name: what is not is left out of listings, so that a name
    from a hostile directory ("..", "a/b", bytes that are not UTF-8) never reaches a path, page or disk."""
    if name in {"", ".", ".."} or "/" in name or "\0" in name:
        return False
    return name.isascii() or not any("\ud800" <= char <= "\udfff" for char in name)


def directory_entries(directory: UnixFSNode) -> list[PBLink]:
    """The entries of a plain directory in its order, the first of each name, without those that are not
    addressable. (For the shards of a large one: `hamt.read_shard`, and `is_addressable` on the names.)"""
    found = {link.name: link for link in reversed(directory.links)}
    return [link for link in directory.links if found[link.name] is link and is_addressable(link.name)]


def build_directory(
    entries: Iterable[tuple[str, CID, int]], profile: Profile
) -> tuple[CID, int, list[Block]]:
    """A directory of (name, CID, bytes of the DAG below it), in any order: a single block, or sharded where the
    profile's rule says so. Gives its CID, the bytes of all its blocks and of what they link to, its blocks.

    Raises BadRequestError for names that are not allowed or stand twice.
    """
    links: dict[str, PBLink] = {}
    for name, cid, tsize in entries:
        check_name(name)
        if name in links:
            raise BadRequestError(f"the name {name!r} stands twice in one directory")
        if tsize < 0:
            raise BadRequestError(f"the size of {name!r} is negative: {tsize}")
        links[name] = PBLink(cid, name, tsize)
    by_name = sorted(links.values(), key=lambda link: link.name.encode())
    if _links_bytes(by_name) > profile.sharding_threshold:  # then the block would be larger still
        return build_shards(by_name, profile)
    data = unixfs.encode(UnixFSNode(UnixFSType.DIRECTORY, links=tuple(by_name)))
    too_large = profile.directory_estimate == "block-bytes" and len(data) > profile.sharding_threshold
    if by_name and too_large:
        return build_shards(by_name, profile)
    block = Block(CID.of(data, DAG_PB, profile.cid_version), data)
    return block.cid, len(data) + sum(link.tsize for link in by_name), [block]


def _links_bytes(links: Iterable[PBLink]) -> int:
    return sum(len(name_to_bytes(link.name)) + len(bytes(link.cid)) for link in links)


def build_symlink(target: str, profile: Profile) -> Block:
    """A symlink. Raises BadRequestError for a target that is empty, too long, or no path."""
    try:
        data = target.encode()
    except UnicodeEncodeError:
        raise BadRequestError(f"the symlink target {target!r} is not valid Unicode") from None
    if not data or b"\0" in data or len(data) > MAX_TARGET_BYTES:
        raise BadRequestError(
            f"a symlink's target has 1 to {MAX_TARGET_BYTES} bytes and no NUL; this one is {target[:40]!r}"
        )
    block = unixfs.encode(UnixFSNode(UnixFSType.SYMLINK, data))
    return Block(CID.of(block, DAG_PB, profile.cid_version), block)
