"""Files and trees that are written piece by piece to a node behind HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterable
from functools import partial
from typing import TYPE_CHECKING

from ipfs_stream_nb.clients.uploads import QueuedUpload
from ipfs_stream_nb.content.cid import CID, DAG_PB, BytesLike
from ipfs_stream_nb.content.directory import build_directory, build_symlink
from ipfs_stream_nb.content.importer import get_profile
from ipfs_stream_nb.content.node import Added
from ipfs_stream_nb.content.tree_writer import Tree
from ipfs_stream_nb.errors import BadRequestError

if TYPE_CHECKING:
    from ipfs_stream_nb.clients.remote import RemoteNode


class RemoteFileWriter:
    """`FileWriter` as one request whose body is what is written: see node.FileWriter."""

    def __init__(self, node: RemoteNode, profile: str | None) -> None:
        self.bytes_written = 0
        self._node = node
        self._upload = QueuedUpload(partial(node.add, profile=profile, pin=False))

    async def write(self, data: BytesLike) -> None:
        """Take the next bytes; waits where the server is slower. Raises what the server answers."""
        self.bytes_written += len(data)
        await self._upload.send(data)

    async def finish(self, *, pin: bool = True, name: str = "") -> Added:
        """End the request and give the CID; the pin is a second request."""
        added = await self._upload.finish()
        if pin:
            await self._node.pin(added.cid, name=name)
        return Added(added.cid, added.size, added.dag_size, name)

    async def abort(self) -> None:
        """Break the request off. Idempotent."""
        await self._upload.abort()


class RemoteTreeWriter:
    """`TreeWriter` as a request for each file and one for the directories: see node.TreeWriter.

    Between them the files are not pinned, so a garbage collection of the server's may take them; `add_path` sends
    a local tree as one request, which nothing can come between.
    """

    def __init__(self, node: RemoteNode, profile: str | None) -> None:
        self._node = node
        self._profile = profile
        self._names = Tree()
        self._entries: dict[str, CID] = {}
        self._files: list[Added] = []
        self._directories: set[str] = set()
        self._open = True

    async def add_file(self, name: str, source: AsyncIterable[BytesLike]) -> Added:
        """Send one file of the tree."""
        self._check(name)
        added = await self._node.add(source, profile=self._profile, pin=False)
        self._put(name, added.cid)
        self._files.append(Added(added.cid, added.size, added.dag_size, name))
        return self._files[-1]

    async def add_symlink(self, name: str, target: str) -> None:
        """Enter a symbolic link."""
        self._check(name)
        block = build_symlink(target, get_profile(self._profile))
        self._put(name, await self._node.block_put(block.data, codec=DAG_PB, version=block.cid.version))

    def add_directory(self, name: str) -> None:
        """Make a directory where there is none yet."""
        self._names.directory(name)
        self._directories.add(name)

    async def finish(self, *, pin: bool = True, name: str = "", wrap: bool = True) -> Added:
        """Have the server make the directories; without `wrap`, a lone file is the root itself."""
        self._check("")
        self._open = False
        only = self._files[0] if len(self._files) == 1 else None
        if only is not None and not wrap and list(self._entries) == [only.name] and "/" not in only.name:
            if pin:
                await self._node.pin(only.cid, name=name)
            return Added(only.cid, only.size, only.dag_size, name)
        await self._put_empty_directories()
        added = await self._node.add_directory(self._entries, profile=self._profile, pin=pin, name=name)
        return Added(added.cid, sum(file.size for file in self._files), added.dag_size, name)

    async def _put_empty_directories(self) -> None:
        cid, _, blocks = build_directory([], get_profile(self._profile))
        for directory in self._directories:
            if not any(name.startswith(f"{directory}/") for name in (*self._entries, *self._directories)):
                for block in blocks:
                    await self._node.block_put(block.data, codec=DAG_PB, version=cid.version)
                self._entries[directory] = cid

    async def abort(self) -> None:
        """Forget the tree; what was sent of it is left to garbage collection. Idempotent."""
        self._open = False

    def _put(self, name: str, cid: CID) -> None:
        self._names.put(name, cid, 0)
        self._entries[name] = cid

    def _check(self, name: str) -> None:
        if not self._open:
            raise BadRequestError("this writer is finished; begin another for the next tree")
        if name:
            self._names.check(name)
