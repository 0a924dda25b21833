"""KuboNodes over test daemons."""

from __future__ import annotations

from ipfs_stream_nb.content.blocks import BlockStore
from ipfs_stream_nb.content.kubo.discovery import find_kubo
from ipfs_stream_nb.content.kubo.node import KuboNode
from ipfs_stream_nb.content.kubo.provider import KuboProvider
from ipfs_stream_nb.content.kubo.rpc import KuboRPC
from ipfs_stream_nb.content.retrieval.retriever import Retriever
from ipfs_stream_nb.content.retrieval.settings import RetrievalSettings

SETTINGS = RetrievalSettings(gateways=(), routers=(), max_retries=0)


def rpc_of(url):
    """The RPC at a URL."""
    address = find_kubo(url)
    assert address is not None
    return KuboRPC(address)


def node_of(url, path, **options):
    """A node over the daemon at a URL, with its cache at `path`; `options` are the provider's."""
    rpc = rpc_of(url)
    store = BlockStore.open(path, min_free=0)
    return KuboNode(store, Retriever([KuboProvider(rpc, **options)], SETTINGS), rpc)
