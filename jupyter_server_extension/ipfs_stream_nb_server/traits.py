"""Settings of the extension by subject: notifications, and media to peers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from traitlets import Bool, Dict, Enum, Float, HasTraits, Int, List, Unicode

from ipfs_stream_nb.errors import BadRequestError
from ipfs_stream_nb.media.worker.limits import WorkerLimits
from ipfs_stream_nb.notifications.engine import MAX_AGE, MAX_BYTES, MAX_EVENTS, Engine
from ipfs_stream_nb.notifications.log import SQLiteEngine
from ipfs_stream_nb.webrtc.slots import PeerLimits, PeerSlots
from ipfs_stream_nb_server.peers import PeerSettings

NATS_CREDENTIALS: Final = "IPFS_STREAM_NB_NATS_CREDENTIALS"


def nats_login(text: str) -> dict[str, Any]:
    """What NATS_CREDENTIALS says, as arguments of JetStreamEngine. Raises BadRequestError, without its text."""
    kind, _, rest = text.partition(":")
    if kind == "token" and rest:
        return {"token": rest}
    if kind == "user":
        user, _, password = rest.partition(":")
        if not user or not password:
            raise BadRequestError(f"{NATS_CREDENTIALS} begins with user: and goes on as NAME:PASSWORD")
        return {"user": user, "password": password}
    return {"credentials": text} if text else {}


class NotificationTraits(HasTraits):
    """Where notifications are kept, and how many."""

    notifications_path = Unicode(
        "",
        config=True,
        help="""Directory of the log of notifications, on a local disk. Default: the block store's
        path with `-notifications` behind it. Servers that run at once have a log each in it.""",
    )
    notifications_max_events = Int(
        MAX_EVENTS, min=1, config=True, help="Events that the log keeps; the oldest go first."
    )
    notifications_max_bytes = Int(MAX_BYTES, min=1 << 20, config=True, help="Bytes that it keeps.")
    notifications_max_age = Float(MAX_AGE, min=1.0, config=True, help="Seconds that it keeps them.")
    nats_url = Unicode(
        "",
        config=True,
        help="""A NATS server with JetStream, such as nats://nats.example:4222: the log is a stream there, and all servers
        with the same URL and `nats_stream` share one feed. Needs `pip install ipfs_stream_nb[jetstream]`. Default: a log of
        this server's own. How NATS lets us in may stand in $IPFS_STREAM_NB_NATS_CREDENTIALS: the path of a credentials file,
        or token:TOKEN, or user:NAME:PASSWORD.""",
    )
    nats_stream = Unicode(
        "IPFS_STREAM_NB",
        config=True,
        help="The name of that stream, which is made where it is missing, and of its subjects.",
    )

    def notifications_engine(self, repo: Path) -> Engine:
        """The log; `repo`: the store's directory."""
        limits: dict[str, Any] = {
            "max_events": self.notifications_max_events,
            "max_bytes": self.notifications_max_bytes,
            "max_age": self.notifications_max_age,
        }
        if self.nats_url:
            from ipfs_stream_nb.notifications.jetstream import JetStreamEngine  # noqa: PLC0415  # an extra

            return JetStreamEngine(
                self.nats_url,
                stream=self.nats_stream,
                subject=f"{self.nats_stream.lower()}.events",
                live_subject=f"{self.nats_stream.lower()}.live",
                **nats_login(os.environ.get(NATS_CREDENTIALS, "")),
                **limits,
            )
        return SQLiteEngine(Path(self.notifications_path or f"{repo}-notifications"), **limits)


class PeerTraits(HasTraits):
    """How media reaches WebRTC peers."""

    max_peers: Any
    max_peers_per_user: Any
    max_media_workers: Any
    ice_servers = List(
        Dict(),
        config=True,
        help="""STUN and TURN servers, as a browser's RTCConfiguration has them, such as [{"urls": "turn:turn.example.com:3478",
        "username": …, "credential": …}]. They are told to clients, who must never name any. Default: none, which does
        where clients reach this machine directly.""",
    )
    ice_transport_policy = Enum(
        ["all", "relay"], "all", config=True, help="`relay`: send media through the TURN servers alone."
    )
    allow_loopback_peers = Bool(
        False,
        config=True,
        help="Whether media may be sent to this machine's own loopback and link-local addresses, where a client names them.",
    )

    def peer_settings(self) -> PeerSettings:
        """All of them."""
        return PeerSettings(
            list(self.ice_servers),
            self.ice_transport_policy,
            PeerSlots(self.max_peers, self.max_peers_per_user),
            PeerLimits(allow_loopback=self.allow_loopback_peers),
            WorkerLimits(workers=self.max_media_workers),
        )
