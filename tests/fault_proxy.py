"""An HTTP proxy between us and a real server that counts what passes, and makes mistakes when told to."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

from listening import stop_accepting

PIECE = 64 * 1024


@dataclass
class Fault:
    """What to do wrong with one answer; None and 0 leave it as it is. Bytes are those of the body."""

    delay: float = 0
    """Seconds before anything is sent."""
    rate: float = 0
    """Bytes a second."""
    drip: float = 0
    """Seconds between single bytes, without end."""
    cut: int | None = None
    """Drop the connection after so many bytes, whatever Content-Length says."""
    truncate: int | None = None
    """Give only so many bytes, with a Content-Length that says so."""
    stall: int | None = None
    """After so many bytes send nothing more, and keep the connection open."""
    change: Callable[[bytes], bytes] | None = None
    """Make another body of the whole one."""
    status: int = 0
    """Answer this in place of asking the upstream."""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    refuse: bool = False
    """Close the connection without a word."""


@dataclass
class Request:
    """What a client asked."""

    method: str
    path: str
    """With the query."""
    headers: dict[str, str]


class FaultProxy:
    """`async with FaultProxy(url) as proxy`: the same paths as at `url`, under `proxy.url`.

    `faults` are for the next requests, one each; when there are none, `rule` says what becomes of a request. After the
    `with` block connections to `proxy.url` are refused.
    """

    def __init__(self, upstream: str, rule: Callable[[Request], Fault | None] | None = None) -> None:
        self._host, self._port = urlsplit(upstream).hostname, urlsplit(upstream).port
        self.rule = rule
        self.faults: deque[Fault] = deque()
        self.requests: list[Request] = []
        self.bytes_in = 0
        """Bytes that clients sent, heads included."""
        self.bytes_out = 0
        """Bytes sent to clients, heads included."""
        self.asked = asyncio.Condition()
        """Notified with each request."""
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1")
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await stop_accepting(self._server)
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._answer(reader, writer):
                    pass
        except asyncio.CancelledError:
            pass  # asyncio's server logs a cancelled connection as an error
        finally:
            self._connections.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; whether the connection lives on."""
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ", 2)
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
        request = Request(method, path, headers)
        body = await _read_body(reader, headers)
        self.bytes_in += len(head) + len(body)
        self.requests.append(request)
        async with self.asked:
            self.asked.notify_all()
        fault = self.faults.popleft() if self.faults else (self.rule(request) if self.rule else None)
        fault = fault or Fault()
        if fault.delay:
            await asyncio.sleep(fault.delay)
        if fault.refuse:
            return False
        if fault.status:
            given = {"Content-Length": str(len(fault.body)), **fault.headers}
            await self._send(writer, _head(f"{fault.status} Told", given) + fault.body)
            return True
        return await self._relay(lines[0], lines[1:-2], body, fault, writer)

    async def _relay(
        self, first: str, lines: list[str], body: bytes, fault: Fault, writer: asyncio.StreamWriter
    ) -> bool:
        source, sink = await asyncio.open_connection(self._host, self._port)
        try:
            kept = [line for line in lines if not line.lower().startswith("connection:")]
            sink.write("\r\n".join([first, *kept, "Connection: close", "", ""]).encode("latin-1") + body)
            await sink.drain()
            head = (await source.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = [line for line in head[1:-2] if not line.lower().startswith("connection:")]
            if fault.change is not None or fault.truncate is not None:
                return await self._send_other(source, head[0], headers, fault, writer)
            answer = "\r\n".join([head[0], *headers, "Connection: close", "", ""])
            await self._send(writer, answer.encode("latin-1"))
            while fault.drip:
                await self._send(writer, b"x")
                await asyncio.sleep(fault.drip)
            sent = 0
            while piece := await source.read(PIECE):
                limit = next((stop for stop in (fault.cut, fault.stall) if stop is not None), None)
                if limit is not None and sent + len(piece) >= limit:
                    await self._send(writer, piece[: limit - sent])
                    if fault.stall is not None:
                        await asyncio.Event().wait()
                    return False
                await self._send(writer, piece)
                sent += len(piece)
                if fault.rate:
                    await asyncio.sleep(len(piece) / fault.rate)
            return False
        finally:
            sink.close()
            with contextlib.suppress(ConnectionError):
                await sink.wait_closed()

    async def _send_other(
        self,
        source: asyncio.StreamReader,
        status: str,
        headers: list[str],
        fault: Fault,
        writer: asyncio.StreamWriter,
    ) -> bool:
        """The whole body, changed, with the length that it then has."""
        data = await source.read()
        lowered = [line.lower() for line in headers]
        if any(line.startswith("transfer-encoding: chunked") for line in lowered):
            data = _unchunked(data)
        data = fault.change(data) if fault.change is not None else data
        data = data[: fault.truncate] if fault.truncate is not None else data
        dropped = ("content-length:", "transfer-encoding:")
        kept = [line for line in headers if not line.lower().startswith(dropped)]
        answer = "\r\n".join([status, *kept, f"Content-Length: {len(data)}", "", ""])
        await self._send(writer, answer.encode("latin-1") + data)
        return True

    async def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(data)
        self.bytes_out += len(data)
        await writer.drain()


async def _read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    """The body of a request as it came, with the marks of its chunks."""
    if "chunked" not in headers.get("transfer-encoding", ""):
        return await reader.readexactly(int(headers.get("content-length", 0)))
    body = b""
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        body += line + await reader.readexactly(size + 2)
        if not size:
            return body


def _head(status: str, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1")


def _unchunked(data: bytes) -> bytes:
    out, at = b"", 0
    while True:
        end = data.index(b"\r\n", at)
        size = int(data[at:end].split(b";")[0], 16)
        if not size:
            return out
        out += data[end + 2 : end + 2 + size]
        at = end + 2 + size + 2
