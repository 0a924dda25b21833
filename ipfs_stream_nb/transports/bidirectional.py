"""`/ws/bidirectional`: many transfers at once over one socket, none of which holds up another.

Flow is controlled by credit, per transfer and direction: the receiver says how many bytes more it takes. Each
transfer begins with WINDOW bytes of it, named in its first answer. The older clients' commands without an id run one at
a time, with bare frames and no credit but the socket's own backpressure.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.node import Node
from ipfs_stream_nb.content.pipe import Pipe, PipeClosedError
from ipfs_stream_nb.content.resolver import parse_path
from ipfs_stream_nb.content.stream import IPFSContentStream
from ipfs_stream_nb.content.upload_handler import IPFSUploadHandler
from ipfs_stream_nb.errors import BadRequestError, BusyError, IPFSStreamError, RetrievalTimeoutError
from ipfs_stream_nb.security.access import Action
from ipfs_stream_nb.transports.connection import (
    Authorize,
    Connection,
    ConnectionClosedError,
    error_message,
    integer,
    read_json,
)
from ipfs_stream_nb.transports.stream import Download, Part
from ipfs_stream_nb.transports.upload import PROGRESS_SECONDS, UploadLimits, check_room, open_upload

WINDOW: Final = 1 << 20
"""Bytes that may be under way in one transfer, in one direction, before the receiver gives more credit."""
MAX_CREDIT: Final = 1 << 40
CLOSE_SECONDS: Final = 5.0
"""Seconds that transfers have to end once the client has closed."""
MAX_ID: Final = (1 << 32) - 1
COMMANDS: Final = ("get", "add", "end", "pin", "cancel", "credit", "close")
PATH_CHARACTERS: Final = 8192
_FRAME: Final = 65_536
_LEGACY: Final = -1
"""The place of the one transfer without an id."""


@dataclass(frozen=True, slots=True)
class BidirectionalLimits:
    """What a client may do."""

    upload: UploadLimits
    max_transfers: int
    """Transfers at once."""
    stall_timeout: float
    """Seconds that a transfer waits for credit, or for bytes, before it is given up."""


@dataclass(eq=False)
class _Transfer:
    id: int
    kind: str
    task: asyncio.Task[None] | None = None
    credit: int = WINDOW
    """Bytes that the client takes."""
    given: asyncio.Event = field(default_factory=asyncio.Event)
    pipe: Pipe | None = None
    """What the client sends, on its way into the node."""
    cancelled: bool = False
    """Whether the client has said so, and did not just leave."""

    @property
    def answer(self) -> dict[str, Any]:
        """What its messages carry."""
        return {} if self.id == _LEGACY else {"id": self.id}


class BidirectionalConversation:
    """`WS /ws/bidirectional`, for one connection."""

    def __init__(
        self,
        connection: Connection,
        ipfs_api: Node,
        limits: BidirectionalLimits,
        authorize: Authorize,
    ) -> None:
        """`authorize` is asked about each command."""
        self._connection = connection
        self._api = ipfs_api
        self._limits = limits
        self._authorize = authorize
        self._transfers: dict[int, _Transfer] = {}

    async def run(self) -> None:
        """Serve commands until the client closes. What is wrong with one is answered, and disturbs no other."""
        try:
            await self._connection.send_json(
                {
                    "type": "welcome",
                    "message": "IPFS bidirectional streaming connected",
                    "supported_commands": list(COMMANDS),
                    "timestamp": time.time(),
                }
            )
            while True:
                message = await self._connection.receive()
                identifier: int | None = None
                try:
                    if isinstance(message, bytes):
                        await self._frame(message)
                        continue
                    command = read_json(message, "a command")
                    identifier = _id_of(command)
                    if await self._command(command, identifier):
                        break
                except IPFSStreamError as error:
                    self._connection.failed(error)
                    answer = {} if identifier in {None, _LEGACY} else {"id": identifier}
                    await self._connection.send_json(error.to_json() | answer)
            tasks = [transfer.task for transfer in self._transfers.values() if transfer.task is not None]
            if tasks:
                await asyncio.wait(tasks, timeout=CLOSE_SECONDS)
            await self._connection.send_json({"type": "goodbye", "timestamp": time.time()})
            await self._connection.close()
        finally:
            await self._end_all()

    async def _end_all(self) -> None:
        tasks = [transfer.task for transfer in self._transfers.values() if transfer.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # -- what the client says

    async def _command(self, command: dict[str, Any], identifier: int) -> bool:
        """Do one command; whether it is the last."""
        match command.get("command", command.get("type")):
            case "get":
                await self._authorize(Action.READ, _root(command))
                self._start(identifier, "get", self._get(identifier, command))
            case "add":
                await self._authorize(Action.ADD, None)
                self._start(identifier, "add", self._add(identifier, command))
            case "end" | "complete":
                self._of(identifier, "add").end()
            case "pin":
                root = CID.parse(_path(command))
                await self._authorize(Action.PIN, root)
                self._start(identifier, "pin", self._pin(identifier, root))
            case "cancel":
                transfer = self._transfers.get(identifier)
                if transfer is None or transfer.task is None:
                    raise BadRequestError(f"there is no transfer {_shown(identifier)} to cancel")
                transfer.cancelled = True
                transfer.task.cancel()
            case "credit":
                self._take_credit(identifier, command)
            case "close":
                return True
            case other:
                raise BadRequestError(f"{str(other)[:80]!r} is no command; {', '.join(COMMANDS)} are")
        return False

    def _of(self, identifier: int, kind: str) -> Pipe:
        transfer = self._transfers.get(identifier)
        if transfer is None or transfer.kind != kind or transfer.pipe is None:
            raise BadRequestError(f"there is no {kind} {_shown(identifier)} under way")
        return transfer.pipe

    def _take_credit(self, identifier: int, command: dict[str, Any]) -> None:
        more = integer(command, "bytes")
        transfer = self._transfers.get(identifier)
        if more is None:
            raise BadRequestError("credit needs bytes, a whole number")
        if transfer is not None:  # it may have ended while the credit was on its way
            transfer.credit = min(transfer.credit + more, MAX_CREDIT)
            transfer.given.set()

    async def _frame(self, data: bytes) -> None:
        """A binary message: the next bytes of an add."""
        legacy = self._transfers.get(_LEGACY)
        if legacy is not None and legacy.kind == "add":
            await self._into(legacy, memoryview(data))
            return
        if len(data) < 4:
            raise BadRequestError(
                f"a binary message begins with its transfer's id in 4 bytes; this one has {len(data)}"
            )
        identifier = int.from_bytes(data[:4], "big")
        transfer = self._transfers.get(identifier)
        if transfer is None or transfer.pipe is None:
            raise BadRequestError(
                f"there is no add {identifier} under way for the {len(data) - 4} bytes that came"
            )
        await self._into(transfer, memoryview(data)[4:])

    async def _into(self, transfer: _Transfer, data: memoryview) -> None:
        """Hand bytes on. Who keeps to the credit never waits here; who does not holds up this socket."""
        assert transfer.pipe is not None  # noqa: S101  # asked before
        if not data and transfer.id == _LEGACY:
            transfer.pipe.end()
            return
        with suppress(PipeClosedError):  # it has failed, which its own message tells
            await transfer.pipe.write(data)

    # -- transfers

    def _start(self, identifier: int, kind: str, work: Coroutine[Any, Any, None]) -> None:
        refusal: IPFSStreamError | None = None
        if identifier in self._transfers:
            refusal = BadRequestError(
                f"{_shown(identifier)} is in use; an id is free again once it has ended"
            )
        elif len(self._transfers) >= self._limits.max_transfers:
            refusal = BusyError(
                f"{self._limits.max_transfers} transfers run over this connection, which is the limit"
            )
        if refusal is not None:
            work.close()
            raise refusal
        transfer = self._transfers[identifier] = _Transfer(identifier, kind)
        if kind == "add":
            transfer.pipe = Pipe(2 * WINDOW, _FRAME)
        transfer.task = asyncio.create_task(self._run(transfer, work), name=f"{kind} {identifier}")

    async def _run(self, transfer: _Transfer, work: Coroutine[Any, Any, None]) -> None:
        """A transfer from its beginning to its last message; its own errors end it alone."""
        try:
            await work
        except ConnectionClosedError:
            pass
        except asyncio.CancelledError:
            if transfer.cancelled:
                with suppress(ConnectionClosedError):
                    await self._connection.send_json(
                        {"type": "cancelled", **transfer.answer, "timestamp": time.time()}
                    )
        except Exception as error:  # noqa: BLE001  # told to the client, and noted by the connection
            self._connection.failed(error)
            with suppress(ConnectionClosedError):
                await self._connection.send_json(error_message(error) | transfer.answer)
        finally:
            if transfer.pipe is not None:
                transfer.pipe.close()
            del self._transfers[transfer.id]

    async def _get(self, identifier: int, command: dict[str, Any]) -> None:
        transfer = self._transfers[identifier]
        part = Part(integer(command, "offset", default=0) or 0, integer(command, "length"))
        async with IPFSContentStream(self._api, _path(command)) as stream:
            download = await Download.open(stream, part)
            credit = {} if identifier == _LEGACY else {"credit": WINDOW}
            await self._connection.send_json(download.metadata | transfer.answer | credit)
            async with aclosing(download.chunks()) as chunks:
                async for chunk in chunks:
                    await self._send(transfer, chunk)
                    download.bytes_sent += len(chunk)
                    told = download.progress()
                    if told is not None:
                        await self._connection.send_json(told | transfer.answer)
            await self._connection.send_json(
                {"type": "complete", "bytes_sent": download.bytes_sent, "timestamp": time.time()}
                | transfer.answer
            )

    async def _send(self, transfer: _Transfer, chunk: bytes) -> None:
        """Send a chunk, in parts where the credit does not reach."""
        if transfer.id == _LEGACY:
            await self._connection.send_bytes(chunk)
            return
        view = memoryview(chunk)
        while view:
            await self._await_credit(transfer)
            part = view[: transfer.credit]
            transfer.credit -= len(part)
            view = view[len(part) :]
            await self._connection.send_bytes(transfer.id.to_bytes(4, "big"), part)

    async def _await_credit(self, transfer: _Transfer) -> None:
        try:
            async with asyncio.timeout(self._limits.stall_timeout):
                while not transfer.credit:
                    transfer.given.clear()
                    await transfer.given.wait()
        except TimeoutError:
            raise RetrievalTimeoutError(
                f"transfer {transfer.id} got no credit for {self._limits.stall_timeout:g} s"
            ) from None

    async def _add(self, identifier: int, command: dict[str, Any]) -> None:
        transfer = self._transfers[identifier]
        handler = open_upload(self._api, command, self._limits.upload)
        try:
            await handler.start()
            credit = {} if identifier == _LEGACY else {"credit": WINDOW}
            await self._connection.send_json(
                {"type": "ready", "upload_id": handler.upload_id, "offset": handler.bytes_processed}
                | transfer.answer
                | credit
            )
            await self._take_in(transfer, handler)
            result = await handler.finalize()
            await self._connection.send_json(
                {"type": "result", "success": True, **result, "timestamp": time.time()} | transfer.answer
            )
        finally:
            if transfer.cancelled:
                await handler.abort()
            else:
                await handler.suspend()

    async def _take_in(self, transfer: _Transfer, handler: IPFSUploadHandler) -> None:
        """All bytes of an add, giving credit as they are taken."""
        assert transfer.pipe is not None  # noqa: S101  # an add has one
        told, given = time.monotonic(), 0
        while chunk := await self._from_pipe(transfer.pipe):
            check_room(handler, len(chunk), self._limits.upload)
            await handler.add_chunk(chunk)
            given += len(chunk)
            if given >= WINDOW // 2 and transfer.id != _LEGACY:
                await self._connection.send_json({"type": "credit", "bytes": given} | transfer.answer)
                given = 0
            if time.monotonic() - told >= PROGRESS_SECONDS:
                told = time.monotonic()
                await self._connection.send_json(handler.get_progress() | transfer.answer)

    async def _from_pipe(self, pipe: Pipe) -> bytes:
        try:
            async with asyncio.timeout(self._limits.stall_timeout):
                return await pipe.read()
        except TimeoutError:
            raise RetrievalTimeoutError(f"nothing came for {self._limits.stall_timeout:g} s") from None

    async def _pin(self, identifier: int, root: CID) -> None:
        pin = await self._api.pin(root)
        await self._connection.send_json(
            {"type": "pin_result", "success": True, "cid": str(pin.cid), "timestamp": time.time()}
            | self._transfers[identifier].answer
        )


def _id_of(command: dict[str, Any]) -> int:
    """The transfer that a command is about; _LEGACY where it names none. Raises BadRequestError."""
    found = integer(command, "id")
    if found is None:
        return _LEGACY
    if found > MAX_ID:
        raise BadRequestError(f"id is at most {MAX_ID}, so that it fits 4 bytes; {found} does not")
    return found


def _shown(identifier: int) -> str:
    return "without an id" if identifier == _LEGACY else str(identifier)


def _path(command: dict[str, Any]) -> str:
    path = command.get("path", command.get("cid"))
    if not isinstance(path, str) or not path:
        raise BadRequestError("path or cid is missing, or is not text")
    if len(path) > PATH_CHARACTERS:
        raise BadRequestError(f"the path has {len(path)} characters; at most {PATH_CHARACTERS} are taken")
    return path


def _root(command: dict[str, Any]) -> CID:
    return parse_path(_path(command))[0]
