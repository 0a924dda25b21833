"""Paths: from `<cid>/name/name…` to the node at its end, through plain and sharded directories and symlinks."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Final

from ipfs_stream_nb.content.cid import CID, RAW
from ipfs_stream_nb.content.dag_pb import PBLink
from ipfs_stream_nb.content.directory import directory_entries, is_addressable
from ipfs_stream_nb.content.hamt import ROOT, HamtChild, HamtLookup, read_shard
from ipfs_stream_nb.content.node import Entry, Kind, Path
from ipfs_stream_nb.content.reader import DagNode, DagReader
from ipfs_stream_nb.content.unixfs import UnixFSType
from ipfs_stream_nb.errors import (
    BadRequestError,
    NotDirectoryError,
    NotFoundError,
    TooLargeError,
    UnsupportedMediaError,
)

MAX_PATH_BYTES: Final = 4096
MAX_SEGMENTS: Final = 255
MAX_SYMLINKS: Final = 40
"""Followed in one path, as Linux does."""
_PREFIXES: Final = ("ipfs://", "/ipfs/", "ipfs/")
_NAME_PREFIXES: Final = ("ipns://", "/ipns/", "ipns/")


@dataclass(frozen=True, slots=True)
class Resolved:
    """The end of a path. `node` is None for a raw block; `roots` has the CID of each segment, root first."""

    cid: CID
    node: DagNode | None
    name: str
    roots: tuple[CID, ...]
    blocks: tuple[CID, ...]
    """Every block on the way, shards of large directories too, this one last."""

    @property
    def kind(self) -> Kind:
        """What stands there."""
        if self.node is None or self.node.is_file:
            return "file"
        return "directory" if self.node.is_directory else "symlink"


def parse_path(path: Path) -> tuple[CID, list[str]]:
    """Split a path into its root and its names; percent escapes are not decoded here.

    Raises BadCIDError for the root, and BadRequestError for names that are empty (`a//b`), `.`, `..`, or hold
    a NUL. A slash at the end is let through.
    """
    if isinstance(path, CID):
        return path, []
    text = path
    for prefix in _PREFIXES:
        if text.startswith(prefix):
            text = text[len(prefix) :]
            break
    if text.startswith(_NAME_PREFIXES):
        raise BadRequestError(
            f"{path[:200]!r} is an IPNS name, which stands for other content at another time; here a CID is needed, or a"
            " path below one (stat of the name tells it)"
        )
    if len(text.encode("utf-8", "surrogatepass")) > MAX_PATH_BYTES:
        raise TooLargeError(f"a path has at most {MAX_PATH_BYTES} bytes, this one is longer")
    root, *names = text.split("/")
    cid = CID.parse(root)
    if names and names[-1] == "":
        names.pop()
    check_names(names)
    return cid, names


def check_names(names: list[str]) -> None:
    """Raise BadRequestError for a name that no directory entry can have, TooLargeError for too many."""
    if len(names) > MAX_SEGMENTS:
        raise TooLargeError(f"a path has at most {MAX_SEGMENTS} names, this one has {len(names)}")
    for name in names:
        if name in {"", ".", ".."}:
            raise BadRequestError(f"a path below a CID may not hold the name {name!r}")
        if "\0" in name:
            raise BadRequestError("a path below a CID may not hold a NUL character")
        if not name.isprintable() and any("\ud800" <= char <= "\udfff" for char in name):
            raise BadRequestError(f"the name {name!r} is not valid Unicode")


def ipns_name_of(path: Path) -> str | None:
    """The name that a path begins with where it is below a name, and not below a CID."""
    if isinstance(path, CID):
        return None
    prefix = next((prefix for prefix in _NAME_PREFIXES if path.startswith(prefix)), None)
    return None if prefix is None else path[len(prefix) :].split("/", 1)[0]


async def resolve(reader: DagReader, path: Path, *, follow: bool = False) -> Resolved:
    """Walk a path. Symlinks on the way are followed, a symlink at the end only with `follow`.

    Raises NotFoundError where there is no such entry or the root is not here, NotDirectoryError,
    RetrievalError for a missing block further down, and BadRequestError for a symlink that leaves its root.
    """
    root, names = parse_path(path)
    todo = deque(names)
    trail = [await _load(reader, root, "", (), ())]
    symlinks = 0
    while todo or (follow and trail[-1].kind == "symlink"):
        here = trail[-1]
        if here.kind == "symlink":
            symlinks += 1
            if symlinks > MAX_SYMLINKS:
                raise BadRequestError(f"over {MAX_SYMLINKS} symlinks on the way through {path}; a loop?")
            todo.extendleft(reversed(_steps(here, root)))
            trail.pop()
            if not trail:
                raise BadRequestError(
                    f"the root {root} is itself a symlink, so there is nothing that it could point at"
                )
            continue
        name = todo.popleft()
        if name == "..":  # only a symlink's target can bring it in
            if len(trail) == 1:
                raise BadRequestError(f"a symlink leads out of {root}")
            trail.pop()
            continue
        where = "/".join([str(root), *(step.name for step in trail[1:])])
        if here.node is None or not here.node.is_directory:
            raise NotDirectoryError(f"{where} is a file, so there is no {name!r} in it")
        cid, blocks = await _lookup(reader, here.node, name)
        if cid is None:
            raise NotFoundError(f"there is no {name!r} in {where}")
        trail.append(await _load(reader, cid, name, here.roots, (*here.blocks, *blocks)))
    return trail[-1]


def _steps(symlink: Resolved, root: CID) -> list[str]:
    text = target_of(symlink)
    if text.startswith("/"):
        raise BadRequestError(f"the symlink {symlink.name!r} points to {text!r}, outside of {root}")
    return [name for name in text.split("/") if name not in {"", "."}]


def target_of(symlink: Resolved) -> str:
    """Where a symlink points."""
    return symlink.node.unixfs.data.decode("utf-8", "replace") if symlink.node else ""


async def _load(
    reader: DagReader, cid: CID, name: str, roots: tuple[CID, ...], blocks: tuple[CID, ...]
) -> Resolved:
    node = None
    if cid.codec != RAW:
        node = await (reader.node(cid) if not roots else reader.child(cid))
    if node is not None and node.unixfs.type == UnixFSType.METADATA:
        raise UnsupportedMediaError(f"{cid} is a UnixFS metadata node, which holds no file")
    return Resolved(cid, node, name, (*roots, cid), (*blocks, cid))


async def _lookup(reader: DagReader, directory: DagNode, name: str) -> tuple[CID | None, list[CID]]:
    """The entry's CID, and the shards that were loaded to find it."""
    if directory.unixfs.type == UnixFSType.DIRECTORY:
        return next((link.cid for link in directory.unixfs.links if link.name == name), None), []
    lookup = HamtLookup(name)
    shards: list[CID] = []
    found = lookup.step(directory.unixfs)
    while isinstance(found, CID):
        shards.append(found)
        found = lookup.step((await reader.child(found)).unixfs)
    return (found.cid if found else None), shards


