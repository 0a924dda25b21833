"""Files on their way in that survive a lost connection, a killed client and a killed server."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar

from ipfs_stream_nb.content.blocks import BlockStore
from ipfs_stream_nb.content.blocks.leases import OWNER_BYTES
from ipfs_stream_nb.content.blocks.uploads import UploadRecord
from ipfs_stream_nb.content.cid import CID, BytesLike
from ipfs_stream_nb.content.importer import Block, get_profile
from ipfs_stream_nb.content.node import Added
from ipfs_stream_nb.content.observing import Observers
from ipfs_stream_nb.content.store_source import StoreThreads
from ipfs_stream_nb.content.writer import BATCH_BYTES, BatchSink, FileImport, LeafCutter
from ipfs_stream_nb.errors import BadRequestError, BusyError, IPFSStreamError, NotFoundError

CHECKPOINT_SECONDS: Final = 1.0
"""How old the last durable byte may become while bytes come."""
MAX_UNFINISHED: Final = 256
"""Uploads of a store that are begun and not finished."""
UPLOAD_TTL: Final = 24 * 3600.0
"""Seconds after which an upload that nothing comes for is given up."""

P = ParamSpec("P")
T = TypeVar("T")


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Do it to its end, also where the wait is cancelled, once or again; that is raised afterwards."""
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        if not task.cancelled():
            task.exception()  # there is nobody left to tell
        raise asyncio.CancelledError
    return task.result()


Keep = Callable[[CID, bool, str], Awaitable[bool]]
"""Has a root kept by somebody else than the store: with or without a pin, under a name. Whether that is a new pin."""


