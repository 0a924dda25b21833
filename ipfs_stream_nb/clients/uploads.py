"""Bodies of add requests: local files, directory trees as multipart/form-data, and files written piece by piece."""

from __future__ import annotations

import asyncio
import os
import secrets
import stat
from collections.abc import AsyncGenerator, Callable, Coroutine
from pathlib import Path
from typing import Any, BinaryIO, Final

from ipfs_stream_nb.content.cid import BytesLike
from ipfs_stream_nb.content.node import Added, ByteProgress
from ipfs_stream_nb.errors import BadRequestError, NotFoundError, RetrievalError

CHUNK_BYTES: Final = 1024 * 1024
QUEUED_CHUNKS: Final = 4
"""Written pieces that wait for the network: 4 MiB."""
MAX_TREE_DEPTH: Final = 128
"""Levels of a directory that is added, as in the embedded node."""


async def file_chunks(path: str) -> AsyncGenerator[bytes, None] | None:
    """The bytes of a local file, or None for a directory. Raises NotFoundError, BadRequestError for a device."""
    try:
        mode = (await asyncio.to_thread(os.stat, path)).st_mode
    except FileNotFoundError:
        raise NotFoundError(f"there is no file or directory {path!r}") from None
    if stat.S_ISDIR(mode):
        return None
    if not stat.S_ISREG(mode):
        raise BadRequestError(
            f"{path!r} is a device, pipe or socket, and only files and directories are added"
        )
    return read_chunks(await asyncio.to_thread(open, path, "rb"))


async def read_chunks(file: BinaryIO) -> AsyncGenerator[bytes, None]:
    """A file in chunks, read on threads and closed at the end."""
    try:
        while data := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield data
    finally:
        file.close()


def multipart_type() -> tuple[str, str]:
    """A boundary that no content holds, and the Content-Type that names it."""
    boundary = secrets.token_hex(16)
    return boundary, f"multipart/form-data; boundary={boundary}"


async def directory_parts(
    path: str, boundary: str, *, hidden: bool, progress: ByteProgress | None
) -> AsyncGenerator[bytes, None]:
    """A directory tree as multipart/form-data (RFC 7578), a part for each file, by names relative to it.

    What form data has no word for is said by the part's type, as in Kubo's API: application/x-directory for a
    directory (empty ones would be lost without), application/symlink with the target as the part's body.
    """
    todo = [("", path)]
    while todo:
        name, here = todo.pop()
        for entry in await asyncio.to_thread(_entries, here, hidden):
            relative = f"{name}/{entry.name}" if name else entry.name
            if entry.is_symlink():
                yield _part(boundary, relative, "application/symlink") + await asyncio.to_thread(
                    _target, entry.path
                )
            elif entry.is_dir():
                if relative.count("/") >= MAX_TREE_DEPTH:
                    raise BadRequestError(f"{entry.path!r} is over {MAX_TREE_DEPTH} levels deep")
                yield _part(boundary, relative, "application/x-directory")
                todo.append((relative, entry.path))
            elif entry.is_file():
                yield _part(boundary, relative, "application/octet-stream")
                async for chunk in read_chunks(await asyncio.to_thread(open, entry.path, "rb")):
                    yield chunk
                    if progress is not None:
                        progress(len(chunk))
            else:
                raise BadRequestError(
                    f"{entry.path!r} is a device, pipe or socket, and only files and directories are added"
                )
    yield f"\r\n--{boundary}--\r\n".encode()


def _entries(path: str, hidden: bool) -> list[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        return sorted(
            (one for one in entries if hidden or not one.name.startswith(".")), key=lambda one: one.name
        )


def _target(path: str) -> bytes:
    return os.fsencode(Path(path).readlink())


def _part(boundary: str, name: str, content_type: str) -> bytes:
    """The head of a part; names are escaped as browsers do (HTML standard, multipart/form-data encoding)."""
    shown = (
        name.encode("utf-8", "surrogateescape")
        .replace(b'"', b"%22")
        .replace(b"\r", b"%0D")
        .replace(b"\n", b"%0A")
    )
    return (
        f"\r\n--{boundary}\r\nContent-Type: {content_type}\r\n".encode()
        + b'Content-Disposition: form-data; name="file"; filename="'
        + shown
        + b'"\r\n\r\n'
    )


class QueuedUpload:
    """A request whose body is handed over piece by piece, a few pieces ahead of the network."""

    def __init__(self, post: Callable[[AsyncGenerator[bytes, None]], Coroutine[Any, Any, Added]]) -> None:
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue(QUEUED_CHUNKS)
        self._post = post
        self._task: asyncio.Task[Added] | None = None
        self._open = True

    async def _body(self) -> AsyncGenerator[bytes, None]:
        while (data := await self._queue.get()) is not None:
            yield data

    async def send(self, data: BytesLike) -> None:
        """Queue the next bytes. Raises what the request ended with, where it has ended early."""
        view = memoryview(data).cast("B")
        for at in range(0, len(view), CHUNK_BYTES):
            await self._put(bytes(view[at : at + CHUNK_BYTES]))

    async def _put(self, data: bytes | None) -> None:
        if not self._open:
            raise BadRequestError("this writer is finished; begin another for the next file")
        if self._task is None:
            self._task = asyncio.create_task(self._post(self._body()))
        put = asyncio.ensure_future(self._queue.put(data))
        try:
            await asyncio.wait([put, self._task], return_when=asyncio.FIRST_COMPLETED)
            if self._task.done():
                self._task.result()
            if not put.done():
                raise RetrievalError("the server answered before the file was sent whole")
        finally:
            put.cancel()

    async def finish(self) -> Added:
        """End the body and give the request's answer."""
        await self._put(None)
        self._open = False
        assert self._task is not None  # noqa: S101  # _put began it
        return await self._task

    async def abort(self) -> None:
        """Break off. Idempotent."""
        self._open = False
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
