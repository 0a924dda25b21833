"""The route table: every path of the extension, relative to the server's base URL."""

from __future__ import annotations

from typing import Any, Final

from tornado.web import RequestHandler

from ipfs_stream_nb_server.context import ServerContext
from ipfs_stream_nb_server.handlers.add import AddHandler, DirectoriesHandler
from ipfs_stream_nb_server.handlers.content import ContentHandler
from ipfs_stream_nb_server.handlers.health import HealthHandler
from ipfs_stream_nb_server.handlers.inspection import (
    ListHandler,
    SourcesHandler,
    StatHandler,
    UnknownHandler,
)
from ipfs_stream_nb_server.handlers.names import NamedContentHandler, NameHandler
from ipfs_stream_nb_server.handlers.notifications import (
    EventsHandler,
    MetricsSocket,
    NotificationEventsHandler,
    NotificationSocket,
)
from ipfs_stream_nb_server.handlers.pins import GCHandler, PinHandler, PinsHandler
from ipfs_stream_nb_server.handlers.sockets import BidirectionalSocket, StreamSocket, UploadSocket
from ipfs_stream_nb_server.handlers.sse import StreamEventsHandler
from ipfs_stream_nb_server.handlers.tokens import TokensHandler
from ipfs_stream_nb_server.handlers.webrtc import SignalingSocket, WhepHandler

Route = tuple[str, type[RequestHandler], dict[str, Any]]

_ROUTES: Final[tuple[tuple[str, type[RequestHandler]], ...]] = (
    (r"/ipfs/?", AddHandler),
    (r"/ipfs/(.+)", ContentHandler),
    (r"/ipns/(.+)", NamedContentHandler),
    (r"/ws/stream/(.+)", StreamSocket),
    (r"/ws/upload", UploadSocket),
    (r"/ws/bidirectional", BidirectionalSocket),
    (r"/ws/webrtc", SignalingSocket),
    (r"/whep/(.+)", WhepHandler),
    (r"/ws/notifications", NotificationSocket),
    (r"/ws/metrics", MetricsSocket),
    (r"/sse/stream/(.+)", StreamEventsHandler),
    (r"/sse/notifications", NotificationEventsHandler),
    (r"/ipfs-stream/stat/(.+)", StatHandler),
    (r"/ipfs-stream/ls/(.+)", ListHandler),
    (r"/ipfs-stream/sources/([^/]+)", SourcesHandler),
    (r"/ipfs-stream/names/([^/]+)", NameHandler),
    (r"/ipfs-stream/pins", PinsHandler),
    (r"/ipfs-stream/pins/([^/]+)", PinHandler),
    (r"/ipfs-stream/directories", DirectoriesHandler),
    (r"/ipfs-stream/gc", GCHandler),
    (r"/ipfs-stream/tokens", TokensHandler),
    (r"/ipfs-stream/events", EventsHandler),
    (r"/ipfs-stream/health", HealthHandler),
    (r"/ipfs-stream/(.*)", UnknownHandler),
)


def routes(context: ServerContext) -> list[Route]:
    """Tornado's rules for all of them."""
    return [(pattern, handler, {"context": context}) for pattern, handler in _ROUTES]
