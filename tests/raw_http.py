"""HTTP by hand, for what clients do not let one do: odd paths, half bodies, reading slowly or not at all."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any, Self

BASE_URL = "/a%40b/"


@dataclass
class RawAnswer:
    """An answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes


class RawConnection:
    """One connection to a server of the tests."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server: Any) -> None:
        self.reader = reader
        self.writer = writer
        self._server = server

    @classmethod
    async def open(cls, server: Any, limit: int = 1 << 16) -> RawConnection:
        """Connect; `limit` bytes may be read ahead of the test."""
        return cls(*await asyncio.open_connection("127.0.0.1", server.port, limit=limit), server)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):  # the server was first
            await self.writer.wait_closed()

    async def send_head(self, method: str, path: str, **headers: str) -> None:
        """A request's head, with Jupyter's token unless another Authorization is given."""
        shown = {
            "Host": f"127.0.0.1:{self._server.port}",
            "Authorization": f"token {self._server.token}",
        } | {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [
            f"{method} {BASE_URL}{path} HTTP/1.1",
            *(f"{name}: {value}" for name, value in shown.items()),
        ]
        await self.send("\r\n".join(lines).encode() + b"\r\n\r\n")

    async def send(self, data: bytes) -> None:
        """Some bytes."""
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> RawAnswer:
        """An answer's head."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        return RawAnswer(int(lines[0].split()[1]), headers, b"")

    async def answer(self) -> RawAnswer:
        """An answer with the body that its Content-Length announces."""
        answer = await self.head()
        answer.body = await self.reader.readexactly(int(answer.headers["Content-Length"]))
        return answer
