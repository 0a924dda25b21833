"""Many transfers at once over one socket: `client.bidirectional()`."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, Self

from ipfs_stream_nb.clients.http import ServerHTTP
from ipfs_stream_nb.clients.naming import Content
from ipfs_stream_nb.clients.progress import Progress
from ipfs_stream_nb.clients.reading import at, file_at
from ipfs_stream_nb.clients.results import hinted_methods
from ipfs_stream_nb.clients.transfer_socket import DroppedError, Socket, both_ways
from ipfs_stream_nb.clients.transfer_source import Replay, open_replay
from ipfs_stream_nb.clients.transfer_stream import ContentStream, OpenStreams, Part
from ipfs_stream_nb.clients.transfer_upload import added, check_whole
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.node import Added, Node
from ipfs_stream_nb.content.resolver import parse_path
from ipfs_stream_nb.errors import (
    BadRequestError,
    BusyError,
    IPFSStreamError,
    IsDirectoryError,
    RetrievalError,
    error_from_json,
)

FRAME: Final = 128 * 1024
"""Bytes of an add's message at the most: small enough that no transfer waits long for another's."""
MAX_TEXT: Final = 60_000
"""Characters of a command at the most."""
BUSY_SECONDS: Final = 0.2
"""Seconds after which a transfer that the server had no room for is asked for again, where none ended before."""
BUSY_TRIES: Final = 10
"""How often that is done where no other transfer runs."""
GOODBYE_SECONDS: Final = 5.0
"""Seconds that the server has to say goodbye."""


class _Transfer:
    """What comes for one id, in order, until its last message."""

    def __init__(self, id: int) -> None:
        self.id = id
        self.over = False
        self._items: deque[bytes | dict[str, Any] | Exception] = deque()
        self._arrived = asyncio.Event()
        self.credit = 0
        """Bytes that the other side takes of us."""
        self.granted = 0
        """Bytes that we take of it, and that have not come: so many are held here at the most."""
        self.given = asyncio.Event()

    def put(self, item: bytes | dict[str, Any] | Exception) -> None:
        """Something has come. Never waits."""
        if isinstance(item, bytes):
            self.granted -= len(item)
            if self.granted < 0:
                item = RetrievalError("the server sent more than it was given credit for")
        elif isinstance(item, dict):
            self._read(item)
            if item.get("type") == "credit":
                return
        else:
            self.over = True
        if self.over:
            self.given.set()
        self._items.append(item)
        self._arrived.set()

    def _read(self, message: dict[str, Any]) -> None:
        """What a message says about the transfer as such."""
        match message.get("type"):
            case "metadata":
                self.granted += int(message.get("credit", 0))
            case "ready":
                self.credit += int(message.get("credit", 0))
            case "credit":
                self.credit += int(message["bytes"])
                self.given.set()
            case "complete" | "result" | "pin_result" | "cancelled" | "error":
                self.over = True

    async def next(self) -> bytes | dict[str, Any]:
        """The next item. Raises the error that ended the transfer."""
        while not self._items:
            self._arrived.clear()
            await self._arrived.wait()
        item = self._items.popleft()
        if isinstance(item, Exception):
            raise item
        if isinstance(item, dict) and item.get("type") == "error":
            raise error_from_json(item)
        return item

    async def message(self) -> dict[str, Any]:
        """The next item, which is to be a message."""
        item = await self.next()
        if isinstance(item, bytes):
            raise RetrievalError("the server sent bytes where a message was due")
        return item


@hinted_methods
class Link:
    """One socket for any number of gets, adds and pins at once: `async with client.bidirectional() as link:`.

    A get that nobody reads on holds up nothing else. Leaving the block cancels what still runs. Where the connection
    is lost, all that run raise RetrievalError, and the link is over: it does not connect again by itself.
    """

    def __init__(self, http: ServerHTTP, node: Node) -> None:
        self._http = http
        self._node = node
        self._socket: Socket | None = None
        self._listener: asyncio.Task[None] | None = None
        self._transfers: dict[int, _Transfer] = {}
        self._last_id = 0
        self._freed = asyncio.Event()
        """Set whenever a transfer has ended."""
        self._end: IPFSStreamError | None = None
        self._goodbye = asyncio.Event()
        self._gets = OpenStreams()

    async def __aenter__(self) -> Self:
        if self._socket is not None or self._end is not None:
            raise BadRequestError("a link is used once; client.bidirectional() gives another")
        try:
            self._socket = await Socket.open(self._http, "ws", "bidirectional")
        except DroppedError as error:
            raise RetrievalError(str(error)) from None
        self._listener = asyncio.create_task(self._listen(self._socket), name="listen to a link")
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Cancel what runs, and end the connection. Idempotent."""
        socket, self._socket = self._socket, None
        if socket is None or self._listener is None:
            return
        try:
            running = list(self._transfers)
            self._fail(BadRequestError("the link is closed; client.bidirectional() gives another"))
            with suppress(DroppedError, TimeoutError):
                async with asyncio.timeout(GOODBYE_SECONDS):
                    for one in running:
                        await socket.send_json({"command": "cancel", "id": one})
                    await socket.send_json({"command": "close"})
                    await self._goodbye.wait()
                    await socket.close()
        finally:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
            await self._gets.aclose()
            await socket.abort()

    # -- what is asked for

    def get(self, content: Content, offset: int = 0, length: int | None = None) -> ContentStream:
        """A file's bytes from `offset`, at most `length`: `async for chunk in link.get(cid)`.

        Nothing is fetched before the first chunk is asked for, and at most a MiB beyond what was taken. Raises
        NotFoundError, IsDirectoryError, BadRequestError, RetrievalError, and RetrievalTimeoutError where nothing
        was taken for as long as the server waits.
        """
        part = Part.of(offset, length)
        return self._gets.add(ContentStream(self._get(content, part), part))

    async def _get(self, content: Content, part: Part) -> AsyncGenerator[bytes, None]:
        async with at(self._node, content) as path:
            where = path
            while True:
                wanted = {"offset": part.offset} | ({} if part.length is None else {"length": part.length})
                try:
                    async with self._begun({"command": "get", "path": _text(where), **wanted}) as (
                        transfer,
                        first,
                    ):
                        part.begin(first)
                        yield b""
                        window, taken = int(first["credit"]), 0
                        while not part.complete:
                            item = await transfer.next()
                            if isinstance(item, dict):
                                if item.get("type") == "complete":
                                    part.end()
                                continue
                            yield part.take(item)
                            taken += len(item)
                            if taken >= window // 2 and not transfer.over:
                                transfer.granted += taken
                                await self._send({"command": "credit", "id": transfer.id, "bytes": taken})
                                taken = 0
                    return
                except IsDirectoryError:
                    # raises for a directory; a symlink is followed
                    found, _ = await file_at(self._node, path)
                    if found == where:
                        raise
                    where = found

    async def add(
        self, source: Any, *, name: str | None = None, profile: str | None = None, progress: Any = None
    ) -> Added:
        """Add one file, pin it and give its CID, which is the one that `ipfs add` gives with the same profile.

        `source`, `name`, `profile` and `progress` are those of `client.add`, but for directories. Raises
        NotFoundError, BadRequestError, QuotaExceededError, TooLargeError, and RetrievalError where the connection is
        lost: it names the upload_id by which `client.upload` goes on.
        """
        with Progress.of(progress) as shown:
            replay = await open_replay(source, name)
            try:
                shown.begin(f"add {replay.label}", replay.size)
                return await self._add(replay, profile, shown)
            finally:
                await replay.close()

    async def _add(self, source: Replay, profile: str | None, shown: Progress) -> Added:
        facts = {"filename": source.name, "size": source.size, "cid_profile": profile}
        known = {key: value for key, value in facts.items() if value is not None and value != ""}
        async with self._begun({"command": "add", **known}) as (transfer, ready):
            try:
                return await both_ways(
                    self._result(transfer, source, shown), self._send_all(transfer, source)
                )
            except RetrievalError as error:
                if ready.get("upload_id") is None or self._end is None:
                    raise
                raise RetrievalError(
                    f"{error}; to go on with it: client.upload(…, upload_id={ready['upload_id']!r})"
                ) from None

    async def _result(self, transfer: _Transfer, source: Replay, shown: Progress) -> Added:
        while True:
            message = await transfer.message()
            if message.get("type") == "result":
                result = added(message, source.name)
                shown.reach(result.size, result.size)
                return result
            if message.get("type") == "progress":
                done = int(message["bytes_processed"])
                source.release(done)
                shown.reach(done, source.size)

    async def _send_all(self, transfer: _Transfer, source: Replay) -> None:
        offset, head = 0, transfer.id.to_bytes(4, "big")
        while data := await source.read(offset, FRAME):
            view = memoryview(data)
            offset += len(view)
            while view:
                while not transfer.credit and not transfer.over:
                    transfer.given.clear()
                    await transfer.given.wait()
                if transfer.over:
                    return
                part = view[: transfer.credit]
                transfer.credit -= len(part)
                view = view[len(part) :]
                await self._send_message(head + part)
            source.release(offset)
        check_whole(source, offset)
        await self._send({"command": "end", "id": transfer.id})

    async def pin(self, content: Content) -> CID:
        """Keep content and everything below it; gives its CID. Raises NotFoundError, RetrievalError."""
        async with at(self._node, content) as path:
            root, names = parse_path(path)
            cid = (await self._node.stat(path)).cid if names else root
            async with self._begun({"command": "pin", "cid": str(cid)}) as (_, answer):
                return CID.parse(str(answer["cid"]))

    # -- the wire

    @asynccontextmanager
    async def _begun(self, command: dict[str, Any]) -> AsyncGenerator[tuple[_Transfer, dict[str, Any]], None]:
        """A transfer and its first answer, for a `with` block; it is cancelled where that ends before it.

        Where the server takes no more at once, the end of another is waited for.
        """
        transfer, first = await self._begin(command)
        try:
            yield transfer, first
        finally:
            await self._leave(transfer)

    async def _begin(self, command: dict[str, Any]) -> tuple[_Transfer, dict[str, Any]]:
        refused = 0
        while True:
            self._freed.clear()
            transfer = self._register()
            try:
                await self._send({**command, "id": transfer.id})
                return transfer, await transfer.message()
            except BusyError:
                del self._transfers[transfer.id]
                refused = 0 if self._transfers else refused + 1
                if refused > BUSY_TRIES:
                    raise
            except BaseException:
                await self._leave(transfer)
                raise
            with suppress(TimeoutError):  # the event may have been taken by another that waits
                async with asyncio.timeout(BUSY_SECONDS):
                    await self._freed.wait()

    def _register(self) -> _Transfer:
        self._check_open()
        self._last_id += 1
        transfer = self._transfers[self._last_id] = _Transfer(self._last_id)
        return transfer

    async def _leave(self, transfer: _Transfer) -> None:
        if self._transfers.pop(transfer.id, None) is not None and not transfer.over:
            with suppress(IPFSStreamError):
                await self._send({"command": "cancel", "id": transfer.id})
        self._freed.set()

    def _check_open(self) -> Socket:
        if self._end is not None:
            raise type(self._end)(str(self._end))
        if self._socket is None:
            raise BadRequestError("the link is not open: async with client.bidirectional() as link")
        return self._socket

    async def _send(self, command: dict[str, Any]) -> None:
        text = json.dumps(command)
        if len(text) > MAX_TEXT:
            raise BadRequestError(f"a path or name is too long: the command has {len(text)} characters")
        await self._send_message(text)

    async def _send_message(self, message: str | bytes) -> None:
        try:
            await self._check_open().send(message)
        except DroppedError as error:
            self._fail(RetrievalError(str(error)))
            self._check_open()

    async def _listen(self, socket: Socket) -> None:
        """Hand out what comes; waits for no transfer."""
        try:
            while True:
                message = await socket.receive()
                if isinstance(message, bytes):
                    transfer = self._transfers.get(int.from_bytes(message[:4], "big"))
                    if transfer is not None:
                        transfer.put(message[4:])
                    continue
                told = json.loads(message)
                if told.get("type") == "goodbye":
                    self._goodbye.set()
                elif told.get("id") in self._transfers:  # else it is of one that has ended here
                    self._transfers[told["id"]].put(told)
        except DroppedError as error:
            self._fail(RetrievalError(str(error)))
        except (ValueError, AttributeError, KeyError, TypeError):
            self._fail(RetrievalError("the server sent what is no message of an ipfs_stream_nb server"))
        finally:
            self._goodbye.set()

    def _fail(self, error: IPFSStreamError) -> None:
        """End all transfers."""
        self._end = self._end or error
        self._freed.set()
        for transfer in self._transfers.values():
            transfer.put(type(self._end)(str(self._end)))


def _text(path: str | CID) -> str:
    cid, names = parse_path(path)
    return "/".join([str(cid), *names])
