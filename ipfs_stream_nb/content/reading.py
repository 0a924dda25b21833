"""Reading content by CID: from the store on this machine, and from providers where it is not there.

Every node of ours reads in this one way, whoever keeps its pins: blocks come verified out of a `BlockSource`, and
files, directories and CARs are made of them here.
"""

from __future__ import annotations

import asyncio
import copy
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, cast

from cachetools import TTLCache

from ipfs_stream_nb.content import mime
from ipfs_stream_nb.content.blocks import BlockStore
from ipfs_stream_nb.content.car_export import export_car
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.node import DagScope, Entry, Origins, Path, Stat
from ipfs_stream_nb.content.observing import Observers
from ipfs_stream_nb.content.reader import PIECE_BYTES, Branch, DagNode, DagReader, fixed_window
from ipfs_stream_nb.content.resolver import Resolved, ipns_name_of, list_directory, resolve, target_of
from ipfs_stream_nb.content.retrieval.ahead import ReadAhead
from ipfs_stream_nb.content.retrieval.source import FetchingSource
from ipfs_stream_nb.content.store_source import StoreSource, StoreThreads
from ipfs_stream_nb.content.stored import StoredRange
from ipfs_stream_nb.errors import (
    BadRequestError,
    CorruptContentError,
    IsDirectoryError,
    NotFoundError,
    RetrievalError,
    StoreError,
    TooLargeError,
)

if TYPE_CHECKING:
    from ipfs_stream_nb.content.ipns.resolver import NameResolver
    from ipfs_stream_nb.content.retrieval.retriever import Retriever

T = TypeVar("T")

SNIFF_NODE_BYTES: Final = 8 * 1024 * 1024
"""Inner nodes that are gone through to tell a type by its first bytes; over that the name tells it."""
SNIFF_PIECES: Final = 32
"""Leaves that are read for them, where leaves are tiny."""
STAT_CACHE_SECONDS: Final = 5.0
"""How long a path's stat is remembered: another process may collect the content meanwhile."""
STAT_CACHE_ENTRIES: Final = 1024


