"""One place that puts a node together: its store, whoever is asked for what is not in it, and how names are resolved."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from ipfs_stream_nb.content.blocks import BlockStore
from ipfs_stream_nb.content.blocks.filesystems import default_repo
from ipfs_stream_nb.content.blocks.store import DEFAULT_CACHE_QUOTA, MIN_FREE
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.content.ipns.resolver import NameResolver
from ipfs_stream_nb.content.kubo.discovery import find_kubo
from ipfs_stream_nb.content.kubo.flatfs import FlatFS
from ipfs_stream_nb.content.kubo.node import KuboNode
from ipfs_stream_nb.content.kubo.provider import KuboProvider, find_files
from ipfs_stream_nb.content.kubo.rpc import KuboRPC
from ipfs_stream_nb.content.node import Node
from ipfs_stream_nb.content.retrieval.gateway import TrustlessGateway
from ipfs_stream_nb.content.retrieval.provider import Provider
from ipfs_stream_nb.content.retrieval.retriever import Retriever
from ipfs_stream_nb.content.retrieval.routing import DelegatedRouting
from ipfs_stream_nb.content.retrieval.settings import RetrievalSettings
from ipfs_stream_nb.errors import BadRequestError, IPFSStreamError, UnreachableError

NodeKind = Literal["auto", "embedded", "kubo"]
NODE_KINDS: Final[tuple[NodeKind, ...]] = get_args(NodeKind)
KUBO_TIMEOUT: Final = 5.0
"""Seconds in which a daemon that the node cannot be without must tell its version."""


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What a node is made of. Sizes are bytes."""

    kind: NodeKind = "auto"
    """"embedded": what is added and pinned is kept in the own store, and what is not there comes from gateways.
    "auto": the same, and a Kubo daemon is asked before the gateways where one is found. It is not given what is
    added, since it announces what it holds to the world. "kubo": adds, pins and garbage collection are the daemon's;
    what is read comes from the own store, from the daemon, or from gateways."""
    repo: str | os.PathLike[str] | None = None
    """Directory of the store; None: `default_repo()`."""
    quota: int | None = None
    """What the store may hold in all; None: as much as the disk has room for."""
    min_free: int = MIN_FREE
    """What must stay free on its disk."""
    cache_quota: int | None = DEFAULT_CACHE_QUOTA
    """What it may hold of blocks that were fetched and not pinned; the least recently used make room. None: as far
    as the other limits go; 0: none are kept."""
    kubo_api: str | None = None
    """Where Kubo's RPC is: a URL or a multiaddr. None: $IPFS_API, or what a running daemon wrote to
    $IPFS_PATH/api or ~/.ipfs/api."""
    kubo_auth: str | None = field(default=None, repr=False)
    """How it lets us in, "bearer:TOKEN" or "basic:USER:PASSWORD"; None: $IPFS_API_AUTH, or not at all."""
    retrieval: RetrievalSettings = field(default_factory=RetrievalSettings.from_environment)
    """The gateways and routers, and how patient to be."""

    def __post_init__(self) -> None:
        if self.kind not in NODE_KINDS:
            raise BadRequestError(f"a node is one of {', '.join(NODE_KINDS)}, not {self.kind!r}")


async def open_node(settings: NodeSettings | None = None) -> Node:
    """The node that the settings describe, or else the environment; closing it closes everything.

    A daemon that is found and does not answer is no error where it is only asked for blocks: it is tried again later.
    Raises StoreError where the store cannot be used, BadRequestError for an address that is none, and for "kubo"
    UnreachableError where no daemon is found or none answers.
    """
    settings = settings or NodeSettings()
    address = None
    if settings.kind != "embedded":
        address = await asyncio.to_thread(find_kubo, settings.kubo_api, settings.kubo_auth)
    rpc = None if address is None else KuboRPC(address)
    retriever, names = _sources(settings.retrieval, rpc)
    try:
        files = await _check_kubo(rpc) if settings.kind == "kubo" else None
        store = await asyncio.to_thread(
            BlockStore.open,
            settings.repo or default_repo(),
            quota=settings.quota,
            min_free=settings.min_free,
            cache_quota=settings.cache_quota,
        )
    except BaseException:
        for source in (names, retriever):
            if source is not None:
                await source.close()
        raise
    if settings.kind == "kubo" and rpc is not None and retriever is not None:
        return KuboNode(store, retriever, rpc, names=names, files=files)
    return EmbeddedNode(store, retriever, names=names)


def _sources(
    settings: RetrievalSettings, kubo: KuboRPC | None
) -> tuple[Retriever | None, NameResolver | None]:
    """Who asks Kubo, then the gateways, for blocks and for what names stand for; nobody where there are none."""
    gateways = [TrustlessGateway(url, settings) for url in settings.gateways]
    providers: list[Provider] = [] if kubo is None else [KuboProvider(kubo, patience=settings.answer_timeout)]
    providers += gateways
    if not providers:
        return None, None
    routing = DelegatedRouting(settings.routers, settings) if settings.routers else None
    return Retriever(providers, settings, router=routing), NameResolver(kubo, gateways, routing)


async def _check_kubo(rpc: KuboRPC | None) -> FlatFS | None:
    """See that the daemon answers; its block files, where they can be read."""
    if rpc is None:
        raise UnreachableError(
            "no Kubo daemon was found: start one with `ipfs daemon`, or say where it is with kubo_api or $IPFS_API"
        )
    try:
        async with asyncio.timeout(KUBO_TIMEOUT):
            await rpc.check()
            return await find_files(rpc)
    except TimeoutError as error:
        if isinstance(error, IPFSStreamError):
            raise
        raise UnreachableError(
            f"{rpc.address.name} did not answer within {KUBO_TIMEOUT:g} s; is it a Kubo daemon's RPC?"
        ) from None
