"""The extension as Jupyter sees it: its settings, its routes, and the life of its node."""

from __future__ import annotations

import secrets
from dataclasses import fields
from typing import Any

from jupyter_server.extension.application import ExtensionApp
from traitlets import Bool, Bytes, Float, Int, Type, Unicode, default

from ipfs_stream_nb.content.blocks.store import MIN_FREE
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.content.gateway import GatewaySettings
from ipfs_stream_nb.content.node import Node
from ipfs_stream_nb.security.access import AccessPolicy
from ipfs_stream_nb.security.tokens import DEFAULT_TTL, MAX_TTL, MIN_SECRET, TokenSigner
from ipfs_stream_nb_server.context import NodeHolder, ServerContext
from ipfs_stream_nb_server.limits import Limits
from ipfs_stream_nb_server.routes import routes

_LIMITS = Limits()


class IPFSStreamExtension(ExtensionApp):
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

    def initialize_handlers(self) -> None:
        """Called by Jupyter when the settings are read."""
        self.context = ServerContext(
            NodeHolder(self._open_node, self.log),
            TokenSigner(self.token_secret, default_ttl=self.token_ttl, max_ttl=self.token_max_ttl),
            self.access_policy_class(),
            GatewaySettings(public_cache=self.public_cache, stored_ranges=True),
            Limits(**{field.name: getattr(self, field.name) for field in fields(Limits)}),
            self.log,
        )
        self.handlers.extend(routes(self.context))

    async def _open_node(self) -> Node:
        return await EmbeddedNode.open(self.repo_path or None, quota=self.quota, min_free=self.min_free)

    async def _start_jupyter_server_extension(self, _serverapp: Any) -> None:
        """Called by Jupyter once its loop runs: open the store, beside everything else."""
        self.context.nodes.start()

    async def stop_extension(self) -> None:
        """Called by Jupyter at its end."""
        await self.context.close()
