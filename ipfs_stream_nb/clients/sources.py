"""What `add` takes, turned into a local path or a stream of bytes."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Final, cast

from anyio import to_thread

from ipfs_stream_nb.clients.uploads import file_chunks
from ipfs_stream_nb.content.cid import BytesLike
from ipfs_stream_nb.display import a_kind
from ipfs_stream_nb.errors import BadRequestError, NotFoundError

CHUNK_BYTES: Final = 1024 * 1024
GATHER_BYTES: Final = 64 * 1024
"""Bytes of an iterable's pieces that are handed on together,"""
GATHER_SECONDS: Final = 0.02
"""or seconds in which they come."""
SHOWN: Final = 60
"""Characters of a source that an error repeats."""
TAKEN: Final = "a path, bytes, an open binary file, an iterable of bytes, a numpy array or a PIL image"
TEXT_HINT: Final = '; to add text itself, pass bytes: client.add("…".encode())'


@dataclass(frozen=True, slots=True)
class Source:
    """Either a local `path` or a `stream`; `size` in bytes where it is known beforehand."""

    label: str
    path: str | None = None
    stream: AsyncGenerator[BytesLike, None] | None = None
    size: int | None = None
    name: str = ""


def check_name(name: object) -> None:
    """Raise BadRequestError for what is no name that could be shown: not text, or with control characters."""
    if not isinstance(name, str):
        raise BadRequestError(f"name={name!r}: a name is text, not {a_kind(name)}")
    if not all(char.isprintable() for char in name):
        raise BadRequestError(f"name={name[:SHOWN]!r}: a name holds no control characters and no line ends")


def open_source(
    source: Any, name: str | None, *, hidden: bool, sized: bool, instead: str = TEXT_HINT
) -> Source:
    """Look at what is to be added. Runs on a thread: it may read directories and encode images.

    `instead` is what a text that is no path is answered with. Raises NotFoundError for a path that is not there,
    BadRequestError for what cannot be added.
    """
    if name is not None:
        check_name(name)
    if isinstance(source, str | PurePath):
        return _local(source, name, hidden=hidden, sized=sized, instead=instead)
    if isinstance(source, bytes | bytearray | memoryview):
        return _in_memory(source, name)
    if _is_a("numpy", "ndarray", source):
        return _in_memory(_array_file(source, name), name, "array")
    if _is_a("PIL.Image", "Image", source):
        return _in_memory(_image_file(source, name), name, "image")
    return _stream(source, name)


def _stream(source: Any, name: str | None) -> Source:
    size = None
    _check_no_container(source)
    if callable(getattr(source, "read", None)):
        if getattr(source, "closed", False):
            raise BadRequestError("the file is closed; add it while it is open, or add its path")
        stream, size = _file_stream(source), _left(source)
    elif isinstance(source, AsyncIterable):
        stream = _checked(source)
    elif isinstance(source, Iterable):
        stream = _iterable_stream(source)
    else:
        raise BadRequestError(f"cannot add {a_kind(source)}; give {TAKEN}")
    return Source(name or "stream", stream=stream, size=size, name=name or "")


def _check_no_container(source: Any) -> None:
    """Refuse collections that hold something else than a file's bytes, with the call that would be right."""
    kind = a_kind(source)
    if callable(getattr(source, "to_parquet", None)):
        raise BadRequestError(
            f"cannot add {kind} itself; add a file of it: client.add(it.to_parquet(), name='table.parquet')"
        )
    if isinstance(source, Mapping):
        raise BadRequestError(f"cannot add {kind}; add it as JSON: client.add(json.dumps(it).encode())")
    if isinstance(source, list | tuple | set | frozenset) and any(
        isinstance(one, str | PurePath) for one in source
    ):
        raise BadRequestError(
            f"cannot add {kind} of paths at once; add each of them, client.add(path), or the directory that they are in;"
            " the items of an iterable are bytes"
        )


async def bytes_of(source: Source) -> AsyncGenerator[BytesLike, None]:
    """What a source holds, also where it is a local file. Raises BadRequestError for a directory."""
    stream = source.stream or await file_chunks(str(source.path))
    if stream is None:
        raise BadRequestError(f"{source.path!r} is a directory, and a file is meant")
    async with aclosing(stream):
        async for data in stream:
            yield data


