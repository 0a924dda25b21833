"""Bytes on their way out: followed through symlinks, gathered in memory within a limit, or written to a file."""

from __future__ import annotations

import asyncio
import operator
import os
import posixpath
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from ipfs_stream_nb.clients.naming import Content, path_of
from ipfs_stream_nb.content import node as nodes
from ipfs_stream_nb.content.resolver import MAX_SYMLINKS, parse_path
from ipfs_stream_nb.display import a_kind, size_text
from ipfs_stream_nb.errors import (
    BadRequestError,
    IPFSStreamError,
    IsDirectoryError,
    NotFoundError,
    RetrievalError,
    TooLargeError,
)

MAX_GATHERED: Final = 512 * 1024 * 1024
"""Bytes that `cat`, and `export_car` without a destination, put into memory at once."""


@asynccontextmanager
async def at(node: nodes.Node, content: Content) -> AsyncGenerator[nodes.Path, None]:
    """The path of content, for a `with` block: if it turns out not to be here at all, the error says what to do.

    A path below an IPNS name is the one below a CID that it stands for now.
    """
    path = await node.fixed(path_of(content))
    try:
        yield path
    except (NotFoundError, RetrievalError) as error:
        if node.fetches:  # the error tells who was asked
            raise
        root, _ = parse_path(path)
        try:
            here = await node.block_has(root)
        except IPFSStreamError:  # the node itself does not answer, which the first error tells
            here = True
        if here:
            raise
        raise NotFoundError(
            f"{root} is not in this store, and there is nobody to fetch it from: no gateway is set, and no Kubo daemon"
            " was found. Add the file, or import a CAR that holds it with client.import_car"
        ) from error


def whole(name: str, value: object) -> int:
    """A number of bytes. Raises BadRequestError for what is no whole number; numpy's are."""
    try:
        return operator.index(cast("int", value))
    except TypeError:
        raise BadRequestError(
            f"{name}={value!r}: expected a whole number of bytes, not {a_kind(value)}"
        ) from None


async def file_at(node: nodes.Node, path: nodes.Path) -> tuple[nodes.Path, nodes.Stat]:
    """The file that a path leads to, through symlinks at its end too.

    Raises IsDirectoryError, and BadRequestError for a symlink that leaves its root or leads in a circle.
    """
    here = path
    for _ in range(MAX_SYMLINKS):
        stat = await node.stat(here)
        if stat.kind == "file":
            return here, stat
        if stat.kind == "directory":
            raise IsDirectoryError(f"{path} is a directory; name a file in it, or list it with ls")
        cid, names = parse_path(here)
        target = posixpath.normpath(posixpath.join(*names[:-1], stat.target or ""))
        if not names or target.startswith(("/", "..")):
            raise BadRequestError(f"{path} is a symlink to {stat.target!r}, which is not below {cid}")
        here = f"{cid}/{target}"
    raise BadRequestError(f"over {MAX_SYMLINKS} symlinks on the way to {path}; a loop?")


async def gather(pieces: AsyncGenerator[bytes, None], instead: str) -> bytes:
    """All pieces in one. Raises TooLargeError, which tells what to do instead, over MAX_GATHERED bytes."""
    parts: list[bytes] = []
    size = 0
    async for piece in pieces:
        size += len(piece)
        if size > MAX_GATHERED:
            raise too_large(None, instead)
        parts.append(piece)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def too_large(size: int | None, instead: str) -> TooLargeError:
    """The error for what is over MAX_GATHERED bytes, `size` of them where that is known."""
    has = f"it has {size_text(size)}" if size is not None else "it is larger"
    return TooLargeError(
        f"at most {size_text(MAX_GATHERED)} are put into memory at once, and {has}; {instead}"
    )


async def counted(
    pieces: AsyncGenerator[bytes, None], advance: Callable[[int], Any]
) -> AsyncGenerator[bytes, None]:
    """The same pieces, counted once each is done with."""
    try:
        async for piece in pieces:
            yield piece
            advance(len(piece))
    finally:
        await pieces.aclose()


async def write_to(
    dest: str | os.PathLike[str] | BinaryIO,
    pieces: AsyncGenerator[bytes, None],
    prefix: Callable[[int], bytes] = lambda _: b"",
) -> int:
    """Write the pieces to an open binary file or to a path, which is replaced only by a whole file.

    `prefix` gives what stands before them once their length is known, always of the same length: a file must be
    seekable for one that is not empty.
    """
    if not isinstance(dest, str | os.PathLike):
        if not callable(getattr(dest, "write", None)):
            raise BadRequestError(f"cannot write to {a_kind(dest)}; give a path or an open binary file")
        return await _pour(dest, pieces, prefix)
    path = Path(dest).expanduser()  # noqa: ASYNC240  # it only looks at the environment
    if await asyncio.to_thread(path.is_dir):
        raise BadRequestError(
            f"{str(path)!r} is a directory; name a file in it: {str(path / 'content.car')!r}"
        )
    try:
        file = await asyncio.to_thread(
            tempfile.NamedTemporaryFile, dir=path.parent, prefix=f".{path.name}.", delete=False
        )
    except OSError as error:
        raise BadRequestError(f"cannot write to {str(path)!r}: {error.strerror}") from None
    try:
        with file:
            size = await _pour(file, pieces, prefix)
        await asyncio.to_thread(os.replace, file.name, path)
    except BaseException:
        with suppress(OSError):
            await asyncio.to_thread(os.unlink, file.name)
        raise
    return size


async def _pour(file: Any, pieces: AsyncGenerator[bytes, None], prefix: Callable[[int], bytes]) -> int:
    empty = prefix(0)
    if empty and not (hasattr(file, "seekable") and file.seekable()):
        raise BadRequestError(
            "a CARv2 begins with its length, so the file must be seekable; or take version=1"
        )
    start = await asyncio.to_thread(file.tell) if empty else 0
    size = 0
    try:
        if empty:
            await asyncio.to_thread(file.write, empty)
        async for piece in pieces:
            await asyncio.to_thread(file.write, piece)
            size += len(piece)
    except TypeError:
        raise BadRequestError('the file takes no bytes; open it in binary mode: open(path, "wb")') from None
    if empty:
        await asyncio.to_thread(_put_prefix, file, start, prefix(size))
    return len(empty) + size


def _put_prefix(file: Any, start: int, prefix: bytes) -> None:
    end = file.tell()
    file.seek(start)
    file.write(prefix)
    file.seek(end)
