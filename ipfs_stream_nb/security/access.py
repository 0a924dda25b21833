"""Who may do what with which content: the policy that every content route asks.

Jupyter has said before who the user is, and its authorizer whether that user may use these routes at all; the
policy here decides on single CIDs. An operator narrows it by a subclass that the server is told of:

    class TeamPolicy(AccessPolicy):
        async def allows(self, user, action, cid):
            return action is Action.READ or user in TEAM

    c.IPFSStreamExtension.access_policy_class = "team.TeamPolicy"
"""

from __future__ import annotations

from enum import StrEnum

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.errors import UnauthorizedError


class Action(StrEnum):
    """What can be asked of a node. The values stand in capability tokens and on the wire."""

    READ = "read"
    """Bytes, blocks, directory entries and metadata of a CID and of everything below it."""
    ADD = "add"
    """New content; its CID is not known yet."""
    PIN = "pin"
    UNPIN = "unpin"
    REMOVE = "remove"
    """Take a CID's blocks out of the store."""
    LIST = "list"
    """See which CIDs are pinned."""
    GC = "gc"
    STATUS = "status"
    """The node's size, limits and what it is doing."""
    GRANT = "grant"
    """Ask for a capability token; the action that the token is for is asked about as well."""
    SUBSCRIBE = "subscribe"
    """See notifications; of which types and whose, `role` and `permissions` say."""
    EMIT = "emit"
    """Send events of one's own; of which types, `role` says."""


class AccessPolicy:
    """Lets every authenticated user do everything. Subclass it and override `allows` for anything narrower.

    Rights go by root. Who may add can make a directory of their own that links to whatever is in the store, and
    read it through that: a policy that hides content from somebody must refuse them ADD (CARs included) as well.
    """

    async def allows(self, user: str, action: Action, cid: CID | None) -> bool:
        """Whether `user` (Jupyter's username) may do this.

        `cid` is the root that the request names: rights to a root are rights to all that lies below it. It is
        None for actions that name no content (add, list, gc, status, grant, subscribe, emit). It is asked again on each request,
        also on those that come with a capability token, so a right that ends ends at once. It runs on the
        server's event loop: await what takes time.
        """
        return True

    async def require(self, user: str, action: Action, cid: CID | None) -> None:
        """Raise UnauthorizedError unless `allows` says yes."""
        if not await self.allows(user, action, cid):
            what = f"{action} {cid}" if cid is not None else str(action)
            raise UnauthorizedError(f"the access policy does not let you {what}")

    async def role(self, user: str) -> str:
        """What `user` is to the notifications: "admin" may see those of the system (`system_*`), and send events that
        tell of content, pins and the system; any other role may not. Another user's events are hidden from both.

        It is asked when a connection opens. Whoever is let into a server of one's own is its admin; a server that
        many share should name its admins here.
        """
        return "admin"

    async def permissions(self, user: str) -> dict[str, bool]:
        """What else `user` may do, by name: with "webrtc" true, see the notifications of WebRTC connections
        (`webrtc_*`). What is missing is not permitted. It is asked when a connection opens."""
        return {"webrtc": True}
