"""Requests to our own server: one aiohttp session, and its many ways to fail turned into this package's errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import quote

import aiohttp
from yarl import URL

from ipfs_stream_nb.clients.server import ServerInfo
from ipfs_stream_nb.errors import (
    IPFSStreamError,
    NotFoundError,
    RetrievalError,
    RetrievalTimeoutError,
    UnauthorizedError,
    error_from_json,
)

CONNECT_TIMEOUT: Final = 10.0
"""Seconds until a connection must stand."""
READ_TIMEOUT: Final = 75.0
"""Seconds that the server may be silent before an answer or in the middle of one: longer than its own answer_timeout,
after which it tells what it waited for."""
SLOW_TIMEOUT: Final = 900.0
"""The same for what works through the whole store before it answers: gc, remove, the end of an add."""
MAX_LINE: Final = 1024 * 1024
"""Bytes of one line of an NDJSON answer."""
MAX_JSON: Final = 64 * 1024 * 1024
"""Bytes of a JSON answer: some 400,000 pins."""

Params = Mapping[str, str]


class BrokenOffError(RetrievalError):
    """An answer that ended before its end."""


class ServerHTTP:
    """A server's HTTP surface. The session opens with the first request and belongs to that event loop."""

    def __init__(self, server: ServerInfo) -> None:
        self.server = server
        self._session: aiohttp.ClientSession | None = None

    def address(self, *parts: str, params: Params | None = None) -> URL:
        """The URL of `parts` below the base URL; slashes in a part separate, everything else is escaped."""
        path = "/".join(quote(part, safe="/") for part in parts)
        return URL(self.server.url + path, encoded=True).with_query(params or None)

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            headers = {"Authorization": f"token {self.server.token}"} if self.server.token else {}
            self._session = aiohttp.ClientSession(
                headers=headers,
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=CONNECT_TIMEOUT, sock_read=READ_TIMEOUT
                ),
                # a server of this machine is found by a file that only its user can write, so there is nobody
                # to mistake it for; certificates for localhost are mostly self-signed
                connector=aiohttp.TCPConnector(ssl=not self.server.on_this_machine),
                trust_env=not self.server.on_this_machine,
                cookie_jar=aiohttp.DummyCookieJar(),  # the token is enough; a login cookie would bring XSRF checks
                read_bufsize=1024 * 1024,
            )
        return self._session

    @asynccontextmanager
    async def request(
        self,
        method: str,
        *parts: str,
        params: Params | None = None,
        headers: Mapping[str, str] | None = None,
        data: AsyncIterable[bytes] | bytes | None = None,
        json_body: Any = None,
        silence: float = READ_TIMEOUT,
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        """One request; its answer is open inside of the block. Raises the error that the server names.

        RetrievalError stands for a server that cannot be reached or breaks off, RetrievalTimeoutError for one
        that is silent for `silence` seconds, UnauthorizedError for a refused token.
        """
        upload = _Upload(data) if data is not None and not isinstance(data, bytes) else None
        try:
            async with self._open_session().request(
                method,
                self.address(*parts, params=params),
                headers=headers,
                data=upload or data,
                json=json_body,
                allow_redirects=False,
                expect100=upload is not None,
                timeout=aiohttp.ClientTimeout(sock_connect=CONNECT_TIMEOUT, sock_read=silence),
            ) as response:
                if response.status >= 300:
                    raise await self._error(response)
                yield response
        except TimeoutError as error:
            if isinstance(error, IPFSStreamError):
                raise
            raise RetrievalTimeoutError(f"{self.server.url} was silent for {silence:.0f} s") from None
        except aiohttp.ClientConnectorError as error:
            raise RetrievalError(
                f"no server answers at {self.server.url}: {error.strerror or error}"
            ) from None
        except (aiohttp.ClientError, ConnectionError) as error:
            if upload is not None and upload.error is not None:
                raise upload.error from None
            raise BrokenOffError(
                f"the server at {self.server.url} broke off in the middle: it was stopped, or met an error while it was"
                f" answering, which its log tells ({type(error).__name__})"
            ) from None
        finally:
            if upload is not None:
                await upload.close()

    async def _error(self, response: aiohttp.ClientResponse) -> IPFSStreamError:
        try:
            body = json.loads(await response.content.read(MAX_LINE))
        except (ValueError, aiohttp.ClientError):
            body = None
        if isinstance(body, dict) and "code" in body:
            # our server's text is for whoever writes requests; a policy's refusal has another one
            unknown = str(body.get("error")).startswith("authentication is required")
            return self._refused() if unknown else error_from_json(body)
        if response.status == 412:  # to HEAD, which has no body to say it
            return NotFoundError(f"the server at {self.server.url} does not hold it")
        if response.status < 400 or response.status in {401, 403}:
            return self._refused()
        if response.status == 404:
            return NotFoundError(
                f"the server at {self.server.url} does not have the ipfs_stream_nb extension"
            )
        return RetrievalError(
            f"the server at {self.server.url} answered HTTP {response.status} {response.reason}"
        )

    def _refused(self) -> UnauthorizedError:
        """The error for a server that does not take the token, or wants one."""
        wrong = "the token was refused" if self.server.token else "a token is needed"
        return UnauthorizedError(f"{wrong} by the server at {self.server.url}; pass token=… to connect")

    async def json(self, method: str, *parts: str, **request: Any) -> dict[str, Any]:
        """One request whose answer is a JSON object."""
        async with self.request(method, *parts, **request) as response:
            body = bytearray()
            async for data in response.content.iter_any():
                body += data
                if len(body) > MAX_JSON:
                    raise RetrievalError(f"an answer of {self.server.url} is over {MAX_JSON} bytes")
        return self._object(body)

    async def lines(self, method: str, *parts: str, **request: Any) -> AsyncGenerator[dict[str, Any], None]:
        """One request whose answer is NDJSON; a line that is an error message is raised."""
        async with self.request(method, *parts, **request) as response:
            try:
                while line := await response.content.readline():
                    record = self._object(line)
                    if record.get("type") == "error":
                        raise error_from_json(record)
                    yield record
            except ValueError as error:  # what aiohttp raises for a line over its buffer
                if isinstance(error, IPFSStreamError):
                    raise
                raise RetrievalError(f"a line of the answer of {self.server.url} is too long") from None

    def _object(self, text: bytes | bytearray) -> dict[str, Any]:
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise RetrievalError(f"{self.server.url} did not answer as an ipfs_stream_nb server does")
        return value

    async def close(self) -> None:
        """End the session. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


class _Upload:
    """A request's body, read by a task of its own: aiohttp neither waits for its sources to end nor tells errors."""

    def __init__(self, source: AsyncIterable[bytes]) -> None:
        self._source = source
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        self._reading: asyncio.Task[None] | None = None
        self.error: Exception | None = None
        """What the source raised."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self._reading = asyncio.create_task(self._read())
        while (piece := await self._pieces.get()) is not None:
            yield piece
        if self.error is not None:
            raise self.error

    async def _read(self) -> None:
        try:
            async for data in self._source:
                await self._pieces.put(data)
        except Exception as error:  # noqa: BLE001  # it is raised again where the request is made
            self.error = error
        await self._pieces.put(None)

    async def close(self) -> None:
        """Leave the source alone: when this returns nothing reads from it."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
