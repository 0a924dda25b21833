"""A TCP proxy that cuts WebSocket connections, or has something done, at a given byte; it notes what is told over them."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

from listening import stop_accepting

PIECE = 64 * 1024
_TOLD = re.compile(rb'"(durable|offset)": ?(\d+)')


@dataclass
class Cut:
    """What becomes of one WebSocket connection; bytes are those that passed on it, its handshake included."""

    up: int | None = None
    """After so many bytes of the client."""
    down: int | None = None
    """After so many bytes of the server."""
    act: Callable[[], object] | None = None
    """What is done before both sides are cut off."""
    hold: int | None = None
    """After so many bytes of the client the next ones wait until the server has told that bytes are durable."""


@dataclass(eq=False)
class Passed:
    """One WebSocket connection."""

    cut: Cut
    up: int = 0
    down: int = 0
    offset: int | None = None
    """What `ready` or `metadata` told."""
    durable: int = 0
    """The last that was told."""
    told: asyncio.Event = field(default_factory=asyncio.Event)


class CuttingProxy:
    """`async with CuttingProxy(url) as proxy`: the same server at `proxy.url`. `cuts` are for the next sockets, one each.

    Only connections that ask for a path with /ws/ count; others pass as they are.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.cuts: deque[Cut] = deque()
        self.passed: list[Passed] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1")
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/"
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await stop_accepting(self._server)
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def up(self) -> int:
        """Bytes that clients sent over sockets."""
        return sum(one.up for one in self.passed)

    @property
    def down(self) -> int:
        """Bytes that came to clients over sockets."""
        return sum(one.down for one in self.passed)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        to: asyncio.StreamWriter | None = None
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                parts = urlsplit(self.upstream)
                source, to = await asyncio.open_connection(parts.hostname, parts.port)
                head = await reader.readuntil(b"\r\n\r\n")
                passed = Passed(Cut())
                if b"/ws/" in head.split(b"\r\n", 1)[0]:
                    passed = Passed(self.cuts.popleft() if self.cuts else Cut())
                    self.passed.append(passed)
                await self._both(passed, head, (reader, writer), (source, to))
        except asyncio.CancelledError:
            pass  # asyncio's server logs a cancelled connection as an error
        finally:
            self._tasks.discard(task)
            for one in (writer, to):
                if one is not None:
                    one.transport.abort()

    async def _both(self, passed, head, client, server) -> None:
        ways = [
            asyncio.create_task(self._up(passed, head, client[0], server[1])),
            asyncio.create_task(self._down(passed, server[0], client[1])),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            if not any(way.done() and way.result() for way in ways):  # no cut: what is under way still comes
                await asyncio.wait(ways, timeout=5)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _up(self, passed: Passed, data: bytes, reader, writer) -> bool:
        """Whether it was cut."""
        cut = passed.cut
        with contextlib.suppress(OSError):
            while data:
                if cut.hold is not None and passed.up >= cut.hold:
                    cut.hold = None
                    await passed.told.wait()
                end = cut.up is not None and passed.up + len(data) >= cut.up
                part = data[: cut.up - passed.up] if end else data
                writer.write(part)
                await writer.drain()
                passed.up += len(part)
                if end:
                    return self._cut(cut)
                data = await reader.read(PIECE)
            if writer.can_write_eof():
                writer.write_eof()
        return False

    async def _down(self, passed: Passed, reader, writer) -> bool:
        cut, begin = passed.cut, b""
        with contextlib.suppress(OSError):
            while data := await reader.read(PIECE):
                end = cut.down is not None and passed.down + len(data) >= cut.down
                part = data[: cut.down - passed.down] if end else data
                begin = self._note(passed, begin + part)
                writer.write(part)
                await writer.drain()
                passed.down += len(part)
                if end:
                    return self._cut(cut)
            if writer.can_write_eof():
                writer.write_eof()
        return False

    def _cut(self, cut: Cut) -> bool:
        if cut.act is not None:
            cut.act()
        return True

    def _note(self, passed: Passed, data: bytes) -> bytes:
        """Note what is told; gives the end that may go on in the next piece."""
        last = 0
        for found in _TOLD.finditer(data):
            if found.end() == len(data):
                break
            last = found.end()
            if found[1] == b"offset":
                passed.offset = int(found[2]) if passed.offset is None else passed.offset
            else:
                passed.durable = int(found[2])
                if passed.durable:
                    passed.told.set()
        return data[max(last, len(data) - 64) :]
