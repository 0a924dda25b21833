"""`/ws/bidirectional`: many transfers at once over one socket, none of which holds up another.

Flow is controlled by credit, per transfer and direction: the receiver says how many bytes more it takes. Each
transfer begins with WINDOW bytes of it, named in its first answer. The older clients' commands without an id run one at
a time, with bare frames and no credit but the socket's own backpressure.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.node import Node
from ipfs_stream_nb.content.pipe import Pipe, PipeClosedError
from ipfs_stream_nb.content.resolver import parse_path
from ipfs_stream_nb.content.stream import IPFSContentStream
from ipfs_stream_nb.content.upload_handler import IPFSUploadHandler
from ipfs_stream_nb.content.uploads import to_the_end
from ipfs_stream_nb.errors import (
    BadRequestError,
    BusyError,
    IPFSStreamError,
    RetrievalTimeoutError,
    TooLargeError,
)
from ipfs_stream_nb.security.access import Action
from ipfs_stream_nb.transports.connection import (
    Authorize,
    Connection,
    ConnectionClosedError,
    content_path,
    error_message,
    integer,
    read_json,
    shown,
)
from ipfs_stream_nb.transports.stream import Ahead, Download, Part
from ipfs_stream_nb.transports.transfer_ids import LEGACY, id_of, shown_id
from ipfs_stream_nb.transports.upload import (
    PROGRESS_SECONDS,
    UploadLimits,
    check_room,
    open_upload,
    patiently,
)
from ipfs_stream_nb.transports.watching import NOBODY, UploadWatch, Watcher

WINDOW: Final = 1 << 20
"""Bytes that may be under way in one transfer, in one direction, before the receiver gives more credit."""
MAX_CREDIT: Final = 1 << 40
CLOSE_SECONDS: Final = 5.0
"""Seconds that transfers have to end once the client has closed."""
COMMANDS: Final = ("get", "add", "end", "pin", "cancel", "credit", "close")
_Message = dict[str, Any]
_FRAME: Final = 65_536


@dataclass(frozen=True, slots=True)
class BidirectionalLimits:
    """What a client may do."""

    upload: UploadLimits
    max_transfers: int
    """Transfers at once."""
    stall_timeout: float
    """Seconds that a transfer waits for credit, or for bytes, before it is given up."""
    add_slot: Callable[[], AbstractContextManager[None]] = nullcontext
    """Held by each add. Raises BusyError where there is none left."""


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
        return {} if self.id == LEGACY else {"id": self.id}


class BidirectionalConversation:
    """`WS /ws/bidirectional`, for one connection."""

    def __init__(
        self,
        connection: Connection,
        ipfs_api: Node,
        limits: BidirectionalLimits,
        authorize: Authorize,
        watcher: Watcher = NOBODY,
    ) -> None:
        """`authorize` is asked about each command; `watcher` is told of gets and adds."""
        self._connection = connection
        self._api = ipfs_api
        self._limits = limits
        self._authorize = authorize
        self._watcher = watcher
        self._transfers: dict[int, _Transfer] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        """Those of transfers, and of ones whose last message is not sent yet."""

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
                        identifier = self._addressee(message)
                        await self._frame(message, identifier)
                        continue
                    command = read_json(message, "a command")
                    identifier = id_of(command)
                    if await self._command(command, identifier):
                        break
                except IPFSStreamError as error:
                    self._connection.failed(error)
                    answer = {} if identifier in {None, LEGACY} else {"id": identifier}
                    await self._connection.send_json(error.to_json() | answer)
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=CLOSE_SECONDS)
            await self._connection.send_json({"type": "goodbye", "timestamp": time.time()})
            await self._connection.close()
        finally:
            await self._end_all()

    async def _end_all(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await to_the_end(asyncio.wait(tasks))

    # -- what the client says

    async def _command(self, command: dict[str, Any], identifier: int) -> bool:
        """Do one command; whether it is the last."""
        match command.get("command", command.get("type")):
            case "get":
                await self._authorize(Action.READ, parse_path(content_path(command))[0])
                await self._start(identifier, "get", self._get(identifier, command))
            case "add":
                await self._authorize(Action.ADD, None)
                await self._start(identifier, "add", self._add(identifier, command))
            case "end" | "complete":
                self._of(identifier, "add").end()
            case "pin":
                root = CID.parse(content_path(command))
                await self._authorize(Action.PIN, root)
                await self._start(identifier, "pin", self._pin(root))
            case "cancel":
                transfer = self._transfers.get(identifier)
                if transfer is None or transfer.task is None:
                    raise BadRequestError(f"there is no transfer {shown_id(identifier)} to cancel")
                if not transfer.cancelled:  # a second one would break off what the first one has begun
                    transfer.cancelled = True
                    transfer.task.cancel()
            case "credit":
                self._take_credit(identifier, command)
            case "close":
                return True
            case other:
                raise BadRequestError(f"{shown(other)} is no command; {', '.join(COMMANDS)} are")
        return False

    def _of(self, identifier: int, kind: str) -> Pipe:
        transfer = self._transfers.get(identifier)
        if transfer is None or transfer.kind != kind or transfer.pipe is None:
            raise BadRequestError(f"there is no {kind} {shown_id(identifier)} under way")
        return transfer.pipe

    def _take_credit(self, identifier: int, command: dict[str, Any]) -> None:
        more = integer(command, "bytes")
        transfer = self._transfers.get(identifier)
        if more is None:
            raise BadRequestError("credit needs bytes, a whole number")
        if transfer is not None:  # it may have ended while the credit was on its way
            transfer.credit = min(transfer.credit + more, MAX_CREDIT)
            transfer.given.set()

    def _addressee(self, data: bytes) -> int:
        """The transfer that a binary message is for. Raises BadRequestError."""
        legacy = self._transfers.get(LEGACY)
        if legacy is not None and legacy.kind == "add":
            return LEGACY
        if len(data) < 4:
            raise BadRequestError(
                f"a binary message begins with its transfer's id in 4 bytes; this one has {len(data)}"
            )
        return int.from_bytes(data[:4], "big")

    async def _frame(self, data: bytes, identifier: int) -> None:
        """A binary message: the next bytes of an add."""
        transfer = self._transfers.get(identifier)
        if transfer is None or transfer.pipe is None:
            raise BadRequestError(
                f"there is no add {identifier} under way for the {len(data) - 4} bytes that came"
            )
        await self._into(transfer, memoryview(data)[0 if identifier == LEGACY else 4 :])

    async def _into(self, transfer: _Transfer, data: memoryview) -> None:
        """Hand bytes on. Who keeps to the credit never waits here; who does not holds up this socket."""
        assert transfer.pipe is not None  # noqa: S101  # asked before
        if not data and transfer.id == LEGACY:
            transfer.pipe.end()
            return
        with suppress(PipeClosedError):  # it has failed, which its own message tells
            await transfer.pipe.write(data)

    # -- transfers

    async def _start(self, identifier: int, kind: str, work: Coroutine[Any, Any, _Message]) -> None:
        most = self._limits.max_transfers
        refusal: IPFSStreamError | None = None
        if identifier in self._transfers:
            refusal = BadRequestError(
                f"a transfer {shown_id(identifier)} is in use; begin another once it has ended"
            )
        elif kind == "add" and any(
            other.kind == "add" and LEGACY in {identifier, other.id} for other in self._transfers.values()
        ):
            refusal = BadRequestError(
                "an add without an id runs alone: its frames could not be told from those of others"
            )
        elif len(self._transfers) >= most or len(self._tasks) >= 2 * most:  # of some the last message is left
            refusal = BusyError(f"{most} transfers run over this connection, which is the limit")
        if refusal is not None:
            work.close()
            raise refusal
        transfer = self._transfers[identifier] = _Transfer(identifier, kind)
        if kind == "add":
            transfer.pipe = Pipe(2 * WINDOW, _FRAME)
        task = transfer.task = asyncio.create_task(self._run(transfer, work), name=f"{kind} {identifier}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.sleep(0)  # so that it is under way: one that never began would never end

    async def _run(self, transfer: _Transfer, work: Coroutine[Any, Any, _Message]) -> None:
        """A transfer from its beginning to its last message; its own errors end it alone.

        Its id is free before that message is sent: whoever has it may use the id again at once.
        """
        last: _Message | None = None
        try:
            last = await work
        except ConnectionClosedError:
            pass
        except asyncio.CancelledError:
            if transfer.cancelled:
                last = {"type": "cancelled"}
        except Exception as error:  # noqa: BLE001  # told to the client, and noted by the connection
            self._connection.failed(error)
            last = error_message(error)
        finally:
            if transfer.pipe is not None:
                transfer.pipe.close()
            del self._transfers[transfer.id]
        if last is not None:
            with suppress(ConnectionClosedError):
                await self._connection.send_json({**last, "timestamp": time.time()} | transfer.answer)

    async def _get(self, identifier: int, command: dict[str, Any]) -> _Message:
        transfer = self._transfers[identifier]
        part = Part(integer(command, "offset", default=0) or 0, integer(command, "length"))
        path = content_path(command)
        async with IPFSContentStream(self._api, path) as stream:
            download = await Download.open(stream, part)
            credit = {} if identifier == LEGACY else {"credit": WINDOW}
            await self._connection.send_json(download.metadata | transfer.answer | credit)

            async def take(batch: list[memoryview]) -> int:
                took = await self._send(transfer, batch)
                download.bytes_sent += took
                told = download.progress()
                if told is not None:
                    await self._connection.send_json(told | transfer.answer)
                return took

            async def ready() -> None:
                await self._connection.drained()
                await self._await_credit(transfer)

            with self._watcher.download(download, path, download.size):
                async with Ahead(download) as ahead:
                    await ahead.send(take, ready)
        return {"type": "complete", "bytes_sent": download.bytes_sent}

    async def _send(self, transfer: _Transfer, batch: list[memoryview]) -> int:
        """Send chunks, as far as the credit reaches and the client reads: how many bytes."""
        if transfer.id == LEGACY:
            return sum(map(len, batch[: await self._connection.send_all(batch)]))
        head, room, frames = transfer.id.to_bytes(4, "big"), transfer.credit, []
        for chunk in batch:
            if room:
                frames.append(b"".join((head, chunk[:room])))
                room -= len(frames[-1]) - len(head)
        sent = sum(len(frame) - len(head) for frame in frames[: await self._connection.send_all(frames)])
        transfer.credit -= sent
        return sent

    async def _await_credit(self, transfer: _Transfer) -> None:
        try:
            async with asyncio.timeout(self._limits.stall_timeout):
                while not transfer.credit and transfer.id != LEGACY:
                    transfer.given.clear()
                    await transfer.given.wait()
        except TimeoutError:
            raise RetrievalTimeoutError(
                f"transfer {transfer.id} got no credit for {self._limits.stall_timeout:g} s"
            ) from None

    async def _add(self, identifier: int, command: dict[str, Any]) -> _Message:
        with self._limits.add_slot():
            return await self._take_file(self._transfers[identifier], command)

    async def _take_file(self, transfer: _Transfer, command: dict[str, Any]) -> _Message:
        handler, watch = open_upload(self._api, command, self._limits.upload), self._watcher.upload()
        try:
            await handler.start()
            credit = {} if transfer.id == LEGACY else {"credit": WINDOW}
            await self._connection.send_json(
                {"type": "ready", "upload_id": handler.upload_id, "offset": handler.bytes_processed}
                | transfer.answer
                | credit
            )
            try:
                await self._take_in(transfer, handler, watch)
            except TooLargeError:
                await handler.abort()
                raise
            result = await handler.finalize()
            watch.progress(handler.get_progress() | {"percent": 100.0})
            return {"type": "result", "success": True, **result}
        except ConnectionClosedError:
            raise
        except Exception as error:
            watch.failed(error)
            raise
        finally:
            if transfer.cancelled:
                await handler.abort()
            else:
                await handler.suspend()

    async def _take_in(self, transfer: _Transfer, handler: IPFSUploadHandler, watch: UploadWatch) -> None:
        """All bytes of an add, giving credit as they are taken; while none come, what came is made durable."""
        pipe = transfer.pipe
        assert pipe is not None  # noqa: S101  # an add has one
        told, given, durable = time.monotonic(), 0, handler.durable

        async def tell() -> None:
            nonlocal told, durable
            told, progress = time.monotonic(), handler.get_progress()
            durable = progress["durable"]
            watch.progress(progress)
            await self._connection.send_json(progress | transfer.answer)

        async def checkpoint() -> None:
            await handler.checkpoint()
            if handler.durable != durable:  # also by a write since: the client may wait for it
                await tell()

        while chunk := await patiently(pipe.read_some, self._limits.stall_timeout, checkpoint):
            check_room(handler, len(chunk), self._limits.upload)
            await handler.add_chunk(chunk)
            given += len(chunk)
            if given >= WINDOW // 2 and transfer.id != LEGACY:
                await self._connection.send_json({"type": "credit", "bytes": given} | transfer.answer)
                given = 0
            if time.monotonic() - told >= PROGRESS_SECONDS:
                await tell()

    async def _pin(self, root: CID) -> _Message:
        return {"type": "pin_result", "success": True, "cid": str((await self._api.pin(root)).cid)}