class UploadWriter:
    """One upload, open: a `FileWriter` that can be left and gone on with. Made by `Uploads`."""

    def __init__(self, uploads: Uploads, record: UploadRecord, executor: StoreThreads) -> None:
        self._uploads = uploads
        self._record = record
        self._sink = BatchSink(executor, get_profile(record.profile))
        self._file = FileImport(self._sink, record.levels)
        self._cutter = LeafCutter(self._sink, self._file)
        self._begun = record.durable
        self._told = time.monotonic()
        self._lock = asyncio.Lock()
        self._torn = False
        """Whether a write was cancelled: nobody knows how much of its bytes was taken."""
        self._refused = False
        """Whether more came than was declared: what is here is not what the client has."""
        self._end: IPFSStreamError | None = None
        self.durable = record.durable
        """Bytes that survive a kill -9."""

    async def restore(self) -> None:
        """Take the bytes of the record that are in no leaf yet. To be called once, before all else."""
        self._begun -= len(self._record.tail)
        await self._cutter.write(self._record.tail)

    @property
    def id(self) -> str:
        """Its `upload_id`."""
        return self._record.id.hex()

    @property
    def name(self) -> str:
        """The file's name."""
        return self._record.name

    @property
    def total_bytes(self) -> int | None:
        """The declared size; None where there is none."""
        return self._record.size

    @property
    def bytes_written(self) -> int:
        """Bytes taken since the upload's beginning."""
        return self._begun + self._cutter.bytes_written

    @property
    def finished(self) -> Added | None:
        """The result, where the upload is whole already."""
        if self._record.result is None:
            return None
        root, size, dag_size = self._record.result
        return Added(root, size, dag_size, self._record.name)

    async def write(self, data: BytesLike) -> None:
        """Take the next bytes; returns when there is room for more.

        Raises BadRequestError for more than was declared, BusyError where the upload goes on elsewhere, NotFoundError
        where it was cancelled, and QuotaExceededError.
        """
        async with self._lock:
            self._check_open()
            came, total = self.bytes_written + len(data), self.total_bytes
            if self._torn:
                raise BadRequestError("a write of this upload was cancelled; resume it to go on")
            if total is not None and came > total:
                self._refused = True
                raise BadRequestError(
                    f"{total} bytes were declared, and {came} came; the last frame is not taken"
                )
            view = memoryview(data).cast("B")
            try:
                for at in range(0, len(view), BATCH_BYTES):
                    await self._take(data if len(view) <= BATCH_BYTES else view[at : at + BATCH_BYTES])
            except asyncio.CancelledError:
                self._torn = True
                raise

    async def _take(self, data: BytesLike) -> None:
        await self._cutter.write(data)
        if self._sink.is_due:
            await self._commit(self._file.builder.file_bytes, b"")
        elif time.monotonic() - self._told >= CHECKPOINT_SECONDS:
            await self._commit_all()

    async def checkpoint(self) -> int:
        """Make all that was taken durable; gives the bytes."""
        async with self._lock:
            self._check_open()
            if self.durable < self.bytes_written:
                await self._commit_all()
                await self._sink.wait()
            return self.durable

    async def _commit_all(self) -> None:
        await self._file.drain()
        tail = bytes(self._cutter.rest)
        await self._commit(self._file.builder.file_bytes + len(tail), tail)

    async def _commit(self, durable: int, tail: bytes) -> None:
        self._told = time.monotonic()
        levels = self._file.builder.levels
        self._record = replace(self._record, durable=durable, levels=levels, tail=tail)
        await self._sink.start_commit(partial(self._store, self._record))

    def _store(self, record: UploadRecord, blocks: list[Block]) -> None:
        """Called on the thread of commits: what fails once is not gone on with, since blocks would be missing."""
        if self._end is not None:
            raise self._end
        try:
            self._uploads.store.uploads.checkpoint(record, blocks)
        except IPFSStreamError as error:
            self._end = error
            raise
        self.durable = record.durable

    async def finish(self, *, pin: bool = True, name: str = "") -> Added:
        """Commit what is left and give the CID: it survives a kill -9 from here on.

        Raises BadRequestError where less came than was declared; the upload stays open then. Where more came, which
        is not taken, or a write was cancelled, only a resumption helps.
        """
        async with self._lock:
            if self.finished is not None:
                return self.finished
            self._check_open()
            if self.total_bytes not in {None, self.bytes_written}:
                raise BadRequestError(
                    f"{self.total_bytes} bytes were declared, and {self.bytes_written} came; send the rest, or cancel"
                )
            if self._torn or self._refused:
                what = "a write was cancelled" if self._torn else "more bytes came than were declared"
                raise BadRequestError(f"{what}, so this is not the file; resume the upload, or cancel it")
            self._record = replace(self._record, name=name or self._record.name)
            await self._commit_all()  # what can be gone on with, should the rest of this fail
            await self._sink.wait()
            try:
                root, size, dag_size = await self._cutter.root()
                await self._sink.start_commit(partial(self._store, self._record))
                await self._sink.wait()
                result = replace(self._record, result=(root, size, dag_size))
                new = await self._uploads.complete(result, pin=pin)
            except IPFSStreamError as error:
                self._end = error  # the DAG is closed; whoever resumes goes on from the record
                raise
            except asyncio.CancelledError:
                self._end = BadRequestError("the end of this upload was cancelled; resume it to go on")
                raise
            self._record = result
        self._uploads.forget(self)
        added = Added(root, size, dag_size, result.name)
        self._uploads.observers.added(added, "file", pinned=new)
        return added

    async def suspend(self) -> None:
        """Make what was taken durable, and leave it to whoever resumes it. Raises no error of ours; idempotent.

        It is done to the end also where the wait is cancelled, as is `abort`.
        """
        await to_the_end(self._suspend())

    async def _suspend(self) -> None:
        with suppress(IPFSStreamError):
            await self.checkpoint()
        await self._close(BusyError(f"the upload {self.id} goes on over another connection"))

    async def abort(self) -> None:
        """Give the upload up, with all that came of it. Idempotent."""
        await to_the_end(self._abort())

    async def _abort(self) -> None:
        await self._close(BadRequestError(f"the upload {self.id} was cancelled; begin another one"))
        if self.finished is None:
            discard = self._uploads.store.uploads.discard
            await self._sink.in_thread(partial(discard, self._record.id, generation=self._record.generation))

    async def _close(self, reason: IPFSStreamError) -> None:
        async with self._lock:
            self._end = self._end or reason
            await self._cutter.abort()
            await self._sink.drop()
        self._uploads.forget(self)

    def _check_open(self) -> None:
        if self._end is not None:
            raise self._end
        if self.finished is not None:
            raise BadRequestError("this upload is finished; begin another for the next file")


