"""GETs of services that are not believed: bounded, with time-outs, and never led into an inner network."""

from __future__ import annotations

import asyncio
import email.utils
import ipaddress
import socket
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, asynccontextmanager
from importlib.metadata import version
from typing import Final

import aiohttp
from aiohttp.abc import ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from ipfs_stream_nb.content.ipns import record
from ipfs_stream_nb.content.retrieval.settings import RetrievalSettings
from ipfs_stream_nb.errors import (
    BusyError,
    IPFSStreamError,
    NotFoundError,
    RetrievalError,
    RetrievalTimeoutError,
    UnreachableError,
)

MAX_REDIRECTS: Final = 5
MAX_RETRY_AFTER: Final = 600.0
"""Seconds that a service may ask to be left alone for."""
_GONE: Final = {404, 410}
_BUSY: Final = {429, 503}


class HTTPSource:
    """Asks one service by GET, with its redirects. It belongs to the event loop that uses it."""

    def __init__(
        self, url: str, settings: RetrievalSettings, *, headers: Mapping[str, str] | None = None
    ) -> None:
        """`url` is its base URL; `headers` go with each request to that very origin, and nowhere else."""
        self.url = URL(url if url.endswith("/") else f"{url}/")
        self.name = str(self.url).rstrip("/")
        self.settings = settings
        self._headers = dict(headers or {})
        self._session: aiohttp.ClientSession | None = None

    @property
    def is_inner(self) -> bool:
        """Whether it is on this machine, or named by an address that is not public."""
        return is_inner(self.url.host or "")

    @asynccontextmanager
    async def request(
        self, path: str, params: Mapping[str, str], headers: Mapping[str, str]
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        """One GET with its redirects; everything that goes wrong on the way is one of our errors."""
        settings = self.settings
        url = self.url.joinpath(path) % params
        try:
            for _ in range(MAX_REDIRECTS + 1):
                own = self._headers if url.origin() == self.url.origin() else {}
                async with asyncio.timeout(settings.answer_timeout):
                    response = await self._open().get(url, headers={**headers, **own}, allow_redirects=False)
                async with response:
                    location = response.headers.get("Location")
                    if response.status in {301, 302, 303, 307, 308} and location is not None:
                        url = self._redirected(url, location)
                        continue
                    if response.status != 200:
                        raise await self.error(response)
                    yield response
                    return
            raise RetrievalError(f"it redirects over {MAX_REDIRECTS} times")
        except TimeoutError as error:
            if isinstance(error, IPFSStreamError):
                raise
            if isinstance(error, aiohttp.ConnectionTimeoutError):
                raise UnreachableError(f"no connection in {settings.connect_timeout:g} s") from None
            raise RetrievalTimeoutError(f"no answer in {settings.answer_timeout:g} s") from None
        except aiohttp.ClientConnectorError as error:
            raise UnreachableError(f"it cannot be reached: {error.os_error.strerror or error}") from None
        except (aiohttp.ClientError, ConnectionError, ValueError) as error:
            if isinstance(error, IPFSStreamError):
                raise
            raise RetrievalError(f"it broke off, or does not speak HTTP ({type(error).__name__})") from None

    async def pieces(self, response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
        """The body as it comes."""
        while True:
            try:
                async with asyncio.timeout(self.settings.stall_timeout):
                    piece = await response.content.readany()
            except TimeoutError:
                stalled = f"it stopped in the middle of an answer, for {self.settings.stall_timeout:g} s"
                raise RetrievalTimeoutError(stalled) from None
            if not piece:
                return
            yield piece

    async def read(self, response: aiohttp.ClientResponse, limit: int, what: str) -> bytes:
        """The whole body. Raises RetrievalError where it is over `limit` bytes, which is too many for `what`."""
        if (response.content_length or 0) > limit:
            raise RetrievalError(f"it answers with {response.content_length:,} bytes, too many for {what}")
        data = bytearray()
        async with aclosing(self.pieces(response)) as pieces:
            async for piece in pieces:
                data += piece
                if len(data) > limit:
                    raise RetrievalError(f"it answers with over {limit:,} bytes, too many for {what}")
        return bytes(data)

    async def record(self, path: str, params: Mapping[str, str]) -> bytes:
        """A signed IPNS record, not verified. Raises NotFoundError where there is none, and as `request` does."""
        async with self.request(path, params, {"Accept": record.MEDIA_TYPE}) as response:
            if response.content_type != record.MEDIA_TYPE:
                raise NotFoundError("it has no record of it")  # routers say so in text, with a 200 (IPIP-513)
            return await self.read(response, record.MAX_RECORD, "an IPNS record")

    def _redirected(self, url: URL, location: str) -> URL:
        """Where a redirect leads. Raises RetrievalError where a gateway has no business to send us."""
        target = url.join(URL(location))
        if target.scheme not in {"http", "https"} or not target.host:
            raise RetrievalError(f"it redirects to {target.scheme}:, which is not followed")
        if url.scheme == "https" and target.scheme == "http":
            raise RetrievalError("it redirects from https to http, which is not followed")
        if is_inner(target.host) and not self.is_inner:
            raise RetrievalError(
                f"it redirects into an inner network, to {target.host}, which is not followed"
            )
        return target

    async def error(self, response: aiohttp.ClientResponse) -> IPFSStreamError:
        """What an answer that is not 200 means."""
        status = response.status
        if status in _GONE:
            return NotFoundError("it does not have it")
        after = _retry_after(response.headers.get("Retry-After"))
        if status == 429 or (status in _BUSY and after is not None):
            return BusyError(f"it asks to be left alone (HTTP {status})", retry_after=after)
        if status == 412:
            return NotFoundError("it does not hold it")
        return RetrievalError(f"it answers HTTP {status}")

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            settings = self.settings
            inner = self.is_inner
            self._session = aiohttp.ClientSession(
                headers={
                    "User-Agent": f"ipfs_stream_nb/{version('ipfs_stream_nb')}",
                    "Accept-Encoding": "identity",
                },
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=settings.connect_timeout),
                # a public gateway must not be able to send this server into its own network
                connector=aiohttp.TCPConnector(limit=0, resolver=None if inner else GlobalResolver()),
                trust_env=not inner,
                cookie_jar=aiohttp.DummyCookieJar(),
                read_bufsize=1024 * 1024,
            )
        return self._session

    async def close(self) -> None:
        """End its connections. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


class GlobalResolver(ThreadedResolver):
    """DNS that knows public addresses only: a name that leads into an inner network leads nowhere."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """As every resolver's. Raises OSError where there is no public address."""
        found = await super().resolve(host, port, family)
        public = [entry for entry in found if ipaddress.ip_address(entry["host"]).is_global]
        if not public:
            raise OSError(None, f"{host} has no public address")
        return public


def is_inner(host: str) -> bool:
    """Whether a host is named by an address that is not public, or is this machine. Names are not looked up."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return not ipaddress.ip_address(host.strip("[]")).is_global
    except ValueError:
        return False


def _retry_after(value: str | None) -> float | None:
    """Seconds, of a number or a date (RFC 9110, section 10.2.3); None for neither."""
    if value is None:
        return None
    try:
        seconds = float(int(value))
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)
