"""Kubo's RPC (https://docs.ipfs.tech/reference/kubo/rpc/): one session, and its ways to fail turned into our errors."""

from __future__ import annotations

import ipaddress
import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

import aiohttp

from ipfs_stream_nb.content.cid import BytesLike
from ipfs_stream_nb.content.kubo.discovery import KuboAddress
from ipfs_stream_nb.content.kubo.failures import error_of
from ipfs_stream_nb.errors import (
    IPFSStreamError,
    RetrievalError,
    RetrievalTimeoutError,
    UnauthorizedError,
    UnreachableError,
)

CONNECT_TIMEOUT: Final = 5.0
"""Seconds until a connection must stand."""
ANSWER_TIMEOUT: Final = 60.0
"""Seconds that the daemon may be silent, unless a command says otherwise."""
SLOW_TIMEOUT: Final = 900.0
"""The same for what works through the whole repo or the network before it says anything."""
MAX_JSON: Final = 64 * 1024 * 1024
"""Bytes of one JSON answer."""
PIECE_BYTES: Final = 1024 * 1024
"""The largest piece of an upload."""
MAX_LINE: Final = 4 * 1024 * 1024
"""Bytes of one line of an NDJSON answer."""
MAX_ERROR: Final = 64 * 1024
"""Bytes of an error that are read."""
MIN_VERSION: Final = (0, 35)
"""Older daemons do not know max-file-links, and pass over what they do not know: they would give other CIDs."""

Options = Mapping[str, str | int | bool | None]


