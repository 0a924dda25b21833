"""Trustless gateways (https://specs.ipfs.tech/http-gateways/trustless-gateway/): blocks, and CARs of byte ranges.

Files are never asked for, and so neither are HTTP ranges, which gateways answer in many ways. What comes is hashed
by the Retriever, so that a wrong Content-Type or a page of HTML needs no thought of its own here.
"""

from __future__ import annotations

import asyncio
import email.utils
import ipaddress
import json
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

from ipfs_stream_nb.content.car import CarBlock, CarDecoder
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.dag_pb import MAX_BLOCK
from ipfs_stream_nb.content.retrieval.provider import ProviderKind
from ipfs_stream_nb.content.retrieval.settings import RetrievalSettings
from ipfs_stream_nb.errors import (
    BusyError,
    IPFSStreamError,
    NotFoundError,
    RetrievalError,
    RetrievalTimeoutError,
    TooLargeError,
    UnreachableError,
    error_from_json,
)

MAX_REDIRECTS: Final = 5
MAX_RETRY_AFTER: Final = 600.0
"""Seconds that a gateway may ask to be left alone for."""
MAX_ERROR_BYTES: Final = 16 * 1024
"""Bytes of an answer that is an error: our own server says in it what is wrong."""
_RAW: Final = "application/vnd.ipld.raw"
_CAR: Final = "application/vnd.ipld.car; version=1; order=dfs; dups=n"
_GONE: Final = {404, 410}
_BUSY: Final = {429, 503}


class TrustlessGateway:
    """One gateway as a Provider. It belongs to the event loop that uses it."""

    def __init__(
        self,
        url: str,
        settings: RetrievalSettings,
        *,
        kind: ProviderKind = "gateway",
        headers: Mapping[str, str] | None = None,
        near: bool = False,
        name: str | None = None,
    ) -> None:
        """`url` is its base URL; `headers` go with each request to that very origin, and nowhere else."""
        self.kind = kind
        self.near = near
        self.url = URL(url if url.endswith("/") else f"{url}/")
        self.name = name or str(self.url).rstrip("/")
        self._settings = settings
        self._headers = dict(headers or {})
        self._session: aiohttp.ClientSession | None = None

    async def get(self, cid: CID) -> bytes:
        """The block, not verified. Raises as Provider.get does."""
        return await self._block(cid, {})

    async def get_held(self, cid: CID) -> bytes | None:
        """The block where the gateway has it itself, and need not fetch it (RFC 9111, only-if-cached)."""
        try:
            return await self._block(cid, {"Cache-Control": "only-if-cached"})
        except NotFoundError:
            return None

    async def _block(self, cid: CID, headers: Mapping[str, str]) -> bytes:
        async with self._request(cid, {"format": "raw"}, {"Accept": _RAW, **headers}) as response:
            if (response.content_length or 0) > MAX_BLOCK:
                raise RetrievalError(
                    f"it answers with {response.content_length:,} bytes, too many for a block"
                )
            data = bytearray()
            async with aclosing(self._pieces(response)) as pieces:
                async for piece in pieces:
                    data += piece
                    if len(data) > MAX_BLOCK:
                        raise RetrievalError(
                            f"it answers with over {MAX_BLOCK:,} bytes, too many for a block"
                        )
            return bytes(data)

    async def run(self, cid: CID, start: int, stop: int) -> AsyncGenerator[CarBlock, None]:
        """The blocks of bytes `start` to `stop` of a file, as they arrive. Raises as Provider.get does."""
        params = {"format": "car", "dag-scope": "entity", "entity-bytes": f"{start}:{stop - 1}"}
        decoder = CarDecoder()
        request = self._request(cid, params, {"Accept": _CAR})
        async with request as response, aclosing(self._pieces(response)) as pieces:
            async for piece in pieces:
                try:
                    blocks = decoder.feed(piece)
                except TooLargeError as error:
                    raise RetrievalError(f"it sent a CAR that cannot be read: {error}") from error
                for block in blocks:
                    yield block
        decoder.finish()

    async def _pieces(self, response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
        """The body as it comes."""
        while True:
            try:
                async with asyncio.timeout(self._settings.stall_timeout):
                    piece = await response.content.readany()
            except TimeoutError:
                stalled = f"it stopped in the middle of an answer, for {self._settings.stall_timeout:g} s"
                raise RetrievalTimeoutError(stalled) from None
            if not piece:
                return
            yield piece

    @asynccontextmanager
    async def _request(
        self, cid: CID, params: Mapping[str, str], headers: Mapping[str, str]
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        """One GET with its redirects; everything that goes wrong on the way is one of our errors."""
        settings = self._settings
        url = self.url / "ipfs" / str(cid) % params
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
                        raise await self._error(response)
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

    def _redirected(self, url: URL, location: str) -> URL:
        """Where a redirect leads. Raises RetrievalError where a gateway has no business to send us."""
        target = url.join(URL(location))
        if target.scheme not in {"http", "https"} or not target.host:
            raise RetrievalError(f"it redirects to {target.scheme}:, which is not followed")
        if url.scheme == "https" and target.scheme == "http":
            raise RetrievalError("it redirects from https to http, which is not followed")
        if is_inner(target.host) and not is_inner(self.url.host or ""):
            raise RetrievalError(
                f"it redirects into an inner network, to {target.host}, which is not followed"
            )
        return target

    async def _error(self, response: aiohttp.ClientResponse) -> IPFSStreamError:
        status = response.status
        if self.kind == "server":
            try:
                body = json.loads(await response.content.read(MAX_ERROR_BYTES))
            except ValueError:
                body = None
            if isinstance(body, dict) and "code" in body:
                return NotFoundError(str(body.get("error"))) if status == 412 else error_from_json(body)
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
            settings = self._settings
            inner = is_inner(self.url.host or "")
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
