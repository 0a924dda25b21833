"""Kubo's RPC (https://docs.ipfs.tech/reference/kubo/rpc/): one session, and its ways to fail turned into our errors."""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import AsyncGenerator, AsyncIterable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

import aiohttp

from ipfs_stream_nb.content.cid import BytesLike
from ipfs_stream_nb.content.kubo import upload
from ipfs_stream_nb.content.kubo.answers import Answer
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
TRANSFER_TIMEOUT: Final = 30.0
"""Seconds that a short answer may be on its way, beside its silence."""
MAX_JSON: Final = 1024 * 1024
"""Bytes of one JSON answer, unless a command says otherwise: the event loop stands still while they are parsed."""
MAX_LINE: Final = 1024 * 1024
"""Bytes of one line of an NDJSON answer."""
READ_BYTES: Final = 64 * 1024
"""Bytes of such an answer that are gone through before others have their turn."""
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
                auto_decompress=False,  # a few bytes could become a great many
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
        form: upload.Multipart | None = None,
        silence: float = ANSWER_TIMEOUT,
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        """POST a command; its answer is open inside of the block.

        Raises UnreachableError where nobody answers, UnauthorizedError, RetrievalTimeoutError after `silence`
        seconds without a byte, or where the daemon takes nothing more of the `form`, RetrievalError where it stops in
        the middle or is no Kubo, and what its own errors amount to (see failures.error_of).
        """
        name = self.address.name
        params = [("arg", arg) for arg in args]
        params += [
            (key.replace("_", "-"), _text(value))
            for key, value in (options or {}).items()
            if value is not None
        ]
        try:
            sending = self._open().post(
                self.address.url / "api" / "v0" / command,
                params=params,
                data=form,
                headers=None if form is None else form.headers,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT, sock_read=silence),
                allow_redirects=False,
            )
            async with await (sending if form is None else form.watch(sending, silence)) as response:
                if response.status != 200:
                    raise await self._error(command, response)
                encoding = response.headers.get("Content-Encoding", "identity")
                if encoding != "identity":
                    raise RetrievalError(
                        f"{name} compresses what it was asked to send as it is, at {command} ({encoding[:20]!r})"
                    )
                yield response
        except TimeoutError as error:
            if isinstance(error, IPFSStreamError):
                raise
            if isinstance(error, aiohttp.ConnectionTimeoutError):
                raise UnreachableError(self._absent(f"no connection in {CONNECT_TIMEOUT:.0f} s")) from None
            raise RetrievalTimeoutError(f"{name} was silent for {silence:g} s at {command}") from None
        except upload.StalledError:
            raise RetrievalTimeoutError(
                f"{name} took nothing more of what was sent to it at {command}, for {upload.UPLOAD_STALL:g} s"
            ) from None
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
        except (ValueError, RecursionError):
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

    async def json(
        self,
        command: str,
        *args: str,
        silence: float = ANSWER_TIMEOUT,
        limit: int | None = None,
        **options: Any,
    ) -> Answer:
        """One command whose answer is one JSON object of at most `limit` bytes (MAX_JSON); nothing is an empty one."""
        limit = MAX_JSON if limit is None else limit
        data = await self.body(command, *args, options=options, silence=silence, limit=limit)
        return Answer.parse(data or b"{}", self.source(command))

    async def body(
        self,
        command: str,
        *args: str,
        options: Options,
        limit: int,
        silence: float = ANSWER_TIMEOUT,
        transfer: float | None = None,
    ) -> bytes:
        """One command whose answer is short, and to be whole `transfer` seconds (TRANSFER_TIMEOUT) after a silence."""
        name = self.address.name
        seconds = silence + (TRANSFER_TIMEOUT if transfer is None else transfer)
        data = bytearray()
        async with (
            self.request(command, *args, options=options, silence=silence) as response,
            within(seconds, f"{name} was not done with its answer to {command} after {seconds:g} s"),
        ):
            async for piece in response.content.iter_any():
                data += piece
                if len(data) > limit:
                    raise RetrievalError(f"{name} answers {command} with over {limit:,} bytes")
        return bytes(data)

    async def lines(
        self,
        command: str,
        *args: str,
        options: Options | None = None,
        form: upload.Multipart | None = None,
        silence: float = ANSWER_TIMEOUT,
    ) -> AsyncGenerator[Answer, None]:
        """One command whose answer is a JSON object on each line. An error that stands in a line is raised.

        Blank lines are silence. Kubo tells errors that come late in an HTTP trailer, which aiohttp does not give:
        whoever reads must know what the last line is to be.
        """
        name, rest = self.address.name, bytearray()
        clock = asyncio.get_running_loop().time
        async with self.request(command, *args, options=options, form=form, silence=silence) as response:
            since = clock()
            while True:
                async with within(
                    since + silence - clock(), f"{name} was silent for {silence:g} s at {command}"
                ):
                    piece = await response.content.read(READ_BYTES)
                    await asyncio.sleep(0)  # what has come already is read without a pause
                rest += piece
                *whole, rest = rest.split(b"\n") if b"\n" in piece else [rest]
                for line in whole if piece else [rest]:
                    if line.strip():
                        yield self._checked(command, line)
                        since = clock()
                if not piece:
                    return
                if len(rest) > MAX_LINE:
                    raise RetrievalError(f"{name} sends a line of over {MAX_LINE:,} bytes at {command}")

    def _checked(self, command: str, line: bytearray) -> Answer:
        found = Answer.parse(line, self.source(command))
        if found.plain.get("Type") == "error":
            raise error_of(self.address.name, command, found.words("Message"))
        return found

    def source(self, command: str) -> str:
        """How a text begins that tells of an answer."""
        return f"{self.address.name} answered {command}"

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
        silence: float = ANSWER_TIMEOUT,
    ) -> AsyncGenerator[Answer, None]:
        """One command that takes a file, which is sent as it comes; the lines of its answer."""
        form = upload.Multipart(source)
        try:
            lines = self.lines(command, *args, options=options, form=form, silence=silence)
            async with aclosing(lines):
                async for line in lines:
                    yield line
        except IPFSStreamError:
            if form.error is not None:
                raise form.error from None
            raise
        finally:
            await form.close()

    async def close(self) -> None:
        """End its connections. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


@asynccontextmanager
async def within(seconds: float, text: str) -> AsyncGenerator[None, None]:
    """Raises RetrievalTimeoutError with `text` where the block takes longer. Other time-outs are left as they are."""
    clock = asyncio.timeout(seconds)
    try:
        async with clock:
            yield
    except TimeoutError:
        if clock.expired():
            raise RetrievalTimeoutError(text) from None
        raise


def _text(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)
