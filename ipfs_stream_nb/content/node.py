"""The node interface: the guide's `ipfs_api`, and the shapes that it deals in.

Everything above (gateway, streams, clients, media) talks to a `Node` and knows not which one it is. A `path`
is always `<cid>[/name…]` as text (an `/ipfs/` before it is accepted) or a `CID`; for reading it may also be
`/ipns/<name>[/name…]`. Sizes and offsets are bytes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ipfs_stream_nb.content.cid import CID, BytesLike
from ipfs_stream_nb.display import facts_html, size_text, table_html, time_text

Path = str | CID
Kind = Literal["file", "directory", "symlink"]
DagScope = Literal["block", "entity", "all"]
ByteProgress = Callable[[int], None]
"""Called with the number of further bytes that are done, from the event loop's thread."""


@dataclass(frozen=True, slots=True)
class Stat:
    """What a path leads to. `size` is the file's length, the symlink target's length, or 0 for a directory."""

    cid: CID
    kind: Kind
    size: int
    mime_type: str = "application/octet-stream"
    name: str = ""
    """The last name of the path; empty for a bare CID."""
    target: str | None = None
    """Where a symlink points."""
    roots: tuple[CID, ...] = ()
    """The CID of each path segment, root first: X-Ipfs-Roots."""
    mode: int | None = None
    mtime: float | None = None

    def metadata(self, path: Path) -> dict[str, Any]:
        """The guide's metadata (item 10), `mime_type` and `size` also under their HTTP names."""
        metadata = {
            "cid": str(self.cid),
            "path": str(path),
            "kind": self.kind,
            "size": self.size,
            "content_length": self.size,
            "mime_type": self.mime_type,
            "content_type": self.mime_type,
        }
        return metadata | ({"filename": self.name} if self.name else {})

    def _repr_html_(self) -> str:
        facts = [
            ("CID", self.cid),
            ("kind", self.kind),
            ("size", None if self.kind == "directory" else size_text(self.size)),
            ("type", self.mime_type if self.kind == "file" else None),
            ("points to", self.target),
            ("modified", time_text(self.mtime or 0)),
        ]
        return facts_html(self.name or str(self.cid), facts)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a directory; `size` is the entry's Tsize (blocks included) as its link states it."""

    name: str
    cid: CID
    size: int
    kind: Kind | None = None
    """None where it was not looked up (it costs a block per entry)."""


@dataclass(frozen=True, slots=True)
class Added:
    """The result of an add: `size` is the content's own bytes, `dag_size` all blocks together. `str()` is the CID."""

    cid: CID
    size: int
    dag_size: int
    name: str = ""

    def __str__(self) -> str:
        return str(self.cid)

    def _repr_html_(self) -> str:
        return facts_html(self.name or "added", [("CID", self.cid), ("size", size_text(self.size))])


@dataclass(frozen=True, slots=True)
class Pin:
    """A root that garbage collection keeps, with everything below it."""

    cid: CID
    name: str = ""
    recursive: bool = True
    created: float = 0.0
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class PinProgress:
    """How far a pin is: blocks and bytes seen so far, of a total that is true once the tree is walked."""

    blocks: int
    bytes: int
    total_blocks: int | None
    total_bytes: int | None


@dataclass(frozen=True, slots=True)
class GCResult:
    """What a garbage collection took away."""

    blocks: int
    bytes: int
    kept_blocks: int

    def _repr_html_(self) -> str:
        freed = f"{self.blocks} blocks, {size_text(self.bytes)}"
        return facts_html(
            "garbage collected", [("taken away", freed), ("kept", f"{self.kept_blocks} blocks")]
        )


