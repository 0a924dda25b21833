"""What the handlers share: the node, the policy, the token signer and the limits."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.content.gateway import GatewaySettings
from ipfs_stream_nb.content.node import Node
from ipfs_stream_nb.content.reading import ReadingNode
from ipfs_stream_nb.errors import IPFSStreamError, StoreError
from ipfs_stream_nb.notifications.content_events import ContentEvents
from ipfs_stream_nb.notifications.emitting import Emit, emit_error
from ipfs_stream_nb.notifications.system_monitor import emit_started
from ipfs_stream_nb.security.access import AccessPolicy
from ipfs_stream_nb.security.tokens import TokenSigner
from ipfs_stream_nb_server.feed import Feed
from ipfs_stream_nb_server.limits import Limits, Slots
from ipfs_stream_nb_server.peers import Peers, PeerSettings

EXPIRE_SECONDS: Final = 600.0
"""Seconds between two looks at abandoned uploads."""
REOPEN_AFTER: Final = 5.0
"""Seconds after a store could not be opened, or was lost, until a request makes the server try again."""


class NodeHolder:
    """The server's node: opened once, at the first need, without holding up anybody else.

    A store that cannot be opened, or that is lost while it is open (its directory deleted, its disk unplugged),
    does not stop the server: every request for the node gets the reason as a StoreError, and the store is tried
    again after a while.
    """

    def __init__(self, opener: Callable[[], Awaitable[Node]], log: logging.Logger) -> None:
        self._opener = opener
        self._log = log
        self._opening: asyncio.Task[str | None] | None = None
        self._retry_at = 0.0
        self._closed = False
        self.node: Node | None = None
        """The node where it is open already."""
        self.on_open: Callable[[Node], None] = lambda _node: None
        """Called with the node once it is open."""
        self.on_failure: Callable[[str], None] = lambda _reason: None
        """Called with the reason why there is none: it cannot be opened, or was lost."""

    def start(self) -> asyncio.Task[str | None]:
        """Begin to open the node, so that the first request finds it open. A failure is logged, not raised."""
        if self._opening is None or (self._opening.done() and time.monotonic() >= self._retry_at):
            self._opening = asyncio.create_task(self._open(), name="open the block store")
        return self._opening

    async def get(self) -> Node:
        """The open node. Raises StoreError with the reason why there is none."""
        if self.node is not None:
            return self.node
        if self._closed:
            raise StoreError("the server is shutting down")
        reason = await asyncio.shield(self.start())  # a client that leaves must not end it for the others
        if self.node is None:
            raise StoreError(reason or "the server is shutting down")
        return self.node

    async def _open(self) -> str | None:
        """Open it, or give the reason why not."""
        try:
            self.node = await self._opener()
        except IPFSStreamError as error:
            reason = str(error)
        except OSError as error:
            reason = f"the block store cannot be opened: {error.strerror}: {error.filename}"
        except Exception:  # noqa: BLE001  # whatever it is, the server goes on, and says it on each request
            self._log.exception("The IPFS block store cannot be opened")
            reason = "the block store cannot be opened; the server's log says why"
        else:
            self.on_open(self.node)
            return None
        return self._rest(reason)

    def _rest(self, reason: str) -> str:
        self._log.error("No IPFS content can be served: %s", reason)
        self._retry_at = time.monotonic() + REOPEN_AFTER
        self.on_failure(reason)
        return reason

    def suspect(self, node: Node) -> None:
        """Say that a request failed with a StoreError: if the node's store is lost, the node is given up.

        A store that still answers is kept: the error was about something in it, and others are using it.
        """
        if node is self.node and not self._closed and (self._opening is None or self._opening.done()):
            self._opening = asyncio.create_task(self._examine(node), name="examine the block store")

    async def _examine(self, node: Node) -> str | None:
        """Close a lost node, and give the reason; None where it is not lost."""
        try:
            await node.repo_stat()
        except StoreError as error:
            self.node = None
            reason = self._rest(str(error))
            await node.close()  # before it is opened anew: a process has a store's files open once
            return reason
        return None

    async def close(self) -> None:
        """Close the node, also where it is still being opened. Idempotent."""
        self._closed = True
        if self._opening is not None:
            await asyncio.wait([self._opening])
        if self.node is not None:
            node, self.node = self.node, None
            await node.close()


@dataclass
class ServerContext:
    """One per server; every handler is given it."""

    nodes: NodeHolder
    signer: TokenSigner
    feed: Feed
    peer_settings: PeerSettings = field(default_factory=PeerSettings)
    policy: AccessPolicy = field(default_factory=AccessPolicy)
    gateway: GatewaySettings = field(default_factory=lambda: GatewaySettings(stored_ranges=True))
    limits: Limits = field(default_factory=Limits)
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("ipfs_stream_nb.server"))

    def __post_init__(self) -> None:
        self.streams = Slots("downloads", self.limits.max_streams, self.limits.max_streams_per_user)
        self.adds = Slots("uploads", self.limits.max_adds, self.limits.max_adds_per_user)
        self.subscribers = Slots(
            "subscribers", self.limits.max_subscribers, self.limits.max_subscribers_per_user
        )
        self.content_events = ContentEvents(self.emit)
        self.peers = Peers(self.peer_settings, self.emit)
        self.nodes.on_open, self.nodes.on_failure = self._note_node, self._note_no_node
        self.feed.attach(lambda: self.nodes.node, self.active)
        self._tasks: set[asyncio.Task[None]] = set()
        self._talks: set[asyncio.Task[None]] = set()
        self._expiring: asyncio.Task[None] | None = None

    @property
    def emit(self) -> Emit:
        """Takes the events of this server."""
        return self.feed.manager.emit

    def _note_node(self, node: Node) -> None:
        if isinstance(node, ReadingNode):
            node.observers.append(self.content_events.observe)
        emit_started(self.emit, node.kind)

    def _note_no_node(self, reason: str) -> None:
        emit_error(self.emit, "open the block store", StoreError(reason))

    def active(self) -> dict[str, int]:
        """How much of what runs now."""
        return {
            "streams": self.streams.active,
            "uploads": self.adds.active,
            "peer_connections": self.peers.active,
            "subscribers": self.subscribers.active,
        }

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Have something done that outlives its request; `close` waits for it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def watch(self, talk: asyncio.Task[None]) -> None:
        """Have a conversation end with the server; an upload is left so that it can be resumed."""
        self._talks.add(talk)
        talk.add_done_callback(self._talks.discard)

    def start(self) -> None:
        """Open the node, and look after abandoned uploads from here on."""
        self.nodes.start()
        self.feed.start()
        self._expiring = asyncio.create_task(self._expire_uploads(), name="expire abandoned uploads")

    async def _expire_uploads(self) -> None:
        """Discard the uploads that nobody came back to, now and every EXPIRE_SECONDS."""
        while True:
            try:
                node = await self.nodes.get()
                if isinstance(node, EmbeddedNode):
                    await node.uploads.expire(self.limits.upload_ttl)
            except IPFSStreamError as error:
                self.log.debug("Abandoned uploads were not looked after: %s", error)
            await asyncio.sleep(min(EXPIRE_SECONDS, self.limits.upload_ttl))

    async def close(self) -> None:
        """End conversations, wait for what is being cleaned up, and close the node."""
        ending = [*self._talks, *([self._expiring] if self._expiring else [])]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, *self._tasks, return_exceptions=True)
        await self.peers.close()
        self.content_events.close()
        await self.feed.close()
        await self.nodes.close()