class KuboTransport:
    """Requests to one daemon. It belongs to the event loop that uses it."""

    def __init__(self, address: KuboAddress) -> None:
        self.address = address
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.address.name}>"

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            socket = self.address.socket
            self._session = aiohttp.ClientSession(
                headers={**self.address.headers, "Accept-Encoding": "identity"},
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT),
                connector=aiohttp.UnixConnector(socket, limit=0) if socket else aiohttp.TCPConnector(limit=0),
                trust_env=not self.near,
                cookie_jar=aiohttp.DummyCookieJar(),
                read_bufsize=1024 * 1024,
            )
        return self._session

    @property
    def near(self) -> bool:
        """Whether the daemon is on this machine."""
        host = self.address.url.host or ""
        try:
            return bool(self.address.socket) or host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    @asynccontextmanager
    async def request(
        self,
        command: str,
        *args: str,
        options: Options | None = None,
        body: AsyncIterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        silence: float = ANSWER_TIMEOUT,
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        """POST a command; its answer is open inside of the block.

        Raises UnreachableError where nobody answers, UnauthorizedError, RetrievalTimeoutError after `silence`
        seconds without a byte, RetrievalError where the daemon stops in the middle or is no Kubo, and what its own
        errors amount to (see failures.error_of).
        """
        name = self.address.name
        params = [("arg", arg) for arg in args]
        params += [
            (key.replace("_", "-"), _text(value))
            for key, value in (options or {}).items()
            if value is not None
        ]
        url = self.address.url / "api" / "v0" / command
        try:
            async with self._open().post(
                url,
                params=params,
                data=body,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT, sock_read=silence),
                allow_redirects=False,
            ) as response:
                if response.status != 200:
                    raise await self._error(command, response)
                yield response
        except TimeoutError as error:
            if isinstance(error, IPFSStreamError):
                raise
            if isinstance(error, aiohttp.ConnectionTimeoutError):
                raise UnreachableError(self._absent(f"no connection in {CONNECT_TIMEOUT:.0f} s")) from None
            raise RetrievalTimeoutError(f"{name} was silent for {silence:g} s at {command}") from None
        except aiohttp.ClientConnectorError as error:
            raise UnreachableError(self._absent(str(error.os_error.strerror or error))) from None
        except (aiohttp.ClientError, ConnectionError) as error:
            raise RetrievalError(
                f"{name} stopped in the middle of {command} ({type(error).__name__}); is the daemon still running?"
            ) from None

    def _absent(self, reason: str) -> str:
        return (
            f"no Kubo daemon answers at {self.address.place}: {reason} ({self.address.found}). Start it with `ipfs daemon`"
            f", or say where it is with kubo_api or $IPFS_API"
        )

    async def _error(self, command: str, response: aiohttp.ClientResponse) -> IPFSStreamError:
        name = self.address.name
        text = (await response.content.read(MAX_ERROR)).decode("utf-8", "replace").strip()
        if response.status in {401, 403}:
            return UnauthorizedError(
                f"{name} refuses {command} (HTTP {response.status}): give its authorisation as kubo_auth or"
                " $IPFS_API_AUTH (bearer:TOKEN or basic:USER:PASSWORD)"
            )
        try:
            body = json.loads(text)
        except ValueError:
            body = None
        if isinstance(body, dict) and isinstance(body.get("Message"), str):
            return error_of(name, command, body["Message"])
        if response.status == 404:
            return RetrievalError(
                f"{name} does not know {command}: it is no Kubo, or one older than {_dotted(MIN_VERSION)}"
            )
        return RetrievalError(
            f"{name} does not answer as a Kubo daemon does (HTTP {response.status} at {command})"
        )

    async def json(self, command: str, *args: str, silence: float = ANSWER_TIMEOUT, **options: Any) -> Any:
        """One command whose answer is one JSON value."""
        async with self.request(command, *args, options=options, silence=silence) as response:
            data = bytearray()
            async for piece in response.content.iter_any():
                data += piece
                if len(data) > MAX_JSON:
                    raise RetrievalError(
                        f"{self.address.name} answers {command} with over {MAX_JSON:,} bytes"
                    )
        return self._parsed(command, data) if data else {}

    async def lines(
        self,
        command: str,
        *args: str,
        options: Options | None = None,
        body: AsyncIterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        silence: float = ANSWER_TIMEOUT,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """One command whose answer is a JSON object on each line. An error that stands in a line is raised.

        Kubo tells errors that come late in an HTTP trailer, which aiohttp does not give: whoever reads must know
        what the last line is to be.
        """
        request = self.request(command, *args, options=options, body=body, headers=headers, silence=silence)
        async with request as response:
            rest = bytearray()
            async for piece in response.content.iter_any():
                rest += piece
                while (end := rest.find(b"\n")) >= 0:
                    line = bytes(rest[:end])
                    del rest[: end + 1]
                    if line.strip():
                        yield self._checked(command, line)
                if len(rest) > MAX_LINE:
                    raise RetrievalError(
                        f"{self.address.name} sends a line of over {MAX_LINE:,} bytes at {command}"
                    )
            if rest.strip():
                yield self._checked(command, bytes(rest))

    def _checked(self, command: str, line: bytes) -> dict[str, Any]:
        found = self._parsed(command, line)
        if not isinstance(found, dict):
            raise RetrievalError(f"{self.address.name} does not answer {command} as a Kubo daemon does")
        if found.get("Type") == "error" and isinstance(found.get("Message"), str):
            raise error_of(self.address.name, command, found["Message"])
        return found

    def _parsed(self, command: str, data: bytes | bytearray) -> Any:
        try:
            return json.loads(data)
        except ValueError:
            raise RetrievalError(
                f"{self.address.name} does not answer {command} as a Kubo daemon does"
            ) from None

    async def stream(
        self, command: str, *args: str, options: Options | None = None, silence: float = ANSWER_TIMEOUT
    ) -> AsyncGenerator[bytes, None]:
        """One command whose answer is bytes."""
        async with self.request(command, *args, options=options, silence=silence) as response:
            async for piece in response.content.iter_any():
                yield piece

    async def upload(
        self,
        command: str,
        *args: str,
        source: AsyncIterable[BytesLike],
        options: Options | None = None,
        silence: float = SLOW_TIMEOUT,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """One command that takes a file, which is sent as it comes; the lines of its answer."""
        parts = Multipart(source)
        lines = self.lines(
            command, *args, options=options, body=parts, headers=parts.headers, silence=silence
        )
        try:
            async with aclosing(lines):
                async for line in lines:
                    yield line
        except IPFSStreamError:
            if parts.error is not None:
                raise parts.error from None
            raise

    async def close(self) -> None:
        """End its connections. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


class Multipart:
    """A multipart form of one file that is sent while it is made. `error` is what its source raised."""

    def __init__(self, source: AsyncIterable[BytesLike]) -> None:
        self._source = source
        self._boundary = secrets.token_hex(16)
        self.error: Exception | None = None

    @property
    def headers(self) -> dict[str, str]:
        """The form's content type."""
        return {"Content-Type": f"multipart/form-data; boundary={self._boundary}"}

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield (
            f"--{self._boundary}\r\n"
            'Content-Disposition: form-data; name="file"; filename="file"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        try:
            async for data in self._source:
                for at in range(0, len(data), PIECE_BYTES):
                    yield bytes(data[at : at + PIECE_BYTES])
        except Exception as error:
            self.error = error
            raise
        yield f"\r\n--{self._boundary}--\r\n".encode()


def _text(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)
