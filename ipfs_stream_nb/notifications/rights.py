"""Who may see and send which notifications (guide, "Authorization for Notifications"; items 150 and 151).

- `system_*` is for admins, `webrtc_*` for who has the permission "webrtc", the rest for everybody who is authenticated.
- An event that has an owner is that user's alone: an admin does not see it either.
- `all_events` is short for all the types that a user may see, and a right to nothing by itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from ipfs_stream_nb.errors import BadRequestError
from ipfs_stream_nb.notifications.events import EVENT_TYPES, NotificationType

MAX_TYPES: Final = 64
"""Types in one subscribe or unsubscribe."""
MAX_SHOWN: Final = 100
"""Characters of what is no type, as it is shown to whoever sent it."""

_ALL: Final = NotificationType.ALL_EVENTS
_TYPES: Final = {kind.value: kind for kind in NotificationType}
_EVENT_TYPES: Final = frozenset(EVENT_TYPES)
_EMITTED_BY_ADMINS: Final = frozenset(
    kind
    for kind in EVENT_TYPES
    if kind.startswith(("content_", "pin_", "system_")) and kind is not NotificationType.SYSTEM_METRICS
)


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody who is authenticated, and what they may do."""

    id: str | None
    """The username; None where it is not known: events that have an owner are then all somebody else's."""
    admin: bool = False
    webrtc: bool = False
    types: frozenset[str] | None = None
    """The types that a capability token is good for; None: no such limit."""
    all_owners: bool = False
    """Whether owners do not matter: where there is no authorization at all."""


EVERYTHING: Final = Principal(None, admin=True, webrtc=True, all_owners=True)
"""Whoever is connected to a manager that asks for no rights."""


def principal_of(user: object) -> Principal | None:
    """The user `{"id": username, "role": "admin"|…, "permissions": {"webrtc": bool}}` of the guide; what is missing or
    of another kind is no right. None for nobody: no dictionary, or an empty one."""
    if not isinstance(user, dict) or not user:
        return None
    name, permissions = user.get("id"), user.get("permissions")
    return Principal(
        id=name if isinstance(name, str) and name else None,
        admin=user.get("role") == "admin",
        webrtc=isinstance(permissions, dict) and permissions.get("webrtc") is True,
    )


def may_subscribe(principal: Principal | None, notification_type: str) -> bool:
    """Whether events of this type may be seen. Never for all_events."""
    if principal is None or notification_type not in _EVENT_TYPES:
        return False
    if principal.types is not None and notification_type not in principal.types:
        return False
    if notification_type.startswith("system_"):
        return principal.admin
    if notification_type.startswith("webrtc_"):
        return principal.webrtc
    return True


def may_see(principal: Principal | None, notification_type: str, owner: str | None) -> bool:
    """Whether an event of this type and owner (None: nobody's) may be seen."""
    if not may_subscribe(principal, notification_type):
        return False
    return owner is None or (principal is not None and (principal.all_owners or owner == principal.id))


def may_emit(principal: Principal | None, notification_type: str) -> bool:
    """Whether a client may send an event of this type: custom_event everybody, what tells of content, pins and the
    system admins alone; what only this package can know, metrics and connections, nobody."""
    if principal is None:
        return False
    return notification_type == NotificationType.CUSTOM_EVENT or (
        principal.admin and notification_type in _EMITTED_BY_ADMINS
    )


@dataclass(frozen=True, slots=True)
class TypeChoice:
    """What became of the types that a client named, each once and in the client's order."""

    granted: tuple[str, ...]
    """all_events alone where it was asked for and hides nothing, else event types."""
    invalid: tuple[str, ...]
    """What is no type, as text of at most MAX_SHOWN characters."""
    unauthorized: tuple[str, ...]
    """Event types that may not be seen."""

    @property
    def types(self) -> tuple[NotificationType, ...]:
        """The event types that are granted."""
        return EVENT_TYPES if _ALL in self.granted else tuple(NotificationType(name) for name in self.granted)


def split_types(names: object, principal: Principal | None) -> TypeChoice:
    """Sort what a client sent as notification_types: a list, or one type. Raises BadRequestError for anything else."""
    if isinstance(names, str):
        names = [names]
    if not isinstance(names, list):
        raise BadRequestError(f"notification_types is a list of types, not a {type(names).__name__}")
    if len(names) > MAX_TYPES:
        raise BadRequestError(f"notification_types has {len(names)} values; at most {MAX_TYPES} are taken")
    asked: dict[NotificationType, None] = {}
    invalid: dict[str, None] = {}
    for name in names:
        kind = _TYPES.get(name) if isinstance(name, str) else None
        if kind is None:
            invalid[_shown(name)] = None
        else:
            asked[kind] = None
    wanted = EVENT_TYPES if _ALL in asked else tuple(asked)
    granted = tuple(kind.value for kind in wanted if may_subscribe(principal, kind))
    unauthorized = tuple(kind.value for kind in wanted if not may_subscribe(principal, kind))
    if _ALL in asked and not unauthorized:
        granted = (_ALL.value,)
    return TypeChoice(granted, tuple(invalid), unauthorized)


def _shown(value: Any) -> str:
    """What is no type, as short text."""
    if isinstance(value, str):
        return value[:MAX_SHOWN]
    try:
        return json.dumps(value)[:MAX_SHOWN]
    except (TypeError, ValueError, RecursionError):
        return type(value).__name__
