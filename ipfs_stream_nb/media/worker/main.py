"""The worker's own side: `python -m ipfs_stream_nb.media.worker.main <parent's pid> <limits as JSON>`; its socket is
descriptor 0.

The main thread reads messages; each cursor works in a thread of its own, so that one that waits for far bytes holds up no
other. PyAV lets go of the interpreter's lock while it works.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import socket
import sys
import threading
import time
import traceback
from concurrent.futures import Future
from typing import Any

from ipfs_stream_nb.errors import (
    CorruptContentError,
    IPFSStreamError,
    TooLargeError,
    error_from_json,
)
from ipfs_stream_nb.media.encoded import Aim, EncodedPacket
from ipfs_stream_nb.media.worker import sandbox
from ipfs_stream_nb.media.worker.limits import WorkerLimits
from ipfs_stream_nb.media.worker.order import Order
from ipfs_stream_nb.media.worker.protocol import (
    COUNT,
    HEADER,
    MAX_BATCH,
    MAX_PACKET,
    MORE,
    READ,
    Kind,
    error_body,
    message,
    pack,
    to_json,
)
from ipfs_stream_nb.media.worker.remote import Blocks, StoppedError

BATCH_BYTES = 64 * 1024
BATCH_PACKETS = 64
BATCH_SECONDS = 0.005
"""Packets go out together as long as they come that quickly."""
ALIVE_SECONDS = 1.0
"""Between two signs of life."""


class Wire:
    """The socket to the parent."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(True)
        self._file = self._socket.makefile("rb")
        self._sending = threading.Lock()
        self._reads: dict[int, Future[bytes]] = {}
        self._number = 0
        self._lock = threading.Lock()

    def send(self, kind: Kind, number: int = 0, body: bytes = b"") -> None:
        data = message(kind, number, body)
        with self._sending:
            self._socket.sendall(data)

    def receive(self) -> tuple[Kind, int, bytes]:
        """The next message that is no answer to a read; SystemExit at the end."""
        while True:
            head = self._file.read(HEADER.size)
            if len(head) < HEADER.size:
                raise SystemExit(0)
            size, kind, number = HEADER.unpack(head)
            body = self._file.read(size)
            if kind not in (Kind.BYTES, Kind.NO_BYTES):
                return Kind(kind), number, body
            with self._lock:
                future = self._reads.pop(number)
            if kind == Kind.BYTES:
                future.set_result(body)
            else:
                future.set_exception(error_from_json(json.loads(body)))

    def fetch(self, offset: int, length: int) -> Future[bytes]:
        """Ask for bytes of the content."""
        future: Future[bytes] = Future()
        with self._lock:
            self._number += 1
            number = self._number
            self._reads[number] = future
        self.send(Kind.READ, number, READ.pack(offset, length))
        return future


class Cursor:
    """One place of the content that is read on, in a thread."""

    def __init__(self, number: int, order: Order, content: Any, wire: Wire) -> None:
        self._number, self._order, self._content, self._wire = number, order, content, wire
        self._stopped = threading.Event()
        self._asked: queue.SimpleQueue[tuple[float, int, int, float] | None] = queue.SimpleQueue()
        self._told = time.monotonic()
        threading.Thread(target=self._live, daemon=True).start()

    def more(self, until: float, most: int, bitrate: int, frame_rate: float) -> None:
        """Go on until a time (s), for at most so many bytes, at what the network carries."""
        self._asked.put((until, most, bitrate, frame_rate))

    def stop(self) -> None:
        """End the thread soon."""
        self._stopped.set()
        self._asked.put(None)

    def _live(self) -> None:
        self._run()
        gc.collect()  # PyAV's containers and streams hold each other, with the threads of their decoders

    def _run(self) -> None:
        try:
            with self._content.making(self._order, self._stopped, self._alive) as making:
                while (asked := self._asked.get()) is not None:
                    until, most, bitrate, frame_rate = asked
                    if (aim := self._order.aim) is not None and bitrate:
                        aim.bitrate, aim.frame_rate = bitrate, frame_rate or None
                    making.resume()
                    ended = self._make(making.packets, until, most)
                    self._wire.send(
                        Kind.ENDED if ended else Kind.PAUSED, self._number, COUNT.pack(making.damaged)
                    )
                    if ended:
                        return
        except StoppedError:
            pass
        except BaseException as error:  # noqa: BLE001 - the thread's last words
            self._wire.send(Kind.FAILED, self._number, error_body(as_ours(error)))

    def _make(self, packets: Any, until: float, most: int) -> bool:
        """Send packets; whether they ended."""
        batch: list[EncodedPacket] = []
        size = total = 0
        since = time.monotonic()
        ended = True
        for count, packet in enumerate(packets, 1):
            if len(packet.data) > MAX_PACKET:
                raise TooLargeError(f"The content has a packet of more than {MAX_PACKET:,} bytes.")
            self._alive()
            batch.append(packet)
            size += len(packet.data)
            done = packet.time >= until or total + size >= most or count >= MAX_BATCH
            late = time.monotonic() - since > BATCH_SECONDS
            if done or late or size >= BATCH_BYTES or len(batch) >= BATCH_PACKETS:
                self._wire.send(Kind.PACKETS, self._number, pack(batch))
                total, size, batch, since = total + size, 0, [], time.monotonic()
            if done:
                ended = False
                break
        if batch:
            self._wire.send(Kind.PACKETS, self._number, pack(batch))
        return ended

    def _alive(self) -> None:
        """Say so once a second, and end where the cursor is stopped."""
        if self._stopped.is_set():
            raise StoppedError
        now = time.monotonic()
        if now - self._told > ALIVE_SECONDS:
            self._told = now
            self._wire.send(Kind.ALIVE, self._number)


