"""POST /ipfs-stream/tokens: a capability token for a page that can send neither cookie nor header."""

from __future__ import annotations

from typing import Any, Final

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.errors import BadRequestError, UnauthorizedError
from ipfs_stream_nb.notifications.events import NotificationType
from ipfs_stream_nb.notifications.rights import principal_of, split_types
from ipfs_stream_nb.security.access import Action
from ipfs_stream_nb_server.handlers.base import IPFSHandler, access

WITHOUT_CID: Final = (Action.ADD, Action.SUBSCRIBE)
GRANTABLE: Final = (Action.READ, Action.PIN, Action.UNPIN, Action.REMOVE, *WITHOUT_CID)
FIELDS: Final = ("action", "cid", "ttl", "notification_types")


class TokensHandler(IPFSHandler):
    """Grants no more than the user may do."""

    @access(Action.GRANT)
    async def post(self) -> None:
        """Answer with a token for `{"action", "cid", "ttl"?}` and the time when it ends.

        A token to subscribe has `notification_types?` in place of the CID; without, it is for all that its user may see.
        """
        body = self.json_body()
        unknown = body.keys() - set(FIELDS)
        if unknown:
            raise BadRequestError(f"unknown field {min(unknown)!r}; known are: {', '.join(FIELDS)}")
        action, cid, ttl = body.get("action"), body.get("cid"), body.get("ttl")
        if action not in list(GRANTABLE):
            raise BadRequestError(f"action is {action!r}; it must be one of {', '.join(GRANTABLE)}")
        if action in WITHOUT_CID and cid is not None:
            raise BadRequestError(f"a token to {action} names no cid")
        if action not in WITHOUT_CID and not isinstance(cid, str):
            raise BadRequestError("cid is missing, or is not text")
        if ttl is not None and (isinstance(ttl, bool) or not isinstance(ttl, (int, float))):
            raise BadRequestError(f"ttl is {ttl!r}; it must be a number of seconds")
        names = body.get("notification_types")
        if names is not None and action != Action.SUBSCRIBE:
            raise BadRequestError(f"a token to {action} names no notification types")
        root = None if cid is None else CID.parse(cid)
        await self.context.policy.require(self.user, Action(action), root)
        types = None if names is None else await self._types(names)
        token, capability = self.context.signer.issue(self.user, Action(action), root, ttl, types)
        self.send_json({"token": token, "expires": capability.expires})

    async def _types(self, names: Any) -> frozenset[str] | None:
        """The types that a token is asked for; None for all_events. Raises BadRequestError, UnauthorizedError."""
        policy = self.context.policy
        role, permissions = await policy.role(self.user), await policy.permissions(self.user)
        choice = split_types(names, principal_of({"id": self.user, "role": role, "permissions": permissions}))
        if choice.invalid:
            raise BadRequestError(f"no notification types: {', '.join(map(repr, choice.invalid))}")
        if NotificationType.ALL_EVENTS in names:
            return None
        if choice.unauthorized:
            raise UnauthorizedError(f"you may not see {', '.join(choice.unauthorized)}")
        if not choice.granted:
            raise BadRequestError("notification_types is empty; leave it out for all that you may see")
        return frozenset(choice.granted)
