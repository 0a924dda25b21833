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
    from ipfs_stream_nb.webrtc.adaptation import AdaptiveBitrateController
    from ipfs_stream_nb.webrtc.buffer import StreamBuffer
    from ipfs_stream_nb.webrtc.low_latency import LowLatencyStreamTrack
    from ipfs_stream_nb.webrtc.manager import WebRTCStreamingManager
    from ipfs_stream_nb.webrtc.signaling import handle_webrtc_signaling
    from ipfs_stream_nb.webrtc.tracks import IPFSMediaStreamTrack
    from ipfs_stream_nb.widgets.abr_chart import AbrChart
    from ipfs_stream_nb.widgets.uploader import Uploader

_HOMES = {
    "AbrChart": "widgets.abr_chart",
    "AdaptiveBitrateController": "webrtc.adaptation",
    "AsyncClient": "clients.content",
    "AuthorizedNotificationManager": "notifications.authorized",
    "CID": "content.cid",
    "Client": "clients.sync",
    "connect": "clients.connect",
    "connect_async": "clients.connect",
    "ContentProcessor": "processing.processor",
    "EmbeddedNode": "content.embedded",
    "handle_webrtc_signaling": "webrtc.signaling",
    "IPFSContentStream": "content.stream",
    "IPFSMediaStreamTrack": "webrtc.tracks",
    "IPFSResourceManager": "content.pipe",
    "IPFSStreamError": "errors",
    "IPFSUploadHandler": "content.upload_handler",
    "KuboNode": "content.kubo.node",
    "LowLatencyStreamTrack": "webrtc.low_latency",
    "NetworkOptimizer": "network",
    "NodeSettings": "content.nodes",
    "NotificationClient": "clients.notifications",
    "NotificationManager": "notifications.manager",
    "NotificationType": "notifications.events",
    "open_node": "content.nodes",
    "process_content": "processing.processor",
    "ResilienceContentStream": "content.resilience",
    "StreamBuffer": "webrtc.buffer",
    "Uploader": "widgets.uploader",
    "WebRTCClient": "clients.webrtc",
    "WebRTCStreamingManager": "webrtc.manager",
}

__all__ = [
    "CID",
    "AbrChart",
    "AdaptiveBitrateController",
    "AsyncClient",
    "AuthorizedNotificationManager",
    "Client",
    "ContentProcessor",
    "EmbeddedNode",
    "IPFSContentStream",
    "IPFSMediaStreamTrack",
    "IPFSResourceManager",
    "IPFSStreamError",
    "IPFSUploadHandler",
    "KuboNode",
    "LowLatencyStreamTrack",
    "NetworkOptimizer",
    "NodeSettings",
    "NotificationClient",
    "NotificationManager",
    "NotificationType",
    "ResilienceContentStream",
    "StreamBuffer",
    "Uploader",
    "WebRTCClient",
    "WebRTCStreamingManager",
    "connect",
    "connect_async",
    "handle_webrtc_signaling",
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
