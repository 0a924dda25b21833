"""The extension as Jupyter sees it: its settings, its routes, and the life of its node."""

from __future__ import annotations

import secrets
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Final

from jupyter_server.extension.application import ExtensionApp
from traitlets import Bool, Bytes, Enum, Float, Int, List, TraitError, Type, Unicode, default, validate

from ipfs_stream_nb.content.blocks.filesystems import default_repo
from ipfs_stream_nb.content.blocks.store import DEFAULT_CACHE_QUOTA, MIN_FREE
from ipfs_stream_nb.content.gateway import GatewaySettings
from ipfs_stream_nb.content.nodes import NODE_KINDS, NodeSettings, open_node
from ipfs_stream_nb.content.retrieval.settings import (
    GATEWAYS_VARIABLE,
    ROUTERS_VARIABLE,
    RetrievalSettings,
    check_url,
)
from ipfs_stream_nb.errors import BadRequestError
from ipfs_stream_nb.security.access import AccessPolicy
from ipfs_stream_nb.security.tokens import DEFAULT_TTL, MAX_TTL, MIN_SECRET, TokenSigner
from ipfs_stream_nb_server.context import NodeHolder, ServerContext
from ipfs_stream_nb_server.feed import Feed, FeedSettings
from ipfs_stream_nb_server.handlers.base import allows_all
from ipfs_stream_nb_server.limits import Limits
from ipfs_stream_nb_server.routes import routes
from ipfs_stream_nb_server.traits import NotificationTraits, PeerTraits

_LIMITS = Limits()
_RETRIEVAL: Final = RetrievalSettings((), ())
_PATIENCE: Final = (
    "connect_timeout",
    "answer_timeout",
    "stall_timeout",
    "block_timeout",
    "hedge_after",
    "max_retries",
    "max_requests",
    "allow_inner_providers",
)
"""Fields of RetrievalSettings that are traits, called retrieval_… here."""


