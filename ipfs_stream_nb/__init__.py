"""Stream IPFS media inside Jupyter: `import ipfs_stream_nb as ipfs; client = ipfs.connect()`.

The public names are imported when they are first used, so that the import itself stays quick.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ipfs_stream_nb.clients.connect import connect, connect_async
    from ipfs_stream_nb.clients.content import AsyncClient
    from ipfs_stream_nb.clients.notifications import NotificationClient
    from ipfs_stream_nb.clients.sync import Client
    from ipfs_stream_nb.clients.webrtc import WebRTCClient
    from ipfs_stream_nb.content.cid import CID
    from ipfs_stream_nb.content.embedded import EmbeddedNode
    from ipfs_stream_nb.content.kubo.node import KuboNode
    from ipfs_stream_nb.content.nodes import NodeSettings, open_node
    from ipfs_stream_nb.content.pipe import IPFSResourceManager
    from ipfs_stream_nb.content.resilience import ResilienceContentStream
    from ipfs_stream_nb.content.stream import IPFSContentStream
    from ipfs_stream_nb.content.upload_handler import IPFSUploadHandler
    from ipfs_stream_nb.errors import IPFSStreamError
    from ipfs_stream_nb.network import NetworkOptimizer
    from ipfs_stream_nb.notifications.authorized import AuthorizedNotificationManager
    from ipfs_stream_nb.notifications.events import NotificationType
    from ipfs_stream_nb.notifications.manager import NotificationManager
    from ipfs_stream_nb.processing.processor import ContentProcessor, process_content
    from ipfs_stream_nb.widgets.uploader import Uploader

_HOMES = {
    "AsyncClient": "clients.content",
    "AuthorizedNotificationManager": "notifications.authorized",
    "CID": "content.cid",
    "Client": "clients.sync",
    "ContentProcessor": "processing.processor",
    "EmbeddedNode": "content.embedded",
    "IPFSContentStream": "content.stream",
    "IPFSResourceManager": "content.pipe",
    "IPFSStreamError": "errors",
    "IPFSUploadHandler": "content.upload_handler",
    "KuboNode": "content.kubo.node",
    "NetworkOptimizer": "network",
    "NodeSettings": "content.nodes",
    "NotificationClient": "clients.notifications",
    "NotificationType": "notifications.events",
    "NotificationManager": "notifications.manager",
    "ResilienceContentStream": "content.resilience",
    "Uploader": "widgets.uploader",
    "WebRTCClient": "clients.webrtc",
    "connect": "clients.connect",
    "connect_async": "clients.connect",
    "open_node": "content.nodes",
    "process_content": "processing.processor",
}

__all__ = [
    "CID",
    "AsyncClient",
    "AuthorizedNotificationManager",
    "Client",
    "ContentProcessor",
    "EmbeddedNode",
    "IPFSContentStream",
    "IPFSResourceManager",
    "IPFSStreamError",
    "IPFSUploadHandler",
    "KuboNode",
    "NetworkOptimizer",
    "NodeSettings",
    "NotificationClient",
    "NotificationManager",
    "NotificationType",
    "ResilienceContentStream",
    "Uploader",
    "WebRTCClient",
    "connect",
    "connect_async",
    "open_node",
    "process_content",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version("ipfs_stream_nb")
    if name == "samples":
        return import_module("ipfs_stream_nb.samples")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"ipfs_stream_nb.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", "samples"])
