"""`KuboNode`: adds and pins are a Kubo daemon's, and reading is ours, verified."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import aclosing, suppress
from functools import cached_property
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

from ipfs_stream_nb.content.blocks import BlockStore
from ipfs_stream_nb.content.car import CarDecoder
from ipfs_stream_nb.content.cid import CID, CODEC_NAMES, BytesLike
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.content.importer import get_profile
from ipfs_stream_nb.content.kubo.flatfs import FlatFS
from ipfs_stream_nb.content.kubo.origins import DaemonOrigins
from ipfs_stream_nb.content.kubo.pinning import pin_with_total
from ipfs_stream_nb.content.kubo.rpc import KuboRPC
from ipfs_stream_nb.content.kubo.writers import KuboFileWriter, KuboTreeWriter, file_pieces
from ipfs_stream_nb.content.node import (
    Added,
    ByteProgress,
    CarInfo,
    GCResult,
    Origins,
    Pin,
    RepoStat,
)
from ipfs_stream_nb.content.observing import PinWatch
from ipfs_stream_nb.content.reader import Branch
from ipfs_stream_nb.content.retrieval.retriever import Retriever
from ipfs_stream_nb.content.stored import StoredRange
from ipfs_stream_nb.content.tree_writer import StoreTreeWriter
from ipfs_stream_nb.content.uploads import Uploads
from ipfs_stream_nb.errors import BadRequestError, CorruptContentError, NotFoundError, RetrievalError

if TYPE_CHECKING:
    from ipfs_stream_nb.content.ipns.resolver import NameResolver


class KuboNode(EmbeddedNode):
    """The node interface (see node.Node) over a Kubo daemon.

    Everything is read through our store, which is a cache here, block by block and each of them hashed; what the
    daemon holds itself is not copied into it. Directory trees are built here, so that they have the CIDs of
    their profile, and given to the daemon as a CAR.
    """

    kind = "kubo"

    def __init__(
        self,
        store: BlockStore,
        retriever: Retriever,
        rpc: KuboRPC,
        *,
        names: NameResolver | None = None,
        files: FlatFS | None = None,
    ) -> None:
        """`retriever` asks the daemon first (KuboProvider); the node closes it, and `rpc` with it.

        `files`: where the daemon's blocks can be read (provider.find_files).
        """
        super().__init__(store, retriever, names=names)
        self.rpc = rpc
        self._files = files
        if self._fetching is not None:
            self._fetching.keeper.write_held = False
            self._fetching.beside = files

    # -- reading

    async def _stored(self, branch: Branch) -> StoredRange | None:
        """The wanted part of a block where it is in our store, or in the daemon's files."""
        found = await super()._stored(branch)
        if found is not None or self._files is None:
            return found
        beside = StoredRange(self._files, self._executor, branch.cid, branch.size, branch.lo, branch.hi)
        with suppress(NotFoundError, CorruptContentError):
            return await (beside.unwrapped() if branch.enveloped else beside.checked())
        return None

    async def sources(self, cid: CID) -> Origins:
        """Where the blocks below `cid` are, of those that our store or the daemon has."""
        if self._fetching is not None:
            await self._fetching.keeper.flush()
        held = None if self._files is None else self._files.get
        return await DaemonOrigins(self.store, self.rpc, held).run(cid)

    # -- writing

    @cached_property
    def uploads(self) -> Uploads:
        """Files on their way in, in our store until they are whole."""
        return Uploads(self.store, self._executor, self._keep_upload, self.observers)

    async def _keep_upload(self, root: CID, pin: bool, name: str) -> bool:
        return await self.hand_over(root, pin=pin, name=name)

    def writer(self, *, profile: str | None = None) -> KuboFileWriter:
        """Begin a file; it is sent as it is written."""
        return KuboFileWriter(self.rpc, get_profile(profile), self.observers)

    def tree_writer(self, *, profile: str | None = None) -> KuboTreeWriter:
        """Begin a directory tree; it is sent when it is finished."""
        tree = StoreTreeWriter(self.store, self._executor, get_profile(profile))
        return KuboTreeWriter(tree, self.hand_over, self.observers)

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
        where = FilePath(path)
        if await self._run(_is_regular, where):
            async with aclosing(file_pieces(where)) as pieces:
                return await self.add(pieces, profile=profile, pin=pin, name=name, progress=progress)
        added, kind, _ = await self._import_path(
            path, profile=profile, pin=False, name=name, hidden=hidden, progress=progress
        )
        new = await self.hand_over(added.cid, pin=pin, name=name)
        self.observers.added(added, kind, pinned=new)
        return added

    async def hand_over(self, root: CID, *, pin: bool, name: str) -> bool:
        """Give the daemon a tree that is in our store, and take it out there unless it is pinned. Whether the daemon has
        a new pin."""
        new = pin and await self._is_new(root)
        async with aclosing(self.export_car(root)) as car:
            await self.rpc.dag_import(car, pin=pin)
        if pin and name:
            await pin_with_total(self.rpc, self.reader.source, root, name, None)
        if not await self._run(self.store.is_pinned, root):
            with suppress(NotFoundError):
                await self._run(self.store.remove, root)
        return new

    async def add_directory(
        self, entries: dict[str, CID], *, profile: str | None = None, pin: bool = True, name: str = ""
    ) -> Added:
        """Make a directory of things that the daemon holds or finds; names with `/` make sub-directories."""
        added = await self._make_directory(entries, profile, pin=False, name=name, observers=None)
        parents = {entry.rpartition("/")[0] for entry in entries}
        folders = {
            "/".join(parent.split("/")[:depth])
            for parent in parents
            for depth in range(parent.count("/") + 2)
        }
        for folder in sorted(folders, reverse=True):
            path = f"{added.cid}/{folder}".rstrip("/")
            async with aclosing(self.export_car(path, scope="entity")) as car:
                await self.rpc.dag_import(car, pin=False)
        new = pin and await self._is_new(added.cid)
        if pin:
            await pin_with_total(self.rpc, self.reader.source, added.cid, name, None)
        self.observers.added(added, "directory", pinned=new)
        return added

    async def block_put(self, data: BytesLike, *, codec: int, version: int = 1) -> CID:
        """Store one block under its sha2-256 CID, unpinned."""
        cid = await self._run(CID.of, data, codec, version)
        if codec not in CODEC_NAMES:
            raise BadRequestError(f"the codec {codec:#x} is not known; {', '.join(CODEC_NAMES.values())} are")
        told = await self.rpc.block_put(data, codec=CODEC_NAMES[codec])
        if told.v1() != cid.v1():
            raise RetrievalError(f"{self.rpc.address.name} stored {told} where {cid} was given")
        return cid

    async def block_has(self, cid: CID) -> bool:
        """Whether the block is here or held by the daemon."""
        return await super().block_has(cid) or await self.rpc.block_has(cid)

    async def import_car(
        self, source: AsyncIterable[BytesLike], *, pin: bool = True, progress: ByteProgress | None = None
    ) -> CarInfo:
        """Store a CAR's blocks, every one verified here first, and pin those of its roots that are whole."""
        decoder = CarDecoder()
        count = size = 0

        async def verified() -> AsyncGenerator[BytesLike, None]:
            nonlocal count, size
            async for data in source:
                for cid, block in decoder.feed(data):
                    await self._run(cid.verify, block)
                    count, size = count + 1, size + len(block)
                yield data
                if progress is not None:
                    progress(len(data))
            decoder.finish()

        async with aclosing(verified()) as checked:
            await self.rpc.dag_import(checked, pin=False)
        return await self._imported(tuple(decoder.roots), count, size, pin=pin)

    async def _pin_whole(self, root: CID) -> bool | None:
        """As the embedded node's: the daemon would look for missing blocks on its network without end."""
        try:
            await self.rpc.dag_stat(root)
        except NotFoundError:
            return None
        new = await self._is_new(root)
        await pin_with_total(self.rpc, self.reader.source, root, "", None)
        return new

    async def _is_pinned(self, root: CID) -> bool:
        return await self.rpc.is_pinned(root)

    # -- keeping

    async def _pin(self, cid: CID, name: str, watch: PinWatch) -> Pin:
        """Have the daemon keep it; what it lacks it finds on its network."""
        # the total costs reading, which only whoever pins may ask for
        progress = watch if watch.is_asked else None
        await pin_with_total(self.rpc, self.reader.source, cid, name, progress)
        return Pin(cid, name, created=time.time())

    async def _unpin(self, cid: CID) -> None:
        await self.rpc.pin_rm(cid)

    async def pins(self) -> list[Pin]:
        """The daemon's recursive pins, in no order: it does not tell when they were made."""
        return [Pin(cid, name) for cid, name in (await self.rpc.pin_ls()).items()]

    async def _remove(self, cid: CID) -> GCResult:
        """Unpin a root. Its blocks are left to the daemon's own garbage collection, since others may use them."""
        await self.rpc.pin_rm(cid)
        return GCResult(0, 0, (await self.rpc.repo_stat())["NumObjects"])

    async def _collect(self) -> GCResult:
        """Have the daemon collect its garbage."""
        before = await self.rpc.repo_stat()
        blocks = await self.rpc.repo_gc()
        after = await self.rpc.repo_stat()
        freed = max(0, before["RepoSize"] - after["RepoSize"])
        return GCResult(blocks, freed, after["NumObjects"])

    async def repo_stat(self) -> RepoStat:
        """The daemon's repo, with what our own store caches."""
        told, own = await self.rpc.repo_stat(), await super().repo_stat()
        size = told["RepoSize"]
        return RepoStat(
            path=told["RepoPath"],
            store_id="",
            blocks=told["NumObjects"],
            size=size,
            disk_size=size,
            quota=told["StorageMax"],
            disk_free=own.disk_free,
            cache_blocks=own.cache_blocks,
            cache_size=own.cache_size,
            cache_quota=own.cache_quota,
        )

    # -- peers

    async def swarm_peers(self) -> list[dict[str, Any]]:
        """Connected peers: `peer` id, `address`, `latency` in seconds (None where it is not known)."""
        return await self.rpc.swarm_peers()

    async def ping(self, peer: str) -> float:
        """Seconds to a peer and back. Raises RetrievalError for one that does not answer."""
        return await self.rpc.ping(peer)


def _is_regular(path: FilePath) -> bool:
    """Whether it is a file itself: no directory, symlink or pipe."""
    return path.is_file() and not path.is_symlink()