class Uploads:
    """The resumable uploads of one node."""

    def __init__(
        self,
        store: BlockStore,
        executor: StoreThreads,
        keep: Keep | None = None,
        observers: Observers | None = None,
    ) -> None:
        """`keep` has roots kept where the store is not what keeps them; `observers` are told of what is whole."""
        self.store = store
        self.observers = Observers() if observers is None else observers
        self._executor = executor
        self._keep = keep
        self._open: dict[bytes, UploadWriter] = {}

    async def begin(
        self,
        *,
        name: str = "",
        mime_type: str = "",
        size: int | None = None,
        profile: str | None = None,
    ) -> UploadWriter:
        """Begin one. Raises BadRequestError for an unknown profile, BusyError over MAX_UNFINISHED."""
        record = UploadRecord(
            secrets.token_bytes(OWNER_BYTES), name, mime_type, size, get_profile(profile).name
        )
        try:
            await to_the_end(self._run(self.store.uploads.begin, record, MAX_UNFINISHED))
        except asyncio.CancelledError:
            await to_the_end(self._run(self.store.uploads.discard, record.id))  # nobody knows its id
            raise
        return self._opened(record)

    async def resume(self, upload_id: str, *, profile: str | None = None) -> UploadWriter:
        """Go on with one, also where another connection still has it. Raises NotFoundError, BadRequestError.

        `profile`: what it must have been begun with, if that is given.

        Whoever knows its id may: Jupyter gives each connection that comes with its token another user.
        """
        try:
            key = bytes.fromhex(upload_id)
        except ValueError:
            key = b""
        if len(key) != OWNER_BYTES:
            raise BadRequestError(
                f"upload_id is the {2 * OWNER_BYTES} hexadecimal digits of a `ready` message, not {upload_id[:80]!r}"
            )
        if profile is not None:
            begun = next((one.profile for one in await self.list() if one.id == key), profile)
            if get_profile(profile).name != begun:
                raise BadRequestError(f"this upload was begun with the profile {begun!r}, not {profile!r}")
        before = self._open.get(key)
        if before is not None:
            await before.suspend()
        writer = self._opened(await self._run(self.store.uploads.resume, key))
        await writer.restore()
        return writer

    def _opened(self, record: UploadRecord) -> UploadWriter:
        writer = self._open[record.id] = UploadWriter(self, record, self._executor)
        return writer

    async def list(self) -> list[UploadRecord]:
        """All that are noted, the finished ones too until they expire."""
        return await self._run(self.store.uploads.all)

    async def expire(self, ttl: float = UPLOAD_TTL) -> int:
        """Discard those that nothing came for in `ttl` seconds; gives how many."""
        return await self._run(self.store.uploads.expire, ttl, frozenset(self._open))

    async def complete(self, record: UploadRecord, *, pin: bool) -> bool:
        """Note that one is finished; where others keep its root, once they have it. Whether there is a new pin."""
        assert record.result is not None  # noqa: S101  # what is finished has one
        root = record.result[0]
        if self._keep is None:
            return await self._run(self._finish, record, root, pin=pin)
        new = await self._keep(root, pin, record.name)
        await self._run(self.store.uploads.finish, record, pin=False)
        if not await self._run(self.store.is_pinned, root):
            with suppress(NotFoundError, BusyError):
                await self._run(self.store.remove, root)
        return new

    def _finish(self, record: UploadRecord, root: CID, *, pin: bool) -> bool:
        new = pin and not self.store.is_pinned(root)
        self.store.uploads.finish(record, pin=pin)
        return new

    def forget(self, writer: UploadWriter) -> None:
        """It is open no more."""
        key = bytes.fromhex(writer.id)
        if self._open.get(key) is writer:
            del self._open[key]

    async def close(self) -> None:
        """Make what came of open ones durable. Idempotent."""
        for writer in list(self._open.values()):
            await writer.suspend()

    async def _run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, partial(call, *args, **kwargs))
