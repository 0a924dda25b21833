"""Delegated routers (https://specs.ipfs.tech/routing/http-routing-v1/): who else has a block, and signed records of names.

Of the peers that a router names, only trustless HTTP gateways are of use here. What it says is a hint: blocks are
hashed and records verified, wherever they come from.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any, Final

import aiohttp
from cachetools import TTLCache
from yarl import URL

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.retrieval.health import Health
from ipfs_stream_nb.content.retrieval.http import HTTPSource, is_inner
from ipfs_stream_nb.content.retrieval.provider import as_ours
from ipfs_stream_nb.content.retrieval.settings import RetrievalSettings
from ipfs_stream_nb.errors import IPFSStreamError, NotFoundError, RetrievalError

MAX_GATEWAYS: Final = 16
"""Gateways that are taken of one answer; what follows is not read."""
MAX_ANSWER: Final = 1024 * 1024
"""Bytes of an answer that are read: a hundred providers, as the specification has it, take a tenth."""
MAX_ADDRESSES: Final = 64
"""Addresses of one provider that are looked at."""
FOUND_SECONDS: Final = 300.0
"""How long it is remembered who has a block."""
NOTHING_SECONDS: Final = 60.0
"""How long it is remembered that nobody was found, or no router answered."""
REMEMBERED: Final = 4096
GATEWAY_PROTOCOL: Final = "transport-ipfs-gateway-http"
_NDJSON: Final = "application/x-ndjson"
_JSON: Final = "application/json"
_FILTER: Final = {"filter-protocols": f"unknown,{GATEWAY_PROTOCOL}"}
"""IPIP-484: what else there is, most of it, need not be sent. Routers that do not know it send all."""
_MULTIADDR: Final = re.compile(
    r"/(?:ip4|ip6|dns|dns4|dns6)/(?P<host>[A-Za-z0-9._:-]+)(?:/tcp/(?P<port>[0-9]{1,5}))?"
    r"/(?P<scheme>https|http|tls/http|tls/sni/(?P<sni>[^/]+)/http)(?:/p2p/[^/]+)?/?"
)


class DelegatedRouter(HTTPSource):
    """One router."""

    def __init__(self, url: str, settings: RetrievalSettings) -> None:
        """`url` is what stands before /routing/v1."""
        super().__init__(url, settings)
        self.health = Health()

    async def providers(self, cid: CID) -> list[str]:
        """Base URLs of gateways that have a block, the first ones that it names; raises as HTTPSource.request does.

        What has arrived counts where the answer breaks off or stalls: it may come out of a long search.
        """
        urls: list[str] = []
        request = self.request(
            f"routing/v1/providers/{cid.v1()}", _FILTER, {"Accept": f"{_NDJSON}, {_JSON};q=0.9"}
        )
        try:
            async with self.questions, request as response:
                if response.content_type == _NDJSON:
                    await self._read_lines(response, urls)
                else:
                    body = _json(await self.read(response, MAX_ANSWER, "a list of providers"))
                    providers = body.get("Providers") if isinstance(body, dict) else None
                    for provider in providers if isinstance(providers, list) else []:
                        self._take(provider, urls)
        except NotFoundError:
            return []
        except IPFSStreamError:
            if not urls:
                raise
        return urls[:MAX_GATEWAYS]

    async def _read_lines(self, response: aiohttp.ClientResponse, urls: list[str]) -> None:
        """The providers of an answer in lines, as they come."""
        until = time.monotonic() + self.settings.answer_timeout
        buffer, size = b"", 0
        async with aclosing(self.pieces(response)) as pieces:
            async for piece in pieces:
                size += len(piece)
                *lines, buffer = (buffer + piece).split(b"\n")
                for line in lines:
                    self._take(_json(line), urls)
                if len(urls) >= MAX_GATEWAYS or size > MAX_ANSWER or time.monotonic() > until:
                    return
        self._take(_json(buffer), urls)

    def _take(self, provider: Any, urls: list[str]) -> None:
        inner = self.is_inner and self.settings.allow_inner_providers
        urls.extend(url for url in gateways_of(provider, inner=inner) if url not in urls)

    async def ipns_record(self, name: str) -> bytes:
        """The signed record of an IPNS name in base 36, not verified; raises as HTTPSource.request does."""
        return await self.record(f"routing/v1/ipns/{name}", {})


def _json(text: bytes) -> Any:
    if not text.strip():
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RetrievalError("its answer is not JSON") from None


def gateways_of(provider: Any, *, inner: bool = False) -> list[str]:
    """Base URLs of the trustless gateway in a record of the peer schema; none where it is no such gateway.

    Only https and public addresses, so that nobody who is named can send this server into its own network, nor tell
    others on the way what is read; with `inner` all may be named. And only a whole site: a path of a stranger's choice
    could mean anything there.
    """
    if not isinstance(provider, dict) or provider.get("Schema") != "peer":
        return []
    protocols, addresses = provider.get("Protocols"), provider.get("Addrs")
    if isinstance(protocols, list) and protocols and GATEWAY_PROTOCOL not in protocols:
        return []
    if not isinstance(addresses, list):
        return []
    found = (_base_url(address) for address in addresses[:MAX_ADDRESSES] if isinstance(address, str))
    return [
        str(url).rstrip("/")
        for url in found
        if url is not None and (inner or (url.scheme == "https" and not is_inner(url.host or "")))
    ]


def _base_url(address: str) -> URL | None:
    """Of a multiaddr (https://github.com/multiformats/multiaddr) that ends with HTTP, or of a URL (IPIP-518)."""
    match = _MULTIADDR.fullmatch(address)
    try:
        if match is not None:
            host, port = match["host"], match["port"]
            if match["sni"] not in {None, host}:
                return None  # a URL has one name for both
            if port and not 0 < int(port) < 65536:
                return None
            scheme = "http" if match["scheme"] == "http" else "https"
            return URL.build(scheme=scheme, host=host, port=int(port) if port else None)
        url = URL(address)
    except ValueError:
        return None
    plain = (
        url.scheme in {"http", "https"}
        and url.host
        and "@" not in address
        and url.raw_path in {"", "/"}
        and not (url.query_string or url.fragment)
    )
    return url if plain else None


class DelegatedRouting:
    """All routers, asked at once; the first answer that names somebody counts. It belongs to one event loop."""

    def __init__(self, urls: Sequence[str], settings: RetrievalSettings) -> None:
        self.routers = [DelegatedRouter(url, settings) for url in urls]
        self._found: TTLCache[bytes, list[str]] = TTLCache(REMEMBERED, FOUND_SECONDS)
        self._nothing: TTLCache[bytes, bool] = TTLCache(REMEMBERED, NOTHING_SECONDS)

    async def providers(self, cid: CID) -> list[str]:
        """Base URLs of trustless gateways that may have a block; none where nobody knows one, or no router answers."""
        key = cid.multihash
        found = self._found.get(key)
        if found is None and key not in self._nothing:
            found = await self._first(cid)
            if found:
                self._found[key] = found
            else:
                self._nothing[key] = True
        return found or []

    async def _first(self, cid: CID) -> list[str]:
        asking = {
            asyncio.create_task(_ask(router, cid), name=f"route {cid}")
            for router in self.routers
            if router.health.usable
        }
        try:
            while asking:
                done, asking = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if task.result():
                        return task.result()
            return []
        finally:
            for task in asking:
                task.cancel()
            if asking:
                await asyncio.wait(asking)

    async def close(self) -> None:
        """End their connections. Idempotent."""
        for router in self.routers:
            await router.close()


async def _ask(router: DelegatedRouter, cid: CID) -> list[str]:
    """What one router says; nothing where it fails, which counts."""
    health, began = router.health, router.health.clock()
    try:
        with health.asked():
            urls = await router.providers(cid)
    except Exception as error:  # noqa: BLE001  # noted, and the others are asked
        health.note(as_ours(error, router.name), about=cid.multihash, began=began)
        return []
    health.answered(health.clock() - began)
    return urls
