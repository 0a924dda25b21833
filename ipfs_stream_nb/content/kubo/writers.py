"""Files on their way into a Kubo daemon: sent while they are written, with our profiles as options of its `add`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Final

from ipfs_stream_nb.content.cid import CID, BytesLike
from ipfs_stream_nb.content.importer import Profile
from ipfs_stream_nb.content.kubo.rpc import KuboRPC
from ipfs_stream_nb.content.node import Added
from ipfs_stream_nb.content.observing import Observers
from ipfs_stream_nb.content.tree_writer import StoreTreeWriter
from ipfs_stream_nb.errors import BadRequestError, NotFoundError, RetrievalError

PIECES_AHEAD: Final = 4
"""Pieces that a writer takes before the daemon has read them."""
PIECE_BYTES: Final = 1024 * 1024


def add_options(profile: Profile) -> dict[str, str | int | bool | None]:
    """Kubo's options that make the CIDs of a profile, for files, whatever its Import settings; nothing is pinned."""
    return {
        "hash": "sha2-256",
        "trickle": False,
        "cid-version": profile.cid_version,
        "raw-leaves": profile.raw_leaves,
        "chunker": f"size-{profile.chunk_size}",
        "max-file-links": profile.max_links,
        "pin": False,
        "progress": False,
        "quieter": True,
    }


class KuboFileWriter:
    """`FileWriter` over the daemon's add. Its pin is made at the end, when it is known whether it is wanted."""

    def __init__(self, rpc: KuboRPC, profile: Profile, observers: Observers | None = None) -> None:
        """`observers` are told of the file once the daemon has it."""
        self._rpc = rpc
        self._observers = observers
        self._profile = profile
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue(PIECES_AHEAD)
        self._adding: asyncio.Task[tuple[CID, int]] | None = None
        self._done = False
        self.bytes_written = 0
        """Bytes taken so far."""

    async def write(self, data: BytesLike) -> None:
        """Take the next bytes; returns when there is room for more. Raises what the daemon says."""
        if self._done:
            raise BadRequestError("this file is finished; begin another one")
        adding = self._start()
        for at in range(0, len(data), PIECE_BYTES):
            await self._put(adding, bytes(data[at : at + PIECE_BYTES]))
        self.bytes_written += len(data)

    def _start(self) -> asyncio.Task[tuple[CID, int]]:
        if self._adding is None:
            self._adding = asyncio.create_task(self._add(), name="add to Kubo")
        return self._adding

    async def _put(self, adding: asyncio.Task[tuple[CID, int]], piece: bytes | None) -> None:
        """Hand a piece on, unless the daemon has given up."""
        putting = asyncio.ensure_future(self._pieces.put(piece))
        try:
            await asyncio.wait([putting, adding], return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not putting.done():
                putting.cancel()
                await asyncio.wait([putting])
        if putting.cancelled():
            adding.result()  # raises why it ended
            raise RetrievalError(f"{self._rpc.address.name} ended the add before all was sent")

    async def _source(self) -> AsyncGenerator[bytes, None]:
        while (piece := await self._pieces.get()) is not None:
            yield piece

    async def _add(self) -> tuple[CID, int]:
        async with aclosing(self._source()) as source:
            return await self._rpc.add(source, options=add_options(self._profile))

    async def finish(self, *, pin: bool = True, name: str = "") -> Added:
        """Send what is left and give the CID."""
        adding = self._start()
        await self._put(adding, None)
        self._done = True
        cid, dag_size = await adding
        new = pin and bool(self._observers) and not await self._rpc.is_pinned(cid)
        if pin:
            async with aclosing(self._rpc.pin_add(cid, name)) as steps:
                async for _ in steps:
                    pass
        added = Added(cid, self.bytes_written, dag_size, name)
        if self._observers is not None:
            self._observers.added(added, "file", pinned=new)
        return added

    async def abort(self) -> None:
        """End the add; what the daemon took of it is left to its garbage collection. Idempotent."""
        self._done = True
        adding, self._adding = self._adding, None
        if adding is not None and not adding.done():
            adding.cancel()
        if adding is not None:
            await asyncio.wait([adding])
            if not adding.cancelled():
                adding.exception()  # it was told to whoever wrote


async def file_pieces(path: Path) -> AsyncGenerator[bytes, None]:
    """A local file's bytes, read on threads. Raises NotFoundError, BadRequestError."""
    try:
        file = await asyncio.to_thread(path.open, "rb", buffering=0)
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path}") from None
    except OSError as error:
        raise BadRequestError(f"{path} cannot be read: {error.strerror}") from None
    try:
        while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
            yield piece
    finally:
        await asyncio.to_thread(file.close)


class KuboTreeWriter:
    """`TreeWriter` that builds the tree in our store, and hands it over to the daemon in the end."""

    def __init__(
        self, tree: StoreTreeWriter, hand_over: Callable[..., Awaitable[bool]], observers: Observers
    ) -> None:
        """`hand_over` says whether the pin is new; `observers` are told of the tree once the daemon has it."""
        self._tree = tree
        self._hand_over = hand_over
        self._observers = observers

    async def add_file(self, name: str, source: AsyncIterable[BytesLike]) -> Added:
        """Read one file; `name` is its path in the tree."""
        return await self._tree.add_file(name, source)

    async def add_symlink(self, name: str, target: str) -> None:
        """Enter a symbolic link."""
        await self._tree.add_symlink(name, target)

    def add_directory(self, name: str) -> None:
        """Make a directory where there is none yet."""
        self._tree.add_directory(name)

    async def finish(self, *, pin: bool = True, name: str = "", wrap: bool = True) -> Added:
        """Build the directories and give them to the daemon."""
        kind = self._tree.kind(wrap=wrap)
        added = await self._tree.finish(pin=False, name=name, wrap=wrap)
        new = await self._hand_over(added.cid, pin=pin, name=name)
        self._observers.added(added, kind, pinned=new)
        return added

    async def abort(self) -> None:
        """Forget the tree. Idempotent."""
        await self._tree.abort()
