"""`WS /ws/notifications`: subscriptions and events, over any connection."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from ipfs_stream_nb.errors import BadRequestError, IPFSStreamError
from ipfs_stream_nb.notifications.authorized import AuthorizedNotificationManager, User
from ipfs_stream_nb.notifications.packs import Outlet
from ipfs_stream_nb.transports.connection import Connection, error_message, read_json, shown

Answer = dict[str, Any] | None
"""What a command is answered with; None where the manager has answered itself."""


class NotificationConnection(Connection, Outlet, Protocol):
    """A connection that takes packs as well."""


class NotificationConversation:
    """Takes a client's commands, one after the other: the next is read once the answer to the last has been taken."""

    def __init__(
        self, websocket: NotificationConnection, manager: AuthorizedNotificationManager, user: User
    ) -> None:
        self._websocket = websocket
        self._manager = manager
        self._user = user
        self._id = ""

    async def run(self) -> None:
        """Serve until the client goes. Raises ConnectionClosedError."""
        self._id = await self._manager.connect(self._websocket, user=self._user)
        subscriber = self._manager.subscriber(self._id)
        try:
            while True:
                message = await self._websocket.receive()
                answer = await self._answer(message)
                if answer is not None:
                    subscriber.say(answer | {"timestamp": time.time()})
                await subscriber.listened()
        finally:
            await self._manager.disconnect(self._id)

    async def _answer(self, message: str | bytes) -> Answer:
        action: object = None
        try:
            facts = read_json(message, f"a command ({', '.join(_ACTIONS)})")
            action = facts.get("action", facts.get("type"))
            act = _ACTIONS.get(action) if isinstance(action, str) else None
            if act is None:
                what = "it has no action" if action is None else f"{shown(action)} is no action"
                raise BadRequestError(f"{what}; these are: {', '.join(_ACTIONS)}")
            return await act(self, facts)
        except IPFSStreamError as error:
            return error_message(error) | ({"action": action} if isinstance(action, str) else {})

    async def _subscribe(self, facts: dict[str, Any]) -> Answer:
        result = await self._manager.subscribe(
            self._id,
            _types(facts),
            facts.get("filters"),
            since=facts.get("since"),
            epoch=facts.get("epoch"),
        )
        if not result["success"]:
            raise BadRequestError(str(result["error"]))
        return None

    async def _unsubscribe(self, facts: dict[str, Any]) -> Answer:
        await self._manager.unsubscribe(self._id, _types(facts))
        return None

    async def _get_history(self, facts: dict[str, Any]) -> Answer:
        events = await self._manager.get_history(
            facts.get("limit"),
            facts.get("notification_type"),
            since=facts.get("since"),
            epoch=facts.get("epoch"),
            user=self._manager.subscriber(self._id).principal,
        )
        return {"type": "history", "events": events, "count": len(events), "epoch": self._manager.epoch}

    async def _ping(self, _facts: dict[str, Any]) -> Answer:
        return {"type": "pong"}

    async def _pong(self, _facts: dict[str, Any]) -> Answer:
        return None

    async def _get_metrics(self, _facts: dict[str, Any]) -> Answer:
        return {"type": "metrics", "metrics": self._manager.get_metrics()}

    async def _get_info(self, _facts: dict[str, Any]) -> Answer:
        return {"type": "connection_info", "info": self._manager.get_connection_info(self._id)}


def _types(facts: dict[str, Any]) -> Any:
    types = facts.get("notification_types")
    if types is None:
        raise BadRequestError("notification_types is missing: a list of types, such as all_events")
    return types


_ACTIONS: Final[dict[str, Callable[[NotificationConversation, dict[str, Any]], Awaitable[Answer]]]] = {
    "subscribe": NotificationConversation._subscribe,  # noqa: SLF001  # its own table
    "unsubscribe": NotificationConversation._unsubscribe,  # noqa: SLF001
    "get_history": NotificationConversation._get_history,  # noqa: SLF001
    "ping": NotificationConversation._ping,  # noqa: SLF001
    "pong": NotificationConversation._pong,  # noqa: SLF001
    "get_metrics": NotificationConversation._get_metrics,  # noqa: SLF001
    "get_info": NotificationConversation._get_info,  # noqa: SLF001
}
