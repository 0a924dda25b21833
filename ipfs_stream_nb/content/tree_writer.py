"""Directory trees on their way in: from streams of files, or from a local directory that the hashing threads read."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterable
from pathlib import Path
from typing import Final

from ipfs_stream_nb.content.blocks import BlockStore
from ipfs_stream_nb.content.cid import CID, BytesLike
from ipfs_stream_nb.content.directory import build_directory, build_symlink
from ipfs_stream_nb.content.importer import Block, Profile
from ipfs_stream_nb.content.node import Added, ByteProgress, Kind
from ipfs_stream_nb.content.observing import Observers
from ipfs_stream_nb.content.resolver import check_names
from ipfs_stream_nb.content.store_source import StoreThreads
from ipfs_stream_nb.content.writer import BlockSink, FileImport, LeafCutter, LeafJob, check_open
from ipfs_stream_nb.errors import BadRequestError, CorruptContentError, NotFoundError, TooLargeError

MAX_TREE_DEPTH: Final = 128
"""Levels of a directory that is added."""
MAX_TREE_DIRECTORIES: Final = 100_000
"""Directories of a tree that comes as names: a short name can hold MAX_TREE_DEPTH of them."""
STEPS_PER_TURN: Final = 256
"""Entries after which other work of the event loop gets its turn."""


class StoreTreeWriter:
    """`TreeWriter` over the block store: files one after the other, all in one transfer."""

    def __init__(
        self,
        store: BlockStore,
        executor: StoreThreads,
        profile: Profile,
        observers: Observers | None = None,
    ) -> None:
        """`observers` are told of the tree once it is here."""
        self._observers = observers
        self._sink = BlockSink(store.transfer(), executor, profile)
        self._tree = Tree()
        self._size = 0
        self._open = True

    async def add_file(self, name: str, source: AsyncIterable[BytesLike]) -> Added:
        """Read one file of the tree from a stream of bytes."""
        check_open(self._open)
        self._tree.check(name)
        cutter = LeafCutter(self._sink)
        try:
            async for data in source:
                await cutter.write(data)
            root, size, dag_size = await cutter.root()
        finally:
            await cutter.abort()
        self._tree.put(name, root, dag_size)
        self._size += size
        return Added(root, size, dag_size, name)

    async def add_symlink(self, name: str, target: str) -> None:
        """Enter a symbolic link."""
        check_open(self._open)
        self._tree.check(name)
        block = build_symlink(target, self._sink.profile)
        await self._sink.put(block)
        self._tree.put(name, block.cid, len(block.data))

    def add_directory(self, name: str) -> None:
        """Make a directory where there is none yet: an empty one has no file that would."""
        self._tree.directory(name)

    def put(self, name: str, cid: CID, dag_size: int) -> None:
        """Give something that is already here a name in the tree."""
        self._tree.put(name, cid, dag_size)

    async def finish(self, *, pin: bool = True, name: str = "", wrap: bool = True) -> Added:
        """Build the directories and commit everything; without `wrap`, a lone file is the root itself."""
        check_open(self._open)
        lone = None if wrap else self._tree.lone_file()
        root, dag_size = lone or await self._tree.build(self._sink)
        new = await self._sink.finish(root, pin=pin, name=name)
        self._open = False
        added = Added(root, self._size, dag_size, name)
        if self._observers is not None:
            self._observers.added(added, self.kind(wrap=wrap), pinned=new)
        return added

    def kind(self, *, wrap: bool) -> Kind:
        """What the root is."""
        return "directory" if wrap or self._tree.lone_file() is None else "file"

    async def abort(self) -> None:
        """Forget the tree. Idempotent."""
        if self._open:
            self._open = False
            await self._sink.abort()


class Tree:
    """Names with `/` as directories in directories."""

    def __init__(self) -> None:
        self.entries: dict[str, Tree | tuple[CID, int]] = {}
        self._directories = 0
        """How many there are below, where this is the root."""

    def check(self, name: str) -> None:
        """Raise BadRequestError unless `name` can be put here."""
        self._place(name)

    def put(self, name: str, cid: CID, dag_size: int) -> None:
        """Enter a file. Raises BadRequestError for a name that is no relative path, or is taken."""
        directory, last = self._place(name)
        directory.entries[last] = (cid, dag_size)

    def directory(self, name: str) -> None:
        """Enter a directory, which may be there already. Raises BadRequestError as `put` does."""
        self._walk(name, name.split("/"))

    def lone_file(self) -> tuple[CID, int] | None:
        """The CID and the DAG's bytes of a file that is all there is in the tree."""
        if len(self.entries) == 1:
            (entry,) = self.entries.values()
            return None if isinstance(entry, Tree) else entry
        return None

    def _place(self, name: str) -> tuple[Tree, str]:
        *parents, last = name.split("/")
        check_names([last])
        directory = self._walk(name, parents)
        if last in directory.entries:
            raise BadRequestError(f"the name {name!r} comes twice in one directory")
        return directory, last

    def _walk(self, name: str, parents: list[str]) -> Tree:
        """The directory below these names, made where it is not there."""
        check_names(parents)
        if len(parents) >= MAX_TREE_DEPTH:
            raise BadRequestError(f"{name!r} is over {MAX_TREE_DEPTH} levels deep")
        directory = self
        for parent in parents:
            below = directory.entries.get(parent)
            if below is None:
                self._directories += 1
                if self._directories > MAX_TREE_DIRECTORIES:
                    raise TooLargeError(
                        f"over {MAX_TREE_DIRECTORIES} directories in one tree; add a tree of that size as a CAR"
                    )
                below = directory.entries[parent] = Tree()
            if not isinstance(below, Tree):
                raise BadRequestError(f"{name!r} is below {parent!r}, which is a file in the same upload")
            directory = below
        return directory

    async def build(self, sink: BlockSink) -> tuple[CID, int]:
        """Write the directories, inner ones first; the root and the DAG's bytes."""
        entries = []
        for number, (name, entry) in enumerate(self.entries.items()):
            if number % STEPS_PER_TURN == STEPS_PER_TURN - 1:
                await asyncio.sleep(0)
            cid, dag_size = await entry.build(sink) if isinstance(entry, Tree) else entry
            entries.append((name, cid, dag_size))
        return await put_directory(sink, entries)


