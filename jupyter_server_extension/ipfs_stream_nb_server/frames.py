"""WebSocket frames on their way into a socket: many in one system call, from where their payload lies.

Nothing is copied into a buffer of Tornado's but the rest of a message that the socket does not take whole. It is done on the event loop, so
that no other frame can come in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Final

from tornado.iostream import IOStream
from tornado.websocket import WebSocketClosedError

from ipfs_stream_nb.content.cid import BytesLike
from ipfs_stream_nb.notifications.packs import Pack

LOOPBACK_BUFFER: Final = 1 << 20
"""Bytes of the socket's buffer for a client on this machine, so that one call takes a whole batch; elsewhere the system
finds the right size."""
TEXT: Final = 0x81
BINARY: Final = 0x82
"""The first byte of a message's only frame."""
MAX_PARTS: Final = 512
"""Parts given to one system call (POSIX's IOV_MAX is 1024 on Linux)."""


def widen(stream: IOStream) -> None:
    """Give the socket of a client on this machine room for a batch."""
    with contextlib.suppress(OSError, ValueError):  # it is gone, or has no address
        if ip_address(str(stream.socket.getpeername()[0]).partition("%")[0]).is_loopback:
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LOOPBACK_BUFFER)


def header(size: int, first: int = BINARY) -> bytes:
    """What stands before the payload of an unfragmented message of a server (RFC 6455, section 5.2)."""
    if size < 126:
        return struct.pack(">BB", first, size)
    if size < 1 << 16:
        return struct.pack(">BBH", first, 126, size)
    return struct.pack(">BBQ", first, 127, size)


def text_frames(pack: Pack) -> bytes:
    """A pack's messages as text frames."""
    return b"".join(part for _, text in pack.messages for part in (header(len(text), TEXT), text))


def write_whole(stream: IOStream, data: bytes) -> asyncio.Future[None] | None:
    """Write whole frames; None where the socket took all of it, else a future that is done once it has. Raises
    WebSocketClosedError."""
    if stream.closed():
        raise WebSocketClosedError
    sent = 0
    # through TLS, or behind what Tornado still has to write, it must go Tornado's way
    if type(stream) is IOStream and not stream.writing():
        try:
            sent = stream.socket.send(data)
        except BlockingIOError:
            pass
        except OSError as error:
            stream.close(exc_info=error)
            raise WebSocketClosedError from error
        if sent == len(data):
            return None
    return stream.write(memoryview(data)[sent:])


def write(stream: IOStream, messages: Sequence[BytesLike]) -> tuple[int, asyncio.Future[None]]:
    """Write as many messages as the socket takes now, each as a frame, and at least one: how many, and a future that is
    done once they have left this process. Raises WebSocketClosedError.

    No more than the rest of one message is kept here for a client that reads slowly.
    """
    if stream.closed():
        raise WebSocketClosedError
    sent = 0
    # through TLS, or behind what Tornado still has to write, it must go Tornado's way
    if type(stream) is IOStream and not stream.writing():
        parts = [part for message in messages[: MAX_PARTS // 2] for part in (header(len(message)), message)]
        with contextlib.suppress(BlockingIOError):
            try:
                sent = stream.socket.sendmsg(parts)
            except BlockingIOError:
                raise
            except OSError as error:
                stream.close(exc_info=error)
                raise WebSocketClosedError from error
    count = 0
    while count < len(messages) and sent:
        head = header(len(messages[count]))
        whole = len(head) + len(messages[count])
        count += 1
        if sent < whole:
            return count, stream.write(b"".join((head, messages[count - 1]))[sent:])
        sent -= whole
    if not count:
        return 1, stream.write(b"".join((header(len(messages[0])), messages[0])))
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    done.set_result(None)
    return count, done