async def list_directory(
    reader: DagReader, found: Resolved, *, kinds: bool = False
) -> AsyncGenerator[Entry, None]:
    """The entries of a directory, in its own order (a sharded one is in the order of its hashes).

    `kinds` looks each entry up, a block each. Raises NotDirectoryError.
    """
    if found.node is None or not found.node.is_directory:
        raise NotDirectoryError(
            f"{found.name or found.cid} is a {found.kind}, and only directories have entries"
        )
    if found.node.unixfs.type == UnixFSType.DIRECTORY:
        for link in directory_entries(found.node.unixfs):
            yield await _entry(reader, link, kinds=kinds)
        return
    todo = [HamtChild(found.cid, 0, ROOT)]
    while todo:
        here = todo.pop()
        shard = read_shard((await reader.child(here.cid)).unixfs, here.prefix)
        for link in shard.entries:
            if is_addressable(link.name):
                yield await _entry(reader, link, kinds=kinds)
        todo.extend(reversed(shard.children))


async def _entry(reader: DagReader, link: PBLink, *, kinds: bool) -> Entry:
    kind: Kind | None = None
    if kinds:
        kind = (await _load(reader, link.cid, link.name, (link.cid,), ())).kind
    return Entry(link.name, link.cid, link.tsize, kind)
