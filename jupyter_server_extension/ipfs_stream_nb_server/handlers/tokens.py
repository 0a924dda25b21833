"""POST /ipfs-stream/tokens: a capability token for a page that can send neither cookie nor header."""

from __future__ import annotations

from typing import Final

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.errors import BadRequestError
from ipfs_stream_nb.security.access import Action
from ipfs_stream_nb_server.handlers.base import IPFSHandler, access

GRANTABLE: Final = (Action.READ, Action.ADD, Action.PIN, Action.UNPIN, Action.REMOVE)
"""All of them but adding name a CID."""


class TokensHandler(IPFSHandler):
    """Grants no more than the user may do."""

    @access(Action.GRANT)
    async def post(self) -> None:
        """Answer with a token for `{"action", "cid", "ttl"?}` and the time when it ends."""
        body = self.json_body()
        unknown = body.keys() - {"action", "cid", "ttl"}
        if unknown:
            raise BadRequestError(f"unknown field {min(unknown)!r}; action, cid and ttl are known")
        action, cid, ttl = body.get("action"), body.get("cid"), body.get("ttl")
        if action not in list(GRANTABLE):
            raise BadRequestError(f"action is {action!r}; it must be one of {', '.join(GRANTABLE)}")
        if action == Action.ADD and cid is not None:
            raise BadRequestError("a token to add names no cid: it is not known yet")
        if action != Action.ADD and not isinstance(cid, str):
            raise BadRequestError("cid is missing, or is not text")
        if ttl is not None and (isinstance(ttl, bool) or not isinstance(ttl, (int, float))):
            raise BadRequestError(f"ttl is {ttl!r}; it must be a number of seconds")
        root = None if cid is None else CID.parse(cid)
        await self.context.policy.require(self.user, Action(action), root)
        token, capability = self.context.signer.issue(self.user, Action(action), root, ttl)
        self.send_json({"token": token, "expires": capability.expires})