class IPFSStreamExtension(NotificationTraits, PeerTraits, ExtensionApp):
    """IPFS content in a Jupyter server. Set in jupyter_server_config.py as `c.IPFSStreamExtension.… = …`."""

    name = "ipfs_stream_nb_server"
    load_other_extensions = True

    repo_path = Unicode(
        "",
        config=True,
        help="""Directory of the block store. Default: $IPFS_STREAM_NB_REPO, or `repo` in the user's data
        directory. It may be shared by several servers and kernels of one machine, and must not lie on NFS or SMB.""",
    )
    quota = Int(
        None,
        allow_none=True,
        min=0,
        config=True,
        help="Bytes of blocks that the store may hold; adding more is refused with 507. Default: no limit.",
    )
    min_free = Int(
        MIN_FREE,
        min=0,
        config=True,
        help="Bytes that must stay free on the store's disk; adding is refused with 507 before less is left.",
    )
    cache_quota = Int(
        DEFAULT_CACHE_QUOTA,
        allow_none=True,
        min=0,
        config=True,
        help="""Bytes of fetched blocks that the store keeps beside what was added or pinned; the least recently
        used make room for new ones. None: as far as the store's other limits go. 0: what is fetched is not kept.""",
    )
    node = Enum(
        list(NODE_KINDS),
        "auto",
        config=True,
        help="""Who holds what is added and pinned, and who is asked for content that is not in the store.
        `embedded`: the store; then the gateways. `auto`: the store; then a Kubo daemon, where one is found, then the
        gateways. The daemon is not given what users add, since it announces what it holds to the world. `kubo`: the
        daemon holds what is added and pinned, and is asked first; it must be running.""",
    )
    kubo_api = Unicode(
        "",
        config=True,
        help="""Where Kubo's RPC is, such as http://127.0.0.1:5001 or /ip4/127.0.0.1/tcp/5001. Default: $IPFS_API, or
        what a running daemon wrote to $IPFS_PATH/api or ~/.ipfs/api.""",
    )
    kubo_auth = Unicode(
        "",
        config=True,
        help="""How Kubo's RPC lets us in, where it asks for that: bearer:TOKEN or basic:USER:PASSWORD. It is never
        logged. Default: $IPFS_API_AUTH.""",
    )
    gateways = List(
        Unicode(),
        config=True,
        help=f"""Trustless gateways that are asked for blocks, best first as they prove themselves; every block is
        hashed before any of it is used. Empty: none are asked, and these learn nothing of what is read here. Default:
        ${GATEWAYS_VARIABLE} (separated by blanks), or else the public ones.""",
    )
    routers = List(
        Unicode(),
        config=True,
        help=f"""Delegated routers, asked for further gateways where none of those has a block, and for IPNS records.
        Default: ${ROUTERS_VARIABLE}, or else the public one.""",
    )
    retrieval_connect_timeout = Float(
        _RETRIEVAL.connect_timeout,
        min=0.1,
        config=True,
        help="Seconds in which a connection to a gateway must stand.",
    )
    retrieval_answer_timeout = Float(
        _RETRIEVAL.answer_timeout,
        min=0.1,
        config=True,
        help="Seconds in which its answer must begin: it may have to look for the block itself.",
    )
    retrieval_stall_timeout = Float(
        _RETRIEVAL.stall_timeout,
        min=0.1,
        config=True,
        help="Seconds in which the next bytes of its answer must come.",
    )
    retrieval_block_timeout = Float(
        _RETRIEVAL.block_timeout,
        min=0.1,
        config=True,
        help="Seconds in which a whole block, of at most 2 MiB, must have come from one source.",
    )
    retrieval_allow_inner_providers = Bool(
        _RETRIEVAL.allow_inner_providers,
        config=True,
        help="""Whether a router that is itself on an inner network may name gateways on inner networks. Such routers often
        pass on what strangers publish, who could have this server ask your inner services.""",
    )
    retrieval_hedge_after = Float(
        _RETRIEVAL.hedge_after,
        min=0.01,
        config=True,
        help="""Seconds without an answer after which a second source is asked as well; how long a source usually takes
        moves this, between a quarter and four times.""",
    )
    retrieval_max_retries = Int(
        _RETRIEVAL.max_retries,
        min=0,
        config=True,
        help="Rounds through the sources that failed in passing, before a block is given up.",
    )
    retrieval_max_requests = Int(
        _RETRIEVAL.max_requests, min=1, config=True, help="Requests to one source at once."
    )
    public_cache = Bool(
        False,
        config=True,
        help="""Send `Cache-Control: public` with immutable content, for a CDN or a shared cache in front of the
        server. Such a cache then gives the content to whoever it lets in, without asking this server.""",
    )
    access_policy_class = Type(
        AccessPolicy,
        klass=AccessPolicy,
        config=True,
        help="""Decides on (user, action, CID) for every request about content; a subclass of
        ipfs_stream_nb.security.access.AccessPolicy. Default: every authenticated user may do everything.""",
    )
    token_secret = Bytes(
        config=True,
        help=f"""Signs capability tokens; at least {MIN_SECRET} random bytes. Default: new ones at each start,
        which ends the tokens of before. Set it where several servers must accept each other's tokens.""",
    )
    token_ttl = Float(
        DEFAULT_TTL, config=True, help="Seconds that a capability token lives when nothing else is asked for."
    )
    token_max_ttl = Float(MAX_TTL, config=True, help="The most seconds that may be asked for.")
    max_add_size = Int(
        _LIMITS.max_add_size,
        min=1,
        config=True,
        help="Bytes that one upload may have; more is refused with 413.",
    )
    max_adds = Int(_LIMITS.max_adds, min=1, config=True, help="Uploads at once; more are refused with 503.")
    max_adds_per_user = Int(_LIMITS.max_adds_per_user, min=1, config=True, help="The same for one user.")
    max_message_size = Int(
        _LIMITS.max_message_size,
        min=1 << 16,
        config=True,
        help="Bytes of one message that comes over a WebSocket; a longer one closes it with code 1009.",
    )
    max_transfers = Int(
        _LIMITS.max_transfers,
        min=1,
        config=True,
        help="Transfers at once over one two-way socket; more are refused.",
    )
    upload_ttl = Float(
        _LIMITS.upload_ttl,
        min=1.0,
        config=True,
        help="""Seconds after which an upload over a WebSocket that is not whole, and that nobody came back to, is given
        up, with what came of it.""",
    )
    max_streams = Int(
        _LIMITS.max_streams,
        min=1,
        config=True,
        help="Downloads, listings and the like at once; more are refused with 503.",
    )
    max_streams_per_user = Int(
        _LIMITS.max_streams_per_user, min=1, config=True, help="The same for one user."
    )
    stall_timeout = Float(
        _LIMITS.stall_timeout,
        min=1.0,
        config=True,
        help="""Seconds in which a client must take the next piece of a download (at most 1 MiB), or send some of
        its upload, before its connection is closed.""",
    )

    max_peers = Int(
        _LIMITS.max_peers,
        min=1,
        config=True,
        help="WebRTC peer connections at once; more are refused with `busy`.",
    )
    max_peers_per_user = Int(_LIMITS.max_peers_per_user, min=1, config=True, help="The same for one user.")
    max_media_workers = Int(
        _LIMITS.max_media_workers,
        min=1,
        config=True,
        help="""Contents at once that are sent to WebRTC peers. Each has a process of its own, that all its viewers share.""",
    )
    max_subscribers = Int(
        _LIMITS.max_subscribers,
        min=1,
        config=True,
        help="""Connections at once that listen to notifications or metrics, by socket or as server-sent events; more are
        refused with 503.""",
    )
    max_subscribers_per_user = Int(
        _LIMITS.max_subscribers_per_user, min=1, config=True, help="The same for one user."
    )
    subscriber_timeout = Float(
        _LIMITS.subscriber_timeout,
        min=1.0,
        config=True,
        help="Seconds in which such a client must take what it was sent before its connection is closed.",
    )
    answer_timeout = Float(
        _LIMITS.answer_timeout,
        min=1.0,
        config=True,
        help="""Seconds in which the answer to a request for content, a listing or a stat must begin; where that
        takes longer, as with directories made to be slow, it is a 504.""",
    )

    @default("token_secret")
    def _default_token_secret(self) -> bytes:
        return secrets.token_bytes(MIN_SECRET)

    @default("gateways")
    def _default_gateways(self) -> list[str]:
        return list(RetrievalSettings.from_environment().gateways)

    @default("routers")
    def _default_routers(self) -> list[str]:
        return list(RetrievalSettings.from_environment().routers)

    @validate("gateways", "routers")
    def _check_urls(self, proposal: Any) -> list[str]:
        urls: list[str] = proposal["value"]
        for url in urls:
            try:
                check_url(url)
            except BadRequestError as error:
                raise TraitError(str(error)) from None
        return urls

    def _node_settings(self) -> NodeSettings:
        patience = {name: getattr(self, f"retrieval_{name}") for name in _PATIENCE}
        return NodeSettings(
            kind=self.node,
            repo=self.repo_path or None,
            quota=self.quota,
            min_free=self.min_free,
            cache_quota=self.cache_quota,
            kubo_api=self.kubo_api or None,
            kubo_auth=self.kubo_auth or None,
            retrieval=RetrievalSettings(tuple(self.gateways), tuple(self.routers), **patience),
        )

    def _feed(self, policy: AccessPolicy) -> Feed:
        assert self.serverapp is not None  # noqa: S101  # an extension is of a server
        repo = Path(self.repo_path or default_repo())
        settings = FeedSettings(
            repo,
            self.notifications_engine(repo),
            self.min_free,
            self.serverapp.event_logger,
            everybody_sees_all=allows_all(policy, self.serverapp.authorizer),
        )
        return Feed(settings, self.log)

    def initialize_handlers(self) -> None:
        """Called by Jupyter when the settings are read."""
        policy = self.access_policy_class()
        self.context = ServerContext(
            NodeHolder(partial(open_node, self._node_settings()), self.log),
            TokenSigner(self.token_secret, default_ttl=self.token_ttl, max_ttl=self.token_max_ttl),
            self._feed(policy),
            self.peer_settings(),
            policy,
            GatewaySettings(public_cache=self.public_cache, stored_ranges=True),
            Limits(**{field.name: getattr(self, field.name) for field in fields(Limits)}),
            self.log,
        )
        self.handlers.extend(routes(self.context))

    async def _start_jupyter_server_extension(self, _serverapp: Any) -> None:
        """Called by Jupyter once its loop runs: open the store, beside everything else."""
        self.context.start()

    async def stop_extension(self) -> None:
        """Called by Jupyter at its end."""
        await self.context.close()
