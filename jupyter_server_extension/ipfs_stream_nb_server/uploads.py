"""Bodies of POST /ipfs on their way into the node: a file, a tree of files, or a CAR."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

import anyio

from ipfs_stream_nb.content.cid import BytesLike
from ipfs_stream_nb.content.node import Added, CarInfo, Node
from ipfs_stream_nb.errors import BadRequestError, CorruptContentError, TooLargeError
from ipfs_stream_nb_server.limits import STEPS_PER_TURN
from ipfs_stream_nb_server.multipart import MultipartReader, PartBegin, PartData
from ipfs_stream_nb_server.wire import wire

CAR_TYPE: Final = "application/vnd.ipld.car"
FORM_TYPE: Final = "multipart/form-data"
DIRECTORY_TYPE: Final = "application/x-directory"
SYMLINK_TYPE: Final = "application/symlink"
"""Types of parts that Kubo's API uses for what form data has no word for."""
MAX_TARGET: Final = 4096
"""Bytes of a symlink's target."""

T = TypeVar("T")


class CorruptUploadError(CorruptContentError):
    """The body is not what it says that it is: the client's mistake, not the node's."""

    status = 400


@dataclass(frozen=True, slots=True)
class AddOptions:
    """The query of POST /ipfs."""

    pin: bool = True
    name: str = ""
    profile: str | None = None
    wrap: bool = False


class Upload(Protocol):
    """One body; pushed in, so that what reads it can hold up the connection."""

    async def take(self, data: bytes) -> None:
        """The next bytes; returns when there is room for more."""

    async def finish(self) -> dict[str, Any]:
        """The body is whole: commit it and give the answer."""

    async def abort(self) -> None:
        """It will not be whole: nothing of it is pinned. Idempotent."""


def begin_upload(node: Node, content_type: str, options: AddOptions) -> Upload:
    """The upload for a Content-Type. Raises BadRequestError."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == CAR_TYPE:
        return CarUpload(node, options)
    if kind == FORM_TYPE:
        return FormUpload(node, MultipartReader(content_type), options)
    if options.wrap and not options.name:
        raise BadRequestError("wrap=1 needs name=…, the file's name in the directory around it")
    return TreeUpload(node, options) if options.wrap else FileUpload(node, options)


class FileUpload:
    """The body is a file."""

    def __init__(self, node: Node, options: AddOptions) -> None:
        self._writer = node.writer(profile=options.profile)
        self._options = options

    async def take(self, data: bytes) -> None:
        await self._writer.write(data)

    async def finish(self) -> dict[str, Any]:
        return answer(await self._writer.finish(pin=self._options.pin, name=self._options.name))

    async def abort(self) -> None:
        await self._writer.abort()


class Feed(Generic[T]):
    """Runs something that pulls bytes while they are pushed; `put` returns when a piece was taken."""

    def __init__(self, consume: Callable[[AsyncIterator[BytesLike]], Coroutine[Any, Any, T]]) -> None:
        self._send, self._receive = anyio.create_memory_object_stream[BytesLike](0)
        self._task = asyncio.create_task(self._run(consume))

    async def _run(self, consume: Callable[..., Coroutine[Any, Any, T]]) -> T:
        with self._receive:
            return await consume(self._receive)

    async def put(self, data: BytesLike) -> None:
        """Hand over a piece. Raises what the consumer ended with."""
        try:
            await self._send.send(data)
        except anyio.BrokenResourceError:
            await self._task

    async def finish(self) -> T:
        """There is no more: the consumer's result."""
        self._send.close()
        return await self._task

    async def abort(self) -> None:
        """Cancel the consumer and wait until it has cleaned up."""
        self._send.close()
        self._receive.close()
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.exception()


