"""GETs of services that are not believed: bounded, with time-outs, and never led into an inner network."""

from __future__ import annotations

import asyncio
import email.utils
import ipaddress
import re
import socket
import time
import urllib.request
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from importlib.metadata import version
from typing import Final

import aiohttp
from aiohttp.abc import ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from ipfs_stream_nb.content.ipns import record
from ipfs_stream_nb.content.retrieval.provider import FoundNowhereError, StalledError, within
from ipfs_stream_nb.content.retrieval.settings import RetrievalSettings
from ipfs_stream_nb.errors import (
    BusyError,
    IPFSStreamError,
    NotFoundError,
    RefusedError,
    RetrievalError,
    RetrievalTimeoutError,
    UnreachableError,
)

MAX_REDIRECTS: Final = 5
MAX_RETRY_AFTER: Final = 600.0
"""Seconds that a service may ask to be left alone for."""
_REDIRECTS: Final = {301, 302, 303, 307, 308}
_GONE: Final = {404, 410}
_REFUSED: Final = {401, 403, 451}
_BUSY: Final = {429, 503}
_NOT_PUBLIC: Final = (".localhost", ".local", ".internal", ".home.arpa")
"""Ends of names that the public DNS does not have (RFC 6761, 6762, 8375; ICANN's choice of 2024)."""
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
"""The last four bytes are an IPv4 address (RFC 6052)."""
_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
"""All that is given to anybody on the public network. What lies beyond has an IPv4 address in it in some abandoned way
(::/96, ::ffff:0:0:0/96), is for one network alone (64:ff9b:1::/48, fec0::/10), or is nobody's."""
_SECONDS: Final = re.compile(r"\s*-?[0-9]+\s*")


