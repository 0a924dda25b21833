"""The embedded node: content by CID, kept in the block store on this machine; no daemon is needed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterable, Callable
from functools import cached_property, partial
from pathlib import Path as FilePath
from typing import Any, Self, cast

from ipfs_stream_nb.content.blocks import BlockStore
from ipfs_stream_nb.content.blocks.filesystems import default_repo
from ipfs_stream_nb.content.blocks.store import MIN_FREE
from ipfs_stream_nb.content.car_import import import_blocks
from ipfs_stream_nb.content.cid import CID, BytesLike
from ipfs_stream_nb.content.importer import get_profile
from ipfs_stream_nb.content.node import (
    Added,
    ByteProgress,
    CarInfo,
    FileWriter,
    GCResult,
    Path,
    Pin,
    PinProgress,
    RepoStat,
    TreeWriter,
)
from ipfs_stream_nb.content.observing import Observers, PinWatch
from ipfs_stream_nb.content.reading import ReadingNode
from ipfs_stream_nb.content.resolver import parse_path
from ipfs_stream_nb.content.retrieval.dag import DagFetch
from ipfs_stream_nb.content.tree_writer import STEPS_PER_TURN, StoreTreeWriter, TreeImport
from ipfs_stream_nb.content.uploads import Uploads
from ipfs_stream_nb.content.writer import BlockSink, StoreFileWriter
from ipfs_stream_nb.errors import (
    BadRequestError,
    NotFoundError,
    RetrievalError,
    StoreError,
)


class EmbeddedNode(ReadingNode):
    """The node interface (see node.Node) over one block store. Made by `await EmbeddedNode.open()`."""

    kind = "embedded"

    @classmethod
    async def open(
        cls, path: str | os.PathLike[str] | None = None, *, quota: int | None = None, min_free: int = MIN_FREE
    ) -> Self:
        """Open the store at `path` (default: `default_repo()`), made if it is not there; nothing is fetched.

        `quota`: bytes of blocks that it may hold; `min_free`: bytes that must stay free on its disk. Raises
        StoreError where the store is damaged, of a newer version, or on a filesystem that it cannot live on.
        """
        where = FilePath(path) if path is not None else default_repo()
        return cls(await asyncio.to_thread(BlockStore.open, where, quota=quota, min_free=min_free))

    # -- writing

    @cached_property
    def uploads(self) -> Uploads:
        """Files on their way in that can be left and gone on with."""
        return Uploads(self.store, self._executor, observers=self.observers)

    async def close(self) -> None:
        """Leave uploads so that they can be resumed, and close the rest. Idempotent."""
        await self.uploads.close()
        await super().close()

    async def block_put(self, data: BytesLike, *, codec: int, version: int = 1) -> CID:
        """Store one block under its sha2-256 CID, unpinned."""
        cid = await self._run(CID.of, data, codec, version)
        await self._run(self.store.put, cid, data, verify=False)
        return cid

    def writer(self, *, profile: str | None = None) -> FileWriter:
        """Begin a file."""
        return StoreFileWriter(self.store, self._executor, get_profile(profile), self.observers)

    def tree_writer(self, *, profile: str | None = None) -> TreeWriter:
        """Begin a directory tree."""
        return StoreTreeWriter(self.store, self._executor, get_profile(profile), self.observers)

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
        added, kind, new = await self._import_path(
            path, profile=profile, pin=pin, name=name, hidden=hidden, progress=progress
        )
        self.observers.added(added, kind, pinned=new)
        return added

    async def _import_path(
        self,
        path: str,
        *,
        profile: str | None,
        pin: bool,
        name: str,
        hidden: bool,
        progress: ByteProgress | None,
    ) -> tuple[Added, str, bool]:
        """What came of it, its kind, and whether its pin is new."""
        sink = BlockSink(self.store.transfer(), self._executor, get_profile(profile))
        tree = TreeImport(sink, hidden=hidden, progress=progress)
        try:
            root, size, dag_size = await tree.add(FilePath(path))
            new = await sink.finish(root, pin=pin, name=name)
        finally:
            await sink.abort()
        return Added(root, size, dag_size, name), tree.kind, new

    async def add_directory(
        self, entries: dict[str, CID], *, profile: str | None = None, pin: bool = True, name: str = ""
    ) -> Added:
        """Make a directory of things that this node holds; names with `/` make sub-directories."""
        return await self._make_directory(entries, profile, pin=pin, name=name, observers=self.observers)

    async def _make_directory(
        self,
        entries: dict[str, CID],
        profile: str | None,
        *,
        pin: bool,
        name: str,
        observers: Observers | None,
    ) -> Added:
        tree = StoreTreeWriter(self.store, self._executor, get_profile(profile), observers)
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
            return await self._imported(roots, count, size, pin=pin)
        finally:
            await sink.abort()

    async def _imported(self, roots: tuple[CID, ...], count: int, size: int, *, pin: bool) -> CarInfo:
        """The blocks of a CAR are here: pin its roots, if asked, and tell of them."""
        missing = tuple([root for root in roots if not await self.block_has(root)])
        pins = [await self._pin_whole(root) for root in roots] if pin else []
        unpinned = tuple(root for root, new in zip(roots, pins, strict=False) if new is None)
        for at, root in enumerate(roots):
            if root not in missing and root not in roots[:at]:
                whole = root not in unpinned if pin else None
                size_of_root = size if len(roots) == 1 else None
                self.observers.tell("added", root, size=size_of_root, kind="car", complete=whole)
                if pin and pins[at]:
                    self.observers.tell("pinned", root)
        return CarInfo(roots, count, size, missing, unpinned)

    async def _pin_whole(self, root: CID) -> bool | None:
        """Pin a root, unless blocks of it are missing: whether that is a new pin, and None where it is none."""
        new = await self._is_new(root)
        try:
            await self._run(self.store.pin, root)
        except StoreError:
            raise
        except (NotFoundError, RetrievalError):
            return None
        return new

    async def _is_new(self, root: CID) -> bool:
        """Whether a pin of it would be a new one; only looked up where somebody is told."""
        return bool(self.observers) and not await self._is_pinned(root)

    async def _is_pinned(self, root: CID) -> bool:
        return await self._run(self.store.is_pinned, root)

    # -- keeping

    async def pin(
        self, cid: CID, *, name: str = "", progress: Callable[[PinProgress], None] | None = None
    ) -> Pin:
        """Keep a root and everything below it.

        What is missing is fetched, where there is somebody to ask. Raises NotFoundError where the root cannot be had,
        RetrievalError naming a block below it that cannot.
        """
        with PinWatch(self.observers, cid, name, progress, new=await self._is_new(cid)) as watch:
            return await self._pin(cid, name, watch)

    async def _pin(self, cid: CID, name: str, watch: PinWatch) -> Pin:
        report, progress = None, watch if watch.is_wanted else None
        if progress is not None:
            loop = asyncio.get_running_loop()
            report = partial(loop.call_soon_threadsafe, cast("Callable[..., object]", progress))
        try:
            return await self._run(self.store.pin, cid, name, report)
        except StoreError:
            raise
        except (NotFoundError, RetrievalError):
            if self._fetching is None:
                raise
        fetch = DagFetch(self._fetching, self.store, self._executor, progress)
        return await fetch.run(cid, partial(self._run, self.store.pin, cid, name))

    async def unpin(self, cid: CID) -> None:
        """Let garbage collection have it. Raises NotFoundError where there is no such pin."""
        await self._unpin(cid)
        self.observers.tell("unpinned", cid)

    async def _unpin(self, cid: CID) -> None:
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
        was_pinned = bool(self.observers) and await self._is_pinned(cid)
        gone = await self._remove(cid)
        if was_pinned:
            self.observers.tell("unpinned", cid)
        self.observers.tell("removed", cid, blocks=gone.blocks, bytes=gone.bytes)
        return gone

    async def _remove(self, cid: CID) -> GCResult:
        return await self._run(self.store.remove, cid)

    async def gc(self) -> GCResult:
        """Take away every block that no pin and no running transfer needs."""
        self._forget()
        gone = await self._collect()
        self.observers.tell("collected", None, blocks=gone.blocks, bytes=gone.bytes)
        return gone

    async def _collect(self) -> GCResult:
        return await self._run(self.store.gc)

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
