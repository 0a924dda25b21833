"""GET /ipfs-stream/health: is there a node, how big is it, what is it doing."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from jupyter_server.auth import AllowAllAuthorizer

from ipfs_stream_nb import __version__
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.errors import StoreError
from ipfs_stream_nb.security.access import AccessPolicy, Action
from ipfs_stream_nb_server.handlers.base import IPFSHandler, access
from ipfs_stream_nb_server.limits import Limits


class HealthHandler(IPFSHandler):
    """Answers 503 with the reason, in the same shape, where the store cannot be used."""

    @access(Action.STATUS)
    async def get(self) -> None:
        """Answer with status, node, limits and what is active."""
        answer: dict[str, Any] = {
            "status": "ok",
            "version": __version__,
            "limits": asdict(self.context.limits),
            "active": {
                "streams": self.context.streams.active,
                "uploads": self.context.adds.active,
                "peer_connections": 0,
                "subscribers": 0,
            },
        }
        try:
            node = await self.node()
            repo = await node.repo_stat()
        except StoreError as error:
            self.note_failure(error)
            self.send_json(answer | error.to_json() | {"status": "unavailable", "node": None}, error.status)
            return
        answer["node"] = {
            "kind": node.kind,
            "peers": len(await node.swarm_peers()),
            "repo_size": repo.size,
            "repo": repo.path,
            "store_id": repo.store_id,
            "blocks": repo.blocks,
            "disk_size": repo.disk_size,
            "quota": repo.quota,
            "disk_free": repo.disk_free,
            "min_free": node.store.min_free if isinstance(node, EmbeddedNode) else None,
            "direct": isinstance(node, EmbeddedNode) and self._allows_all(),
        }
        self.send_json(answer)

    def _allows_all(self) -> bool:
        """Whether this server refuses its users nothing that the store itself would not.

        A client on this machine opens the store's files itself then, with their quota; where the operator has a
        policy, an authorizer or a limit on uploads, it has to ask here.
        """
        return (
            type(self.context.policy) is AccessPolicy
            and type(self.authorizer) is AllowAllAuthorizer
            and self.context.limits.max_add_size >= Limits().max_add_size
        )
