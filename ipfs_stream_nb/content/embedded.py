"""The embedded node: content by CID from the block store on this machine, with no daemon and no network."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextlib import aclosing, nullcontext
from functools import partial
from pathlib import Path as FilePath
from typing import Any, Final, Self, TypeVar, cast

from cachetools import TTLCache

from ipfs_stream_nb.content import mime
from ipfs_stream_nb.content.blocks import BlockStore
from ipfs_stream_nb.content.blocks.filesystems import default_repo
from ipfs_stream_nb.content.blocks.store import MIN_FREE
from ipfs_stream_nb.content.car_export import export_car
from ipfs_stream_nb.content.car_import import import_blocks
from ipfs_stream_nb.content.cid import CID, BytesLike
from ipfs_stream_nb.content.importer import get_profile
from ipfs_stream_nb.content.node import (
    Added,
    ByteProgress,
    CarInfo,
    DagScope,
    Entry,
    GCResult,
    Path,
    Pin,
    PinProgress,
    RepoStat,
    Stat,
)
from ipfs_stream_nb.content.reader import PIECE_BYTES, Branch, DagReader
from ipfs_stream_nb.content.resolver import Resolved, list_directory, parse_path, resolve, target_of
from ipfs_stream_nb.content.store_source import StoreSource, StoreThreads
from ipfs_stream_nb.content.stored import StoredRange
from ipfs_stream_nb.content.tree_writer import STEPS_PER_TURN, StoreTreeWriter, TreeImport
from ipfs_stream_nb.content.writer import BlockSink, StoreFileWriter
from ipfs_stream_nb.errors import (
    BadRequestError,
    IsDirectoryError,
    NotFoundError,
    RetrievalError,
    StoreError,
    TooLargeError,
)

T = TypeVar("T")

SNIFF_NODE_BYTES: Final = 8 * 1024 * 1024
"""Inner nodes that are gone through to tell a type by its first bytes; over that the name tells it."""
SNIFF_PIECES: Final = 32
"""Leaves that are read for them, where leaves are tiny."""
STAT_CACHE_SECONDS: Final = 5.0
"""How long a path's stat is remembered: another process may collect the content meanwhile."""
STAT_CACHE_ENTRIES: Final = 1024


