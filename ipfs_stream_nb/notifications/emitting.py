"""What emitters are given: a function that takes an event at once and never fails."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from ipfs_stream_nb.notifications.events import NotificationType


class Emit(Protocol):
    """`NotificationManager.emit`. It neither waits nor raises: the work that emits goes on whatever becomes of the event."""

    def __call__(
        self,
        notification_type: NotificationType,
        data: Mapping[str, Any],
        *,
        source: str | None = None,
        owner: str | None = None,
        keep: bool = True,
    ) -> None:
        """`owner`: the user whose event it is, None for everybody's; `keep`: whether the log keeps it. Called on the event
        loop."""