@dataclass(frozen=True, slots=True)
class RepoStat:
    """The local store: `size` is the bytes of its blocks, `disk_size` what its file takes on disk."""

    path: str
    store_id: str
    blocks: int
    size: int
    disk_size: int
    quota: int | None
    disk_free: int
    cache_blocks: int = 0
    """Those of `blocks` that were fetched, and go where room is needed."""
    cache_size: int = 0
    cache_quota: int | None = None

    def _repr_html_(self) -> str:
        facts = [
            ("path", self.path),
            ("blocks", self.blocks),
            ("size", size_text(self.size)),
            ("on disk", size_text(self.disk_size)),
            ("quota", None if self.quota is None else size_text(self.quota)),
            ("free on the disk", size_text(self.disk_free)),
            ("cache", f"{self.cache_blocks} blocks, {size_text(self.cache_size)}"),
            ("cache quota", None if self.cache_quota is None else size_text(self.cache_quota)),
        ]
        return facts_html("block store", facts)


@dataclass(frozen=True, slots=True)
class Origin:
    """What came from one source: a gateway's URL, a Kubo node, or "added here"."""

    source: str
    blocks: int
    bytes: int
    last: float | None = None
    """When the last of it came, in seconds since the epoch; None for what was added here."""


@dataclass(frozen=True, slots=True)
class Origins:
    """Where the blocks of a tree came from, the source of the most bytes first."""

    root: CID
    origins: tuple[Origin, ...]
    missing: int
    """Linked blocks that are not here."""

    def _repr_html_(self) -> str:
        rows: list[tuple[object, ...]] = [
            (origin.source, origin.blocks, size_text(origin.bytes), time_text(origin.last or 0))
            for origin in self.origins
        ]
        if self.missing:
            rows.append(("not here", self.missing, "", ""))
        return table_html(("source", "blocks", "size", "last"), rows, f"where {self.root} came from")


@dataclass(frozen=True, slots=True)
class CarInfo:
    """What an imported CAR held."""

    roots: tuple[CID, ...]
    blocks: int
    bytes: int
    missing: tuple[CID, ...] = field(default=())
    """Roots that the CAR names and did not carry, and that were not here before."""
    unpinned: tuple[CID, ...] = field(default=())
    """Roots that were to be pinned and are not: blocks below them are not here, as in a CAR of a part."""


class FileWriter(Protocol):
    """A file on its way in. `write` any frame sizes; the CID depends on the bytes and the profile alone."""

    @property
    def bytes_written(self) -> int:
        """Bytes taken so far."""

    async def write(self, data: BytesLike) -> None:
        """Take the next bytes; returns when there is room for more. Raises QuotaExceededError."""

    async def finish(self, *, pin: bool = True, name: str = "") -> Added:
        """Commit what is left and give the CID: it survives a kill -9 from here on."""

    async def abort(self) -> None:
        """Forget the file; what was written of it is left to garbage collection. Idempotent."""


class TreeWriter(Protocol):
    """A directory tree on its way in, as one transfer: nothing of it is lost to garbage collection meanwhile."""

    async def add_file(self, name: str, source: AsyncIterable[BytesLike]) -> Added:
        """Read one file; `name` is its path in the tree, with `/`. Raises BadRequestError for a bad name."""

    async def add_symlink(self, name: str, target: str) -> None:
        """Enter a symbolic link."""

    def add_directory(self, name: str) -> None:
        """Make a directory where there is none yet: an empty one has no file that would."""

    async def finish(self, *, pin: bool = True, name: str = "", wrap: bool = True) -> Added:
        """Build the directories and commit: the tree survives a kill -9 from here on. Without `wrap`, a tree
        of one file that is in no directory is that file."""

    async def abort(self) -> None:
        """Forget the tree. Idempotent."""