def as_ours(error: BaseException) -> IPFSStreamError:
    """Any error as one of ours, which can be told."""
    if isinstance(error, IPFSStreamError):
        return error
    if isinstance(error, MemoryError):
        return TooLargeError("There is not enough memory to decode the content.")
    return CorruptContentError(
        f"The content could not be made ready to play: it is damaged, or of a rare kind ({type(error).__name__})."
    )


def serve(wire: Wire, limits: WorkerLimits) -> None:
    """Answer the parent until it hangs up."""
    from ipfs_stream_nb.media.reader import MediaLimits  # noqa: PLC0415
    from ipfs_stream_nb.media.worker.content import Content  # noqa: PLC0415

    cursors: dict[int, Cursor] = {}
    content: Content | None = None
    while True:
        kind, number, body = wire.receive()
        if kind == Kind.OPEN:
            blocks = Blocks(wire.fetch, json.loads(body)["size"], limits.block_cache_bytes)
            media = MediaLimits(
                max_video_pixels=limits.max_video_pixels,
                max_pixels=limits.max_video_pixels,
                stall_seconds=limits.stall_seconds,
            )
            content = Content(blocks, media, limits.threads)
            threading.Thread(target=_probe, args=(content, wire), daemon=True).start()
        elif kind == Kind.START:
            cursors[number] = Cursor(number, _order(json.loads(body)), content, wire)
        elif number in cursors:
            if kind == Kind.MORE:
                cursors[number].more(*MORE.unpack(body))
            elif kind == Kind.STOP:
                cursors.pop(number).stop()


def _order(body: dict[str, Any]) -> Order:
    aim = body.pop("aim")
    return Order(**body, aim=Aim(**aim) if aim else None)


def _probe(content: Any, wire: Wire) -> None:
    try:
        info = content.probe(lambda: None)
    except BaseException as error:  # noqa: BLE001 - the thread's last words
        wire.send(Kind.FAILED, 0, error_body(as_ours(error)))
    else:
        wire.send(Kind.INFO, 0, to_json(info.to_json()))


def main() -> None:
    """Run the worker."""
    limits = WorkerLimits(**json.loads(sys.argv[2]))
    sandbox.settle(int(sys.argv[1]), limits.nice)
    wire = Wire(0)
    from ipfs_stream_nb.media.worker.warming import rehearse  # noqa: PLC0415 - only now that it gives way

    rehearse()
    gc.collect()
    gc.freeze()  # what is here stays, and need not be looked through
    filtered = sandbox.shut(limits.memory_bytes, limits.cpu_seconds)
    wire.send(Kind.READY, 0, to_json({"filtered": filtered}))
    serve(wire, limits)


if __name__ == "__main__":
    try:
        main()
    except (SystemExit, BrokenPipeError, ConnectionResetError):
        pass
    except BaseException:  # noqa: BLE001 - to the server's log
        traceback.print_exc()
    os._exit(0)  # threads in the middle of decoding are not waited for