class EmbeddedNode:
    """The node interface (see node.Node) over one block store. Made by `await EmbeddedNode.open()`.

    The node belongs to the event loop that uses it; the store under it is shared with other processes.
    """

    kind = "embedded"

    def __init__(self, store: BlockStore) -> None:
        self.store = store
        self._executor = StoreThreads(max(4, os.cpu_count() or 1))
        self.reader = DagReader(StoreSource(store, self._executor), self._executor)
        self._stats: TTLCache[str, Stat] = TTLCache(STAT_CACHE_ENTRIES, STAT_CACHE_SECONDS)
        self._located: TTLCache[str, tuple[Resolved, int]] = TTLCache(STAT_CACHE_ENTRIES, STAT_CACHE_SECONDS)
        self._closed = False

    @classmethod
    async def open(
        cls, path: str | os.PathLike[str] | None = None, *, quota: int | None = None, min_free: int = MIN_FREE
    ) -> Self:
        """Open the store at `path` (default: `default_repo()`), made if it is not there.

        `quota`: bytes of blocks that it may hold; `min_free`: bytes that must stay free on its disk. Raises
        StoreError where the store is damaged, of a newer version, or on a filesystem that it cannot live on.
        """
        where = FilePath(path) if path is not None else default_repo()
        return cls(await asyncio.to_thread(BlockStore.open, where, quota=quota, min_free=min_free))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def _run(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, partial(call, *args, **kwargs))

    # -- reading

    async def stat(self, path: Path) -> Stat:
        """What stands at the end of a path, with the MIME type told from its first bytes and its name."""
        key = str(path)
        cached = self._stats.get(key)
        if cached is None:
            cached = self._stats[key] = await self._stat(path)
        return cached

    async def _stat(self, path: Path) -> Stat:
        found, size = await self._locate(path)
        target = target_of(found) if found.kind == "symlink" else None
        mime_type = f"inode/{found.kind}"
        if found.kind == "file":
            mime_type = mime.guess(await self._head(path), found.name)
        unixfs = found.node.unixfs if found.node else None
        return Stat(
            cid=found.cid,
            kind=found.kind,
            size=size,
            mime_type=mime_type,
            name=found.name,
            target=target,
            roots=found.roots,
            mode=unixfs.mode if unixfs else None,
            mtime=unixfs.mtime if unixfs else None,
        )

    async def _head(self, path: Path) -> bytes:
        """A file's first bytes for its MIME type: fewer, or none, where they are not here or cost too much."""
        cid, size = await self._file(path)
        head = b""
        pieces = self.reader.read(cid, size, 0, mime.SNIFF_BYTES, budget=SNIFF_NODE_BYTES)
        async with aclosing(pieces):
            try:
                for _ in range(SNIFF_PIECES):
                    head += await anext(pieces, b"")
            except StoreError:
                raise
            except (NotFoundError, RetrievalError, TooLargeError):
                return head
        return head

    async def get_metadata(self, path: Path) -> dict[str, Any]:
        """The guide's metadata: see Stat.metadata."""
        return (await self.stat(path)).metadata(path)

    async def _locate(self, path: Path) -> tuple[Resolved, int]:
        """The end of a path and its size in bytes (0 for a directory)."""
        key = str(path)
        cached = self._located.get(key)
        if cached is None:
            found = await resolve(self.reader, path)
            size = 0
            if found.kind == "file":
                size = await self.reader.file_size(found.cid)
            elif found.kind == "symlink":
                size = len(target_of(found).encode())
            cached = self._located[key] = (found, size)
        return cached

    async def _file(self, path: Path) -> tuple[CID, int]:
        found, size = await self._locate(path)
        if found.kind == "directory":
            raise IsDirectoryError(f"{path} is a directory; name a file in it, or list it with ls")
        if found.kind == "symlink":
            found = await resolve(self.reader, path, follow=True)
            if found.kind != "file":
                raise IsDirectoryError(f"{path} is a symlink to a directory")
            size = await self.reader.file_size(found.cid)
        return found.cid, size

    async def cat(
        self, path: Path, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """A file's bytes from `offset`, at most `length`, in pieces of up to 1 MiB, each verified.

        The content is kept from garbage collection while it is being read.
        """
        if offset < 0 or (length is not None and length < 0):
            raise BadRequestError(f"offset and length are not negative; got {offset} and {length}")
        cid, size = await self._file(path)
        stop = size if length is None else min(size, offset + length)
        with self.store.reading(cid):
            async with aclosing(self.reader.read(cid, size, offset, stop)) as pieces:
                async for piece in pieces:
                    yield piece

    async def cat_stored(
        self, path: Path, offset: int, length: int
    ) -> AsyncGenerator[bytes | StoredRange, None]:
        """As `cat`, with most of it still in the store: for a server that sends it from there.

        A range is only checked where it was not hashed before; reading and sending it may raise what `cat` does.
        """
        cid, size = await self._file(path)

        async def leaf(branch: Branch) -> StoredRange:
            found = StoredRange(self.store, self._executor, branch.cid, branch.size, branch.lo, branch.hi)
            return found if self.store.is_verified(branch.cid) else await found.checked()

        # a lease costs more than one block does, and one block is read in one transaction
        lease = self.store.reading(cid) if length > PIECE_BYTES else nullcontext()
        with lease:
            async with aclosing(self.reader.walk(cid, size, offset, offset + length, leaf)) as pieces:
                async for piece in pieces:
                    yield piece

    def cat_range(self, path: Path, start: int, length: int) -> AsyncGenerator[bytes, None]:
        """The guide's name for `cat` with an offset and a length (item 40)."""
        return self.cat(path, start, length)

    async def read(self, path: Path, offset: int, length: int) -> bytes:
        """`length` bytes at `offset` in one piece, fewer at the end of the file."""
        async with aclosing(self.cat(path, offset, length)) as pieces:
            parts = [piece async for piece in pieces]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def ls(self, path: Path, *, kinds: bool = False) -> AsyncGenerator[Entry, None]:
        """A directory's entries, in the order of the directory; `kinds` looks each one up."""
        found, _ = await self._locate(path)
        with self.store.reading(found.cid):
            async with aclosing(list_directory(self.reader, found, kinds=kinds)) as entries:
                async for entry in entries:
                    yield entry

    async def block_get(self, cid: CID) -> bytes:
        """One verified block."""
        return await self.reader.source.get(cid)

    async def block_has(self, cid: CID) -> bool:
        """Whether the block is in the store."""
        return await self._run(self.store.has, cid)

    # -- writing

    async def block_put(self, data: BytesLike, *, codec: int, version: int = 1) -> CID:
        """Store one block under its sha2-256 CID, unpinned."""
        cid = await self._run(CID.of, data, codec, version)
        await self._run(self.store.put, cid, data, verify=False)
        return cid

    def writer(self, *, profile: str | None = None) -> StoreFileWriter:
        """Begin a file."""
        return StoreFileWriter(self.store, self._executor, get_profile(profile))

    def tree_writer(self, *, profile: str | None = None) -> StoreTreeWriter:
        """Begin a directory tree."""
        return StoreTreeWriter(self.store, self._executor, get_profile(profile))

    async def add(
        self,
        source: AsyncIterable[BytesLike],
        *,
        profile: str | None = None,
        pin: bool = True,
        name: str = "",
        progress: ByteProgress | None = None,
    ) -> Added:
        """Add a file from a stream of bytes; it is durable when this returns."""
        writer = self.writer(profile=profile)
        try:
            async for data in source:
                await writer.write(data)
                if progress is not None:
                    progress(len(data))
            return await writer.finish(pin=pin, name=name)
        finally:
            await writer.abort()

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
        """Add a local file or directory tree; symlinks stay symlinks, dot files need `hidden`."""
        sink = BlockSink(self.store.transfer(), self._executor, get_profile(profile))
        tree = TreeImport(sink, hidden=hidden, progress=progress)
        try:
            root, size, dag_size = await tree.add(FilePath(path))
            await sink.finish(root, pin=pin, name=name)
        finally:
            await sink.abort()
        return Added(root, size, dag_size, name)

    async def add_directory(
        self, entries: dict[str, CID], *, profile: str | None = None, pin: bool = True, name: str = ""
    ) -> Added:
        """Make a directory of things that this node holds; names with `/` make sub-directories."""
        tree = self.tree_writer(profile=profile)
        try:
            for number, (entry, cid) in enumerate(entries.items()):
                if not number % STEPS_PER_TURN:
                    await asyncio.sleep(0)
                tree.put(entry, cid, await self.reader.dag_size(cid))
            return await tree.finish(pin=pin, name=name)
        finally:
            await tree.abort()

    async def import_car(
        self, source: AsyncIterable[BytesLike], *, pin: bool = True, progress: ByteProgress | None = None
    ) -> CarInfo:
        """Store a CAR's blocks, every one verified, and pin those of its roots that are whole.

        The others are named in the result: what came of them can be read until garbage is collected.
        """
        sink = BlockSink(self.store.transfer(), self._executor, get_profile())
        try:
            roots, count, size = await import_blocks(source, sink, progress)
            missing = tuple([root for root in roots if not await self.block_has(root)])
            unpinned = [root for root in roots if not await self._pin_whole(root)] if pin else []
        finally:
            await sink.abort()
        return CarInfo(roots, count, size, missing, tuple(unpinned))

    async def _pin_whole(self, root: CID) -> bool:
        """Pin a root, unless blocks of it are missing."""
        try:
            await self.pin(root)
        except StoreError:
            raise
        except (NotFoundError, RetrievalError):
            return False
        return True

    def export_car(
        self, path: Path, *, scope: DagScope = "all", entity_bytes: tuple[int, int | None] | None = None
    ) -> AsyncGenerator[bytes, None]:
        """A CARv1, depth first: the blocks on the way to the path's end, then what `scope` asks for."""
        return export_car(self.reader, path, scope=scope, entity_bytes=entity_bytes, lease=self.store.reading)

    # -- keeping

    async def pin(
        self, cid: CID, *, name: str = "", progress: Callable[[PinProgress], None] | None = None
    ) -> Pin:
        """Keep a root and everything below it.

        Raises NotFoundError where the root is not here, RetrievalError naming the first block missing below it.
        """
        report = None
        if progress is not None:
            loop = asyncio.get_running_loop()
            report = partial(loop.call_soon_threadsafe, cast("Callable[..., object]", progress))
        return await self._run(self.store.pin, cid, name, report)

    async def unpin(self, cid: CID) -> None:
        """Let garbage collection have it. Raises NotFoundError where there is no such pin."""
        await self._run(self.store.unpin, cid)

    async def pins(self) -> list[Pin]:
        """All pins, oldest first."""
        return await self._run(self.store.pins)

    async def remove(self, path: Path) -> GCResult:
        """Unpin a root and take away its blocks that nothing else needs."""
        cid, names = parse_path(path)
        if names:
            raise BadRequestError(f"only a whole root can be removed: {cid}, not a path in it")
        self._forget()
        return await self._run(self.store.remove, cid)

    async def gc(self) -> GCResult:
        """Take away every block that no pin and no running transfer needs."""
        self._forget()
        return await self._run(self.store.gc)

    def _forget(self) -> None:
        self._stats.clear()
        self._located.clear()
        self.reader.forget()

    async def repo_stat(self) -> RepoStat:
        """The size and place of the store."""
        return await self._run(self.store.stat)

    # -- peers, of which an embedded node has none

    async def swarm_peers(self) -> list[dict[str, Any]]:
        """None."""
        return []

    async def ping(self, peer: str) -> float:
        """Raise NotFoundError: there is nobody to ping."""
        raise NotFoundError(f"the embedded node has no peers, so {peer!r} cannot be pinged")

    async def close(self) -> None:
        """Close the store once its running calls have ended. Idempotent."""
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._executor.shutdown)
            await asyncio.to_thread(self.store.close)