class Node(Protocol):
    """Content by CID. Errors are those of `ipfs_stream_nb.errors`; iterators must be closed when left early."""

    kind: str
    """"embedded", "kubo" or "remote"."""

    @property
    def fetches(self) -> bool:
        """Whether it asks anybody for what it does not hold."""

    async def fixed(self, path: Path) -> Path:
        """The path below a CID that a path below an IPNS name stands for at this time; other paths as they are."""

    async def stat(self, path: Path) -> Stat:
        """Resolve a path and say what is there (directory entries and symlinks are followed up to the last
        name; a symlink as the last name is reported, not followed)."""

    async def get_metadata(self, path: Path) -> dict[str, Any]:
        """The guide's metadata: cid, path, size, mime_type, content_type, content_length, filename, kind."""

    def cat(self, path: Path, offset: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        """A file's bytes from `offset`, at most `length`, in pieces of up to 1 MiB, each verified."""

    def cat_range(self, path: Path, start: int, length: int) -> AsyncGenerator[bytes, None]:
        """The guide's name for `cat` with an offset and a length (item 40)."""

    async def read(self, path: Path, offset: int, length: int) -> bytes:
        """`length` bytes at `offset` in one piece, fewer at the end of the file."""

    def ls(self, path: Path, *, kinds: bool = False) -> AsyncGenerator[Entry, None]:
        """A directory's entries, sorted by name in a plain directory; `kinds` looks each one up."""

    def writer(self, *, profile: str | None = None) -> FileWriter:
        """Begin a file."""

    def tree_writer(self, *, profile: str | None = None) -> TreeWriter:
        """Begin a directory tree."""

    async def add(
        self,
        source: AsyncIterable[BytesLike],
        *,
        profile: str | None = None,
        pin: bool = True,
        name: str = "",
        progress: ByteProgress | None = None,
    ) -> Added:
        """Add a file from a stream of bytes."""

    async def add_path(
        self,
        path: str,
        *,
        profile: str | None = None,
        pin: bool = True,
        name: str = "",
        hidden: bool = False,
        progress: ByteProgress | None = None,
    ) -> Added:
        """Add a local file or a whole directory tree (symlinks stay symlinks), by the fastest way there is."""

    async def add_directory(
        self, entries: dict[str, CID], *, profile: str | None = None, pin: bool = True, name: str = ""
    ) -> Added:
        """Make a directory of things that this node holds; names with `/` make sub-directories."""

    async def block_get(self, cid: CID) -> bytes:
        """One verified block."""

    async def block_has(self, cid: CID) -> bool:
        """Whether the block can be had without a network."""

    async def block_put(self, data: BytesLike, *, codec: int, version: int = 1) -> CID:
        """Store one block under its sha2-256 CID (unpinned)."""

    async def sources(self, cid: CID) -> Origins:
        """Where the blocks below `cid` came from, of those that are here."""

    async def pin(
        self, cid: CID, *, name: str = "", progress: Callable[[PinProgress], None] | None = None
    ) -> Pin:
        """Keep a root and everything below it; the whole tree must be here. Raises NotFoundError where the root
        is not, and RetrievalError naming the first block that is missing below it."""

    async def unpin(self, cid: CID) -> None:
        """Let garbage collection have it. Raises NotFoundError where there is no such pin."""

    async def pins(self) -> list[Pin]:
        """All pins, oldest first."""

    async def remove(self, path: Path) -> GCResult:
        """Unpin a root and take away its blocks that nothing else needs."""

    async def gc(self) -> GCResult:
        """Take away every block that no pin and no running transfer needs."""

    async def repo_stat(self) -> RepoStat:
        """The size and place of the local store."""

    async def import_car(
        self, source: AsyncIterable[BytesLike], *, pin: bool = True, progress: ByteProgress | None = None
    ) -> CarInfo:
        """Store a CAR's blocks (v1 or v2), every one verified, and pin those of its roots that are whole."""

    def export_car(
        self, path: Path, *, scope: DagScope = "all", entity_bytes: tuple[int, int | None] | None = None
    ) -> AsyncGenerator[bytes, None]:
        """A CARv1 of a path, depth first: the blocks on the way to it, then what `scope` asks for
        (trustless gateway specification: `dag-scope`, `entity-bytes`)."""

    async def swarm_peers(self) -> list[dict[str, Any]]:
        """Connected peers: none for an embedded node."""

    async def ping(self, peer: str) -> float:
        """Seconds to a peer and back. Raises NotFoundError for an embedded node, which has no peers."""

    async def close(self) -> None:
        """Release everything. Idempotent."""