class ReadingNode:
    """The reading half of the node interface (see node.Node) over one block store, and providers where there are.

    The node belongs to the event loop that uses it; the store under it is shared with other processes.
    """

    kind = "reading"

    def __init__(
        self,
        store: BlockStore,
        retriever: Retriever | None = None,
        *,
        names: NameResolver | None = None,
        keep: bool = True,
    ) -> None:
        """`retriever` finds what is not in the store, and `names` what /ipns/ paths stand for; the node closes both.

        Without `keep` what is fetched is not written to the store, since the provider has done so.
        """
        self.store = store
        self.observers = Observers()
        """Told of what is added, pinned and removed through this node."""
        self._executor = StoreThreads(max(4, os.cpu_count() or 1))
        self._closed = False
        self._read_from(retriever, names, keep=keep)

    def _read_from(self, retriever: Retriever | None, names: NameResolver | None, *, keep: bool) -> None:
        self.names = names
        self.retriever = retriever
        self._fetching: FetchingSource | None = None
        self._ahead: ReadAhead | None = None
        if retriever is not None:
            self._fetching = FetchingSource(self.store, self._executor, retriever, keep=keep)
        self.reader = DagReader(self._fetching or StoreSource(self.store, self._executor), self._executor)
        if self._fetching is not None:
            self._ahead = ReadAhead(self._fetching, self.reader)
        self._stats: TTLCache[str, Stat] = TTLCache(STAT_CACHE_ENTRIES, STAT_CACHE_SECONDS)
        self._located: TTLCache[str, tuple[Resolved, int]] = TTLCache(STAT_CACHE_ENTRIES, STAT_CACHE_SECONDS)

    @property
    def fetches(self) -> bool:
        """Whether anybody is asked for what is not here."""
        return self.retriever is not None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def _run(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, partial(call, *args, **kwargs))

    async def fixed(self, path: Path) -> Path:
        """The path below a CID that a path below a name stands for at this time; other paths as they are.

        Raises what NameResolver.resolve does, and BadRequestError where this node resolves no names.
        """
        name = ipns_name_of(path)
        if name is None:
            return path
        if self.names is None:
            raise BadRequestError(
                f"{str(path)[:200]!r} is below an IPNS name, and this node has nobody to ask what that stands for: it needs"
                " a gateway, a router or a Kubo daemon"
            )
        return (await self.names.resolve(name)).path + str(path).split(name, 1)[1]

    async def stat(self, path: Path) -> Stat:
        """What stands at the end of a path, with the MIME type told from its first bytes and its name."""
        path = await self.fixed(path)
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
        cid, size = await self._file(await self.fixed(path))
        stop = size if length is None else min(size, offset + length)
        with self.store.reading(cid):
            async with aclosing(self._pieces(cid, size, offset, stop)) as pieces:
                async for piece in pieces:
                    yield cast("bytes", piece)

    async def cat_stored(
        self, path: Path, offset: int, length: int
    ) -> AsyncGenerator[bytes | StoredRange, None]:
        """As `cat`, with most of it still in the store: for a server that sends it from there.

        A range is only checked where it was not hashed before; reading and sending it may raise what `cat` does.
        """
        cid, size = await self._file(await self.fixed(path))
        # a lease costs more than one block does, and one block is read in one transaction
        lease = self.store.reading(cid) if length > PIECE_BYTES else nullcontext()
        with lease:
            async with aclosing(self._pieces(cid, size, offset, offset + length, self._stored)) as pieces:
                async for piece in pieces:
                    yield piece

    async def _stored(self, branch: Branch) -> StoredRange | None:
        """The wanted part of a leaf where it is in the store; None also for what turns out to be no leaf."""
        found = StoredRange(self.store, self._executor, branch.cid, branch.size, branch.lo, branch.hi)
        if self._fetching is None:
            return await self._checked(found, branch)
        try:
            checked = await self._checked(found, branch)
        except (NotFoundError, CorruptContentError):
            return None
        self.store.touch((branch.cid,))
        return checked

    async def _checked(self, found: StoredRange, branch: Branch) -> StoredRange | None:
        if branch.enveloped:
            return await found.unwrapped()
        if self._fetching is None:
            is_here = self.store.is_verified(branch.cid)
        else:  # the cache may have dropped the block since it was hashed
            is_here = self.store.peek_now(branch.cid, len) is not None
        return found if is_here else await found.checked()

    async def _pieces(
        self,
        cid: CID,
        size: int,
        offset: int,
        stop: int,
        stored: Callable[[Branch], Awaitable[StoredRange | None]] | None = None,
    ) -> AsyncGenerator[bytes | StoredRange, None]:
        """Bytes `offset` to `stop` of a file; by `stored`, the blocks that it finds are left where they are."""
        reading = None
        if self._ahead is not None:
            reading = self._ahead.begin(cid, size, offset, stop, open_ended=stop == size)
        read = self.reader.leaf if reading is None else reading.leaf

        async def leaf(branch: Branch) -> bytes | StoredRange | DagNode:
            found = None if stored is None else await stored(branch)
            return await read(branch) if found is None else found

        window = fixed_window if reading is None else reading.window
        walk: AsyncGenerator[bytes | StoredRange, None] = self.reader.walk(
            cid, size, offset, stop, leaf, window=window
        )
        async with reading or nullcontext(), aclosing(walk) as pieces:
            async for piece in pieces:
                yield piece
                if reading is not None:
                    await reading.delivered(len(piece))

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
        found, _ = await self._locate(await self.fixed(path))
        with self.store.reading(found.cid):
            async with aclosing(list_directory(self.reader, found, kinds=kinds)) as entries:
                async for entry in entries:
                    yield entry

    async def block_get(self, cid: CID) -> bytes:
        """One verified block."""
        return await self.reader.source.get(cid)

    async def block_has(self, cid: CID) -> bool:
        """Whether the block can be had without a network."""
        return await self._run(self.store.has, cid)

    async def export_car(
        self, path: Path, *, scope: DagScope = "all", entity_bytes: tuple[int, int | None] | None = None
    ) -> AsyncGenerator[bytes, None]:
        """A CARv1, depth first: the blocks on the way to the path's end, then what `scope` asks for."""
        parts = export_car(
            self.reader,
            await self.fixed(path),
            scope=scope,
            entity_bytes=entity_bytes,
            lease=self.store.reading,
        )
        async with aclosing(parts):
            async for part in parts:
                yield part

    async def sources(self, cid: CID) -> Origins:
        """Where the blocks below `cid` came from, of those that are here. Raises CorruptContentError, TooLargeError."""
        if self._fetching is not None:
            await self._fetching.keeper.flush()
        return await self._run(self.store.origins, cid)

    def offline(self) -> Self:
        """This node without its providers: it has what is here. It needs no closing, and ends with the node."""
        sibling = copy.copy(self)
        ReadingNode._read_from(sibling, None, None, keep=False)
        return sibling

    def through(self, retriever: Retriever) -> FetchingSource:
        """Blocks from this node's store, and by `retriever` where it has none; the caller closes it."""
        return FetchingSource(self.store, self._executor, retriever)

    def _forget(self) -> None:
        self._stats.clear()
        self._located.clear()
        self.reader.forget()
        if self._fetching is not None:
            self._fetching.keeper.forget()

    async def close(self) -> None:
        """Close the store once its running calls have ended, and what it fetches from. Idempotent."""
        if not self._closed:
            self._closed = True
            if self._ahead is not None:
                await self._ahead.close()
            if self._fetching is not None:
                await self._fetching.close()
            if self.names is not None:
                await self.names.close()
            await asyncio.to_thread(self._executor.shutdown)
            await asyncio.to_thread(self.store.close)