class HTTPSource:
    """Asks one service by GET, with its redirects. It belongs to the event loop that uses it."""

    def __init__(self, url: str, settings: RetrievalSettings) -> None:
        """`url` is its base URL."""
        self.url = URL(url if url.endswith("/") else f"{url}/")
        self.name = str(self.url).rstrip("/")
        self.settings = settings
        self.questions = asyncio.Semaphore(settings.max_requests)
        """Requests that nobody else counts: a Retriever counts those for blocks."""
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    @property
    def is_inner(self) -> bool:
        """Whether its name says that it is on this machine or in an inner network (see `is_inner`)."""
        return is_inner(self.url.host or "")

    @asynccontextmanager
    async def request(
        self, path: str, params: Mapping[str, str], headers: Mapping[str, str]
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        """One GET with its redirects; everything that goes wrong on the way is one of our errors."""
        url = self.url.joinpath(path) % params
        until = asyncio.get_running_loop().time() + self.settings.answer_timeout
        with self._our_errors():
            for _ in range(MAX_REDIRECTS + 1):
                async with asyncio.timeout_at(until):
                    response = await self._open().get(url, headers=headers, allow_redirects=False)
                async with response:
                    location = response.headers.get("Location")
                    if response.status in _REDIRECTS and location is not None:
                        url = self._redirected(url, location)
                        continue
                    if response.status != 200:
                        raise await self.error(response)
                    encoding = response.headers.get("Content-Encoding", "identity")
                    if encoding != "identity":
                        raise RetrievalError(f"it compresses what it was asked to send as it is ({encoding})")
                    yield response
                    return
            raise RetrievalError(f"it redirects over {MAX_REDIRECTS} times")

    @contextmanager
    def _our_errors(self) -> Iterator[None]:
        settings = self.settings
        try:
            yield
        except IPFSStreamError:
            raise
        except aiohttp.ConnectionTimeoutError:
            raise UnreachableError(f"no connection in {settings.connect_timeout:g} s") from None
        except TimeoutError:
            raise RetrievalTimeoutError(f"no answer in {settings.answer_timeout:g} s") from None
        except aiohttp.ClientConnectorError as error:
            raise UnreachableError(f"it cannot be reached: {error.os_error.strerror or error}") from None
        except (aiohttp.ClientError, ConnectionError, ValueError) as error:
            raise RetrievalError(f"it broke off, or does not speak HTTP ({type(error).__name__})") from None
        except RuntimeError:
            if not self._closed:
                raise
            raise RetrievalError("its connections were closed") from None

    async def pieces(self, response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
        """The body as it comes."""
        while True:
            try:
                async with asyncio.timeout(self.settings.stall_timeout):
                    piece = await response.content.readany()
            except TimeoutError:
                stalled = f"it stopped in the middle of an answer, for {self.settings.stall_timeout:g} s"
                raise StalledError(stalled) from None
            if not piece:
                return
            yield piece

    async def read(
        self, response: aiohttp.ClientResponse, limit: int, what: str, *, seconds: float | None = None
    ) -> bytes:
        """The whole body, in so many `seconds` (None: the time for an answer to begin).

        Raises RefusedError where it is over `limit` bytes, which is too many for `what`, and TooSlowError.
        """
        if (response.content_length or 0) > limit:
            raise RefusedError(f"it answers with {response.content_length:,} bytes, too many for {what}")
        data = bytearray()
        deadline = within(self.settings.answer_timeout if seconds is None else seconds, f"all of {what}")
        async with deadline, aclosing(self.pieces(response)) as pieces:
            async for piece in pieces:
                data += piece
                if len(data) > limit:
                    raise RefusedError(f"it answers with over {limit:,} bytes, too many for {what}")
        return bytes(data)

    async def record(self, path: str, params: Mapping[str, str]) -> bytes:
        """A signed IPNS record, not verified. Raises NotFoundError where there is none, and as `request` does."""
        request = self.request(path, params, {"Accept": record.MEDIA_TYPE})
        async with self.questions, request as response:
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
        if status in _REFUSED:
            return RefusedError(f"it refuses to give it (HTTP {status})")
        return (FoundNowhereError if status == 504 else RetrievalError)(f"it answers HTTP {status}")

    def _open(self) -> aiohttp.ClientSession:
        if self._closed:
            raise RetrievalError("its connections were closed")
        if self._session is None:
            inner = self.is_inner
            self._session = aiohttp.ClientSession(
                headers={
                    "User-Agent": f"ipfs_stream_nb/{version('ipfs_stream_nb')}",
                    "Accept-Encoding": "identity",
                },
                timeout=aiohttp.ClientTimeout(total=None, connect=self.settings.connect_timeout),
                connector=aiohttp.TCPConnector(limit=0, resolver=Resolver(inner=inner)),
                trust_env=not inner,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,  # a few bytes could become a great many
                read_bufsize=1024 * 1024,
            )
        return self._session

    async def close(self) -> None:
        """End its connections, and what is under way on them. Idempotent."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()


class Resolver(ThreadedResolver):
    """DNS that knows public addresses only, so that a public service cannot send this server into its own network."""

    def __init__(self, *, inner: bool) -> None:
        """With `inner` it knows all addresses."""
        super().__init__()
        self._inner = inner
        # the operator's own proxy, which is asked for whatever is public, may well be in an inner network
        proxies = [URL(url) for url in urllib.request.getproxies().values() if "://" in url]
        self._proxies = {(proxy.host, proxy.port) for proxy in proxies}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """As every resolver's; names below localhost are this machine (RFC 6761). Raises OSError for no address."""
        if host.endswith(".localhost"):
            host = "localhost"
        found = await super().resolve(host, port, family)
        if self._inner or (host, port) in self._proxies:
            return found
        public = [entry for entry in found if _is_public(ipaddress.ip_address(entry["host"]))]
        if not public:
            text = f"{host} has no public address; what is in an inner network is named by its address"
            raise OSError(None, text)
        return public


def is_inner(host: str) -> bool:
    """Whether a host is this machine or in an inner network, by its address or by the look of its name.

    Names are not looked up. Those without a dot are given by an inner network, as in `http://kubo:8080`.
    """
    host = host.strip("[]").rstrip(".").lower()
    try:
        return not _is_public(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return not _is_public(ipaddress.IPv4Address(socket.inet_aton(host)))  # 127.1, or 2130706433
    except OSError:
        return "." not in host or host.endswith(_NOT_PUBLIC)


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        inside = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inside = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if inside is not None:
            return _is_public(inside)
        if address not in _UNICAST:
            return False
    return address.is_global and not address.is_multicast


def _retry_after(value: str | None) -> float | None:
    """Seconds, of a number or a date (RFC 9110, section 10.2.3); None for neither."""
    if value is None:
        return None
    if _SECONDS.fullmatch(value):
        seconds = float(value)  # infinite for hundreds of digits, where an int would not become a float
    else:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)
