"""The guide's AuthorizedNotificationManager: events by rights (guide, "Authorization for Notifications"; items 150, 151)."""

from __future__ import annotations

from typing import Any

from ipfs_stream_nb.errors import UnauthorizedError
from ipfs_stream_nb.notifications.manager import NotificationManager
from ipfs_stream_nb.notifications.rights import Principal, may_subscribe, principal_of

User = dict[str, Any] | Principal | None
"""The guide's user, {"id", "role", "permissions"}, or what rights.principal_of makes of it; None: nobody."""


class AuthorizedNotificationManager(NotificationManager):
    """Sends a connection what its user may see, live and from the log, and nothing where there is no user."""

    async def connect(self, websocket: Any, connection_id: str | None = None, *, user: User = None) -> str:
        """Register a connection of a user, who may also be named later, by `subscribe`."""
        return self._connect(websocket, connection_id, _principal(user))

    async def subscribe(
        self,
        connection_id: str,
        notification_types: list[str],
        filters: dict[str, Any] | None = None,
        user: User = None,
        *,
        since: object = None,
        epoch: object = None,
    ) -> dict[str, Any]:
        """Subscribe to those types that the user may see; `user` is the connection's own unless given.

        Gives {success: false, error, subscribed_types: []} where there is no user.
        """
        subscriber = self.subscriber(connection_id)
        if user:
            subscriber.principal = _principal(user)
        if subscriber.principal is None:
            return {"success": False, "error": "User not authenticated", "subscribed_types": []}
        return await super().subscribe(connection_id, notification_types, filters, since=since, epoch=epoch)

    async def get_history(
        self,
        limit: int | None = 50,
        notification_type: str | None = None,
        *,
        since: object = None,
        epoch: object = None,
        user: User = None,
    ) -> list[dict[str, Any]]:
        """The latest events that the user may see. Raises UnauthorizedError where there is no user."""
        principal = _principal(user)
        if principal is None:
            raise UnauthorizedError("User not authenticated")
        return await self._get_history(principal, limit, notification_type, since, epoch)

    def _user_can_subscribe(self, user: User, notification_type: str) -> bool:
        """The guide's check; rights.may_subscribe is what decides, in all places."""
        return may_subscribe(_principal(user), notification_type)


def _principal(user: User) -> Principal | None:
    return user if isinstance(user, Principal) else principal_of(user)
