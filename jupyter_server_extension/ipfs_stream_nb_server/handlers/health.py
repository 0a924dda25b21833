"""GET /ipfs-stream/health: is there a node, how big is it, whom does it ask, what is it doing."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any, Final

from ipfs_stream_nb import __version__
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.content.node import Node
from ipfs_stream_nb.errors import IPFSStreamError, StoreError
from ipfs_stream_nb.security.access import Action
from ipfs_stream_nb_server.handlers.base import IPFSHandler, access, allows_all
from ipfs_stream_nb_server.limits import Limits

DAEMON_TIMEOUT: Final = 1.0
"""Seconds that a Kubo daemon has to tell about itself: health is asked for when something does not answer."""


class HealthHandler(IPFSHandler):
    """Answers 503 with the reason, in the same shape, where the store cannot be used."""

    @access(Action.STATUS)
    async def get(self) -> None:
        """Answer with status, node, limits and what is active."""
        answer: dict[str, Any] = {
            "status": "ok",
            "version": __version__,
            "limits": asdict(self.context.limits),
            "active": self.context.active(),
        }
        try:
            node = await self.node()
            answer["node"] = await _about(node)
        except StoreError as error:
            self.note_failure(error)
            self.send_json(answer | error.to_json() | {"status": "unavailable", "node": None}, error.status)
            return
        answer["node"]["direct"] = node.kind == "embedded" and self._allows_all()
        self.send_json(answer)

    def _allows_all(self) -> bool:
        """Whether this server refuses its users nothing that the store itself would not.

        A client on this machine opens the store's files itself then, with their quota; where the operator has a
        policy, an authorizer or a limit on uploads, it has to ask here.
        """
        return (
            allows_all(self.context.policy, self.authorizer)
            and self.context.limits.max_add_size >= Limits().max_add_size
        )


async def _about(node: Node) -> dict[str, Any]:
    """What the node says about itself; what only a daemon knows is None where that does not answer, and why."""
    repo, peers, state = None, None, "ok"
    try:
        async with asyncio.timeout(DAEMON_TIMEOUT if node.kind == "kubo" else None):
            repo, peers = await node.repo_stat(), len(await node.swarm_peers())
    except StoreError:
        raise
    except TimeoutError:
        state = f"its daemon did not answer within {DAEMON_TIMEOUT:g} s"
    except IPFSStreamError as error:
        state = str(error)
    retriever = getattr(node, "retriever", None)
    about = {
        "kind": node.kind,
        "state": state,
        "peers": peers,
        "sources": None if retriever is None else retriever.describe(),
        "min_free": node.store.min_free if isinstance(node, EmbeddedNode) else None,
    }
    if repo is not None:
        numbers = asdict(repo)
        about |= {"repo": numbers.pop("path"), "repo_size": numbers.pop("size"), **numbers}
    return about