async def put_directory(sink: BlockSink, entries: list[tuple[str, CID, int]]) -> tuple[CID, int]:
    """Write one directory, sharded where it is large; its root and DAG bytes."""
    cid, dag_size, blocks = await asyncio.to_thread(build_directory, entries, sink.profile)
    for block in blocks:
        await sink.put(block)
    return cid, dag_size


class TreeImport:
    """A local file or directory tree, read by the hashing threads themselves."""

    def __init__(self, sink: BlockSink, *, hidden: bool, progress: ByteProgress | None) -> None:
        self._sink = sink
        self._hidden = hidden
        self._progress = progress
        self.kind: Kind = "file"
        """"file" or "directory": what it turned out to be."""

    async def add(self, path: Path, depth: int = 0) -> tuple[CID, int, int]:
        """The root, content bytes and DAG bytes of whatever stands at `path`."""
        try:
            mode = (await asyncio.to_thread(os.stat, path, follow_symlinks=depth == 0)).st_mode
        except FileNotFoundError:
            raise NotFoundError(f"there is no file or directory {str(path)!r}") from None
        if stat.S_ISLNK(mode):
            block = build_symlink(await asyncio.to_thread(os.readlink, path), self._sink.profile)
            await self._sink.put(block)
            return block.cid, len(block.data), len(block.data)
        if stat.S_ISREG(mode):
            return await self._file(path)
        if not stat.S_ISDIR(mode):
            raise BadRequestError(
                f"{str(path)!r} is a device, pipe or socket, and only files and directories are added"
            )
        if depth >= MAX_TREE_DEPTH:
            raise BadRequestError(f"{str(path)!r} is over {MAX_TREE_DEPTH} levels deep")
        if not depth:
            self.kind = "directory"
        return await self._directory(path, depth)

    async def _directory(self, path: Path, depth: int) -> tuple[CID, int, int]:
        names = sorted(await asyncio.to_thread(os.listdir, path))
        entries = []
        total = 0
        for name in names:
            if name.startswith(".") and not self._hidden:
                continue
            cid, size, dag_size = await self.add(path / name, depth + 1)
            entries.append((name, cid, dag_size))
            total += size
        cid, dag_size = await put_directory(self._sink, entries)
        return cid, total, dag_size

    async def _file(self, path: Path) -> tuple[CID, int, int]:
        # read by position, so that several threads may read and hash one file at once
        descriptor = await asyncio.to_thread(os.open, path, os.O_RDONLY)
        file = FileImport(self._sink)
        try:
            size = os.fstat(descriptor).st_size
            step = self._sink.profile.chunk_size
            for at in range(0, size, step):
                length = min(step, size - at)
                await file.leaf(self._leaf_job(descriptor, path, at, length), length)
                if self._progress is not None:
                    self._progress(length)
            return await file.finish()
        finally:
            await file.abort()
            os.close(descriptor)

    def _leaf_job(self, descriptor: int, path: Path, at: int, length: int) -> LeafJob:
        def job() -> Block:
            chunk = self._sink.buffers.take(length)
            if os.preadv(descriptor, [chunk], at) != length:
                raise CorruptContentError(f"{str(path)!r} became shorter while it was read; add it again")
            return self._sink.encode(chunk)

        return job