def _is_a(module: str, name: str, source: Any) -> bool:
    """isinstance without the import: if nobody has imported the module, nobody has such an object."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(source, getattr(loaded, name))


def _local(source: str | PurePath, name: str | None, *, hidden: bool, sized: bool, instead: str) -> Source:
    if not str(source).strip() or (isinstance(source, PurePath) and not source.parts):
        # Path("") is Path("."), and nobody who has an empty variable means all of the current directory
        raise BadRequestError(
            f"{source!r} names no file; to add all of the current directory, say so: client.add(Path.cwd())"
        )
    path = Path(source).expanduser()
    shown = str(source) if len(str(source)) <= SHOWN else f"{str(source)[:SHOWN]}…"
    try:
        is_directory = path.is_dir()
        exists = is_directory or path.exists()
    except (OSError, ValueError):  # too long, or with a NUL: a text, not a path
        exists = is_directory = False
    if not exists:
        hint = ""
        if shown.startswith(("http://", "https://", "ipfs://", "/ipfs/", "bafy", "bafk", "Qm")):
            hint = "; only local files are read here, and content that has a CID is read by cat or open"
        elif isinstance(source, str):
            hint = instead
        raise NotFoundError(f"there is no file or directory {shown!r}{hint}")
    size = None
    if sized:
        size = _tree_size(path, hidden=hidden) if is_directory else path.stat().st_size
    label = path.name or path.resolve().name
    return Source(label, path=str(path), size=size, name=label if name is None else name)


def _tree_size(path: Path, *, hidden: bool) -> int:
    total = 0
    for here, directories, files in os.walk(path):
        if not hidden:
            directories[:] = [one for one in directories if not one.startswith(".")]
        for file in files:
            where = os.path.join(here, file)  # noqa: PTH118  # a Path for each of many files is slow
            if (hidden or not file.startswith(".")) and not os.path.islink(where):  # noqa: PTH114
                total += os.path.getsize(where)  # noqa: PTH202
    return total


def _in_memory(data: BytesLike, name: str | None, label: str = "bytes") -> Source:
    view = memoryview(data)
    if not view.c_contiguous:
        view = memoryview(view.tobytes())
    view = view.cast("B")

    async def pieces() -> AsyncGenerator[BytesLike, None]:
        for at in range(0, len(view), CHUNK_BYTES):
            yield bytes(view[at : at + CHUNK_BYTES])

    return Source(name or label, stream=pieces(), size=len(view), name=name or "")


def _image_suffixes() -> dict[str, str]:
    """Suffix to format, of what Pillow can write."""
    from PIL import Image  # noqa: PLC0415  # only who adds images pays for the import

    formats = Image.registered_extensions()
    return {suffix: kind for suffix, kind in formats.items() if kind in Image.SAVE}


def _array_file(array: Any, name: str | None) -> memoryview:
    """A `.npy` file, or the image format that the name ends with."""
    import numpy as np  # noqa: PLC0415  # whoever has an array has imported it

    suffix = PurePath(name or "").suffix.lower()
    if suffix in {"", ".npy"}:
        file = io.BytesIO()
        try:
            # C order, so that equal arrays have one CID however they lie in memory
            np.lib.format.write_array(file, np.asarray(array, order="C"), allow_pickle=False)
        except ValueError:
            raise BadRequestError(
                f"an array of dtype {array.dtype} holds Python objects; give one of numbers, text or records"
            ) from None
        return file.getbuffer()
    if suffix not in _image_suffixes():
        raise BadRequestError(
            f"an array is added as .npy, or as an image such as .png; name={name!r} ends otherwise"
        )
    from PIL import Image  # noqa: PLC0415  # only who adds images pays for the import

    try:
        return _image_file(Image.fromarray(array), name)
    except TypeError:
        raise BadRequestError(
            f"an array of shape {array.shape} and dtype {array.dtype} is not an image;"
            " uint8 of (height, width), (height, width, 3) or (height, width, 4) is, and any shape can be .npy"
        ) from None


def _image_file(image: Any, name: str | None) -> memoryview:
    """The image in the format that the name ends with, PNG where it has no suffix."""
    suffix = PurePath(name or "").suffix.lower() or ".png"
    kind = _image_suffixes().get(suffix)
    if kind is None:
        raise BadRequestError(f"an image cannot be written as {suffix}; .png, .jpg and .webp are usual")
    file = io.BytesIO()
    try:
        image.save(file, format=kind)
    except (OSError, ValueError, KeyError) as error:
        raise BadRequestError(f"this image cannot be written as {suffix}: {error}") from None
    return file.getbuffer()


def _left(file: Any) -> int | None:
    """Bytes from the position of a seekable file to its end."""
    try:
        here = file.tell()
        end = file.seek(0, os.SEEK_END)
        file.seek(here)
    except (AttributeError, OSError, ValueError):
        return None
    return max(0, end - here) if isinstance(end, int) else None


async def _file_stream(file: Any) -> AsyncGenerator[BytesLike, None]:
    if not getattr(file, "readable", lambda: True)():
        raise BadRequestError('the file is open for writing alone; open it to read: open(path, "rb")')
    while data := await to_thread.run_sync(file.read, CHUNK_BYTES, abandon_on_cancel=True):
        yield _bytes(data, 'open the file in binary mode: open(path, "rb")')


async def _iterable_stream(source: Iterable[Any]) -> AsyncGenerator[BytesLike, None]:
    gather = _Gather(source)
    while data := await to_thread.run_sync(gather.some, abandon_on_cancel=True):
        yield data


class _Gather:
    """Takes from an iterable: a visit to a thread for each of many small pieces would cost more than they do."""

    def __init__(self, source: Iterable[Any]) -> None:
        self._iterator = iter(source)
        self._error: BaseException | None = None

    def some(self) -> bytes:
        """The next pieces in one, as many as come at once; b"" at the end. Raises what the iterable does, after what
        it gave before."""
        if self._error is not None:
            raise self._error
        parts, size = [], 0
        until = time.monotonic() + GATHER_SECONDS
        try:
            for data in self._iterator:
                parts.append(
                    bytes(_bytes(data, "an iterable must give bytes"))
                )  # it may use its buffer again
                size += len(parts[-1])
                if size >= GATHER_BYTES or (size and time.monotonic() >= until):
                    break
        except BaseException as error:
            if not size:
                raise
            self._error = error
        return b"".join(parts)


async def _checked(source: AsyncIterable[Any]) -> AsyncGenerator[BytesLike, None]:
    async for data in source:
        yield _bytes(data, "an iterable must give bytes")


def _bytes(data: Any, hint: str) -> BytesLike:
    if not isinstance(data, bytes | bytearray | memoryview):
        raise BadRequestError(f"the source gave {type(data).__name__} and not bytes; {hint}")
    return cast("BytesLike", data)