class CarUpload:
    """The body is a CAR."""

    def __init__(self, node: Node, options: AddOptions) -> None:
        if options.wrap or options.profile:
            raise BadRequestError("wrap and profile are for files; a CAR's blocks stay as they are")

        async def consume(source: AsyncIterator[BytesLike]) -> CarInfo:
            try:
                return await node.import_car(source, pin=options.pin)
            except CorruptContentError as error:
                raise CorruptUploadError(str(error)) from error

        self._feed = Feed(consume)

    async def take(self, data: bytes) -> None:
        await self._feed.put(data)

    async def finish(self) -> dict[str, Any]:
        info = wire(await self._feed.finish())
        return {"cid": info["roots"][0] if info["roots"] else None, **info}

    async def abort(self) -> None:
        await self._feed.abort()


class TreeUpload:
    """The body is one file, in a directory around it."""

    def __init__(self, node: Node, options: AddOptions) -> None:
        self._tree = node.tree_writer(profile=options.profile)
        self._options = options
        self._feed = Feed(lambda source: self._tree.add_file(options.name, source))

    async def take(self, data: bytes) -> None:
        await self._feed.put(data)

    async def finish(self) -> dict[str, Any]:
        entry = await self._feed.finish()
        return answer(await self._tree.finish(pin=self._options.pin, name=self._options.name), [entry])

    async def abort(self) -> None:
        await self._feed.abort()
        await self._tree.abort()


class FormUpload:
    """The body is multipart/form-data: a part for each file, named by its path relative to the directory.

    A lone part whose name has no `/` is a plain file, unless `wrap` asks for a directory around it.
    """

    def __init__(self, node: Node, reader: MultipartReader, options: AddOptions) -> None:
        self._reader = reader
        self._options = options
        self._tree = node.tree_writer(profile=options.profile)
        self._part: PartBegin | None = None
        self._feed: Feed[Added] | None = None
        self._target = bytearray()
        self._entries: list[Added] = []
        self._steps = 0

    async def take(self, data: bytes) -> None:
        for event in self._reader.feed(data):
            self._steps += 1
            if not self._steps % STEPS_PER_TURN:
                await asyncio.sleep(0)
            if isinstance(event, PartBegin):
                self._begin(event)
            elif isinstance(event, PartData):
                await self._data(event.data)
            else:
                await self._end()

    def _begin(self, part: PartBegin) -> None:
        self._part = part
        if part.content_type == DIRECTORY_TYPE:
            self._tree.add_directory(part.name)
        elif part.content_type != SYMLINK_TYPE:
            self._feed = Feed(lambda source: self._tree.add_file(part.name, source))

    async def _data(self, data: memoryview) -> None:
        if self._feed is not None:
            await self._feed.put(data)
            return
        self._target += data
        if len(self._target) > MAX_TARGET:
            raise TooLargeError(f"a directory or symlink part has over {MAX_TARGET} bytes")

    async def _end(self) -> None:
        if self._feed is not None:
            self._entries.append(await self._feed.finish())
            self._feed = None
        elif self._part is not None and self._part.content_type == SYMLINK_TYPE:
            try:
                target = self._target.decode()
            except UnicodeDecodeError:
                raise BadRequestError(f"the target of symlink {self._part.name!r} is not UTF-8") from None
            await self._tree.add_symlink(self._part.name, target)
        self._target.clear()

    async def finish(self) -> dict[str, Any]:
        self._reader.finish()
        if self._part is None and not self._options.wrap:
            raise BadRequestError("the form has no file")
        name = self._options.name
        if not name and not self._options.wrap and len(self._entries) == 1:
            name = self._entries[0].name
        added = await self._tree.finish(pin=self._options.pin, name=name, wrap=self._options.wrap)
        return answer(added, self._entries)

    async def abort(self) -> None:
        if self._feed is not None:
            await self._feed.abort()
        await self._tree.abort()


def answer(added: Added, entries: list[Added] | None = None) -> dict[str, Any]:
    """The answer of POST /ipfs: the root, and what is in it where it was a form, for `json_text`."""
    found: dict[str, Any] = wire(added)
    if entries is not None:
        found["entries"] = entries
    return found
