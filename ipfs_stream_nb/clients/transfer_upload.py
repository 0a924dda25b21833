"""A file on its way to the server, over as many connections as it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from ipfs_stream_nb.clients.http import ServerHTTP
from ipfs_stream_nb.clients.progress import Progress
from ipfs_stream_nb.clients.reading import whole
from ipfs_stream_nb.clients.transfer_socket import DroppedError, Patience, Socket, both_ways
from ipfs_stream_nb.clients.transfer_source import Replay
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.node import Added
from ipfs_stream_nb.errors import (
    BadRequestError,
    BusyError,
    IPFSStreamError,
    NotFoundError,
    RetrievalError,
    RetrievalTimeoutError,
    TooLargeError,
)

FRAME: Final = 1024 * 1024
"""Bytes of one message, unless told otherwise."""
SMALLEST_FRAME: Final = 16 * 1024
"""Bytes below which messages are not made smaller where connections take none."""
READ_BYTES: Final = 256 * 1024
"""Bytes that are read at once, where messages are smaller."""


class Upload:
    """One upload. It is gone on with from the server's last durable byte, here or in another process."""

    def __init__(
        self,
        http: ServerHTTP,
        *,
        pin: bool = True,
        profile: str | None = None,
        upload_id: str | None = None,
        frame_size: int = FRAME,
        on_upload_id: Callable[[str], object] | None = None,
    ) -> None:
        """`on_upload_id` is called once the server has given the id. Raises BadRequestError for a frame_size below 1 byte."""
        if whole("frame_size", frame_size) < 1:
            raise BadRequestError(f"frame_size={frame_size}: a message has 1 byte at least")
        self.upload_id = upload_id
        self.durable = 0
        """Bytes that the server has on its disk."""
        self._on_upload_id = on_upload_id
        self._http = http
        self._facts = {"pin": pin} | ({"cid_profile": profile} if profile else {})
        self._frame = whole("frame_size", frame_size)
        self._patience = Patience()
        if upload_id is not None:
            self._patience.met()  # it may be just starting again
        self._ready = False
        """Whether this connection has come as far as to send bytes."""

    async def run(self, source: Replay, shown: Progress) -> Added:
        """Send all of it. Raises as the server tells, with the upload_id where it can be gone on with."""
        try:
            while True:
                try:
                    return await self._connect(source, shown)
                except (DroppedError, BusyError, RetrievalError, RetrievalTimeoutError) as error:
                    # a busy server is met before `ready`; after it, somebody else goes on with this upload
                    if isinstance(error, BusyError if self._ready else RetrievalError):
                        raise
                    if await self._patience.wait(error) > 1:
                        self._frame = min(self._frame, max(self._frame // 4, SMALLEST_FRAME))
        except (NotFoundError, TooLargeError):
            raise
        except IPFSStreamError as error:
            raise self.named(error) from error.__cause__
        except BaseException as error:
            self.note(error)
            raise

    def named(self, error: IPFSStreamError) -> IPFSStreamError:
        """The same error, telling how to go on."""
        return error if self.upload_id is None else type(error)(f"{error}; {self._hint}")

    def note(self, error: BaseException) -> None:
        """Tell on an error that is not ours how to go on."""
        if self.upload_id is not None and self._hint not in getattr(error, "__notes__", ()):
            error.add_note(self._hint)

    @property
    def _hint(self) -> str:
        return f"to go on with it: client.upload(…, upload_id={self.upload_id!r})"

    async def _connect(self, source: Replay, shown: Progress) -> Added:
        """One connection. Raises DroppedError where another is due."""
        self._ready = False
        socket = await Socket.open(self._http, "ws", "upload")
        try:
            facts = {"filename": source.name, "size": source.size, "upload_id": self.upload_id}
            known = {name: value for name, value in facts.items() if value is not None and value != ""}
            await socket.send_json({"type": "metadata", **known, **self._facts})
            ready = await self._begin(socket, source)
            self._ready = True
            shown.reach(ready, source.size)
            result = await both_ways(self._listen(socket, source, shown), self._send(socket, source, ready))
            await socket.close()
            return result
        finally:
            await socket.abort()

    async def _begin(self, socket: Socket, source: Replay) -> int:
        """The offset from which the server wants bytes."""
        ready = await socket.receive_json()
        self._patience.met()
        if ready.get("type") != "ready":
            raise RetrievalError(f"the server sent {str(ready.get('type'))[:80]!r} where `ready` was due")
        offset, self.upload_id = int(ready["offset"]), ready.get("upload_id")
        tell, self._on_upload_id = self._on_upload_id, None
        if tell is not None and self.upload_id is not None:
            tell(self.upload_id)
        if source.size is not None and offset > source.size:
            raise BadRequestError(
                f"{source.label} has {source.size} bytes, and the server has {offset} of this upload: it is another file"
            )
        self._keep(source, offset)
        return offset

    def _keep(self, source: Replay, durable: int) -> None:
        """The server has so much for good."""
        if durable > self.durable:
            self.durable = durable
            self._patience.progressed()
        source.release(durable)

    async def _listen(self, socket: Socket, source: Replay, shown: Progress) -> Added:
        while True:
            message = await socket.receive_json()
            match message.get("type"):
                case "progress":
                    done = int(message["bytes_processed"])
                    # what cannot be resumed is let go of as soon as it is taken
                    self._keep(source, int(message["durable"]) if self.upload_id else done)
                    shown.reach(done, source.size)
                case "result":
                    result = added(message, source.name)
                    shown.reach(result.size, result.size)
                    return result

    async def _send(self, socket: Socket, source: Replay, offset: int) -> None:
        while data := await source.read(offset, max(self._frame, READ_BYTES)):
            view = memoryview(data)
            for at in range(0, len(view), self._frame):
                await socket.send(view[at : at + self._frame])
            offset += len(view)
        check_whole(source, offset)
        await socket.send_json({"type": "complete"})


def check_whole(source: Replay, offset: int) -> None:
    """Raise BadRequestError where the source ended before the size that it had at first."""
    if source.size is not None and offset < source.size:
        raise BadRequestError(
            f"{source.label} ended after {offset} of {source.size} bytes: it became shorter meanwhile"
        )


def added(result: dict[str, Any], name: str) -> Added:
    """What a `result` tells. An older server does not tell the size with blocks."""
    size = int(result["size"])
    return Added(CID.parse(str(result["cid"])), size, int(result.get("dag_size", size)), name)
